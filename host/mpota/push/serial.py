"""An update through the REPL's serial line: from a file to a confirmed app, or back again.

The board asks for pieces of the file and judges them (device/ota/drop_in.py, where the
protocol is described); here they are handed out. Nothing is remembered between two attempts: what
the slot holds already is recognised by its digest, and an attempt that was cut off after the
switch goes on with the reset, or with the health check.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from types import NoneType
from typing import Any

from mpota.errors import Again, MpotaError
from mpota.formats.delta import make_delta
from mpota.formats.otadata import OtaState
from mpota.formats.thin import ID_SIZE
from mpota.push.repl import LostBoardError, ScriptError, Session, failure_lines, has_restarted
from mpota.push.update import (
    NOT_LESS_CODES,
    HealthCheck,
    Options,
    Package,
    Pushed,
    RefusedError,
    RolledBackError,
    UnconfirmedError,
    UnhealthyError,
)
from mpota.text import shown

UNIT_SIZE = 127
MAX_ON_THE_WAY = 256  # bytes: a board's input buffer holds 259 (ports/esp32/mphalport.c)

_RECORD, _ACK, _END = 0x1E, 0x06, 0x04
_INTERRUPT = b"\x03"
_ACK_TIMEOUT_S = 5.0
_FILLER_TIMEOUT_S = 1.0  # where it was silent for some of these
_ANSWER_TIMEOUT_S = 20.0  # erasing, or set_boot(), which verifies the whole image
_MAX_STALLS = 3
_FILLER = b"\xff" * (1 + UNIT_SIZE)
_RETRY_CHECK_S = 0.5  # a board does not tell when it turned healthy: it has to be asked again
_STATES = {state.value: state.name for state in OtaState}
_CLEAR_STATES = ("PENDING_VERIFY", "NEW")
_ID = re.compile(f"[0-9a-f]{{{2 * ID_SIZE}}}")
_MAKING = threading.Lock()  # so that one delta is made once
_SLOW = 4  # times as long as a board is given usually
_AGAIN = Again("the same command again goes on from there")
_USUAL = Options()


def push(session: Session, package: Package, options: Options = _USUAL) -> Pushed:
    """Bring ``package`` onto the board, see it boot and prove its health, and confirm it.

    Raises RefusedError, RolledBackError, UnhealthyError, UnconfirmedError (their exit codes tell
    them apart), ScriptError for a board without the ota package, LostBoardError.
    """
    before = Status.read(session)
    if before.runs(package) and not options.force:
        if before.is_confirmed:
            return Pushed(package.version, before.running, is_new=False)
        options.tell(f"{package.version} runs in {before.running}, not confirmed yet")
        _confirm(session, _Goal.of(before), before, options)
        return Pushed(package.version, before.running, is_app=package.brings_app)
    sent_size = 0
    _check_format(package, before)
    if options.force or not before.waits_with(package):
        where = f" to slot {before.next}" if before.next and package.brings_app else ""
        options.tell(f"sending {package.words}{where}")
        session.soft_reset()  # frees the board's memory
        try:
            sent_size = _send(session, before, package, options)
        except LostBoardError as error:
            raise LostBoardError(str(error), error.hint or _AGAIN) from None
        with _switched("the board has taken the update", _AGAIN):
            before = before.after(session)
    goal = _Goal.selected(before)
    if not goal.needs_restart:
        options.tell("all of it is in force")
        return Pushed(
            package.version,
            goal.label,
            is_app=False,
            was_restarted=False,
            sent_size=sent_size,
        )
    options.tell(f"{goal.what} complete and selected; restarting")
    with _switched(f"{goal.label} was switched to", _AGAIN):
        console = _see_through(session, goal, before, options)
    return Pushed(
        package.version, goal.label, is_app=goal.is_app, sent_size=sent_size, console=console
    )


def _check_format(package: Package, before: Status) -> None:
    """Raises MpotaError for a release that ota 0.1 does not know: that says so, and not why."""
    format = package.bundle.manifest.format if package.bundle else 1
    if format > 1 and "ota" not in before.info:
        raise MpotaError(
            f"{package.version} has format {format}, the board has ota 0.1, which reads format 1",
            "mpota install PORT brings a later ota onto the board",
        )


@contextmanager
def _switched(what: str, hint: str) -> Iterator[None]:
    """After the switch, errors must not say that the board is unchanged: they become
    UnconfirmedError."""
    try:
        yield
    except (RolledBackError, UnconfirmedError):
        raise
    except MpotaError as error:
        raise UnconfirmedError(f"{what}, and then: {error}", hint) from None


def roll_back(session: Session, options: Options = _USUAL) -> Pushed:
    """Have the board start what ran before what runs now, see that up, and confirm it.

    An app or files on trial are given up. Raises RefusedError where there is nothing to go back
    to, and what `push` raises.
    """
    before = Status.read(session)
    if before.is_on_trial:  # they get one boot
        goal = _Goal(before.running, False, before.record["now"], needs_restart=True)
    else:
        unconfirmed = not before.is_confirmed
        call = "mark_invalid(reboot=False)" if unconfirmed else "force()"
        code, text = session.evaluate(
            "_told()", _ROLL_BACK.replace("CALL", call), fits=_is_code_and_text
        )
        if code:
            raise RefusedError(code, shown(text))
        with _switched(f"{before.running} was given up", f"mpota status {session.port}"):
            goal = _Goal.selected(before.after(session))
    app = before.slot(goal.label).get("micropython") or before.slot(goal.label).get("version")
    version = str(app or "the former app").partition(" ")[0]
    options.tell(f"{goal.what} selected; restarting")
    with _switched(f"{goal.label} was switched to", f"mpota status {session.port}"):
        console = _see_through(session, goal, before, options)
    return Pushed(version, goal.label, is_app=goal.is_app, console=console)


@dataclass(frozen=True)
class _Goal:
    """What is to run in the end: the app in slot ``label`` and, without a new app, what its record
    says of a release (``release``; None: whatever it says)."""

    label: str
    is_app: bool
    release: Mapping[str, Any] | None = None
    needs_restart: bool = False

    @classmethod
    def of(cls, status: Status) -> _Goal:
        """The goal of keeping what runs."""
        files = status.release if status.is_on_trial else None
        return cls(status.running, files is None, files)

    @classmethod
    def selected(cls, status: Status) -> _Goal:
        """The goal of running what the next boot takes."""
        if status.boot != status.running:
            return cls(status.boot, True, needs_restart=True)
        waiting = status.waiting
        return cls(status.running, False, waiting, needs_restart=waiting is not None)

    @property
    def what(self) -> str:
        return f"{self.label} is" if self.is_app else f"what {self.label} runs with next is"

    def is_reached(self, status: Status) -> bool:
        if status.running != self.label:
            return False
        return self.release is None or status.release == self.release


def _see_through(session: Session, goal: _Goal, before: Status, options: Options) -> str:
    """Restart into ``goal``, check and confirm it; returns the console's text."""
    console = session.reset(options.settle_s)
    for is_last in (False, True):
        try:
            after = Status.read(session) if goal.is_app else before.again(session)
            if goal.release is not None and after.waiting == goal.release:
                # A board that is slow to start was stopped before boot.py had begun the trial.
                console += session.reset(_SLOW * options.settle_s)
                after = before.again(session)
            if not goal.is_reached(after):
                raise _gone_back(console, Status.read(session), goal)
            options.tell(f"{goal.label} is up; checking its health")
            _confirm(session, goal, after, options)
            break
        except LostBoardError:  # it may have been reset: the bootloader has the word then
            if is_last:
                raise
            console += session.rejoin(options.settle_s)
    return console


