"""Flash content for virtual boards: a bootloader and small apps, made here, bit for bit."""

from __future__ import annotations

import functools

from mpota.formats.partition_table import Partition, PartitionTable
from mpota.virtual.board import Board
from mpota.virtual.flash import VirtualFlash

from tests.support import images

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


def app(version: str = "v1.26.1", size: int = 0x3000) -> bytes:
    """An app that says it is MicroPython ``version``, some ``size`` bytes long."""
    start = images.app_start(version, elf=f"{version} {size}")
    return images.small_app(start.ljust(size - 0x400, version[-1:].encode()))


BOOTLOADER = images.small_image(
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
