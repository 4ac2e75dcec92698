"""A whole rehearsal: stages in processes of their own, which are handed cuts and report on them.

A process is confined by `mpota.rehearse.confine` before it starts anything. All files are below
one directory that only its owner may read, and go with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from mpota.errors import MpotaError, UsageError
from mpota.rehearse.stage import (
    FIRST_BOOT,
    NETWORK,
    ROLL_BACK,
    SECOND,
    UPDATE,
    Aftermath,
    Passage,
    Setup,
    Stage,
)
from mpota.virtual.cuts import DEFAULT_MODES, CutPoint, Outcome
from mpota.virtual.flash import Operation

_SHARES = {FIRST_BOOT: 0.1, ROLL_BACK: 0.15, SECOND: 0.25}  # of the cuts; the rest are UPDATE's
_BATCH = 6  # cuts that a process is given at once: neighbours often leave the same
_MAX_JOBS = 8
_PR_SET_PDEATHSIG = 1
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Tried:
    """One power cut or broken connection, and its result; ``id`` replays it."""

    id: str
    scenario: str
    boots: str
    twice: int | None
    findings: tuple[str, ...]


@dataclass
class Rehearsal:
    """The results so far. ``planned`` is how many disturbances were to be tried."""

    steps: list[Passage] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    planned: int = 0
    seconds: float = 0.0
    is_interrupted: bool = False

    @property
    def findings(self) -> list[tuple[str, str]]:
        """(what it was found in, what it is), the undisturbed steps first."""
        found = [(step.name, text) for step in self.steps for text in step.findings]
        return found + [(one.id, text) for one in self.tried for text in one.findings]


# --- in a process of its own -------------------------------------------------------------------


@dataclass(frozen=True)
class _Played:
    steps: list[Passage]
    notes: list[str]
    ids: list[str]


def name_of(point: CutPoint) -> str:
    return f"{NETWORK}:{point.op}" if point.scenario == NETWORK else str(point)


def _serve(line: Connection, plan: Setup, shared: Path, number: int, cuts: _Wanted) -> None:
    """Play everything, then try what is asked for, until nothing more is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # a board's REPL needs it
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    warnings.simplefilter("ignore")  # those of libraries are for developers
    os.umask(0o077)
    scratch = shared / str(number)
    scratch.mkdir()
    try:
        with Stage(plan, scratch, shared) as stage:
            steps = stage.play()
            # What fails undisturbed fails after each cut as well: that would say nothing.
            is_good = not any(step.findings for step in steps)
            ids = cuts.ids(stage) if is_good or cuts.only else []
            line.send(_Played(steps, stage.notes, ids))
            while (wanted := line.recv()) is not None:
                for outcome in _outcomes(stage, wanted):
                    line.send(_tried(outcome))
                line.send(None)
                if cuts.leaves_flash:
                    line.send(_flash(stage, wanted[0]))
    except MpotaError as error:
        line.send(error)
    except EOFError:  # the parent has gone
        pass


def _outcomes(stage: Stage, ids: list[str]) -> Iterator[Outcome[Aftermath]]:
    breaks = [int(text.partition(":")[2]) for text in ids if text.startswith(f"{NETWORK}:")]
    points = [CutPoint.parse(text) for text in ids if not text.startswith(f"{NETWORK}:")]
    yield from stage.try_cuts(points)
    for at in breaks:
        yield stage.break_network(at)


def _flash(stage: Stage, text: str) -> bytes:
    """The flash that a cut leaves; after a broken connection, the flash at the end."""
    if text.startswith(f"{NETWORK}:"):
        return stage.flash.snapshot()
    point = CutPoint.parse(text)
    return stage.recording(point.scenario).content(point)


def _tried(outcome: Outcome[Aftermath]) -> Tried:
    seen, point = outcome.verdict.seen, outcome.point
    return Tried(name_of(point), point.scenario, seen.boots, seen.twice, outcome.verdict.findings)


