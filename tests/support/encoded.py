"""Apps that differ as builds do, and boards that run the older one."""

from __future__ import annotations

import functools
import random
import shutil
from pathlib import Path

from mpota.firmware import sample
from mpota.formats.partition_table import Partition, PartitionTable
from mpota.release.build import Content
from mpota.virtual.board import Board, End
from mpota.virtual.flash import VirtualFlash

from tests.support import boards, ota_package, releases

SLOT_SIZE = 0x40000
OTA_1 = boards.OTA_1
SIZE = 0x34000

INSTALL = """
import ota
try:
    ota.release.install("/frozen/release.bundle", reboot=False)
    print("INSTALLED")
except ota.OTAError as error:
    print("REFUSED", error.code, error)
"""
FILE = """
import ota
try:
    ota.update.from_file("/frozen/file", reboot=False, verbose=False)
    print("INSTALLED")
except ota.OTAError as error:
    print("REFUSED", error.code, error)
"""


@functools.cache
def app(version: str = "v1.26.1", size: int = SIZE) -> bytes:
    """A sample app that fits the slots of boards.py; the same code in every version, but moved."""
    return sample.build_app("esp32", version=version, size=size)


OLD = app("v1.26.1")
NEW = app("v1.27.0")


@functools.cache
def base(old: bytes = OLD) -> bytes:
    """The flash of a board that has ``old`` in ota_0, has made its file system and confirmed."""
    contents = {
        boards.BOOTLOADER_OFFSET: sample.build_bootloader("esp32"),
        0x8000: PartitionTable(boards.OTA_TABLE).to_bytes(),
        boards.OTA_0.offset: old,
    }
    with VirtualFlash.create(boards.FLASH_SIZE, contents) as flash:
        run = Board(flash).run(boards.FIRST_LOOK)
        assert run.end is End.IDLE, run.console
        return flash.snapshot()


def content(data: bytes = NEW) -> Content:
    return Content("app", "app.bin", data)


def slot(board: Board, size: int, part: Partition = OTA_1) -> bytes:
    return board.flash.read(part.offset, size)


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def board(directory: Path) -> Board:
    """A board that runs the older app; the files of ``directory`` are in its /frozen."""
    shutil.copytree(ota_package.compiled(), directory, dirs_exist_ok=True)
    flash = VirtualFlash.create(len(base()), {0: base()})
    return Board(flash, heap_size=120 * 1024, frozen=directory)


def run(board: Board, script: str) -> str:
    done = board.run(script)
    assert (done.end, done.traceback) == (End.IDLE, ""), done.console
    return done.output


def give(board: Board, *contents: Content) -> None:
    data = releases.make(*contents).to_bytes()
    (Path(str(board.frozen)) / "release.bundle").write_bytes(data)


def is_old(board: Board) -> bool:
    return board.run("").labels == ("ota_0",)
