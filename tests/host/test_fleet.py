"""``mpota publish``, ``rollout`` and ``fleet`` with a hawkBit server: what they leave there
wherever they end, what they show, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mpota.virtual.hawkbit.faults import Fault

from tests.support import fleet_server, terminal
from tests.support.fleet_server import FleetServer
from tests.support.published import mpota, write_bundle, write_keys

BOARDS = tuple(f"pump-{number}" for number in range(1, 6))
FAILED = "2.1.0: not confirmed in its first boot: what ran before came back"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the test is the working directory, with keys in it, and a release."""
    monkeypatch.chdir(tmp_path)
    fleet_server.log_in(monkeypatch)
    write_keys(tmp_path)
    write_bundle(tmp_path / "pump.bundle", "2.1.0", 1)
    return tmp_path


@pytest.fixture(name="server")
def _server() -> Iterator[FleetServer]:
    with fleet_server.serving(*BOARDS) as server:
        yield server


def publish(server: FleetServer, *more: object) -> None:
    done = mpota("publish", *more, "pump.bundle", server.target)
    assert done, done.error


def roll_out(server: FleetServer, *more: object) -> None:
    done = mpota("rollout", "create", server.target, "pump:2.1.0", "--start", *more)
    assert done, done.error


def content(server: FleetServer) -> object:
    """All that was published."""
    return (
        [
            (module.name, module.version, list(module.artifacts), module.metadata)
            for module in server.state.modules.values()
        ],
        [
            (one.name, one.version, [module.id for module in one.modules])
            for one in server.state.sets.values()
        ],
    )


# --- publish


def test_a_release_is_one_module_and_one_set_and_comes_once(server: FleetServer) -> None:
    assert (
        "nothing is written yet" in mpota("publish", "pump.bundle", server.target, "--dry-run").out
    )
    assert not [line for line in server.asked() if not line.startswith("GET")]
    publish(server, "--key", "key.pub.pem")
    made = content(server)
    assert made == (
        [
            (
                "pump",
                "2.1.0",
                ["pump-2.1.0.bundle"],
                [("chip", "esp32", False), ("counter", "1", False)],
            )
        ],
        [("pump", "2.1.0", [1])],
    )
    (artifact,) = server.state.modules[1].artifacts.values()
    assert artifact.data == Path("pump.bundle").read_bytes()
    server.asked()
    publish(server)
    assert content(server) == made
    assert not [line for line in server.asked() if not line.startswith("GET")]


def test_publishing_goes_on_wherever_it_was_interrupted(server: FleetServer) -> None:
    publish(server)
    made = content(server)
    requests = [line.rpartition(" ")[0] for line in server.asked()]
    for request in dict.fromkeys(requests):
        for how in ("is_lost", "is_unheard"):
            for entries in (server.state.modules, server.state.sets):
                entries.clear()
            server.management.faults.append(Fault(f"{request}*", **{how: True}))
            ended = mpota("publish", "pump.bundle", server.target)
            assert ended.code == 2, request
            assert "Traceback" not in ended.error
            assert not server.management.faults
            publish(server)
            assert content(server) == made, (request, how)


def test_what_was_published_under_a_version_stays(server: FleetServer, here: Path) -> None:
    publish(server)
    made = content(server)
    write_bundle(here / "pump.bundle", "2.1.0", 2)
    refused = mpota("publish", "pump.bundle", server.target)
    assert refused.code == 1
    assert "the software module pump:2.1.0 has another file" in refused.error
    assert content(server) == made


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("pump.bundle", "{target}", "--key", "other.pub.pem"), 1, "none of the keys given"),
        (("pump.bundle", "{target}", "--share", "5"), 2, "--share is for channels"),
        (("key.pem", "{target}"), 1, "key.pem is no bundle"),
        (("pump.bundle", "{base}/OTHER"), 1, "belongs to the tenant 'DEFAULT'"),
        (("pump.bundle", "{base}"), 2, "is not hawkbit+https://HOST/TENANT"),
        (("pump.bundle", "hawkbit+http://a:b@127.0.0.1/DEFAULT"), 2, "no place in a URL"),
        (("pump.bundle", "hawkbit+http://127.0.0.1:1/DEFAULT"), 2, "Connection refused"),
    ],
)
def test_a_wrong_request_is_named(
    server: FleetServer, arguments: tuple[str, ...], code: int, said: str
) -> None:
    base = server.target.removesuffix("/DEFAULT")
    given = [word.format(target=server.target, base=base) for word in arguments]
    refused = mpota("publish", *given)
    assert (refused.code, said in refused.error) == (code, True), refused.error
    assert content(server) == ([], [])


