"""Where bytes live: a file, memory, or the flash of a board behind a port."""

from __future__ import annotations

from typing import Protocol


class Reader(Protocol):
    """Bytes at flash addresses."""

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from flash address ``offset``; 0xFF where the contents are unknown."""

    @property
    def chip_revision(self) -> int | None:
        """The revision of the flash's chip, major * 100 + minor; None if no chip is known."""

    @property
    def block_revision(self) -> int | None:
        """The revision of its eFuse block 2, in the same form; None: unknown, or it has none."""


class FlashContents(Reader, Protocol):
    """What a firmware is read from: a file knows a part of the flash, a board all of it."""

    @property
    def base(self) -> int:
        """The first flash address whose content is known."""

    @property
    def end(self) -> int:
        """The first flash address behind the known contents."""


class ReadOnlyFlash(Reader, Protocol):
    """A flash chip that is only read, as by the bootloader's checks."""

    @property
    def size(self) -> int:
        """Bytes of flash."""


class Flash(ReadOnlyFlash, Protocol):
    """The few verbs of NOR flash. Offsets are flash addresses, in bytes."""

    def erase(self, offset: int, size: int) -> None:
        """Set whole sectors to 0xFF; offset and size are multiples of 4 KiB."""

    def write(self, offset: int, data: bytes) -> None:
        """Program erased flash: bits can only be cleared."""
