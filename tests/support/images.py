"""Images byte by byte: as small, as odd or as broken as a test wants them.

`mpota.firmware.sample` makes those that are laid out as builds are, with esptool.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from mpota.formats.app_desc import APP_DESC_MAGIC, APP_DESC_SIZE
from mpota.formats.chips import Chip, chip_by_name
from mpota.formats.image import CHECKSUM_SEED, IMAGE_MAGIC, xor_bytes

ESP32 = chip_by_name("esp32")
DROM, IRAM = 0x3F400020, 0x40080400

Segments = Sequence[tuple[int, bytes]]


def make_image(
    chip: Chip,
    segments: Segments,
    *,
    entry_addr: int = 0,
    has_digest: bool = True,
    min_rev: int = 0,
    max_rev: int = 0xFFFF,
    spi_size: int = 0,
    segment_count: int | None = None,
) -> bytes:
    count = len(segments) if segment_count is None else segment_count
    header = struct.pack("<BBBBI", IMAGE_MAGIC, count, 2, spi_size << 4, entry_addr)
    header += struct.pack(
        "<B3sHBHH4sB", 0xEE, b"", chip.chip_id, 0, min_rev, max_rev, b"", has_digest
    )
    body = header + b"".join(struct.pack("<II", a, len(d)) + d for a, d in segments)
    body += b"\0" * (15 - len(body) % 16)
    body += bytes([CHECKSUM_SEED ^ xor_bytes(b"".join(d for _, d in segments))])
    return body + hashlib.sha256(body).digest() if has_digest else body


def with_digest(image: bytes | bytearray) -> bytes:
    """The image, its appended SHA-256 made to fit again."""
    return bytes(image[:-32]) + hashlib.sha256(image[:-32]).digest()


def app_start(version: str, elf: str) -> bytes:
    """What the read-only data of MicroPython ``version`` begins with; ``elf`` names the build."""
    desc = struct.pack("<IIII", APP_DESC_MAGIC, 0, 0, 0) + bytes(96) + b"v5.4.2".ljust(32, b"\0")
    desc += hashlib.sha256(elf.encode()).digest()  # app_elf_sha256
    text = f"MicroPython {version} on 2025-09-11\0; Virtual board with ESP32\0"
    return desc.ljust(APP_DESC_SIZE, b"\0") + text.encode()


def small_image(segments: Segments) -> bytes:
    """An ESP32 image that declares 4 MiB of flash."""
    return make_image(ESP32, segments, entry_addr=IRAM, spi_size=2)


def small_app(rodata: bytes) -> bytes:
    """An ESP32 app with this read-only data and next to no code."""
    return small_image([(DROM, rodata), (IRAM, bytes(0x200))])
