"""Apps with a watchdog of their own: an update that has its `feed` is never bitten."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from mpota.virtual.board import Board

from tests.support import ota_board, releases, web
from tests.support.ota_board import NEW

BITE_MS = 3000
PAUSE_S = 8  # after a connection that broke, by chance half of it: longer than the watchdog waits
SCRIPT = """
import machine, ota
wdt = machine.WDT(timeout={bite})
{call}
wdt.feed()
print("done")
machine.reset()
"""
CALLS = {
    "from_file": "ota.update.from_file({root!r} + '/app.bin', verbose=False, reboot=False{more})",
    "from_json": "ota.update.from_json({root!r} + '/app.json', verbose=False, reboot=False{more})",
    "install": "ota.release.install({root!r} + '/app.bundle', reboot=False{more})",
}
OTA = """
with ota.update.OTA(verbose=False{feed}) as update:
    update.from_firmware_file({root!r} + '/app.bin'{more})
"""


@pytest.fixture
def board() -> Iterator[Board]:
    with ota_board.updating_board() as board:
        board.skipped_sleep_ms = 1  # an update looks again each 2 ms for its pause to be over
        yield board


def update(board: Board, way: str, feed: str) -> tuple[str, ...]:
    """What was booted, after an update with a pause that is longer than the watchdog waits."""
    files = {
        "/app.bin": web.File(NEW, '"1"'),
        "/app.json": web.File(
            json.dumps({"firmware": "app.bin", "sha": "", "length": len(NEW)}).encode()
        ),
        "/app.bundle": web.File(
            releases.make(releases.Content("app", "app.bin", NEW)).to_bytes(), '"1"'
        ),
    }
    with web.serving(files) as server:
        server.troubles = [None] * (way == "from_json") + [web.drop(0x8000)]
        more = f", pause={PAUSE_S}, max_failures=5, timeout=600"
        if way == "OTA":
            call = OTA.format(root=server.root, feed=feed, more=more)
        else:
            call = CALLS[way].format(root=server.root, more=more + feed)
        script = SCRIPT.format(bite=BITE_MS, call=call)
        return board.run(script).labels


@pytest.mark.parametrize("way", ["from_file", "from_json", "install", "OTA"])
def test_an_update_feeds_the_watchdog_in_its_waits(board: Board, way: str) -> None:
    assert update(board, way, ", feed=wdt.feed") == ("ota_0", "ota_1")


def test_without_it_the_watchdog_bites(board: Board) -> None:
    assert update(board, "from_file", "") == ("ota_0", "ota_0")
