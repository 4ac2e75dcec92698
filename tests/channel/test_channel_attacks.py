"""What somebody can do who has the server, the line or a key: each row of the table of attacks in
docs/guides/channel.md.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from mpota.virtual.board import Board

from tests.support import channels, releases, web
from tests.support.channels import DAY, NOW, UNSET, Site, done, follow, look, report, update
from tests.support.releases import key

FRESH = 2  # the number of the key that signs fresh files


def served(site: Site, name: str = "stable.channel") -> web.File:
    file = site.server.files[f"/pump/{name}"]
    assert isinstance(file, web.File)
    return file


def test_an_older_channel_file_is_refused(board: Board, site: Site) -> None:
    site.publish(site.release("2.0", 2))
    old = served(site)
    site.publish(site.release("2.0", 2, entry={"state": "withdrawn"}))
    assert look(board, site).startswith("offer None withdrawn")
    site.server.files["/pump/stable.channel"] = old
    assert update(board, site).startswith("error serial the channel file has serial 1")


def test_an_older_manifest_under_the_name_of_a_new_one_is_refused(board: Board, site: Site) -> None:
    old, new = site.release("0.9", 1), site.release("2.0", 2)
    for end in (".json", ".sig"):
        name = new.manifest.replace(".json", end)
        site.server.files[f"/pump/{name}"] = served(site, old.manifest.replace(".json", end))
    site.publish(new)
    assert update(board, site).startswith("error pin")
    assert report(board) == "refused 2.0"


def test_a_channel_file_of_another_channel_or_product_is_refused(board: Board, site: Site) -> None:
    site.publish(site.release("2.0", 2), channel="beta")
    assert look(board, site).startswith("error wrong-channel")
    site.publish(site.release("2.0", 2), name="fan")
    assert look(board, site).startswith("error wrong-name")


def test_a_board_that_has_another_product_refuses_what_it_was_told_to_follow(site: Site) -> None:
    site.publish(site.release("2.0", 2, name="fan"), name="fan")
    with channels.board() as board:
        script = follow(site, channels.CHECK).replace('name="pump"', 'name="fan"')
        assert done(board.run(script.replace("{by_hand}", "False"))).startswith("error wrong-name")


def test_a_manifest_does_not_pass_for_a_channel_file_nor_the_other_way_round(
    board: Board, site: Site
) -> None:
    entry = site.release("2.0", 2)
    manifest = served(site, entry.manifest).body
    site.put("stable.channel", b" ".join(manifest.splitlines()) + b"\n" + bytes(1216))
    assert look(board, site).startswith("error signature")
    channel = site.publish(entry)
    site.put(entry.manifest, channel.to_line())
    site.publish(replace(entry, size=len(channel.to_line())))
    assert update(board, site).startswith("error pin")


def test_payloads_of_two_releases_cannot_be_mixed(board: Board, site: Site) -> None:
    site.release("2.1", 3)
    other = {name for name in site.server.files if name.endswith("files.tar")}
    site.publish(site.release("2.0", 2))
    (name,) = [n for n in site.server.files if n.endswith("files.tar") and n not in other]
    site.server.files[name] = site.server.files[other.pop()]
    assert update(board, site).startswith("error digest")
    assert report(board) == "started 2.0"
    assert done(board.run("import ota; print(ota.keys.load().version)")) == "1.0"


@pytest.mark.parametrize("what", ["stable.channel", "manifest", "files.tar"])
def test_endless_data_ends_at_a_limit(board: Board, site: Site, what: str) -> None:
    entry = site.release("2.0", 2)
    site.publish(entry)
    end = entry.manifest if what == "manifest" else what
    (name,) = [name for name in site.server.files if name.endswith(end)]

    def endless(handler: web.Handler) -> None:
        handler.answer("200 OK", ["Transfer-Encoding: chunked"])
        handler.wfile.write(b"1\r\n{\r\n")
        while True:
            handler.wfile.write(b"1000\r\n" + b" " * 4096 + b"\r\n")
            handler.asked.sent += 4096

    site.server.files[name] = endless
    said = update(board, site)
    assert said.split()[1] in ("channel", "pin", "tar"), said
    sent = max(request.sent for request in site.server.requests)
    assert sent < 256 * 1024


def test_a_freeze_ends_when_the_file_expires(board: Board, site: Site) -> None:
    """The server goes on with an old file, which offers a release that was withdrawn since."""
    site.publish(site.release("2.0", 2), issued=NOW - 30 * DAY, expires=NOW - DAY)
    assert update(board, site).startswith("update False expired")


def test_a_freeze_ends_when_the_fresh_file_expires(board: Board, site: Site) -> None:
    site.publish(site.release("2.0", 2), fresh_key=key(FRESH).public.digest.hex())
    site.refresh(key(FRESH), issued=NOW - 3 * DAY, expires=NOW - DAY)
    assert update(board, site).startswith("update False fresh")


def test_without_a_clock_a_freeze_is_not_seen(board: Board, site: Site) -> None:
    site.publish(site.release("2.0", 2), issued=NOW - 30 * DAY, expires=NOW - DAY)
    assert look(board, site, before=UNSET).startswith("offer 2.0")


def test_a_new_board_takes_any_file_that_has_not_expired_bounded_by_its_counter(
    site: Site,
) -> None:
    site.publish(site.release("2.0", 2))
    old = served(site)
    site.publish(site.release("3.0", 3))
    site.server.files["/pump/stable.channel"] = old
    with channels.board(version="", counter=0) as board:
        assert look(board, site).startswith("offer 2.0")
    with channels.board(version="3.0", counter=3) as board:
        assert look(board, site).startswith("offer None current")


def test_who_has_the_key_of_fresh_files_can_offer_nothing(board: Board, site: Site) -> None:
    digest = key(FRESH).public.digest.hex()
    site.publish(site.release("1.0", 1), fresh_key=digest)
    site.refresh(key(FRESH))
    assert look(board, site).startswith("offer None current")
    entry = site.release("2.0", 2, keys=(key(FRESH),))
    site.publish(entry, fresh_key=digest, keys=(key(FRESH),))
    site.refresh(key(FRESH))
    assert look(board, site).startswith("error untrusted")
    site.publish(entry, fresh_key=digest)  # or its manifest, in a channel that is signed well
    site.refresh(key(FRESH))
    assert update(board, site).startswith("error untrusted")


def test_who_had_a_release_key_has_nothing_once_it_is_retired(site: Site) -> None:
    """The thief has set the serial to the maximum, too: with the key that ends."""
    with channels.board(keys=(0, 1)) as board:
        site.publish(site.release("1.0", 1), serial=0x7FFFFFFF)
        assert look(board, site).startswith("offer None current")
        site.publish(site.release("2.0", 2, keys=(key(1),)), serial=5, keys=(key(1),))
        assert look(board, site).startswith("error serial")
        retire = f"import ota; ota.keys.retire({key(0).public.digest.hex()!r})"
        assert done(board.run(retire)) == ""
        assert look(board, site).startswith("offer 2.0")
        site.publish(site.release("3.0", 3), serial=0x7FFFFFFF)  # the thief again
        assert look(board, site).startswith("error retired-key")


def test_a_server_learns_no_id_from_a_poll(board: Board, site: Site) -> None:
    site.publish(site.release("2.0", 2, entry={"share": 1}))
    look(board, site)
    look(board, site)
    unique_id = board.unique_id.hex()
    for request in site.server.requests:
        assert set(request.headers) <= {"host", "accept-encoding", "user-agent", "connection",
                                        "if-none-match"}  # fmt: skip
        assert unique_id not in str(request).lower()


def test_a_release_that_is_withdrawn_after_the_switch_is_still_started(
    board: Board, site: Site
) -> None:
    entry = site.release("2.0", 2, releases.tree("2.0"))
    site.publish(entry)
    script = follow(site, channels.UPDATE, more=", restart=lambda: print('restart is due')")
    assert "restart is due" in board.run(script).output
    site.publish(replace(entry, state="withdrawn"))
    board.run()
    assert report(board) == "confirmed 2.0"
    assert look(board, site) == "offer None withdrawn 2.0, which runs, was withdrawn"


def test_a_token_goes_to_the_channels_server_alone(board: Board, site: Site) -> None:
    with channels.site() as other:
        entry = other.release("2.0", 2)
        site.publish(replace(entry, manifest=f"{other.url}/{entry.manifest}"))
        update(board, site, more=", auth='secret'")
        assert {r.headers.get("authorization") for r in site.server.requests} == {"Bearer secret"}
        assert {r.headers.get("authorization") for r in other.server.requests} == {None}
        assert len(other.server.requests) == 3
    assert report(board) == "confirmed 2.0"
