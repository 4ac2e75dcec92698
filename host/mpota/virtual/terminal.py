"""A virtual board's serial console: somebody types at one end, the board prints at the other.

On a board the driver of the port looks at every byte that arrives: the interrupt character
(Ctrl-C, unless ``micropython.kbd_intr`` has changed it) raises KeyboardInterrupt in what runs, all
others wait in a ring buffer (ports/esp32/uart.c, usb_serial_jtag.c). Here the ring buffer is the
pipe that the interpreter has as its stdin, and after a soft reset the next one: what was not read
is still there.

On a board KeyboardInterrupt comes between two bytecodes. The unix port raises it in its handler of
SIGINT, wherever the main thread is: in the garbage collector, whose heap stays locked for ever
then, in littlefs, or with a mutex of the interpreter in its hands. So the interrupt comes with the
answer to the next request, or by SIGINT while the program waits; one that does nothing but compute
gets SIGINT after a while as well.
"""

from __future__ import annotations

import fcntl
import math
import os
import platform
import re
import signal
import struct
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# ports/esp32/mphalport.c: stdin_ringbuf_array holds 260 bytes, one of them is never used.
RING_SIZE = 259
# What a pipe holds. A pty brings bytes much faster than a UART does, so that a client that is not
# flow-controlled would overflow the real size here though it does not on a board.
DEFAULT_BUFFER_SIZE = 65536

_NO_CHAR = -1
# Bytes follow each other at the pace of the line: before the next one comes the interrupt has been
# taken. Here that is over at the latest so long after it was handed over; sooner if the script ends
# by it.
_INTERRUPT_S = 0.1
_LOOK_S = 0.002  # to the next look whether the program waits
_COMPUTES_S = 0.3  # of the processor's time, without waiting or a request
_STOP_S = 0.0002  # to the next look whether it has stopped, of which nothing tells but the state
_BLOCKED = re.compile(r"^SigBlk:\s*([0-9a-f]+)$", re.MULTILINE)
# The system call that waits for locks: of 64 bits; of 32, and there since Linux 5.1.
_FUTEX = (98 if platform.machine() == "aarch64" else 202, 240, 422)


