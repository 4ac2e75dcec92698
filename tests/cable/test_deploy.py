"""`mpota deploy` with several virtual boards at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from mpota.firmware.sample import build_app

from tests.support.consoles import APP_SIZE, Bench, app, bench

Run = Callable[..., str]

MAIN = "import os\nprint('main of', os.uname().release)\n"


@pytest.fixture
def boards() -> Iterator[list[Bench]]:
    with ExitStack() as stack:
        yield [stack.enter_context(bench(has_ota=True)) for _ in range(3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project: two versions of the app, another chip's, and a main.py."""
    (tmp_path / "v1.26.1.bin").write_bytes(app())
    (tmp_path / "v1.27.0.bin").write_bytes(app("v1.27.0"))
    (tmp_path / "other.bin").write_bytes(build_app("esp32c3", size=APP_SIZE))
    (tmp_path / "main.py").write_text(MAIN)
    return tmp_path


def _plan(folder: Path, boards: list[Bench], top: str = "", **own: str) -> Path:
    """A plan for ``boards``, called north, south and east; ``own``: a board's own settings."""
    lines = ['firmware = "v1.27.0.bin"', "settle = 0.3", "check_timeout = 0", top, "[boards]"]
    for name, board in zip(("north", "south", "east"), boards, strict=False):
        lines.append(f'{name} = {{ port = "{board.port.path}"{own.get(name, "")} }}')
    path = folder / "plan.toml"
    path.write_text("\n".join(lines))
    return path


def _outcomes(shown: str) -> dict[str, str]:
    return {board["name"]: board["outcome"] for board in json.loads(shown)["boards"]}


def test_boards_get_what_they_lack_and_a_second_run_does_nothing(
    boards: list[Bench], folder: Path, mpota: Run
) -> None:
    plan = _plan(folder, boards, 'files = { "/lib/app/main.py" = "main.py" }')
    shown = mpota("deploy", plan, "--report", "report.json")
    assert shown.splitlines()[-1] == "3 updated"
    assert _outcomes((folder / "report.json").read_text()) == dict.fromkeys(
        ("north", "south", "east"), "updated"
    )
    script = "import os; print(os.uname().release, open('/lib/app/main.py').read())"
    for board in boards:
        assert board.say("exec", script) == f"1.27.0 {MAIN}\n"
        board.flash.restart_count()
    assert _outcomes(mpota("deploy", plan, "--json")) == dict.fromkeys(
        ("north", "south", "east"), "up to date"
    )
    assert [board.flash.operations for board in boards] == [[], [], []]


def test_after_a_failure_no_other_board_begins_and_a_second_run_does_the_rest(
    boards: list[Bench], folder: Path, mpota: Run
) -> None:
    plan = _plan(folder, boards, "parallel = 1", south=', firmware = "other.bin"')
    shown = mpota("deploy", plan, "--json", exit_code=1)
    assert _outcomes(shown) == {"north": "updated", "south": "refused", "east": "not started"}
    assert "ESP32-C3" in json.loads(shown)["boards"][1]["message"]
    shown = mpota("deploy", _plan(folder, boards), "--json")
    assert _outcomes(shown) == {"north": "up to date", "south": "updated", "east": "updated"}


def test_each_failure_has_its_name(boards: list[Bench], folder: Path, mpota: Run) -> None:
    boards[1].write(
        "main.py", "import os, machine\nif os.uname().release == '1.27.0': machine.reset()"
    )
    boards[2].port.unplug()
    plan = _plan(folder, boards, "stop_after = 9", north=', check = "False"')
    shown = mpota("deploy", plan, exit_code=1)
    assert "north: unhealthy: ota_1 failed its health check (False is not true)" in shown
    assert "south: rolled back: the board went back to ota_0" in shown
    assert "east: no answer: " in shown
    assert "1 unhealthy, 1 rolled back, 1 no answer" in shown
    assert boards[0].say("exec", "import os; print(os.uname().release)") == "1.26.1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("boards = 3", "plan.toml: boards = 3 is not a table"),
        ("[boards]", "plan.toml names no boards"),
        ("colour = 1\n[boards]\na = 'u0'", "'colour' is nothing that a plan knows"),
        ("[boards]\na = 'u0'\nb = 'u0'", "a and b are both on u0"),
        ("[boards]\na = { check = 'x' }", "plan.toml: a has no port"),
        ("[boards.a]\nport = 'u0'\nfirmare = 'x'", "'firmare' is nothing that a plan knows"),
        ("parallel = 0\n[boards]\na = 'u0'", "parallel = 0 is not a number from 1 to 64"),
        ("keys = 'k'\n[boards]\na = 'u0'", "keys = 'k' is not a list"),
        ("files = {'main.py' = 'x'}\n[boards]\na = 'u0'", "'main.py' is not an absolute path"),
        ("files = {'/../x' = 'x'}\n[boards]\na = 'u0'", "'/../x' is not an absolute path"),
        ("firmware = 'gone.bin'\n[boards]\na = 'u0'", "gone.bin"),
        ("keys = ['gone.pem']\n[boards]\na = 'u0'", "gone.pem"),
        ("check = 'gone.py'\n[boards]\na = 'u0'", "gone.py"),
        ("= 1", "plan.toml is not TOML"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_any_board_is_touched(
    folder: Path, mpota: Run, text: str, message: str
) -> None:
    (folder / "plan.toml").write_text(text)
    assert message in mpota("deploy", "plan.toml", exit_code=2)


def test_force_installs_again_what_runs(boards: list[Bench], folder: Path, mpota: Run) -> None:
    plan = _plan(folder, boards[:1])
    for options in ((), ("--force",)):
        assert _outcomes(mpota("deploy", plan, "--json", *options)) == {"north": "updated"}


def test_json_tells_of_a_plan_that_cannot_be(folder: Path, mpota: Run) -> None:
    (folder / "plan.toml").write_text("[boards]\na = { port = 'u0', check = '(' }")
    shown = mpota("deploy", "plan.toml", "--json", exit_code=2)
    found, _ = json.JSONDecoder().raw_decode(shown)
    assert found["outcome"] == "wrong usage"
    assert "the check '(' is no expression" in found["message"]