def test_credentials_come_from_the_environment_or_a_file_and_are_not_shown(
    server: FleetServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPOTA_HAWKBIT_PASSWORD", "hunter2")
    refused = mpota("fleet", "status", server.target)
    assert (refused.code, "(401)" in refused.error) == (1, True)
    assert "hunter2" not in refused.out + refused.error
    monkeypatch.delenv("MPOTA_HAWKBIT_PASSWORD")
    refused = mpota("fleet", "status", server.target)
    assert (refused.code, "no credentials" in refused.error) == (2, True)
    Path("who").write_text("admin:admin\n")
    monkeypatch.setenv("MPOTA_HAWKBIT_FILE", "who")
    assert mpota("fleet", "status", server.target)
    for token in ("t\u00f6ken", "to\nken"):
        monkeypatch.setenv("MPOTA_HAWKBIT_TOKEN", token)
        assert mpota("fleet", "status", server.target).code == 2


DEEP = b"[" * 100_000
ODD_ANSWERS = (
    Fault("GET /targets*", status=500),
    Fault("GET /targets*", status=503, body=b"<html>"),
    Fault("GET /targets*", status=307, headers={"Location": "http://127.0.0.1:1/"}),
    Fault("GET /targets*", is_unheard=True),
    Fault("GET /targets*", status=200, body=DEEP),
    Fault("GET /targets*", status=200, body=b"\xff"),
    Fault("GET /targets*", status=200, body=b"1" * 5000),
    Fault("GET /targets*", status=200, body=b"[]"),
    Fault("GET /targets*", status=200, body=b" " * ((16 << 20) + 1)),
    Fault("GET /targets*", status=200, body=b'{"content":[1],"total":1}'),
    Fault("GET /targets*", status=200, body=b'{"content":[{"controllerId":7}],"total":1}'),
    Fault(
        "GET /targets*",
        status=200,
        body=b'{"content":[{"controllerId":"x","updateStatus":"odd"}],"total":1}',
    ),
    Fault(
        "GET /targets*",
        status=200,
        body=b'{"content":[{"controllerId":"x","createdAt":1e400}],"total":1}',
    ),
    Fault("GET /targets*", times=2000, status=200, body=b'{"content":[{}],"total":9999999}'),
    Fault("GET /actions*", status=200, body=b'{"content":[{"id":true}],"total":1}'),
)


@pytest.mark.parametrize("number", range(len(ODD_ANSWERS)))
def test_an_answer_that_makes_no_sense_is_an_error_and_no_traceback(
    server: FleetServer, number: int
) -> None:
    server.management.faults.append(replace(ODD_ANSWERS[number]))
    refused = mpota("fleet", "status", server.target)
    assert refused.code in (1, 2)
    assert server.url in refused.error or "server's answer" in refused.error
    assert "Traceback" not in refused.error
    assert len(refused.error) < 2000


# --- rollouts


def test_a_rollout_stops_at_its_threshold_and_goes_on_when_told(server: FleetServer) -> None:
    publish(server)
    words = ("rollout", "create", server.target, "pump:2.1.0", "--groups", "40,20")
    server.management.faults.append(Fault("POST /rollouts", is_lost=True))
    assert mpota(*words).code == 2
    made = mpota(*words)
    assert made, made.error
    assert "is there already" in made.out
    assert f"next: mpota rollout start {server.target}" in made.out
    roll_out(server, "--groups", "40,20")  # finds the one that was made, and starts it
    states = states_of(server)
    assert states == ("running", ["running", "scheduled", "scheduled"])
    assert server.action("pump-1")
    server.say("pump-1", "closed", "success", "2.1.0 runs and is confirmed")
    server.say("pump-2", "closed", "failure", FAILED)
    assert states_of(server) == ("paused", ["error", "scheduled", "scheduled"])
    shown = mpota("rollout", "show", server.target).out
    assert "pump 2.1.0: paused, 5 boards" in shown
    assert "1 board failed: mpota fleet status" in shown
    assert mpota("rollout", "pause", server.target)  # it is
    assert mpota("rollout", "resume", server.target)
    assert states_of(server) == ("running", ["error", "running", "scheduled"])
    refused = mpota("rollout", "create", server.target, "pump:2.1.0", "--groups", "50")
    assert (refused.code, "for something else" in refused.error) == (1, True)
    assert mpota("rollout", "stop", server.target)
    assert states_of(server)[0] == "stopped"
    refused = mpota("rollout", "resume", server.target, "pump 2.1.0")
    assert "'pump 2.1.0' is stopped: it cannot resume" in refused.error


def states_of(server: FleetServer) -> tuple[str, list[str]]:
    document = json.loads(mpota("rollout", "show", server.target, "--json").out)
    return document["status"], [group["status"] for group in document["groups"]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "{target}", "pump:9.9"), "there is no 'pump:9.9'"),
        (("create", "{target}", "pump"), "'pump' is not NAME:VERSION"),
        (("create", "{target}", "pump:2.1.0", "--groups", "60,60"), "are not shares of 100 %"),
        (("create", "{target}", "pump:2.1.0", "--to", "controllerId=="), "not well formed"),
        (("create", "{target}", "pump:2.1.0", "--to", "name==nobody"), "not match any existing"),
        (("start", "{target}"), "there is no rollout yet"),
        (("show", "{target}", "mine"), "there is no rollout 'mine'"),
    ],
)
def test_a_rollout_that_cannot_be_is_named(
    server: FleetServer, arguments: tuple[str, ...], said: str
) -> None:
    publish(server)
    refused = mpota("rollout", *(word.format(target=server.target) for word in arguments))
    assert refused.code in (1, 2)
    assert said in refused.error


