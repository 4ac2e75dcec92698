"""A serial port that other programs can open: a pty, served by a thread.

A pty has no modem lines, so nothing here knows of DTR and RTS. What stands for them: who opens the
port has plugged the cable in, and who closes it lets go of the reset line.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from mpota.errors import MpotaError

_POLL_MS = 10  # there is no event for "somebody opened it"


class PortHandler(Protocol):
    """What lives behind a port. All calls come from the port's thread."""

    def opened(self, send: Callable[[bytes], None]) -> None:
        """A program opened the port; ``send`` reaches it."""

    def received(self, data: bytes) -> None:
        """Bytes that it wrote."""

    def closed(self) -> None:
        """The last program that had it open closed it, or died."""


class SerialPort:
    """A pty with a ``handler`` behind it; ``path`` is what others open.

    An exception from the handler ends the port, as if the cable had been pulled: whoever has it
    open gets an input/output error. It is kept in ``failure``. Who looks for a port that was pulled
    finds none: no other gets its number as long as this object lives.
    """

    _number_fd: int | None = None  # once it was pulled: what keeps the number

    def __init__(self, handler: PortHandler) -> None:
        try:
            import pty
            import tty
        except ImportError:
            raise MpotaError("a virtual serial port needs a POSIX system, such as Linux") from None
        self._handler = handler
        self._master, slave = pty.openpty()
        tty.setraw(slave)
        self.path = os.ttyname(slave)
        os.close(slave)  # from now on the master sees a hang-up until somebody opens the port
        os.set_blocking(self._master, False)
        self._poll_writable = select.poll()
        self._poll_writable.register(self._master, select.POLLOUT)
        self._is_plugged = True
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name=self.path, daemon=True)
        self._thread.start()

    def __enter__(self) -> SerialPort:
        return self

    def __exit__(self, *error: object) -> None:
        self.unplug()

    def unplug(self) -> None:
        """Pull the cable. The handler gets its `closed` if the port was open."""
        self._is_plugged = False
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        is_open = False
        try:
            while self._is_plugged:
                events = dict(poll.poll(_POLL_MS)).get(self._master, 0)
                if not is_open and not events & select.POLLHUP:
                    is_open = True
                    self._handler.opened(self._send)
                if events & select.POLLIN:
                    data = self._read()
                    if data:
                        self._handler.received(data)
                        continue
                if events & select.POLLHUP:
                    if is_open:
                        is_open = False
                        self._handler.closed()
                    time.sleep(_POLL_MS / 1000)  # a pty does not tell that somebody opens it
        except BaseException as error:
            self.failure = error
        finally:
            # Who had it open notices after that: by then the handler may have another port.
            try:
                if is_open and self.failure is None:
                    self._handler.closed()
            finally:
                with suppress(OSError):
                    self._number_fd = os.open(self.path, os.O_RDWR | os.O_NOCTTY)
                os.close(self._master)

    def __del__(self) -> None:
        if self._number_fd is not None:
            os.close(self._number_fd)

    def _read(self) -> bytes:
        try:
            return os.read(self._master, 65536)
        except OSError:  # EIO: everybody has closed it; EAGAIN: nothing there after all
            return b""

    def _send(self, data: bytes) -> None:
        """Write all of ``data``; what nobody is there to read any more is dropped."""
        view = memoryview(data)
        while view and self._is_plugged:
            events = dict(self._poll_writable.poll(_POLL_MS)).get(self._master, 0)
            if events & select.POLLHUP:
                return
            if events & select.POLLOUT:
                try:
                    view = view[os.write(self._master, view) :]
                except BlockingIOError:
                    continue
                except OSError:
                    return
