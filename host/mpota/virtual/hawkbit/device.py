"""What a device's requests do to the `State`: DDI's rules, without HTTP.

What the server does not do is a `Refusal` with the status that it answers.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from mpota.virtual.hawkbit.state import Action, EntryType, Refusal, State, Target

MAX_ENTRIES = 1000  # of an action; `closed` is taken beyond that
MAX_DETAILS = 50  # strings in one feedback
_MAX_ATTRIBUTE = 128  # characters of a key, and of a value
_MAX_ATTRIBUTES = 100
_INTERMEDIATE: Mapping[str, EntryType] = {
    "download": "download",
    "downloaded": "downloaded",
    "proceeding": "running",
    "scheduled": "running",
    "resumed": "running",
    "rejected": "warning",
    "canceled": "canceled",
}
Handling = Literal["forced", "attempt", "skip"]


@dataclass(frozen=True)
class Feedback:
    """What a device says of an action."""

    execution: str
    finished: str
    details: tuple[str, ...] = ()
    code: int | None = None
    timestamp: int | None = None

    @classmethod
    def from_json(cls, body: object) -> Feedback:
        """Raises Refusal (400)."""
        status = _member(body, "status", dict)
        execution = _member(status, "execution", str)
        finished = _member(_member(status, "result", dict), "finished", str)
        if execution not in (*_INTERMEDIATE, "closed"):
            raise Refusal(400, f"execution '{execution}'")
        if finished not in ("success", "failure", "none"):
            raise Refusal(400, f"finished '{finished}'")
        details = _texts(status.get("details"))
        code = _number(status.get("code"))
        return cls(execution, finished, details, code, _number(cast(Any, body).get("timestamp")))


def _member(value: object, name: str, kind: type) -> Any:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, kind):
        raise Refusal(400, f"no {name}")
    return found


def _texts(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise Refusal(400, "details are a list of strings")
    return tuple(value)


def _number(value: object) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise Refusal(400, "not a number")


# --- polling


def poll(state: State, target: Target, address: str | None = None) -> dict[str, int | None]:
    """Note that the target was here; the links that it gets, with the id of their action."""
    target.polled_at = state.now()
    target.address = address
    if target.update_status == "unknown":
        target.update_status = "registered"
    links: dict[str, int | None] = {}
    first = next(state.active(target), None)
    if first is not None:
        links[_link(first)] = first.id
    installed = state.find_installed(target)
    if installed is not None:
        links["installedBase"] = installed.id
    if target.wants_attributes:
        links["configData"] = None
    return links


def _link(action: Action) -> str:
    if action.is_cancelling:
        return "cancelAction"
    if action.status == "wait_for_confirmation":
        return "confirmationBase"
    return "deploymentBase"


def sleep(state: State) -> str:
    """How long a device is to sleep; ``00:05:00~10%`` varies it by that much."""
    time, _, spread = str(state.config["pollingTime"]).partition("~")
    if not spread:
        return time
    hours, minutes, seconds = (int(part) for part in time.split(":"))
    total = hours * 3600 + minutes * 60 + seconds
    share = int(spread.rstrip("%")) / 100
    total = round(total * random.uniform(1 - share, 1 + share))
    return f"{total // 3600:02}:{total // 60 % 60:02}:{total % 60:02}"


# --- a deployment


def find(state: State, target: Target, number: str) -> Action:
    """The target's action of this id. Raises Refusal (400, 404)."""
    if not number.isdecimal():
        raise Refusal(400, f"no action id: {number}")
    action = state.actions.get(int(number))
    if action is None or action.target is not target:
        raise Refusal(404)
    return action


def retrieve(state: State, action: Action) -> None:
    """A deploymentBase is read. Raises Refusal (404).

    As seen on hawkBit 0.9 to 1.1: an action that is over becomes `retrieved` again by this, and
    the set that it installed is no longer known to be.
    """
    if action.status in ("canceling", "canceled", "wait_for_confirmation", "scheduled"):
        raise Refusal(404)
    if action.status != "retrieved":
        action.status = "retrieved"
        state.note(action, "retrieved", "retrieved by the device")


def check_installed(action: Action) -> None:
    """An installedBase is read. Raises Refusal (404)."""
    if action.active or action.status == "canceled":
        raise Refusal(404)


def handling(state: State, action: Action) -> tuple[Handling, Handling]:
    """What the device is to do: (download, update)."""
    kind = action.force_type
    if kind == "downloadonly":
        return "forced", "skip"
    is_forced = kind == "forced" or (kind == "timeforced" and state.now() >= action.force_time)
    download: Handling = "forced" if is_forced else "attempt"
    return download, "skip" if action.window is False else download


def note_download(state: State, target: Target, module_id: int, filename: str) -> None:
    """A file is read whole. Raises Refusal (429) when that was noted too often."""
    for action in state.active(target):
        if any(module.id == module_id for module in action.set.modules):
            if len(action.entries) >= MAX_ENTRIES:
                raise Refusal(429)
            state.note(action, "download", f"downloads {filename}")
            return


