"""Sizes as people write and read them: ``16M``, ``512K``, ``0x1f0000``, ``1.9 MiB``."""

from __future__ import annotations

import re

from mpota.errors import UsageError

KiB = 1024
MiB = 1024 * KiB
SECTOR_SIZE = 4 * KiB  # the smallest erasable unit of SPI NOR flash
BLOCK_SIZE = 64 * KiB  # the large erase block, and the MMU page an app must be aligned to

_SIZE = re.compile(r"(0x[0-9a-f]+|[0-9]+)\s*(?:([kmb])(?:i?b)?)?", re.IGNORECASE)
# "B" counts 4 KiB blocks, as in mp-image-tool-esp32's table strings.
_UNITS = {"": 1, "k": KiB, "m": MiB, "b": SECTOR_SIZE}


def parse_size(text: str, what: str = "size") -> int:
    """``"16M"``, ``"512K"``, ``"0x1f0000"``, ``"3B"`` (4 KiB blocks) or plain bytes, as bytes.

    Raises UsageError if ``text`` is none of these.
    """
    # Hexadecimal digits include the unit letter B: a hexadecimal number takes no block unit.
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{what} '{text}' is not a size", "write 16M, 512K, 0x1f0000 or a number of bytes"
        )
    return (
        int(match[1], 0 if match[1][:2].lower() == "0x" else 10) * _UNITS[(match[2] or "").lower()]
    )


def format_size(size: int) -> str:
    """A size for people, in the largest unit that keeps it short: ``1.9 MiB``, ``24 KiB``."""
    if size >= MiB:
        return f"{size / MiB:.2f}".rstrip("0").rstrip(".") + " MiB"
    if size >= KiB:
        return f"{size / KiB:.1f}".removesuffix(".0") + " KiB"
    return f"{size} bytes"


def format_flash_size(size: int) -> str:
    """A flash size as ESP-IDF and esptool write it: ``4MB``, ``512KB``."""
    return f"{size // MiB}MB" if size % MiB == 0 else f"{size // KiB}KB"


def short_digest(digest: str) -> str:
    """The first characters of a hex digest, by which people tell apps apart."""
    return digest[:16]


def align_up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def align_down(value: int, alignment: int) -> int:
    return value // alignment * alignment
