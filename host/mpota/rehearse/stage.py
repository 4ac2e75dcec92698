"""One board, one release, one way: what a release goes through is played once, each change of the
flash recorded, and what a power cut leaves of it is judged by what the board makes of that.

Each process that takes part has a stage of its own and plays all of it: a second, and nothing has
to be handed over but the names of cuts.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mpota.errors import MpotaError, UsageError
from mpota.firmware import sample
from mpota.firmware.firmware import App, Firmware
from mpota.formats.app_desc import find_micropython
from mpota.mpy_cross import PORTABLE, can_compile
from mpota.push.update import HealthCheck
from mpota.rehearse.confine import Cage
from mpota.rehearse.look import HOME, TREES, Sight, look
from mpota.rehearse.offer import CHANNEL, IMAGE, Offer
from mpota.rehearse.subject import Subject
from mpota.rehearse.ways import WAYS, Played, Setting, Way
from mpota.release.ota_package import package
from mpota.storage.file import FileImage
from mpota.virtual import micropython, standins
from mpota.virtual.board import Board, End, Run
from mpota.virtual.cuts import CutPoint, Outcome, Recording, Verdict, record_changes, try_points
from mpota.virtual.flash import CutMode, Effect, VirtualFlash, total_ms

UPDATE, FIRST_BOOT, SECOND, ROLL_BACK = "update", "first-boot", "second", "roll-back"
NETWORK = "network"  # not a scenario: connections that break

_LIMIT_S = 90.0  # for an update and its boots; the time to confirm is added
_MAX_BOOTS = 12
_GIVE_UP = "import machine\nmachine.reset()\n"
_SHOWN = 3  # names of files in a finding


@dataclass(frozen=True)
class Setup:
    """What is rehearsed. ``then`` follows, None: what is made up. ``confirm_s``: seconds that a
    version may take to confirm itself. ``is_confined``: see confine.py.
    """

    subject: Subject
    offer: Offer
    then: Offer | None
    way: str
    heap_size: int
    check: HealthCheck
    confirm_s: float = 10.0
    is_confined: bool = True


@dataclass(frozen=True)
class Passage:
    """What came of a part of the rehearsal that nothing disturbed.

    ``ends`` says in words what runs then; ``cpu_s`` is the interpreter's time on this machine,
    ``reads`` of the flash by MicroPython, ``least_free`` the heap that was free at the least, where
    it was watched; ``received`` the bytes that came to the board, None where nothing counts them.
    """

    name: str
    ends: str
    operations: int = 0
    flash_ms: float = 0.0
    cpu_s: float = 0.0
    reads: int | None = None
    least_free: int | None = None
    received: int | None = None
    findings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Aftermath:
    """The board after a cut: the app that booted, in words; the bytes that came twice."""

    boots: str
    twice: int | None = None


class _Journal(list[Effect]):
    """Notes how many bytes had come to the board at each operation."""

    def __init__(self, taken: Callable[[], int]) -> None:
        super().__init__()
        self._taken = taken
        self.taken: list[int] = []

    def append(self, effect: Effect) -> None:
        self.taken.append(self._taken())
        super().append(effect)


class Stage:
    """A context manager; `play` comes first. ``scratch`` is this process's own directory,
    ``shared`` that of all.
    """

    def __init__(self, plan: Setup, scratch: Path, shared: Path) -> None:
        self.plan = plan
        self._scratch = scratch
        self._shared = shared
        self.recordings: dict[str, Recording] = {}
        self.notes: list[str] = []
        self._stack = contextlib.ExitStack()
        self._start: Sight
        self._boots: list[tuple[int, float]] = []  # flash operations before each, and when
        self._label: str | None = None
        self._names: dict[str, str] = {}  # SHA-256 of an app -> the app in words
        self._trees: dict[tuple[str | None, str], dict[str, str]] = {}  # pairs that fit
        self._volatile: set[str] = set()  # files that the board's own program changes
        self._stable: dict[str, dict[str, str]] = {}  # what has to stay, by scenario
        self._goals: dict[str, Sight] = {}
        self._offers: dict[str, Offer] = {}
        self._taken: list[int] = []  # bytes that had come at each operation of the update
        self._total = 0
        self._point = CutPoint("", 0, CutMode.BEFORE)
        self._is_restarted = False
        self._updated = b""

    def __enter__(self) -> Stage:
        with contextlib.ExitStack() as stack:
            plan = self.plan
            frozen = None
            if not plan.subject.has_package:
                frozen = self._compile_package()
            site = self._shared / "site"
            site.mkdir(exist_ok=True)
            interpreter = micropython.find()
            confine = self._confine(interpreter, frozen) if plan.is_confined else None
            self.flash = stack.enter_context(
                VirtualFlash.create(
                    len(plan.subject.content),
                    {0: plan.subject.content},
                    _private(self._scratch / "flash.bin"),
                )
            )
            self.board = Board(
                self.flash,
                heap_size=plan.heap_size,
                frozen=frozen,
                table_offset=plan.subject.table_offset,
                chip_revision=plan.subject.chip_revision,
                block_revision=plan.subject.block_revision,
                unique_id=plan.subject.mac,
                interpreter=interpreter,
                confine=confine,
                on_boot=self._note_boot,
                is_rehearsed=True,
            )
            setting = Setting(self.board, self._power, site, plan.check)
            self._way: Way = stack.enter_context(WAYS[plan.way](setting))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _compile_package(self) -> Path:
        folder = self._scratch / "frozen"
        (folder / "ota").mkdir(parents=True)
        for name, data in package(PORTABLE, can_compile(PORTABLE)).items():
            (folder / "ota" / name).write_bytes(data)
        return folder

    def _confine(
        self, interpreter: micropython.Interpreter, frozen: Path | None
    ) -> Callable[[], None]:
        root = self._scratch / "root"
        root.mkdir()
        folders = (standins.directory(), *([frozen] if frozen else []))
        return Cage(root, interpreter.command, folders).close

    # --- running the board

    def _note_boot(self, label: str, operations: int) -> None:
        self._label = label
        self._boots.append((operations, time.monotonic()))

    def _power(self, script: str | None = None, power_fd: int | None = None) -> Run:
        """Power on, until the board is at rest."""
        return self.board.run(
            script,
            timeout_s=_LIMIT_S + self.plan.confirm_s,
            max_boots=_MAX_BOOTS,
            wait_at_idle=True,
            is_settled=self._is_settled,
            power_fd=power_fd,
        )

    def _is_settled(self) -> bool:
        is_late = time.monotonic() - self._boots[-1][1] > self.plan.confirm_s
        return is_late or self._look().is_confirmed

    def _look(self) -> Sight:
        """What runs, or did last."""
        return look(self.flash.snapshot(), self._label, self.plan.subject.table_offset)

    # --- what nothing disturbs

    def play(self) -> list[Passage]:
        """All of it, in order, as far as it gets."""
        steps = [self._begin()]
        if steps[0].findings:
            return steps
        start = self.flash.snapshot()
        update, is_complete = self._play_update(start)
        steps += update
        if not is_complete:
            return steps
        second = self._play_second()
        if second is not None:
            steps.append(second)
        roll_back = self._play_roll_back()
        if roll_back is not None:
            steps.append(roll_back)
        return steps

    def _begin(self) -> Passage:
        """Power the board on twice as it is, to learn which files its own program changes."""
        measured = _Measured(self)
        run = self._power()
        before = self._look()
        findings = list(_broken(run))
        if not findings:
            self._power()
            after = self._look()
            self._volatile = _changed(before, after)
            before = after
        self._start = before
        if not findings and before.damage:
            findings.append(f"its file system is damaged: {before.damage}")
        if run.traceback:
            self.notes.append(f"the board's own program stops: {_last(run.traceback)}")
        self._know(before, "the old version")
        return measured.step("board", self._words(before), run, tuple(findings))

    def _play_update(self, start: bytes) -> tuple[list[Passage], bool]:
        """The update and the first boot of what it brought; whether it is complete."""
        plan = self.plan
        played, recording, measured = self._record(UPDATE, start, plan.offer)
        after = self._look()
        self._total = self.received or 0
        boundary = self._boots[1][0] if len(self._boots) > 1 else len(recording.effects)
        self.recordings[UPDATE] = recording.part(UPDATE, 0, boundary)
        self._offers[UPDATE] = self._offers[FIRST_BOOT] = self._offers[ROLL_BACK] = plan.offer
        if played.error and len(self._boots) < 2:
            texts = (f"the board refuses it: {played.error}", *self._left_behind(start))
            return [measured.step(UPDATE, self._words(after), played.run, texts)], False
        self._is_restarted = len(self._boots) > 1
        findings = self._judge_new(after, played)
        self._know(after, "the new version")
        update = measured.step(UPDATE, self._words(after), played.run)
        update = self._shortened(update, self.recordings[UPDATE])
        update = replace(update, least_free=self._watch_heap(start, plan.offer))
        self._goals = dict.fromkeys((UPDATE, FIRST_BOOT, ROLL_BACK), after)
        for name in (UPDATE, FIRST_BOOT):
            self._stable[name] = _kept(self._start, after)
        if not findings:
            findings = self._health_findings(recording)
        first = Passage(FIRST_BOOT, self._words(after), findings=findings)
        if boundary < len(recording.effects):
            self.recordings[FIRST_BOOT] = recording.part(FIRST_BOOT, boundary)
            first = self._shortened(first, self.recordings[FIRST_BOOT])
        self._updated = _end_of(recording)
        return [update, first], not findings

    def _record(
        self, name: str, start: bytes, offer: Offer, is_forced: bool = False
    ) -> tuple[Played, Recording, _Measured]:
        self.flash.restore(start)
        self._boots.clear()
        if self._way.line is not None:
            self._way.line.restart()
        journal = _Journal(self._taken_now)
        played: list[Played] = []
        measured = _Measured(self)
        recording = record_changes(
            name,
            self.flash,
            lambda: played.append(self._try(offer, is_forced)),
            journal,
        )
        if name == UPDATE:
            self._taken = journal.taken
        return played[0], recording, measured

    def _try(self, offer: Offer, is_forced: bool) -> Played:
        """One attempt. A broken rule of NOR flash counts as an error of the board's code."""
        try:
            return self._way.play(offer, is_forced=is_forced)
        except MpotaError as error:
            return Played(str(error), "")

    def _taken_now(self) -> int:
        return self._way.line.taken if self._way.line is not None else 0

    @property
    def received(self) -> int | None:
        """Bytes that came to the board since the line was last restarted."""
        return self._way.line.to_board if self._way.line is not None else None

    def _left_behind(self, start: bytes) -> tuple[str, ...]:
        """Findings: a refused image that is in a slot, and would boot if otadata were lost."""
        content = self.flash.snapshot()
        offset = self.plan.subject.table_offset
        firmware = Firmware.from_flash(FileImage(0, content), "board", offset)
        return tuple(
            f"what it has refused stays in {slot.label}, whole: nothing but otadata keeps it from "
            "booting"
            for slot in firmware.table.slots
            if (found := look(content, slot.label, offset).app) is not None
            and found != look(start, slot.label, offset).app
        )

    def _judge_new(self, after: Sight, played: Played) -> tuple[str, ...]:
        """Findings after an update and its first boot."""
        run = played.run
        why = f": {played.error}" if played.error else ""
        if not why and run is not None:
            stopped = run.traceback or _traceback(run.output)
            why = f": {_last(stopped)}" if stopped else ""
        if run is not None and (broken := _broken(run)):
            return broken
        if after.app is None:
            return (f"{after.label} holds no app that is whole",)
        if self._is_restarted and _is_same(after, self._start):
            return (f"it was not confirmed in its first boot, and the old version came back{why}",)
        if not after.is_confirmed:
            return (
                f"nothing confirms it within {self.plan.confirm_s:g} s: the next reset takes the "
                f"old version back{why or ' (no ota.rollback.cancel())'}",
            )
        if after.damage:
            return (f"the file system is damaged: {after.damage}",)
        return (played.error,) if played.error else ()

    def _health_findings(self, recording: Recording) -> tuple[str, ...]:
        check = self.plan.check
        if not check.source or self.plan.way == "push":  # that has checked it
            return ()
        script = check.source
        if not check.is_script:
            script = f"if not ({check.source}):\n    raise AssertionError('it is not true')\n"
        run = self._power(script)
        self.flash.restore(_end_of(recording))
        return (f"the health check fails: {_last(run.traceback)}",) if run.traceback else ()

    def _watch_heap(self, start: bytes, offer: Offer) -> int | None:
        """The least heap that is free during an update, garbage collected: played once more, since
        collecting makes room that would not be there."""
        former = self.flash.snapshot()
        self.flash.restore(start)
        self.board.watches_heap = True
        try:
            run = self._try(offer, False).run
        finally:
            self.board.watches_heap = False
            self.flash.restore(former)
        return run.boots[0].least_free if run is not None and run.boots else None

    def _play_second(self) -> Passage | None:
        offer = self.plan.then or self._following()
        if offer is None:
            return None
        before = self._goals[FIRST_BOOT]
        played, recording, measured = self._record(
            SECOND, self._updated, offer, is_forced=offer.is_again
        )
        after = self._look()
        self._offers[SECOND] = offer
        self._goals[SECOND] = after
        self._stable[SECOND] = _kept(before, after)
        self._know(after, "the second version")
        findings: tuple[str, ...] = ()
        if played.error:
            findings = (f"the board refuses it: {played.error}",)
        elif not after.is_confirmed:
            findings = ("nothing confirms it: the next reset takes the former version back",)
        elif _is_same(after, before):
            findings = ("it was not confirmed in its first boot, and the former one came back",)
        self.recordings[SECOND] = recording
        return measured.step(SECOND, self._words(after), played.run, findings)

    def _following(self) -> Offer | None:
        """The offer after the new version, made up for want of a real one."""
        plan, new = self.plan, self._goals[FIRST_BOOT]
        if plan.offer.kind == CHANNEL:
            self.notes.append("no second update: --then names the channel as it is published next")
            return None
        if plan.way == "ddi":
            self.notes.append("no second update: --then names the release that is assigned next")
            return None
        again = replace(plan.offer, is_following=True, is_again=True)
        if plan.offer.is_signed or new.app is None:
            self.notes.append("the second update is the same release again: it is signed")
            return again
        slot = self._slot(new)
        try:
            image = sample.next_version(App.from_bytes(slot).image.data)
        except MpotaError:
            self.notes.append("the second update is the same release again: it tells no version")
            return again
        version = find_micropython(image).version or "a following version"
        name = "following.bin"
        return Offer(name, IMAGE, name, {name: image}, version, is_following=True)

    def _slot(self, sight: Sight) -> bytes:
        """The present content of the slot that runs."""
        content = self.flash.snapshot()
        flash = FileImage(0, content)
        firmware = Firmware.from_flash(flash, "board", self.plan.subject.table_offset)
        part = next(p for p in firmware.table.apps if p.label == sight.label)
        return content[part.offset : part.end]

    def _play_roll_back(self) -> Passage | None:
        if not self._is_restarted:
            return None
        start = _end_of(self.recordings[UPDATE])
        self.flash.restore(start)
        self._boots.clear()
        measured = _Measured(self)
        runs: list[Run] = []
        recording = record_changes(
            ROLL_BACK, self.flash, lambda: runs.append(self._power(_GIVE_UP))
        )
        after = self._look()
        self.recordings[ROLL_BACK] = recording
        self._stable[ROLL_BACK] = _kept(self._start, after)
        findings = list(_broken(runs[0]))
        if not findings and not _is_same(after, self._start):
            findings.append(f"the old version did not come back: {self._words(after)} runs")
        lost = _lost(self._start.files, after, self._volatile)
        if not findings and lost:
            findings.append(f"what was there before is not intact: {_few(lost)}")
        return measured.step(ROLL_BACK, self._words(after), runs[0], tuple(findings))

    def _shortened(self, step: Passage, recording: Recording) -> Passage:
        operations = recording.operations
        return replace(step, operations=len(operations), flash_ms=total_ms(operations))

    def _know(self, sight: Sight, what: str) -> None:
        if sight.app is not None:
            version = find_micropython(self._slot(sight)).version
            self._names.setdefault(sight.app, version or what)
            self._trees.setdefault(sight.pair, sight.tree_files)

    def _words(self, sight: Sight) -> str:
        name = self._names.get(sight.app or "")
        if name is None and sight.app is not None:
            name = find_micropython(self._slot(sight)).version
        state = "" if sight.is_confirmed else ", unconfirmed"
        return f"{sight.label or 'nothing'} {name or ''}".strip() + state

    # --- what a power cut leaves

    def try_cuts(self, points: Iterable[CutPoint]) -> Iterator[Outcome[Aftermath]]:
        """Have the board suffer each of these cuts, and judge it. Raises UsageError for a cut that
        there is not."""
        by_scenario: dict[str, list[CutPoint]] = {}
        for point in points:
            by_scenario.setdefault(point.scenario, []).append(point)
        for name, some in by_scenario.items():
            yield from try_points(
                self.recording(name), self._told(some), self.board, lambda board: self._judge()
            )

    def _told(self, points: Iterable[CutPoint]) -> Iterator[CutPoint]:
        """Yield the points, and remember each as the one that is judged."""
        for point in points:
            self._point = point
            yield point

    def recording(self, name: str) -> Recording:
        """Raises UsageError if there is none of that name."""
        if name not in self.recordings:
            raise UsageError(
                f"there is no scenario '{name}' here",
                f"there are {', '.join(self.recordings) or 'none, since the update is refused'}",
            )
        return self.recordings[name]

    def _judge(self) -> Verdict[Aftermath]:
        """What becomes of the board with the flash that `_point` has left: it is powered on, and
        takes the update once more, if it has to."""
        name = self._point.scenario
        findings: list[str] = []
        boots, twice = "nothing", None
        try:
            run = self._power()
            findings += _broken(run)
            sight = self._look()
            boots = self._words(sight)
            if not findings:
                findings += self._misfits(sight, name)
            if not findings and not self._is_reached(sight, name):
                findings += self._again(name)
                twice = self._twice()
        except MpotaError as error:
            findings.append(str(error))
        return Verdict(Aftermath(boots, twice), tuple(findings))

    def _misfits(self, sight: Sight, name: str) -> list[str]:
        """Findings: what no cut may ever lead to."""
        if sight.app not in self._names:
            what = "an app that nobody brought" if sight.app else "no app that is whole"
            return [f"{sight.label} holds {what}"]
        if sight.damage:
            return [f"the file system is damaged: {sight.damage}"]
        if sight.pair not in self._trees:
            return [f"firmware and files do not fit together: {self._words(sight)} runs with those "
                    "of another version"]  # fmt: skip
        lost = _lost(self._trees[sight.pair], sight, set(), of_tree=True)
        if lost:
            return [f"files of the release that runs are missing or damaged: {_few(lost)}"]
        lost = _lost(self._stable.get(name), sight, self._volatile)
        return (
            [f"files that were there before are missing or damaged: {_few(lost)}"] if lost else []
        )

    def _is_reached(self, sight: Sight, name: str) -> bool:
        goal = self._goals[name]
        return _is_same(sight, goal) and sight.is_confirmed

    def _again(self, name: str) -> list[str]:
        """Take the same update once more. Findings, if it does not succeed now."""
        offer = self._offers[name]
        if name == ROLL_BACK and (offer.kind == CHANNEL or not self._way.can_force):
            return []  # the board rightly refuses what has failed
        if self._way.line is not None:
            self._way.line.restart()
        self._boots.clear()
        is_forced = offer.is_again or name == ROLL_BACK
        if name == FIRST_BOOT and self.plan.way == "push":
            # ota forgives a failure that a power cut explains, but only in the boot of the
            # power-on, and a push begins with a soft reset: mpota says so, and that --force helps.
            is_forced = True
        played = self._try(offer, is_forced)
        if played.error:
            return [f"the update does not succeed afterwards: {played.error}"]
        sight = self._look()
        misfits = self._misfits(sight, name)
        if misfits:
            return [f"after the next update {misfits[0]}"]
        if not self._is_reached(sight, name):
            return [f"after the next update {self._words(sight)} runs"]
        return []

    def _twice(self) -> int | None:
        """Bytes that came before the cut and once more after it; None if they are not counted."""
        again = self.received
        if again is None or self._point.scenario != UPDATE:
            return None
        before = self._taken[self._point.op]
        return max(0, before + again - self._total)

    # --- what a broken network leaves

    def break_network(self, at: int) -> Outcome[Aftermath]:
        """The line breaks once, after ``at`` bytes; a second attempt has to succeed.

        Raises UsageError where there is no line that could break, or not so many bytes come.
        """
        line, start = self._way.line, self.recordings.get(UPDATE)
        if line is None or start is None or not 0 <= at < self._total:
            raise UsageError(
                f"nothing breaks at byte {at}: by {self.plan.way} "
                + (f"{self._total:,} bytes come" if line else "no line is counted")
            )
        self._point = CutPoint(NETWORK, at, CutMode.BEFORE)
        self.flash.restore(start.start)
        line.restart(break_at=at)
        findings: list[str] = []
        boots, twice = "nothing", None
        try:
            self._boots.clear()
            played = self._try(self.plan.offer, False)
            sight = self._look()
            if played.error:  # what it says is for the program on the board: it is as it was
                findings += self._misfits(sight, UPDATE)
                received = line.to_board
                if not findings:
                    findings += self._again(UPDATE)
                twice = max(0, received + line.to_board - self._total)
            elif not self._is_reached(sight, UPDATE):
                findings.append(f"{self._words(sight)} runs after it")
            else:
                twice = max(0, line.to_board - self._total)
            boots = self._words(self._look())
        except MpotaError as error:
            findings.append(str(error))
        return Outcome(self._point, Verdict(Aftermath(boots, twice), tuple(findings)))

    @property
    def otadata(self) -> tuple[int, int] | None:
        """Flash addresses (start, end) of otadata."""
        flash = FileImage(0, self.plan.subject.content)
        firmware = Firmware.from_flash(flash, "board", self.plan.subject.table_offset)
        found = firmware.table.otadata
        return (found.offset, found.end) if found else None

    @property
    def total(self) -> int:
        """Bytes that come to the board in an update that nothing disturbs."""
        return self._total


