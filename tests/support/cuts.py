"""Power cuts in tests: which are tried, and what is said of those that fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from mpota.virtual.board import Board
from mpota.virtual.cuts import DEFAULT_MODES, CutPoint, Recording, Scenario, Verdict, try_points
from mpota.virtual.flash import CutMode, Operation

_SHOWN = 5  # of the cuts that fail

# The cuts of a recording that are tried, and, with True, all that there are.
Choice = Callable[[Recording, bool], list[CutPoint]]


def some(
    count: int,
    is_vital: Callable[[Operation], bool] = lambda operation: False,
    modes: Sequence[CutMode] = DEFAULT_MODES,
) -> Choice:
    """`Recording.chosen_points`."""

    def choose(recording: Recording, is_all: bool) -> list[CutPoint]:
        if is_all:
            return recording.all_points(modes)
        return recording.chosen_points(count, is_vital, modes)

    return choose


@dataclass(frozen=True)
class Cuts:
    """The power cuts of one test; conftest.py has the fixture."""

    config: pytest.Config
    record_property: Callable[[str, object], None]

    @property
    def is_one(self) -> bool:
        """With ``--cut``, which names one: then not all that may be seen will be."""
        return bool(self.config.getoption("--cut"))

    def skip_unless_named(self, name: str) -> None:
        """Skip the test if ``--cut`` is for another scenario."""
        if self.is_one and self._named().scenario != name:
            pytest.skip(f"--cut names another scenario than {name}")

    def _named(self) -> CutPoint:
        return CutPoint.parse(self.config.getoption("--cut"))

    def points(self, recording: Recording, choose: Choice) -> list[CutPoint]:
        """What is to be tried, by the options; it is counted."""
        if self.is_one:
            points = [self._named()]
        else:
            points = choose(recording, self.config.getoption("--all-cuts"))
        assert points, f"{recording.name} does nothing to the flash"
        self.record_property("power cuts", len(points))
        return points

    def try_all(
        self, scenario: Scenario, board: Board, judge: Callable[[Board], str], choose: Choice
    ) -> Counter[str]:
        """Cut ``scenario``; how often ``judge`` saw what. Fails with the ids of where it failed."""
        self.skip_unless_named(scenario.name)
        recording = scenario.record(board)
        points = self.points(recording, choose)
        outcomes = list(try_points(recording, points, board, _told(judge)))
        failed = [one for one in outcomes if one.verdict.findings]
        texts = [f"--cut {one.point}\n{one.verdict.findings[0]}" for one in failed[:_SHOWN]]
        assert not failed, f"{len(failed)} of {len(points)} cuts\n" + "\n".join(texts)
        return Counter(one.verdict.seen for one in outcomes)


def _told(judge: Callable[[Board], str]) -> Callable[[Board], Verdict[str]]:
    def tell(board: Board) -> Verdict[str]:
        try:
            return Verdict(judge(board))
        except (AssertionError, pytest.fail.Exception) as error:
            return Verdict("", (str(error),))

    return tell
