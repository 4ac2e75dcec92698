"""The life of a board that follows a channel: polls in each way, TLS, every form of an update,
several kinds of hardware, new keys, power cuts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from mpota.formats.partition_table import Partition
from mpota.release.build import data_content
from mpota.virtual.board import Board
from mpota.virtual.cuts import Scenario

from tests.support import boards, channels, encoded, ota_board, releases, web
from tests.support.channels import DAY, NOW, Site, done, follow, look, report, update
from tests.support.releases import key

# --- how polls are made


RUN = """
import asyncio
async def main():
    channel.due = ota.channel.ticks_ms()
    task = asyncio.create_task(channel.run())
    while not channel.read_at:
        await asyncio.sleep_ms(20)
    print(channel.code or "-", channel.error)
    await asyncio.sleep_ms(5000)
asyncio.run(main())
"""


def test_run_is_one_task_that_polls_and_installs_what_comes(board: Board, site: Site) -> None:
    site.publish(site.release("2.0", 2, releases.tree("2.0", main=releases.MAIN)))
    run = board.run(follow(site, RUN))
    assert len(run.boots) == 2
    assert run.boots[0].output == "- None\n"
    assert report(board) == "confirmed 2.0"


def test_run_that_is_cancelled_leaves_what_runs(board: Board, site: Site) -> None:
    site.publish(site.release("2.0", 2, releases.app(size=0x30000)))
    then = """
import asyncio
async def main():
    channel.due = ota.channel.ticks_ms()
    task = asyncio.create_task(channel.run())
    asked = asyncio.Event()
    channel.progress = lambda done, total: done > 0x18000 and asked.set()
    await asked.wait()
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        print("cancelled")
asyncio.run(main())
channel.progress = None
print(channel.update())
"""
    run = board.run(follow(site, then))
    assert run.output.startswith("cancelled\n"), run.console
    assert run.labels == ("ota_0", "ota_1")
    assert report(board) == "confirmed 2.0"


def test_the_first_poll_comes_within_ten_minutes_and_at_once_after_sleep(
    board: Board, site: Site
) -> None:
    then = "print(ota.channel.ticks_diff(channel.due, ota.channel.ticks_ms()) // 1000)\n"
    script = follow(site, then)
    pauses = {int(done(board.run(script))) for _ in range(6)}
    assert len(pauses) > 2
    assert all(-1 <= pause <= 600 for pause in pauses)
    asleep = "import machine\nif machine.reset_cause() != machine.DEEPSLEEP_RESET:\n"
    main = f"{asleep}    machine.deepsleep(1)\n{script}"
    put = f"with open('main.py', 'w') as f: f.write({main!r})"
    done(board.run(put))
    assert int(board.run().output) <= 0


def test_poll_asks_when_it_is_time_and_not_before(board: Board, site: Site) -> None:
    site.publish(site.release("1.0", 1), poll=3600)
    then = """
channel.due = ota.channel.ticks_ms()
print(channel.poll(), channel.poll(), channel.code)
left = ota.channel.ticks_diff(channel.due, ota.channel.ticks_ms()) // 1000
print(2600 < left <= 4500)
"""
    assert done(board.run(follow(site, then))) == "True False current\nTrue"
    assert site.asked() == ["stable.channel 200"]


WAKE = """
import struct
memory = bytearray(12)
for _ in range(3):
    print(channel.wake(memory), channel.code)
