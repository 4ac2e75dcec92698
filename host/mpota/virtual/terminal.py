"""A virtual board's serial console: somebody types at one end, the board prints at the other.

On a board the driver of the port looks at every byte that arrives: the interrupt character
(Ctrl-C, unless ``micropython.kbd_intr`` has changed it) raises KeyboardInterrupt in what runs, all
others wait in a ring buffer (ports/esp32/uart.c, usb_serial_jtag.c). Here the interrupt is SIGINT
and the ring buffer is the pipe that the interpreter has as its stdin.
"""

from __future__ import annotations

import fcntl
import math
import os
import signal
import struct
import termios
import time
from collections.abc import Callable

# ports/esp32/mphalport.c: stdin_ringbuf_array holds 260 bytes, one of them is never used.
RING_SIZE = 259
# What a pipe holds. A pty brings bytes much faster than a UART does, so that a client that is not
# flow-controlled would overflow the real size here though it does not on a board.
DEFAULT_BUFFER_SIZE = 65536

_NO_CHAR = -1
# Bytes follow each other at the pace of the line: before the next one comes the interrupt has been
# taken. Here that is over at the latest after so long; sooner if the script ends by it.
_INTERRUPT_S = 0.1


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
        self._stdin_fd: int | None = None
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
        os.close(self._typed_fd)

    def attach(self, stdin_fd: int, pid: int) -> None:
        """An interpreter has started. What was typed meanwhile waits until it listens."""
        self._stdin_fd, self._pid = stdin_fd, pid
        os.set_blocking(stdin_fd, False)
        self._interrupt_char = _NO_CHAR
        self._is_listening = False
        self.paused_until = math.inf

    @property
    def waiting_fd(self) -> int | None:
        """What to wait for input at; None while the interpreter is not to get any."""
        is_ready = self._is_listening and self.paused_until == math.inf
        return self._typed_fd if is_ready else None

    def set_interrupt_char(self, char: int) -> None:
        self._interrupt_char = char if char < 0x80 else _NO_CHAR
        self._is_listening = True
        self.go_on()

    def forward(self) -> bool:
        """Bring what was typed to the interpreter; False: nobody will type any more."""
        data = os.read(self._typed_fd, 65536)
        self._feed(data)
        return bool(data)

    def go_on(self) -> None:
        """The time for an interrupt to be taken is over: what was typed behind it comes now."""
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
        os.kill(self._pid, signal.SIGINT)
        self.paused_until = time.monotonic() + _INTERRUPT_S
        self._held = data[at + 1 :]
        return None

    def _fill_buffer(self, data: bytes) -> None:
        assert self._stdin_fd is not None
        answer = fcntl.ioctl(self._stdin_fd, termios.FIONREAD, bytes(4))
        (waiting_size,) = struct.unpack("i", answer)
        kept = data[: max(0, self._buffer_size - waiting_size)]
        self.lost_size += len(data) - len(kept)
        if not kept:
            return
        try:
            os.write(self._stdin_fd, kept)
        except BrokenPipeError:  # the interpreter has ended
            self.lost_size += len(kept)

    def print(self, data: bytes) -> None:
        """Text: its lines end with CR LF on a serial port."""
        self._print_out(data.replace(b"\n", b"\r\n"))

    def send(self, data: bytes) -> None:
        """Bytes as they are."""
        self._print_out(data)
