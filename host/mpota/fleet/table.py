"""All boards in one order: what stands out first; and what has changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

from mpota.errors import UsageError
from mpota.fleet.row import BoardSource, BoardStage, Row

SILENT = "silent"
WORDS = (*(stage.value for stage in BoardStage), SILENT)
_ORDER = {stage: number for number, stage in enumerate(BoardStage)}
# Stages that a board is asked to leave by itself: silence in them is worth less than a failure,
# and more than all else.
_SILENT_RANK = _ORDER[BoardStage.FAILED] + 0.5


@dataclass(frozen=True)
class Filter:
    """``only``: of WORDS, any of them; ``boards``: patterns as of files, any of them."""

    only: tuple[str, ...] = ()
    boards: tuple[str, ...] = ()

    @classmethod
    def parse(cls, only: str | None, boards: tuple[str, ...]) -> Filter:
        """``only``: words with commas. Raises UsageError for one that is none."""
        words = tuple(word.strip() for word in only.split(",")) if only else ()
        for word in words:
            if word not in WORDS:
                raise UsageError(f"'{word}' is no stage", ", ".join(WORDS))
        return cls(words, boards)

    def takes(self, row: Row, now: datetime) -> bool:
        words = {row.stage.value} | ({SILENT} if row.is_silent(now) else set())
        return (not self.only or bool(words & set(self.only))) and (
            not self.boards or any(fnmatchcase(row.board, one) for one in self.boards)
        )


def read_all(sources: Iterable[BoardSource]) -> list[Row]:
    """The boards of all of them. Raises what a source does."""
    return [row for source in sources for row in source.read()]


def ordered(rows: Iterable[Row], now: datetime) -> list[Row]:
    """What failed, who is silent, who is at it; those that are up to date come last."""

    def rank(row: Row) -> tuple[float, str, str]:
        order: float = _ORDER[row.stage]
        if row.is_silent(now):
            order = min(order, _SILENT_RANK)
        return order, row.board, row.source

    return sorted(rows, key=rank)


def sums(rows: Sequence[Row], now: datetime) -> str:
    """How many boards are in which stage, in words."""
    counts = Counter(row.stage for row in rows)
    parts = [f"{counts[stage]} {stage.value}" for stage in BoardStage if counts[stage]]
    silent = sum(row.is_silent(now) for row in rows)
    parts += [f"{silent} silent"] if silent else []
    boards = f"{len(rows):,} board{'' if len(rows) == 1 else 's'}"
    return f"{boards}: {', '.join(parts)}" if parts else boards


def to_json(row: Row, now: datetime) -> dict[str, Any]:
    found: dict[str, Any] = {
        **row.__dict__,
        "stage": row.stage.value,
        "silent": row.is_silent(now),
    }
    return {
        key: value.isoformat(timespec="seconds") if isinstance(value, datetime) else value
        for key, value in found.items()
    }


def ago(at: datetime | None, now: datetime) -> str:
    """How long ago, in the largest unit that says it: ``40 s``, ``5 min``, ``3 h``, ``2 d``."""
    if at is None:
        return "-"
    seconds = max(int((now - at).total_seconds()), 0)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (unit == "min" and seconds >= size):
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def changed(
    before: Mapping[tuple[str, str], Row], rows: Iterable[Row], now: datetime
) -> Iterator[Row]:
    """The rows that changed since ``before``, but for times that passed."""
    for row in rows:
        former = before.get(key_of(row))
        if former is None or _said(former, now) != _said(row, now):
            yield row


def key_of(row: Row) -> tuple[str, str]:
    return row.source, row.board


def _said(row: Row, now: datetime) -> tuple[object, ...]:
    silent = row.is_silent(now)
    return row.stage, row.runs, row.wanted, row.percent, row.word, row.error, silent