def feedback(state: State, action: Action, said: Feedback) -> None:
    """deploymentBase's feedback. Raises Refusal (404, 410, 429)."""
    if action.status == "wait_for_confirmation":
        raise Refusal(404)
    _check_open(action, said)
    if said.execution != "closed":
        _note(state, action, _INTERMEDIATE[said.execution], said)
        if (said.execution, action.force_type) == ("downloaded", "downloadonly"):
            action.active = False
            action.status = "downloaded"
            action.target.update_status = "in_sync"
    elif said.finished == "failure":
        _note(state, action, "error", said)
        action.active = False
        action.status = "error"
        action.target.update_status = "error"
        action.target.assigned = None
    else:
        _note(state, action, "finished", said)
        action.active = False
        action.status = "finished"
        _install(action)


def _check_open(action: Action, said: Feedback) -> None:
    if not action.active:
        raise Refusal(410)
    if len(said.details) > MAX_DETAILS:
        raise Refusal(429, f"more than {MAX_DETAILS} details")
    if len(action.entries) >= MAX_ENTRIES and said.execution != "closed":
        raise Refusal(429, f"more than {MAX_ENTRIES} entries")


def _note(state: State, action: Action, type: EntryType, said: Feedback) -> None:
    state.note(action, type, *said.details, code=said.code, timestamp=said.timestamp)


def _install(action: Action) -> None:
    """Note the set as installed, unless the device's own timestamp is not later than the last."""
    target = action.target
    stamp = action.entries[-1].timestamp
    if target.installed_at is not None and stamp <= target.installed_at:
        return
    target.installed, target.installed_at = action.set, stamp
    target.update_status = "in_sync"
    target.wants_attributes = True


# --- cancel and consent


def check_cancelling(action: Action) -> None:
    """A cancelAction is read. Raises Refusal (404)."""
    if not action.is_cancelling:
        raise Refusal(404)


def cancel_feedback(state: State, action: Action, said: Feedback) -> None:
    """cancelAction's feedback. Raises Refusal (405, 429)."""
    if action.status == "canceled":
        return
    if not action.is_cancelling:
        raise Refusal(405)
    _check_open(action, said)
    if said.execution == "rejected" or (said.execution, said.finished) == ("closed", "failure"):
        action.status = "running"
        _note(state, action, "warning", said)
    elif said.execution == "closed":
        action.active = False
        action.status = "canceled"
        _note(state, action, "canceled", said)
        _assign_what_is_left(state, action.target)
    else:
        _note(state, action, "warning", said)


def _assign_what_is_left(state: State, target: Target) -> None:
    following = next(state.active(target), None)
    if following is not None:
        target.assigned = following.set
    else:
        target.assigned = target.installed
        target.update_status = "in_sync"


def confirm(state: State, action: Action, body: object) -> None:
    """confirmationBase's feedback. Raises Refusal (400, 404, 410)."""
    word = _member(body, "confirmation", str)
    if word not in ("confirmed", "denied"):
        raise Refusal(400, f"confirmation '{word}'")
    members = cast(dict[str, Any], body)
    details, code = _texts(members.get("details")), _number(members.get("code"))
    if action.status != "wait_for_confirmation":
        raise Refusal(404 if action.active else 410)
    if word == "confirmed":
        action.status = "running"
        state.note(action, "running", *details, "confirmed", code=code)
    else:
        state.note(action, "wait_for_confirmation", *details, "denied", code=code)


def set_auto_confirm(state: State, target: Target, active: bool) -> None:
    target.auto_confirm = active
    for action in state.active(target):
        if active and action.status == "wait_for_confirmation":
            action.status = "running"
            state.note(action, "running", "confirmed automatically")


# --- attributes, and what is installed


def set_attributes(target: Target, body: object) -> None:
    """Raises Refusal (400)."""
    data = _member(body, "data", dict)
    mode = cast(dict[str, Any], body).get("mode", "merge")
    found = {str(key): str(value) for key, value in data.items() if value is not None}
    if not found or mode not in ("merge", "replace", "remove"):
        raise Refusal(400, "no data")
    if any(not 0 < len(key) <= _MAX_ATTRIBUTE for key in found):
        raise Refusal(400, "a key is too long")
    if any(len(value) > _MAX_ATTRIBUTE for value in found.values()):
        raise Refusal(400, "a value is too long")
    attributes = {} if mode == "replace" else dict(target.attributes)
    for key, value in found.items():
        attributes.pop(key, None)
        if mode != "remove":
            attributes[key] = value
    if len(attributes) > _MAX_ATTRIBUTES:
        raise Refusal(400, "too many attributes")
    target.attributes = attributes
    target.wants_attributes = False


def set_installed(state: State, target: Target, body: object) -> bool:
    """The device says which set it has; whether that is new. Raises Refusal (400, 404)."""
    wanted = _member(body, "name", str), _member(body, "version", str)
    found = [one for one in state.sets.values() if (one.name, one.version) == wanted]
    if not found:
        raise Refusal(404)
    if target.installed is found[0] or any(state.active(target)):
        return False
    target.assigned = target.installed = found[0]
    target.installed_at = state.now()
    target.update_status = "in_sync"
    return True