# --- the table


def all_stages(server: FleetServer) -> None:
    """pump-1 failed, pump-2 restarts, pump-3 loads, pump-4 is offered it, pump-5 has it."""
    publish(server)
    roll_out(server, "--groups", "1x")
    server.say("pump-1", "closed", "failure", FAILED)
    server.say("pump-2", "proceeding", "none", "2.1.0: the download begins")
    server.say("pump-2", "scheduled", "none", "2.1.0 is installed: restarts now")
    server.say("pump-3", "proceeding", "none", "2.1.0: the download begins")
    server.poll("pump-4")
    server.say("pump-5", "closed", "success", "2.1.0 runs and is confirmed")


def test_what_stands_out_comes_first_and_errors_are_there_in_full(server: FleetServer) -> None:
    server.state.add_target("new")
    all_stages(server)
    done = mpota("fleet", "status", server.target, "--json")
    rows = json.loads(done.out)["boards"]
    found = [(row["board"], row["stage"], row["runs"], row["wanted"]) for row in rows]
    assert found == [
        ("pump-1", "failed", None, "2.1.0"),
        ("pump-2", "restarts", None, "2.1.0"),
        ("pump-3", "loading", None, "2.1.0"),
        ("pump-4", "offered", None, "2.1.0"),
        ("new", "never heard", None, "2.1.0"),
        ("pump-5", "up to date", "2.1.0", None),
    ]
    assert rows[0]["error"] == FAILED
    assert rows[2]["word"] == "2.1.0: the download begins"
    code, screen = terminal.run(("fleet", "status", server.target))
    assert (code, screen.wraps) == (0, 0)
    lines = screen.text.splitlines()
    assert max(map(len, lines)) <= terminal.COLUMNS
    sums = "6 boards: 1 failed, 1 restarts, 1 loading, 1 offered, 1 never heard, 1 up to date"
    assert sums in " ".join(screen.text.split())
    first = next(number for number, line in enumerate(lines) if "pump-1" in line)
    column = lines[first].index("2.1.0: not")
    words = " ".join(line[column:] for line in lines[first : first + 4])
    assert " ".join(words.split()).startswith(FAILED)


