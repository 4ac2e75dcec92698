"""Firmware that people have and MicroPython's build does not make.

The files in ``../shared/inputs`` are of users; without them what needs them is skipped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bootloader_images import SHARED, make_app, make_bootloader, make_table
from firmware_files import SMALL_APP, run
from mpota.bootloader.check import check_flash
from mpota.firmware import sample
from mpota.formats.chips import chip_by_name
from mpota.formats.otadata import OtaRecord, OtaState
from mpota.formats.partition_table import Partition
from mpota.storage.file import FileImage

INPUTS = SHARED / "inputs"
FACTORY = Partition("factory", 0, 0x00, 0x10000, 0x20000)


def user_file(name: str) -> Path:
    path = INPUTS / name
    if not path.exists():
        pytest.skip("no ../shared/inputs")
    return path


def as_json(*args: Any, code: int = 0) -> Any:
    result = run(*args, "--json")
    assert result.code == code, result.err or result.out
    return json.loads(result.out)


def merged(bootloader: bytes, app: bytes, table: tuple[Partition, ...] = (FACTORY,)) -> FileImage:
    data = bytearray(b"\xff" * 0x30000)
    for offset, part in ((0, bootloader), (0x8000, make_table(table)), (table[0].offset, app)):
        data[offset : offset + len(part)] = part
    return FileImage(0, bytes(data))


# Chip revisions


def with_legacy_revision(image: bytes, number: int) -> bytes:
    """As ESP-IDF before v4.4.3 wrote it: byte 14, and both full fields 0. Without a digest."""
    return image[:14] + bytes([number, 0, 0, 0, 0]) + image[19:]


@pytest.mark.parametrize(
    ("chip_name", "on_chip", "boots"),
    [
        ("esp32c3", None, "factory"),
        ("esp32c3", 3, "factory"),
        ("esp32c3", 2, None),
        ("esp32c2", None, "factory"),
        ("esp32c2", 300, "factory"),
        ("esp32c2", 203, None),
    ],
)
def test_the_old_revision_number_is_the_minor_one_on_the_c3_and_the_major_one_elsewhere(
    chip_name: str, on_chip: int | None, boots: str | None
) -> None:
    chip = chip_by_name(chip_name)
    texts = b"is configured for minimum revision %d"
    bootloader = make_bootloader(chip, texts=texts, has_digest=False)
    app = make_app(chip, has_digest=False)
    flash = merged(with_legacy_revision(bootloader, 3), with_legacy_revision(app, 3))
    check = check_flash(flash, chip_revision=on_chip)
    assert check.boots == boots
    if boots is None:
        limit = "v0.3" if chip_name == "esp32c3" else "v3.0"
        assert f"needs chip revision {limit}" in check.findings[0].cause


def test_a_c3_firmware_of_esp_idf_4_4_boots_on_the_chips_that_it_is_for() -> None:
    checked = as_json("check", user_file("c3_legacy_min_rev3.bin"))
    assert (checked["boots"], checked["ok"], checked["findings"]) == ("factory", True, [])


# Bootloaders without rollback

OTA_TABLE = (
    Partition("otadata", 1, 0x00, 0xD000, 0x2000),
    Partition("ota_0", 0, 0x10, 0x10000, 0x20000),
    Partition("ota_1", 0, 0x11, 0x30000, 0x20000),
)


@pytest.mark.parametrize(
    ("app_release", "bootloader_release", "rollback", "boots"),
    [
        ("v5.4.2", "v5.4.2", True, "ota_0"),
        ("v5.4.2", "v6.1", None, "ota_0"),  # another build's: nothing tells
        ("v5.0.4", "", True, "ota_0"),
    ],
)
def test_check_predicts_for_both_where_nothing_tells_whether_there_is_rollback(
    app_release: str, bootloader_release: str, rollback: bool | None, boots: str
) -> None:
    """An update that was not confirmed: rolled back, or booted again."""
    app = sample.build_app("esp32c3", size=SMALL_APP, idf_version=app_release)
    bootloader = make_bootloader(chip_by_name("esp32c3"), idf_version=bootloader_release, min_rev=3)
    data = bytearray(b"\xff" * 0x50000)
    for offset, part in (
        (0, bootloader),
        (0x8000, make_table(OTA_TABLE)),
        (0xD000, OtaRecord.selecting(1, OtaState.VALID).to_bytes()),
        (0xE000, OtaRecord.selecting(2, OtaState.PENDING_VERIFY).to_bytes()),
        (0x10000, app),
        (0x30000, app),
    ):
        data[offset : offset + len(part)] = part
    check = check_flash(FileImage(0, bytes(data)))
    assert (check.rollback, check.boots) == (rollback, boots)
    assert check.boots_without_rollback == (None if rollback else "ota_1")
    told = [f.cause for f in check.findings if "without it, 'ota_1' boots" in f.cause]
    assert bool(told) == (rollback is None)