@dataclass(frozen=True)
class Status:
    """`ota.status.info()` of a board, and the record of the app that runs: {"now": release}, and
    while files are on trial {"next": release, "tried": true}; see device/ota/boot.py."""

    info: dict[str, Any]
    record: dict[str, Any]

    @classmethod
    def read(cls, session: Session, *, verify: bool = False) -> Status:
        """Raises ScriptError, with a hint, if the board has no ota package."""
        try:
            info = session.evaluate(
                f"ota.status.info(verify={verify})", "import ota", fits=_is_status
            )
            record = session.evaluate("record", _READ_RECORD, fits=_is_record)
        except ScriptError as error:
            if "ImportError" not in error.traceback:
                raise
            raise ScriptError(error.traceback, f"mpota install {session.port}") from None
        return cls(info, record)

    def after(self, session: Session) -> Status:
        """The same board when an update has just ended: what boots next is read anew."""
        boot = session.evaluate("boot", _READ_BOOT, fits=lambda value: isinstance(value, str))
        return Status(
            {**self.info, "boot": boot}, session.evaluate("record", _READ_RECORD, fits=_is_record)
        )

    def again(self, session: Session) -> Status:
        """The same board, whose slots hold what they held: what runs is read anew, and its state.

        `ota.status.info()` looks through all of them for what they hold, which takes a while.
        """
        try:
            label, number, record = session.evaluate(
                "[label, number, record]", _READ_AGAIN, fits=_is_again
            )
        except ScriptError:  # ota 0.1 keeps the state elsewhere
            return Status.read(session)
        state = _STATES.get(number)
        if not self.slot(label) or (number is not None and not state):
            return Status.read(session)
        slots = [
            {**slot, "state": state} if slot["label"] == label else slot
            for slot in self.info["slots"]
        ]
        return Status({**self.info, "running": label, "slots": slots}, record)

    @property
    def release(self) -> dict[str, Any]:
        """The release of the running app; {} if it came without one."""
        found: dict[str, Any] = self.record["next" if self.is_on_trial else "now"]
        return found

    @property
    def is_on_trial(self) -> bool:
        """Whether files that came without an app are in use, and not confirmed."""
        return bool(self.record.get("tried"))

    @property
    def waiting(self) -> dict[str, Any] | None:
        """The release that the app which runs will have from the next boot on, if it changes."""
        return None if self.is_on_trial else self.record.get("next")

    @property
    def running(self) -> str:
        return str(self.info["running"])

    @property
    def boot(self) -> str:
        return str(self.info["boot"] or self.running)

    @property
    def next(self) -> str | None:
        return None if self.info["next"] is None else str(self.info["next"])

    def slot(self, label: str) -> dict[str, Any]:
        return next((slot for slot in self.info["slots"] if slot["label"] == label), {})

    @property
    def is_confirmed(self) -> bool:
        if self.is_on_trial:
            return False
        return self.slot(self.running).get("state") not in _CLEAR_STATES

    def runs(self, package: Package) -> bool:
        """Whether what runs is what ``package`` brings, as far as the board can tell."""
        if package.release is None:
            return self._holds(self.running, package)
        if not _has_all(self.release, package.release):
            return False
        return not package.brings_app or self._holds(self.running, package)

    def waits_with(self, package: Package) -> bool:
        """Whether a former attempt came as far as the switch: only the reset is missing."""
        if self.boot != self.running:
            return package.release is None and self._holds(self.boot, package)
        has_release = package.release is not None and not package.brings_app
        return has_release and _has_all(self.waiting or {}, package.release or {})

    def _holds(self, label: str, package: Package) -> bool:
        return package.digest is not None and self.slot(label).get("digest") == package.digest


