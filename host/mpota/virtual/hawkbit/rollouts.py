"""Rollouts of the stand-in: groups that begin one after another, and thresholds that stop them.

hawkBit's scheduler looks every few seconds; here `Rollouts.advance` does what one of its rounds
does (JpaRolloutExecutor), whenever somebody asks the server for anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, cast

from mpota.virtual.hawkbit.state import Action, DistributionSet, ForceType, Refusal, State, Target

GroupStatus = Literal["creating", "ready", "scheduled", "running", "finished", "error"]
RolloutStatus = Literal[
    "creating", "ready", "starting", "running", "paused", "stopping", "stopped", "finished"
]
_ENDED = ("finished", "error", "canceled")
_COUNTED: dict[str, str] = {
    "scheduled": "scheduled", "finished": "finished", "downloaded": "finished",
    "error": "error", "canceled": "cancelled",
}  # fmt: skip
COUNTS = ("scheduled", "running", "error", "finished", "cancelled", "notstarted")


@dataclass
class Conditions:
    """Percent of a group, as text, as the API has them."""

    success: str = "50"
    error: str = "50"


@dataclass
class Group:
    id: int
    name: str
    description: str
    percentage: float
    conditions: Conditions
    status: GroupStatus = "creating"
    targets: list[Target] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        found = dict.fromkeys(COUNTS, 0)
        for action in self.actions:
            found[_COUNTED.get(action.status, "running")] += 1
        found["notstarted"] = len(self.targets) - len(self.actions)
        return found

    def share(self, word: str) -> float:
        return sum(action.status == word for action in self.actions) / len(self.actions)


@dataclass
class Rollout:
    id: int
    name: str
    description: str
    set: DistributionSet
    filter: str
    type: ForceType
    groups: list[Group]
    created_at: int
    status: RolloutStatus = "creating"

    @property
    def targets(self) -> Iterator[Target]:
        return (target for group in self.groups for target in group.targets)

    def counts(self) -> dict[str, int]:
        found = [group.counts() for group in self.groups]
        return {name: sum(one[name] for one in found) for name in COUNTS}


class Rollouts:
    """All rollouts. ``matching`` gives a filter's targets, and raises Refusal for a bad one."""

    def __init__(self, state: State, matching: Callable[[str], list[Target]]) -> None:
        self._state = state
        self._matching = matching
        self.all: dict[int, Rollout] = {}

    def find(self, number: str) -> Rollout:
        found = self.all.get(int(number)) if number.isdecimal() else None
        if found is None:
            raise Refusal(404, f"Rollout with given identifier {{{number}}} does not exist.")
        return found

    def group_of(self, action: Action) -> tuple[Rollout, Group] | None:
        for rollout in self.all.values():
            for group in rollout.groups:
                if action in group.actions:
                    return rollout, group
        return None

    def add(self, rollout: Rollout) -> None:
        """Raises Refusal (400, 409)."""
        if any(one.name == rollout.name for one in self.all.values()):
            raise Refusal(409, "The given entity already exists in database")
        if not self._matching(rollout.filter):
            raise Refusal(400, "Rollout does not match any existing targets")
        if abs(sum(group.percentage for group in rollout.groups) - 100) > 0.01:
            raise Refusal(400, "Rollout groups don't match all targets that are targeted")
        rollout.set.locked = True
        self.all[rollout.id] = rollout

    # --- what an operator does

    def start(self, rollout: Rollout) -> None:
        self._expect(rollout, "ready", "started")
        rollout.status = "starting"

    def pause(self, rollout: Rollout) -> None:
        self._expect(rollout, "running", "paused")
        rollout.status = "paused"

    def resume(self, rollout: Rollout) -> None:
        self._expect(rollout, "paused", "resumed")
        rollout.status = "running"
        started = [group for group in rollout.groups if group.status != "scheduled"]
        if started and started[-1].status == "error":
            self._start_after(rollout, started[-1])

    def trigger_next(self, rollout: Rollout) -> None:
        self._expect(rollout, "running", "triggered")
        started = [group for group in rollout.groups if group.status != "scheduled"]
        if len(started) == len(rollout.groups):
            raise Refusal(400, "Rollout does not have any groups left to be triggered")
        self._start_after(rollout, started[-1])

    def stop(self, rollout: Rollout) -> None:
        if rollout.status in ("stopping", "stopped", "finished"):
            raise Refusal(400, f"Rollout cannot be stopped, its state is {rollout.status}")
        rollout.status = "stopping"

    @staticmethod
    def _expect(rollout: Rollout, status: str, done: str) -> None:
        if rollout.status != status:
            raise Refusal(
                400,
                f"Rollout can only be {done} in state {status} but current state is "
                f"{rollout.status}",
            )

    # --- what the scheduler does

    def advance(self) -> None:
        """One round, of all rollouts."""
        rounds = {
            "creating": self._fill,
            "starting": self._begin,
            "running": self._watch,
            "stopping": self._end,
        }
        for rollout in self.all.values():
            if do := rounds.get(rollout.status):
                do(rollout)

    def _fill(self, rollout: Rollout) -> None:
        left = self._matching(rollout.filter)
        to_serve = 100.0
        for group in rollout.groups:
            share = 100 if to_serve <= 1 else min(100, group.percentage * 100 / to_serve)
            to_serve -= group.percentage
            count = math.floor(share * len(left) / 100 + 0.5)
            group.targets, left = left[:count], left[count:]
            group.status = "ready"
        rollout.status = "ready"

    def _begin(self, rollout: Rollout) -> None:
        for group in rollout.groups:
            for target in group.targets:
                action = self._state.assign(rollout.set, target, rollout.type, start=False)
                group.actions.append(cast(Action, action))
            group.status = "scheduled"
        rollout.status = "running"
        self._run(rollout.groups[0])

    def _run(self, group: Group) -> None:
        group.status = "running"
        for action in group.actions:
            if action.target.assigned is action.set:
                action.status = "finished"
                self._state.note(action, "finished", "the set is assigned already")
            elif action.status == "scheduled":
                self._state.start(action)

    def _start_after(self, rollout: Rollout, group: Group) -> None:
        following = rollout.groups[rollout.groups.index(group) + 1 :][:1]
        for one in following:
            if one.status == "scheduled":
                self._run(one)

    def _watch(self, rollout: Rollout) -> None:
        running = [group for group in rollout.groups if group.status == "running"]
        for group in running:
            is_over = all(action.status in _ENDED for action in group.actions)
            if group.actions and group.share("error") > int(group.conditions.error) / 100:
                group.status = "error"
                rollout.status = "paused"
            elif is_over or group.share("finished") >= int(group.conditions.success) / 100:
                self._start_after(rollout, group)
                if is_over:
                    group.status = "finished"
        if all(group.status in ("finished", "error") for group in rollout.groups):
            rollout.status = "finished"
        elif not running:
            self.trigger_next(rollout)

    def _end(self, rollout: Rollout) -> None:
        for group in rollout.groups:
            for action in [one for one in group.actions if one.status == "scheduled"]:
                group.actions.remove(action)
                group.targets.remove(action.target)
                del self._state.actions[action.id]
            for action in group.actions:
                if action.active and not action.is_cancelling:
                    self._state.cancel(action)
            group.status = "finished"
        rollout.status = "stopped"
