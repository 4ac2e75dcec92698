"""Every form that an update has, sent to boards that listen: on the network, by Bluetooth."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from mpota import cli
from mpota.firmware.sample import build_firmware
from mpota.formats.delta import make_delta
from mpota.formats.frames import compress
from mpota.push import ble
from mpota.push.update import Options
from mpota.release.build import Content, data_content
from mpota.virtual.board import Board

from tests.support import ota_board, releases
from tests.support.data_payloads import DATA, ROMFS, content
from tests.support.network import free_port, listener, stop
from tests.support.radio import NAME, SECRET, Powered, backend, in_reach, peripheral

Carrier = Callable[[pytest.MonkeyPatch], AbstractContextManager[tuple[Powered, Board, str]]]
NEW = ota_board.NEW
NEW_APP = ("ota_0", "ota_1")

# Form: (the version that is told, what is booted until the board comes to rest).
FORMS = {
    "app": ("v1.27.0", NEW_APP),
    "merged": ("v1.27.0", NEW_APP),
    "compressed": ("v1.27.0", NEW_APP),
    "compressed-bundle": ("demo 2.0", NEW_APP),
    "delta": ("delta", NEW_APP),
    "files": ("demo 2.0", ("ota_0", "ota_0")),
    "data": ("demo 2.0", ("ota_0",)),  # all of it is in force: no restart
}


def file_of(form: str, folder: Path) -> Path:
    """The file of a form, for a board that runs ota_board.OLD."""
    path = folder / form
    (folder / "romfs.bin").write_bytes(DATA)
    app = Content("app", "app.bin", NEW)
    made = {
        "app": lambda: NEW,
        "merged": lambda: build_firmware("esp32", app=NEW),
        "compressed": lambda: compress(NEW).to_bytes(),
        "compressed-bundle": lambda: releases.make(app.compressed()).to_bytes(),
        "delta": lambda: make_delta(ota_board.OLD, NEW).to_bytes(),
        "files": lambda: releases.make(releases.tree("2.0"), chip=None).to_bytes(),
        "data": lambda: releases.make(
            data_content("romfs", folder / "romfs.bin"), chip=None
        ).to_bytes(),
    }
    path.write_bytes(made[form]())
    return path


@contextmanager
def by_tcp(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Powered, Board, str]]:
    port = free_port()
    with ota_board.updating_board(content()) as board:
        powered = Powered(board, listener(port, f", secret={SECRET!r}")).heard("listening")
        yield powered, board, f"tcp://127.0.0.1:{port}"


@contextmanager
def by_ble(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Powered, Board, str]]:
    with in_reach(content=content()) as (radio, board):
        monkeypatch.setattr(ble, "OWN_BLUETOOTH", backend(radio))
        board.heap_size = 160 * 1024  # a bundle with an encoded payload takes more than 120 here
        script = peripheral(f", secret={SECRET!r}")
        powered = Powered(board, script.replace("rest -= is_stopped", "rest -= p.receiver.is_done"))
        yield powered, board, f"ble://{NAME}"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("carrier", [by_tcp, by_ble], ids=["tcp", "ble"])
def test_any_form_arrives_and_the_command_says_what_the_board_does_with_it(
    carrier: Carrier,
    form: str,
    record_property: Callable[[str, object], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record_property("update", f"{carrier.__name__[3:]}: {form}")
    monkeypatch.setenv("MPOTA_SECRET", SECRET)
    monkeypatch.setattr(
        "mpota.push.update.Options", functools.partial(Options, pause_s=0.05, attempts=20)
    )
    version, labels = FORMS[form]
    with carrier(monkeypatch) as (powered, board, target):
        with pytest.raises(SystemExit) as end:
            cli.main(["push", target, str(file_of(form, tmp_path)), "--json"])
        if form == "data" and carrier is by_tcp:  # the board goes on listening
            stop(int(target.rpartition(":")[2]))
        run = powered.wait()
        assert not end.value.code, capsys.readouterr()
        if form == "data":
            assert board.flash.read(ROMFS.offset, len(DATA)) == DATA
    assert run.labels == labels, run.console
    found = json.loads(capsys.readouterr().out)
    assert (found["outcome"], found["version"]) == ("sent", version)
    assert found["needs_restart"] == (form != "data")
