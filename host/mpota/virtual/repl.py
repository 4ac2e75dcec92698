"""The console of a running virtual board as a serial port, for mpremote and other REPL clients.

MicroPython's friendly REPL, raw REPL and raw paste mode are the board's own matter
(``standin/repl.py``); here are the power switch and the cable.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

from mpota.errors import MpotaError
from mpota.virtual.board import Board, End
from mpota.virtual.terminal import DEFAULT_BUFFER_SIZE, Terminal


class ConsolePort:
    """A board and what lives behind its serial port (a `PortHandler` of `SerialPort`).

    The port is there whether the board is on or off, as that of a USB bridge chip: who has it
    open through a reset sees the bootloader's lines, then what boot.py and main.py print, then
    the prompt. What is printed while nobody has it open is lost, but for ``heard``.

    Each `power_on` is a run of the board in a thread of its own. Why a run ended by itself (no app
    to boot; FlashError: the code on the board broke a rule of NOR flash) is printed on the
    console, for those who open the port later as well; what is not the board's doing is kept in
    ``failure``.
    """

    def __init__(
        self,
        board: Board,
        buffer_size: int = DEFAULT_BUFFER_SIZE,
        heard: Callable[[bytes], None] | None = None,
    ) -> None:
        self._board = board
        self._heard = heard or _drop
        self._buffer_size = buffer_size
        self._send: Callable[[bytes], None] = _drop
        self._terminal: Terminal | None = None
        self._thread: threading.Thread | None = None
        self._switch = threading.Lock()
        self._typing = threading.Lock()
        self._lost_size = 0
        self._last_words = b""
        self.failure: MpotaError | None = None

    def __enter__(self) -> ConsolePort:
        self.power_on()
        return self

    def __exit__(self, *error: object) -> None:
        self.power_off()

    def power_on(self) -> None:
        """Let the board boot, unless it is on."""
        with self._switch:
            if self._thread is None:
                self._last_words = b""
                self._terminal = Terminal(self._print_out, self._buffer_size)
                run = (self._run, self._terminal)
                self._thread = threading.Thread(target=run[0], args=run[1:], daemon=True)
                self._thread.start()

    def power_off(self) -> None:
        """Cut the board's power, if it is on. Afterwards nothing of it runs any more."""
        with self._switch:
            with self._typing:
                terminal, self._terminal = self._terminal, None
                if terminal is not None:
                    self._lost_size = terminal.lost_size
                    terminal.hang_up()
            if self._thread is not None:
                self._thread.join()
                self._thread = None

    @property
    def lost_size(self) -> int:
        """Bytes that found no room in the board's input buffer since it was last switched on."""
        terminal = self._terminal
        return self._lost_size if terminal is None else terminal.lost_size

    def opened(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        send(self._last_words)

    def received(self, data: bytes) -> None:
        with self._typing:
            if self._terminal is not None:
                self._terminal.type(data)

    def closed(self) -> None:
        self._send = _drop

    def _run(self, terminal: Terminal) -> None:
        try:
            run = self._board.run(terminal=terminal, timeout_s=None, max_boots=sys.maxsize)
            if run.end is End.NO_APP:
                lines = run.boots[-1].bootloader_lines
                self._last_words = "".join(f"{line}\r\n" for line in lines).encode()
            elif run.end is not End.POWER_CUT:
                raise MpotaError(f"MicroPython ended by itself ({run.end.value})")
        except MpotaError as error:
            self.failure = error
            self._last_words = f"\r\nvirtual board: {error}\r\n".encode()
            self._send(self._last_words)
        finally:
            terminal.close()

    def _print_out(self, data: bytes) -> None:
        self._heard(data)
        self._send(data)


def _drop(data: bytes) -> None:
    """Nobody has the port open."""
