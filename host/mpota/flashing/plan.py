"""Changes to the flash of a live board: in which order, and what a power cut would leave.

What a plan says of power cuts is computed: the bootloader's model boots the flash as a cut in each
step would leave it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from mpota.bootloader.boot import BootResult, boot
from mpota.errors import MpotaError
from mpota.firmware.changes import Change
from mpota.formats.partition_table import DEFAULT_TABLE_OFFSET
from mpota.storage import ReadOnlyFlash
from mpota.storage.board import BoardFlash
from mpota.storage.memory import MemoryFlash
from mpota.units import BLOCK_SIZE, SECTOR_SIZE

_BLANK = b"\xff" * SECTOR_SIZE


@dataclass(frozen=True)
class Step:
    """Whole sectors from ``offset`` on, ``before`` and ``after``. ``what`` names the place."""

    what: str
    offset: int
    before: bytes = field(repr=False)
    after: bytes = field(repr=False)

    @property
    def size(self) -> int:
        return len(self.after)

    def part(self, start: int, end: int) -> Step:
        """Its bytes from ``start`` to ``end``, which count from its offset."""
        return Step(self.what, self.offset + start, self.before[start:end], self.after[start:end])

    @property
    def is_erase(self) -> bool:
        return self.after.count(0xFF) == len(self.after)


@dataclass(frozen=True)
class Phase:
    """The steps of one place, and which app a power cut in them leaves booting, None: none."""

    what: str
    steps: tuple[Step, ...]
    boots_if_cut: str | None

    @property
    def size(self) -> int:
        return sum(step.size for step in self.steps)


@dataclass(frozen=True)
class Plan:
    """What will be written, in order; ``boots_after`` is the label of the app that then boots.

    ``areas`` are the changes whole, with what is there already: what may be written to before
    somebody wants all of it back.
    """

    phases: tuple[Phase, ...]
    areas: tuple[Step, ...]
    boots_after: str | None

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(step for phase in self.phases for step in phase.steps)

    @property
    def kept_size(self) -> int:
        """XX"""
        return sum(
            SECTOR_SIZE
            for area in self.areas
            for at in range(0, area.size, SECTOR_SIZE)
            if area.after[at : at + SECTOR_SIZE] == area.before[at : at + SECTOR_SIZE] != _BLANK
        )

    @property
    def unsafe(self) -> tuple[Phase, ...]:
        """The phases in which a power cut leaves a board that does not boot."""
        return tuple(p for p in self.phases if p.boots_if_cut is None)


def make_plan(
    flash: ReadOnlyFlash,
    changes: Iterable[Change],
    *,
    table_offset: int = DEFAULT_TABLE_OFFSET,
    must_boot: bool = True,
) -> Plan:
    """The steps that make ``changes``, in the order given; what is there already is left out.

    All that will be overwritten is read. Raises MpotaError, with the bootloader's words, if
    nothing would boot in the end and ``must_boot``.
    """
    areas = tuple(_area(flash, change) for change in changes)
    steps = [step for area in areas for step in _differing(area)]
    after = _boot(flash, steps, table_offset)
    if must_boot and after.starts is None:
        words = after.console[-1] if after.console else "no bootloader"
        raise MpotaError(f"the board would not boot after this: {words}")
    phases = []
    done: list[Step] = []
    for what, group in groupby(steps, key=lambda step: step.what):
        own = tuple(group)
        cuts = [_boot(flash, [*done, *cut], table_offset) for cut in _cuts(own)]
        starts = [_label(cut) for cut in cuts]
        phases.append(Phase(what, own, None if None in starts else starts[0]))
        done += own
    return Plan(tuple(phases), areas, _label(after))


def carry_out(flash: BoardFlash, steps: Iterable[Step]) -> bool:
    """Write what is not there yet; every step is verified. False: all was there already."""
    results = [flash.program(step.offset, step.after, step.what) for step in steps]
    return any(results)


def _area(flash: ReadOnlyFlash, change: Change) -> Step:
    before = flash.read(change.offset, change.size)
    return Step(change.what, change.offset, before, change.data.ljust(change.size, b"\xff"))


def _differing(area: Step) -> Iterator[Step]:
    """The sectors that differ from the flash, neighbours joined.

    In large places gaps are written as well: whole blocks erase faster than their sectors.
    """
    merged_gap = BLOCK_SIZE if area.size > BLOCK_SIZE else 0
    start = end = -1
    for at in range(0, area.size, SECTOR_SIZE):
        if area.before[at : at + SECTOR_SIZE] == area.after[at : at + SECTOR_SIZE]:
            continue
        if start >= 0 and at - end > merged_gap:
            yield area.part(start, end)
            start = -1
        start = at if start < 0 else start
        end = at + SECTOR_SIZE
    if start >= 0:
        yield area.part(start, end)


def _cuts(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """What power cuts in these steps can leave: the first sector erased, or all, or all but one."""
    first, last = steps[0], steps[-1]
    yield [_erased(first, 0, SECTOR_SIZE)]
    yield [_erased(step, 0, step.size) for step in steps]
    yield [*steps[:-1], last, _erased(last, last.size - SECTOR_SIZE, last.size)]


def _erased(step: Step, start: int, end: int) -> Step:
    return Step(step.what, step.offset + start, b"", b"\xff" * (end - start))


def _boot(flash: ReadOnlyFlash, steps: Sequence[Step], table_offset: int) -> BootResult:
    future = MemoryFlash(flash, flash.size)
    for step in steps:
        future.replace(step.offset, step.after)
    return boot(future, table_offset=table_offset)


def _label(result: BootResult) -> str | None:
    return result.starts.label if result.starts else None
