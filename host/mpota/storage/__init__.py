"""Where bytes live: a file, memory, or the flash of a board behind a port."""

from __future__ import annotations

from typing import Protocol


class Flash(Protocol):
    """The few verbs of NOR flash. Offsets are flash addresses, in bytes."""

    @property
    def size(self) -> int:
        """Bytes of flash."""

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``."""

    def erase(self, offset: int, size: int) -> None:
        """Set whole sectors to 0xFF; offset and size are multiples of 4 KiB."""

    def write(self, offset: int, data: bytes) -> None:
        """Program erased flash: bits can only be cleared."""