class _Measured:
    """Measures what a part of the rehearsal costs, from its making to `step`."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._cpu_s = _children_s()

    def step(
        self, name: str, ends: str, run: Run | None, findings: tuple[str, ...] = ()
    ) -> Passage:
        operations = self._stage.flash.operations
        return Passage(
            name,
            ends,
            len(operations),
            total_ms(operations),
            _children_s() - self._cpu_s,
            run.reads if run is not None else None,
            received=self._stage.received if name in (UPDATE, SECOND) else None,
            findings=findings,
        )


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _private(path: Path) -> Path:
    """An empty file that only its owner may read."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    return path


def _is_same(one: Sight, other: Sight) -> bool:
    return one.label == other.label and one.pair == other.pair


def _end_of(recording: Recording) -> bytes:
    """The flash at the end of a recording."""
    return recording.part(recording.name, len(recording.effects)).start


def _broken(run: Run) -> tuple[str, ...]:
    """Why a run did not come to rest."""
    if run.end is End.NO_APP:
        lines = [line for boot in run.boots for line in boot.bootloader_lines]
        return (f"no app boots: {lines[-1] if lines else 'the bootloader is silent'}",)
    if run.end is End.TOO_MANY_BOOTS:
        return (f"it restarts again and again, {len(run.boots)} times until it was left",)
    if run.end is End.DIED:
        return ("MicroPython itself ended: its program made it crash, or asked for too much",)
    return ()


