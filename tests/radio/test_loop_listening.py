"""`mpota push tcp://... DIR`, and to boards in reach by Bluetooth: less is sent, more is seen."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from mpota import cli
from mpota.push import ble, wire

from tests.support import old_package, ota_board, releases
from tests.support.network import free_port, listener
from tests.support.radio import NAME, SECRET, Powered, backend, in_reach, peripheral

PAGE = "<p>pump</p>\n" * 1500
FIRST_LOOK = "import ota\nota.rollback.cancel()\n"

Carrier = Callable[[pytest.MonkeyPatch], AbstractContextManager[tuple[Powered, str, str]]]


@contextmanager
def by_tcp(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Powered, str, str]]:
    port = free_port()
    script = listener(port, f", secret={SECRET!r}")
    with ota_board.updating_board(heap_size=160 * 1024) as board:
        powered = Powered(board, script, timeout_s=200).heard("listening")
        yield powered, f"tcp://127.0.0.1:{port}", script


@contextmanager
def by_ble(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Powered, str, str]]:
    with in_reach() as (radio, board):
        monkeypatch.setattr(ble, "OWN_BLUETOOTH", backend(radio))
        board.heap_size = 160 * 1024
        script = peripheral(f", secret={SECRET!r}")
        yield Powered(board, script, timeout_s=200), f"ble://{NAME}", script


@pytest.fixture
def project(tmp_path: Path) -> Path:
    directory = tmp_path / "pump"
    directory.mkdir()
    (directory / "pyproject.toml").write_text('[tool.mpota]\nname = "pump"\nversion = "1.0"\n')
    (directory / "page.html").write_text(PAGE)
    return directory


def push(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *words: str | Path,
    exit_code: int = 0,
) -> str:
    monkeypatch.setenv("MPOTA_SECRET", SECRET)
    with pytest.raises(SystemExit) as ended:
        cli.main(["push", *map(str, words)])
    printed = capsys.readouterr()
    assert (ended.value.code or 0) == exit_code, printed.out + printed.err
    return printed.out + printed.err


def stop(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """Let the board's program end: an update that it does not want."""
    import asyncio

    from mpota.push import tcp
    from mpota.push.update import Options, RefusedError
    from mpota.push.wire import Update

    what, options = Update("stop", b"stop", version="stop"), Options(secret=SECRET.encode())
    is_tcp = target.startswith("tcp")
    sending = ble.push(NAME, what, options, pair=False, timeout_s=10)
    with pytest.raises(RefusedError):
        tcp.push(target, what, options) if is_tcp else asyncio.run(sending)
    sending.close()


@pytest.mark.parametrize("carrier", [by_tcp, by_ble])
def test_a_directory_is_seen_through_to_its_confirmation(
    carrier: Carrier,
    project: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with carrier(monkeypatch) as (powered, target, script):
        (project / "main.py").write_text(FIRST_LOOK + script)
        first = push(capsys, monkeypatch, target, project)
        assert first.splitlines()[0] == "pump 1.0: 2 files"
        assert first.splitlines()[-1].startswith("the board runs pump 1.0, confirmed (")
        (project / "main.py").write_text(f"# changed\n{FIRST_LOOK}{script}")
        second = push(capsys, monkeypatch, target, project, "--json")
        report = json.loads(second)
        assert (report["outcome"], report["confirmed"]) == ("updated", True)
        assert report["sent"] < len(PAGE) // 2
        third = push(capsys, monkeypatch, target, project)
        assert third.splitlines()[-1] == (
            "the board runs pump 1.0 already, confirmed: nothing to do"
        )
        stop(capsys, monkeypatch, target)
        run = powered.wait()
        assert len(run.labels) == 3


def test_a_program_that_does_not_confirm_goes_back_and_that_is_told(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with by_tcp(monkeypatch) as (powered, target, script):
        (project / "main.py").write_text(FIRST_LOOK + script)
        push(capsys, monkeypatch, target, project)
        (project / "main.py").write_text("import machine\nmachine.reset()\n")
        monkeypatch.setattr(wire, "_LOOK_AGAIN_S", 1)  # it is back sooner: never seen away
        shown = push(capsys, monkeypatch, target, project, exit_code=3)
        assert "the board went back to what it ran before" in shown
        (project / "main.py").write_text(script)
        quick = ("--check-timeout", "4")
        shown = push(capsys, monkeypatch, target, project, *quick, exit_code=5)
        assert "took pump 1.0 and runs it, and has not confirmed it within 4 s" in shown
        stop(capsys, monkeypatch, target)
        powered.wait()


def test_a_bundle_that_is_not_enough_is_sent_whole(
    tmp_path: Path,
    project: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The files in use are changed between the look and the update."""
    spoil = """
import sys
from ota.push_receiver import Receiver
begin = Receiver._begin
def spoiled(self, session, data):
    with open(sys.path[0] + "/page.html", "w") as file:
        file.write("other")
    begin(self, session, data)
Receiver._begin = spoiled
"""
    with by_tcp(monkeypatch) as (powered, target, script):
        (project / "main.py").write_text(FIRST_LOOK + spoil + script)
        push(capsys, monkeypatch, target, project)
        tree = releases.tree("2.0", FIRST_LOOK, **{"page.html": PAGE})
        made = releases.make(tree, name="pump", chip=None, counter=0x7FFFFFFF)
        (tmp_path / "pump.bundle").write_bytes(made.to_bytes())
        shown = push(capsys, monkeypatch, target, tmp_path / "pump.bundle")
        assert "sending 3 files of 4: " in shown
        assert "that is not enough here (the release takes files from those in use" in shown
        assert powered.wait().labels == ("ota_0", "ota_0", "ota_0")


def test_a_board_with_ota_0_1_is_sent_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = releases.make(releases.tree("1.0"), version="1.0", chip=None)
    (tmp_path / "1.0.bundle").write_bytes(made.to_bytes())
    port = free_port()
    with ota_board.updating_board(heap_size=160 * 1024) as board:
        board.frozen = old_package.package()
        powered = Powered(board, listener(port, f", secret={SECRET!r}")).heard("listening")
        shown = push(capsys, monkeypatch, f"tcp://127.0.0.1:{port}", tmp_path / "1.0.bundle")
        assert "instead of" not in shown
        powered.wait()
