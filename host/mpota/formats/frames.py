"""Encoded payloads: the content in frames that a board decodes one by one.

All numbers are little-endian. A header, and for a delta what it starts from::

     0   4  magic, "OTAF"                       12   4  size of the base
     4   1  version, 1                          16  32  SHA-256 of the base
     5   1  kind: 1 deflate, 2 delta
     6   1  window of the decoder, log2: 12
     7   1  zero
     8   4  size of the content

Then the frames. Each gives some whole sectors of the content, the last one what is left::

     0   2  size of what follows, at most 6656, of a delta 4640
     2   2  sectors of 4096 bytes that it gives
     4   .  raw deflate (RFC 1951)

A frame uses nothing of an earlier one: each is a place to resume at. Its data end byte-aligned in
an empty block (zlib's Z_FULL_FLUSH), so that a decoder may also run through all of them as one
stream: on a board it is then allocated once. In a compressed payload a frame holds the content; for
what it holds in a delta see formats/delta.py.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mpota.errors import MpotaError
from mpota.units import SECTOR_SIZE, MiB

MAGIC = b"OTAF"
VERSION = 1
DEFLATE, DELTA = 1, 2
WINDOW_BITS = 12
MAX_PACKED = 6656
MAX_PACKED_DELTA = 4640
MAX_SIZE = (1 << 30) - 1
MAX_CONTENT_SIZE = 32 * MiB  # bytes decoded at once on the desk: the largest flash with a table

_HEADER = struct.Struct("<4sBBBBI")
_BASE = struct.Struct("<I32s")
_FRAME = struct.Struct("<HH")


@dataclass(frozen=True)
class Base:
    """What a delta starts from."""

    size: int
    sha256: bytes

    @classmethod
    def of(cls, data: bytes) -> Base:
        return cls(len(data), hashlib.sha256(data).digest())


@dataclass(frozen=True)
class Frame:
    """``packed`` is raw deflate that gives ``sectors`` sectors of the content."""

    packed: bytes
    sectors: int


@dataclass(frozen=True)
class Frames:
    """An encoded payload, taken apart. ``base`` is None for a compressed one."""

    size: int
    frames: tuple[Frame, ...]
    base: Base | None = None
    window_bits: int = WINDOW_BITS

    @classmethod
    def from_bytes(cls, data: bytes) -> Frames:
        """Raises MpotaError for what a board would refuse by its form."""
        if len(data) < _HEADER.size:
            raise MpotaError(f"encoded payload of {len(data)} bytes: its header has {_HEADER.size}")
        magic, version, kind, window_bits, _, size = _HEADER.unpack_from(data)
        if magic != MAGIC or version != VERSION or kind not in (DEFLATE, DELTA):
            raise MpotaError("this is no encoded payload that is known")
        if not 9 <= window_bits <= 15 or not 0 < size <= MAX_SIZE:
            raise MpotaError(f"encoded payload has a window of 2**{window_bits}, {size:,} bytes")
        at, base = _HEADER.size, None
        if kind == DELTA:
            if len(data) < at + _BASE.size:
                raise MpotaError("encoded payload is truncated in its header")
            base = Base(*_BASE.unpack_from(data, at))
            at += _BASE.size
        limit = MAX_PACKED if base is None else MAX_PACKED_DELTA
        return cls(size, tuple(_parse_frames(data, at, size, limit)), base, window_bits)

    def to_bytes(self) -> bytes:
        kind = DEFLATE if self.base is None else DELTA
        pieces = [_HEADER.pack(MAGIC, VERSION, kind, self.window_bits, 0, self.size)]
        if self.base is not None:
            pieces.append(_BASE.pack(self.base.size, self.base.sha256))
        for frame in self.frames:
            pieces += [_FRAME.pack(len(frame.packed), frame.sectors), frame.packed]
        return b"".join(pieces)


def compress(content: bytes) -> Frames:
    """``content`` in frames, each as large as it may get: the fewer, the smaller they are."""
    if not 0 < len(content) <= MAX_SIZE:
        raise MpotaError(f"content of {len(content):,} bytes cannot be compressed")
    return Frames(len(content), tuple(_compress_frames(content)))


def decompress(frames: Frames, limit: int = MAX_CONTENT_SIZE) -> bytes:
    """The content of a compressed payload. Raises MpotaError for damage, and for more than
    ``limit`` bytes: deflate makes a thousand out of one."""
    if frames.size > limit:
        raise MpotaError(f"encoded payload gives {frames.size:,} bytes, {limit:,} are the limit")
    return b"".join(pieces(frames))


def pieces(frames: Frames) -> Iterator[bytes]:
    """The content of a compressed payload, frame by frame. Raises MpotaError for damage."""
    if frames.base is not None:
        raise MpotaError("this is a delta: it gives its content only together with its base")
    left = frames.size
    for frame in frames.frames:
        size = min(left, frame.sectors * SECTOR_SIZE)
        yield inflate(frame, frames.window_bits, size)
        left -= size


def deflate(*parts: bytes) -> bytes:
    """Raw deflate that a frame may hold: it ends byte-aligned and does not end the stream.

    Each of the ``parts`` begins a block: it has Huffman codes of its own.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, -WINDOW_BITS, 9)
    blocks = [packer.compress(part) + packer.flush(zlib.Z_BLOCK) for part in parts[:-1]]
    return b"".join(blocks) + packer.compress(parts[-1]) + packer.flush(zlib.Z_FULL_FLUSH)


