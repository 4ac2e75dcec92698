"""Sample firmware is what the real tools and the bootloader take for firmware, on every chip."""

from __future__ import annotations

import pytest
from mpota.bootloader.boot import boot
from mpota.errors import MpotaError, UsageError
from mpota.firmware import sample
from mpota.firmware.firmware import Firmware
from mpota.formats.app_desc import find_app_desc, find_bootloader_desc, find_micropython
from mpota.formats.chips import CHIPS, Chip
from mpota.formats.image import Image
from mpota.formats.partition_table import APP, DATA, OTA_0, Partition, PartitionTable
from mpota.units import MiB
from mpota.virtual.flash import VirtualFlash

SIZE = 100_000 // 16 * 16
EACH_CHIP = pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)


@EACH_CHIP
def test_esptool_finds_the_sample_intact_and_the_bootloader_starts_it(chip: Chip) -> None:
    from esptool.bin_image import LoadFirmwareImage

    app = sample.build_app(chip, size=SIZE)
    bootloader = sample.build_bootloader(chip)
    for data in (app, bootloader):
        image = LoadFirmwareImage(chip.name, data)
        assert image.checksum == image.calculate_checksum()
        assert image.stored_digest == image.calc_digest
        assert image.chip_id == chip.chip_id
    firmware = sample.build_firmware(chip, app=app, bootloader=bootloader)
    with VirtualFlash.create(4 * MiB, {chip.bootloader_offset: firmware}) as flash:
        result = boot(flash)
    assert result.console == ()
    assert result.starts is not None
    assert result.starts.label == "factory"


@EACH_CHIP
def test_the_sample_says_what_a_build_says(chip: Chip) -> None:
    app = sample.build_app(chip, size=SIZE, version="v1.30.0", secure_version=3)
    desc, texts = find_app_desc(app), find_micropython(app)
    assert desc is not None
    assert (desc.secure_version, desc.idf_ver, desc.version) == (3, "v5.4.2", "")
    name = chip.name.upper()
    assert texts.version == "v1.30.0"
    assert texts.board == f"Generic {name} module with {name}"
    description = find_bootloader_desc(sample.build_bootloader(chip, idf_version="v5.5.1"))
    assert description is not None
    assert description.idf_ver == "v5.5.1"
    assert find_app_desc(sample.build_bootloader(chip)) is None


@pytest.mark.parametrize("size", [*range(0x18000, 0x18100, 16), 0x30000, 0x30010, 1 << 20])
def test_an_app_has_the_size_that_was_asked_for(size: int) -> None:
    assert len(sample.build_app("esp32s3", size=size)) == size
    assert size - 64 < len(sample.build_app("esp32", size=size)) <= size


@pytest.mark.parametrize("size", [0, 0x17FF0, 0x18001])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(UsageError, match="multiples of 16"):
        sample.build_app("esp32", size=size)


def test_the_default_app_is_as_large_as_a_real_one_and_always_the_same() -> None:
    app = sample.build_app("esp32")
    assert len(app) == 1600 * 1024
    assert app == sample.build_app("esp32")


def test_versions_share_most_of_their_code() -> None:
    old, new = (Image.from_bytes(sample.build_app("esp32", version=v)) for v in ("v1", "v2"))
    before, after = (bytes(max(map(i.segment_data, i.segments), key=len)) for i in (old, new))
    assert before != after
    assert before[: len(before) // 4] == after[: len(after) // 4]
    assert before[-len(before) // 2 :] == after[-len(after) // 2 :]


def test_an_esp32_p4_of_revision_3_has_its_own_addresses() -> None:
    old = Image.from_bytes(sample.build_app("esp32p4", size=SIZE))
    new = Image.from_bytes(sample.build_app("esp32p4", size=SIZE, min_chip_rev=300))
    assert {s.load_addr for s in old.segments} != {s.load_addr for s in new.segments}
    assert (new.header.min_chip_rev_full, new.header.max_chip_rev_full) == (300, 399)
    bootloader = sample.build_bootloader("esp32p4", min_chip_rev=300)
    data = sample.build_firmware("esp32p4", app=new.data, bootloader=bootloader)
    with VirtualFlash.create(4 * MiB, {0x2000: data}) as flash:
        assert boot(flash, chip_revision=301).console == ()


def test_a_firmware_takes_any_table_and_contents() -> None:
    table = PartitionTable(
        (
            Partition("otadata", DATA, 0, 0xD000, 0x2000),
            Partition("ota_0", APP, OTA_0, 0x20000, 0x20000),
            Partition("ota_1", APP, OTA_0 + 1, 0x40000, 0x20000),
        )
    )
    app = sample.build_app("esp32c3", size=SIZE)
    data = sample.build_firmware(
        "esp32c3",
        flash_size=8 * MiB,
        table=table,
        table_offset=0xA000,
        app=app,
        contents={"ota_1": app[:100]},
        is_dump=True,
    )
    assert len(data) == 8 * MiB
    firmware = Firmware.from_bytes(data, table_offset=0xA000)
    assert firmware.table == table
    assert firmware.app(table["ota_0"]).size == len(app)
    assert data[0x40000:0x40100] == app[:100].ljust(0x100, b"\xff")
    with pytest.raises(MpotaError, match="no partition 'vfs'"):
        sample.build_firmware("esp32c3", app=app, contents={"vfs": b""})