class Terminal:
    """``print_out(data)`` is called with all that the board sends. Bytes that find no room in the
    ``buffer_size`` bytes of the board's input buffer are lost, as on a board.

    `type` and `hang_up` may be called from any thread, the rest is for the board's own.
    """

    def __init__(
        self, print_out: Callable[[bytes], None], buffer_size: int = DEFAULT_BUFFER_SIZE
    ) -> None:
        self._print_out = print_out
        self._buffer_size = buffer_size
        self._typed_fd, self._typing_fd = os.pipe()
        os.set_blocking(self._typing_fd, False)
        self._interrupt_char = _NO_CHAR
        self._is_listening = False
        self.paused_until = math.inf  # inf: not paused
        self._held = b""
        self._is_due = False  # an interrupt that the program has not got yet
        self._due_from_s = 0.0  # of the processor's time
        self.stdin_fd, self._buffer_fd = os.pipe()
        os.set_blocking(self._buffer_fd, False)
        self._pid = 0
        self.is_raw = False  # the mode that the REPL is in, which a soft reset does not change
        self.lost_size = 0  # bytes

    # --- the side of who types

    def type(self, data: bytes) -> None:
        try:
            done = os.write(self._typing_fd, data)
        except (BlockingIOError, BrokenPipeError):  # there is no room, or nothing that runs
            done = 0
        self.lost_size += len(data) - done

    def hang_up(self) -> None:
        """Let the board know that there is no more to come: it loses its power."""
        os.close(self._typing_fd)

    # --- the side of the board

    def close(self) -> None:
        for fd in (self._typed_fd, self.stdin_fd, self._buffer_fd):
            os.close(fd)

    def reset(self) -> None:
        """The chip starts over: what was not read is lost."""
        self.is_raw = False
        self._held = b""
        if waiting_size := self._waiting_size():
            os.read(self.stdin_fd, waiting_size)

    def attach(self, pid: int) -> None:
        """An interpreter has started. What was typed meanwhile waits until it listens."""
        self._pid = pid
        self._interrupt_char = _NO_CHAR
        self._is_listening = self._is_due = False
        self.paused_until = math.inf

    @property
    def waiting_fd(self) -> int | None:
        """What to wait for input at; None while the interpreter is not to get any."""
        is_ready = self._is_listening and self.paused_until == math.inf
        return self._typed_fd if is_ready else None

    def set_interrupt_char(self, char: int) -> None:
        self._interrupt_char = char if char < 0x80 else _NO_CHAR
        self._is_listening = True
        if not self._is_due:
            self._go_on()

    def forward(self) -> bool:
        """Bring what was typed to the interpreter; False: nobody will type any more."""
        data = os.read(self._typed_fd, 65536)
        self._feed(data)
        return bool(data)

    def look(self) -> None:
        """Hand an interrupt over if it is time, or let in what was typed behind one."""
        if time.monotonic() < self.paused_until:
            return
        if not self._is_due:
            self._go_on()
            return
        computes = process_state(self._pid)[1] >= self._due_from_s + _COMPUTES_S
        if interrupt(self._pid, even_if_it_runs=computes):
            self.take_interrupt()
        else:
            self.paused_until = time.monotonic() + _LOOK_S

    def take_interrupt(self) -> bool:
        """Whether there is an interrupt to hand over: the caller does so now."""
        if not self._is_due:
            return False
        self._is_due = False
        self.paused_until = time.monotonic() + _INTERRUPT_S
        return True

    def _go_on(self) -> None:
        self.paused_until = math.inf
        held, self._held = self._held, b""
        self._feed(held)

    def _feed(self, data: bytes) -> None:
        at = -1
        if self._interrupt_char != _NO_CHAR:
            at = data.find(self._interrupt_char)
        if at < 0:
            return self._fill_buffer(data)
        self._fill_buffer(data[:at])
        self._held = data[at + 1 :]
        self._is_due = True
        self._due_from_s = process_state(self._pid)[1]
        self.paused_until = time.monotonic()
        return None

    def _fill_buffer(self, data: bytes) -> None:
        room = max(0, self._buffer_size - self._waiting_size())
        try:
            done = os.write(self._buffer_fd, data[:room])
        except BlockingIOError:  # a pipe has room for whole pages
            done = 0
        self.lost_size += len(data) - done

    def _waiting_size(self) -> int:
        """Bytes that the interpreter has not read."""
        answer = fcntl.ioctl(self.stdin_fd, termios.FIONREAD, bytes(4))
        return int(struct.unpack("i", answer)[0])

    def print(self, data: bytes) -> None:
        """Text: its lines end with CR LF on a serial port."""
        self._print_out(data.replace(b"\n", b"\r\n"))

    def send(self, data: bytes) -> None:
        """Bytes as they are."""
        self._print_out(data)


def interrupt(pid: int, *, even_if_it_runs: bool = False) -> bool:
    """Send SIGINT to a process that waits, unless it blocks that; whether it was sent.

    A wait that is seen may be over before the signal arrives: so the process is stopped meanwhile.
    """
    place = _place(pid)
    waits = process_state(pid)[0] if place is None else bool(place)
    if not (waits or even_if_it_runs):
        return False
    with suppress(ProcessLookupError):  # it has ended
        os.kill(pid, signal.SIGSTOP)
        try:
            while (fields := _stat(pid)) and fields[0] not in "TtZX":
                time.sleep(_STOP_S)
            if place:
                waits = _place(pid) == place
            is_ready = (waits or even_if_it_runs) and not _blocks_interrupts(pid)
            if is_ready:
                os.kill(pid, signal.SIGINT)
            return is_ready
        finally:
            os.kill(pid, signal.SIGCONT)
    return False


def process_state(pid: int) -> tuple[bool, float]:
    """(whether it waits, how much of the processor's time it has had in seconds)"""
    fields = _stat(pid)
    if not fields:
        return True, 0.0
    ticks = int(fields[11]) + int(fields[12])
    return fields[0] == "S", ticks / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """From the third field on, which is the state (proc(5)); none on a system without /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _place(pid: int) -> str | None:
    """The system call in which it waits, with its arguments and the stack (proc(5)).

    Empty if it is in none, or waits for a lock, where it may hold others; None where that cannot
    be seen.
    """
    try:
        text = Path(f"/proc/{pid}/syscall").read_text()
    except OSError:
        return None
    number = text.split()[0]
    return text if number.isdigit() and int(number) not in _FUTEX else ""


def _blocks_interrupts(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    found = _BLOCKED.search(text)
    return found is not None and bool(int(found[1], 16) >> (signal.SIGINT - 1) & 1)
