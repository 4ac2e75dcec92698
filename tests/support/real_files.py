"""Real firmware and bootloaders, which are no part of this repository.

One stock firmware can be had by everybody: `make test` fetches it (mpota.virtual.stock). All else
is in a directory that MPOTA_SHARED names, by default ../shared; without it tests are skipped, and
counted in the last line of a test run.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mpota.formats.chips import CHIPS
from mpota.virtual import stock

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("MPOTA_SHARED", ROOT.parent / "shared"))
STOCK = stock.path()

NEEDS_SHARED = "needs ../shared"
NEEDS_STOCK = "needs the stock firmware"

REAL = {
    "esp32": SHARED / "firmware" / "ESP32_GENERIC-20240602-v1.23.0.bin",
    "esp32s3": SHARED / "firmware" / "ESP32_GENERIC_S3-20250911-v1.26.1.bin",
    "esp32c3": SHARED / "firmware" / "ESP32_GENERIC_C3-4MiB-v1.22.2-custom.bin",
    "esp32 v1.25.0": STOCK,
}
_STOCK_BOOTLOADER = "esp32 v5.2.2"
BOOTLOADERS = {
    "esp32p4": "esp32p4-v0-bootloader.bin",
    **{c.name: f"{c.name}-bootloader.bin" for c in CHIPS if c.name != "esp32p4"},
    "esp32p4 revision 3": "esp32p4-v3-bootloader.bin",
    _STOCK_BOOTLOADER: STOCK.name,
}


def skip_unless(path: Path) -> None:
    """Skip the test if this file of ../shared, or the stock firmware, is not at hand."""
    if path == STOCK:
        if stock.find() is None:
            pytest.skip(f"{NEEDS_STOCK} that `make test` fetches: {path.name}")
    elif not path.exists():
        pytest.skip(f"{NEEDS_SHARED} (MPOTA_SHARED names it): {path.name}")


def real_firmware(name: str) -> Path:
    """A released firmware; the test is skipped where it is not at hand."""
    skip_unless(REAL[name])
    return REAL[name]


def real_bootloader(name: str) -> bytes:
    if name == _STOCK_BOOTLOADER:
        return real_firmware("esp32 v1.25.0").read_bytes()[:0x7000]
    path = SHARED / "bootloaders" / BOOTLOADERS[name]
    skip_unless(path)
    return path.read_bytes()
