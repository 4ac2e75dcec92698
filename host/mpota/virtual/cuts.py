"""Power cuts at every flash operation of something that a board does, each replayable alone.

A power cut leaves nothing of a board but its flash. So a `Scenario` is played once, its changes
to the flash are recorded, and what a cut at any of them leaves is made from the `Recording`; a
board is powered on again with that, and a `Judge` says what it finds. A point's name,
``update-4k:217:torn``, is all that is needed to try it again.

Where something outlives the cut that is not in the flash (a server that counts what it sends, a
desk with a half-finished job), `power_cut` cuts in earnest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from mpota.errors import UsageError
from mpota.virtual.board import Board, Run
from mpota.virtual.flash import (
    Cut,
    CutMode,
    Effect,
    Operation,
    PowerCut,
    VirtualFlash,
    what_a_cut_leaves,
)

DEFAULT_MODES = (CutMode.BEFORE, CutMode.TORN, CutMode.AFTER)
ALL_MODES = tuple(CutMode)

Seen = TypeVar("Seen")  # what a judge reports of a board after a cut


@dataclass(frozen=True)
class CutPoint:
    """One power cut of one scenario; ``op`` counts its flash operations from 0."""

    scenario: str
    op: int
    mode: CutMode

    def __str__(self) -> str:
        return f"{self.scenario}:{self.op}:{self.mode.value}"

    @classmethod
    def parse(cls, text: str) -> CutPoint:
        """The reverse of ``str()``. Raises UsageError if ``text`` names no point."""
        scenario, _, rest = text.partition(":")
        op, _, mode = rest.partition(":")
        modes = {m.value: m for m in CutMode}
        if not scenario or not op.isdecimal() or mode not in modes:
            raise UsageError(
                f"'{text}' is not a cut point",
                f"write SCENARIO:OPERATION:MODE, mode one of {', '.join(modes)}",
            )
        return cls(scenario, int(op), modes[mode])


# --- what is cut -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """What a scenario did to the flash, operation by operation, from the content ``start`` on."""

    name: str
    start: bytes
    effects: tuple[Effect, ...]

    @property
    def operations(self) -> tuple[Operation, ...]:
        return tuple(effect.operation for effect in self.effects)

    def content(self, point: CutPoint) -> bytes:
        """The flash after the power cut at ``point``.

        Raises UsageError if that is a point of another scenario, or of an operation that this one
        does not come to.
        """
        if point.scenario != self.name or point.op >= len(self.effects):
            raise UsageError(
                f"there is no power cut {point}: "
                f"scenario {self.name} has {len(self.effects)} flash operations, counted from 0"
            )
        flash = bytearray(self.start)
        for operation, after in self.effects[: point.op]:
            flash[operation.offset : operation.offset + operation.size] = after
        operation, after = self.effects[point.op]
        place = slice(operation.offset, operation.offset + operation.size)
        cut = Cut(point.op, point.mode)
        flash[place] = what_a_cut_leaves(cut, operation, bytes(flash[place]), after)
        return bytes(flash)

    def part(self, name: str, start: int, end: int | None = None) -> Recording:
        """The operations from ``start`` to ``end``, as a recording of its own."""
        flash = bytearray(self.start)
        for operation, after in self.effects[:start]:
            flash[operation.offset : operation.offset + operation.size] = after
        return Recording(name, bytes(flash), self.effects[start:end])

    def all_points(self, modes: Iterable[CutMode] = DEFAULT_MODES) -> list[CutPoint]:
        """Every cut."""
        modes = tuple(modes)
        return [CutPoint(self.name, op, mode) for op in range(len(self.effects)) for mode in modes]

    def chosen_points(
        self,
        count: int,
        is_vital: Callable[[Operation], bool] = lambda operation: False,
        modes: Iterable[CutMode] = DEFAULT_MODES,
    ) -> list[CutPoint]:
        """Some ``count`` cuts, the same ones each time.

        All at the first, the last and the vital operations (writes of otadata, say), however many
        these are; the rest spread evenly, the modes in turn.
        """
        modes = tuple(modes)
        ends = (0, len(self.effects) - 1)
        always = {i for i, op in enumerate(self.operations) if i in ends or is_vital(op)}
        points = [CutPoint(self.name, op, mode) for op in sorted(always) for mode in modes]
        others = [op for op in range(len(self.effects)) if op not in always]
        wanted = min(max(0, count - len(points)), len(others))
        spread = [others[i * len(others) // wanted] for i in range(wanted)]
        points += [CutPoint(self.name, op, modes[i % len(modes)]) for i, op in enumerate(spread)]
        return sorted(points, key=lambda point: (point.op, modes.index(point.mode)))


def record_changes(
    name: str,
    flash: VirtualFlash,
    play: Callable[[], object],
    journal: list[Effect] | None = None,
) -> Recording:
    """What ``play`` does to this flash, from its present content on; its count restarts.

    ``journal`` is what it is written in, an empty list that its owner may read meanwhile.
    """
    start = flash.snapshot()
    flash.restart_count()
    journal = [] if journal is None else journal
    flash.journal = journal
    try:
        play()
    finally:
        flash.journal = None
    return Recording(name, start, tuple(journal))


@dataclass(frozen=True)
class Scenario:
    """Something that a board does, from the flash content ``start`` on.

    ``play`` powers the board on, as often as the scenario needs, and returns the last run.
    """

    name: str
    start: bytes
    play: Callable[[Board], Run]

    def record(self, board: Board) -> Recording:
        """Play it without a cut."""
        board.flash.restore(self.start)
        return record_changes(self.name, board.flash, lambda: self.play(board))


class CutNotReachedError(RuntimeError):
    """The block ended before the operation to be cut: nothing was tried, checks prove nothing."""


@contextmanager
def power_cut(flash: VirtualFlash, op: int, mode: CutMode) -> Iterator[None]:
    """The power fails at operation ``op`` of the block, counted from 0; it is back afterwards.

    Where that reaches the block as PowerCut, it ends it. Raises CutNotReachedError if the block
    ends without coming to that operation.
    """
    before = len(flash.operations)
    flash.cut = Cut(before + op, mode)
    try:
        yield
    except PowerCut:
        pass
    finally:
        is_reached, flash.cut = flash.cut is None, None
    if not is_reached:
        done = len(flash.operations) - before
        raise CutNotReachedError(f"no power cut at operation {op}: it ended after {done}")


# --- what is made of it ------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict(Generic[Seen]):
    """What a judge reports of a board: what it has seen, and what is wrong."""

    seen: Seen
    findings: tuple[str, ...] = ()


# Powers on a board whose flash is as the cut left it, as often as it likes.
Judge = Callable[[Board], Verdict[Seen]]


@dataclass(frozen=True)
class Outcome(Generic[Seen]):
    """One power cut, and the verdict on the board after it."""

    point: CutPoint
    verdict: Verdict[Seen]


def try_points(
    recording: Recording, points: Iterable[CutPoint], board: Board, judge: Judge[Seen]
) -> Iterator[Outcome[Seen]]:
    """Have ``board`` suffer each power cut, and judge it.

    What a cut leaves that the next one leaves as well (after an operation, before the next one) is
    judged once.
    """
    content, verdict = b"", None
    for point in points:
        before, content = content, recording.content(point)
        if verdict is None or content != before:
            board.flash.restore(content)
            verdict = judge(board)
        yield Outcome(point, verdict)
