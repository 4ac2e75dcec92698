"""Many boards by one plan: each gets the ota package, keys, files and firmware that it lacks.

A plan is TOML; paths in it are relative to it::

    firmware = "greenhouse-2.1.bundle"  # app image, firmware, bundle or URL; none: only the rest
    check = "sensors.ok()"              # health check: an expression, or a .py file
    check_timeout = 30                  # seconds
    settle = 3                          # seconds: `mpota push --settle`
    keys = ["release.pub.pem"]          # public keys that the boards are to trust
    parts = ["listen"]                  # of the ota package, besides the core
    ca = "ca.pem"                       # CA certificates for https
    parallel = 4                        # boards at a time
    stop_after = 1                      # failures; boards that have not begun are left alone

    [files]                             # path on the board = file here
    "/main.py" = "src/main.py"

    [boards]                            # name = port, or whatever `mpota push` takes
    north = "/dev/ttyUSB0"
    south = { port = "rfc2217://gateway:4000", check = "True" }

A board may have its own ``firmware``, ``check``, ``keys``, ``ca`` and ``[boards.NAME.files]``
instead of those at the top. Boards that listen, at ``tcp://HOST[:PORT]`` and ``ble://NAME``, take
firmware alone, a bundle with all else in it, and confirm it themselves::

    secret = "board.secret"             # file: what they ask for; or set MPOTA_SECRET
    [boards]
    attic = "tcp://attic.local"
    cellar = { port = "ble://cellar", secret = "cellar.secret" }
"""

from __future__ import annotations

import reprlib
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from mpota.errors import MpotaError, UsageError
from mpota.formats.private_key import is_private_key
from mpota.push.install import install
from mpota.push.outcome import NOT_STARTED, SENT, UP_TO_DATE, UPDATED, outcome_of
from mpota.push.repl import Session
from mpota.push.schemes import connect, has_repl, read_secret
from mpota.push.update import HealthCheck, Options, Package
from mpota.release.ota_package import modules_of
from mpota.storage.file import read_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MAX_PARALLEL = 64
_MAX_MESSAGE = 1000  # characters
_MAX_PLAN_SIZE = 1 << 18
_MAX_DOTS = 1000  # in a key, or fewer in several: one of n parts takes n * n / 2 places in memory

T = TypeVar("T")


@dataclass(frozen=True)
class PlannedBoard:
    """One board, and what it is to have."""

    name: str
    port: str
    package: Package | None
    options: Options
    files: Mapping[str, bytes]  # by the path on the board
    keys: tuple[Path, ...]
    ca: Path | None
    parts: tuple[str, ...] = ()  # of the ota package, besides what the package takes


@dataclass(frozen=True)
class DeployPlan:
    targets: tuple[PlannedBoard, ...]
    parallel: int
    stop_after: int

    @classmethod
    def open(cls, path: Path) -> DeployPlan:
        """The plan in a file, with all that it names read and checked.

        Raises UsageError for what no plan can say, MpotaError for a firmware that is damaged.
        """
        try:
            data = tomllib.loads(_plan_text(path))
        except RecursionError:
            raise UsageError(f"{path.name} is not a plan: it is nested too deeply") from None
        except ValueError as error:  # TOMLDecodeError is one
            raise UsageError(f"{path.name} is not TOML: {str(error)[:_MAX_MESSAGE]}") from None
        files = _Files(path.parent)
        top = _Table(data, path.name, files)
        parallel = top.number("parallel", 4, 1, _MAX_PARALLEL)
        stop_after = top.number("stop_after", 1, 1, sys.maxsize)
        boards = top.take("boards", dict, {})
        shared = top.rest(_BOARD_KEYS - {"port"})
        targets = tuple(_target(top, name, shared, board) for name, board in boards.items())
        if not targets:
            raise UsageError(f"{path.name} names no boards", '[boards] with name = "PORT"')
        _check_ports(targets, path.name)
        return cls(targets, int(parallel), int(stop_after))

    def with_options(self, **changes: Any) -> DeployPlan:
        """The same with other `Options` for all of its boards."""
        targets = tuple(
            replace(target, options=replace(target.options, **changes)) for target in self.targets
        )
        return replace(self, targets=targets)


@dataclass(frozen=True)
class Result:
    """What became of one board."""

    name: str
    port: str
    outcome: str
    version: str = ""
    changes: tuple[str, ...] = ()
    seconds: float = 0.0
    message: str = ""

    @property
    def is_good(self) -> bool:
        return self.outcome in (UPDATED, UP_TO_DATE, SENT)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "port": self.port,
            "outcome": self.outcome,
            "version": self.version,
            "changes": list(self.changes),
            "seconds": round(self.seconds, 1),
            "message": self.message,
        }


