"""What a server answers, as values: types are checked, texts have an end, times are UTC."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from mpota.errors import MpotaError

_MAX_TEXT = 4000  # characters; metadata has at most as many
_MAX_NUMBER = 1 << 63
_MAX_TIME = 253_402_300_799_000  # ms: the end of the year 9999


class Answer:
    """An object of an answer; ``what`` says which one. Raises MpotaError for another type."""

    def __init__(self, found: object, what: str) -> None:
        if not isinstance(found, dict):
            raise MpotaError(f"the server's answer is not {what}")
        self._found = found
        self._what = what

    def text(self, key: str) -> str:
        return self.optional_text(key) or ""

    def optional_text(self, key: str) -> str | None:
        value = self._take(key, str)
        return None if value is None else value[:_MAX_TEXT]

    def number(self, key: str) -> int:
        value = self.optional_number(key)
        if value is None:
            raise MpotaError(f"the server's answer is not {self._what}: it has no '{key}'")
        return value

    def optional_number(self, key: str) -> int | None:
        value: int | None = self._take(key, int)
        if value is not None and (isinstance(value, bool) or abs(value) > _MAX_NUMBER):
            raise self._wrong(key)
        return value

    def flag(self, key: str) -> bool:
        return bool(self._take(key, bool))

    def time(self, key: str) -> datetime | None:
        """A time from ms since 1970."""
        value = self.optional_number(key)
        if value is None:
            return None
        if not 0 <= value <= _MAX_TIME:
            raise self._wrong(key)
        return datetime.fromtimestamp(value / 1000, timezone.utc)

    def inner(self, key: str) -> Answer | None:
        value = self._take(key, dict)
        return None if value is None else Answer(value, self._what)

    def texts(self, key: str) -> tuple[str, ...]:
        values = self._take(key, list) or []
        return tuple(value[:_MAX_TEXT] for value in values if isinstance(value, str))

    def inners(self, key: str) -> Iterator[Answer]:
        for value in self._take(key, list) or []:
            yield Answer(value, self._what)

    def link(self, name: str) -> Answer | None:
        """The URL of a HAL link, if there is exactly one of that name."""
        links = self.inner("_links")
        return None if links is None else links.inner(name)

    def _take(self, key: str, kind: type) -> Any:
        value = self._found.get(key)
        if value is not None and not isinstance(value, kind):
            raise self._wrong(key)
        return value

    def _wrong(self, key: str) -> MpotaError:
        value = repr(self._found[key])[:80]
        return MpotaError(f"the server's answer is not {self._what}: {key} is {value}")


@dataclass(frozen=True)
class TargetAnswer:
    """A board as the server knows it. ``status``: unknown, registered, pending, in_sync, error."""

    id: str
    status: str
    created: datetime | None
    installed: datetime | None  # when what is installed was
    heard: datetime | None
    due: datetime | None  # when it should have polled; set once that has passed
    token: str | None

    @classmethod
    def of(cls, found: object) -> TargetAnswer:
        answer = Answer(found, "a target")
        poll = answer.inner("pollStatus")
        is_overdue = poll is not None and poll.flag("overdue")
        return cls(
            answer.text("controllerId"),
            answer.text("updateStatus"),
            answer.time("createdAt"),
            answer.time("installedAt"),
            answer.time("lastControllerRequestAt"),
            poll.time("nextExpectedRequestAt") if poll and is_overdue else None,
            answer.optional_text("securityToken"),
        )


@dataclass(frozen=True)
class SetAnswer:
    id: int
    name: str
    version: str
    modules: tuple[int, ...]

    @property
    def label(self) -> str:
        return f"{self.name}:{self.version}"

    @classmethod
    def of(cls, found: object) -> SetAnswer:
        answer = Answer(found, "a distribution set")
        modules = tuple(module.number("id") for module in answer.inners("modules"))
        return cls(answer.number("id"), answer.text("name"), answer.text("version"), modules)


@dataclass(frozen=True)
class ActionAnswer:
    """One board's way to one distribution set, ``set``: NAME:VERSION if the server says so."""

    id: int
    board: str
    set: str
    status: str
    is_active: bool
    changed: datetime | None

    @classmethod
    def of(cls, found: object) -> ActionAnswer:
        answer = Answer(found, "an action")
        target, wanted = answer.link("target"), answer.link("distributionset")
        return cls(
            answer.number("id"),
            target.text("href").rpartition("/")[2] if target else "",
            wanted.text("name") if wanted else "",
            answer.text("status"),
            answer.flag("active"),
            answer.time("lastModifiedAt") or answer.time("createdAt"),
        )


@dataclass(frozen=True)
class EntryAnswer:
    """What happened to an action. ``kind``: retrieved, download, running, error, ..."""

    kind: str
    messages: tuple[str, ...]
    code: int | None
    at: datetime | None

    @classmethod
    def of(cls, found: object) -> EntryAnswer:
        answer = Answer(found, "an entry of an action")
        at = answer.time("reportedAt") or answer.time("timestamp")
        code = answer.optional_number("code")
        return cls(answer.text("type").lower(), answer.texts("messages"), code, at)


@dataclass(frozen=True)
class Counts:
    """Of the boards of a rollout or a group, how many are where."""

    scheduled: int
    running: int
    error: int
    finished: int
    cancelled: int
    notstarted: int

    @classmethod
    def of(cls, answer: Answer) -> Counts:
        found = answer.inner("totalTargetsPerStatus")
        names = cls.__dataclass_fields__
        return cls(**{name: (found.optional_number(name) or 0) if found else 0 for name in names})


@dataclass(frozen=True)
class RolloutAnswer:
    id: int
    name: str
    status: str
    set_id: int
    filter: str
    kind: str
    total: int
    counts: Counts

    @classmethod
    def of(cls, found: object) -> RolloutAnswer:
        answer = Answer(found, "a rollout")
        return cls(
            answer.number("id"),
            answer.text("name"),
            answer.text("status"),
            answer.number("distributionSetId"),
            answer.text("targetFilterQuery"),
            answer.text("type"),
            answer.optional_number("totalTargets") or 0,
            Counts.of(answer),
        )


@dataclass(frozen=True)
class GroupAnswer:
    """``next_at``, ``stop_above``: percent of its boards, as the server has them."""

    id: int
    name: str
    status: str
    total: int
    next_at: str
    stop_above: str
    counts: Counts

    @classmethod
    def of(cls, found: object) -> GroupAnswer:
        answer = Answer(found, "a group of a rollout")
        success, error = answer.inner("successCondition"), answer.inner("errorCondition")
        return cls(
            answer.number("id"),
            answer.text("name"),
            answer.text("status"),
            answer.optional_number("totalTargets") or 0,
            success.text("expression") if success else "",
            error.text("expression") if error else "",
            Counts.of(answer),
        )
