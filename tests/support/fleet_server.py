"""A hawkBit server on loopback (a stand-in: mpota.virtual.hawkbit), and who publishes there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from mpota.virtual.hawkbit import device
from mpota.virtual.hawkbit.device import Feedback
from mpota.virtual.hawkbit.management import Management
from mpota.virtual.hawkbit.server import running
from mpota.virtual.hawkbit.state import Action, State

USER, PASSWORD = "admin", "admin"


@dataclass
class FleetServer:
    """A server with boards. ``target``: what commands take."""

    url: str
    state: State
    management: Management

    @property
    def target(self) -> str:
        return f"hawkbit+{self.url}/DEFAULT"

    def asked(self) -> list[str]:
        """Method, path and status of the requests to the Management API since the last call."""
        found = list(self.management.requests)
        self.management.requests.clear()
        return found

    def action(self, board: str) -> Action:
        """The one that the board is offered."""
        return next(self.state.active(self.state.targets[board]))

    def poll(self, *boards: str) -> None:
        for board in boards:
            device.poll(self.state, self.state.targets[board])

    def say(self, board: str, execution: str, finished: str, *details: str) -> None:
        """What a board says of its action; it has looked at it before."""
        self.poll(board)
        action = self.action(board)
        device.retrieve(self.state, action)
        code = 1 if finished == "failure" else None
        device.feedback(self.state, action, Feedback(execution, finished, details, code))


@contextmanager
def serving(*boards: str) -> Iterator[FleetServer]:
    state = State()
    state.allow_target_tokens()
    management = Management(state, {USER: PASSWORD})
    for board in boards:
        state.add_target(board)
    with running(state, add=management.add_to) as server:
        yield FleetServer(server.url, state, management)


def log_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials in the environment, and no proxy on the way."""
    for name in ("MPOTA_HAWKBIT_TOKEN", "MPOTA_HAWKBIT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MPOTA_HAWKBIT_USER", USER)
    monkeypatch.setenv("MPOTA_HAWKBIT_PASSWORD", PASSWORD)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
