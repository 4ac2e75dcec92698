"""What a hawkBit server knows: targets, modules, sets, actions; and what an operator does to them.

Plain values. Whatever talks to it, devices by `device`, people by an API of their own, works on
the same `State`. Times are ms since 1970, names and words are hawkBit's.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from mpota.errors import UsageError

MAX_ID = 128  # characters of a controllerId, and of a token
MAX_MESSAGE = 512  # characters of a message; what is longer is split

ForceType = Literal["forced", "soft", "timeforced", "downloadonly"]
ActionStatus = Literal[
    "scheduled", "wait_for_confirmation", "running", "retrieved", "downloaded", "finished", "error",
    "canceling", "canceled",
]  # fmt: skip
EntryType = Literal[
    "retrieved", "download", "downloaded", "running", "warning", "canceled", "canceling",
    "finished", "error", "wait_for_confirmation",
]  # fmt: skip
UpdateStatus = Literal["unknown", "registered", "pending", "in_sync", "error"]

# The keys of PUT /rest/v1/system/configs/{key}, as a new tenant has them.
DEFAULT_CONFIG: Mapping[str, str | bool] = {
    "pollingTime": "00:05:00",
    "authentication.targettoken.enabled": False,
    "authentication.gatewaytoken.enabled": False,
    "authentication.gatewaytoken.key": "",
    "user.confirmation.flow.enabled": False,
    "repository.actions.autoclose.enabled": False,
}


class Refusal(Exception):
    """The server does not do that: ``status`` is what it answers by HTTP."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text or str(status))
        self.status = status


@dataclass(frozen=True)
class Artifact:
    """A file of a module."""

    filename: str
    data: bytes

    @cached_property
    def hashes(self) -> dict[str, str]:
        return {
            name: hashlib.new(name, self.data).hexdigest() for name in ("sha1", "md5", "sha256")
        }


@dataclass
class Module:
    """A software module. ``metadata``: key, value, whether targets see it."""

    id: int
    type: str
    name: str
    version: str
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    metadata: list[tuple[str, str, bool]] = field(default_factory=list)
    encrypted: bool = False


@dataclass
class DistributionSet:
    id: int
    name: str
    version: str
    type: str
    modules: list[Module]
    locked: bool = False  # once it is assigned


@dataclass
class Target:
    """A device. ``installed_at``: when ``installed`` was, as the device said or the server saw."""

    id: str
    token: str
    name: str = ""
    created_by: str = "admin"
    update_status: UpdateStatus = "unknown"
    attributes: dict[str, str] = field(default_factory=dict)
    wants_attributes: bool = True
    auto_confirm: bool = False
    assigned: DistributionSet | None = None
    installed: DistributionSet | None = None
    installed_at: int | None = None
    polled_at: int | None = None
    address: str | None = None
    created_at: int = 0


@dataclass(frozen=True)
class StatusEntry:
    """One entry in an action's history. ``timestamp``: ms, by the device's clock if it sent one."""

    type: EntryType
    messages: tuple[str, ...]
    timestamp: int
    reported_at: int
    code: int | None = None


@dataclass
class Action:
    """One target's way to one set.

    ``window``: whether its maintenance window is open, None if it has none.
    """

    id: int
    target: Target
    set: DistributionSet
    force_type: ForceType
    force_time: int = 0
    weight: int = 1000
    window: bool | None = None
    status: ActionStatus = "running"
    active: bool = True
    entries: list[StatusEntry] = field(default_factory=list)
    code: int | None = None  # of the last entry that had one

    @property
    def is_cancelling(self) -> bool:
        return self.active and self.status == "canceling"

    @property
    def types(self) -> list[EntryType]:
        """The history in a word each, the oldest first."""
        return [entry.type for entry in self.entries]

    @property
    def messages(self) -> list[str]:
        return [message for entry in self.entries for message in entry.messages]


