"""`mpota rehearse`: what it prints and writes, what it confines, what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from mpota.firmware import sample
from mpota.rehearse import confine, rehearsal
from mpota.virtual.board import Board
from mpota.virtual.flash import VirtualFlash

from tests.support import firmware_files, rehearsals
from tests.support.firmware_files import assert_refused, run
from tests.support.rehearsals import need_namespaces

PASSWORD = "correct-horse-battery"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A firmware with room for two apps, and a new app for it."""
    app = firmware_files.small_app()
    (tmp_path / "firmware.bin").write_bytes(
        firmware_files.small_firmware("esp32", firmware_files.OTA_TABLE)
    )
    (tmp_path / "new.bin").write_bytes(sample.next_version(app))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scratch_directories(pid: int) -> set[Path]:
    """Those of the process with that number."""
    return set(Path("/dev/shm").glob(f"mpota-rehearse-{pid}-*"))


def dump(path: Path, main: str) -> None:
    """A board with that main.py, and a Wi-Fi password in its nvs."""
    set_key = f"n.set_blob('key', {PASSWORD.encode()!r})"
    join = f"from esp32 import NVS\nn = NVS('wifi')\n{set_key}\nn.commit()"
    path.write_bytes(rehearsals.board(join, main=main.encode()).content)


def test_a_good_release(files: Path) -> None:
    need_namespaces()
    done = run(
        "rehearse", "new.bin", "--board", "firmware.bin", "--cuts", 8, "--breaks", 2,
        "--junit", "junit.xml", "-o", "report.txt",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert "ok: nothing fell: 8 power cuts, 2 broken connections" in done.out
    table = [line for line in done.out.splitlines() if line.startswith("  ")]
    assert len(table) == 8
    assert max(map(len, table)) <= 80
    assert (files / "report.txt").read_text() == done.out
    suite = ElementTree.parse(files / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("15", "0")
    assert scratch_directories(os.getpid()) == set()


def test_a_release_that_falls_and_the_cut_that_shows_it(files: Path) -> None:
    told = run("rehearse", "new.bin", "--board", "firmware.bin", "--cuts", 0, "--breaks", 0,
               "--check", "False", "--json")  # fmt: skip
    found = json.loads(told.out)
    assert (told.code, found["ok"]) == (1, False)
    assert found["findings"] == [
        {"id": "first-boot", "text": "the health check fails: AssertionError: it is not true "
         "(<stdin>, line 2)"}
    ]  # fmt: skip
    one = run("rehearse", "new.bin", "--board", "firmware.bin", "--replay", "update:20:torn")
    assert one.code == 0, one.err
    left = files / "rehearse-update-20-torn.bin"
    assert stat.S_IMODE(left.stat().st_mode) == 0o600
    with VirtualFlash(left) as flash:
        assert Board(flash).run("").labels == ("ota_0",)
    assert_refused(
        run("rehearse", "new.bin", "--board", "firmware.bin", "--replay", "update:9999:torn"), 2
    )


def test_the_program_of_a_board_is_confined(files: Path) -> None:
    need_namespaces()
    secret = files / "of-the-desk"
    secret.write_text("x")
    tries = f"""
import os, socket, ffi
from machine import I2C, Pin, RTC
Pin(2, Pin.OUT).on()
RTC().memory(bytes(RTC().datetime()[1:3]))
libc = ffi.open("libc.so.6")
reached = []
if libc.func("i", "open", "si")({str(secret)!r}, 0) >= 0: reached.append("file")
if os._module.system("true") == 0: reached.append("shell")
if libc.func("i", "kill", "ii")({os.getpid()}, 0) == 0: reached.append("process")
if libc.func("i", "fork", "")() >= 0: reached.append("fork")
try:
    socket.socket().connect(socket.getaddrinfo("192.0.2.1", 9)[0][-1])
    reached.append("network")
except OSError as error:
    if error.args[0] != 101: reached.append("network")
if reached:
    raise RuntimeError(",".join(reached))
import ota.rollback
ota.rollback.cancel()
"""
    dump(files / "board.bin", tries)
    (files / "new.bin").write_bytes(sample.next_version(rehearsals.APP))
    done = run("rehearse", "new.bin", "--board", "board.bin", "--cuts", 0, "--breaks", 0)
    assert (done.code, done.err) == (0, ""), done.out


def test_code_of_a_board_runs_only_confined_unless_that_is_asked_for(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(plan: object, **more: object) -> rehearsal.Rehearsal:
        if plan.is_confined:  # type: ignore[attr-defined]
            raise confine.NotConfinedError("no namespaces here")
        return rehearsal.Rehearsal()

    monkeypatch.setattr(rehearsal, "rehearse", cannot)
    dump(files / "board.bin", "")
    refused = run("rehearse", "new.bin", "--board", "board.bin")
    assert_refused(refused, 2)
    assert "--main runs the board's code all the same" in refused.err
    assert run("rehearse", "new.bin", "--board", "board.bin", "--main").code == 0
    assert run("rehearse", "new.bin", "--board", "firmware.bin").code == 0  # mpota's own


def test_nothing_of_the_nvs_is_told(files: Path) -> None:
    main = (
        "from esp32 import NVS\nkey = bytearray(64)\nn = NVS('wifi').get_blob('key', key)\n"
        "raise ValueError('cannot join with ' + str(key[:n], 'utf-8'))\n"
    )
    need_namespaces()
    dump(files / "board.bin", main)
    (files / "new.bin").write_bytes(sample.next_version(rehearsals.APP))
    done = run(
        "rehearse", "new.bin", "--board", "board.bin", "--cuts", 0, "--breaks", 0,
        "--confirm", 1, "-o", "report.txt",
    )  # fmt: skip
    assert done.code == 1
    assert "cannot join with ***" in done.out
    assert PASSWORD not in done.out + (files / "report.txt").read_text()


def heed_ctrl_c() -> None:
    """What is started in the background of a shell would not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_tells_what_is_known_and_leaves_nothing(files: Path) -> None:
    command = [sys.executable, "-m", "mpota", "rehearse", "new.bin", "--board", "firmware.bin",
               "--cuts", "all", "--junit", "junit.xml", "--json"]  # fmt: skip
    started = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
    )
    while not scratch_directories(started.pid) and started.poll() is None:
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    out, error = started.communicate()
    assert (started.returncode, error) == (130, "")
    assert json.loads(out)["interrupted"] is True
    assert scratch_directories(started.pid) == set()


@pytest.mark.parametrize(
    ("board", "words"),
    [
        (b"", "is empty"),
        (os.urandom(0x20000), "encrypted"),
        (b"PK\x05\x06" + bytes(18), "no backup"),
        (b"\xe9" + bytes(0x9000), "firmware.bin"),
    ],
    ids=["empty", "encrypted", "zip", "torn"],
)
def test_what_is_no_board_is_refused(files: Path, board: bytes, words: str) -> None:
    (files / "firmware.bin").write_bytes(board)
    refused = run("rehearse", "new.bin", "--board", "firmware.bin")
    assert_refused(refused, 1)
    assert words in refused.err
