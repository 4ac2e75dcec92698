"""Deltas: how a board makes a new app out of the one that it runs, sector by sector, in order.

A delta is an encoded payload (formats/frames.py). What is in each of its frames, once inflated, is
at most 4608 bytes::

     0   2  size of the copies                4   2  number of edits
     2   2  size of the gaps                  6   2  size of the literals

     copies    first the content is put together from the base and from literals: for each piece
               length << 1 | is_literal as a varint; for one of the base also, zigzag, the distance
               of its place from where the former piece ended, which for the first of a frame is
               the place in the content. Literals move that place on by their length, as if the
               base had been read: mostly they stand for it.
     gaps      then it is edited: for each edit, the number of bytes since the end of the former
               one; 255 is followed by the number in three bytes
     values    for each edit two bytes: a number to add to the two bytes there, modulo 65536. An
               edit of the last byte of a sector, or of the content, changes that byte alone, and
               ends behind it.
     literals  the bytes of these pieces

Numbers are little-endian, varints have seven bits a byte, the low ones first. Why edits are sums of
two bytes: code that moves changes the addresses in it, all by the same few amounts. Measured on
builds of MicroPython, that makes smaller deltas than sums of single bytes, of three or of four.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from mpota.errors import MpotaError
from mpota.formats.delta_match import Stretch, differences, find_stretches
from mpota.formats.frames import MAX_CONTENT_SIZE, MAX_SIZE, Base, Frame, Frames, deflate
from mpota.units import SECTOR_SIZE, align_down, align_up

MAX_UNPACKED = 4608

_HEAD = struct.Struct("<HHHH")
_FAR = 255
# Where this many bytes differ, with few equal ones between them, literals are smaller than edits.
_CLUSTER = re.compile(rb"[^\0](?:\0?[^\0]){11,}")
_NEVER = re.compile(rb"(?!)")
_FEW = 100  # edits: with fewer in a sector no other way to encode it is tried
_DIFFERENT = re.compile(rb"[^\0]")
_EDIT_SIZE = 3  # bytes, if it is near the former one
_FAR_SIZE = 3  # more, if not
_PIECE_SIZE = 8  # at most


@dataclass(frozen=True)
class Piece:
    """``size`` bytes of the content: the base's from offset ``place`` on, or ``literal``."""

    size: int
    place: int
    literal: bytes | None = None

    def is_followed_by(self, other: Piece) -> bool:
        """Whether both are of the base, and in one piece there."""
        return self.literal is None is other.literal and self.place + self.size == other.place


@dataclass
class _Code:
    """The code in a frame, or in a part of one. ``start``: the frame's offset in the content."""

    start: int
    sectors: int = 0
    pieces: list[Piece] = field(default_factory=list)
    edits: list[tuple[int, int]] = field(default_factory=list)  # (place in the content, sum)

    @property
    def size(self) -> int:
        """Bytes that it takes at most."""
        literals = sum(len(piece.literal or b"") for piece in self.pieces)
        far = sum(b - a >= _FAR for (a, _), (b, _) in zip(self.edits, self.edits[1:], strict=False))
        edits = _EDIT_SIZE * len(self.edits) + _FAR_SIZE * (far + 1)
        return _HEAD.size + _PIECE_SIZE * len(self.pieces) + literals + edits

    def add(self, other: _Code) -> None:
        for piece in other.pieces:
            last = self.pieces[-1] if self.pieces else None
            if last and last.is_followed_by(piece):
                self.pieces[-1] = Piece(last.size + piece.size, last.place)
            else:
                self.pieces.append(piece)
        self.edits += other.edits
        self.sectors += other.sectors

    def to_parts(self) -> list[bytes]:
        """The code is these one after the other."""
        copies, literals = bytearray(), bytearray()
        place = self.start
        for piece in self.pieces:
            copies += _varint(piece.size << 1 | (piece.literal is not None))
            if piece.literal is None:
                copies += _zigzag(piece.place - place)
                place = piece.place + piece.size
            else:
                literals += piece.literal
                place += piece.size
        gaps, values = bytearray(), bytearray()
        end = self.start
        for at, value in self.edits:
            gaps += _gap(at - end)
            values += value.to_bytes(2, "little")
            end = at + (1 if at % SECTOR_SIZE == SECTOR_SIZE - 1 else 2)
        head = _HEAD.pack(len(copies), len(gaps), len(self.edits), len(literals))
        parts = (head + copies, bytes(gaps), bytes(values), bytes(literals))
        return [part for part in parts if part]

    def pack(self) -> bytes:
        """The code deflated, in as many blocks as make it smallest."""
        return min((deflate(*blocks) for blocks in _groups(self.to_parts())), key=len)


