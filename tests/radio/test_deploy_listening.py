"""`mpota deploy` with boards that listen, on the network and by Bluetooth."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from mpota import cli
from mpota.push import ble
from mpota.push.update import Options

from tests.support import ota_board
from tests.support.network import free_port, listener
from tests.support.radio import (
    NAME,
    SECRET,
    Powered,
    backend,
    in_reach,
    peripheral,
    update,
)

BOTH = ("ota_0", "ota_1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MPOTA_SECRET", raising=False)
    monkeypatch.setattr(
        "mpota.push.deploy.Options", functools.partial(Options, pause_s=0.05, attempts=20)
    )
    (tmp_path / "new.bin").write_bytes(update().data)
    (tmp_path / "board.secret").write_text(SECRET + "\n")
    return tmp_path


def deploy(
    folder: Path, boards: str, capsys: pytest.CaptureFixture[str]
) -> tuple[int, dict[str, Any]]:
    """Exit code, and the rows by the boards' names."""
    plan = folder / "plan.toml"
    plan.write_text(f'firmware = "new.bin"\n[boards]\n{boards}')
    with pytest.raises(SystemExit) as end:
        cli.main(["deploy", str(plan), "--json"])
    rows = json.loads(capsys.readouterr().out)["boards"]
    return int(end.value.code or 0), {row["name"]: row for row in rows}


def test_a_board_that_listens_on_the_network_is_sent_the_firmware(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    target = f"tcp://127.0.0.1:{port}"
    with ota_board.updating_board() as board:
        powered = Powered(board, listener(port, f", secret={SECRET!r}")).heard("listening")
        code, rows = deploy(
            folder, f'attic = {{ port = "{target}", secret = "board.secret" }}', capsys
        )
        assert powered.wait().labels == BOTH
    row = rows["attic"]
    assert (code, row["outcome"], row["port"]) == (0, "sent", target)
    assert (row["version"], row["changes"]) == ("v1.27.0", ["v1.27.0"])


def test_a_board_in_reach_of_bluetooth_is_sent_the_firmware(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_reach() as (radio, board):
        monkeypatch.setattr(ble, "OWN_BLUETOOTH", backend(radio))
        powered = Powered(board, peripheral())
        code, rows = deploy(folder, f'attic = "ble://{NAME}"', capsys)
        assert powered.wait().labels == BOTH
    assert (code, rows["attic"]["outcome"]) == (0, "sent")


def test_one_that_does_not_listen_is_a_row_without_an_answer(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mpota.push.deploy.Options", functools.partial(Options, pause_s=0.01, attempts=2)
    )
    code, rows = deploy(folder, f'attic = "tcp://127.0.0.1:{free_port()}"', capsys)
    assert (code, rows["attic"]["outcome"]) == (1, "no answer")
    assert "cannot reach 127.0.0.1 port" in rows["attic"]["message"]


def test_one_that_asks_for_a_secret_is_told_none_and_stays_as_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    with ota_board.updating_board() as board:
        powered = Powered(board, listener(port, f", secret={SECRET!r}")).heard("listening")
        code, rows = deploy(folder, f'attic = "tcp://127.0.0.1:{port}"', capsys)
        assert (code, rows["attic"]["outcome"]) == (1, "failed")
        assert "asks for a secret" in rows["attic"]["message"]
        # It takes the next one: its script ends.
        again = f'attic = {{ port = "tcp://127.0.0.1:{port}", secret = "board.secret" }}'
        assert deploy(folder, again, capsys)[0] == 0
        assert powered.wait().labels == BOTH


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('attic = "tcp://"', "'tcp://' is not tcp://HOST or tcp://HOST:PORT"),
        ('attic = "ble://"', "'ble://' is not ble://NAME or ble://ADDRESS"),
        ('attic = { port = "tcp://a", check = "True" }', "takes firmware alone, no check"),
        ('attic = { port = "ble://a", files = { "/main.py" = "new.bin" } }', "alone, no files"),
        ('attic = { port = "tcp://a", parts = ["ble"] }', "takes firmware alone, no parts"),
        ('attic = { port = "u0", parts = ["gone"] }', "there is no part 'gone'"),
        ('attic = { port = "u0", parts = [1] }', "is not a list of texts"),
        ('attic = { port = "ble://a", firmware = "" }', "attic has no firmware"),
        ('attic = { port = "ble://a", firmware = "http://a/b" }', "http://a/b is a URL"),
        ('attic = { port = "tcp://a", secret = "short" }', "the secret has 5 bytes, 16 are the"),
        ('attic = { port = "tcp://a", secret = "gone" }', "gone"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_any_board_is_touched(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (folder / "short").write_text("12345")
    plan = folder / "plan.toml"
    plan.write_text(f'firmware = "new.bin"\n[boards]\n{text}')
    with pytest.raises(SystemExit) as end:
        cli.main(["deploy", str(plan)])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
