"""One board of a fleet, and the interface of the sources that tell of boards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Protocol


class BoardStage(Enum):
    """How far a board is with what it is to have; what stands out first comes first."""

    FAILED = "failed"  # refused, given up or rolled back: what ran before runs
    TRIAL = "on trial"  # the new one runs, and is not confirmed
    RESTARTS = "restarts"  # the new one is complete, its first boot is to come
    LOADING = "loading"
    WAITS = "waits"  # for consent, a window, a good moment
    OFFERED = "offered"  # it has not begun
    NEW = "never heard"
    CURRENT = "up to date"  # confirmed; nothing else is wanted


@dataclass(frozen=True)
class Row:
    """What is known of one board. Texts are the board's or the server's own: not to be trusted.

    ``runs``, ``wanted``: releases; None where nobody tells, ``wanted`` also where it is what runs.
    Times are UTC: ``since`` when the stage began, ``heard`` when the board was last heard,
    ``due`` when it had to be heard again at the latest. ``percent``: of LOADING, where it is told.
    ``word``: the last that the board said of it; ``error``: in full, of what failed, else "".
    """

    board: str
    stage: BoardStage
    runs: str | None = None
    wanted: str | None = None
    since: datetime | None = None
    heard: datetime | None = None
    due: datetime | None = None
    percent: int | None = None
    word: str = ""
    error: str = ""
    source: str = ""  # the name of who tells

    def is_silent(self, now: datetime) -> bool:
        """Whether it is silent for longer than it should be."""
        return self.due is not None and self.due < now


class BoardSource(Protocol):
    """Who tells of boards: a server, a broker, a plan. A context manager gives one:
    `mpota.fleet.sources`.
    """

    name: str  # what people call it
    every_s: float  # seconds between reads that it can bear

    def read(self) -> Sequence[Row]:
        """All boards as they are now, in any order; it may wait until it knows.

        Raises MpotaError for an answer that makes no sense, UsageError where nobody answers.
        """
