"""The chips that MicroPython supports: one row each.

A new one starts here: docs/chips.md lists the other tables, tests/host/test_chips.py names those
that lack it.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

from mpota.errors import MpotaError, UsageError
from mpota.units import MiB, format_flash_size

# Image header, byte 3, high nibble: esp_app_format.h, esp_image_flash_size_t.
FLASH_SIZES = tuple(MiB << code for code in range(8))
FLASH_MODES = ("QIO", "QOUT", "DIO", "DOUT", "FAST_READ", "SLOW_READ")

# Image header, byte 3, low nibble: esptool's targets, FLASH_FREQUENCY.
_FREQ_80 = MappingProxyType({0xF: "80m", 0x0: "40m", 0x1: "26m", 0x2: "20m"})
_FREQ_80_C5 = MappingProxyType({0xF: "80m", 0x0: "40m", 0x2: "20m"})
_FREQ_C6 = MappingProxyType({0x0: "80m", 0xF: "80m", 0x2: "20m"})
_FREQ_60 = MappingProxyType({0xF: "60m", 0x0: "30m", 0x1: "20m", 0x2: "15m"})
_FREQ_48 = MappingProxyType({0xF: "48m", 0x0: "24m", 0x1: "16m", 0x2: "12m"})


class EfuseField(NamedTuple):
    """Bits of an eFuse register; ``address`` is the register's offset in the eFuse controller."""

    address: int
    shift: int
    mask: int


class BlockRevision(NamedTuple):
    """Where a chip holds the revision of its eFuse block 2."""

    major: EfuseField
    minor: EfuseField


# efuse_ll.h: efuse_ll_get_blk_version_major and _minor; esp_efuse_table.csv has the same bits.
_BLOCK_1, _BLOCK_2, _BLOCK_2_C2 = 0x44, 0x5C, 0x40  # EFUSE_RD_..._REG, from DR_REG_EFUSE_BASE
_REVISION_S2 = BlockRevision(
    EfuseField(_BLOCK_1 + 12, 25, 0b11), EfuseField(_BLOCK_2 + 16, 4, 0b111)
)
_REVISION_C3 = BlockRevision(
    EfuseField(_BLOCK_2 + 16, 0, 0b11), EfuseField(_BLOCK_1 + 12, 24, 0b111)
)
_REVISION_C2 = BlockRevision(
    EfuseField(_BLOCK_2_C2 + 4, 28, 0b11), EfuseField(_BLOCK_2_C2 + 4, 25, 0b111)
)
_REVISION_C6 = BlockRevision(
    EfuseField(_BLOCK_1 + 12, 30, 0b11), EfuseField(_BLOCK_1 + 12, 27, 0b111)
)
_REVISION_H2 = BlockRevision(
    EfuseField(_BLOCK_2 + 16, 5, 0b11), EfuseField(_BLOCK_2 + 16, 2, 0b111)
)
_REVISION_P4 = BlockRevision(EfuseField(_BLOCK_1 + 8, 11, 0b11), EfuseField(_BLOCK_1 + 8, 8, 0b111))


class Chip(NamedTuple):
    """A row of the chip table.

    ``name`` is esptool's (``esp32s3``), ``title`` Espressif's (``ESP32-S3``); ``chip_id`` stands
    in every image header; the bootloader stands at ``bootloader_offset`` (flash address, esptool's
    BOOTLOADER_FLASH_OFFSET); ``frequencies`` maps the header's SPI speed code to a clock;
    ``block_revision`` tells where the eFuses hold what apps may demand of them, None: nowhere.
    """

    name: str
    title: str
    chip_id: int
    bootloader_offset: int
    frequencies: MappingProxyType[int, str]
    block_revision: BlockRevision | None = None

    def flash_size_code(self, size: int) -> int:
        """The header's code for a flash of ``size`` bytes.

        Raises UsageError if images cannot say this size.
        """
        if size not in FLASH_SIZES:
            known = ", ".join(format_flash_size(s) for s in FLASH_SIZES)
            raise UsageError(
                f"flash size {size:#x} ({size:,} bytes) is none that {self.title} images know",
                f"use one of {known}",
            )
        return FLASH_SIZES.index(size)


CHIPS = (
    Chip("esp32", "ESP32", 0, 0x1000, _FREQ_80),
    Chip("esp32s2", "ESP32-S2", 2, 0x1000, _FREQ_80, _REVISION_S2),
    Chip("esp32s3", "ESP32-S3", 9, 0x0, _FREQ_80, _REVISION_C3),
    Chip("esp32c2", "ESP32-C2", 12, 0x0, _FREQ_60, _REVISION_C2),
    Chip("esp32c3", "ESP32-C3", 5, 0x0, _FREQ_80, _REVISION_C3),
    Chip("esp32c5", "ESP32-C5", 23, 0x2000, _FREQ_80_C5, _REVISION_P4),
    Chip("esp32c6", "ESP32-C6", 13, 0x0, _FREQ_C6, _REVISION_C6),
    Chip("esp32c61", "ESP32-C61", 20, 0x0, _FREQ_80_C5, _REVISION_P4),
    Chip("esp32h2", "ESP32-H2", 16, 0x0, _FREQ_48, _REVISION_H2),
    Chip("esp32p4", "ESP32-P4", 18, 0x2000, _FREQ_80, _REVISION_P4),
)
_BY_ID = {chip.chip_id: chip for chip in CHIPS}
_BY_NAME = {chip.name: chip for chip in CHIPS}


def find_chip(chip_id: int) -> Chip | None:
    """The chip with this ``chip_id``, or None."""
    return _BY_ID.get(chip_id)


def chip_by_id(chip_id: int) -> Chip:
    """The chip with this ``chip_id``. Raises MpotaError if there is no such row."""
    chip = find_chip(chip_id)
    if chip is None:
        known = ", ".join(f"{c.chip_id} {c.name}" for c in CHIPS)
        raise MpotaError(f"image has chip id {chip_id}, known are {known}")
    return chip


def chip_by_name(name: str) -> Chip:
    """The chip called ``name`` (``esp32s3`` or ``ESP32-S3``). Raises UsageError if none is."""
    chip = _BY_NAME.get(name.lower().replace("-", ""))
    if chip is None:
        raise UsageError(f"chip '{name}' is not one of {', '.join(_BY_NAME)}")
    return chip