_SLOT_FIELDS: dict[str, type | tuple[type, ...]] = {
    "label": str,
    "state": (str, NoneType),
    "valid": bool,
    "problem": str,
    "micropython": (str, NoneType),
    "version": (str, NoneType),
    "image_size": int,
    "digest": str,
}


def _is_status(info: Any) -> bool:
    """Whether that can be `ota.status.info()`."""
    if not isinstance(info, dict) or not isinstance(info.get("running"), str):
        return False
    if not all(isinstance(info.get(key, 0), (str, NoneType)) for key in ("boot", "next")):
        return False
    slots = info.get("slots")
    return isinstance(slots, list) and all(
        isinstance(slot, dict)
        and {"label", "state", "valid"} <= slot.keys()
        and all(isinstance(slot[k], kind) for k, kind in _SLOT_FIELDS.items() if k in slot)
        for slot in slots
    )


def _is_code_and_text(value: Any) -> bool:
    return isinstance(value, list) and [type(part) for part in value] == [str, str]


def _is_record(value: Any) -> bool:
    """Whether that can be what `ota.boot.read_record()` gives."""
    if not isinstance(value, dict) or not isinstance(value.get("now"), dict):
        return False
    return isinstance(value.get("next", {}), dict) and ("next" in value or "tried" not in value)


