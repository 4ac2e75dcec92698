"""The virtual board's console, spoken to by the real mpremote and, byte by byte, by hand."""

from __future__ import annotations

import os
import select
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
from mpota.push.repl import Session
from mpota.virtual.serial_port import SerialPort
from mpota.virtual.terminal import DEFAULT_BUFFER_SIZE

from tests.support.consoles import Bench, Wire, bench

TIMEOUT_S = 20


@pytest.fixture(scope="module")
def shared() -> Iterator[Bench]:
    """One board for tests that leave it as they find it."""
    with bench() as board:
        yield board


@pytest.fixture
def board() -> Iterator[Bench]:
    with bench() as board:
        yield board


class Line:
    """A port opened as a terminal program does it."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self._fd)
        self._read = b""

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)

    def send(self, data: bytes) -> None:
        os.write(self._fd, data)

    def until(self, ending: bytes) -> bytes:
        """All that comes up to ``ending``; what comes behind it is kept."""
        while ending not in self._read:
            ready, _, _ = select.select([self._fd], [], [], TIMEOUT_S)
            assert ready, f"no {ending!r} in {self._read!r}"
            self._read += os.read(self._fd, 4096)
        found, _, self._read = self._read.partition(ending)
        return found + ending

    def interrupt_work(self) -> None:
        """Call ``work()``, which says that it is "on" and has no end, and stop it by Ctrl-C."""
        self.send(b"work()\x04")
        self.until(b"OKon\r\n")
        self.send(b"\x03")
        assert b"KeyboardInterrupt" in self.until(b"\x04>")

    def raw_repl(self) -> None:
        self.send(b"\r\x03\x01")
        self.until(b"raw REPL; CTRL-B to exit\r\n>")

    def execute(self, source: bytes) -> tuple[bytes, bytes]:
        """Output and traceback of a script in the raw REPL."""
        self.send(source + b"\x04")
        self.until(b"OK")
        result = self.until(b"\x04")[:-1], self.until(b"\x04")[:-1]
        self.until(b">")
        return result


# --- mpremote


def test_mpremote_evaluates(shared: Bench) -> None:
    assert shared.say("eval", "[6 * 7, 'x']").strip() == "[42, 'x']"


def test_an_exception_is_reported_and_fails_the_command(shared: Bench) -> None:
    done = shared.mpremote("exec", "def f():\n  1/0\nf()")
    assert done.returncode == 1
    assert (done.stdout + done.stderr).strip() == (
        "Traceback (most recent call last):\n"
        '  File "<stdin>", line 3, in <module>\n'
        '  File "<stdin>", line 2, in f\n'
        "ZeroDivisionError: divide by zero"
    )


def test_files_are_copied_byte_for_byte_and_survive_a_power_cut(
    board: Bench, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 33 + b"\x04\x03\x01"
    (tmp_path / "there.bin").write_bytes(content)
    board.say("fs", "cp", tmp_path / "there.bin", ":kept.bin")
    with board.off():
        pass
    board.say("fs", "cp", ":kept.bin", tmp_path / "back.bin")
    assert (tmp_path / "back.bin").read_bytes() == content


def test_a_directory_of_this_machine_is_mounted(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text("GREETING = 'from the desk'\n" * 40)
    (tmp_path / "data.bin").write_bytes(bytes(range(256)) * 9)
    script = "import hello; print(hello.GREETING, sum(open('data.bin', 'rb').read()))"
    with bench(buffer_size=DEFAULT_BUFFER_SIZE) as board:  # a mount is not flow-controlled
        shown = board.say("mount", tmp_path, "exec", script)
    assert f"from the desk {sum(range(256)) * 9}\n" in shown


def test_names_live_until_a_soft_reset(shared: Bench) -> None:
    assert shared.say("exec", "x = 5", "resume", "exec", "print(x)") == "5\n"
    done = shared.mpremote("exec", "x = 5", "soft-reset", "exec", "print(x)")
    assert "NameError: name 'x' isn't defined" in done.stdout + done.stderr


def test_an_endless_main_is_interrupted(board: Bench) -> None:
    board.write("main.py", "while True: pass")
    board.say("reset")
    assert board.say("exec", "print('in between')") == "in between\n"


def test_a_program_that_is_stopped_leaves_the_board_to_the_next(board: Bench) -> None:
    board.say("exec", "--no-follow", "import time\nwhile True: time.sleep(1)")
    assert board.say("resume", "exec", "print('free')") == "free\n"


class SlowWire(Wire):
    """Brings nothing to the board until it was asked for its prompt twice."""

    _held: bytes | None = b""

    def received(self, data: bytes) -> None:
        if self._held is not None:
            data, self._held = self._held + data, self._held + data
            if data.count(b"\r\x01") < 2:
                return
            self._held = None
        super().received(data)


def test_a_board_that_answers_late_answers_what_it_is_asked(board: Bench) -> None:
    board.port.unplug()
    board.wire = SlowWire(board.console)
    board.port = board.wire.port = SerialPort(board.wire)
    with Session(board.port.path) as session:
        assert session.execute("print('ready')") == "ready\r\n"


# --- what a terminal shows


def test_a_reset_shows_bootloader_main_and_prompt(board: Bench) -> None:
    board.write("main.py", 'print("main runs")')
    with Line(board.port.path) as line:
        line.send(b"\r")
        line.until(b">>> ")
        line.send(b"import machine; machine.reset()\r")
        shown = line.until(b">>> ").decode()
    assert shown.startswith("import machine; machine.reset()\r\n")
    assert "\r\nload:0x40078000," in shown
    assert shown.endswith(
        "main runs\r\n"
        "MicroPython v1.26.1 on 2025-09-11; Generic ESP32 module with ESP32\r\n"
        'Type "help()" for more information.\r\n'
        ">>> "
    )


def test_a_soft_reset_runs_main_at_the_prompt_but_not_in_the_raw_repl(board: Bench) -> None:
    board.write("main.py", 'print("main runs")')
    with Line(board.port.path) as line:
        line.send(b"\r\x02")
        line.until(b"information.\r\n>>> ")
        line.send(b"\x04")
        assert b"MPY: soft reboot\r\nmain runs\r\nMicroPython v1.26.1" in line.until(b">>> ")
        line.raw_repl()
        line.send(b"\x04")
        assert line.until(b"exit\r\n>") == (
            b"OK\r\nMPY: soft reboot\r\nraw REPL; CTRL-B to exit\r\n>"
        )


def test_no_other_port_gets_the_number_of_one_that_was_pulled(board: Bench) -> None:
    """Whoever waits for that one to come back would have another board."""
    former = board.port
    former.unplug()
    board.plug_in()
    assert board.port.path != former.path
    assert not os.path.exists(former.path)


def test_what_is_typed_behind_a_soft_reset_is_read_after_it(shared: Bench) -> None:
    """The input buffer is the driver's, which goes on."""
    with Line(shared.port.path) as line:
        line.raw_repl()
        line.send(b"\x04print('there')\x04")
        line.until(b"MPY: soft reboot\r\nraw REPL; CTRL-B to exit\r\n>")
        assert line.until(b"\x04>") == b"OKthere\r\n\x04\x04>"


