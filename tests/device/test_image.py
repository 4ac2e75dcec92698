"""The image validator on MicroPython: bytes in pieces of any size, images of every chip."""

from __future__ import annotations

import pytest

from tests.support import boards, ota_board
from tests.support.ota_board import output


@pytest.fixture(scope="module")
def board():
    with ota_board.updating_board(heap_size=400 * 1024) as board:
        yield board


SMALL = boards.app("v1.27.0", 0x1000)
PADDED = SMALL + b"\xff" * (-len(SMALL) % 4096)
SIGNED = PADDED + b"\xe7\x02" + bytes(1214) + b"\xff" * 2880

VALIDATE = """
from esp32 import Partition
from ota.base import ImageError
from ota.image import AppImage, Board
from ota.merged import MergedFirmware
this = Board(Partition(Partition.RUNNING))
class Sink:
    def __init__(self):
        self.data = bytearray()
    def write(self, buf):
        self.data.extend(buf)
def validate(data, size, merged=False):
    sink = Sink()
    image = AppImage(sink, this, Partition("ota_1"), embedded=merged)
    first = MergedFirmware(image, this) if merged else image
    try:
        for at in range(0, len(data), size):
            first.write(memoryview(data)[at : at + size])
        first.finish()
    except ImageError as error:
        return error.code + ": " + str(error)
    return bytes(sink.data)
"""


@pytest.mark.parametrize("image", [SMALL, PADDED, SIGNED], ids=["plain", "padded", "signed"])
def test_pieces_of_any_size_make_no_difference(board, image):
    script = f"""{VALIDATE}
data = {image!r}
for size in (1, 2, 3, 7, 23, 24, 25, 31, 255, 4095, 4096, 4097, 65536):
    assert validate(data, size) == data, size
print("same")
"""
    assert output(board, script) == "same\n"


def test_pieces_of_any_size_show_the_same_faults(board):
    broken = {
        "chip": SMALL[:12] + b"\x05\0" + SMALL[14:],
        "short": SMALL[:-1],
        "more": SMALL + b"\0" * 9,
        "desc": SMALL[:32] + bytes(4) + SMALL[36:],
        "gap": PADDED[:-1] + b"\0",
    }
    script = f"""{VALIDATE}
for name, data in {list(broken.items())!r}:
    print(name, {{validate(data, size) for size in (1, 13, 100, 4096, 65536)}})
"""
    assert output(board, script).splitlines() == [
        "chip {'wrong-chip: the image is for ESP32-C3, this board is ESP32'}",
        f"short {{'truncated: the image ends after {len(SMALL) - 1} bytes of {len(SMALL)}: "
        "1 bytes are missing'}",
        f"more {{'trailing: bytes that are no part of it follow the image of {len(SMALL)} bytes'}}",
        "desc {'no-app-desc: the image has no app_desc: it is no app (a bootloader, perhaps)'}",
        f"gap {{'trailing: bytes that are no part of it follow the image of {len(SMALL)} bytes'}}",
    ]


def test_pieces_of_any_size_find_the_app_in_a_merged_firmware(board):
    table = boards.PartitionTable(boards.OTA_TABLE).to_bytes()
    # As esptool's merge_bin leaves it with the app of a small build close behind the table.
    script = f"""{VALIDATE}
merged = bytearray(b"\\xff" * 0xF000)
merged[:{len(boards.BOOTLOADER)}] = {boards.BOOTLOADER!r}
merged[0x7000:0x7000 + {len(table)}] = {table!r}
app = {SMALL!r}
merged.extend(app)
merged.extend(b"\\xff" * 300)
for size in (61, 1000, 4095, 4096, 5000, 65536):
    assert validate(merged, size, True)[:len(app)] == app, size
print("found")
"""
    assert output(board, script) == "found\n"


def test_steady_writing_allocates_nothing(board):
    """With the heap locked an allocation is a MemoryError."""
    script = """
import micropython
from esp32 import Partition
from ota.image import SECTOR
from ota.slot import SlotWriter
from ota.image import AppImage, Board

class Flash:  # a partition in which every sector is stored in the same place
    def __init__(self):
        self.sector = bytearray(SECTOR)
    def info(self):
        return (0, 0x11, 0x50000, 0x40000, "ota_1", False)
    def readblocks(self, block, buf, offset=0):
        buf[ALL] = self.parts[len(buf)][offset // len(buf)]
    def writeblocks(self, block, buf, offset=None):
        if len(buf) == 65536:
            raise OSError(-258)
        self.sector[ALL] = buf
    def ioctl(self, command, argument):
        return 0
class Key:
    def __getitem__(self, key):
        return key
ALL = Key()[:]
from hashlib import sha256
flash = Flash()
view = memoryview(flash.sector)
flash.parts = {size: [view[at : at + size] for at in range(0, SECTOR, size)]
               for size in (512, 1024, SECTOR)}
writer = SlotWriter(flash, sha256().update)
image = AppImage(writer, Board(Partition(Partition.RUNNING)), Partition("ota_1"))
"""
    script += f"""
head = {boards.app(size=0x38000)[:4096]!r}
image.write(head)
for i in range(16):
    image.write(writer.buffer())  # as an update does: what comes stands where it is written from
while writer.work():
    pass
micropython.heap_lock()
try:
    for i in range(12):
        image.write(writer.buffer())
        writer.work()
finally:
    micropython.heap_unlock()
print("nothing allocated")
"""
    assert output(board, script) == "nothing allocated\n"