def test_boards_that_are_silent_for_too_long_stand_out_and_a_filter_finds_them(
    server: FleetServer,
) -> None:
    server.poll(*BOARDS)
    hour = 3_600_000
    server.state.targets["pump-4"].polled_at = server.state.now() - hour
    shown = mpota("fleet", "status", server.target).out
    assert "5 boards: 5 up to date, 1 silent" in shown
    assert shown.splitlines()[3].split()[:1] == ["pump-4"]
    found = mpota("fleet", "status", server.target, "--only", "failed,silent", "--json")
    (row,) = json.loads(found.out)["boards"]
    assert (row["board"], row["silent"], row["stage"]) == ("pump-4", True, "up to date")
    some = mpota("fleet", "status", server.target, "--board", "pump-[12]").out
    assert "5 boards: 5 up to date, 1 silent; 2 shown" in some
    refused = mpota("fleet", "status", server.target, "--only", "broken")
    assert (refused.code, "'broken' is no stage" in refused.error) == (2, True)


def test_what_a_board_says_cannot_steer_the_terminal(server: FleetServer) -> None:
    publish(server)
    roll_out(server, "--groups", "1x")
    server.say("pump-1", "closed", "failure", "\x1b[2Jgone\nforged  up to date")
    shown = mpota("fleet", "status", server.target).out
    assert "\x1b" not in shown
    assert r"\x1b[2Jgone\nforged" in shown


def test_watch_tells_what_changes_until_it_is_ended(server: FleetServer) -> None:
    words = ("fleet", "watch", server.target, "--every", "0.2", "--json")
    with subprocess.Popen(
        [sys.executable, "-m", "mpota", *words], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            first = [json.loads(process.stdout.readline())["board"] for _ in BOARDS]
            assert sorted(first) == list(BOARDS)
            server.poll("pump-3")
            row = json.loads(process.stdout.readline())
            assert (row["board"], row["stage"]) == ("pump-3", "up to date")
        finally:
            process.terminate()


def test_watch_is_a_table_on_a_terminal_that_shows_a_change(server: FleetServer) -> None:
    seen: list[str] = []

    def look(output: str) -> str | None:
        if not seen and "5 never heard" in output:
            seen.append("before")
            server.poll(*BOARDS)
        if seen == ["before"] and "5 up to date" in output:
            seen.append("after")
            return "\x03"
        return None

    with pytest.raises(AssertionError, match="in '"):  # more than lines: it moves the cursor
        terminal.run(("fleet", "watch", server.target, "--every", "0.2"), when=look)
    assert seen == ["before", "after"]


def test_the_requests_of_a_table_do_not_grow_with_boards_that_are_well(server: FleetServer) -> None:
    publish(server)
    roll_out(server, "--groups", "1x")
    for board in BOARDS:
        server.say(board, "closed", "success", "2.1.0 runs and is confirmed")
    server.asked()
    assert mpota("fleet", "status", server.target)
    few = len(server.asked())
    for number in range(600):
        made = server.state.add_target(f"more-{number}")
        made.update_status, made.installed_at, made.polled_at = "in_sync", 1, server.state.now()
        made.assigned = made.installed = server.state.sets[1]
    shown = mpota("fleet", "status", server.target)
    assert "605 boards: 605 up to date" in shown.out
    assert len(server.asked()) <= few + 2  # a page more of each list
