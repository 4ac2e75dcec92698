"""MicroPython processes for boots: forks of one that has done what all of them begin with.

To start the interpreter, to import what stands in for C code and to make room for names takes
three quarters of the time that a boot takes which does nothing (standin/forkserver.py).
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import signal
import subprocess
import threading
from collections import OrderedDict
from pathlib import Path

from mpota.virtual import standins

_MAX_SERVERS = 4  # one for each size of a heap


class Fork:
    """A running process, with the part of `subprocess.Popen` that boots need."""

    def __init__(self, pid: int, stdout: io.FileIO, server: _Server) -> None:
        self.pid = pid
        self.stdout = stdout
        self._server = server

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        """It has been killed, or has ended: the server buries it."""
        with _lock:
            self._server.forks -= 1


class _Server:
    """``forks``: how many of its forks have not ended. They end with it, at the latest."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self.forks = 0
        orders_fd, self._orders_fd = os.pipe()
        self._answers_fd, answers_fd = os.pipe()
        code = f"import forkserver; forkserver.serve({orders_fd}, {answers_fd})"
        try:
            self._process = standins.start(
                command,
                code,
                (orders_fd, answers_fd),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        finally:
            os.close(orders_fd)
            os.close(answers_fd)

    def fork(self, *fds: int) -> int:
        """The id of a new process; 0 if this interpreter cannot fork. ``fds``: -1 is nothing."""
        own = f"/proc/{os.getpid()}/fd/"
        paths = [f"{own}{fd}" if fd >= 0 else os.devnull for fd in fds]
        try:
            os.write(self._orders_fd, (" ".join(paths) + "\n").encode())
            pid = int(os.read(self._answers_fd, 32) or 0)
        except BrokenPipeError:
            return 0
        self.forks += bool(pid)
        return pid

    def end(self) -> None:
        os.close(self._orders_fd)
        os.close(self._answers_fd)
        self._process.wait()


_servers: OrderedDict[tuple[str, ...], _Server] = OrderedDict()
_cannot_fork: set[tuple[str, ...]] = set()
_lock = threading.Lock()


def start(command: list[str], fds: tuple[int, int, int], stdin: int | None) -> Fork | None:
    """A boot: ``command`` starts the interpreter, ``fds`` are the ends of its pipes and its flash.

    None where that cannot be done: on a system without /proc, with an interpreter without `ffi`.
    """
    key = tuple(command)
    if key in _cannot_fork or not Path("/proc/self/fd").is_dir():
        return None
    stdout_fd, console_fd = os.pipe()
    try:
        with _lock:
            server = _server(key)
            pid = server.fork(-1 if stdin is None else stdin, console_fd, *fds)
            if not pid and not server.forks:
                _servers.pop(key).end()
                _cannot_fork.add(key)
    finally:
        os.close(console_fd)
    stdout = io.FileIO(stdout_fd)
    if pid:
        return Fork(pid, stdout, server)
    stdout.close()
    return None


def _server(key: tuple[str, ...]) -> _Server:
    if key not in _servers:
        idle = [one for one, server in _servers.items() if not server.forks]
        if len(_servers) >= _MAX_SERVERS and idle:
            _servers.pop(idle[0]).end()
        _servers[key] = _Server(key)
    _servers.move_to_end(key)
    return _servers[key]


@atexit.register
def _end() -> None:
    while _servers:
        _servers.popitem()[1].end()
