"""Flash content for virtual boards: a bootloader and small apps, made here, bit for bit."""

from __future__ import annotations

import functools
import hashlib
import struct

from mpota.formats.partition_table import Partition, PartitionTable
from mpota.virtual.board import Board
from mpota.virtual.flash import VirtualFlash

FLASH_SIZE = 2 * 1024 * 1024
BOOTLOADER_OFFSET = 0x1000
SLOT_SIZE = 0x40000

NVS = Partition("nvs", 1, 2, 0x9000, 0x4000)
OTADATA = Partition("otadata", 1, 0, 0xD000, 0x2000)
OTA_0 = Partition("ota_0", 0, 0x10, 0x10000, SLOT_SIZE)
OTA_1 = Partition("ota_1", 0, 0x11, 0x50000, SLOT_SIZE)
VFS = Partition("vfs", 1, 0x81, 0x90000, 0x40000)
OTA_TABLE = (NVS, OTADATA, OTA_0, OTA_1, VFS)
# The first look into NVS makes the namespace; later ones change nothing.
FIRST_LOOK = "from esp32 import NVS; NVS('ota')"


def image(segments: list[tuple[int, bytes]], entry: int = 0x40080400) -> bytes:
    """An ESP32 image: header, segments, checksum, digest."""
    header = struct.pack(
        "<BBBBIB3sHBHHIB",
        0xE9,
        len(segments),
        2,
        0x20,
        entry,
        0xEE,
        bytes(3),
        0,
        0,
        0,
        0xFFFF,
        0,
        1,
    )
    data, checksum = bytearray(header), 0xEF
    for address, content in segments:
        data += struct.pack("<II", address, len(content)) + content
        for byte in content:
            checksum ^= byte
    data += bytes(15 - len(data) % 16) + bytes([checksum])
    return bytes(data) + hashlib.sha256(data).digest()


def app(version: str = "v1.26.1", size: int = 0x3000) -> bytes:
    """An app that says it is MicroPython ``version``, some ``size`` bytes long."""
    desc = struct.pack("<IIII", 0xABCD5432, 0, 0, 0) + bytes(96) + b"v5.4.2".ljust(32, b"\0")
    desc += hashlib.sha256(f"{version} {size}".encode()).digest()  # app_elf_sha256
    text = f"MicroPython {version} on 2025-09-11\0; Virtual board with ESP32\0".encode()
    rodata = (desc.ljust(256, b"\0") + text).ljust(size - 0x400, version[-1:].encode())
    return image([(0x3F400020, rodata), (0x40080400, b"\0" * 0x200)])


BOOTLOADER = image(
    [(0x3FFF0030, bytes(0x100)), (0x40078000, bytes(0x200)), (0x40080400, bytes(64))]
)


def flash(
    apps: dict[int, bytes] | None = None,
    table: tuple[Partition, ...] = OTA_TABLE,
    size: int = FLASH_SIZE,
) -> VirtualFlash:
    """A chip with bootloader, table, and ``apps`` (offset -> image); one in ota_0 if not given."""
    contents = {BOOTLOADER_OFFSET: BOOTLOADER, 0x8000: PartitionTable(table).to_bytes()}
    contents |= {OTA_0.offset: app()} if apps is None else apps
    return VirtualFlash.create(size, contents)


def formatted(**options: object) -> Board:
    """A board whose file system is made, in the state of its second power-on."""
    board = Board(flash(**options))  # type: ignore[arg-type]
    board.flash.restore(_after_first_boot(board.flash.snapshot()))
    board.flash.restart_count()
    return board


@functools.lru_cache(maxsize=16)
def _after_first_boot(content: bytes) -> bytes:
    with VirtualFlash.create(len(content), {0: content}) as flash:
        run = Board(flash).run(FIRST_LOOK)
        assert "Performing initial setup" in run.output, run.console
        return flash.snapshot()