@dataclass
class _Progress:
    """The state that the boards of a plan share while it runs."""

    stop_after: int
    failures: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def is_stopped(self) -> bool:
        return self.failures >= self.stop_after


def deploy(
    plan: DeployPlan, say: Callable[[str], object] = lambda line: None
) -> tuple[Result, ...]:
    """Bring all boards of the plan to what it says; their results in the plan's order.

    ``say`` is called, one call at a time, with lines about what happens. What a board has already
    is not done again. Raises nothing for a board that fails.
    """
    progress = _Progress(plan.stop_after)

    def run(target: PlannedBoard) -> Result:
        def tell(text: str) -> None:
            with progress.lock:
                say(f"{target.name}: {text}")

        if progress.is_stopped():
            return Result(target.name, target.port, NOT_STARTED)
        result = _bring_up(target, tell)
        if not result.is_good:
            with progress.lock:
                progress.failures += 1
        tell(result.outcome + (f": {result.message}" if result.message else ""))
        return result

    with ThreadPoolExecutor(min(plan.parallel, len(plan.targets))) as pool:
        try:
            return tuple(pool.map(run, plan.targets))
        except BaseException:
            progress.failures = plan.stop_after  # boards under way are finished, no other begins
            raise


def _bring_up(target: PlannedBoard, tell: Callable[[str], object]) -> Result:
    changes: list[str] = []
    version = ""
    start = time.monotonic()
    try:
        with connect(target.port) as board:
            if board.session is not None:
                changes += _equip(board.session, target)
            if target.package is not None:
                pushed = board.push(target.package, replace(target.options, tell=tell))
                version = pushed.version
                if pushed.is_new:
                    changes.append(f"{pushed.slot}: {version}" if pushed.slot else version)
    except MpotaError as error:
        outcome = outcome_of(error)
        message = "; ".join((str(error), *error.details))
        message += f" ({error.hint})" if error.hint else ""
    except Exception as error:  # an odd board may fail, and not end the others
        outcome, message = "failed", f"{type(error).__name__}: {str(error)[:_MAX_MESSAGE]}"
    else:
        done = UPDATED if has_repl(target.port) else SENT
        outcome, message = (done if changes else UP_TO_DATE), ""
    seconds = time.monotonic() - start
    return Result(target.name, target.port, outcome, version, tuple(changes), seconds, message)


def _equip(session: Session, target: PlannedBoard) -> list[str]:
    """Give a board all but the firmware; returns what has changed, in words."""
    parts = target.package.parts if target.package else ()
    done = install(session, target.keys, target.ca, (*parts, *target.parts))
    package = [f"ota package: {len(done.copied)} files"] if done.is_changed else []
    return package + _copy_files(session, target.files)


def _copy_files(session: Session, files: Mapping[str, bytes]) -> list[str]:
    """Copy the files that differ; returns their paths."""
    folders = {path.rpartition("/")[0] or "/" for path in files}
    there = {
        f"{folder.rstrip('/')}/{name}": digest
        for folder in folders
        for name, digest in session.digests(folder).items()
    }
    missing = {
        path: data for path, data in files.items() if there.get(path) != sha256(data).hexdigest()
    }
    session.write_parts(missing)
    if missing:
        session.finish_parts(missing)
    return list(missing)


# --- reading a plan


def _plan_text(path: Path) -> str:
    data = read_file(path)
    if len(data) > _MAX_PLAN_SIZE:
        raise UsageError(f"{path.name} is {len(data):,} bytes, a plan has {_MAX_PLAN_SIZE:,}")
    if sum(line.count(b".") ** 2 for line in data.splitlines()) > _MAX_DOTS**2:
        raise UsageError(f"{path.name} has lines with more dots than any key needs")
    return data.decode("utf-8")


