"""Boards that ran version 0.1, which wrote the notes itself: `mpota install`, and they go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from mpota.release.build import Content
from mpota.virtual.board import Board, End
from mpota.virtual.cuts import power_cut
from mpota.virtual.flash import CutMode

from tests.support import ota_board, ota_files, releases, web
from tests.support.consoles import OTA_TABLE, Bench, app, bench
from tests.support.web import File

OLD, OTHER = "v1.26.1", "v1.28.0"
NEW = app("v1.27.0", 0x27000)  # two notes of 64 KiB, and some more
KIB_64 = 0x10000
# Of what runs in ota_1 nothing is ever confirmed.
MAIN = """
import machine, sys, ota.rollback
from esp32 import Partition
print("runs", sys.version.split()[2])
if Partition(Partition.RUNNING).info()[4] == "ota_1":
    machine.reset()
ota.rollback.cancel()
"""
INSTALL = """
import ota
try:
    ota.release.install({url!r}, reboot=False)
    print("INSTALLED")
except ota.OTAError as error:
    print(error.code)
"""
REFUSED = {"unsigned": "unsigned", "stranger": "untrusted", "older": "counter"}
VERSION = "import ota; print(getattr(ota, '__version__', '0.1'))"


@pytest.fixture
def old() -> Iterator[Bench]:
    """A board with 0.1 in its file system."""
    files = {f"/lib/ota/{name}": data for name, data in ota_files.old_files().items()}
    with bench() as board:
        with board.off():
            board.flash.restore(ota_files.put(board.flash.snapshot(), files))
            assert said(board.board, VERSION) == "0.1"
        yield board


def said(board: Board, script: str) -> str:
    run = board.run(script)
    assert (run.end, run.traceback) == (End.IDLE, ""), run.console
    return run.output.strip()


def upgrade(bench: Bench, mpota: Callable[..., str]) -> str:
    """The present package in place of 0.1's; what was told."""
    told = mpota("install", bench.port.path)
    assert bench.say("exec", VERSION) == "0.2.0\n"
    return told


def slot(board: Board, size: int) -> bytes:
    return board.flash.read(OTA_TABLE["ota_1"].offset, size)


def cut_off(board: Board, script: str, operations: int) -> None:
    """Let the power go in the middle of what ``script`` downloads."""
    with power_cut(board.flash, operations, CutMode.AFTER):
        board.run(script)


def test_a_download_that_0_1_began_goes_on_where_it_was(
    old: Bench, mpota: Callable[..., str]
) -> None:
    with web.serving({"/app.bin": File(NEW, '"one"')}) as server:
        script = ota_board.try_update(server.url("/app.bin"), ", block_size=4096")
        with old.off() as board:
            cut_off(board, script, 60)
        upgrade(old, mpota)
        server.requests.clear()
        with old.off() as board:
            assert said(board, script) == f"wrote {len(NEW)}"
            assert [request.start for request in server.requests] == [KIB_64]
            assert slot(board, len(NEW)) == NEW
            assert board.run("").labels == ("ota_1",)


def test_what_0_1_gave_up_is_refused_and_another_version_is_not(
    old: Bench, mpota: Callable[..., str]
) -> None:
    with web.serving({"/app.bin": File(NEW), "/other.bin": File(app(OTHER))}) as server:
        script = ota_board.try_update(server.url("/app.bin"))
        old.write("main.py", MAIN)
        with old.off() as board:
            run = board.run(script + "\nimport machine\nmachine.reset()")
            assert run.labels == ("ota_0", "ota_1", "ota_0"), run.console
        upgrade(old, mpota)
        with old.off() as board:
            before = board.flash.snapshot()
            assert said(board, script).startswith("failed-version: ")
            assert board.flash.snapshot() == before
            assert said(board, script.replace("reboot=False", "reboot=False, force=True")) == (
                f"wrote {len(NEW)}"
            )
            board.flash.restore(before)
            other = ota_board.try_update(server.url("/other.bin"))
            assert said(board, other) == f"wrote {len(app(OTHER))}"
            # What failed is remembered though nothing of it stands in the slot any more.
            board.run("")
            assert said(board, script).startswith("failed-version: ")


def test_what_0_1_trusted_is_asked_for_and_a_release_that_it_began_goes_on(
    old: Bench, mpota: Callable[..., str]
) -> None:
    key, stranger = releases.key(), releases.key(1)
    contents = Content("app", "app.bin", NEW), releases.tree("2")
    files = {
        "/app.bin": File(NEW),
        "/good.bundle": File(releases.make(*contents, keys=(key,), counter=2).to_bytes(), '"1"'),
        "/unsigned.bundle": File(releases.make(*contents).to_bytes()),
        "/stranger.bundle": File(releases.make(*contents, keys=(stranger,), counter=2).to_bytes()),
        "/older.bundle": File(releases.make(*contents, keys=(key,), counter=1).to_bytes()),
    }
    with web.serving(files) as server:
        good = INSTALL.format(url=server.url("/good.bundle"))
        with old.off() as board:
            add = f"import ota.keys\nota.keys.add({key.public.digest.hex()!r})\n"
            add += "trust = ota.keys.load()\ntrust.counter = 2\ntrust.save()"
            assert said(board, add) == ""
            cut_off(board, good, 75)
        assert f"trusted key: {key.public.digest.hex()}\n" in upgrade(old, mpota)
        with old.off() as board:
            before = board.flash.snapshot()
            for name, code in REFUSED.items():
                assert said(board, INSTALL.format(url=server.url(f"/{name}.bundle"))) == code
            image = ota_board.try_update(server.url("/app.bin"))
            assert said(board, image).startswith("unsigned: ")
            assert board.flash.snapshot() == before
            server.requests.clear()
            assert said(board, good) == "INSTALLED"
            head, rest = (request.start for request in server.requests)
            assert (head, rest > KIB_64) == (0, True)
            assert slot(board, len(NEW)) == NEW
            run = board.run()
            assert run.labels == ("ota_1",)
            assert run.output.startswith("runs v1.27.0 2 "), run.console
            assert board.run("").labels == ("ota_1",)  # confirmed
