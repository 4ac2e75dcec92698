"""Load addresses: the board's answers against the desk's model of the bootloader, chip by chip."""

from __future__ import annotations

import pytest
from mpota.bootloader.image_load import address_faults, bootloader_info
from mpota.firmware import sample
from mpota.formats.chips import CHIPS
from mpota.formats.image import Image, Segment
from mpota.formats.partition_table import Partition, PartitionTable
from mpota.virtual.board import Board
from mpota.virtual.flash import VirtualFlash

from tests.support import ota_package
from tests.support.ota_board import answer, output, serving, try_update

SLOT = 0x60000
TABLE = PartitionTable(
    (
        Partition("nvs", 1, 2, 0x9000, 0x4000),
        Partition("otadata", 1, 0, 0xD000, 0x2000),
        Partition("ota_0", 0, 0x10, 0x10000, SLOT),
        Partition("ota_1", 0, 0x11, 0x10000 + SLOT, SLOT),
        Partition("vfs", 1, 0x81, 0x10000 + 2 * SLOT, 0x40000),
    )
)
APP_SIZE = 0x40000
# ESP32-P4 has bootloaders for chips before and from revision 3 on.
BUILDS = [(chip.name, None) for chip in CHIPS] + [("esp32p4", 300)]


def board_of(chip, revision):
    firmware = sample.build_firmware(
        chip,
        table=TABLE,
        app=sample.build_app(chip, size=APP_SIZE, min_chip_rev=revision),
        bootloader=sample.build_bootloader(chip, min_chip_rev=revision),
        is_dump=True,
        flash_size=2 << 20,
    )
    return Board(VirtualFlash.create(2 << 20, {0: firmware}), frozen=ota_package.compiled())


def edges(info):
    """Segments that end at, straddle and start at each border that matters."""
    memory = info.memory
    regions = (
        info.stack,
        info.data,
        info.loader_iram,
        memory.dram,
        memory.iram,
        *memory.plain,
        *memory.mapped,
    )
    for border in sorted({r.start for r in regions} | {r.end for r in regions}):
        for start in (border - 0x40, border - 0x20, border):
            yield start, start + 0x40


@pytest.mark.parametrize(("chip", "revision"), BUILDS)
def test_a_segment_passes_if_the_bootloader_loads_it_and_survives(chip, revision):
    board = board_of(chip, revision)
    with board.flash:
        bootloader = sample.build_bootloader(chip, min_chip_rev=revision)
        info = bootloader_info(bootloader)
        segments = list(edges(info))
        printed = output(
            board,
            f"""
from esp32 import Partition
from ota.image import Board
memory = Board(Partition(Partition.RUNNING)).memory
for start, end in {segments!r}:
    print(memory.find_conflict(start, end))
""",
        ).splitlines()[-len(segments) :]
    for (start, end), found in zip(segments, printed, strict=True):
        expected = address_faults([Segment(start, 0, end - start)], info)
        assert (found != "None") == bool(expected), f"{start:#x}-{end:#x}: {found} {expected}"


PAGE_SIZE_AT = 24 + 8 + 180  # in an app image, log2: esp_app_desc_t
TAKE = """
from esp32 import Partition
from ota.base import OTAError
from ota.image import AppImage, Board
class Slot:
    def info(self):
        return (0, 0x11, {offset}, 0x100000, "ota_1", False)
class Sink:
    def write(self, view):
        pass
try:
    image = AppImage(Sink(), Board(Partition(Partition.RUNNING)), Slot())
    image.write({app!r})
    print("taken")
except OTAError as error:
    print(error.code)
"""


def with_page_size(app: bytes, log2: int) -> bytes:
    changed = bytearray(app)
    changed[PAGE_SIZE_AT] = log2
    return bytes(changed)  # its checksum and digest are judged later


@pytest.mark.parametrize(
    ("chip", "log2", "offset", "ends"),
    [
        ("esp32c6", 15, 0x700000, "taken"),
        ("esp32c6", 15, 0x800000, "mmu-pages"),
        ("esp32c6", 14, 0x400000, "mmu-pages"),
        ("esp32c6", 16, 0x800000, "taken"),
        ("esp32h2", 14, 0x300000, "taken"),
        ("esp32h2", 14, 0x400000, "mmu-pages"),
        ("esp32c61", 14, 0x700000, "taken"),
        ("esp32c61", 14, 0x800000, "mmu-pages"),
        ("esp32c2", 15, 0x100000, "mmu-pages"),  # its bootloader has pages of 64 KiB, for 4 MiB
        ("esp32c2", 16, 0x100000, "taken"),
        ("esp32c3", 15, 0x700000, "taken"),  # its MMU has one size
    ],
)
def test_an_app_for_mmu_pages_that_do_not_reach_its_slot_is_refused(chip, log2, offset, ends):
    app = with_page_size(sample.build_app(chip, size=APP_SIZE), log2)
    board = board_of(chip, None)
    with board.flash:
        printed = output(board, TAKE.format(offset=offset, app=app[:4096]))
    assert printed.splitlines()[-1] == ends


@pytest.mark.parametrize(("chip", "revision"), BUILDS)
def test_every_chip_takes_its_firmware_and_no_other_chips(chip, revision):
    app = sample.build_app(chip, size=APP_SIZE, min_chip_rev=revision, version="v1.27.0")
    bootloader = sample.build_bootloader(chip, min_chip_rev=revision)
    merged = sample.build_firmware(chip, app=app, bootloader=bootloader)
    other = sample.build_app("esp32" if chip != "esp32" else "esp32s3", size=APP_SIZE)
    files = {"/app": app, "/merged": merged, "/other": other, "/bootloader": bootloader}
    board = board_of(chip, revision)
    with board.flash, serving({path: answer(data) for path, data in files.items()}) as server:
        assert "wrong-chip: the image is for " in output(board, try_update(server.url("/other")))
        assert "no-table: the file is a boot" in output(
            board, try_update(server.url("/bootloader"))
        )
        for path in ("/merged", "/app"):
            assert "wrote " in output(board, try_update(server.url(path), ", force=True"))
            slot = TABLE.partitions[3]
            assert board.flash.read(slot.offset, len(app)) == app
            run = board.run("import ota\nota.rollback.cancel()")
            assert run.labels == ("ota_1",)
            assert Image.from_bytes(app).size == len(app)
            output(board, "import ota\nota.rollback.force()")
            output(board, "import ota\nota.rollback.cancel()")
