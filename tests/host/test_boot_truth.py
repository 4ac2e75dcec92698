"""What a real bootloader did with 45 flash images, case by case."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from bootloader_images import SHARED, make_table
from mpota.bootloader.boot import boot
from mpota.formats.partition_table import Partition
from mpota.virtual.flash import VirtualFlash

CASES_FILE = SHARED / "boot_truth" / "cases.json"
FIRMWARE = SHARED / "firmware" / "ESP32_GENERIC-20240602-v1.23.0.bin"
CASES: dict[str, Any] = json.loads(CASES_FILE.read_text()) if CASES_FILE.exists() else {}
TABLE = (
    Partition("nvs", 1, 2, 0x9000, 0x4000),
    Partition("otadata", 1, 0, 0xD000, 0x2000),
    Partition("phy_init", 1, 1, 0xF000, 0x1000),
    Partition("ota_0", 0, 0x10, 0x10000, 0x1B0000),
    Partition("ota_1", 0, 0x11, 0x1C0000, 0x1B0000),
    Partition("vfs", 1, 0x81, 0x370000, 0x90000),
)


@cache
def base_image() -> bytes:
    """The flash that every case edits: boot_truth/README.md."""
    firmware = FIRMWARE.read_bytes()
    image = bytearray(b"\xff" * 0x400000)
    app = firmware[0xF000:]
    for offset, data in (
        (0x1000, firmware[:0x7000]),
        (0x8000, make_table(TABLE)),
        (0x10000, app),
        (0x1C0000, app),
    ):
        image[offset : offset + len(data)] = data
    return bytes(image)


def edited(edits: list[list[Any]]) -> bytes:
    image = bytearray(base_image())
    for kind, offset, *what in edits:
        data = bytes.fromhex(what[0]) if kind == "write" else bytes.fromhex(what[1]) * what[0]
        image[int(offset, 0) : int(offset, 0) + len(data)] = data
    assert len(image) == 0x400000
    return bytes(image)


@pytest.mark.skipif(not CASES or not FIRMWARE.exists(), reason="no ../shared/boot_truth")
@pytest.mark.parametrize("name", CASES)
def test_the_model_does_what_the_real_bootloader_did(name: str) -> None:
    case = CASES[name]
    with VirtualFlash.create(0x400000, {0: edited(case["edits"])}) as flash:
        result = boot(flash)
        assert (result.starts.label if result.starts else None) == case["starts"]
        assert list(result.console) == case["console"]
        assert result.otadata_after is not None
        assert [record.hex() for record in result.otadata_after] == case["otadata_after"]
        left = [flash.read(offset, 32).hex() for offset in (0xD000, 0xE000)]
        assert left == case["otadata_after"]