class State:
    """A tenant. Its dicts may be read as they are; the methods keep them consistent."""

    def __init__(
        self,
        tenant: str = "DEFAULT",
        config: Mapping[str, str | bool] | None = None,
        now: Callable[[], int] | None = None,
    ) -> None:
        self.tenant = tenant
        self.config: dict[str, str | bool] = {**DEFAULT_CONFIG, **(config or {})}
        self.now = now or (lambda: int(time.time() * 1000))
        self.targets: dict[str, Target] = {}
        self.modules: dict[int, Module] = {}
        self.sets: dict[int, DistributionSet] = {}
        self.actions: dict[int, Action] = {}
        self.mirror = ""  # the URL below which devices are told to download, if not here

    # --- what there is

    def add_target(
        self, id: str, token: str | None = None, name: str = "", created_by: str = "admin"
    ) -> Target:
        """A device that may come. Raises Refusal (400, 409)."""
        token = token or secrets.token_hex(16)
        if not 0 < len(id) <= MAX_ID or any(letter.isspace() for letter in id):
            raise Refusal(400, f"a controllerId is 1 to {MAX_ID} characters without blanks")
        if len(token) > MAX_ID:
            raise Refusal(400, f"a token is at most {MAX_ID} characters")
        if id in self.targets:
            raise Refusal(409, f"there is a target {id}")
        target = Target(id, token, name or id, created_by, created_at=self.now())
        self.targets[id] = target
        return target

    def remove_target(self, id: str) -> None:
        """With its actions. Raises Refusal (404)."""
        if self.targets.pop(id, None) is None:
            raise Refusal(404, f"there is no target {id}")
        for number in [a.id for a in self.actions.values() if a.target.id == id]:
            del self.actions[number]

    def add_module(self, name: str, version: str, type: str = "os") -> Module:
        """Raises Refusal (409)."""
        if any((m.name, m.version, m.type) == (name, version, type) for m in self.modules.values()):
            raise Refusal(409, f"there is a module {name} {version}")
        module = Module(_next(self.modules), type, name, version)
        self.modules[module.id] = module
        return module

    def add_artifact(self, module: Module, filename: str, data: bytes) -> Artifact:
        """Raises Refusal (400 for an empty file, 409)."""
        if not data or not filename:
            raise Refusal(400, "an artifact has a name and is not empty")
        if filename in module.artifacts:
            raise Refusal(409, f"the module has a file {filename}")
        artifact = module.artifacts[filename] = Artifact(filename, data)
        return artifact

    def add_set(
        self, name: str, version: str, modules: list[Module], type: str = "os"
    ) -> DistributionSet:
        """Raises Refusal (409)."""
        if any((s.name, s.version) == (name, version) for s in self.sets.values()):
            raise Refusal(409, f"there is a distribution set {name} {version}")
        made = DistributionSet(_next(self.sets), name, version, type, list(modules))
        self.sets[made.id] = made
        return made

    def publish(self, name: str, version: str, files: Mapping[str, bytes]) -> DistributionSet:
        """A set of one module with these files, all of one name and version. Raises Refusal."""
        module = self.add_module(name, version)
        for filename, data in files.items():
            self.add_artifact(module, filename, data)
        return self.add_set(name, version, [module])

    # --- actions

    def assign(
        self,
        set: DistributionSet,
        target: Target,
        type: ForceType = "forced",
        *,
        force_time: int = 0,
        weight: int = 1000,
        window: bool | None = None,
        confirmation: bool = True,
        start: bool = True,
    ) -> Action | None:
        """A new action, None if the set is assigned already.

        ``window``: see `Action`. ``confirmation``: whether the device's user has to consent, where
        the tenant has that flow. ``start``: off for an action of a rollout, which `start` starts.
        """
        if target.assigned is set and start:
            return None
        set.locked = True
        action = Action(
            _next(self.actions), target, set, type, force_time, weight, window,
            status="scheduled", active=False,
        )  # fmt: skip
        self.actions[action.id] = action
        if start:
            self.start(action, confirmation)
        return action

    def start(self, action: Action, confirmation: bool = True) -> None:
        """Offer a scheduled action: those before it are cancelled. Raises Refusal (405)."""
        if action.status != "scheduled":
            raise Refusal(405, f"action {action.id} is {action.status}")
        for older in list(self.active(action.target)):
            if self.config["repository.actions.autoclose.enabled"]:
                self._end(older, "canceled", "closed by a newer action")
            elif not older.is_cancelling:
                self._cancel(older)
        action.active = True
        action.target.assigned = action.set
        action.target.update_status = "pending"
        flow = bool(self.config["user.confirmation.flow.enabled"])
        if flow and confirmation and not action.target.auto_confirm:
            action.status = "wait_for_confirmation"
            self.note(action, "wait_for_confirmation", "waits for consent")
        else:
            action.status = "running"
            self.note(action, "running", "assigned")

    def cancel(self, action: Action, force: bool = False) -> None:
        """Ask the device to give an action up; ``force``: end it without. Raises Refusal (405)."""
        if not action.active or action.is_cancelling != force:
            raise Refusal(405, f"action {action.id} is {action.status}")
        if force:
            self._end(action, "canceled", "force quit")
        else:
            self._cancel(action)

    def _cancel(self, action: Action) -> None:
        action.status = "canceling"
        self.note(action, "canceling", "cancel requested")

    def _end(self, action: Action, how: Literal["canceled"], message: str) -> None:
        action.active = False
        action.status = how
        self.note(action, how, message)

    def force(self, action: Action) -> None:
        """From soft to forced."""
        action.force_type = "forced"

    def note(
        self,
        action: Action,
        type: EntryType,
        *messages: str,
        code: int | None = None,
        timestamp: int | None = None,
    ) -> None:
        """Add to the history of an action."""
        now = self.now()
        pieces = [
            message[at : at + MAX_MESSAGE]
            for message in messages
            for at in range(0, len(message) or 1, MAX_MESSAGE)
        ]
        if code is not None:
            pieces.append(f"Device reported status code: {code}")
            action.code = code
        stamp = now if timestamp is None else timestamp
        action.entries.append(StatusEntry(type, tuple(pieces), stamp, now, code))

    # --- what is asked of it

    def active(self, target: Target) -> Iterator[Action]:
        """The actions that are offered to a device or would be: the first of them is."""
        found = [a for a in self.actions.values() if a.target is target and a.active]
        return iter(sorted(found, key=lambda action: (-action.weight, action.id)))

    def find_installed(self, target: Target) -> Action | None:
        """The newest action that installed what is installed."""
        found = [
            action
            for action in self.actions.values()
            if (action.target, action.set) == (target, target.installed)
            and action.status == "finished"
        ]
        return found[-1] if found else None

    def find_module(self, target: Target, module_id: int) -> Module | None:
        """The module, if an action of the target that is active and not cancelling has it."""
        for action in self.active(target):
            for module in action.set.modules:
                if module.id == module_id and not action.is_cancelling:
                    return module
        return None

    def allow_target_tokens(self) -> None:
        self.config["authentication.targettoken.enabled"] = True

    def allow_gateway(self, key: str) -> None:
        """Let anybody in who knows ``key``. Raises UsageError if it is empty."""
        if not key:
            raise UsageError("a gateway token cannot be empty")
        self.config["authentication.gatewaytoken.key"] = key
        self.config["authentication.gatewaytoken.enabled"] = True


def _next(known: Mapping[int, object]) -> int:
    return max(known, default=0) + 1