def make_delta(old: bytes, new: bytes) -> Frames:
    """A delta from ``old`` to ``new``. Raises MpotaError if one of them is empty or too large."""
    for data, what in ((old, "old"), (new, "new")):
        if not 0 < len(data) <= MAX_SIZE:
            raise MpotaError(f"{what} file of {len(data):,} bytes: no delta can be made of it")
    frames = []
    code = _Code(0)
    distance = 0
    for start, stretches in _by_sector(find_stretches(old, new)):
        sector, distance = _best_sector(old, new, stretches, distance)
        if code.size + sector.size - _HEAD.size > MAX_UNPACKED:
            frames.append(Frame(code.pack(), code.sectors))
            code = _Code(start)
        code.add(sector)
    frames.append(Frame(code.pack(), code.sectors))
    return Frames(len(new), tuple(frames), Base.of(old))


def apply_delta(old: bytes, delta: Frames) -> bytes:
    """The new file. Raises MpotaError if the delta is damaged or starts from something else."""
    if delta.base is None:
        raise MpotaError("this is a compressed file, no delta")
    if delta.base != Base.of(old):
        raise MpotaError(
            f"the delta starts from {delta.base.size:,} bytes with SHA-256 "
            f"{delta.base.sha256.hex()[:16]}..., this are {len(old):,} others"
        )
    if delta.size > MAX_CONTENT_SIZE:
        raise MpotaError(
            f"the delta gives {delta.size:,} bytes, {MAX_CONTENT_SIZE:,} are the limit"
        )
    new = bytearray()
    for frame in delta.frames:
        size = min(frame.sectors * SECTOR_SIZE, delta.size - len(new))
        try:
            new += _apply_frame(old, _unpack(frame, delta.window_bits), len(new), size)
        except (IndexError, struct.error):
            raise MpotaError("the delta is damaged: a frame ends too early") from None
    return bytes(new)


def _unpack(frame: Frame, window_bits: int) -> bytes:
    import zlib

    try:
        return zlib.decompressobj(-window_bits).decompress(frame.packed, MAX_UNPACKED)
    except zlib.error as error:
        raise MpotaError(f"the delta is damaged: {error}") from None