class _Files:
    """The files that a plan names, each read once for all of its boards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._contents: dict[Path, bytes] = {}
        self._packages: dict[str, Package] = {}

    def read(self, path: Path) -> bytes:
        if path not in self._contents:
            self._contents[path] = read_file(path)
        return self._contents[path]

    def package(self, name: str) -> Package:
        source = name if "://" in name else str(self.folder / name)
        if source not in self._packages:
            self._packages[source] = Package.open(source)
        return self._packages[source]

    def check_key(self, path: Path) -> None:
        """Raises UsageError for a private key: a plan is no place for one."""
        if is_private_key(self.read(path)):
            raise UsageError(f"'{path}' is a private key: boards are given public ones")


_BOARD_KEYS = frozenset(
    {
        "port",
        "firmware",
        "check",
        "check_timeout",
        "settle",
        "keys",
        "parts",
        "ca",
        "files",
        "secret",
    }
)


def _target(top: _Table, name: str, shared: Mapping[str, Any], board: Any) -> PlannedBoard:
    own = {"port": board} if isinstance(board, str) else board
    if not isinstance(own, dict):
        raise UsageError(f"{top.name}: boards.{name} is neither a port nor a table")
    table = _Table({**shared, **own}, f"{top.name}: {name}", top.source)
    firmware = table.take("firmware", str, "")
    check = table.take("check", str, "")
    keys = tuple(table.path(key) for key in table.strings("keys"))
    ca = table.take("ca", str, "")
    secret = table.take("secret", str, "")
    options = Options(
        HealthCheck.parse(
            (str(table.path(check)) if check.endswith(".py") else check) or None,
            table.number("check_timeout", 30, 0, 86400),
        ),
        table.number("settle", 3, 0.05, 86400),
        secret=read_secret(table.path(secret) if secret else None),
    )
    target = PlannedBoard(
        name,
        table.take("port", str, ""),
        table.source.package(firmware) if firmware else None,
        options,
        {
            _board_path(table, key): table.source.read(table.path(path))
            for key, path in table.files()
        },
        keys,
        table.path(ca) if ca else None,
        tuple(table.strings("parts")),
    )
    modules_of(target.parts)  # they exist
    table.end()
    if not target.port:
        raise UsageError(f"{table.name} has no port")
    for path in (*target.keys, *([target.ca] if target.ca else [])):
        table.source.check_key(path)
    if not has_repl(target.port):
        _check_listening(target, table.name)
    return target


def _check_listening(target: PlannedBoard, name: str) -> None:
    """Raises UsageError for what only a board at its REPL can be given."""
    from mpota.push.wire import Update, check_secret  # with asyncio

    given = {
        "check": target.options.check.source,
        "keys": target.keys,
        "parts": target.parts,
        "ca": target.ca,
        "files": target.files,
    }
    for key, value in given.items():
        if value:
            raise UsageError(
                f"{name}: a board at {target.port} takes firmware alone, no {key}",
                "what a release is to bring goes into its bundle",
            )
    if target.package is None:
        raise UsageError(f"{name} has no firmware")
    Update.of(target.package)
    check_secret(target.options)
    with connect(target.port):  # the name is one
        pass


def _board_path(table: _Table, path: str) -> str:
    parts = path.split("/")
    if not path.startswith("/") or {"", ".", ".."} & set(parts[1:]):
        raise UsageError(f"{table.name}: '{path}' is not an absolute path on a board")
    return path


def _check_ports(targets: tuple[PlannedBoard, ...], name: str) -> None:
    owners: dict[str, str] = {}
    for target in targets:
        if target.port in owners:
            raise UsageError(
                f"{name}: {owners[target.port]} and {target.name} are both on {target.port}"
            )
        owners[target.port] = target.name


class _Table:
    """A TOML table: each key is taken once, by its type; what is left in the end is an error."""

    def __init__(self, data: Mapping[str, Any], name: str, source: _Files) -> None:
        self._left = dict(data)
        self.name = name
        self.source = source

    def take(self, key: str, kind: type[T], default: T) -> T:
        value = self._left.pop(key, default)
        if not isinstance(value, kind):
            raise UsageError(f"{self.name}: {key} = {_said(value)} is not {_KINDS[kind]}")
        return value

    def number(self, key: str, default: float, low: float, high: float) -> float:
        value = self._left.pop(key, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            raise UsageError(
                f"{self.name}: {key} = {_said(value)} is not a number from {low} to {high}"
            )
        return float(value)

    def strings(self, key: str) -> list[str]:
        values = self.take(key, list, [])
        if not all(isinstance(value, str) for value in values):
            raise UsageError(f"{self.name}: {key} = {_said(values)} is not a list of texts")
        return values

    def files(self) -> list[tuple[str, str]]:
        files = self.take("files", dict, {})
        if not all(isinstance(value, str) for value in files.values()):
            raise UsageError(f"{self.name}: files has a value that is not a text")
        return list(files.items())

    def path(self, text: str) -> Path:
        return self.source.folder / text

    def rest(self, known: frozenset[str]) -> Mapping[str, Any]:
        """What is left, none of it unknown."""
        self._check_known(set(self._left) - known)
        return dict(self._left)

    def end(self) -> None:
        self._check_known(set(self._left))

    def _check_known(self, unknown: set[str]) -> None:
        if unknown:
            raise UsageError(f"{self.name}: '{sorted(unknown)[0]}' is nothing that a plan knows")


def _said(value: object) -> str:
    """A value of a plan for a message, cut short if it is deep or long."""
    try:
        return reprlib.repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"


_KINDS: dict[type, str] = {str: "a text", list: "a list", dict: "a table"}
