"""Finds the parts of a new firmware in an old one, where some of their bytes may differ.

A build that changes little moves most of the code: the same instructions stand some bytes further
on, but for addresses in them, which change every few bytes. So what is looked for is not equal
strings but alignments: stretches of the new image that the old one has at one distance, with most
bytes equal. As bsdiff does; but anchors come from a table of short strings instead of a sorted
array of all suffixes, and alignments that were in use before are tried first, since code moves in a
few large pieces.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

_SEED_SIZE = 6  # bytes that two places must have in common to be compared
_STEP = 2  # every second place of the old image is in the table: instructions are aligned to 2
_PROBE_SIZE = 32  # bytes that are compared at a place
_GAIN = 8  # more of them must be equal than at the present distance (bsdiff's rule)
_LEAST = 16  # equal bytes of a probe that make an alignment
_PLACES = 16  # of the places with one seed this many are compared
_RECENT = 12  # distances to try first
_CHUNK = 1 << 15
_BACK = 32  # bytes before the place where an alignment fails that may belong to the next one

_DIFFERENT = re.compile(rb"[^\0]")


@dataclass(frozen=True)
class Stretch:
    """``new[start:end]`` is about ``old[start + distance : end + distance]``."""

    start: int
    end: int
    distance: int


def find_stretches(old: bytes, new: bytes) -> list[Stretch]:
    """Stretches that cover all of ``new``; one may reach beyond the ends of ``old``."""
    finder = _Finder(old, new)
    starts = [(0, 0)]  # of a stretch, with its distance
    at = 0
    while at < len(new):
        distance = starts[-1][1]
        at = finder.follow(at, distance)
        found = finder.search(at, distance)
        if found is None:
            break
        at, better = found
        if better != distance:
            cut = finder.cut(max(at - finder.searched - _BACK, starts[-1][0]), at, distance, better)
            starts.append((cut, better))
    ends = [start for start, _ in starts[1:]] + [len(new)]
    return [
        Stretch(start, end, distance)
        for (start, distance), end in zip(starts, ends, strict=True)
        if start < end
    ]


def differences(a: bytes, b: bytes) -> bytes:
    """Zero for each byte that is equal, as far as the shorter one goes."""
    size = min(len(a), len(b))
    combined = int.from_bytes(a[:size], "little") ^ int.from_bytes(b[:size], "little")
    return combined.to_bytes(size, "little")


class _Finder:
    def __init__(self, old: bytes, new: bytes) -> None:
        self._old = old
        self._new = new
        self._recent = [0]
        self.searched = 0  # bytes that the last search has skipped
        # The last place for each sum of a seed, and the one before for each place.
        places = len(old) // _STEP + 1
        self._mask = (1 << places.bit_length()) - 1
        self._last = array("i", [-1]) * (self._mask + 1)
        self._former = array("i", [-1]) * places
        for place in range(0, len(old) - _SEED_SIZE + 1, _STEP):
            key = crc32(old[place : place + _SEED_SIZE]) & self._mask
            self._former[place // _STEP] = self._last[key]
            self._last[key] = place

    def follow(self, at: int, distance: int) -> int:
        """The place from ``at`` on where fewer than half of the bytes are equal."""
        while 0 <= at + distance < len(self._old) and at < len(self._new):
            found = differences(
                self._old[at + distance : at + distance + _CHUNK], self._new[at : at + _CHUNK]
            )
            checked = 0
            for match in _DIFFERENT.finditer(found):
                place = match.start()
                if place >= checked:
                    probe = found[place : place + _PROBE_SIZE]
                    if 2 * probe.count(0) < len(probe):
                        return at + place
                    checked = place + 4
            at += len(found)
        return at

    def search(self, at: int, distance: int) -> tuple[int, int] | None:
        """(place, distance) of the next alignment, which may be the present one again."""
        for place in range(at, len(self._new)):
            self.searched = place - at
            candidates = self._candidates(place, distance)
            equal = 0
            if candidates or self.searched % 8 == 7:
                equal = self._count(place, distance)
                if 4 * equal >= 3 * _PROBE_SIZE:
                    return place, distance
            best = max((self._count(place, c), c) for c in candidates) if candidates else (0, 0)
            if best[0] >= max(equal + _GAIN, _LEAST):
                self._remember(best[1])
                return place, best[1]
        return None

    def cut(self, low: int, high: int, former: int, latter: int) -> int:
        """Where between low and high one alignment should end and the next begin."""
        cut = best = score = 0
        a = self._equal_bytes(low, high, former)
        b = self._equal_bytes(low, high, latter)
        for index, (in_former, in_latter) in enumerate(zip(a, b, strict=True)):
            score += in_former - in_latter
            if score >= best:
                cut, best = index + 1, score
        return low + cut

    def _candidates(self, place: int, distance: int) -> Sequence[int]:
        start = self._new[place : place + 4]
        found = [
            recent
            for recent in self._recent
            if recent != distance
            and place + recent >= 0
            and self._old.startswith(start, place + recent)
        ]
        seed = self._new[place : place + _SEED_SIZE]
        other = self._last[crc32(seed) & self._mask]
        for _ in range(_PLACES):
            if other < 0:
                break
            if other - place != distance and self._old.startswith(seed, other):
                found.append(other - place)
            other = self._former[other // _STEP]
        return found

    def _count(self, place: int, distance: int) -> int:
        """Equal bytes in a probe."""
        other = place + distance
        if other < 0:
            return 0
        return differences(
            self._old[other : other + _PROBE_SIZE], self._new[place : place + _PROBE_SIZE]
        ).count(0)

    def _equal_bytes(self, low: int, high: int, distance: int) -> list[int]:
        return [
            int(0 <= at + distance < len(self._old) and self._old[at + distance] == self._new[at])
            for at in range(low, high)
        ]

    def _remember(self, distance: int) -> None:
        if distance in self._recent:
            self._recent.remove(distance)
        self._recent.insert(0, distance)
        del self._recent[_RECENT:]
