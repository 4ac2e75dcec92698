"""Firmware for the boards on the cable."""

from __future__ import annotations

from typing import Any

from mpota.firmware import sample
from mpota.formats.partition_table import APP, DATA, FACTORY, OTA_0, Partition, PartitionTable
from mpota.units import MiB

CHIP = "esp32c3"
APP_SIZE = 149_824
NVS = Partition("nvs", DATA, 0x02, 0x9000, 0x6000)
SINGLE = PartitionTable(
    (
        NVS,
        Partition("phy_init", DATA, 0x01, 0xF000, 0x1000),
        Partition("factory", APP, FACTORY, 0x10000, 0x60000),
        Partition("vfs", DATA, 0x81, 0x70000, 0x190000),
    )
)
OTA = PartitionTable(
    (
        Partition("nvs", DATA, 0x02, 0x9000, 0x4000),
        Partition("otadata", DATA, 0x00, 0xD000, 0x2000),
        Partition("phy_init", DATA, 0x01, 0xF000, 0x1000),
        Partition("ota_0", APP, OTA_0, 0x10000, 0x40000),
        Partition("ota_1", APP, OTA_0 + 1, 0x50000, 0x40000),
        Partition("vfs", DATA, 0x81, 0x90000, 0x170000),
    )
)
OLD_APP = sample.build_app(CHIP, version="v1.25.0", size=APP_SIZE, flash_size=2 * MiB)
NEW_APP = sample.build_app(CHIP, version="v1.26.1", size=APP_SIZE, flash_size=2 * MiB)
NVS_DATA = b"\xfe\xff\xff\xff" + bytes(28) + b"settings"  # an active nvs page


def firmware(
    table: PartitionTable = SINGLE,
    app: bytes = OLD_APP,
    flash_size: int = 2 * MiB,
    **more: Any,
) -> bytes:
    return sample.build_firmware(CHIP, table=table, app=app, flash_size=flash_size, **more)