@dataclass(frozen=True)
class _Wanted:
    """How many disturbances of each kind; None: all cuts."""

    cuts: int | None
    breaks: int
    only: str | None = None
    leaves_flash: bool = False

    def ids(self, stage: Stage) -> list[str]:
        if self.only is not None:
            return [self.only]
        found: list[str] = []
        rest = self.cuts
        for name in (FIRST_BOOT, ROLL_BACK, SECOND, UPDATE):
            recording = stage.recordings.get(name)
            if recording is None or not recording.effects:
                continue
            points = recording.all_points()
            if self.cuts is not None and rest is not None:
                share = rest if name == UPDATE else round(self.cuts * _SHARES[name])
                points = _some(
                    recording.chosen_points(share, _writes_otadata(stage), DEFAULT_MODES), share
                )
                rest -= len(points)
            found = [*map(str, points), *found]
        total = stage.total if stage.received is not None and UPDATE in stage.recordings else 0
        places = [1 + i * (total - 2) // max(1, self.breaks - 1) for i in range(self.breaks)]
        return found + [f"{NETWORK}:{at}" for at in sorted(set(places)) if 0 < at < total]


def _some(points: list[CutPoint], count: int) -> list[CutPoint]:
    """``count`` of them, spread evenly."""
    if len(points) <= count:
        return points
    return [points[i * len(points) // count] for i in range(count)]


def _writes_otadata(stage: Stage) -> Callable[[Operation], bool]:
    places = stage.otadata
    return lambda operation: places is not None and places[0] <= operation.offset < places[1]


# --- here --------------------------------------------------------------------------------------


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory that only its owner may read, in memory where the system has such."""
    parent = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix=f"mpota-rehearse-{os.getpid()}-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class _Worker:
    def __init__(self, plan: Setup, shared: Path, number: int, wanted: _Wanted) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=_serve, args=(theirs, plan, shared, number, wanted), daemon=True
        )
        # Ctrl-C is for this process: the other one is born deaf to it, and stays so. Another thread
        # here may hear it while this one is deaf, and half a process must not be started.
        heard: list[int] = []
        handler = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
        former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
            signal.signal(signal.SIGINT, handler)
        theirs.close()
        if heard:
            self.end()
            raise KeyboardInterrupt

    def receive(self) -> object:
        """Raises the error that has ended it."""
        try:
            found = self.line.recv()
        except EOFError:
            self.process.join()
            raise MpotaError(
                f"a process of the rehearsal ended by itself ({self.process.exitcode})"
            ) from None
        if isinstance(found, MpotaError):
            raise found
        return found

    def end(self) -> None:
        self.process.terminate()
        self.process.join()
        self.line.close()


# Is called with how many of the disturbances have been tried, and how many there are.
Tell = Callable[[int, int], object]


def rehearse(
    plan: Setup,
    *,
    cuts: int | None = 100,
    breaks: int = 5,
    jobs: int | None = None,
    tell: Tell = lambda done, total: None,
) -> Rehearsal:
    """Play it all, then try ``cuts`` power cuts, None: all, and ``breaks`` broken connections.

    With Ctrl-C the result is what is known. Raises NotConfinedError (confine.py) where the board
    cannot be confined as the plan wants, and MpotaError for a release that cannot be offered.
    """
    wanted = _Wanted(cuts, breaks)
    result = Rehearsal()
    began = time.monotonic()
    try:
        with scratch_directory() as shared, contextlib.ExitStack() as stack:
            _run(plan, shared, wanted, jobs or _job_count(), result, stack, tell)
    except KeyboardInterrupt:
        result.is_interrupted = True
    result.seconds = time.monotonic() - began
    return result


def replay(plan: Setup, name: str) -> tuple[Rehearsal, bytes]:
    """One disturbance by its id, and the flash that it leaves. Raises UsageError for one that
    there is not."""
    if not name.startswith(f"{NETWORK}:"):
        CutPoint.parse(name)
    elif not name.partition(":")[2].isdecimal():
        raise UsageError(f"'{name}' is not an id", f"{NETWORK}:BYTE, or SCENARIO:OPERATION:MODE")
    result = Rehearsal(planned=1)
    began = time.monotonic()
    with scratch_directory() as shared:
        worker = _Worker(plan, shared, 0, _Wanted(0, 0, name, leaves_flash=True))
        try:
            _take_played(result, worker.receive())
            worker.line.send([name])
            while (found := worker.receive()) is not None:
                assert isinstance(found, Tried)
                result.tried.append(found)
            flash = worker.receive()
            assert isinstance(flash, bytes)
        finally:
            worker.end()
    result.seconds = time.monotonic() - began
    return result, flash


def _job_count() -> int:
    return min(_MAX_JOBS, len(os.sched_getaffinity(0)))


def _take_played(result: Rehearsal, found: object) -> list[str]:
    assert isinstance(found, _Played)
    result.steps, result.notes = found.steps, found.notes
    return found.ids


def _run(
    plan: Setup,
    shared: Path,
    wanted: _Wanted,
    jobs: int,
    result: Rehearsal,
    stack: contextlib.ExitStack,
    tell: Tell,
) -> None:
    def start(number: int) -> _Worker:
        worker = _Worker(plan, shared, number, wanted)
        stack.callback(worker.end)
        return worker

    first = start(0)
    ids = _take_played(result, first.receive())
    result.planned = len(ids)
    tell(0, len(ids))
    left = deque(ids[at : at + _BATCH] for at in range(0, len(ids), _BATCH))
    if not left:
        return
    workers = [first, *(start(number) for number in range(1, min(jobs, len(left))))]
    first.line.send(left.popleft())
    busy = {worker.line for worker in workers}
    by_line = {worker.line: worker for worker in workers}
    while busy:
        for line in wait(list(busy)):
            assert isinstance(line, Connection)
            found = by_line[line].receive()
            if isinstance(found, Tried):
                result.tried.append(found)
                tell(len(result.tried), len(ids))
                continue
            if left:  # it has ended what it had, or is ready
                line.send(left.popleft())
            else:
                busy.discard(line)
    order = {name: number for number, name in enumerate(ids)}
    result.tried.sort(key=lambda one: order[one.id])
