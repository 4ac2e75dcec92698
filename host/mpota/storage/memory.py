"""Flash in memory over something that is only read: for a look ahead that changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from mpota.storage import Reader
from mpota.units import SECTOR_SIZE, align_down


class MemoryFlash:
    """``size`` bytes of flash whose contents are ``reader``'s until they are written here.

    Follows `mpota.storage.Flash`. What is written over is never asked of ``reader``;
    ``written_end`` is the first address behind all that was written, 0 at first.
    """

    def __init__(self, reader: Reader, size: int) -> None:
        self.size = size
        self.written_end = 0
        self.chip_revision = reader.chip_revision
        self.block_revision = reader.block_revision
        self._reader = reader
        self._sectors: dict[int, bytes] = {}

    def read(self, offset: int, size: int) -> bytes:
        return b"".join(self._pieces(offset, offset + size))

    def _pieces(self, offset: int, end: int) -> Iterator[bytes]:
        below = offset  # from here to `start` nothing was written
        for start in range(align_down(offset, SECTOR_SIZE), end, SECTOR_SIZE):
            sector = self._sectors.get(start)
            if sector is None:
                continue
            if below < start:
                yield self._reader.read(below, start - below)
            yield sector[max(0, offset - start) : end - start]
            below = start + SECTOR_SIZE
        if below < end:
            yield self._reader.read(below, end - below)

    def erase(self, offset: int, size: int) -> None:
        for start in range(offset, offset + size, SECTOR_SIZE):
            self._sectors[start] = _BLANK

    def write(self, offset: int, data: bytes) -> None:
        for start, first, piece in _by_sector(offset, data):
            new = (b"\xff" * first + piece).ljust(SECTOR_SIZE, b"\xff")
            self._sectors[start] = _programmed(self.read(start, SECTOR_SIZE), new)
        self.written_end = max(self.written_end, offset + len(data))

    def replace(self, offset: int, data: bytes) -> None:
        """Make ``data`` stand at ``offset``, whatever was there."""
        for start, first, piece in _by_sector(offset, data):
            if len(piece) < SECTOR_SIZE:
                old = self.read(start, SECTOR_SIZE)
                piece = old[:first] + piece + old[first + len(piece) :]
            self._sectors[start] = piece
        self.written_end = max(self.written_end, offset + len(data))


def _by_sector(offset: int, data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """``data`` in pieces: a sector's start, the place of the piece in it, and the piece."""
    at = 0
    while at < len(data):
        start = align_down(offset + at, SECTOR_SIZE)
        first = offset + at - start
        piece = data[at : at + SECTOR_SIZE - first]
        yield start, first, piece
        at += len(piece)


def _programmed(old: bytes, new: bytes) -> bytes:
    """``old`` with the bits cleared that ``new`` has not."""
    both = int.from_bytes(old, "little") & int.from_bytes(new, "little")
    return both.to_bytes(len(old), "little")


_BLANK = b"\xff" * SECTOR_SIZE