def test_what_was_typed_before_a_reset_and_not_read_is_lost(shared: Bench) -> None:
    wait = b"import machine, select, sys; p = select.poll(); p.register(sys.stdin, 1); p.poll(); "
    with Line(shared.port.path) as line:
        line.raw_repl()
        line.send(wait + b"machine.reset()\x04print('lost')\r")
        line.until(b'Type "help()" for more information.\r\n')
        line.send(b"print('here')\r")
        assert line.until(b"here\r\n") == b">>> print('here')\r\nhere\r\n"


def test_the_prompt_echoes_continues_blocks_and_recalls_lines(shared: Bench) -> None:
    with Line(shared.port.path) as line:
        line.send(b"\r\x03\x02")
        line.until(b"information.\r\n>>> ")
        line.send(b"for i in range(2):\r  (i,\r)\r\r")
        assert line.until(b"(1,)\r\n>>> ").endswith(b"... \r\n(0,)\r\n(1,)\r\n>>> ")
        line.send(b"6*8\x7f7\r")
        assert line.until(b"42\r\n>>> ") == b"6*8\b\x1b[K7\r\n42\r\n>>> "
        line.send(b"\x1b[A\r")
        assert line.until(b"42\r\n>>> ").endswith(b">>> 6*7\r\n42\r\n>>> ")
        line.send(b"1/0\r")
        assert line.until(b">>> ").endswith(
            b'  File "<stdin>", line 1, in <module>\r\nZeroDivisionError: divide by zero\r\n>>> '
        )


