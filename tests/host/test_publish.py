"""``mpota publish`` and ``mpota channel``, in a directory and in a bucket: what they leave there,
wherever they end, and what they refuse."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from mpota.formats.channel import Channel, SignedLine
from mpota.formats.manifest import Manifest
from mpota.publish import publishing
from mpota.publish import store as store_module
from mpota.publish.store import Store, open_store
from mpota.release.signing import sign_line

from tests.support import releases, s3
from tests.support.published import Cut, Watched, app, mpota, write_bundle, write_files, write_keys

CHANNEL = "stable.channel"
LIMIT = 1 << 20


@pytest.fixture(scope="module", name="server")
def _server() -> Iterator[str]:
    with s3.running() as url:
        yield url


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the test is the working directory, with keys in it."""
    monkeypatch.chdir(tmp_path)
    write_keys(tmp_path)
    for name in s3.FOREIGN:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture(params=["directory", "s3"])
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where to publish; nothing is there."""
    if request.param == "directory":
        return "public"
    server: str = request.getfixturevalue("server")
    for name, value in s3.environment(server).items():
        monkeypatch.setenv(name, value)
    bucket = f"b{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:16]}"
    s3.make_bucket(server, bucket)
    return f"s3://{bucket}/pump"


@pytest.fixture
def public() -> str:
    """A directory to publish in, where a bucket would be no other."""
    return "public"


def publish(target: str, *arguments: object, key: str = "key.pem") -> None:
    done = mpota("publish", *arguments, target, "--key", key)
    assert done, done.error


def change(target: str, *arguments: object) -> None:
    done = mpota("channel", "set", target, "--key", "key.pem", *arguments)
    assert done, done.error


def channel(target: str, name: str = "stable") -> Channel:
    found = open_store(target).get(f"{name}.channel", LIMIT)
    assert found is not None
    return Channel.from_line(SignedLine.from_bytes(found.data).line)


def shown(target: str) -> dict[str, Any]:
    done = mpota("channel", "show", target, "--key", "key.pub.pem", "--json")
    assert done.out, done.error
    document: dict[str, Any] = json.loads(done.out)
    return document


def gets(target: str) -> list[tuple[str | None, str, str | None, int]]:
    return [(b["chip"], b["runs"], b["gets"], b["share"]) for b in shown(target)["boards"]]


def contents(target: str) -> dict[str, bytes]:
    """All files of a store, by path."""
    store = open_store(target)
    paths = [one.path for folder in ("", "releases") for one in store.list(folder)]
    found = {path: store.get(path, LIMIT) for path in paths}
    return {path: one.data for path, one in found.items() if one}


def watched(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None]) -> list[Watched]:
    """Stores that commands open from now on are watched; they are in the list."""
    opened: list[Watched] = []

    def opening(target: str) -> Store:
        opened.append(Watched(open_store(target), before))
        return opened[-1]

    for module in ("publish", "channel"):
        monkeypatch.setattr(f"mpota.commands.{module}.open_store", opening)
    return opened


# --- what is published -------------------------------------------------------------------------


def test_a_release_is_there_in_every_form_and_whole(target: str) -> None:
    publish(target, write_bundle(Path("a"), "2.0.0", 5))
    (entry,) = channel(target).releases
    assert (entry.version, entry.counter, entry.chip, entry.share) == ("2.0.0", 5, "esp32", 10000)
    there = contents(target)
    manifest = Manifest.from_bytes(there[entry.manifest])
    assert hashlib.sha256(there[entry.manifest]).hexdigest() == entry.sha256
    for form in manifest.forms:
        form.check(there[f"releases/{form.url}"], str(form.url))
    assert [form.encoding for form in manifest.forms] == [None, None]
    found = shown(target)
    assert (found["faults"], found["warnings"]) == ([], [])


def test_what_a_bundle_has_compressed_is_there_as_it_is_too() -> None:
    files = releases.tree("2.0.0").compressed()
    made = releases.make(files, name="pump", version="2.0.0", counter=5)
    Path("a").write_bytes(made.to_bytes())
    publish("public", Path("a"))
    there = contents("public")
    (payload,) = Manifest.from_bytes(there[channel("public").releases[0].manifest]).payloads
    assert [form.encoding for form in payload.forms] == ["deflate", None]
    assert there[f"releases/{payload.forms[1].url}"] == files.data
    assert shown("public")["faults"] == []


def test_what_is_published_is_a_release_for_mpota_verify_and_boards(here: Path) -> None:
    publish("public", write_bundle(Path("a"), "2.0.0", 5))
    (path,) = Path("public/releases").glob("*.json")
    done = mpota("verify", path, "--key", "key.pub.pem")
    assert done.out.startswith(f"{path.name}: pump 2.0.0, whole, signed by ")


def test_deltas_lead_from_the_newest_releases_that_are_published(public: str) -> None:
    for number in range(4):
        publish(public, write_bundle(Path("a"), f"2.{number}.0", 5 + number), "--deltas", 2)
    newest = channel(public).releases[0]
    found = open_store(public).get(newest.manifest, LIMIT)
    assert found is not None
    (payload, _) = Manifest.from_bytes(found.data).payloads
    digests = {hashlib.sha256(app(f"v2.{n}.0")).hexdigest() for n in (1, 2)}
    assert {form.base for form in payload.forms if form.base} == digests
    boards = {b["runs"]: b["fetches"] for b in shown(public)["boards"]}
    assert boards["2.2.0"] < boards["2.0.0"] / 2
    assert boards["2.3.0"] is None


def test_the_same_command_again_changes_nothing(public: str) -> None:
    bundle = write_bundle(Path("a"), "2.0.0", 5)
    publish(public, bundle, "--share", 5)
    change(public, "--share", 25)
    before = contents(public)
    done = mpota("publish", bundle, public, "--share", 5, "--key", "key.pem")
    assert (done.code, "nothing to do" in done.out) == (0, True)
    assert contents(public) == before


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(public: str) -> None:
    bundle = write_bundle(Path("a"), "2.0.0", 5)
    done = mpota("publish", bundle, public, "--dry-run", "--key", "key.pub.pem")
    assert (done.code, "to send" in done.out, "nothing is written" in done.out) == (0, True, True)
    assert contents(public) == {}


def test_several_kinds_of_hardware_are_in_one_channel(public: str) -> None:
    publish(
        public,
        write_bundle(Path("a"), "2.0.0", 5),
        write_bundle(Path("b"), "2.0.0", 6, "esp32s3"),
        write_bundle(Path("c"), "2.0.0", 7, "esp32c3", board="Generic ESP32C3 module"),
    )
    publish(public, write_bundle(Path("d"), "2.1.0", 8, "esp32s3"), "--share", "0.5")
    assert gets(public) == [
        ("esp32s3", "2.1.0", None, 10000),
        ("esp32s3", "2.0.0", "2.1.0", 50), ("esp32s3", "2.0.0", None, 10000),
        ("esp32s3", "older", "2.1.0", 50), ("esp32s3", "older", "2.0.0", 10000),
        ("esp32c3", "2.0.0", None, 10000), ("esp32c3", "older", "2.0.0", 10000),
        ("esp32", "2.0.0", None, 10000), ("esp32", "older", "2.0.0", 10000),
    ]  # fmt: skip


def test_stepping_stones_stay_as_long_as_boards_need_them(public: str) -> None:
    publish(public, write_bundle(Path("a"), "1.0.0", 5))
    publish(public, write_bundle(Path("b"), "2.0.0", 6))
    publish(public, write_bundle(Path("c"), "3.0.0", 7), "--from-version", "2.0")
    assert [entry.version for entry in channel(public).releases] == ["3.0.0", "2.0.0"]
    assert gets(public) == [
        ("esp32", "3.0.0", None, 10000), ("esp32", "2.0.0", "3.0.0", 10000),
        ("esp32", "1.0.0", "2.0.0", 10000), ("esp32", "older", "2.0.0", 10000),
    ]  # fmt: skip
    publish(public, write_bundle(Path("d"), "4.0.0", 8))
    assert [entry.version for entry in channel(public).releases] == ["4.0.0"]


def test_two_channels_share_what_they_have_in_common(public: str) -> None:
    bundle = write_bundle(Path("a"), "2.0.0", 5)
    publish(public, bundle, "--channel", "beta")
    before = set(contents(public))
    publish(public, bundle)
    assert set(contents(public)) - before == {CHANNEL}
    assert channel(public, "beta").releases == channel(public).releases


@pytest.mark.parametrize(("given", "counter"), [(7, 2_000_000_001), (2_000_000_009, 2_000_000_009)])
def test_a_bundle_gets_a_counter_above_the_channel_s(here: Path, given: int, counter: int) -> None:
    publish("public", write_bundle(Path("a"), "2.0.0", 2_000_000_000), "--channel", "beta")
    (here / "src").mkdir()
    (here / "src" / "main.py").touch()
    release = ["bundle", "--files", "src", "--name", "pump", "--version", "2.1.0"]
    options = ["--counter", given, "--channel", "public"]
    done = mpota(*release, *options)
    assert (done.code, "--channel needs --key" in done.error) == (2, True)
    done = mpota(*release, *options, "--key", "key.pem")
    assert done, done.error
    assert json.loads(mpota("manifest", "pump-2.1.0.bundle").out)["counter"] == counter


# --- interrupted, and two at once --------------------------------------------------------------


def test_a_cut_at_every_step_shows_boards_nothing_and_the_next_run_goes_on(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(target, write_bundle(Path("a"), "2.0.0", 5))
    bundle = write_files(Path("b"), "2.1.0", 6)
    before = contents(target)
    cut_at = 0

    def stop(number: int) -> None:
        if number == cut_at:
            raise Cut

    watched(monkeypatch, stop)
    arguments = ("publish", bundle, target, "--share", 5, "--key", "key.pem")
    while (done := mpota(*arguments)).code == 130:
        assert "the same command again goes on" in done.error
        assert contents(target)[CHANNEL] == before[CHANNEL]
        assert shown(target)["faults"] == []
        cut_at += 1
    assert cut_at == 4  # payload, manifest, signature, channel
    assert done, done.error
    assert contents(target).keys() > before.keys()
    assert [entry.version for entry in channel(target).releases] == ["2.1.0", "2.0.0"]
    assert shown(target)["faults"] == []


def test_of_two_publishers_at_once_the_second_is_told_and_goes_on(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(target, write_bundle(Path("a"), "2.0.0", 5))
    mine, theirs = write_bundle(Path("b"), "2.1.0", 6), write_bundle(Path("c"), "2.2.0", 7)
    is_first = True

    def publish_theirs(number: int) -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            publish(target, theirs, "--share", 5)

    watched(monkeypatch, publish_theirs)
    done = mpota("publish", mine, target, "--key", "key.pem")
    assert (done.code, "somebody else has changed 'stable.channel' meanwhile" in done.error) == (
        1, True,
    ), done.error  # fmt: skip
    assert [entry.version for entry in channel(target).releases] == ["2.2.0", "2.0.0"]
    publish(target, mine)
    assert [entry.version for entry in channel(target).releases] == ["2.2.0", "2.1.0"]
    assert shown(target)["faults"] == []


def test_an_answer_that_was_lost_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_file = store_module.Directory.replace

    def lose(self: store_module.Directory, *arguments: Any) -> bool:
        replace_file(self, *arguments)
        return False

    monkeypatch.setattr(store_module.Directory, "replace", lose)
    publish("public", write_bundle(Path("a"), "2.0.0", 5))
    assert [entry.version for entry in channel("public").releases] == ["2.0.0"]


def test_what_is_removed_while_it_is_published_is_sent_again(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(target, write_bundle(Path("a"), "2.0.0", 5), "--channel", "beta")
    there = next(path for path in contents(target) if path.endswith("files.tar"))

    def remove(number: int) -> None:
        open_store(target).delete(there)

    watched(monkeypatch, remove)
    publish(target, Path("a"))
    assert shown(target)["faults"] == []


# --- shares, pauses, withdrawals ---------------------------------------------------------------


def test_each_change_is_signed_and_has_a_higher_serial(target: str) -> None:
    publish(target, write_bundle(Path("a"), "2.0.0", 5))
    publish(target, write_bundle(Path("b"), "2.1.0", 6), "--share", 1)
    serials = [channel(target).serial]
    for options, expected in (
        (["--share", 25], [("2.1.0", 2500), (None, 10000)]),
        (["--pause"], [(None, 10000)]),
        (["--resume"], [("2.1.0", 2500), (None, 10000)]),
        (["--share", "100%"], [("2.1.0", 10000)]),
        (["--withdraw"], [(None, 10000)]),
    ):
        change(target, *options)
        serials.append(channel(target).serial)
        found = [(to, share) for _, runs, to, share in gets(target) if runs == "2.0.0"]
        assert found == expected
    assert serials == list(range(serials[0], serials[0] + 6))


def test_what_is_withdrawn_stays_withdrawn(public: str) -> None:
    publish(public, write_bundle(Path("a"), "2.0.0", 5))
    change(public, "--withdraw")
    before = contents(public)
    for state in ("--resume", "--pause"):
        done = mpota("channel", "set", public, state, "--key", "key.pem")
        assert (done.code, "withdrawn, which is for ever" in done.error) == (1, True)
    assert contents(public) == before


def test_who_comes_in_later_starts_spread_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 11, 27, 12, tzinfo=timezone.utc)
    times = iter([now + timedelta(hours=hour) for hour in range(9)])
    for module in ("mpota.publish.publishing", "mpota.commands.channel"):
        monkeypatch.setattr(f"{module}.utc_now", lambda: next(times))
    publish("public", write_bundle(Path("a"), "2.0.0", 5), "--share", 5, "--spread", "2h")
    (entry,) = channel("public").releases
    assert (entry.begins, entry.spread) == (now, 7200)
    begins = []
    for options in (["--expires", 60], ["--share", 25], ["--share", 10], ["--pause"], ["--resume"]):
        change("public", *options)
        found = channel("public").releases[0].begins
        assert found is not None
        begins.append((found - now) // timedelta(hours=1))
    assert begins == [0, 2, 2, 2, 5]


def test_a_channel_holds_as_long_as_it_was_told_and_no_entry_changes(public: str) -> None:
    publish(public, write_bundle(Path("a"), "2.0.0", 5), "--expires", 90)
    change(public)
    found = channel(public)
    assert found.expires - found.issued == timedelta(90)
    change(public, "--expires", 5, "--poll", "2h")
    found = channel(public)
    assert (found.expires - found.issued, found.poll) == (timedelta(5), 7200)
    (warning,) = shown(public)["warnings"]
    assert warning.startswith("it expires on ")


def test_an_expired_channel_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    publish("public", write_bundle(Path("a"), "2.0.0", 5), "--expires", 1)
    later = channel("public").expires
    monkeypatch.setattr("mpota.commands.channel.utc_now", lambda: later)
    done = mpota("channel", "show", "public", "--key", "key.pub.pem")
    assert (done.code, "it expired on" in done.out) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--share", "101"], 2, "share '101' is no percentage"),
        (["--share", "-1"], 2, "share '-1' is no percentage"),
        (["--share", "1.234"], 2, "share '1.234' is no percentage"),
        (["--spread", "2w"], 2, "'2w' is no time"),
        (["--spread", "31d"], 1, "spread"),
        (["--expires", "0"], 2, "0"),
        (["--poll", "5"], 2, "--poll 5 s: 60 s to 24 h"),
        (["--version", "9"], 2, "--version needs"),
        (["--version", "9", "--pause"], 2, "the channel has no release 9"),
        (["--channel", "beta", "--pause"], 2, "has no channel 'beta'"),
        (["--channel", "../x", "--pause"], 1, "channel has"),
        (["--fresh-key", "key.pub.pem", "--no-fresh-key"], 2, "--fresh-key or --no-fresh-key"),
    ],
)
def test_what_makes_no_sense_changes_nothing(arguments: list[str], code: int, words: str) -> None:
    publish("public", write_bundle(Path("a"), "2.0.0", 5))
    before = contents("public")
    done = mpota("channel", "set", "public", "--key", "key.pem", *arguments)
    assert (done.code, words in done.error) == (code, True), done.error
    assert contents("public") == before


# --- attacks that the desk can see -------------------------------------------------------------


def test_a_channel_that_somebody_else_signed_is_not_built_on(public: str) -> None:
    bundle = write_bundle(Path("a"), "2.0.0", 5)
    publish(public, write_bundle(Path("b"), "2.0.0", 5, number=1), key="other.pem")
    before = contents(public)
    for command in (
        ["publish", bundle, public, "--key", "key.pem"],
        ["channel", "set", public, "--pause", "--key", "key.pem"],
        ["channel", "show", public, "--key", "key.pub.pem"],
        ["channel", "prune", public, "--key", "key.pub.pem"],
        ["channel", "refresh", public, "--key", "key.pem", "--trust", "key.pub.pem"],
    ):
        done = mpota(*command)
        assert (done.code, "none of the keys given" in done.error) == (1, True), done.error
    assert contents(public) == before


def test_an_old_channel_that_is_put_back_is_noticed(target: str) -> None:
    publish(target, write_bundle(Path("a"), "2.0.0", 5))
    store = open_store(target)
    old = store.get(CHANNEL, LIMIT)
    assert old is not None
    change(target, "--withdraw")
    now = store.get(CHANNEL, LIMIT)
    assert now is not None
    assert store.replace(CHANNEL, old.data, now.tag)
    for command in (
        ["publish", write_bundle(Path("b"), "2.1.0", 6), target, "--key", "key.pem"],
        ["channel", "set", target, "--share", "5", "--key", "key.pem"],
        ["channel", "show", target, "--key", "key.pub.pem"],
    ):
        done = mpota(*command)
        assert (done.code, "somebody has put back an old file" in done.error) == (1, True)
    found = store.get(CHANNEL, LIMIT)
    assert found is not None
    assert found.data == old.data


def test_a_channel_under_another_name_is_refused(public: str) -> None:
    publish(public, write_bundle(Path("a"), "2.0.0", 5), "--channel", "beta")
    store = open_store(public)
    found = store.get("beta.channel", LIMIT)
    assert found is not None
    store.create(CHANNEL, found.data)
    done = mpota("channel", "show", public, "--key", "key.pub.pem")
    assert (done.code, "is the channel 'beta'" in done.error) == (1, True)


def damage_payload(there: dict[str, bytes]) -> tuple[str, bytes]:
    path = next(path for path in there if path.endswith("app.bin"))
    return path, there[path][:-1] + b"x"


def drop_payload(there: dict[str, bytes]) -> tuple[str, None]:
    return next(path for path in there if path.endswith("files.tar")), None


def damage_manifest(there: dict[str, bytes]) -> tuple[str, bytes]:
    path = next(path for path in there if path.endswith(".json"))
    return path, there[path] + b"\n"


def sign_by_other(there: dict[str, bytes]) -> tuple[str, bytes]:
    path = next(path for path in there if path.endswith(".json"))
    from mpota.release.signing import sign

    return path.replace(".json", ".sig"), sign(there[path], (releases.key(1),))


def enlarge_payload(there: dict[str, bytes]) -> tuple[str, bytes]:
    path = next(path for path in there if path.endswith("app.bin"))
    return path, there[path] + b"\xff" * 4096


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (damage_payload, "SHA-256"),
        (drop_payload, "there is no 'releases/"),
        (damage_manifest, "not the one that the channel names"),
        (sign_by_other, "none of the keys given"),
        (enlarge_payload, "more than"),
    ],
)
def test_whatever_is_exchanged_is_a_fault_and_boards_are_told_of(
    public: str,
    attack: Callable[[dict[str, bytes]], tuple[str, bytes | None]],
    words: str,
) -> None:
    publish(public, write_bundle(Path("a"), "2.0.0", 5))
    path, data = attack(contents(public))
    store = open_store(public)
    store.delete(path)
    if data is not None:
        store.create(path, data)
    done = mpota("channel", "show", public, "--key", "key.pub.pem")
    assert (done.code, "refused by boards: 2.0.0: " in done.out) == (1, True), done.error
    assert words in done.out


def test_a_name_that_is_taken_by_other_content_ends_it(target: str) -> None:
    bundle = write_bundle(Path("a"), "2.0.0", 5)
    name = f"releases/{hashlib.sha256(app('v2.0.0')).hexdigest()[:16]}-app.bin"
    open_store(target).create(name, b"of somebody else")
    done = mpota("publish", bundle, target, "--key", "key.pem")
    assert (done.code, f"'{name}' is there with other content" in done.error) == (1, True)
    assert CHANNEL not in contents(target)


def test_releases_that_somebody_else_put_there_are_no_base_for_deltas(public: str) -> None:
    publish(
        public, write_bundle(Path("a"), "2.0.0", 5, number=1), "--channel", "x", key="other.pem"
    )
    publish(public, write_bundle(Path("b"), "2.1.0", 6))
    store = open_store(public)
    found = store.get(channel(public).releases[0].manifest, LIMIT)
    assert found is not None
    assert not [form for form in Manifest.from_bytes(found.data).forms if form.base]


def test_a_damaged_channel_is_one_clear_line(public: str) -> None:
    store = open_store(public)
    for data in (b"{}\n", b"<html>", b'{"type":"channel"}\n' + bytes(1216), b"{" * 20000):
        store.delete(CHANNEL)
        store.create(CHANNEL, data)
        done = mpota("channel", "show", public, "--key", "key.pub.pem")
        assert (done.code, done.error.count("\n") <= 2) == (1, True), done.error


def test_bundles_of_others_and_of_other_products_are_not_published(public: str) -> None:
    publish(public, write_bundle(Path("a"), "2.0.0", 5))
    before = contents(public)
    signed_by_other = write_bundle(Path("b"), "2.1.0", 6, number=1)
    other_product = write_bundle(Path("c"), "2.1.0", 6, name="lamp")
    older = write_bundle(Path("d"), "2.1.0", 4)
    same_counter = write_bundle(Path("e"), "2.1.0", 5)
    keys_alone = Path("f")
    keys_alone.write_bytes(
        releases.make(
            keys=(releases.key(),), name="pump", counter=6, add_keys=("ab" * 32,)
        ).to_bytes()
    )
    expired = write_bundle(Path("i"), "2.1.0", 6, expires="2026-01-01T00:00:00Z")
    not_whole = Path("g")
    not_whole.write_bytes(write_bundle(Path("h"), "2.1.0", 6).read_bytes()[:-9000])
    for path, words in (
        (signed_by_other, "none of the keys given"),
        (other_product, "the channel is for 'pump', this is a release of 'lamp'"),
        (older, "no board would take 2.1.0 (counter 4)"),
        (same_counter, "the channel has another release with counter 5: 2.0.0"),
        (keys_alone, "has no payloads"),
        (expired, "pump 2.1.0 expired on 2026-01-01T00:00:00Z: no board would take it"),
        (not_whole, ""),
        (Path("key.pub.pem"), "is no bundle"),
    ):
        done = mpota("publish", path, public, "--key", "key.pem")
        assert (done.code in (1, 2), words in done.error) == (True, True), (path, done.error)
    assert contents(public) == before


def test_a_release_that_has_expired_since_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(Path("a"), "2.0.0", 5, expires="2099-01-01T00:00:00Z")
    publish("public", bundle, "--expires", 3650)
    later = datetime(2099, 1, 1, tzinfo=timezone.utc)
    monkeypatch.setattr("mpota.commands.channel.utc_now", lambda: later)
    assert "2.0.0: its manifest expired on 2099-01-01T00:00:00Z" in shown("public")["faults"]


def test_a_clock_that_is_behind_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    publish("public", write_bundle(Path("a"), "2.0.0", 5))
    long_ago = datetime(2026, 1, 1, tzinfo=timezone.utc)
    monkeypatch.setattr("mpota.commands.channel.utc_now", lambda: long_ago)
    done = mpota("channel", "set", "public", "--pause", "--key", "key.pem")
    assert (done.code, "the clock of this machine says 2026-01-01" in done.error) == (1, True)


def test_a_channel_that_was_lost_begins_above_its_former_self(public: str) -> None:
    bundle = write_bundle(Path("a"), "2.0.0", 5)
    publish(public, bundle)
    first = channel(public).serial
    open_store(public).delete(CHANNEL)
    now = publishing.utc_now() + timedelta(seconds=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpota.publish.publishing.utc_now", lambda: now)
        publish(public, bundle)
    assert channel(public).serial > first


# --- keys --------------------------------------------------------------------------------------


def test_keys_change_over_a_channel_that_both_have_signed(public: str) -> None:
    publish(public, write_bundle(Path("a"), "2.0.0", 5))
    rotation = write_bundle(
        Path("b"), "2.1.0", 6, add_keys=(releases.key(1).public.digest.hex(),),
        retire_keys=(releases.key().public.digest.hex(),),
    )  # fmt: skip
    publish(public, rotation, "--key", "other.pem")
    for key in ("key.pub.pem", "other.pub.pem"):
        done = mpota("channel", "show", public, "--key", key)
        assert "2.1.0 for esp32: all boards" in done.out, done.error
        assert done.code == 0
    done = mpota(
        "publish", write_bundle(Path("c"), "2.2.0", 7, number=1), public, "--key", "other.pem"
    )
    assert done, done.error
    assert mpota("channel", "show", public, "--key", "other.pub.pem")
    done = mpota("channel", "show", public, "--key", "key.pub.pem")
    assert (done.code, "none of the keys given" in done.error) == (1, True)


def test_signing_is_for_another_machine(target: str, here: Path) -> None:
    publish(target, write_bundle(Path("a"), "2.0.0", 5))
    bundle = write_bundle(Path("b"), "2.1.0", 6)
    before = contents(target)
    done = mpota("publish", bundle, target, "--unsigned", "stage", "--key", "key.pub.pem")
    assert done, done.error
    assert contents(target) == before
    done = mpota("publish", target, "--signed", "stage", "--key", "key.pub.pem")
    assert (done.code, "not signed yet" in done.error) == (1, True)
    done = mpota("sign", "stage", "--key", "key.pem")
    assert "pump, channel stable, serial" in done.out, done.error
    done = mpota("publish", target, "--signed", "stage", "--key", "key.pub.pem")
    assert done, done.error
    assert [entry.version for entry in channel(target).releases] == ["2.1.0"]
    assert shown(target)["faults"] == []
    done = mpota("publish", target, "--signed", "stage", "--key", "key.pub.pem")
    assert (done.code, "nothing to do" in done.out) == (0, True)


def test_what_was_signed_elsewhere_follows_on_the_state_that_it_was_made_for(public: str) -> None:
    publish(public, write_bundle(Path("a"), "2.0.0", 5))
    done = mpota("channel", "set", public, "--pause", "--unsigned", "stage", "--key", "key.pub.pem")
    assert done, done.error
    assert mpota("sign", "stage", "--key", "key.pem")
    change(public, "--expires", 60)
    before = contents(public)
    done = mpota("publish", public, "--signed", "stage", "--key", "key.pub.pem")
    assert (done.code, "somebody else has changed" in done.error) == (1, True)
    assert contents(public) == before


@pytest.mark.parametrize("pattern", ["*.json", "*app.bin", "*.sig"])
def test_what_was_changed_on_its_way_back_is_refused(here: Path, pattern: str) -> None:
    bundle = write_bundle(Path("a"), "2.0.0", 5)
    assert mpota("publish", bundle, "public", "--unsigned", "stage", "--key", "key.pub.pem")
    assert mpota("sign", "stage", "--key", "key.pem")
    (path,) = (here / "stage" / "releases").glob(pattern)
    data = path.read_bytes()
    path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    done = mpota("publish", "public", "--signed", "stage", "--key", "key.pub.pem")
    assert done.code == 1, done.out
    assert contents("public") == {}


def test_what_another_key_has_signed_is_not_published(here: Path) -> None:
    bundle = write_bundle(Path("a"), "2.0.0", 5)
    assert mpota("publish", bundle, "public", "--unsigned", "stage", "--key", "key.pub.pem")
    assert mpota("sign", "stage", "--key", "other.pem")
    done = mpota("publish", "public", "--signed", "stage", "--key", "key.pub.pem")
    assert (done.code, "none of the keys given" in done.error) == (1, True)
    assert contents("public") == {}
    done = mpota("publish", bundle, "public", "--unsigned", "stage", "--key", "key.pub.pem")
    assert (done.code, "not an empty directory" in done.error) == (2, True)


# --- the fresh file ----------------------------------------------------------------------------


def refresh(public: str, *more: object, key: str = "other.pem") -> Any:
    return mpota("channel", "refresh", public, "--key", key, "--trust", "key.pub.pem", *more)


def test_a_fresh_file_says_that_the_channel_is_of_today(target: str) -> None:
    publish(target, write_bundle(Path("a"), "2.0.0", 5))
    done = refresh(target)
    assert (done.code, "the channel has no such key" in done.error) == (1, True)
    change(target, "--fresh-key", "other.pub.pem")
    assert shown(target)["warnings"] == [
        "there is no fresh file: boards whose clock is set start nothing"
    ]
    done = refresh(target, key="key.pem")
    assert (done.code, "this is another one" in done.error) == (1, True)
    for valid in ("1h", "2d"):
        done = refresh(target, "--valid", valid)
        assert done, done.error
    assert shown(target)["warnings"] == []
    change(target, "--share", 50)
    assert "not yet of this channel file" in shown(target)["warnings"][0]
    assert refresh(target)
    assert shown(target)["warnings"] == []


def test_the_fresh_key_does_not_vouch_for_an_old_channel(public: str) -> None:
    publish(public, write_bundle(Path("a"), "2.0.0", 5))
    change(public, "--fresh-key", "other.pub.pem")
    store = open_store(public)
    old = store.get(CHANNEL, LIMIT)
    assert old is not None
    change(public, "--withdraw")
    assert refresh(public)
    now = store.get(CHANNEL, LIMIT)
    assert now is not None
    store.replace(CHANNEL, old.data, now.tag)
    shutil.rmtree(memory_of_this_desk())  # a cron job on another machine
    done = refresh(public)
    assert (done.code, "somebody has put back an old channel" in done.error) == (1, True)


def memory_of_this_desk() -> Path:
    from mpota.virtual.micropython import cache_dir

    return cache_dir()


# --- pruning -----------------------------------------------------------------------------------


def test_pruning_leaves_what_channels_lead_to_and_the_newest_for_deltas(target: str) -> None:
    for number in range(5):
        publish(target, write_bundle(Path("a"), f"2.{number}.0", 5 + number), "--deltas", 0)
    everything = contents(target)
    prune = ["channel", "prune", target, "--key", "key.pub.pem"]
    done = mpota(*prune)
    assert "0 files" in done.out, done.error  # they are too young
    done = mpota(*prune, "--older", 0, "--dry-run")
    assert ("to go" in done.out, contents(target) == everything) == (True, True)
    done = mpota(*prune, "--older", 0)
    assert done, done.error
    left = {Manifest.from_bytes(d).version for p, d in contents(target).items() if ".json" in p}
    assert left == {"2.4.0", "2.3.0", "2.2.0"}
    assert mpota(*prune, "--older", 0, "--keep", 0)
    assert shown(target)["faults"] == []
    left = {Manifest.from_bytes(d).version for p, d in contents(target).items() if ".json" in p}
    assert left == {"2.4.0"}


def test_where_there_is_no_channel_nothing_is_pruned(public: str) -> None:
    open_store(public).create("releases/x.bin", b"x")
    done = mpota("channel", "prune", public, "--key", "key.pub.pem", "--older", 0)
    assert (done.code, "nothing is removed" in done.error) == (2, True)
    assert contents(public) == {"releases/x.bin": b"x"}


# --- limits ------------------------------------------------------------------------------------


def test_a_channel_is_full_at_sixteen_releases() -> None:
    publish("public", write_files(Path("a"), "2.0", 5), "--share", 5)
    found = channel("public")
    entries = [replace(found.releases[0], counter=5 + number) for number in range(16)]
    full = replace(found, releases=tuple(entries))
    Path("public", CHANNEL).write_bytes(sign_line(full.to_line(), (releases.key(),)))
    shutil.rmtree(memory_of_this_desk())
    before = contents("public")[CHANNEL]
    bundle = write_files(Path("b"), "3.0", 50)
    done = mpota("publish", bundle, "public", "--share", 5, "--key", "key.pem")
    assert (done.code, "at most 16" in done.error) == (1, True), done.error
    assert contents("public")[CHANNEL] == before
    publish("public", bundle)
    assert [entry.version for entry in channel("public").releases] == ["3.0"]


def test_the_last_serial_is_the_last() -> None:
    publish("public", write_bundle(Path("a"), "2.0.0", 5))
    last = replace(channel("public"), serial=0x7FFFFFFF)
    Path("public", CHANNEL).write_bytes(sign_line(last.to_line(), (releases.key(),)))
    done = mpota("channel", "set", "public", "--pause", "--key", "key.pem")
    assert (done.code, "is the last one" in done.error) == (1, True)
