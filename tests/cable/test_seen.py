"""What is seen while a board is worked on: a line for what happens now, and what to run next."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from mpota.firmware.on_board import board_firmware
from mpota.firmware.sample import build_app
from mpota.formats.partition_table import APP, DATA, OTA_0, Partition, PartitionTable
from mpota.storage.board import BoardFlash, open_board
from mpota.units import MiB
from mpota.virtual.flash import Cut, CutMode, VirtualFlash

from tests.support import terminal
from tests.support.cable_boards import CHIP, NVS, SINGLE, firmware
from tests.support.consoles import Bench, app
from tests.support.terminal import COLUMNS

LARGE_OTA = PartitionTable(
    (
        replace(NVS, size=0x4000),
        Partition("otadata", DATA, 0x00, 0xD000, 0x2000),
        Partition("ota_0", APP, OTA_0, 0x10000, 0x100000),
        Partition("ota_1", APP, OTA_0 + 1, 0x110000, 0x100000),
        Partition("vfs", DATA, 0x81, 0x210000, 0x100000),
    )
)
QUICK = ("--settle", "0.3", "--check-timeout", "0")
Run = Callable[..., str]


def test_progress_calls_places_by_their_names(plug_in) -> None:
    with VirtualFlash.create(2 * MiB, {0: firmware()}) as flash:
        cable = plug_in(flash, CHIP)
        told: list[str] = []

        def progress(description, total):
            told.append(description)
            return nullcontext(lambda done: None)

        with open_board(cable.path, progress=progress) as board:
            board.read(0x10000, 0x40000)
            found = board_firmware(board)
            board.read(SINGLE["vfs"].offset, 0x40000)
            found.app(SINGLE["factory"])
            board.erase(SINGLE["vfs"].offset, 0x40000)
            board.program(SINGLE["vfs"].offset, bytes(0x40000))
    assert told == [
        "reading the flash from 0x10000 on",
        "reading vfs",
        "reading factory",
        "erasing vfs",
        "writing vfs",
    ]


@pytest.fixture
def large_app(tmp_path: Path) -> Path:
    """One that takes a second to write."""
    path = tmp_path / "large.bin"
    path.write_bytes(build_app(CHIP, version="v1.27.0", size=960_000, flash_size=4 * MiB))
    return path


@pytest.fixture
def cable(plug_in):
    with VirtualFlash.create(4 * MiB, {0: firmware(LARGE_OTA, flash_size=4 * MiB)}) as flash:
        yield plug_in(flash, CHIP)


def test_writing_is_one_line_at_the_bottom_that_is_gone_when_done(cable, large_app: Path) -> None:
    code, screen = terminal.run(["ota", cable.path, large_app, "-y"])
    assert code == 0
    assert f"connecting to the board on {cable.path} ..." in screen.output
    assert re.search(r"writing ota_1  [= ]+\d+%  [\d ]+ of 940 KiB", screen.output)
    assert "writing" not in screen.text, "it is gone"
    assert "connecting" not in screen.text
    assert screen.wraps == 0
    assert max(map(len, screen.lines)) <= COLUMNS
    assert "done: 944 KiB written and verified, 'ota_1' boots" in screen.text


def test_ctrl_c_says_what_to_run_next_and_that_goes_on(cable, large_app: Path) -> None:
    pressed: list[int] = []  # at which percent

    def press(output: str) -> str | None:
        found = re.findall(r"writing ota_1 .* ([1-9]\d?)%", output)
        if pressed or not found:
            return None
        pressed.append(int(found[-1]))
        return "\x03"

    words = ["ota", cable.path, str(large_app), "-y"]
    code, screen = terminal.run(words, when=press)
    assert pressed, screen.text
    assert code == 130, screen.text
    hint = "  hint: the same command again goes on where it stopped\n"
    assert f"mpota: interrupted\n{hint}  next: mpota ota " in screen.text
    assert "  next: mpota " + " ".join(words) in screen.text.replace("\n", "")
    assert "\x1b[1;31mmpota:" in screen.output
    code, screen = terminal.run(words)
    assert code == 0, screen.text
    is_told = re.search(r"\d+ KiB of it are there already, and stay", screen.text)
    assert is_told or pressed[0] < 10  # what a few percent leave may be no whole sector


def test_ctrl_c_where_nothing_goes_on_only_says_so(silent_port: str) -> None:
    typed: list[str] = []

    def press(output: str) -> str | None:
        if typed or "connecting" not in output:
            return None
        typed.append("Ctrl-C")
        return "\x03"

    code, screen = terminal.run(["slots", silent_port], when=press)
    assert code == 130, screen.text
    assert "mpota: interrupted" in screen.text
    assert "next:" not in screen.text


def test_a_pulled_cable_says_what_to_run_next(cable, mpota: Run, large_app: Path) -> None:
    cable.flash.cut = Cut(20, CutMode.TORN)
    shown = mpota("ota", cable.path, large_app, "-y", exit_code=1)
    assert "run the same command again: it goes on where it stopped" in shown
    assert shown.splitlines()[-1] == f"  next: mpota ota {cable.path} {large_app} -y"


def test_an_app_has_one_digest_on_the_board_by_cable_as_well(
    cable, mpota: Run, large_app: Path
) -> None:
    digest = json.loads(mpota("show", large_app, "--json"))["app"]["digest"]
    mpota("ota", cable.path, large_app, "-y")
    assert digest[:16] in mpota("show", large_app)
    assert digest[:16] in mpota("slots", cable.path)
    assert digest[:16] in mpota("show", cable.path)
    slots = json.loads(mpota("slots", cable.path, "--json"))
    assert digest in [slot["digest"] for slot in slots]


# --- at the REPL


@pytest.fixture
def new(tmp_path: Path) -> Path:
    path = tmp_path / "new.bin"
    path.write_bytes(app("v1.27.0"))
    return path


def test_push_tells_the_digest_that_show_and_status_tell(
    board: Bench, mpota: Run, new: Path
) -> None:
    digest = json.loads(mpota("show", new, "--json"))["app"]["digest"][:16]
    shown = mpota("push", board.port.path, new, *QUICK)
    assert shown.splitlines()[0] == f"sending new.bin (digest {digest}) to slot ota_1"
    status = mpota("status", board.port.path)
    assert f"  {digest}  runs" in status
    assert "\nrelease: none\n" in status


def test_push_in_a_terminal_shows_a_line_that_is_gone(board: Bench, new: Path) -> None:
    code, screen = terminal.run(["push", board.port.path, new, *QUICK])
    assert code == 0, screen.text
    assert re.search(r"sending new\.bin  =* +\d+% +\d+ of 112 KiB", screen.output)
    lines = [line for line in screen.lines if line]
    assert [line.split(" (")[0] for line in lines] == [
        "sending new.bin",
        "ota_1 is complete and selected; restarting",
        "ota_1 is up; checking its health",
        "ota_1 runs v1.27.0, confirmed",
    ]
    assert screen.wraps == 0
    code, screen = terminal.run(["status", board.port.path])
    assert code == 0
    assert screen.wraps == 0
    assert "asking" not in screen.text


def test_what_was_there_before_a_cable_was_pulled_is_told_and_what_to_run_next(
    board: Bench, mpota: Run, new: Path
) -> None:
    board.wire.cut_after = 117_000
    port = board.port.path
    shown = mpota("push", port, new, *QUICK, exit_code=1)
    assert "  hint: the same command again goes on from there\n" in shown
    assert f"  next: mpota push {port} {new} --settle 0.3 --check-timeout 0\n" in shown
    board.plug_in()
    shown = mpota("push", board.port.path, new, *QUICK)
    assert re.search(r"\n[\d,]+ of 114,688 bytes were in the slot from before\n", shown)


def test_what_was_written_at_another_attempt_only_is_told(
    cable, mpota: Run, large_app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = BoardFlash._try_chunk, [0x110000]

    def lose(self, offset: int, data: bytes, update) -> None:
        if offset in failures:
            failures.remove(offset)
        else:
            real(self, offset, data, update)

    monkeypatch.setattr(BoardFlash, "_try_chunk", lose)
    shown = mpota("ota", cable.path, large_app, "-y")
    assert not failures
    assert "written and verified, 'ota_1' boots; 1 of its chunks took another attempt" in shown
