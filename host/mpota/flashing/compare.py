"""What flash should hold against what it holds: where they differ, and what that looks like."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_SHOWN_RANGES = 8
_PROBE_SIZE = 64  # bytes that must be found again to call the rest shifted
_MAX_SHIFT = 1 << 20
_MOSTLY = 0.9


@dataclass(frozen=True)
class Comparison:
    """``size`` bytes were compared, ``differing`` differ; offsets count from the first byte.

    ``ranges`` are the places (start, end) that differ, ``kinds`` what the differing bytes look
    like, in words, the best explanation first.
    """

    size: int
    differing: int
    ranges: tuple[tuple[int, int], ...]
    kinds: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        return not self.differing

    @property
    def shown_ranges(self) -> tuple[tuple[int, int], ...]:
        return self.ranges[:_SHOWN_RANGES]


def compare(expected: bytes, found: bytes) -> Comparison:
    """Compare byte by byte; ``found`` has at least as many bytes as ``expected``."""
    size = len(expected)
    found = found[:size]
    ranges = tuple(_ranges(expected, found))
    differing = sum(end - start for start, end in ranges)
    if not ranges:
        return Comparison(size, 0, (), ())
    return Comparison(size, differing, ranges, tuple(_kinds(expected, found, ranges)))


def _ranges(expected: bytes, found: bytes) -> Iterator[tuple[int, int]]:
    """Runs of differing bytes. Equal stretches are skipped by blocks, which is what is fast."""
    start = -1
    block = 4096
    for at in range(0, len(expected), block):
        if start < 0 and expected[at : at + block] == found[at : at + block]:
            continue
        pairs = zip(expected[at : at + block], found[at : at + block], strict=True)
        for index, (a, b) in enumerate(pairs, start=at):
            if a != b and start < 0:
                start = index
            elif a == b and start >= 0:
                yield start, index
                start = -1
    if start >= 0:
        yield start, len(expected)


def _kinds(expected: bytes, found: bytes, ranges: tuple[tuple[int, int], ...]) -> Iterator[str]:
    first, last = ranges[0][0], ranges[-1][1]
    total = sum(end - start for start, end in ranges)
    shift = _find_shift(expected, found, first)
    wrong = b"".join(found[start:end] for start, end in ranges)
    erased, zeroed = wrong.count(0xFF), wrong.count(0)
    # A truncation goes on over bytes that are right by chance: all behind its start is filler.
    for value, word in ((0xFF, "erased"), (0, "zeroed")):
        tail = found[first:]
        if tail.count(value) == len(tail) and first == 0:
            yield f"{word}: nothing is there, all {len(expected):,} bytes are {value:#04x}"
            return
        if tail.count(value) == len(tail) and last - first > 1:
            yield (
                f"truncated: right up to {first:,} of {len(expected):,} bytes ({first:#x}), "
                f"all behind it is {word}"
            )
            return
    if shift is not None:
        at, distance = shift
        what = "later" if distance > 0 else "earlier"
        yield (
            f"shifted: from {at:#x} on the right bytes stand {abs(distance):,} bytes "
            f"({abs(distance):#x}) {what} than they should"
        )
        return
    if erased == total:
        yield f"erased: {total:,} bytes are 0xff in {_places(ranges)}"
    elif zeroed == total:
        yield f"zeroed: {total:,} bytes are 0x00 in {_places(ranges)}"
    elif erased + zeroed >= _MOSTLY * total:
        yield f"erased and zeroed: {erased:,} bytes are 0xff, {zeroed:,} are 0x00"
    elif _only_flips(expected, found, ranges):
        yield f"changed bits: {total:,} bytes differ by a bit or two, in {_places(ranges)}"
    elif total >= _MOSTLY * 0.5 * (len(expected) - first) and last == len(expected):
        yield f"other content: from {first:#x} on to the end something else stands there"
    else:
        yield f"other content: {total:,} bytes in {_places(ranges)}"


def _places(ranges: tuple[tuple[int, int], ...]) -> str:
    return "one place" if len(ranges) == 1 else f"{len(ranges):,} places"


def _only_flips(expected: bytes, found: bytes, ranges: tuple[tuple[int, int], ...]) -> bool:
    return all(
        (expected[i] ^ found[i]).bit_count() <= 2
        for start, end in ranges
        for i in range(start, end)
    )


def _find_shift(expected: bytes, found: bytes, first: int) -> tuple[int, int] | None:
    """Where a shift starts, and by how many bytes what follows is too late (or, below 0, early)."""
    # The shift may begin before the first wrong byte, where neighbours are alike by chance.
    for start in range(max(0, first - 4), min(first + 4 * _PROBE_SIZE, len(expected)), 4):
        probe = expected[start : start + _PROBE_SIZE]
        if len(probe) < _PROBE_SIZE or len(set(probe)) < _PROBE_SIZE // 8:
            continue
        at = found.find(probe, max(0, start - _MAX_SHIFT), start + _MAX_SHIFT)
        if at >= 0 and at != start and _mostly_shifted(expected, found, start, at - start):
            return first, at - start
        reverse = found[start : start + _PROBE_SIZE]
        if len(set(reverse)) < _PROBE_SIZE // 8:
            continue
        at = expected.find(reverse, max(0, start - _MAX_SHIFT), start + _MAX_SHIFT)
        if at >= 0 and at != start and _mostly_shifted(expected, found, at, start - at):
            return first, start - at
    return None


def _mostly_shifted(expected: bytes, found: bytes, start: int, distance: int) -> bool:
    size = min(len(expected) - start, len(found) - start - distance)
    if size <= 0:
        return False
    wanted = expected[start : start + size]
    there = found[start + distance : start + distance + size]
    equal = sum(a == b for a, b in zip(wanted, there, strict=True))
    return equal >= _MOSTLY * size
