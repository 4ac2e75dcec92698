"""A flash chip in a file: NOR rules, power cuts, faults, and the time that a real chip takes.

Stricter than hardware. Silicon keeps a cleared bit cleared without a word when it is programmed
to 1 again; here that is an error, because it always means that somebody forgot to erase.
"""

from __future__ import annotations

import mmap
import os
import random
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from mpota.errors import MpotaError, UsageError
from mpota.units import BLOCK_SIZE, SECTOR_SIZE

PAGE_SIZE = 256  # what one program command can write

# Typical SPI NOR, such as the W25Q32 and GD25Q32 on ESP32 modules.
SECTOR_ERASE_MS = 45.0
BLOCK_ERASE_MS = 150.0
PAGE_PROGRAM_MS = 0.4

_SHARED_MEMORY = Path("/dev/shm")


class FlashError(MpotaError):
    """The caller broke a rule of NOR flash: offset out of range, bit set without an erase."""


class PowerCut(Exception):
    """The power failed. Whoever models the machine that ran on this flash must let it die."""


class Operation(NamedTuple):
    """One command to the chip that changes it: ``erase`` of a sector or a block, or ``write``."""

    kind: str
    offset: int
    size: int

    @property
    def duration_ms(self) -> float:
        """The modelled time."""
        if self.kind == "erase":
            return BLOCK_ERASE_MS if self.size == BLOCK_SIZE else SECTOR_ERASE_MS
        first_page = self.offset // PAGE_SIZE
        last_page = (self.offset + self.size - 1) // PAGE_SIZE
        return (last_page - first_page + 1) * PAGE_PROGRAM_MS


class CutMode(Enum):
    """What the power cut leaves of the operation that it hits."""

    BEFORE = "before"  # nothing happened
    TORN = "torn"  # a prefix of a write, up to some bits of a byte; the first half of an erase
    GARBLED = "garbled"  # any of the bits that the operation changes, each by chance
    AFTER = "after"  # all happened, and nothing after it


@dataclass(frozen=True)
class Cut:
    """A power cut at operation number ``op``, counted from 0."""

    op: int
    mode: CutMode


class Effect(NamedTuple):
    """An operation, and what it made of the bytes that it covers."""

    operation: Operation
    after: bytes


class FaultKind(Enum):
    LOST = "lost"  # what is written there does not arrive: the bytes stay as they were
    ZEROED = "zeroed"  # what is written there arrives as zeros
    STUCK_AT_0 = "stuck-at-0"  # the bits of ``mask`` are 0, whatever is erased or written
    STUCK_AT_1 = "stuck-at-1"  # the bits of ``mask`` are 1, whatever is written


@dataclass(frozen=True)
class FlashFault:
    """A defect in ``size`` bytes from ``offset`` on.

    ``times`` is how many operations that touch these bytes it spoils; None: all of them.
    """

    kind: FaultKind
    offset: int
    size: int = 1
    mask: int = 0xFF
    times: int | None = None


