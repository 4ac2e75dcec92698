"""A terminal, 80 columns by 24 lines unless told otherwise, and what a program shows on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

COLUMNS, LINES = 80, 24
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_TIMEOUT_S = 120.0


class Screen:
    """What a terminal shows of ``output``: all lines, those that have scrolled away included.

    Knows what we print: text, colours, line ends and carriage returns; all else is an error.
    """

    def __init__(self, output: str, columns: int = COLUMNS) -> None:
        self.output = output
        self.wraps = 0  # lines that went on by themselves, in the terminal's way
        self._columns = columns
        self._lines = [""]
        self._at = 0
        for character in _COLOUR.sub("", output):
            self._take(character)
        self.lines = [line.rstrip() for line in self._lines]
        self.text = "\n".join(self.lines)

    def _take(self, character: str) -> None:
        if character == "\n":
            self._lines.append("")
            self._at = 0
        elif character == "\r":
            self._at = 0
        else:
            assert character.isprintable(), f"{character!r} in {self.output!r}"
            if self._at == self._columns:
                self.wraps += 1
                self._lines.append("")
                self._at = 0
            line = self._lines[-1].ljust(self._at)
            self._lines[-1] = line[: self._at] + character + line[self._at + 1 :]
            self._at += 1


def run(
    words: Sequence[object],
    *,
    directory: Path | None = None,
    env: Mapping[str, str] | None = None,
    columns: int = COLUMNS,
    when: Callable[[str], object] | None = None,
    program: Sequence[str] = ("-m", "mpota"),
) -> tuple[int, Screen]:
    """Run `mpota` with ``words`` in a terminal: its exit code and what is shown. ``program``: what
    of Python else.

    ``when`` is called with all output so far, each time that there is more; what it returns, if it
    is a text, is typed.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
    unwanted = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
    plain = {key: value for key, value in os.environ.items() if key not in unwanted}
    process = subprocess.Popen(
        [sys.executable, *program, *map(str, words)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=directory,
        env={**plain, "TERM": "xterm-256color", **(env or {})},
        preexec_fn=_take_terminal,
    )
    os.close(slave)
    output = bytearray()
    deadline = time.monotonic() + _TIMEOUT_S
    try:
        while True:
            ready, _, _ = select.select([master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"not done after {_TIMEOUT_S:.0f} s: {output!r}"
            try:
                data = os.read(master, 65536)
            except OSError:  # Linux: nobody has the other end any more
                break
            if not data:
                break
            output += data
            typed = when(output.decode("utf-8", "replace")) if when else None
            if isinstance(typed, str):
                os.write(master, typed.encode())
        return process.wait(timeout=10), Screen(output.decode(), columns)
    finally:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        os.close(master)


def _take_terminal() -> None:
    """It becomes the one that Ctrl-C comes from; who is started by `&` would not hear that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
