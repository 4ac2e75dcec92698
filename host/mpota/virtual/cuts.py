"""Power cuts at every flash operation of something that a board does, each replayable alone.

Play a `Scenario` once to count its operations, then again for each operation and each way in
which a cut can hit it, from the same flash content. A point's name, ``update-4k:217:torn``, is
all that is needed to play it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mpota.errors import UsageError
from mpota.virtual.board import Board, End, Run
from mpota.virtual.flash import Cut, CutMode, Operation

DEFAULT_MODES = (CutMode.BEFORE, CutMode.TORN, CutMode.AFTER)


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


@dataclass(frozen=True)
class Scenario:
    """Something that a board does, from a given flash content on.

    ``play`` powers the board on, as often as the scenario needs, and returns the last run; when
    a run ends with a power cut it must return that one.
    """

    name: str
    start: bytes
    play: Callable[[Board], Run]

    def record(self, board: Board) -> tuple[Operation, ...]:
        """Play it without a cut; all its flash operations."""
        board.flash.restore(self.start)
        self.play(board)
        return tuple(board.flash.operations)

    def cut(self, board: Board, point: CutPoint) -> Run:
        """Play it with the cut at ``point``; the board is left as the cut left it.

        Raises RuntimeError if the scenario ends without coming to that operation: then nothing
        was tried, and no check after it means anything.
        """
        board.flash.restore(self.start)
        board.flash.cut = Cut(point.op, point.mode)
        run = self.play(board)
        if run.end is not End.POWER_CUT:
            raise RuntimeError(
                f"{point}: no power cut, the run ended ({run.end.value}) "
                f"after {len(board.flash.operations)} operations\n{run.console}"
            )
        return run


def all_points(
    name: str, operations: Sequence[Operation], modes: Iterable[CutMode] = DEFAULT_MODES
) -> list[CutPoint]:
    """Every cut of a recorded scenario."""
    return [CutPoint(name, op, mode) for op in range(len(operations)) for mode in modes]


def chosen_points(
    name: str,
    operations: Sequence[Operation],
    count: int,
    is_vital: Callable[[Operation], bool] = lambda operation: False,
    modes: Iterable[CutMode] = DEFAULT_MODES,
) -> list[CutPoint]:
    """Some ``count`` cuts of a recorded scenario, the same ones each time.

    All at the first, the last and the vital operations (writes of otadata, say), however many
    these are; the rest spread evenly, in turn before, torn and after.
    """
    modes = tuple(modes)
    last = len(operations) - 1
    always = {i for i, operation in enumerate(operations) if i in (0, last) or is_vital(operation)}
    points = [CutPoint(name, op, mode) for op in sorted(always) for mode in modes]
    others = [op for op in range(len(operations)) if op not in always]
    wanted = min(max(0, count - len(points)), len(others))
    spread = [others[i * len(others) // wanted] for i in range(wanted)]
    points += [CutPoint(name, op, modes[i % len(modes)]) for i, op in enumerate(spread)]
    return sorted(points, key=lambda point: (point.op, modes.index(point.mode)))