class VirtualFlash:
    """NOR flash in a file. Offsets are flash addresses; sizes are bytes.

    ``operations`` lists what changed the flash since `restart_count`; a `Cut` counts in it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """The chip whose content is the file ``path``; the file's size is the chip's.

        Raises MpotaError if the file cannot be opened or its size is not that of a chip.
        """
        self.path = Path(path)
        try:
            with open(self.path, "r+b") as file:
                size = os.fstat(file.fileno()).st_size
                if not size or size % BLOCK_SIZE:
                    raise MpotaError(
                        f"flash file {self.path} is {size:#x} bytes, "
                        f"a chip has a multiple of {BLOCK_SIZE:#x}"
                    )
                self._memory = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise MpotaError(f"flash file {self.path}: {error.strerror}") from error
        self.size = size
        self.chip_revision: int | None = None  # a board's own counts: mpota.virtual.board
        self.block_revision: int | None = None
        self.cut: Cut | None = None
        self.operations: list[Operation] = []
        self.journal: list[Effect] | None = None  # of each operation, where somebody keeps one
        self._faults: list[_ActiveFault] = []
        # Deletes a temporary file, at the latest when the interpreter exits.
        self._forget: Callable[[], object] | None = None

    @classmethod
    def create(
        cls,
        size: int,
        contents: Mapping[int, bytes] | None = None,
        path: str | os.PathLike[str] | None = None,
    ) -> VirtualFlash:
        """A chip of ``size`` bytes, blank but for ``contents`` (flash offset -> bytes).

        Without a ``path`` the file is a temporary one, in memory where the system has such, and
        goes with `close`. Raises UsageError if the contents do not fit, MpotaError if the file
        cannot be written.
        """
        image = bytearray(b"\xff" * size)
        for offset, data in (contents or {}).items():
            if offset < 0 or offset + len(data) > size:
                raise UsageError(
                    f"{len(data):#x} bytes at {offset:#x} do not fit a flash of {size:#x}"
                )
            image[offset : offset + len(data)] = data
        if path is not None:
            try:
                Path(path).write_bytes(image)
            except OSError as error:
                raise MpotaError(f"flash file {path}: {error.strerror}") from error
            return cls(path)
        directory = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
        with tempfile.NamedTemporaryFile(
            prefix="mpota-flash-", dir=directory, delete=False
        ) as file:
            file.write(image)
        try:
            flash = cls(file.name)
        except BaseException:
            os.unlink(file.name)
            raise
        flash._forget = weakref.finalize(flash, flash.path.unlink, missing_ok=True)
        return flash

    def close(self) -> None:
        """Let go of the file; a temporary one is deleted."""
        self._memory.close()
        if self._forget is not None:
            self._forget()

    def __enter__(self) -> VirtualFlash:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- the verbs -----------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> bytes:
        """Raises FlashError out of range."""
        self._check_range("read", offset, size)
        return self._memory[offset : offset + size]

    def erase(self, offset: int, size: int) -> None:
        """Set whole sectors to 0xFF, by 64 KiB blocks where offset and size allow.

        Each block or sector is an operation of its own, as in esp_flash_api.c:
        esp_flash_erase_region. Raises FlashError out of range or off the sector grid, PowerCut.
        """
        self._check_range("erase", offset, size)
        if offset % SECTOR_SIZE or size % SECTOR_SIZE:
            raise FlashError(
                f"erase of {size:#x} bytes at {offset:#x}: "
                f"only whole sectors of {SECTOR_SIZE:#x} can be erased"
            )
        end = offset + size
        while offset < end:
            is_block = offset % BLOCK_SIZE == 0 and end - offset >= BLOCK_SIZE
            step = BLOCK_SIZE if is_block else SECTOR_SIZE
            self._perform(Operation("erase", offset, step), b"\xff" * step)
            offset += step

    def write(self, offset: int, data: bytes) -> None:
        """Program ``data``: one operation, however long.

        Raises FlashError out of range and where a bit that is 0 would have to become 1, PowerCut.
        """
        self._check_range("write", offset, len(data))
        if not data:
            return
        before = self._memory[offset : offset + len(data)]
        if _to_int(data) & ~_to_int(before):
            at = next(
                i for i, (old, new) in enumerate(zip(before, data, strict=True)) if new & ~old
            )
            raise FlashError(
                f"write at {offset + at:#x} would turn {before[at]:#04x} into {data[at]:#04x}: "
                "programming only clears bits, erase first"
            )
        self._perform(Operation("write", offset, len(data)), bytes(data))

    def _check_range(self, verb: str, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise FlashError(
                f"{verb} of {size:#x} bytes at {offset:#x} is outside the flash of {self.size:#x}"
            )

    def _perform(self, operation: Operation, after: bytes) -> None:
        """Let ``operation`` turn the bytes it covers into ``after``, or into what a cut leaves."""
        number = len(self.operations)
        cut = self.cut if self.cut is not None and self.cut.op == number else None
        if cut is not None:
            self.cut = None  # after it the power is back: the cut happens once
            if cut.mode is CutMode.BEFORE:
                raise PowerCut
        self.operations.append(operation)
        before = self._memory[operation.offset : operation.offset + operation.size]
        for fault in self._faults:
            after = fault.spoil(operation, before, after)
        self._faults = [fault for fault in self._faults if fault.remaining != 0]
        if cut is not None:
            after = what_a_cut_leaves(cut, operation, before, after)
        self._memory[operation.offset : operation.offset + operation.size] = after
        if self.journal is not None:
            self.journal.append(Effect(operation, after))
        if cut is not None:
            raise PowerCut

    # --- cuts, faults, counts ------------------------------------------------------------------

    def inject(self, *faults: FlashFault) -> None:
        """Add defects. They stay until they have struck ``times`` times, or `heal`."""
        self._faults += [_ActiveFault(fault) for fault in faults]

    def heal(self) -> None:
        """Remove all defects; what they spoilt stays."""
        self._faults.clear()

    def restart_count(self) -> None:
        """Forget the operations so far: the next one is number 0."""
        self.operations.clear()

    @property
    def duration_ms(self) -> float:
        """The modelled time of all operations that are counted."""
        return total_ms(self.operations)

    def snapshot(self) -> bytes:
        """The whole content."""
        return self._memory[:]

    def restore(self, content: bytes) -> None:
        """Put a snapshot back, at no cost and beyond all rules; the count restarts.

        Cut and faults go as well: it is another chip now, with that content.
        """
        if len(content) != self.size:
            raise UsageError(f"snapshot is {len(content):#x} bytes, the flash {self.size:#x}")
        self._memory[:] = content
        self.cut = None
        self.heal()
        self.restart_count()


def total_ms(operations: Iterable[Operation]) -> float:
    """The modelled time of these operations."""
    return sum(operation.duration_ms for operation in operations)


class _ActiveFault:
    """A fault on its chip: knows how often it may still strike."""

    def __init__(self, fault: FlashFault) -> None:
        self.fault = fault
        self.remaining = -1 if fault.times is None else fault.times

    def spoil(self, operation: Operation, before: bytes, after: bytes) -> bytes:
        """``after`` with the defect in it, if the operation touches it."""
        fault = self.fault
        first = max(fault.offset, operation.offset) - operation.offset
        end = min(fault.offset + fault.size, operation.offset + operation.size) - operation.offset
        is_erase = operation.kind == "erase"
        if first >= end or (is_erase and fault.kind in (FaultKind.LOST, FaultKind.ZEROED)):
            return after
        self.remaining -= 1
        if fault.kind is FaultKind.LOST:
            defect = before[first:end]
        elif fault.kind is FaultKind.ZEROED:
            defect = bytes(end - first)
        elif fault.kind is FaultKind.STUCK_AT_0:
            defect = bytes(byte & ~fault.mask for byte in after[first:end])
        else:
            defect = bytes(byte | fault.mask for byte in after[first:end])
        return after[:first] + defect + after[end:]


def what_a_cut_leaves(cut: Cut, operation: Operation, before: bytes, after: bytes) -> bytes:
    """What ``cut``, at ``operation``, makes of its bytes, which it would turn into ``after``."""
    match cut.mode:
        case CutMode.BEFORE:
            return before
        case CutMode.TORN:
            return _torn(operation, before, after, cut.op)
        case CutMode.GARBLED:
            return _garbled(before, after, cut.op)
        case CutMode.AFTER:
            return after


def _torn(operation: Operation, before: bytes, after: bytes, number: int) -> bytes:
    """What a cut in the middle leaves; the place varies with the operation's number."""
    if operation.kind == "erase":
        # A block is erased a number of sectors far; within a sector, the first half.
        whole = random.Random(number).randrange(operation.size // SECTOR_SIZE)
        done = whole * SECTOR_SIZE + SECTOR_SIZE // 2
        return after[:done] + before[done:]
    done = random.Random(number).randrange(len(after))
    return (
        after[:done]
        + _garbled(before[done : done + 1], after[done : done + 1], number)
        + (before[done + 1 :])
    )


def _garbled(before: bytes, after: bytes, number: int) -> bytes:
    """Of the bits that differ, each is by chance as before or as after."""
    chance = _to_int(random.Random(number).randbytes(len(before)))
    old, new = _to_int(before), _to_int(after)
    return (old ^ ((old ^ new) & chance)).to_bytes(len(before), "little")


def _to_int(data: bytes) -> int:
    return int.from_bytes(data, "little")
