"""Boards of a plan of ``mpota deploy``, asked one by one: by network those that listen, the others
at their REPL, which stops their program for a moment and is done once.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from mpota.errors import MpotaError
from mpota.fleet.row import BoardStage, Row
from mpota.push.deploy import DeployPlan, PlannedBoard
from mpota.push.repl import Session
from mpota.push.scan import STATES, FoundBoard, ask, parse_address
from mpota.push.schemes import has_repl
from mpota.push.serial import Status

_EVERY_S = 5.0
_ASK_S = 2.0
_AT_ONCE = 16
_BY_STATE = (BoardStage.CURRENT, BoardStage.TRIAL, BoardStage.LOADING, BoardStage.RESTARTS)
_STAGES = dict(zip(STATES, _BY_STATE, strict=True))


class PlanSource:
    """See `mpota.fleet.row.BoardSource`."""

    every_s = _EVERY_S

    def __init__(self, name: str, targets: tuple[PlannedBoard, ...]) -> None:
        self.name = name
        self._targets = targets
        self._known: dict[str, Row] = {}

    @classmethod
    def open(cls, path: str) -> PlanSource:
        """Raises UsageError for what is no plan."""
        return cls(path, DeployPlan.open(Path(path)).targets)

    def read(self) -> Sequence[Row]:
        wanted = [t for t in self._targets if t.name not in self._known or not has_repl(t.port)]
        with ThreadPoolExecutor(min(_AT_ONCE, len(wanted) or 1)) as pool:
            rows = pool.map(self._row, wanted)
            self._known |= {row.board: row for row in rows}
        return list(self._known.values())

    def _row(self, target: PlannedBoard) -> Row:
        now = datetime.now(timezone.utc)
        former = self._known.get(target.name, Row(target.name, BoardStage.NEW, source=self.name))
        try:
            found = _at_repl(target) if has_repl(target.port) else _by_network(target)
        except MpotaError as error:
            return replace(former, due=now, word=str(error))
        if found.stage is former.stage and former.since is not None:
            return replace(found, since=former.since, heard=now, source=self.name)
        return replace(found, since=now, heard=now, source=self.name)


def _wanted(target: PlannedBoard) -> str | None:
    """The version that the plan gives a board: the release's, or MicroPython's of a bare app;
    None if it gives none, or names a URL."""
    package = target.package
    if package is None or package.url is not None:
        return None
    if package.release:
        return package.release.get("version")
    return package.version


def _at_repl(target: PlannedBoard) -> Row:
    with Session(target.port) as session:
        status = Status.read(session)
    slot = status.slot(status.running)
    app = slot.get("micropython") or slot.get("version") or status.running
    runs = status.release.get("version") or app.partition(" ")[0]
    if not status.is_confirmed:
        stage = BoardStage.TRIAL
    elif status.boot != status.running or status.waiting:
        stage = BoardStage.RESTARTS
    elif target.package is None or status.runs(target.package):
        stage = BoardStage.CURRENT
    else:
        stage = BoardStage.OFFERED
    return _told(target, stage, str(runs))


def _by_network(target: PlannedBoard) -> Row:
    scheme, _, address = target.port.partition("://")
    if scheme != "tcp":
        return Row(
            target.name, BoardStage.NEW, wanted=_wanted(target), word="asked only to update it"
        )
    found = ask([parse_address(address)], _ASK_S)
    if not found:
        raise MpotaError("no answer")
    return _of_answer(target, found[0])


def _of_answer(target: PlannedBoard, board: FoundBoard) -> Row:
    stage = _STAGES.get(board.state or "", BoardStage.CURRENT)
    runs = (board.release or "").rpartition(" ")[2] or board.runs
    wanted = _wanted(target)
    if stage is BoardStage.CURRENT and wanted not in (None, runs):
        stage = BoardStage.OFFERED
    return _told(target, stage, runs)


def _told(target: PlannedBoard, stage: BoardStage, runs: str | None) -> Row:
    wanted = _wanted(target)
    return Row(target.name, stage, runs, None if wanted == runs else wanted)
