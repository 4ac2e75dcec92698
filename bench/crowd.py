"""Thousands of simulated boards, many a process, that follow what is offered to them.

Each has an id and an NVS of its own, and runs the code of `ota` itself, on MicroPython: it polls,
decides, judges manifests by their signatures, and fetches payloads over real sockets. What comes is
counted, not written; the next boot is simulated, with a confirmation or a failed trial. So is time,
which goes on from one poll to the next: a day takes as long as its requests. The part that runs on
MicroPython is crowd_board/crowd_main.py.

A client is any class of the package that has ``poll()``, ``due`` (ticks_ms of the next poll),
``code``, ``error``, and takes ``restart=``: `ota.channel.Channel`, for one.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpota.units import MiB
from mpota.virtual import micropython

from bench.pairs import ROOT

_MAIN = Path(__file__).parent / "crowd_board" / "crowd_main.py"
_HEAP = 12 * MiB  # of a process, and for each board
_HEAP_BOARD = 16 * 1024
_PACKAGE = ROOT / "device" / "mpy"


@dataclass(frozen=True)
class Client:
    """What each board makes once it has started: ``name`` of ``module``, called with these.

    ``{id}`` in a text among ``args`` and ``options`` is the board's own id, in hex.
    """

    module: str
    name: str
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Boards:
    """``apps``: what may stand in their slots, by SHA-256 in hex; they run ``app`` and have
    confirmed ``release``: name, version, counter. ``keys``: digests (hex) that they trust.
    ``failing``: version -> numbers of the boards on which it is not confirmed.
    """

    unique_ids: Sequence[bytes]
    apps: Mapping[str, bytes]
    app: str
    release: tuple[str, str, int]
    keys: tuple[str, ...]
    board: str = "Generic ESP32 module with ESP32"
    failing: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """What became of a board, at ``at`` seconds: "runs" (the release ``version``), "failed" (its
    trial), or "error" (``version`` is its code). ``taken``: (kind, encoding, bytes) of payloads.
    """

    at: int
    board: int
    what: str
    version: str
    taken: tuple[tuple[str, str | None, int], ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Passed:
    """What happened in some time. ``codes``: what boards say at its end -> how many of them."""

    events: list[Event]
    polls: int
    codes: Mapping[str, int]


class Crowd:
    """Boards whose time goes on with `run`."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def run(self, until_s: float) -> Passed:
        """Let time go on until then, in seconds since the start. All processes work at once."""
        with ThreadPoolExecutor(len(self._processes)) as pool:
            parts = list(pool.map(lambda process: _run(process, until_s), self._processes))
        events = [event for part in parts for event in part.events]
        codes: Counter[str] = Counter()
        for part in parts:
            codes.update(part.codes)
        polls = sum(part.polls for part in parts)
        return Passed(sorted(events, key=lambda event: event.at), polls, codes)


def _run(process: subprocess.Popen[str], until_s: float) -> Passed:
    """A line for each event, then one for all."""
    _tell(process, {"until_ms": int(until_s * 1000)})
    events = []
    while isinstance(message := _hear(process), list):
        events.append(_event(*message))
    return Passed(events, message["polls"], message["codes"])


def _event(at: int, board: int, what: str, version: str, more: Any) -> Event:
    if what == "error":
        return Event(at, board, what, version, text=more)
    return Event(at, board, what, version, tuple(tuple(row) for row in more))


@contextmanager
def crowd(
    boards: Boards, client: Client, start_s: int, processes: int = 2, package: Path = _PACKAGE
) -> Iterator[Crowd]:
    """Boards that have just started. ``start_s``: what their clocks say, seconds since 1970."""
    numbered = list(enumerate(boards.unique_ids))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        work = Path(name)
        paths = {sha256: work / sha256 for sha256 in boards.apps}
        for sha256, data in boards.apps.items():
            paths[sha256].write_bytes(data)
        packages = work / "packages"
        packages.mkdir()
        (packages / "ota").symlink_to(package, target_is_directory=True)
        started = []
        for number in range(processes):
            own = numbered[number::processes]
            root = work / str(number)
            root.mkdir()
            process = stack.enter_context(_started(_HEAP + _HEAP_BOARD * len(own)))
            _tell(
                process,
                {
                    "start": start_s,
                    "root": str(root),
                    "package": str(packages),
                    "apps": {sha256: str(path) for sha256, path in paths.items()},
                    "app": boards.app,
                    "release": boards.release,
                    "keys": boards.keys,
                    "board": boards.board,
                    "failing": boards.failing,
                    "module": client.module,
                    "client": client.name,
                    "args": client.args,
                    "options": client.options,
                    "boards": [(number, unique_id.hex()) for number, unique_id in own],
                },
            )
            started.append(process)
        for process in started:
            _hear(process)
        yield Crowd(started)


@contextmanager
def _started(heap_size: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*micropython.find().with_heap(heap_size), str(_MAIN)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _tell(process: subprocess.Popen[str], message: Mapping[str, Any]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it says why: _hear


def _hear(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if line[:1] not in ("{", "["):
        raise RuntimeError(line + process.stdout.read())
    return json.loads(line)
