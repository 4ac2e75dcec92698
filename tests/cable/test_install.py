"""`mpota install` on a virtual board, through the real mpremote transport."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from consoles import Bench, bench
from mpota.deploy import Session
from mpota.install import install
from mpota.signing import PrivateKey, public_to_pem
from mpota.virtual.flash import VirtualFlash


@pytest.fixture
def board() -> Iterator[Bench]:
    with bench() as board:
        yield board


@pytest.fixture(scope="module")
def content() -> bytes:
    """The flash of a board that has the package."""
    with bench() as board, Session(board.port.path) as session:
        install(session)
    return board.flash.snapshot()


@pytest.fixture
def installed(content: bytes) -> Iterator[Bench]:
    with bench(VirtualFlash.create(len(content), {0: content})) as board:
        yield board


def _import(board: Bench) -> str:
    return board.say("exec", "import ota; print(ota.__file__, ota.status.info()['running'])")


def test_the_package_is_compiled_for_the_board_and_works(
    board: Bench, mpota: Callable[..., str]
) -> None:
    shown = mpota("install", board.port.path)
    assert "files, compiled; 0 were there; all verified" in shown
    assert _import(board) == "/lib/ota/__init__.mpy ota_0\n"


def test_a_second_install_writes_nothing(installed: Bench, mpota: Callable[..., str]) -> None:
    installed.flash.restart_count()
    assert mpota("install", installed.port.path).startswith("up to date: ")
    assert installed.flash.operations == []


def test_what_differs_is_replaced_and_what_would_hide_it_removed(
    installed: Bench, mpota: Callable[..., str]
) -> None:
    board = installed
    board.write("/lib/ota/slot.mpy", "damaged")
    board.write("/lib/ota/status.py", "raise SystemExit")  # MicroPython looks for .py first
    board.write("/lib/ota/notes.txt", "mine")
    shown = mpota("install", board.port.path)
    assert "removed: /lib/ota/status.py\n" in shown
    assert "copied 1 files, " in shown
    assert _import(board) == "/lib/ota/__init__.mpy ota_0\n"
    assert "notes.txt" in board.say("fs", "ls", "/lib/ota")


def test_without_mpy_cross_the_source_is_installed(
    board: Bench, mpota: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpota.install.can_compile", lambda format: False)
    assert "as source" in mpota("install", board.port.path)
    assert _import(board) == "/lib/ota/__init__.py ota_0\n"


@pytest.mark.parametrize(
    ("cut_after", "is_power_cut"), [(2_000, False), (30_000, True), (60_000, False)]
)
def test_a_cable_pulled_leaves_the_old_package_and_the_same_command_completes(
    board: Bench, mpota: Callable[..., str], cut_after: int, is_power_cut: bool
) -> None:
    board.say("fs", "mkdir", "/lib", "fs", "mkdir", "/lib/ota")
    board.write("/lib/ota/__init__.py", "VERSION = 'old'\n")
    board.wire.cut_after = cut_after
    board.wire.sent_size = 0
    assert "mpota: /dev/" in mpota("install", board.port.path, exit_code=1)
    if is_power_cut:
        with board.off():
            pass
    board.plug_in()
    assert board.say("exec", "import ota; print(ota.VERSION)") == "old\n"
    mpota("install", board.port.path)
    assert _import(board) == "/lib/ota/__init__.mpy ota_0\n"
    assert ".new" not in board.say("fs", "ls", "/lib/ota")


def test_the_program_on_the_board_runs_again_afterwards(
    installed: Bench, mpota: Callable[..., str]
) -> None:
    installed.write("main.py", "f = open('runs', 'a')\nf.write('x')\nf.close()")
    installed.flash.restart_count()
    mpota("install", installed.port.path)
    deadline = time.monotonic() + 20
    while not installed.flash.operations and time.monotonic() < deadline:
        time.sleep(0.01)
    assert installed.say("resume", "exec", "print(open('runs').read())") == "x\n"


def test_keys_and_certificates_come_along(
    installed: Bench, mpota: Callable[..., str], tmp_path: Path
) -> None:
    board = installed
    key = PrivateKey.generate()
    (tmp_path / "key.pem").write_bytes(public_to_pem(key.public))
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    for _ in range(2):
        shown = mpota("install", board.port.path, "--key", "key.pem", "--ca", "ca.pem")
        assert f"trusted key: {key.public.digest.hex()}\n" in shown
        assert 'cafile="/ca.pem"' in shown
    assert "BEGIN" in board.say("fs", "cat", "/ca.pem")


def test_what_is_no_key_is_refused(
    installed: Bench, mpota: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "key.pem").write_text("not a key")
    shown = mpota("install", installed.port.path, "--key", "key.pem", exit_code=1)
    assert "mpota: key.pem: " in shown


def test_a_port_that_is_not_there_is_named(mpota: Callable[..., str]) -> None:
    assert "/dev/nothing" in mpota("install", "/dev/nothing", exit_code=1)


def test_a_full_file_system_is_named_before_anything_is_written(
    board: Bench, mpota: Callable[..., str]
) -> None:
    board.say("exec", "f = open('big', 'w')\nfor _ in range(235): f.write('x' * 4096)\nf.close()")
    board.flash.restart_count()
    shown = mpota("install", board.port.path, exit_code=1)
    assert "the files need " in shown
    assert board.flash.operations == []