def _apply_frame(old: bytes, code: bytes, start: int, size: int) -> bytes:
    copies_size, gaps_size, edits, literals_size = _HEAD.unpack_from(code)
    gaps = _HEAD.size + copies_size
    values = gaps + gaps_size
    literals = values + 2 * edits
    if literals + literals_size != len(code):
        raise MpotaError("the delta is damaged: the parts of a frame are not its size")
    content = bytearray()
    at, place = _HEAD.size, start
    while len(content) < size:
        number, at = _read_varint(code, at)
        count = number >> 1
        if number & 1:
            piece = code[literals : literals + count]
            literals += count
        else:
            distance, at = _read_varint(code, at)
            place += -((distance + 1) >> 1) if distance & 1 else distance >> 1
            piece = old[place : place + count] if place >= 0 else b""
        if not 0 < count == len(piece) <= size - len(content):
            raise MpotaError(f"the delta is damaged: it has a piece of {count:,} bytes")
        content += piece
        place += count
    at = 0
    for index in range(values, values + 2 * edits, 2):
        gap, gaps = _read_gap(code, gaps)
        at += gap
        is_last = at == size - 1 or at % SECTOR_SIZE == SECTOR_SIZE - 1
        width = 1 if is_last else 2
        value = int.from_bytes(content[at : at + width], "little")
        value += int.from_bytes(code[index : index + 2], "little")
        if at >= size:
            raise MpotaError("the delta is damaged: an edit is behind its frame")
        content[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
        at += width
    return bytes(content)


def _by_sector(stretches: list[Stretch]) -> Iterator[tuple[int, list[Stretch]]]:
    """(start, stretches) of each sector of the content."""
    found: list[Stretch] = []
    sector = 0
    for stretch in stretches:
        at = stretch.start
        while at < stretch.end:
            end = min(stretch.end, align_up(at + 1, SECTOR_SIZE))
            start = align_down(at, SECTOR_SIZE)
            if start != sector:
                yield sector, found
                sector, found = start, []
            found.append(Stretch(at, end, stretch.distance))
            at = end
    yield sector, found


def _best_sector(
    old: bytes, new: bytes, stretches: list[Stretch], former: int
) -> tuple[_Code, int]:
    """The code for a sector, whichever way packs best, and most of its content's distance.

    As the stretches say, or at one distance throughout, perhaps the ``former`` sector's: in a table
    of addresses, many edits that are alike take less than many pieces with fewer edits.
    """
    start, end = stretches[0].start, stretches[-1].end
    longest = max(stretches, key=lambda stretch: stretch.end - stretch.start).distance
    edited = _describe(old, new, stretches, _NEVER)
    if len(edited.edits) < _FEW and len(edited.pieces) == 1:
        return edited, longest
    ways = [(_Code(start, 1, [Piece(end - start, start, new[start:end])]), longest)]
    plans = [(stretches, longest)]
    for distance in dict.fromkeys((longest, former)):
        plan = [Stretch(start, end, distance)]
        if plan != stretches:
            plans.append((plan, distance))
    for plan, distance in plans:
        for literal in (_NEVER, _CLUSTER):
            for alignment in (1, 2):
                ways.append((_describe(old, new, plan, literal, alignment), distance))
    fitting = [way for way in ways if way[0].size <= MAX_UNPACKED]
    return min(fitting, key=lambda way: len(deflate(*way[0].to_parts())))


def _describe(
    old: bytes,
    new: bytes,
    stretches: list[Stretch],
    literal: re.Pattern[bytes],
    alignment: int = 1,
) -> _Code:
    """The code for a sector; ``literal`` finds what is not to be edited, in the differences."""
    code = _Code(stretches[0].start, 1)
    content = bytearray()
    for stretch in stretches:
        low = min(max(stretch.start, -stretch.distance), stretch.end)
        high = max(min(stretch.end, len(old) - stretch.distance), low)
        found = differences(old[low + stretch.distance : high + stretch.distance], new[low:high])
        spans = [(low + m.start(), low + m.end()) for m in literal.finditer(found)]
        # Behind the end of the old image there are only literals.
        outer = [(stretch.start, low), *spans, (high, stretch.end), (stretch.end, stretch.end)]
        at = stretch.start
        for start, stop in outer:
            if at < start:
                code.pieces.append(Piece(start - at, at + stretch.distance))
                content += old[at + stretch.distance : start + stretch.distance]
            if start < stop:
                code.pieces.append(Piece(stop - start, 0, new[start:stop]))
                content += new[start:stop]
            at = max(at, stop)
    code.edits += _edits(bytes(content), new, code.start, stretches[-1].end, alignment)
    return code


def _edits(
    made: bytes, new: bytes, first: int, end: int, alignment: int
) -> Iterator[tuple[int, int]]:
    """What turns the bytes ``made`` into ``new[first:end]``.

    An edit begins at a byte that differs, or with an alignment of 2 at an even one, as fields of
    RISC-V's instructions do.
    """
    found = differences(made, new[first:end])
    at = 0
    while match := _DIFFERENT.search(found, at):
        at = max(at, align_down(match.start(), alignment))
        width = 1 if (first + at) % SECTOR_SIZE == SECTOR_SIZE - 1 or first + at == end - 1 else 2
        value = int.from_bytes(new[first + at : first + at + width], "little")
        value -= int.from_bytes(made[at : at + width], "little")
        yield first + at, value % (1 << 8 * width)
        at += width


def _groups(parts: list[bytes]) -> Iterator[list[bytes]]:
    """All ways to put neighbours together."""
    first, *others = parts
    if not others:
        yield parts
        return
    for groups in _groups(others):
        yield [first, *groups]
        yield [first + groups[0], *groups[1:]]


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


def _zigzag(number: int) -> bytes:
    return _varint(number << 1 if number >= 0 else (-number << 1) - 1)


def _gap(number: int) -> bytes:
    return bytes([number]) if number < _FAR else bytes([_FAR]) + number.to_bytes(3, "little")


def _read_varint(code: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while code[at] & 0x80:
        number |= (code[at] & 0x7F) << shift
        shift += 7
        at += 1
    return number | code[at] << shift, at + 1


def _read_gap(code: bytes, at: int) -> tuple[int, int]:
    if code[at] < _FAR:
        return code[at], at + 1
    return int.from_bytes(code[at + 1 : at + 4], "little"), at + 4
