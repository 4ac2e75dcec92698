"""Boards as a hawkBit server knows them.

What all boards run and are to run comes by a few lists: of targets, of the targets of each
distribution set, of actions. What a board said last is one request more for each board, and is
asked for those whose update failed or goes on, up to `_MAX_ASKED` of them at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from urllib.parse import unquote

from mpota.errors import MpotaError
from mpota.fleet.row import BoardStage, Row
from mpota.hawkbit.answers import ActionAnswer, Answer, EntryAnswer, SetAnswer, TargetAnswer
from mpota.hawkbit.client import Client, segment

_MAX_ASKED = 200
_ENTRIES = 20  # the newest of an action: a board says four to six things of an update
_EVERY_S = 5.0
# How hawkBit's own messages begin (RepositoryConstants, AbstractDsAssignmentStrategy).
_SERVER = ("Update Server:", "Device reported status code:", "Assignment initiated by")
_AT_REST = {
    "unknown": BoardStage.NEW,
    "registered": BoardStage.CURRENT,
    "in_sync": BoardStage.CURRENT,
    "error": BoardStage.FAILED,
}
_BY_ENTRY = {
    "retrieved": BoardStage.OFFERED,
    "wait_for_confirmation": BoardStage.WAITS,
    "download": BoardStage.LOADING,
    "downloaded": BoardStage.WAITS,  # of `ota.ddi`: until it may be installed
}
_INSTALLED = " is installed"  # device/ota/ddi_more.py: what it says before the restart


class HawkbitSource:
    """See `mpota.fleet.row.BoardSource`."""

    every_s = _EVERY_S

    def __init__(self, client: Client) -> None:
        self.name = client.place.name
        self._client = client
        self._told: dict[str, str | None] = {}  # by board: the version among its attributes

    def read(self) -> Sequence[Row]:
        targets = [TargetAnswer.of(one) for one in self._client.pages("targets", sort="id:ASC")]
        runs = self._told_by(targets) | self._installed(targets)
        active = self._actions("active==true")
        failed = {target.id for target in targets if target.status == "error"}
        actions = active | self._actions("status==error", failed - active.keys())
        asked = sorted(actions, key=lambda board: board not in failed)[:_MAX_ASKED]
        said = {board: self._entries(actions[board]) for board in asked}
        return [
            self._row(target, runs.get(target.id), actions.get(target.id), said.get(target.id, ()))
            for target in targets
        ]

    def _installed(self, targets: Iterable[TargetAnswer]) -> dict[str, str]:
        """The version that is installed, by board; sets are looked at until all are found."""
        left = {target.id for target in targets if target.installed is not None}
        found: dict[str, str] = {}
        pages = self._client.pages("distributionsets", sort="id:DESC") if left else iter(())
        for wanted in map(SetAnswer.of, pages):
            path = f"distributionsets/{wanted.id}/installedTargets"
            ids = {TargetAnswer.of(one).id for one in self._client.pages(path)}
            found |= dict.fromkeys(ids, wanted.version)
            left -= ids
            if not left:
                break
        return found

    def _told_by(self, targets: Iterable[TargetAnswer]) -> dict[str, str | None]:
        """What boards say themselves that they run, of those that the server installed nothing on.

        Asked once: a board says it anew only after an update.
        """
        found: dict[str, str | None] = {}
        asked = 0
        for target in targets:
            if target.installed is not None or target.heard is None:
                continue
            if target.id not in self._told and asked < _MAX_ASKED:
                asked += 1
                told = self._client.find(f"targets/{segment(target.id)}/attributes")
                version = Answer(told, "attributes").text("version") if told else ""
                if told:
                    self._told[target.id] = version or None
            found[target.id] = self._told.get(target.id)
        return found

    def _actions(self, query: str, boards: Iterable[str] | None = None) -> dict[str, ActionAnswer]:
        """The newest action that matches, by board; if ``boards`` are given, only of these."""
        left = None if boards is None else set(boards)
        found: dict[str, ActionAnswer] = {}
        if left is not None and not left:
            return found
        pages = self._client.pages("actions", q=query, sort="id:DESC", representation="full")
        for action in map(ActionAnswer.of, pages):
            board = unquote(action.board)
            if left is None or board in left:
                found.setdefault(board, action)
            if left is not None and found.keys() >= left:
                break
        return found

    def _entries(self, action: ActionAnswer) -> Sequence[EntryAnswer]:
        """The status entries of an action, the newest first."""
        board = segment(unquote(action.board))
        path = f"targets/{board}/actions/{action.id}/status"
        page = self._client.find(path, sort="id:DESC", limit=_ENTRIES)
        if page is None:  # the board was removed meanwhile
            return ()
        entries = page.get("content") if isinstance(page, dict) else None
        if not isinstance(entries, list):
            raise self._client.nonsense(path, "a page of a list")
        return [EntryAnswer.of(one) for one in entries[:_ENTRIES]]

    def _row(
        self,
        target: TargetAnswer,
        runs: str | None,
        action: ActionAnswer | None,
        said: Sequence[EntryAnswer],
    ) -> Row:
        stage = _AT_REST.get(target.status)
        if stage is None and target.status != "pending":
            raise MpotaError(f"{self.name}: '{target.id}' is {target.status[:40]}")
        if target.heard is None:
            stage = BoardStage.NEW
        elif action is not None and action.is_active:
            stage = _stage(action, said)
        newest = said[0] if said else None
        is_failed = stage is BoardStage.FAILED
        return Row(
            board=target.id,
            stage=stage or BoardStage.OFFERED,
            runs=runs,
            wanted=action.set.rpartition(":")[2] or None if action else None,
            since=(newest and newest.at) or (action and action.changed) or _at_rest(target),
            heard=target.heard,
            due=target.due,
            word=_word(said),
            error=_error(said) if is_failed else "",
            source=self.name,
        )


def _stage(action: ActionAnswer, said: Sequence[EntryAnswer]) -> BoardStage:
    """How far an active action is, by the newest entry that shows it."""
    for number, entry in enumerate(said):
        if any(_INSTALLED in message for message in entry.messages):
            return BoardStage.RESTARTS
        if entry.kind == "running" and number + 1 < len(said):  # the oldest is the server's own
            return BoardStage.LOADING
        if stage := _BY_ENTRY.get(entry.kind):
            return stage
    return _BY_ENTRY.get("" if said else action.status, BoardStage.OFFERED)


def _at_rest(target: TargetAnswer) -> datetime | None:
    return target.installed or target.created


def _word(said: Sequence[EntryAnswer]) -> str:
    """The last that the board said."""
    messages = (message for entry in said for message in reversed(entry.messages))
    return next((message for message in messages if not message.startswith(_SERVER)), "")


def _error(said: Sequence[EntryAnswer]) -> str:
    """What the board said of its failure, else what the server says."""
    for entry in said:
        if entry.kind == "error":
            own = [one for one in entry.messages if not one.startswith(_SERVER)]
            return "; ".join(own or entry.messages) or "failed, without a word"
    return ""
