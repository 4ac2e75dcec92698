"""Pairs of firmware as two builds of it differ: made from released ones, where those are at hand.

An address is where something stands, and code is full of them: a few bytes more in one place change
bytes everywhere. So what is inserted here also moves what points behind it: words that are such
addresses, and the calls of Xtensa code, which hold the distance to their target.
"""

from __future__ import annotations

import os
import random
import struct
from dataclasses import dataclass
from pathlib import Path

from mpota.firmware import sample
from mpota.firmware.firmware import read_app
from mpota.formats.image import Image, Segment

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("MPOTA_SHARED", ROOT.parent / "shared"))

FIRMWARE = {
    "ESP32": "ESP32_GENERIC-20240602-v1.23.0.bin",
    "ESP32-S3": "ESP32_GENERIC_S3-20250911-v1.26.1.bin",
}
FUNCTION_SIZE = 0x90
FROZEN_SIZE = 0x1800
_CALL_MASK, _CALLN = 0x0F, 0x05  # CALL0, CALL4, CALL8, CALL12: op0 = 5


@dataclass(frozen=True)
class Pair:
    name: str
    what: str
    old: bytes
    new: bytes


def apps() -> dict[str, bytes]:
    """Apps of released firmware, or else one that is made here, by their names."""
    found = {}
    for name, file in FIRMWARE.items():
        path = SHARED / "firmware" / file
        if path.is_file():
            found[name] = read_app(path.read_bytes(), file).to_bytes()
    return found or {"sample": sample.build_app("esp32")}


def pairs() -> list[Pair]:
    made = []
    for name, app in apps().items():
        made += [
            Pair(name, "constant changed", app, with_constant(app)),
            Pair(name, "function inserted", app, with_function(app)),
            Pair(name, "frozen code changed", app, with_frozen_code(app)),
        ]
    return made


def with_constant(app: bytes) -> bytes:
    """Another version in its texts, and one number in the code."""
    data = bytearray(sample.next_version(app))
    code = _code_segment(Image.from_bytes(app))
    at = code.data_offset + code.data_size // 3 // 4 * 4
    data[at : at + 4] = b"\x40\x42\x0f\x00"
    return Image.from_bytes(bytes(data)).sealed().data


def with_function(app: bytes) -> bytes:
    """A function more in the middle of the code."""
    image = Image.from_bytes(app)
    return _insert(app, _code_segment(image), FUNCTION_SIZE, "function")


def with_frozen_code(app: bytes) -> bytes:
    """Some KiB more in the constants, where frozen modules stand."""
    image = Image.from_bytes(app)
    return _insert(app, image.segments[0], FROZEN_SIZE, "frozen")


def _code_segment(image: Image) -> Segment:
    """The mapped code: the largest segment."""
    return max(image.segments, key=lambda segment: segment.data_size)


def _insert(app: bytes, segment: Segment, size: int, seed: str) -> bytes:
    """``size`` bytes more in the middle of a segment; at its end as many are gone."""
    start, end = segment.data_offset, segment.data_offset + segment.data_size
    middle = start + segment.data_size // 2 // 4 * 4
    address = segment.load_addr + middle - start
    own = random.Random(seed)
    # What is new looks like what is there: pieces of it, in another order.
    pieces = (own.randrange(start, end - 16) for _ in range(size // 16))
    inserted = b"".join(app[at : at + 16] for at in pieces)
    data = bytearray(app[:middle] + inserted + app[middle : end - size] + app[end:])
    _move_words(data, address, segment.load_addr + segment.data_size, size)
    code = _code_segment(Image.from_bytes(app))
    if code == segment:
        _move_calls(data, start, middle, end, size)
    return Image.from_bytes(bytes(data)).sealed().data


def _move_words(data: bytearray, low: int, high: int, size: int) -> None:
    """Add ``size`` to each word that is an address from low to high."""
    words = list(struct.unpack_from(f"<{len(data) // 4}I", data))
    words = [word + size if low <= word < high - size else word for word in words]
    struct.pack_into(f"<{len(words)}I", data, 0, *words)


def _move_calls(data: bytearray, start: int, middle: int, end: int, size: int) -> None:
    """Calls across the inserted code reach further: their 18 bits count words."""
    at = start
    while at < end - 3:
        if middle <= at < middle + size or data[at] & _CALL_MASK != _CALLN:
            at += 1
            continue
        word = int.from_bytes(data[at : at + 3], "little")
        distance = (word >> 6) - ((word >> 23) << 18)
        was = at - size if at >= middle + size else at
        target = (was & ~3) + 4 + 4 * distance
        if start <= target < end and (was < middle) != (target < middle):
            moved = distance + (size // 4 if was < middle else -(size // 4))
            data[at : at + 3] = ((word & 0x3F) | (moved & 0x3FFFF) << 6).to_bytes(3, "little")
        at += 3
