"""Flash in memory over something that is only read: for a look ahead that changes nothing."""

from __future__ import annotations

from typing import Protocol

from mpota.units import SECTOR_SIZE


class _Reader(Protocol):
    def read(self, offset: int, size: int) -> bytes: ...


class MemoryFlash:
    """``size`` bytes of flash whose contents are ``reader``'s until they are written here.

    Offsets out of range read as 0xFF. Follows `mpota.storage.Flash`.
    """

    def __init__(self, reader: _Reader, size: int) -> None:
        self.size = size
        self._reader = reader
        self._sectors: dict[int, bytearray] = {}

    def read(self, offset: int, size: int) -> bytes:
        data = bytearray(self._reader.read(offset, size))
        for start, sector in self._sectors.items():
            first, last = max(start, offset), min(start + SECTOR_SIZE, offset + size)
            if first < last:
                data[first - offset : last - offset] = sector[first - start : last - start]
        return bytes(data)

    def erase(self, offset: int, size: int) -> None:
        for start in range(offset, offset + size, SECTOR_SIZE):
            self._sectors[start] = bytearray(b"\xff" * SECTOR_SIZE)

    def write(self, offset: int, data: bytes) -> None:
        for index, value in enumerate(data, start=offset):
            start = index - index % SECTOR_SIZE
            if start not in self._sectors:
                self._sectors[start] = bytearray(self._reader.read(start, SECTOR_SIZE))
            self._sectors[start][index - start] &= value