def _changed(before: Sight, after: Sight) -> set[str]:
    """Paths whose content differs, or that are in only one of the two."""
    one, other = before.files or {}, after.files or {}
    return {path for path in {*one, *other} if one.get(path) != other.get(path)}


def _kept(before: Sight, after: Sight) -> dict[str, str]:
    """The files that are the same in both."""
    other = after.files or {}
    return {
        path: digest for path, digest in (before.files or {}).items() if other.get(path) == digest
    }


def _lost(
    expected: Mapping[str, str] | None, sight: Sight, volatile: set[str], *, of_tree: bool = False
) -> list[str]:
    """Files that are not there any more as they were; the records of `ota` are its own."""
    found = sight.tree_files if of_tree else sight.files or {}
    return sorted(
        path
        for path, digest in (expected or {}).items()
        if found.get(path) != digest and path not in volatile and not _is_record(path)
    )


def _is_record(path: str) -> bool:
    return path.startswith(HOME) and not path.startswith(TREES)


def _few(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _traceback(output: str) -> str:
    """The last exception that a board printed."""
    return (
        output[output.rfind("Traceback (most recent call last):") :]
        if ("Traceback (most recent call last):" in output)
        else ""
    )


def _last(traceback: str) -> str:
    """The exception of a traceback in one line, and where it was raised."""
    lines = [line.strip() for line in traceback.strip().splitlines() if line.strip()]
    ends = [n for n, line in enumerate(lines) if not line.startswith(("File ", "Traceback"))]
    if not ends:
        return ""
    at = ends[0]
    where = lines[at - 1] if at and lines[at - 1].startswith("File ") else ""
    place = where.removeprefix("File ").replace('"', "").partition(", in ")[0]
    hint = ""
    if lines[at].startswith(("ImportError", "AttributeError")):
        hint = "; the firmware of the board may have it built in, a rehearsal has not"
    return lines[at] + (f" ({place})" if place else "") + hint