def test_ctrl_c_interrupts_what_runs_and_the_prompt_is_back(shared: Bench) -> None:
    with Line(shared.port.path) as line:
        line.send(b"\r\x03\x02")
        line.until(b"information.\r\n>>> ")
        line.send(b"def f():\r  print('on')\r  while True: pass\r\rf()\r")
        line.until(b"f()\r\non\r\n")
        line.send(b"\x03")
        assert b"KeyboardInterrupt: \r\n>>> " in line.until(b">>> ")


# --- the raw REPL, byte by byte


def test_output_and_traceback_are_apart(shared: Bench) -> None:
    with Line(shared.port.path) as line:
        line.raw_repl()
        output, error = line.execute(b"print('out')\nraise ValueError('why')")
    assert output == b"out\r\n"
    assert error.endswith(b"ValueError: why\r\n")


def test_raw_paste_grants_a_window_at_a_time(shared: Bench) -> None:
    source = b"x = '%s'\nprint(len(x))" % (b"y" * 300)
    with Line(shared.port.path) as line:
        line.raw_repl()
        line.send(b"\x05A\x01")
        assert line.until(b"\x80\0\x01") == b"R\x01\x80\0\x01"
        line.send(source[:128])
        line.until(b"\x01")
        line.send(source[128:256])
        line.until(b"\x01")
        line.send(source[256:] + b"\x04")
        assert line.until(b"\x04") == b"\x04"
        assert line.until(b"\x04\x04>") == b"300\r\n\x04\x04>"


def test_binary_data_reaches_a_script_and_leaves_it_unchanged(shared: Bench) -> None:
    script = (
        b"import sys, micropython\nmicropython.kbd_intr(-1)\nsys.stdout.buffer.write(b'go')\n"
        b"data = sys.stdin.buffer.read(250)\nmicropython.kbd_intr(3)\n"
        b"sys.stdout.buffer.write(b'\\n')\nsys.stdout.buffer.write(data)\nprint()"
    )
    data = bytes(range(250))
    with Line(shared.port.path) as line:
        line.raw_repl()
        line.send(script + b"\x04")
        line.until(b"OKgo")
        line.send(data)
        assert line.until(data + b"\r\n\x04\x04>") == b"\n" + data + b"\r\n\x04\x04>"


def test_what_does_not_fit_the_input_buffer_is_lost_as_on_a_board(board: Bench) -> None:
    script = (
        b"import sys, time\nprint('busy')\ntime.sleep(0.3)\n"
        b"sys.stdin.buffer.read(259)\nprint('got')"
    )
    with Line(board.port.path) as line:
        line.raw_repl()
        line.send(script + b"\x04")
        line.until(b"busy\r\n")
        line.send(b"a" * 300)
        assert line.until(b">") == b"got\r\n\x04\x04>"
        output, _ = line.execute(b"print('clean')")
    assert output == b"clean\r\n"


def test_an_interrupt_between_flash_operations_breaks_none(board: Bench) -> None:
    # The requests to the flash are atomic to Ctrl-C, as C code is: many interrupts at any moment.
    with Line(board.port.path) as line:
        line.raw_repl()
        line.execute(
            b"import esp32, sys\np = esp32.Partition('ota_1')\nb = bytearray(4096)\n"
            b"def work():\n  print('on')\n  while True: p.writeblocks(0, b); p.readblocks(0, b)"
        )
        for _ in range(20):
            line.interrupt_work()
        assert line.execute(b"print(p.info()[4])") == (b"ota_1\r\n", b"")


def test_an_interrupt_finds_the_garbage_collector_at_no_work(board: Bench) -> None:
    # On a board it comes between two bytecodes; amid gc.collect() it would leave the heap locked.
    with Line(board.port.path) as line:
        line.raw_repl()
        line.execute(
            b"import esp32, gc\nkept = [bytearray(50) for _ in range(500)]\n"
            b"def work():\n  print('on')\n  while True: gc.collect(); esp32.Partition(0)"
        )
        for _ in range(20):
            line.interrupt_work()
            assert line.execute(b"print(len(bytearray(5000)))") == (b"5000\r\n", b"")


def test_the_board_goes_on_with_nobody_at_the_port(board: Bench) -> None:
    with Line(board.port.path) as line:
        line.raw_repl()
        line.send(
            b"import time\ntime.sleep(0.05)\nprint('unheard' * 9999)\nopen('done', 'w').close()\x04"
        )
        line.until(b"OK")
    assert "done" in board.say("fs", "ls")