def _is_again(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    label, number, record = value
    return isinstance(label, str) and isinstance(number, int | NoneType) and _is_record(record)


def _has_all(record: Mapping[str, Any], release: Mapping[str, Any]) -> bool:
    return all(record.get(key) == value for key, value in release.items())


def _gone_back(console: str, after: Status, goal: _Goal) -> RolledBackError:
    printed = failure_lines(console)
    why = "it printed what is below" if printed else "no reason seen"
    if after.running == goal.label:
        told = f"the board went back to the files that {after.running} had before: {why}"
    else:
        told = f"the board went back to {after.running}: {_why(after, goal.label) or why}"
    return RolledBackError(told, details=tuple(printed))


def _why(after: Status, target: str) -> str:
    """Why an app was given up, as far as the board's status tells; its console may tell more."""
    slot = after.slot(target)
    state = f"otadata calls {target} {slot.get('state')}" if slot.get("state") else ""
    return ", ".join(filter(None, (state, slot.get("problem", ""))))


# --- the health check


def _confirm(session: Session, goal: _Goal, now: Status, options: Options) -> None:
    """Check the health of what runs, then confirm it or give it up."""
    failure = _failure(session, options.check)
    if failure is not None:
        raise _give_up(session, goal, failure, options)
    session.execute("import ota\nota.rollback.cancel()")
    status = now.again(session)
    if not goal.is_reached(status) or not status.is_confirmed:
        raise RolledBackError(
            f"{goal.label} cannot be confirmed: {status.running} runs, "
            f"{goal.label} is {status.slot(goal.label).get('state')}"
        )


def _give_up(session: Session, goal: _Goal, failure: str, options: Options) -> UnhealthyError:
    if goal.is_app:  # of files, the reset alone is enough: they get one boot
        session.execute("import ota\nota.rollback.mark_invalid(reboot=False)")
    console = session.reset(options.settle_s)
    after = Status.read(session)
    if goal.is_reached(after):
        then = "but the board starts it again"
    elif goal.is_app:
        then = f"{after.running} runs again"
    else:
        then = f"{after.running} runs again with what it had"
    what = goal.label if goal.is_app else f"{goal.label} with the new files"
    return UnhealthyError(
        f"{what} failed its health check ({failure}): given up, {then}",
        details=tuple(failure_lines(console)),
    )


def _failure(session: Session, check: HealthCheck) -> str | None:
    """What is wrong with the app; None if it is healthy."""
    deadline = time.monotonic() + check.timeout_s
    while True:
        failure = _try(session, check)
        if failure is None or time.monotonic() >= deadline:
            return failure
        time.sleep(_RETRY_CHECK_S)


def _try(session: Session, check: HealthCheck) -> str | None:
    try:
        if check.is_script:
            session.execute(check.source)
            return None
        if not check.source:
            return None
        value = session.evaluate(f"bool({check.source})")
        return None if value else f"{check.source} is not true"
    except ScriptError as error:
        return str(error)


# --- the transfer


# A board that never took a release need not have what is for releases.
_READ_RECORD = """
import os
try:
    os.stat("/.ota")
    record = None
except OSError:
    record = {"now": {}}
if record is None:
    import ota.boot
    from esp32 import Partition
    record = ota.boot.read_record(Partition(Partition.RUNNING)) or {"now": {}}
"""
_READ_AGAIN = (
    _READ_RECORD
    + """
from esp32 import Partition
try:
    from ota.otadata import state
except ImportError:
    from ota.base import state
part = Partition(Partition.RUNNING)
label = part.info()[4]
number = state(part)
"""
)
# An unsigned delta is for boards without keys. In ota 0.1 these are looked up elsewhere.
_TAKES_DELTAS = """
try:
    import ota.frames, ota.delta
    from ota.base import has_trust
    takes = not has_trust()
except ImportError:
    takes = False
"""
_READ_BOOT = """
from esp32 import Partition
try:
    boot = Partition(Partition.BOOT).info()[4]
except OSError:
    boot = Partition(Partition.RUNNING).info()[4]
"""
# `ota` of the time before these are told takes none but whole bundles.
_READ_FILES = """
try:
    from ota.confirm import ids
    found = [one.hex() for one in ids() if one]
except ImportError:
    found = None
"""
_ROLL_BACK = """
import ota
def _told():
    try:
        ota.rollback.CALL
        return ["", ""]
    except ota.OTAError as error:
        return [error.code, str(error)]
    except OSError as error:
        return ["no-slot", "this board has no OTA slots: %s" % error]
"""
# The module has another name in ota 0.1. Once it is loaded, it says itself what lacks memory.
_RECEIVER = """\
try:
 try:
  import ota.drop_in as push
 except ImportError:
  import ota.repl as push
except MemoryError as error:
 import gc
 gc.collect()
 text = "\x1eFAIL memory not enough memory for ota.drop_in: %s, %d bytes are free"
 print(text % (error, gc.mem_free()))
else:
 push."""


def _send(session: Session, before: Status, package: Package, options: Options) -> int:
    """Send a package, or only what the board lacks; returns bytes sent. Raises RefusedError."""
    less = _less(session, before, package, options)
    if less is None:
        return _transfer(session, package, options)
    try:
        return _transfer(session, less, options)
    except RefusedError as error:
        if error.code not in NOT_LESS_CODES:
            raise
        options.tell(f"that is not enough here ({error}): sending all")
        session.soft_reset()
        return _transfer(session, package, options)


def _less(session: Session, before: Status, package: Package, options: Options) -> Package | None:
    """A smaller package that gives ``package`` on this board; None if there is none."""
    digest = before.slot(before.running).get("digest") or ""
    suited = package.suit(digest, options.find_base) if package.suit else package
    if suited.bundle is None:
        return _delta(session, before, suited, digest, options)
    there = _files(session) if suited.bundle.files else None
    less = suited.without(there) if there else None
    if there and less:
        size, whole = len(less.data), len(package.data)
        options.tell(f"sending {suited.told(there)}: {size:,} bytes instead of {whole:,}")
        return less
    return suited if suited is not package else None


def _files(session: Session) -> set[bytes] | None:
    """Ids of the files in use on the board; None if it takes whole bundles only."""
    found = session.evaluate("found", _READ_FILES, fits=_are_ids)
    return None if found is None else {bytes.fromhex(one) for one in found}


def _are_ids(value: Any) -> bool:
    found = [] if value is None else value
    return isinstance(found, list) and all(isinstance(x, str) and _ID.fullmatch(x) for x in found)


def _delta(
    session: Session, before: Status, package: Package, digest: str, options: Options
) -> Package | None:
    """The difference from the app that runs to the one in ``package``, if that one is known, it is
    worth it, and the board takes it."""
    if not package.plain_size or not digest:
        return None
    base = options.find_base(digest)
    if base is None or not session.evaluate("takes", _TAKES_DELTAS):
        return None
    with _MAKING:
        delta = _made(base, package.data)
    if 2 * len(delta) >= len(base):
        return None
    options.tell(
        f"of {before.running} on, what differs is sent: {len(delta):,} bytes of "
        f"{len(package.data):,}"
    )
    return replace(package, data=delta, plain_size=0)


@lru_cache(maxsize=8)
def _made(base: bytes, new: bytes) -> bytes:
    """The delta, cached: most boards of a plan run the same app."""
    return make_delta(base, new).to_bytes()


def _transfer(session: Session, package: Package, options: Options) -> int:
    """Bytes sent. Raises RefusedError."""
    if package.url is not None:
        call = f"fetch({package.url!r}, force={options.force})"
    else:
        digest = hashlib.sha256(package.data).hexdigest()
        call = (
            f"receive({len(package.data)}, {digest!r}, {package.app_offset}, {package.plain_size}, "
            f"force={options.force})"
        )
    session.start(_RECEIVER + call)
    return _Giver(_Talk(session), package.data, options).serve()


class _Talk:
    """What a script on the board sends, taken apart: records, acknowledgements, its end."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._events: deque[tuple[str, str]] = deque()
        self._record: bytearray | None = None
        self._end: bytearray | None = None  # the traceback, once there is no more output
        self._is_over = False
        self._rest = bytearray()  # what programs on the board print meanwhile

    def send(self, data: bytes) -> None:
        self._session.send(data)

    def put_back(self, event: tuple[str, str]) -> None:
        self._events.appendleft(event)

    def next(self, timeout_s: float) -> tuple[str, str] | None:
        """("record", text) or ("ack", ""); None after ``timeout_s`` of silence.

        Raises ScriptError when the script has ended with an exception.
        """
        while not self._events:
            data = self._session.receive(timeout_s)
            if not data:
                return None
            for byte in data:
                self._take(byte)
        return self._events.popleft()

    def _take(self, byte: int) -> None:
        if self._is_over:
            return
        if self._end is not None:
            if byte == _END:
                self._finish(self._end.decode("utf-8", "replace"))
            else:
                self._end.append(byte)
        elif byte == _END:
            self._end = bytearray()
        elif byte == _RECORD:
            self._record = bytearray()
        elif byte == _ACK:
            self._events.append(("ack", ""))
        elif self._record is not None:
            if byte == ord("\n"):
                self._events.append(("record", self._record.decode("utf-8", "replace").strip()))
                self._record = None
                self._rest.append(byte)
            else:
                self._record.append(byte)
        else:
            self._rest.append(byte)
            if has_restarted(self._rest):
                raise LostBoardError("the board has restarted")

    def _finish(self, traceback: str) -> None:
        self._is_over = True
        self._session.end_script()
        if traceback:
            raise ScriptError(traceback)
        self._events.append(("end", ""))


class _Giver:
    """Hands out pieces of a file as the board asks for them."""

    def __init__(self, talk: _Talk, data: bytes, options: Options) -> None:
        self._talk = talk
        self._data = data
        self._progress = options.progress
        self._tell = options.tell
        self._kept_size = 0  # bytes that the slot held already
        self._on_the_way: deque[int] = deque()  # sizes of what has not been acknowledged
        self._piece_size = 0  # of the current piece
        self._sent_size = 0
        self._outcome: tuple[str, str] | None = None
        self._position = 0  # behind the piece that was given last
        self._has_all = not data  # then the board may switch; one that fetches itself, at any time

    def serve(self) -> int:
        """Bytes sent. Raises RefusedError; UnconfirmedError if the board is lost when it has all
        that it needs to switch, else LostBoardError."""
        try:
            return self._serve()
        except LostBoardError as error:
            if self._outcome is not None:
                return self._finish()
            if not self._has_all:
                raise
            raise UnconfirmedError(
                f"the board may have switched, and then: {error}", _AGAIN
            ) from None

    def _serve(self) -> int:
        stalls = 0
        while True:
            event = self._talk.next(_ANSWER_TIMEOUT_S)
            if event is None:
                # It may wait for the rest of something that was lost on its way.
                stalls += 1
                silence = f"no word from the board for {_ANSWER_TIMEOUT_S:.0f} s"
                if stalls > _MAX_STALLS:
                    raise LostBoardError(silence)
                self._tell(f"{silence}: asking it again")
                self._talk.send(_FILLER)
                continue
            kind, text = event
            if kind == "end":
                return self._finish()
            if kind == "record":
                stalls = 0
                self._obey(text)

    def _finish(self) -> int:
        if self._outcome is None:
            raise LostBoardError("the board stopped without saying how the update went")
        verb, text = self._outcome
        if verb == "FAIL":
            code, _, words = text.partition(" ")
            raise RefusedError(code, words)
        if self._kept_size:
            self._tell(
                f"{self._kept_size:,} of {len(self._data):,} bytes were in the slot from before"
            )
        return self._sent_size

    def _obey(self, record: str) -> None:
        verb, _, text = record.partition(" ")
        if verb in ("DONE", "FAIL"):
            self._outcome = (verb, shown(text))
        elif verb == "AT":
            done, _, _ = text.partition(" ")
            if _is_number(done):
                self._progress(int(done), 0)
        elif verb == "GET":
            fields = text.split()
            if len(fields) == 3 and _is_number(fields[0]) and _is_number(fields[1]):
                self._give(int(fields[0]), int(fields[1]), fields[2])

    def _give(self, offset: int, size: int, held: str) -> None:
        piece = self._data[offset : offset + size]
        digest = hashlib.sha256(piece).hexdigest()
        self._on_the_way.clear()
        self._piece_size = len(piece)
        if held == digest:
            self._talk.send(b"=" + digest.encode())
            self._kept_size += size
        else:
            units = (_unit(piece[at : at + UNIT_SIZE]) for at in range(0, len(piece), UNIT_SIZE))
            if not self._send_all((b"+" + digest.encode(), *units)):
                return
            self._sent_size += size
        # A signature at the end is asked for before all else, and once more in its turn.
        is_in_turn = offset in (0, self._position)
        self._position = offset + size
        self._has_all |= is_in_turn and self._position >= len(self._data)
        self._progress(offset + size, len(self._data))

    def _send_all(self, units: Iterable[bytes]) -> bool:
        """Send units, as many at a time as the board has room for; whether it took all."""
        for unit in units:
            while sum(self._on_the_way) + len(unit) > MAX_ON_THE_WAY:
                if not self._await_acknowledgement():
                    return False
            self._talk.send(unit)
            self._on_the_way.append(len(unit))
        while self._on_the_way:
            if not self._await_acknowledgement():
                return False
        return True

    def _await_acknowledgement(self) -> bool:
        """Wait for an ACK; False if the board gave the piece up, and asks for it again."""
        for fillers in range(self._piece_size // UNIT_SIZE + _MAX_STALLS):
            patience_s = _ACK_TIMEOUT_S if fillers < _MAX_STALLS else _FILLER_TIMEOUT_S
            event = self._talk.next(patience_s)
            if event is None:
                # Bytes were lost: the board must see the end of the piece to find that out.
                self._talk.send(_FILLER)
                continue
            if event[0] != "ack":
                self._talk.put_back(event)
                return False
            self._on_the_way.popleft()
            return True
        raise LostBoardError("the board takes no more")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 10


def _unit(chunk: bytes) -> bytes:
    """A chunk without the byte that interrupts: one that the chunk lacks stands for it, and comes
    first."""
    present = set(chunk)
    stand_in = next(value for value in range(_END, 256) if value not in present)
    return bytes((stand_in,)) + chunk.replace(_INTERRUPT, bytes((stand_in,)))
