"""What strangers try with apps, the boards that they try it on, and what may be left of it."""

from __future__ import annotations

import random

from mpota.virtual.board import Board, End
from mpota.virtual.flash import Operation

from tests.support import images
from tests.support.boards import OTA_0, OTA_1, OTADATA

TRUSTED, FOREIGN, RETIRED = 0, 1, 2
COUNTER = 9
SECTOR = 4096
HEAD = 32


def noisy(version: str, size: int) -> bytes:
    """As boards.app, but not two sectors are alike."""
    start = images.app_start(version, elf=version).ljust(512, b"\0")
    noise = random.Random(version).randbytes(size - 0x600)
    return images.small_app(start + noise)


FALLBACK = noisy("v1.25.0", 0x12000)
NEW = noisy("v1.27.0", 0x19000)
OTHER = noisy("v1.28.0", 0x15000)

TRY = """
import ota
try:
    ota.{call}
    print("INSTALLED")
except ota.OTAError as error:
    print("REFUSED", error.code, error)
"""
INSTALL = "release.install({!r}, reboot=False)"
UPDATE = "update.from_file({!r}, verbose=False, reboot=False{})"


def put(board: Board, data: bytes, name: str = "file") -> str:
    assert board.frozen is not None
    (board.frozen / name).write_bytes(data)
    return f"/frozen/{name}"


def said(board: Board, call: str) -> str:
    """What an attempt came to: its code, or INSTALLED."""
    run = board.run(TRY.format(call=call))
    assert (run.end, run.traceback) == (End.IDLE, ""), run.console
    words = run.output.split()
    return words[1] if words[0] == "REFUSED" else words[0]


def slot(board: Board) -> bytes:
    return board.flash.read(OTA_1.offset, OTA_1.size)


def touched(operations: tuple[Operation, ...] | list[Operation]) -> list[Operation]:
    """What was done to the other slot, or to otadata."""
    return [
        op
        for op in operations
        if OTA_1.offset <= op.offset < OTA_1.end or OTADATA.offset <= op.offset < OTADATA.end
    ]


def after_damage(board: Board) -> tuple[str | None, ...]:
    """What boots when the app that ran is damaged; the flash is as before then."""
    before = board.flash.snapshot()
    board.flash.erase(OTA_0.offset, SECTOR)
    try:
        return board.run("").labels
    finally:
        board.flash.restore(before)
