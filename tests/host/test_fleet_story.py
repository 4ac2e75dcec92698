"""The story of a fleet: a release that fails on the first board stops there and says why, a mended
one goes to all. Real boards, the commands of the desk, and a stand-in for the server between them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from mpota.push.enrol import KEY, Enrolment
from mpota.virtual.board import Board

from tests.support import channels, fleet_server, releases
from tests.support.fleet_server import FleetServer
from tests.support.published import mpota, write_keys

IDS = ("pump-1", "pump-2", "pump-3")
WORDS = "2.1.0: not confirmed in its first boot: what ran before came back"
# A health check that fails: nothing is confirmed.
BROKEN = "import machine\nprint('the pump does not turn')\nmachine.reset()\n"
UPDATE = "import ota, ota.ddi\nota.ddi.Client(pause=0.05).update()\n"


@pytest.fixture(name="server")
def _server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FleetServer]:
    monkeypatch.chdir(tmp_path)
    fleet_server.log_in(monkeypatch)
    write_keys(tmp_path)
    with fleet_server.serving(*IDS) as server:
        yield server


@pytest.fixture(name="boards")
def _boards(server: FleetServer) -> Iterator[dict[str, Board]]:
    """They came without a release, and know the server as `mpota fleet add` tells them of it."""
    with ExitStack() as stack:
        found = {id: stack.enter_context(channels.board()) for id in IDS}
        for id, board in found.items():
            told = Enrolment(server.url, "DEFAULT", id, server.state.targets[id].token)
            data = told.to_bytes()
            channels.done(board.run(f"import ota.base\nota.base.note({KEY!r}, {data!r})"))
        yield found


def release(version: str, counter: int, main: str = releases.MAIN) -> str:
    made = releases.make(
        releases.tree(version, main=main),
        keys=(releases.key(),),
        name=channels.NAME,
        version=version,
        counter=counter,
    )
    path = Path(f"pump-{version}.bundle")
    path.write_bytes(made.to_bytes())
    return str(path)


def roll_out(server: FleetServer, version: str, counter: int, main: str = releases.MAIN) -> None:
    path = release(version, counter, main)
    for words in (
        ("publish", path, server.target, "--key", "key.pub.pem"),
        ("rollout", "create", server.target, f"pump:{version}", "--groups", "34", "--start"),
    ):
        done = mpota(*words)
        assert done, done.error


def rows(server: FleetServer) -> dict[str, tuple[str, str | None, str]]:
    """BoardStage, release that runs, and error of each board, as the table has them."""
    found = json.loads(mpota("fleet", "status", server.target, "--json").out)["boards"]
    return {row["board"]: (row["stage"], row["runs"], row["error"]) for row in found}


def test_a_release_that_fails_stops_at_the_first_board_and_a_mended_one_goes_to_all(
    server: FleetServer, boards: dict[str, Board]
) -> None:
    roll_out(server, "2.1.0", 2, BROKEN)
    for board in boards.values():
        run = board.run(UPDATE)
        assert run.traceback == "", run.console
    assert rows(server)["pump-1"][0] == "restarts"  # nothing is said before it is known
    for board in boards.values():
        channels.done(board.run(UPDATE))
    assert rows(server) == {
        "pump-1": ("failed", None, WORDS),
        "pump-2": ("up to date", None, ""),
        "pump-3": ("up to date", None, ""),
    }
    assert "pump 2.1.0: paused, 3 boards" in mpota("rollout", "show", server.target).out
    assert WORDS in " ".join(mpota("fleet", "status", server.target).out.split())
    roll_out(server, "2.2.0", 3)
    for _ in range(2):  # the first group has it, the second follows
        for _ in range(2):  # installs and restarts; reports
            for board in boards.values():
                channels.done(board.run(UPDATE))
    assert rows(server) == dict.fromkeys(IDS, ("up to date", "2.2.0", ""))
    for board in boards.values():
        assert channels.report(board) == "confirmed 2.2.0"