struct.pack_into("<I", memory, 0, 0)  # its time has come
print(channel.wake(memory), channel.code)
"""


def test_a_board_that_sleeps_polls_when_it_is_time_by_what_it_remembers(
    board: Board, site: Site
) -> None:
    site.publish(site.release("1.0", 1), poll=3600)
    lines = [line.split() for line in done(board.run(follow(site, WAKE))).splitlines()]
    assert site.asked() == ["stable.channel 200", "stable.channel 304"]
    pauses = [int(pause) for pause, _ in lines]
    assert all(2690 <= pause <= 4500 for pause in pauses)
    assert pauses[0] >= pauses[1] >= pauses[2]


def test_what_a_board_remembers_in_its_rtc_outlives_deep_sleep(board: Board, site: Site) -> None:
    """The program of docs/guides/channel.md."""
    site.publish(site.release("1.0", 1), poll=3600)
    page = (Path(__file__).parents[2] / "docs" / "guides" / "channel.md").read_text()
    (program,) = [part for part in page.split("```") if "channel.wake(memory)" in part]
    sleep = "machine.deepsleep("
    then = program.removeprefix("python").replace(sleep, f"print(pause_s)\n{sleep}")
    main = follow(site, f"import machine\n{then}")
    done(board.run(f"with open('main.py', 'w') as file: file.write({main!r})"))
    run = board.run(max_boots=4)
    assert run.traceback == ""
    pauses = [int(boot.output) for boot in run.boots]
    assert len(pauses) == 4
    assert all(2690 <= pause <= 4500 for pause in pauses)
    assert pauses == sorted(pauses, reverse=True)
    assert site.asked() == ["stable.channel 200"]
    board.run(max_boots=1)  # the power has been off
    assert site.asked() == ["stable.channel 200"]


def test_a_board_that_sleeps_and_remembers_nothing_polls_by_lot(board: Board, site: Site) -> None:
    site.publish(site.release("1.0", 1), poll=3600)
    look(board, site)
    site.asked()
    then = "for _ in range(200): channel.wake(slept_s=360)\n"
    assert done(board.run(follow(site, then))) == ""
    count = len(site.asked())
    assert 5 <= count <= 45  # 20 are due, give or take 5.8 standard deviations
    then = "for _ in range(3): print(channel.wake())\n"
    assert len(done(board.run(follow(site, then))).split()) == 3
    assert len(site.asked()) == 3


def test_all_is_asked_for_once_a_day(board: Board, site: Site) -> None:
    """Servers have been seen to say "not modified" of a file that was."""
    site.publish(site.release("1.0", 1))
    turn = "ota.channel.driven(channel._turning())\n"
    then = f"{turn * 2}channel.full_due = ota.channel.ticks_ms()\n{turn * 2}"
    done(board.run(follow(site, then)))
    assert site.asked() == [
        "stable.channel 200", "stable.channel 304", "stable.channel 200", "stable.channel 304"
    ]  # fmt: skip


def test_a_server_without_etags_is_followed_as_well(board: Board, site: Site) -> None:
    site.publish(site.release("1.0", 1))
    site.server.files["/pump/stable.channel"].etag = None
    turn = "ota.channel.driven(channel._turning())\nprint(channel.code, channel.error)\n"
    assert done(board.run(follow(site, turn * 2))).splitlines() == ["current None"] * 2
    assert site.asked() == ["stable.channel 200"] * 2


def test_a_redirect_is_followed(board: Board, site: Site) -> None:
    site.publish(site.release("1.0", 1))

    def moved(handler: web.Handler) -> None:
        handler.answer("302 Found", [f"Location: {site.url}/stable.channel", "Content-Length: 0"])

    site.server.files["/there/stable.channel"] = moved
    turn = "ota.channel.driven(channel._turning())\nprint(channel.code, channel.error)\n"
    script = follow(site, turn * 2).replace(f"{site.url}'", f"{site.server.url('/there')}/'")
    assert done(board.run(script)).splitlines() == ["current None"] * 2


def test_a_board_without_keys_is_told_how_to_get_one(site: Site) -> None:
    with ota_board.updating_board() as board:
        run = board.run(follow(site, ""))
        assert "mpota install PORT --key" in run.traceback
        cleared = f"import ota; ota.keys.add({key().public.digest.hex()!r}); ota.keys.clear()"
        done(board.run(cleared))
        assert "mpota install PORT --key" in board.run(follow(site, "")).traceback


@pytest.mark.parametrize("url", ["files.example.org/pump", "http://a/b?c=d", "http://a/b#c"])
def test_what_is_no_url_of_a_directory_is_refused(board: Board, site: Site, url: str) -> None:
    run = board.run(follow(site, "").replace(site.url, url))
    assert "not the URL of a directory" in run.traceback


def test_nothing_begins_while_what_runs_is_unconfirmed(board: Board, site: Site) -> None:
    """The new app looks for another release before it has confirmed itself."""
    site.publish(site.release("2.0", 2, releases.app()))
    main = follow(site, channels.UPDATE) + "import ota.rollback; ota.rollback.cancel()\n"
    put = f"with open('main.py', 'w') as f: f.write({main!r})\n"
    run = board.run(follow(site, channels.UPDATE, before=put))
    assert run.labels == ("ota_0", "ota_1")
    assert run.boots[1].output.startswith("update False unconfirmed "), run.console
    assert report(board) == "confirmed 2.0"


# --- over TLS


def test_a_channel_over_tls_is_followed_and_an_idle_poll_is_one_request(board: Board) -> None:
    done(board.run(f"with open('ca.der', 'wb') as f: f.write({web.root().der!r})"))
    more = ", cafile='/ca.der'"
    with channels.site(web.server_identity().context()) as site:
        site.publish(site.release("2.0", 2))
        update(board, site, more=more)
        assert report(board) == "confirmed 2.0"
        assert look(board, site, more=more).startswith("offer None current")
        site.asked()
        turn = "ota.channel.driven(channel._turning())\nprint(channel.code, channel.error)\n"
        assert (
            done(board.run(follow(site, turn * 2, more=more))).splitlines() == ["current None"] * 2
        )
        assert site.asked() == ["stable.channel 304"] * 2


def test_a_server_with_another_certificate_is_refused_with_the_reason(board: Board) -> None:
    other = web.issue("Other", is_ca=True).der
    done(board.run(f"with open('ca.der', 'wb') as f: f.write({other!r})"))
    with channels.site(web.server_identity().context()) as site:
        site.publish(site.release("2.0", 2))
        said = look(board, site, more=", cafile='/ca.der'")
        assert said.startswith("error certificate the certificate of localhost is refused")


# --- every form of an update


@pytest.mark.parametrize("form", ["app", "files", "compressed", "delta"])
def test_each_form_of_an_update_comes_by_a_channel(site: Site, form: str) -> None:
    app = encoded.content()
    contents = {
        "app": (app,),
        "files": (releases.tree("2.0"),),
        "compressed": (app.compressed(), releases.tree("2.0").compressed()),
        "delta": (app.compressed().with_delta(encoded.OLD),),
    }
    site.publish(site.release("2.0", 2, *contents[form]))
    with channels.board(start=encoded.base(), heap_size=136 * 1024) as board:
        run = board.run(follow(site, channels.UPDATE))
        assert run.labels == ("ota_0", "ota_0" if form == "files" else "ota_1"), run.console
        assert report(board) == "confirmed 2.0"
    payloads = [request for request in site.server.requests if request.path.count("app.bin")]
    if form == "delta":
        assert [".from-" in request.path for request in payloads] == [True]
    if form in ("delta", "compressed"):
        assert payloads[0].sent < len(app.data)


def test_where_a_smaller_form_does_not_fit_the_heap_the_next_larger_is_taken(site: Site) -> None:
    """A board with little heap takes the app as it is, though a difference is published."""
    app = encoded.content().compressed().with_delta(encoded.OLD)
    site.publish(site.release("2.0", 2, replace(app, is_plain=True)))
    taken = []
    for heap in (88, 96, 112):
        site.asked()
        with channels.board(start=encoded.base(), heap_size=heap * 1024) as board:
            run = board.run(follow(site, channels.UPDATE))
            assert run.labels == ("ota_0", "ota_1"), (heap, run.console)
            assert encoded.slot(board, len(encoded.NEW)) == encoded.NEW
            assert report(board) == "confirmed 2.0"
        taken.append([name for name in site.asked() if "app.bin" in name][-1])
    assert taken[0].endswith("app.bin 200")
    assert ".from-" in taken[-1]


def test_data_comes_by_a_channel(tmp_path) -> None:
    (tmp_path / "data").write_bytes(b"words " * 900)
    content = data_content("romfs", tmp_path / "data")
    romfs = Partition("romfs", 1, 0x8F, 0xD0000, 0x10000)
    board = releases.board(
        tmp_path / "frozen", table=(*boards.OTA_TABLE, romfs), heap_size=136 * 1024
    )
    done(board.run(channels.CONFIRM + f"import ota; ota.keys.add({key().public.digest.hex()!r})"))
    with channels.site() as site:
        site.publish(site.release("2.0", 2, content))
        assert update(board, site) == "update True current 2.0 is installed"
    assert board.flash.read(romfs.offset, 5400) == b"words " * 900
    assert report(board) == "confirmed 2.0"


# --- hardware, keys


def test_each_kind_of_hardware_takes_its_own_release(site: Site) -> None:
    kinds = (("esp32", "2.0"), ("esp32s3", "2.1"), ("esp32c3", "2.2"))
    entries = [site.release(version, 2, chip=chip) for chip, version in kinds]
    mine = "Generic ESP32 module"
    site.publish(*entries, site.release("2.3", 3, board="Another board"))
    with channels.board() as board:
        assert look(board, site).startswith("offer 2.0")
        machine = done(board.run("import sys; print(sys.implementation._machine)"))
        assert machine != mine
        site.publish(*entries, site.release("2.4", 4, board=machine))
        assert look(board, site).startswith("offer 2.4")


def test_keys_are_changed_over_the_channel(board: Board, site: Site) -> None:
    """The new key signs beside the old one until all boards have it; then alone."""
    old, new = key(0), key(1)
    change = {"add_keys": (new.public.digest.hex(),), "retire_keys": (old.public.digest.hex(),)}
    entry = site.release("2.0", 2, keys=(old, new), **change)
    site.publish(entry, keys=(old, new))
    update(board, site)
    assert report(board) == "confirmed 2.0"
    assert done(board.run("import ota; print(ota.keys.trusted())")) == str(
        [new.public.digest.hex()]
    )
    assert look(board, site).startswith("offer None current")
    site.publish(entry, site.release("3.0", 3, keys=(new,)), keys=(new,))
    update(board, site)
    assert report(board) == "confirmed 3.0"
    site.publish(site.release("4.0", 4, keys=(old,)), keys=(old,))
    assert look(board, site).startswith("error retired-key")


# --- power cuts


def test_serial_and_issued_outlive_a_power_cut_at_each_flash_operation(site: Site) -> None:
    """Whenever the power goes, an older file is refused then; the newer one is taken."""
    files = {}
    for serial in (4, 5, 7):
        site.serial = serial - 1
        site.publish(site.release("2.0", 2, entry={"begins": NOW + DAY}))
        files[serial] = site.server.files["/pump/stable.channel"]

    def serve(serial: int) -> None:
        site.server.files["/pump/stable.channel"] = files[serial]

    script = follow(site, channels.CHECK)
    with channels.board() as board:
        serve(4)
        look(board, site)
        serve(5)
        look(board, site)
        scenario = Scenario("channel", board.flash.snapshot(), lambda board: board.run(script))
        serve(7)
        recording = scenario.record(board)
        points = recording.all_points()
        assert len(points) > 10
        seen = set()
        for point in points:
            board.flash.restore(recording.content(point))
            served = iter((files[4], files[7]))
            site.server.files["/pump/stable.channel"] = lambda handler, served=served: (
                handler._send_file(handler.asked, next(served))
            )
            older, newer = look(board, site, then=channels.CHECK * 2).splitlines()
            assert older.startswith("error serial "), (point, older)
            seen.add(older.rsplit(" ", 1)[1])
            assert newer.startswith("offer None spread"), (point, newer)
        assert seen == {"5", "7"}


def test_an_update_that_a_power_cut_ends_is_made_in_the_end_and_told_truly(site: Site) -> None:
    site.publish(site.release("2.0", 2, releases.app(size=0x8000), releases.tree("2.0")))
    script = follow(site, channels.UPDATE)
    with channels.board() as board:
        scenario = Scenario("update", board.flash.snapshot(), lambda board: board.run(script))
        recording = scenario.record(board)
        for point in recording.chosen_points(CHOSEN):
            board.flash.restore(recording.content(point))
            for _ in range(3):  # a cut in the first boot costs a trial
                board.run()
                stage, version = (report(board) + " ").split(" ")[:2]
                runs = done(board.run("import ota; print(ota.keys.load().version)"))
                assert stage in ("none", "started", "switched", "confirmed"), point
                assert (stage == "confirmed") == (runs == "2.0"), (point, stage, runs)
                if stage == "confirmed":
                    break
                board.run(script)
            assert (stage, version) == ("confirmed", "2.0"), point


CHOSEN = 16