def inflate(frame: Frame, window_bits: int, size: int) -> bytes:
    """The ``size`` bytes in a frame. Raises MpotaError if they are not there."""
    try:
        data = zlib.decompressobj(-window_bits).decompress(frame.packed, size + 1)
    except zlib.error as error:
        raise MpotaError(f"encoded payload is damaged: {error}") from None
    if len(data) != size:
        raise MpotaError(f"encoded payload is damaged: a frame does not give {size:,} bytes")
    return data


def _compress_frames(content: bytes) -> Iterator[Frame]:
    at = 0
    sectors = 2  # a guess: about what fits
    while at < len(content):
        sectors, packed = _pack_most(content, at, sectors)
        yield Frame(packed, sectors)
        at += sectors * SECTOR_SIZE


def _pack_most(content: bytes, at: int, guess: int) -> tuple[int, bytes]:
    """(sectors, packed) of the largest frame from ``at`` on; near ``guess``, most likely."""

    def pack(sectors: int) -> bytes:
        return deflate(content[at : at + sectors * SECTOR_SIZE])

    most = min(-(-(len(content) - at) // SECTOR_SIZE), 0xFFFF)
    sectors = min(guess, most)
    packed = pack(sectors)
    while len(packed) > MAX_PACKED:
        sectors -= 1
        packed = pack(sectors)
    step, too_many = 1, most + 1
    while sectors + 1 < too_many:
        if sectors + step >= too_many:
            step = max((too_many - sectors) // 2, 1)
        more = pack(sectors + step)
        if len(more) > MAX_PACKED:
            too_many = sectors + step
        else:
            sectors, packed = sectors + step, more
            step *= 2
    return sectors, packed


def _parse_frames(data: bytes, at: int, size: int, limit: int) -> Iterable[Frame]:
    left = size
    while left > 0:
        if len(data) < at + _FRAME.size:
            raise MpotaError(f"encoded payload is truncated, {left:,} bytes of content are missing")
        packed_size, sectors = _FRAME.unpack_from(data, at)
        at += _FRAME.size
        if not 0 < packed_size <= limit or not 0 < sectors <= -(-left // SECTOR_SIZE):
            raise MpotaError(
                f"encoded payload is damaged: a frame of {packed_size:,} bytes, {sectors} sectors"
            )
        packed = data[at : at + packed_size]
        if len(packed) < packed_size:
            raise MpotaError(f"encoded payload is truncated, {left:,} bytes of content are missing")
        yield Frame(packed, sectors)
        at += packed_size
        left -= sectors * SECTOR_SIZE
    if at < len(data):
        raise MpotaError(f"encoded payload is damaged: {len(data) - at:,} bytes follow its end")
