"""Boards that follow a channel: each row of the table in docs/guides/channel.md, by its number."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest
from mpota.formats.channel import ChannelEntry
from mpota.release.signing import sign_line
from mpota.virtual.board import Board

from tests.support import channels, releases, web
from tests.support.channels import DAY, NOW, UNSET, Site, done, follow, look, nvs_writes, update
from tests.support.releases import key

# One poll as `run` makes it, and how long it is until the next.
TURN = """
pause = ota.channel.driven(channel._turning())
print(channel.code or "-", channel.error and channel.error.code, pause)
"""
# Told before the channel is made: how often NVS was written.
COUNTED = """
import ota.twin
writes = 0
class Counted(ota.twin.NVS):
    def commit(self):
        global writes
        writes += 1
        super().commit()
ota.twin.NVS = Counted
"""


def stage(board: Board) -> str:
    return done(board.run("import ota; t = ota.trial.report(); print(t['stage'], t['version'])"))


def test_row_1_not_modified_goes_on_with_the_offer_that_is_known(board: Board, site: Site) -> None:
    site.publish(site.release("2.0", 2, entry={"begins": NOW + DAY}))
    script = follow(site, channels.CHECK + channels.CHECK)
    first, second = done(board.run(script.replace("{by_hand}", "False"))).splitlines()
    assert site.asked() == ["stable.channel 200", "stable.channel 304"]
    for line in (first, second):
        assert line.startswith("offer None spread 2.0: its turn comes in")


def test_row_1_not_modified_at_the_first_poll_is_nothing_new(board: Board, site: Site) -> None:
    site.publish(site.release("1.0", 1))
    assert look(board, site) == "offer None current 1.0 is the newest for this board"
    site.asked()
    run = board.run(follow(site, TURN))
    assert done(run).startswith("current None ")
    assert site.asked() == ["stable.channel 304"]
    assert nvs_writes(run) == 0


def reply(data: bytes, *headers: str, line: str = "200 OK"):
    def send(handler: web.Handler) -> None:
        handler.answer(line, [*headers, f"Content-Length: {len(data)}"])
        handler.wfile.write(data)

    return send


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (reply(b""), "protocol"),
        (reply(b"<html>sign in</html>"), "protocol"),
        (reply(b"{" + b" " * 11840), "too-long"),
        (reply(b"", line="500 Internal Server Error"), "http-status"),
        (reply(b"", "Retry-After: 7000", line="429 Too Many Requests"), "http-status"),
    ],
    ids=["empty", "no-brace", "too-long", "500", "429"],
)
def test_row_2_a_fault_of_transport_is_tried_again_and_no_attempt(
    board: Board, site: Site, answer, code: str
) -> None:
    site.publish(site.release("2.0", 2))
    good = site.server.files["/pump/stable.channel"]
    site.server.files["/pump/stable.channel"] = answer
    lines = done(board.run(follow(site, TURN * 3))).splitlines()
    pauses = [int(line.split()[2]) for line in lines]
    assert all(line.split()[1] == code for line in lines)
    for pause, most in zip(pauses, (60, 120, 240), strict=True):
        assert (
            (7000 <= pause < 7060)
            if "429" in str(site.asked) or pause > 6000
            else (most * 3 // 4 - 1 <= pause <= most)
        )
    assert stage(board) == "none"
    site.server.files["/pump/stable.channel"] = good
    assert look(board, site).startswith("offer 2.0")


def test_row_2_a_server_that_is_overloaded_is_asked_once_and_left_alone(
    board: Board, site: Site
) -> None:
    """A poll that would have been answered with 304 learns it from the same request."""
    site.publish(site.release("1.0", 1))
    look(board, site)
    site.asked()
    site.server.files["/pump/stable.channel"] = reply(
        b"", "Retry-After: 600", line="503 Service Unavailable"
    )
    code, error, pause = done(board.run(follow(site, TURN))).split()
    assert (code, error) == ("current", "http-status")
    assert 600 <= int(pause) < 660
    assert site.asked() == ["stable.channel 503"]


def test_row_2_without_a_network_it_is_soon_tried_again(board: Board, site: Site) -> None:
    script = follow(site, TURN * 7).replace(site.url, "http://no.such.host.invalid/pump")
    lines = [line.split() for line in done(board.run(script)).splitlines()]
    assert {line[1] for line in lines} == {"dns"}
    for line, most in zip(lines, (10, 20, 40, 80, 160, 300, 300), strict=True):
        assert most * 3 // 4 - 1 <= int(line[2]) <= most


def test_row_2_the_network_failing_in_a_payload_is_no_attempt_and_it_goes_on(
    board: Board, site: Site
) -> None:
    site.publish(site.release("2.0", 2, releases.app(size=0x30000)))
    payload = next(name for name in site.server.files if name.endswith("app.bin"))
    whole = site.server.files[payload]
    assert isinstance(whole, web.File)

    def cut(handler: web.Handler) -> None:
        handler.answer("200 OK", [f"Content-Length: {len(whole.body)}", f"ETag: {whole.etag}"])
        handler.wfile.write(whole.body[:0x28000])
        raise web.Hangup

    site.server.files[payload] = cut
    more = ", max_failures=1"
    lines = done(board.run(follow(site, TURN * 2, more=more))).splitlines()
    assert [line.split()[1] for line in lines] == ["short", "short"]
    report = done(board.run("import ota; print(ota.trial.report()['attempts'])"))
    assert report == "1"
    site.server.files[payload] = whole
    site.asked()
    update(board, site)
    (request,) = [name for name in site.asked() if "app.bin" in name]
    assert request.endswith(" 206")
    assert stage(board) == "confirmed 2.0"


# --- row 3: what is refused, each with a code of its own, and the state stays


REFUSED = {
    "untrusted": lambda site: site.publish(site.release("2.0", 2), keys=(key(1),)),
    "wrong-name": lambda site: site.publish(site.release("2.0", 2), name="fan"),
    "wrong-channel": lambda site: site.publish(site.release("2.0", 2), channel="beta"),
    "serial": lambda site: site.publish(site.release("2.0", 2), serial=2),
    "same-serial": lambda site: site.publish(site.release("2.0", 2), serial=3),
    "signature": lambda site: spoil(
        site, lambda data: data[:-1200] + bytes((data[-1200] ^ 1,)) + data[-1199:]
    ),
    "channel": lambda site: resigned(site, lambda line: line.replace(b'"poll"', b'"pull"')),
}


def spoil(site: Site, change) -> None:
    """Another file in place of the one that was published last."""
    file = site.server.files["/pump/stable.channel"]
    assert isinstance(file, web.File)
    changed = change(file.body)
    assert changed != file.body
    site.put("stable.channel", changed)


def resigned(site: Site, change) -> None:
    """Another line than the desk would write, signed by a trusted key."""
    line = site.publish(site.release("2.0", 2)).to_line()
    changed = change(line)
    assert changed != line
    site.put("stable.channel", sign_line(changed, (key(),)))


@pytest.mark.parametrize("code", REFUSED)
def test_row_3_what_is_not_to_be_trusted_is_refused_and_the_state_stays(
    board: Board, site: Site, code: str
) -> None:
    site.serial = 2
    site.publish(site.release("1.0", 1))
    known = site.server.files["/pump/stable.channel"]
    assert look(board, site).startswith("offer None current")
    REFUSED[code](site)
    run = board.run(follow(site, channels.CHECK))
    assert done(run).startswith(f"error {code} "), run.console
    assert nvs_writes(run) == 0
    site.server.files["/pump/stable.channel"] = known
    assert look(board, site).startswith("offer None current")
    site.serial = 3
    site.publish(site.release("2.0", 2))
    assert look(board, site).startswith("offer 2.0")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"type":"channel"', b'"type":"fresh"'),
        (b'"format":1', b'"format":2'),
        (b'"serial":1', b'"serial":0'),
        (b'"serial":1', b'"serial":01'),
        (b'"serial":1', b'"serial":1.0'),
        (b'"serial":1', b'"serial":9,"serial":1'),
        (b'"poll":60', b'"poll":59'),
        (b'"poll":60', b'"poll":86401'),
        (b'"size":', b'"size":8193,"x-size":'),
        (b'"counter":2', b'"counter":0'),
        (b'"chip":"esp32"', b'"share":10001'),
        (b'"chip":"esp32"', b'"state":"open"'),
        (b'"chip":"esp32"', b'"begins":"2026-02-29T00:00:00Z"'),
        (b'"chip":"esp32"', b'"begins":"2026-13-01T00:00:00Z"'),
        (b'"chip":"esp32"', b'"spread":2592001'),
        (b'"chip":"esp32"', b'"salt":""'),
        (b'"manifest":"pump', b'"manifest":"pu mp'),
        (b'.json"', b'.bundle"'),
        (b'"releases":[', b'"releases":[7,'),
        (b"}]}", b"}]"),
        (b"}]}", b"}]} x"),
    ],
)
def test_row_3_a_field_that_the_page_does_not_allow_is_refused_though_it_is_signed(
    board: Board, site: Site, old: bytes, new: bytes
) -> None:
    resigned(site, lambda line: line.replace(old, new))
    assert look(board, site).startswith("error channel the channel file is refused: ")


def test_row_3_fields_that_start_with_x_are_passed_over(board: Board, site: Site) -> None:
    resigned(site, lambda line: line.replace(b'"chip"', b'"x-chip":[{}],"chip"'))
    assert look(board, site).startswith("offer 2.0")


def test_row_3_one_signature_of_three_is_enough(board: Board, site: Site) -> None:
    site.publish(site.release("2.0", 2), keys=(key(1), key(2), key(0)))
    assert look(board, site).startswith("offer 2.0")


# --- time


def test_row_4_an_expired_file_starts_nothing_and_polls_go_on(board: Board, site: Site) -> None:
    site.publish(site.release("2.0", 2), issued=NOW - 3 * DAY, expires=NOW - DAY)
    assert look(board, site) == "offer None expired the channel file has expired"
    assert update(board, site).startswith("update False expired")
    site.publish(site.release("2.0", 2))
    assert look(board, site).startswith("offer 2.0")


SIGNER = 2


def fresh_key() -> str:
    return key(SIGNER).public.digest.hex()


@pytest.mark.parametrize("problem", ["missing", "expired", "other hash", "other key", "older"])
def test_row_4_without_a_good_fresh_file_nothing_is_started(
    board: Board, site: Site, problem: str
) -> None:
    old = site.publish(site.release("1.0", 1), fresh_key=fresh_key())
    site.refresh(key(SIGNER))
    assert look(board, site).startswith("offer None current")
    site.publish(site.release("2.0", 2), fresh_key=fresh_key())
    match problem:
        case "missing":
            del site.server.files["/pump/stable.fresh"]
        case "expired":
            site.refresh(key(SIGNER), issued=NOW - 2 * DAY, expires=NOW - DAY)
        case "other hash":
            site.refresh(key(SIGNER), sha256="ab" * 32)
        case "other key":
            site.refresh(key(1))
        case "older":
            site.refresh(key(SIGNER), old)
    assert look(board, site).startswith("offer None fresh nothing fresh says")
    site.refresh(key(SIGNER))
    assert look(board, site).startswith("offer 2.0 -")


def test_a_channel_with_a_fresh_file_is_polled_by_that_alone(board: Board, site: Site) -> None:
    site.publish(site.release("1.0", 1), fresh_key=fresh_key())
    site.refresh(key(SIGNER))
    look(board, site)
    site.asked()
    lines = done(board.run(follow(site, TURN * 3))).splitlines()
    assert [line.split()[:2] for line in lines] == [["current", "None"]] * 3
    assert site.asked() == [
        "stable.fresh 200",  # no ETag of it is stored
        "stable.channel 200",
        "stable.fresh 304",
        "stable.fresh 304",
    ]


def test_a_channel_that_gives_up_its_fresh_file_is_followed_without(
    board: Board, site: Site
) -> None:
    site.publish(site.release("1.0", 1), fresh_key=fresh_key())
    site.refresh(key(SIGNER))
    look(board, site)
    site.publish(site.release("2.0", 2))
    del site.server.files["/pump/stable.fresh"]
    assert look(board, site).startswith("offer 2.0 -")
    assert look(board, site).startswith("offer 2.0 -")
    assert site.asked()[-1] == "stable.channel 200"


def test_row_5_without_a_clock_the_serial_alone_counts(board: Board, site: Site) -> None:
    site.publish(site.release("2.0", 2), issued=NOW - 3 * DAY, expires=NOW - DAY)
    assert look(board, site, before=UNSET).startswith("offer 2.0 -")
    site.publish(site.release("2.1", 3), serial=1)
    assert look(board, site, before=UNSET).startswith("error same-serial")


def test_row_5_a_clock_is_demanded_where_the_app_says_so(board: Board, site: Site) -> None:
    site.publish(site.release("2.0", 2))
    more = ", needs_clock=True"
    assert look(board, site, before=UNSET, more=more) == "offer None clock the clock is not set"
    assert look(board, site, more=more).startswith("offer 2.0 -")


def test_row_5_a_clock_before_what_was_issued_is_not_set(board: Board, site: Site) -> None:
    """It would make an old file seem to be valid."""
    site.publish(site.release("2.0", 2), issued=NOW + 300 * DAY, expires=NOW + 330 * DAY)
    assert look(board, site, more=", needs_clock=True").startswith("offer None clock")


def test_row_5_a_manifest_that_expires_waits_for_the_clock(board: Board, site: Site) -> None:
    expires = (NOW + DAY).strftime("%Y-%m-%dT%H:%M:%SZ")
    site.publish(site.release("2.0", 2, expires=expires))
    unset = UNSET + "import ota.policy; ota.policy.gmtime = ota.channel_more.gmtime\n"
    assert update(board, site, before=unset).startswith("error clock")
    assert stage(board) == "started 2.0"
    update(board, site)
    assert stage(board) == "confirmed 2.0"


# --- row 6


def test_row_6_what_lasts_is_written_once_when_the_serial_changes(board: Board, site: Site) -> None:
    entry = site.release("2.0", 2, entry={"share": 0})
    script = follow(site, channels.CHECK + channels.CHECK + "print(writes)", before=COUNTED)
    script = script.replace("{by_hand}", "False")
    for _ in range(3):
        site.publish(entry)
        assert done(board.run(script)).splitlines()[-1] == "1"
        assert done(board.run(script)).splitlines()[-1] == "0"


def test_row_6_an_entry_that_is_first_seen_is_in_the_same_write(board: Board, site: Site) -> None:
    site.publish(site.release("2.0", 2, entry={"begins": NOW + DAY}))
    script = follow(site, channels.CHECK + "print(writes)", before=COUNTED)
    script = script.replace("{by_hand}", "False")
    assert done(board.run(script)).splitlines()[-1] == "1"
    assert done(board.run(script)).splitlines()[-1] == "0"


# --- row 7: which release


def test_row_7_the_highest_counter_that_this_board_may_take(board: Board, site: Site) -> None:
    site.publish(
        site.release("2.0", 2),
        site.release("2.1", 3),
        site.release("2.2", 4, entry={"share": 0}),
        site.release("2.3", 5, chip="esp32s3"),
        site.release("2.4", 6, board="Another board"),
        site.release("2.5", 7, from_version="2.2"),
        site.release("2.6", 8, entry={"state": "paused"}),
        site.release("2.7", 9, entry={"state": "withdrawn"}),
    )
    assert look(board, site).startswith("offer 2.1 -")
    assert look(board, site, by_hand=True).startswith("offer 2.2 -")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"entry": {"share": 0}}, "share 2.0 is not for this board yet"),
        ({"entry": {"state": "paused"}}, "paused 2.0 is paused"),
        ({"entry": {"state": "withdrawn"}}, "withdrawn 2.0 was withdrawn"),
        ({"from_version": "1.5"}, "stepping-stone 2.0 updates 1.5 or newer"),
        ({"chip": "esp32c3"}, "current 1.0 is the newest for this board"),
    ],
)
def test_row_7_why_there_is_nothing_is_said(
    board: Board, site: Site, fields: dict, reason: str
) -> None:
    site.publish(site.release("2.0", 2, **fields))
    assert look(board, site).startswith(f"offer None {reason}")


def test_row_7_a_share_takes_the_boards_that_the_page_says(board: Board, site: Site) -> None:
    entry = site.release("2.0", 2)
    bucket = entry.bucket(board.unique_id)
    site.publish(replace(entry, share=bucket))
    assert f"(part {bucket}, share {bucket})" in look(board, site)
    site.publish(replace(entry, share=bucket + 1))
    assert look(board, site).startswith("offer 2.0")
    salted = replace(entry, salt="north")
    bucket = salted.bucket(board.unique_id)
    site.publish(replace(salted, share=bucket))
    assert f"(part {bucket}, share {bucket})" in look(board, site)


def test_row_7_stepping_stones_are_taken_one_after_the_other(board: Board, site: Site) -> None:
    site.publish(
        site.release("3.0", 4, from_version="2.0"),
        site.release("2.0", 3, from_version="1.0"),
    )
    update(board, site)
    assert stage(board) == "confirmed 2.0"
    update(board, site)
    assert stage(board) == "confirmed 3.0"
    assert look(board, site) == "offer None current 3.0 is the newest for this board"


# --- rows 8 and 9


def test_row_8_a_rollout_is_paused_resumed_and_withdrawn(board: Board, site: Site) -> None:
    entry = site.release("2.0", 2)
    site.publish(replace(entry, state="paused"))
    assert update(board, site).startswith("update False paused")
    site.publish(entry)
    assert look(board, site).startswith("offer 2.0")
    site.publish(replace(entry, state="withdrawn"))
    assert update(board, site).startswith("update False withdrawn")
    assert stage(board) == "none"


def test_row_8_a_release_that_runs_and_is_withdrawn_runs_on_and_says_so(
    board: Board, site: Site
) -> None:
    site.publish(site.release("1.0", 1, entry={"state": "withdrawn"}))
    assert look(board, site) == "offer None withdrawn 1.0, which runs, was withdrawn"
    site.publish(
        site.release("1.0", 1, entry={"state": "withdrawn"}),
        site.release("0.9", 2, allow_downgrade=True),
    )
    update(board, site)
    assert stage(board) == "confirmed 0.9"


def late(entry: ChannelEntry, board: Board) -> ChannelEntry:
    """The entry with a salt by which this board has a turn that is an hour away at least."""
    salted = (replace(entry, salt=str(number)) for number in range(1000))
    return next(entry for entry in salted if entry.delay(board.unique_id) > 3600)


def test_row_9_a_start_waits_for_its_turn(board: Board, site: Site) -> None:
    now = datetime.now(timezone.utc).replace(microsecond=0)
    entry = late(site.release("2.0", 2, entry={"spread": 7200, "begins": now}), board)
    delay = entry.delay(board.unique_id)
    site.publish(entry)
    said = look(board, site)
    assert said.startswith("offer None spread 2.0: its turn comes in ")
    assert delay - 600 < int(said.split()[-2]) <= delay
    site.publish(replace(entry, begins=NOW - 3 * DAY))
    assert look(board, site).startswith("offer 2.0 -")


def test_row_9_without_a_clock_the_turn_comes_so_long_after_it_was_first_seen(
    board: Board, site: Site
) -> None:
    entry = late(site.release("2.0", 2, entry={"spread": 7200}), board)
    delay = entry.delay(board.unique_id)
    site.publish(entry)
    assert look(board, site, before=UNSET).endswith(f"its turn comes in {delay} s")
    later = UNSET.replace("0, 0, 5, 5, 1)", "0, 50, 5, 5, 1)")  # in deep sleep the clock goes on
    site.publish(entry)  # issued anew: that puts nobody off
    assert look(board, site, before=later).endswith(f"its turn comes in {delay - 3000} s")
    later = UNSET.replace("1, 1, 0, 0, 5, 5, 1)", "1, 1, 2, 0, 5, 5, 1)")
    assert look(board, site, before=later).startswith("offer 2.0 -")


def test_row_9_a_person_waits_for_neither_share_nor_spread(board: Board, site: Site) -> None:
    site.publish(site.release("2.0", 2, entry={"spread": 7200, "begins": NOW + DAY, "share": 0}))
    assert update(board, site).startswith("update False share")
    update(board, site, by_hand=True)
    assert stage(board) == "confirmed 2.0"


def test_row_9_the_app_is_asked_and_its_answer_counts(board: Board, site: Site) -> None:
    site.publish(site.release("2.0", 2))
    before = "answer = None\n"
    more = ", may_install=lambda offer: answer"
    then = (
        TURN + "channel.busy = True\n" + TURN + "channel.busy = False; answer = False\n" + TURN * 2
    )
    run = board.run(follow(site, then, more=more, before=before))
    lines = [line.split() for line in done(run).splitlines()]
    assert [line[0] for line in lines] == ["later", "busy", "declined", "declined"]
    assert int(lines[0][2]) <= 60
    assert stage(board) == "none"
    run = board.run(follow(site, TURN, more=more, before="answer = True\n"))
    assert stage(board) == "confirmed 2.0", run.console


# --- rows 10 to 12


@pytest.mark.parametrize("fault", ["pin", "short", "judge", "counter"])
def test_row_10_a_manifest_that_is_refused_is_not_tried_again_before_the_serial_changes(
    board: Board, site: Site, fault: str
) -> None:
    entry = site.release("2.0", 2)
    if fault == "pin":
        other = site.release("2.1", 3)
        site.server.files[f"/pump/{entry.manifest}"] = site.server.files[f"/pump/{other.manifest}"]
    elif fault == "short":
        entry = replace(entry, size=entry.size + 1)
    elif fault == "judge":
        entry = site.release("2.0", 2, name="fan")
    else:
        entry = replace(entry, counter=3)
    site.publish(entry)
    code = "wrong-name" if fault == "judge" else "pin"
    assert update(board, site).startswith(f"error {code}")
    site.asked()
    assert update(board, site).startswith("update False refused 2.0 cannot be installed: " + code)
    assert site.asked() == ["stable.channel 200"]
    assert stage(board) == "refused 2.0"
    site.publish(site.release("2.0", 2))
    update(board, site)
    assert stage(board) == "confirmed 2.0"


def test_row_10_a_payload_that_is_not_what_the_manifest_says_is_tried_three_times(
    board: Board, site: Site
) -> None:
    site.publish(site.release("2.0", 2))
    (payload,) = [name for name in site.server.files if name.endswith("files.tar")]
    body = site.server.files[payload].body.replace(b"<p>2.0", b"<p>2.1", 1)
    site.server.files[payload] = web.File(body, etag='"x"')
    lines = done(board.run(follow(site, TURN * 4))).splitlines()
    assert [line.split()[1] for line in lines] == ["digest", "digest", "digest", "None"]
    assert lines[3].startswith("refused ")
    assert stage(board) == "refused 2.0"


@pytest.mark.parametrize(
    ("state", "code"), [("paused", "paused"), ("withdrawn", "withdrawn"), (None, None)]
)
def test_row_11_a_file_that_was_read_long_ago_is_asked_for_again_before_the_switch(
    board: Board, site: Site, state: str | None, code: str | None
) -> None:
    entry = site.release("2.0", 2, releases.app(size=0x30000))
    site.publish(entry)
    (payload,) = [name for name in site.server.files if name.endswith("app.bin")]
    file = site.server.files[payload]

    def changes(handler: web.Handler) -> None:
        if state:
            site.publish(replace(entry, state=state))
        handler._send_file(handler.asked, file)

    site.server.files[payload] = changes
    late = "channel.progress = lambda done, total: setattr(channel, 'read_at', long_ago)\n"
    before = "import time\nlong_ago = time.ticks_add(time.ticks_ms(), -3600000)\n"
    run = board.run(follow(site, late + channels.UPDATE, before=before, by_hand=False))
    asked = [name for name in site.asked() if name.startswith("stable")]
    if code:
        assert run.output.startswith(f"update False {code} 2.0 "), run.console
        assert asked == ["stable.channel 200"] * 3
        assert run.labels == ("ota_0",)
        state = None
        site.publish(entry)
        update(board, site)
        (request,) = [name for name in site.asked() if "app.bin" in name]
        # What is loaded waits, or is dropped.
        assert request.endswith(" 206" if code == "paused" else " 200")
    else:
        assert asked == ["stable.channel 200", "stable.channel 304"]
    assert stage(board) == "confirmed 2.0"


BAD = "import machine; machine.reset()"  # before it is confirmed


def test_row_12_a_trial_that_failed_is_told_and_not_tried_again(board: Board, site: Site) -> None:
    entry = site.release("2.0", 2, releases.tree("2.0", main=BAD))
    site.publish(entry)
    board.run(follow(site, channels.UPDATE, by_hand=False))
    report = done(board.run("import ota; print(ota.trial.report())"))
    assert "'stage': 'failed'" in report
    assert "not confirmed in its first boot" in report
    site.publish(entry)  # a new serial alone changes nothing
    assert update(board, site).startswith("update False failed 2.0 has failed on this board")
    site.publish(entry, site.release("2.1", 3))
    update(board, site)
    assert stage(board) == "confirmed 2.1"
    site.publish(site.release("2.2", 4, entry={"state": "paused"}), replace(entry, counter=3))
    assert look(board, site).startswith("offer None")


def test_row_12_a_trial_that_a_power_cut_ended_is_made_once_more(board: Board, site: Site) -> None:
    """As recovery.py has it for images: nobody knows whether the release was at fault."""
    site.publish(site.release("2.0", 2, releases.tree("2.0", main="")))
    for _ in range(2):
        board.run(follow(site, channels.UPDATE, by_hand=False))
        assert stage(board) in ("started 2.0", "failed 2.0")
    assert stage(board) == "failed 2.0"
    assert update(board, site).startswith("update False failed")
