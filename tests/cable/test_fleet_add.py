"""``mpota fleet`` with boards at their REPL: told of a server, and in the table of a plan; and the
boards of ``mpota virtual --fleet``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mpota.firmware.sample import build_firmware
from mpota.units import MiB
from mpota.virtual.nvs import Nvs

from tests.support import fleet_server
from tests.support.consoles import CHIP, OTA_TABLE, Bench, app, bench

UNTOLD = """
import ota.ddi
try:
    ota.ddi.Client()
except ota.OTAError as error:
    print(error.code)
"""
POLL = "import ota.ddi\nota.ddi.Client(pause=0.05).update()"


def told(board: Bench) -> list[str]:
    """What the board's NVS has of the server."""
    nvs = Nvs(board.flash, OTA_TABLE["nvs"])
    _, data = nvs.get(b"ota", b"ddi-place", ord("b"))
    return data.decode().split("\0")


def test_a_board_is_made_known_and_told_and_the_token_is_shown_nowhere(
    mpota: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet_server.log_in(monkeypatch)
    with fleet_server.serving() as server, bench(has_ota=True) as board:
        assert board.say("exec", UNTOLD) == "address\n"
        refused = mpota("fleet", "add", server.target, "north/7", "nowhere", exit_code=2)
        assert "'nowhere' is not a serial port" in refused
        assert not server.state.targets
        server.state.config["authentication.targettoken.enabled"] = False
        shown = mpota("fleet", "add", server.target, "north/7")
        assert "north/7: made at" in shown
        assert "lets no board in by its token: --allow-tokens" in shown
        given = ("fleet", "add", server.target, "north/7", board.port.path, "--allow-tokens")
        shown += mpota(*given)
        token = server.state.targets["north/7"].token
        with board.off():
            assert told(board) == [server.url, "DEFAULT", "north/7", token]
        assert "knows it now" in shown
        assert token not in shown
        board.say("exec", POLL)
        assert server.state.targets["north/7"].update_status == "registered"
        again = mpota(*given)
        assert "north/7: known already" in again
        assert "knows it already" in again


def test_boards_of_a_plan_are_in_the_table_and_one_that_does_not_answer_is_silent(
    tmp_path: Path, mpota: Callable[..., str]
) -> None:
    (tmp_path / "new.bin").write_bytes(app("v1.27.0"))
    with bench(has_ota=True) as board:
        plan = f'firmware = "new.bin"\n[boards]\nnear = "{board.port.path}"\n'
        (tmp_path / "plan.toml").write_text(plan + 'far = "tcp://127.0.0.1:1"\n')
        rows = json.loads(mpota("fleet", "status", "plan.toml", "--json"))["boards"]
    found = [
        (row["board"], row["stage"], row["runs"], row["wanted"], row["silent"]) for row in rows
    ]
    assert found == [
        ("far", "never heard", None, None, True),
        ("near", "offered", "v1.26.1", "v1.27.0", False),
    ]


def test_virtual_boards_follow_a_stand_in_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet_server.log_in(monkeypatch)
    monkeypatch.chdir(tmp_path)
    firmware = build_firmware(CHIP, flash_size=2 * MiB, table=OTA_TABLE, app=app())
    Path("firmware.bin").write_bytes(firmware)
    Path("main.py").write_text(POLL)
    words = ("virtual", "boards", "--fleet", "2", "--firmware", "firmware.bin", "--main", "main.py")
    with subprocess.Popen(
        [sys.executable, "-m", "mpota", *words], stdout=subprocess.PIPE, text=True
    ) as fleet:
        try:
            assert fleet.stdout is not None
            said = "".join(fleet.stdout.readline() for _ in range(3))
            found = re.search(r"2 boards follow (\S+);", said)
            assert found, said
            heard(found[1], "virtual-01", "virtual-02")
            port = Path("boards/virtual-02.repl")
            assert port.is_symlink()
        finally:
            fleet.terminate()
            assert fleet.stdout is not None
            assert fleet.stdout.read().endswith("\noff\n")
    assert not port.is_symlink()
    assert sorted(path.name for path in Path("boards").iterdir()) == [
        "virtual-01.bin",
        "virtual-02.bin",
    ]


def heard(target: str, *boards: str) -> None:
    """Comes to its end when the server has heard of all of them."""
    command = [sys.executable, "-m", "mpota", "fleet", "watch", target, "--json", "--every", "0.2"]
    left = set(boards)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        try:
            assert watch.stdout is not None
            for line in watch.stdout:
                row = json.loads(line)
                if row["stage"] == "up to date":
                    left.discard(row["board"])
                if not left:
                    break
        finally:
            watch.terminate()
    assert not left


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("boards", "--fleet", "2"), "'boards/virtual-01.bin' does not exist"),
        (("boards", "--fleet", "2", "--link", "x"), "--fleet and --link"),
        (("boards", "--fleet", "2", "--with", "encoded"), "boards follow no hawkBit"),
        (("boards", "--fleet", "2", "--main", "."), "'.' has no main.py"),
        (("boards", "--main", "x.py"), "are for boards of --fleet"),
    ],
)
def test_a_fleet_that_cannot_be_is_named(
    mpota: Callable[..., str], words: tuple[str, ...], said: str
) -> None:
    assert said in mpota("virtual", *words, exit_code=2)
    assert not Path("boards").exists()
