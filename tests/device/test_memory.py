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
def test_no_segment_passes_that_the_bootloader_would_not_load(chip, revision):
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
    is_one_bus = info.memory.dram == info.memory.iram
    for (start, end), found in zip(segments, printed, strict=True):
        load = Segment(start, 0, end - start)
        expected = address_faults([load], info)
        where = f"{start:#x}-{end:#x}: {found} {expected}"
        if expected:
            assert found != "None", where
        elif found != "None":
            # On one bus the bootloader overlooks its own loader: the app would overwrite it.
            assert is_one_bus, where
            assert "loader" in found, where


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
