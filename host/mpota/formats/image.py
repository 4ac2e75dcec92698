"""Firmware images: the bootloader's and the app's share one format.

Source: ESP-IDF ``esp_app_format.h`` (layout) and ``esp_image_format.c`` (rules). A header of 24
bytes, then segments of an 8-byte header and data, then padding so that the checksum is the last
byte of a 16-byte row, then, if ``hash_appended``, the SHA-256 of everything before it. A signed
image is padded to 4 KiB and followed by a sector with up to three Secure Boot V2 signature blocks.

Not handled: the ESP8266's formats, Secure Boot V1 signatures, encrypted images.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from mpota.errors import MpotaError
from mpota.formats.chips import FLASH_SIZES, Chip, chip_by_id
from mpota.units import SECTOR_SIZE, MiB, align_up

IMAGE_MAGIC = 0xE9
HEADER_SIZE = 24
SEGMENT_HEADER_SIZE = 8
MAX_SEGMENTS = 16
MAX_SEGMENT_SIZE = 16 * MiB  # exclusive: esp_image_format.c, verify_segment_header
DIGEST_SIZE = 32
CHECKSUM_SEED = 0xEF  # esp_image_format.c, ESP_ROM_CHECKSUM_INITIAL

_HEADER = struct.Struct("<BBBBIB3sHBHH4sB")
_SEGMENT = struct.Struct("<II")

SIGNATURE_MAGICS = (b"\xe7\x02", b"\xe7\x03")  # RSA-3072 and ECDSA: signature.py
SIGNATURE_BLOCK_SIZE = 1216  # esp_secure_boot.h, ets_secure_boot_sig_block_t
_SIGNATURE_CRC_OFFSET = 1196


class TruncatedError(MpotaError):
    """The bytes end before the image does. ``needed``: bytes that it has at least."""

    def __init__(self, needed: int, found: int) -> None:
        super().__init__(
            f"image is truncated: {found:,} bytes, it goes on for at least {needed - found:,} more"
        )
        self.needed = needed


class ImageHeader(NamedTuple):
    """``esp_image_header_t`` without its magic byte. Sizes in bytes, addresses as loaded."""

    segment_count: int
    spi_mode: int
    spi_speed: int
    spi_size: int
    entry_addr: int
    wp_pin: int
    spi_pin_drv: bytes
    chip_id: int
    min_chip_rev: int
    min_chip_rev_full: int
    max_chip_rev_full: int
    reserved: bytes
    hash_appended: int

    @classmethod
    def from_bytes(cls, data: bytes) -> ImageHeader:
        """Parse the first 24 bytes. Raises MpotaError if they are missing or not an image."""
        if len(data) < HEADER_SIZE:
            raise MpotaError(f"image is {len(data)} bytes, its header alone has {HEADER_SIZE}")
        magic, count, mode, speed_size, *rest = _HEADER.unpack_from(data)
        if magic != IMAGE_MAGIC:
            raise MpotaError(f"image starts with {magic:#04x}, an image with {IMAGE_MAGIC:#04x}")
        return cls(count, mode, speed_size & 0xF, speed_size >> 4, *rest)

    def to_bytes(self) -> bytes:
        return _HEADER.pack(
            IMAGE_MAGIC,
            self.segment_count,
            self.spi_mode,
            self.spi_speed | self.spi_size << 4,
            self.entry_addr,
            self.wp_pin,
            self.spi_pin_drv,
            self.chip_id,
            self.min_chip_rev,
            self.min_chip_rev_full,
            self.max_chip_rev_full,
            self.reserved,
            self.hash_appended,
        )

    @property
    def min_revision(self) -> int:
        """The lowest chip revision that the image runs on, major * 100 + minor; 0xFFFF: not set.

        ESP-IDF before v4.4.3 knew one number alone (``min_chip_rev``), the minor revision on the
        ESP32-C3, the major one elsewhere, and left both full fields 0.
        """
        if self.min_chip_rev_full or self.max_chip_rev_full:
            return self.min_chip_rev_full
        return self.min_chip_rev * (1 if self.chip.name == "esp32c3" else 100)

    @property
    def chip(self) -> Chip:
        """Raises MpotaError for a chip id that no row of the chip table has."""
        return chip_by_id(self.chip_id)

    @property
    def flash_size(self) -> int | None:
        """Bytes of flash that the header declares, None for a code without a meaning."""
        return FLASH_SIZES[self.spi_size] if self.spi_size < len(FLASH_SIZES) else None


class Segment(NamedTuple):
    """``data_size`` bytes at ``data_offset`` of the image go to ``load_addr``."""

    load_addr: int
    data_offset: int
    data_size: int

    @property
    def load_end(self) -> int:
        return self.load_addr + self.data_size


@dataclass(frozen=True)
class Image:
    """An image, whole: ``data`` holds exactly its bytes, digest included, signature not."""

    data: bytes
    header: ImageHeader
    segments: tuple[Segment, ...]

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Image:
        """Parse the image at the start of ``data``; what follows it is left alone.

        Raises MpotaError if the structure is broken: magic, chip, segment count, lengths, or
        fewer bytes than the segments announce. Says nothing of checksum and digest: see `check`.
        """
        header = ImageHeader.from_bytes(bytes(data[:HEADER_SIZE]))
        header.chip  # noqa: B018 - raises for an unknown chip
        if not 1 <= header.segment_count <= MAX_SEGMENTS:
            raise MpotaError(
                f"image has segment count {header.segment_count}, allowed are 1 to {MAX_SEGMENTS}"
            )
        segments = []
        position = HEADER_SIZE
        for index in range(header.segment_count):
            segment = _parse_segment(data, position, index)
            segments.append(segment)
            position = segment.data_offset + segment.data_size
        size = align_up(position + 1, 16) + (DIGEST_SIZE if header.hash_appended else 0)
        if size > len(data):
            raise TruncatedError(size, len(data))
        return cls(bytes(data[:size]), header, tuple(segments))

    @property
    def size(self) -> int:
        """Bytes, padding, checksum and digest included."""
        return len(self.data)

    @property
    def chip(self) -> Chip:
        return self.header.chip

    @property
    def body_size(self) -> int:
        """Bytes up to and including the checksum: what the digest covers."""
        return self.size - (DIGEST_SIZE if self.header.hash_appended else 0)

    @property
    def checksum(self) -> int:
        """The checksum byte as stored."""
        return self.data[self.body_size - 1]

    @property
    def digest(self) -> bytes | None:
        """The appended SHA-256 as stored, None if the image has none."""
        return self.data[self.body_size :] if self.header.hash_appended else None

    @cached_property
    def computed_checksum(self) -> int:
        checksum = CHECKSUM_SEED
        for segment in self.segments:
            checksum ^= xor_bytes(self.segment_data(segment))
        return checksum

    @cached_property
    def computed_digest(self) -> bytes:
        return hashlib.sha256(memoryview(self.data)[: self.body_size]).digest()

    def segment_data(self, segment: Segment) -> memoryview:
        return memoryview(self.data)[segment.data_offset :][: segment.data_size]

    def check(self, what: str = "image") -> None:
        """Raises MpotaError if checksum or digest do not fit; ``what`` names the image."""
        if self.checksum != self.computed_checksum:
            raise MpotaError(
                f"{what}: checksum is {self.checksum:#04x}, its segments give "
                f"{self.computed_checksum:#04x}: bytes were changed or lost"
            )
        if self.digest not in (None, self.computed_digest):
            stored, computed = self.data[self.body_size :].hex(), self.computed_digest.hex()
            if stored[:16] == computed[:16]:  # the message shows the bytes that differ
                stored, computed = f"...{stored[-48:]}", f"...{computed[-48:]}"
            else:
                stored, computed = f"{stored[:16]}...", f"{computed[:16]}..."
            raise MpotaError(
                f"{what}: appended SHA-256 is {stored}, its bytes give {computed}: "
                "bytes were changed or lost"
            )

    def sealed(self) -> Image:
        """The same image with the checksum and the digest that its bytes give."""
        body = self.data[: self.body_size - 1] + bytes([self.computed_checksum])
        return self._with_body(body)

    def with_flash_size(self, size: int) -> Image:
        """The same image declaring ``size`` bytes of flash, its digest rewritten.

        Raises UsageError for a size that the header cannot say.
        """
        header = self.header._replace(spi_size=self.chip.flash_size_code(size))
        return replace(
            self._with_body(header.to_bytes() + self.data[HEADER_SIZE : self.body_size]),
            header=header,
        )

    def _with_body(self, body: bytes) -> Image:
        """The image with ``body``, and with the digest of it where the header has one."""
        digest = hashlib.sha256(body).digest() if self.header.hash_appended else b""
        return replace(self, data=body + digest)


def whole_segments(data: bytes | memoryview) -> tuple[int, int]:
    """How many of the segments that a header announces are there as a whole, one behind the other,
    and how many it announces; (0, 0) if ``data`` does not start with an image's header.
    """
    try:
        header = ImageHeader.from_bytes(bytes(data[:HEADER_SIZE]))
    except MpotaError:
        return (0, 0)
    if header.segment_count > MAX_SEGMENTS:
        return (0, 0)
    position = HEADER_SIZE
    for index in range(header.segment_count):
        try:
            segment = _parse_segment(data, position, index)
        except MpotaError:
            return (index, header.segment_count)
        position = segment.data_offset + segment.data_size
    return (header.segment_count, header.segment_count)


def _parse_segment(data: bytes | memoryview, position: int, index: int) -> Segment:
    data_offset = position + SEGMENT_HEADER_SIZE
    if data_offset > len(data):
        raise TruncatedError(data_offset, len(data))
    load_addr, data_size = _SEGMENT.unpack_from(data, position)
    if data_size >= MAX_SEGMENT_SIZE or data_size % 4:
        limit = "a multiple of 4" if data_size < MAX_SEGMENT_SIZE else "below 16 MiB"
        raise MpotaError(
            f"segment {index} has invalid segment length {data_size:#x}, it must be {limit}: "
            "usually a truncated or shifted download"
        )
    if data_offset + data_size > len(data):
        raise TruncatedError(data_offset + data_size, len(data))
    return Segment(load_addr, data_offset, data_size)


def xor_bytes(data: bytes | memoryview) -> int:
    """The XOR of all bytes, 0 to 255: folds big integers, some 1000 times a loop's speed."""
    view = memoryview(data)
    value = 0
    for start in range(0, len(view), SECTOR_SIZE):
        value ^= int.from_bytes(view[start : start + SECTOR_SIZE], "little")
    width = SECTOR_SIZE
    while width > 1:
        width //= 2
        value = (value >> 8 * width) ^ (value & ((1 << 8 * width) - 1))
    return value


def signature_size(data: bytes | memoryview, image_size: int) -> int:
    """Bytes that a Secure Boot V2 signature adds behind an image of ``image_size`` bytes, or 0.

    That is the padding to the next 4 KiB boundary and the sector of signature blocks, as
    ``espsecure sign-data --version 2`` writes them; a block counts if its CRC-32 fits.
    """
    start = align_up(image_size, SECTOR_SIZE)
    block = bytes(data[start : start + SIGNATURE_BLOCK_SIZE])
    if len(data) < start + SECTOR_SIZE or block[:2] not in SIGNATURE_MAGICS:
        return 0
    (crc,) = struct.unpack_from("<I", block, _SIGNATURE_CRC_OFFSET)
    if zlib.crc32(block[:_SIGNATURE_CRC_OFFSET]) != crc:
        return 0
    return start + SECTOR_SIZE - image_size
