"""Rollouts: which boards get a distribution set, group after group, and what stops it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from mpota.errors import MpotaError, UsageError
from mpota.hawkbit.answers import GroupAnswer, RolloutAnswer, SetAnswer
from mpota.hawkbit.client import Client, ServerRefusedError, equals

EVERY_BOARD = "controllerId==*"
KINDS = ("forced", "soft", "downloadonly")
_MAX_GROUPS = 500  # hawkbit.server.security.dos.maxRolloutGroupsPerRollout, by default
_READY_S = 300.0  # for a server to divide the boards into groups
_ASK_S = 0.5
_BEFORE = ("creating", "waiting_for_approval")


@dataclass(frozen=True)
class RolloutWishes:
    """``groups``: percent of all boards, 100 together. ``next_at``: percent of a group's boards
    that have it until the next group begins; ``stop_above``: percent that may have failed before
    the rollout pauses.
    """

    name: str
    groups: tuple[float, ...]
    next_at: int = 90
    stop_above: int = 10
    boards: str = EVERY_BOARD
    kind: str = "forced"

    def to_json(self, wanted: SetAnswer) -> dict[str, object]:
        return {
            "name": self.name,
            "description": f"{wanted.label}, by mpota",
            "distributionSetId": wanted.id,
            "targetFilterQuery": self.boards,
            "type": self.kind,
            "groups": [
                {
                    "name": f"group-{number}",
                    "description": f"{share:g} % of the boards",
                    "targetPercentage": share,
                }
                for number, share in enumerate(self.groups, 1)
            ],
            "successCondition": {"condition": "THRESHOLD", "expression": str(self.next_at)},
            "successAction": {"action": "NEXTGROUP", "expression": ""},
            "errorCondition": {"condition": "THRESHOLD", "expression": str(self.stop_above)},
            "errorAction": {"action": "PAUSE", "expression": ""},
        }


def parse_groups(text: str) -> tuple[float, ...]:
    """``1,9`` or ``1,9,90``: percent of all boards; what is left of 100 is the last group.

    ``5x`` is five equal groups. Raises UsageError.
    """
    hint = "1,9 is three groups: 1 %, 9 % and the rest; 5x is five equal ones"
    count, is_even, rest = text.strip().partition("x")
    if is_even and count.isdecimal() and not rest and 0 < int(count[:6]) <= _MAX_GROUPS:
        return (100 / int(count),) * int(count)
    try:
        shares = [round(float(part.strip().removesuffix("%")), 4) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"groups '{text}' are no percentages", hint) from None
    left = round(100 - sum(shares), 4)
    if not all(0 < share <= 100 for share in shares) or not 0 <= left < 100:
        raise UsageError(f"groups '{text}' are not shares of 100 %", hint)
    found = (*shares, left) if left else tuple(shares)
    if len(found) > _MAX_GROUPS:
        raise UsageError(f"{len(found)} groups: at most {_MAX_GROUPS}")
    return found


def parse_set(text: str) -> tuple[str, str]:
    """``NAME:VERSION``. Raises UsageError."""
    name, found, version = text.rpartition(":")
    if not (found and name and version):
        raise UsageError(f"'{text}' is not NAME:VERSION", "as in pump:2.1.0")
    return name, version


def find_set(client: Client, name: str, version: str) -> SetAnswer | None:
    found = client.pages("distributionsets", q=equals(name=name, version=version))
    sets = (SetAnswer.of(one) for one in found)
    return next((one for one in sets if (one.name, one.version) == (name, version)), None)


def find_rollout(client: Client, name: str | None) -> RolloutAnswer:
    """The rollout of that name, else the newest one. Raises MpotaError if there is none."""
    found = next(list_rollouts(client, name), None)
    if found is None:
        what = f"no rollout '{name}'" if name else "no rollout yet"
        raise MpotaError(f"{client.place.name}: there is {what}", "mpota rollout create")
    return found


def list_rollouts(client: Client, name: str | None = None) -> Iterator[RolloutAnswer]:
    """All of them, or those of that name, the newest first."""
    query = {"q": equals(name=name)} if name else {}
    pages = client.pages("rollouts", sort="id:DESC", representation="full", **query)
    found = (RolloutAnswer.of(one) for one in pages)
    return (one for one in found if name in (None, one.name))


def groups_of(client: Client, rollout: RolloutAnswer) -> list[GroupAnswer]:
    pages = client.pages(
        f"rollouts/{rollout.id}/deploygroups", sort="id:ASC", representation="full"
    )
    return [GroupAnswer.of(one) for one in pages]


def create(client: Client, wanted: SetAnswer, wishes: RolloutWishes) -> tuple[RolloutAnswer, bool]:
    """A rollout as it is wished; whether it is new: the same wish again finds the one it made.

    Raises MpotaError if there is one of that name that is for something else.
    """
    former = next(list_rollouts(client, wishes.name), None)
    if former is None:
        try:
            made = RolloutAnswer.of(client.post("rollouts", wishes.to_json(wanted)))
            return made, True
        except ServerRefusedError as error:
            former = next(list_rollouts(client, wishes.name), None)
            if error.status != 409 or former is None:
                raise
    same = (wanted.id, wishes.boards, wishes.kind, len(wishes.groups))
    groups = groups_of(client, former)
    if (former.set_id, former.filter, former.kind, len(groups)) != same:
        raise MpotaError(
            f"{client.place.name}: there is a rollout '{wishes.name}' already, for something else",
            "--name gives this one another name",
        )
    return former, False


def wait_ready(client: Client, rollout: RolloutAnswer) -> RolloutAnswer:
    """Until the server has divided the boards into groups. Raises MpotaError if it does not."""
    deadline = time.monotonic() + _READY_S
    while rollout.status == "creating":
        if time.monotonic() > deadline:
            raise MpotaError(f"'{rollout.name}' is still being created", "mpota rollout show")
        rollout = read(client, rollout)
        if rollout.status == "creating":
            time.sleep(_ASK_S)
    return rollout


def read(client: Client, rollout: RolloutAnswer) -> RolloutAnswer:
    return RolloutAnswer.of(client.get(f"rollouts/{rollout.id}"))


_STEPS = {"start": ("ready", "starting running"), "pause": ("running", "paused"),
          "resume": ("paused", "running"), "stop": ("running", "stopping stopped")}  # fmt: skip


def step(client: Client, rollout: RolloutAnswer, verb: str) -> RolloutAnswer:
    """Start, pause, resume or stop a rollout, unless that is done already. Raises MpotaError."""
    if verb == "start":
        rollout = wait_ready(client, rollout)
    after = _STEPS[verb][1].split()
    if rollout.status in after:
        return rollout
    try:
        client.post(f"rollouts/{rollout.id}/{verb}")
    except ServerRefusedError as error:
        if error.status not in (400, 423):
            raise
        now = read(client, rollout)
        if now.status in after:
            return now
        raise MpotaError(
            f"'{rollout.name}' is {now.status.replace('_', ' ')}: it cannot {verb}",
            _NEXT.get((verb, now.status)),
        ) from None
    return read(client, rollout)


_NEXT = {
    ("start", "paused"): "mpota rollout resume",
    ("start", "waiting_for_approval"): "somebody has to approve it in hawkBit",
    ("resume", "ready"): "mpota rollout start",
    ("pause", "ready"): "it has not been started",
}
