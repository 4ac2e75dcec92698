"""Bootloaders, apps and flashes made byte by byte, for tests of the bootloader model."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from mpota.formats.app_desc import APP_DESC_MAGIC, APP_DESC_SIZE
from mpota.formats.chips import Chip, chip_by_name
from mpota.formats.image import Image
from mpota.formats.memory import memory_map
from mpota.formats.otadata import OtaRecord, OtaState, seq_crc
from mpota.formats.partition_table import Partition
from mpota.virtual.flash import VirtualFlash

from tests.support.images import Segments, make_image

FLASH_SIZE = 0x50000  # as little as holds two slots; the header can say no less than 1 MiB
SLOT_SIZE = 0x10000
FACTORY = Partition("factory", 0, 0x00, 0x10000, SLOT_SIZE)
OTA_0 = Partition("ota_0", 0, 0x10, 0x10000, SLOT_SIZE)
OTA_1 = Partition("ota_1", 0, 0x11, 0x20000, SLOT_SIZE)
TEST = Partition("test", 0, 0x20, 0x30000, SLOT_SIZE)
OTADATA = Partition("otadata", 1, 0x00, 0xD000, 0x2000)
OTA_TABLE = (OTADATA, OTA_0, OTA_1)
TEXTS_V5_0 = b"image at 0x%x; larger than 16MB; Image requires chip rev >= v%d.%d"
APP_DESC = struct.pack("<I", APP_DESC_MAGIC).ljust(APP_DESC_SIZE, b"\0")


def with_bytes(image: bytes, offset: int, new: bytes) -> bytes:
    """The image with other bytes in a segment, its checksum and SHA-256 made to fit again."""
    changed = image[:offset] + new + image[offset + len(new) :]
    return Image.from_bytes(changed).sealed().data


def app_segments(chip: Chip) -> list[tuple[int, bytes]]:
    """What every app has: DROM with its description, DRAM, and IROM on the right page offset."""
    memory = memory_map(chip.name)
    drom, irom = memory.mapped[0].start, memory.mapped[-1].start
    if memory.dram == memory.iram:
        irom = drom + 0x100000
    data = bytes(range(64))
    irom_offset = 24 + 8 + len(APP_DESC) + 8 + len(data) + 8
    return [
        (drom + 0x20, APP_DESC),
        (memory.dram.start + 0x10000, data),
        (irom + irom_offset, b"\x36\x41\x00\x00" * 8),
    ]


def make_app(chip: Chip, load: Segments = (), **header: Any) -> bytes:
    """An app of this chip, with the segments ``load`` behind its own."""
    return make_image(chip, [*app_segments(chip), *load], **header)


def bootloader_segments(chip: Chip, texts: bytes = b"") -> list[tuple[int, bytes]]:
    """Data behind 0x110 bytes of .bss, start-up code, and the larger loader code."""
    memory = memory_map(chip.name)
    start_code = 0x40080400 if chip.name == "esp32" else memory.loader_iram.start - 0x2000
    return [
        (memory.data.start + 0x110, texts.ljust(0x1400, b"\0")),
        (start_code, b"\x01" * 0x800),
        (memory.loader_iram.start, b"\x02" * 0x2000),
    ]


def make_bootloader(
    chip: Chip, *, texts: bytes = TEXTS_V5_0, idf_version: str = "", **header: Any
) -> bytes:
    """A bootloader that holds these texts; from v5.2 on it names its release."""
    if texts:
        texts += b"; invalid segment length 0x%x"
    if idf_version:
        texts = struct.pack("<B3xI32s40x", 0x50, 1, idf_version.encode()) + texts
    segments = bootloader_segments(chip, texts)
    return make_image(chip, segments, entry_addr=segments[1][0] + 4, **header)


def make_table(partitions: Sequence[Partition], *, has_md5: bool = True) -> bytes:
    table = b"".join(p.to_bytes() for p in partitions)
    if has_md5:
        table += b"\xeb\xeb" + b"\xff" * 14 + hashlib.md5(table).digest()
    return table


def record(ota_seq: int, state: OtaState | int) -> bytes:
    """``state`` may be one that there is not."""
    return OtaRecord(ota_seq, b"\xff" * 20, int(state), seq_crc(ota_seq)).to_bytes()


def make_flash(
    partitions: Sequence[Partition] = OTA_TABLE,
    contents: Mapping[int, bytes] | None = None,
    *,
    chip: Chip | None = None,
    records: tuple[bytes, bytes] = (b"", b""),
    apps: Mapping[str, bytes] | None = None,
    bootloader: bytes | None = None,
    size: int = FLASH_SIZE,
) -> VirtualFlash:
    """A flash with a bootloader, this table, otadata, and an app in each app partition.

    ``apps`` replaces apps by label, ``contents`` (flash offset -> bytes) overrides anything.
    """
    chip = chip or chip_by_name("esp32")
    app = make_app(chip)
    flash = {
        chip.bootloader_offset: make_bootloader(chip) if bootloader is None else bootloader,
        0x8000: make_table(partitions),
        OTADATA.offset: records[0],
        OTADATA.offset + 0x1000: records[1],
        **{p.offset: (apps or {}).get(p.label, app) for p in partitions if p.is_app and p.size},
        **(contents or {}),
    }
    return VirtualFlash.create(size, flash)
