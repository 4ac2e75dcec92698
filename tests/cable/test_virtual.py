"""`mpota virtual`: the command itself, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mpota.firmware.sample import build_firmware
from mpota.units import MiB
from mpota.virtual.board import Board
from mpota.virtual.cable import mac_of, open_flash

from tests.support.consoles import CHIP, OTA_TABLE, app
from tests.support.desk_server import running
from tests.support.published import write_bundle, write_keys

Run = Callable[..., str]


@pytest.fixture
def firmware(tmp_path: Path) -> Path:
    path = tmp_path / "firmware.bin"
    path.write_bytes(build_firmware(CHIP, flash_size=2 * MiB, table=OTA_TABLE, app=app()))
    return path


@contextmanager
def _running(*args: str | Path) -> Iterator[tuple[str, str]]:
    """The names of the ports: (REPL, ROM loader)."""
    command = [sys.executable, "-m", "mpota", "virtual", *map(str, args)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        try:
            yield lines[1].split()[-1], lines[2].split()[-1]
        finally:
            process.terminate()
            assert process.stdout.read() == "\noff\n"
            assert process.wait() == 0


def _run(module: str, *args: str | Path) -> str:
    command = [sys.executable, "-m", module, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_mpremote_and_esptool_work_on_one_flash_which_keeps_what_they_write(
    tmp_path: Path, firmware: Path
) -> None:
    flash = tmp_path / "flash.bin"
    with _running(flash, "--firmware", firmware) as (console, loader):
        _run("mpremote", "connect", console, "exec", "open('kept', 'w').close()")
        assert "Detected flash size: 2MB" in _run("esptool", "--port", loader, "flash-id")
        assert "kept" in _run("mpremote", "connect", console, "fs", "ls")
    with _running(flash) as (console, _):
        assert "kept" in _run("mpremote", "connect", console, "fs", "ls")


def test_a_flash_is_not_made_of_nothing_nor_over_another(
    tmp_path: Path, firmware: Path, mpota: Run
) -> None:
    assert "hint: --firmware FILE or -f SIZE" in mpota("virtual", "none.bin", exit_code=2)
    (tmp_path / "flash.bin").write_bytes(b"\xff" * MiB)
    shown = mpota("virtual", "flash.bin", "--firmware", firmware, exit_code=2)
    assert "flash.bin exists" in shown
    assert "flash.bin is 1MB of flash" in mpota("virtual", "flash.bin", "-f", "2M", exit_code=2)
    assert "hint: --chip NAME tells" in mpota("virtual", "flash.bin", exit_code=2)
    assert not (tmp_path / "none.bin").exists()


def test_a_flash_is_on_one_board_at_a_time(tmp_path: Path, firmware: Path, mpota: Run) -> None:
    flash = tmp_path / "flash.bin"
    with _running(flash, "--firmware", firmware):
        shown = mpota("virtual", flash, exit_code=2)
    assert "is the flash of a virtual board that is on already" in shown


def test_virtual_boards_have_a_mac_each_and_keep_it(tmp_path: Path) -> None:
    first, other = mac_of(tmp_path / "a.bin"), mac_of(tmp_path / "b.bin")
    assert first != other
    assert mac_of(tmp_path / "x/../a.bin") == first
    assert first.hex().startswith("240ac4")


def test_the_wrong_end_of_a_virtual_board_is_named(
    tmp_path: Path, firmware: Path, mpota: Run
) -> None:
    link = tmp_path / "board"
    with _running(tmp_path / "flash.bin", "--firmware", firmware, "--link", link):
        shown = mpota("status", f"{link}.rom", exit_code=2)
        assert f"{link}.rom is the ROM loader of a virtual board" in shown
        assert f"hint: that is {link}.repl" in shown
        shown = mpota("flash", firmware, f"{link}.repl", exit_code=2)
        assert f"hint: that is {link}.rom" in shown


def test_a_board_follows_what_is_a_channel_that_its_key_has_signed(
    tmp_path: Path, firmware: Path, mpota: Run
) -> None:
    """The session in docs/guides/channel.md is how it goes well."""
    write_keys(tmp_path)
    bundle = write_bundle(tmp_path / "a", "2.0.0", 5)
    mpota("publish", bundle, "public", "--key", "key.pem")
    stable = tmp_path / "public" / "stable.channel"
    stable.with_name("odd.channel").write_bytes(stable.read_bytes())
    flash = ("virtual", "flash.bin", "--firmware", firmware, "--follow")
    key, other = ("--key", "key.pub.pem"), ("--key", "other.pub.pem")
    with running(tmp_path / "public") as (server, _):
        url = server.url
        for arguments, code, words in (
            ((url,), 2, "--follow needs --key"),
            (("public", *key), 2, "'public' is no URL of a channel"),
            ((f"{url}none.channel", *key), 2, "none.channel: the server says 404"),
            ((f"{url}releases", *key), 2, "releases/stable.channel: the server says 404"),
            ((f"{url}odd.channel", *key), 1, "is the channel 'stable', put there by a wrong name"),
            ((url, *other), 1, "none of the keys given"),
            (("http://127.0.0.1:9/", *key), 2, "Connection refused"),
        ):
            assert words in mpota(*flash, *arguments, exit_code=code)
            assert not (tmp_path / "flash.bin").exists()
        with open_flash(tmp_path / "flash.bin", firmware) as memory:
            Board(memory).run("with open('main.py', 'w') as file: file.write('import pump')")
        shown = mpota("virtual", "flash.bin", "--follow", url, *key, exit_code=2)
    assert "has a main.py of its own" in shown
    assert "--key and --ca are for --follow" in mpota("virtual", "flash.bin", *key, exit_code=2)
