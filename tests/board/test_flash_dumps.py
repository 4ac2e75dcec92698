"""Dumps of a whole flash as the file of an update: the app in it is taken, however it comes."""

from __future__ import annotations

from pathlib import Path

import pytest
from mpota.virtual.flash import VirtualFlash

from tests.support import boards, releases

SMALL = boards.app("v1.28.0", 0x3000)


def app_of(length: int) -> bytes:
    """An app of so many bytes, a multiple of 16."""
    size = length - len(boards.app("v1.28.0", 0x3000)) + 0x3000
    app = boards.app("v1.28.0", size)
    assert len(app) == length
    return app


APPS = {
    "small": SMALL,
    "last sector": app_of(boards.SLOT_SIZE - 4096 + 48),
    "last block": app_of(boards.SLOT_SIZE - 0xF000),
    "whole slot": app_of(boards.SLOT_SIZE),
}


def dump(app: bytes) -> bytes:
    """What an ESP32 with this app has in its flash: blank up to the bootloader."""
    flash: VirtualFlash = boards.flash({boards.OTA_0.offset: app, boards.OTA_1.offset: SMALL})
    with flash:
        return flash.snapshot()


@pytest.mark.parametrize("name", APPS)
@pytest.mark.parametrize("piece", [1000, 4096, 5000, 8192, 65536])
def test_the_app_of_a_dump_is_taken_in_pieces_of_any_size(
    tmp_path: Path, name: str, piece: int
) -> None:
    board = releases.board(tmp_path, heap_size=256 * 1024)
    (tmp_path / "dump.bin").write_bytes(dump(APPS[name]))
    run = board.run(
        f"""
import ota.update
with ota.update.OTA(verbose=False) as update, open("/frozen/dump.bin", "rb") as file:
    while True:
        data = file.read({piece})
        if not data:
            break
        update.write(data)
import machine
machine.reset()
"""
    )
    assert (run.labels, run.traceback) == (("ota_0", "ota_1"), ""), run.console
    slot = board.flash.read(boards.OTA_1.offset, boards.SLOT_SIZE)
    assert slot == APPS[name].ljust(boards.SLOT_SIZE, b"\xff")


@pytest.mark.parametrize("name", APPS)
def test_the_app_of_a_dump_is_taken_from_a_file(tmp_path: Path, name: str) -> None:
    board = releases.board(tmp_path)
    (tmp_path / "dump.bin").write_bytes(dump(APPS[name]))
    call = "from_file('/frozen/dump.bin', verbose=False, reboot=False)"
    run = board.run(f"import machine, ota.update; ota.update.{call}; machine.reset()")
    assert run.labels == ("ota_0", "ota_1"), run.console
