"""Finds a real MicroPython interpreter (the unix port), and fetches one where apt can.

Order: ``$MICROPYTHON``, ``micropython`` on PATH, the user's cache, then the package of a newer
Debian or Ubuntu suite, unpacked into that cache. Nothing is installed and root is not needed:
apt runs with its lists, cache and package state in a private directory, and its sources are the
machine's own with the name of the suite exchanged.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mpota.errors import MpotaError

MIN_VERSION = (1, 23, 0)

# Suites whose `micropython` package is new enough, the most stable first.
_SUITES = {
    "debian": ("trixie", "forky", "sid"),
    "ubuntu": ("resolute", "questing", "plucky", "devel"),
}
# What sources may call the machine's suite beside its code name.
_ALIASES = ("stable", "oldstable")
# What runs on a machine of this architecture, the best first. The i386 build has 4-byte words and
# 16-byte GC blocks, as an ESP32 has: there a heap of 120 KiB holds what it holds on a board.
_ARCHITECTURES = {"amd64": ("i386", "amd64")}

_PROBE = "import sys; print(*sys.implementation[1][:3], 8 if sys.maxsize >> 32 else 4)"
_PROBE_TIMEOUT_S = 10
_APT_TIMEOUT_S = 300

_HINT = (
    "install it (apt install micropython on Debian 13 or a recent Ubuntu, brew install micropython "
    "on macOS, WSL on Windows) or set MICROPYTHON to an interpreter"
)


@dataclass(frozen=True)
class Interpreter:
    """A MicroPython unix port that runs on this machine."""

    command: tuple[str, ...]  # the program and the arguments that start it
    version: tuple[int, int, int]
    word_size: int  # bytes, 4 or 8

    def with_heap(self, heap_size: int) -> list[str]:
        """The command with a heap that holds what ``heap_size`` bytes hold on a board.

        GC blocks are four words long, so an 8-byte-word build needs twice the bytes.
        """
        return [*self.command, "-X", f"heapsize={heap_size * self.word_size // 4}"]


@functools.cache
def find() -> Interpreter:
    """The interpreter to run virtual boards with; fetched into the user's cache at first use.

    Raises MpotaError when there is none and none can be fetched, and when ``$MICROPYTHON`` names
    something that is not MicroPython 1.23 or newer.
    """
    named = os.environ.get("MICROPYTHON")
    if named:
        return _checked((named,), f"$MICROPYTHON ({named})")
    on_path = shutil.which("micropython")
    why_not = "there is no micropython on PATH"
    if on_path:
        try:
            return _checked((on_path,), on_path)
        except MpotaError as error:
            why_not = str(error)
    try:
        return _cached_or_fetched(cache_dir() / "micropython")
    except (MpotaError, OSError) as error:
        raise MpotaError(
            f"the virtual board needs MicroPython {_text(MIN_VERSION)} or newer: "
            f"{why_not}; {error}",
            hint=_HINT,
        ) from error


def another() -> Interpreter:
    """An interpreter of another version than `find`'s, fetched into the user's cache, for tests.

    Raises MpotaError if there is none in this machine's suites.
    """
    mine = find().version
    directory = cache_dir() / "micropython-other"
    architectures = _candidate_architectures()
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory / "lock"):
        found = _first_usable(directory, architectures)
        if found is not None and found.version != mine:
            return found
        return _fetch(directory, architectures, other_than=mine)


def cache_dir() -> Path:
    """The directory for what mpota may fetch again at any time."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mpota"


def _text(version: tuple[int, int, int]) -> str:
    return ".".join(str(part) for part in version)


def _checked(command: tuple[str, ...], name: str) -> Interpreter:
    """The interpreter ``command``, which is started to ask it. MpotaError unless it will do."""
    try:
        done = subprocess.run(
            [*command, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MpotaError(f"{name} does not run: {error}", hint=_HINT) from error
    fields = done.stdout.split()
    if done.returncode or len(fields) != 4 or not all(field.isdecimal() for field in fields):
        raise MpotaError(f"{name} is not a MicroPython of {_text(MIN_VERSION)} or newer", _HINT)
    major, minor, patch, word_size = (int(field) for field in fields)
    version = (major, minor, patch)
    if version < MIN_VERSION:
        raise MpotaError(
            f"{name} is MicroPython {_text(version)}, older than {_text(MIN_VERSION)}", hint=_HINT
        )
    return Interpreter(command, version, word_size)


# --- a newer suite's package, unpacked ---------------------------------------------------------


def _cached_or_fetched(directory: Path) -> Interpreter:
    """The interpreter unpacked in ``directory``, put there first if it is not."""
    architectures = _candidate_architectures()
    found = _first_usable(directory, architectures)
    if found is not None:
        return found
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory / "lock"):  # several processes may come here at once: one fetches
        found = _first_usable(directory, architectures)
        if found is not None:
            return found
        return _fetch(directory, architectures)


def _candidate_architectures() -> tuple[str, ...]:
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise MpotaError("this machine has no apt to fetch it with")
    native = _run(["dpkg", "--print-architecture"]).strip()
    return _ARCHITECTURES.get(native, (native,))


def _first_usable(directory: Path, architectures: tuple[str, ...]) -> Interpreter | None:
    for architecture in architectures:
        root = directory / architecture
        if root.is_dir():
            with contextlib.suppress(MpotaError):
                return _checked(_command_in(root), str(root))
    return None


def _command_in(root: Path) -> tuple[str, ...]:
    """How to start the ``micropython`` unpacked in ``root``: by its own loader and libraries."""
    program = root / "usr/bin/micropython"
    # Debian's dpkg has every loader under the multiarch directory, Ubuntu's may have it in /lib.
    loaders = sorted(root.glob("usr/lib/*/ld-linux*.so.*")) or sorted(root.glob("lib*/**/ld-*.so*"))
    if not program.is_file() or not loaders:
        raise MpotaError(f"{root} holds no micropython")
    libraries = sorted({str(path.parent) for path in root.glob("**/lib*.so.*")})
    return (str(loaders[0]), "--library-path", ":".join(libraries), str(program))


def _fetch(
    directory: Path,
    architectures: tuple[str, ...],
    other_than: tuple[int, int, int] | None = None,
) -> Interpreter:
    """Fetch and unpack the first package that runs here. The caller holds the lock."""
    failures = []
    for suite, suffix, sources in _newer_sources():
        for architecture in architectures:
            with tempfile.TemporaryDirectory(dir=directory, prefix="fetch-") as scratch:
                try:
                    root = _unpack_package(Path(scratch), suffix, sources, architecture)
                    made = _checked(_command_in(root), f"micropython of {suite} ({architecture})")
                    if made.version == other_than:
                        raise MpotaError(f"is MicroPython {_text(made.version)} too")
                except MpotaError as error:
                    failures.append(f"{suite} ({architecture}): {error}")
                    continue
                target = directory / architecture
                if target.exists():  # one from before that does not run here (any more)
                    shutil.rmtree(target)
                root.rename(target)
                return _checked(_command_in(target), str(target))
    raise MpotaError("; ".join(failures) or "this machine's apt has no source to derive one from")


def _unpack_package(scratch: Path, suffix: str, sources: str, architecture: str) -> Path:
    """Let apt fetch ``micropython`` with all it depends on, and unpack that into one tree.

    apt takes the machine for an empty one of ``architecture`` (no package installed), so that
    ``install --download-only`` names and fetches the right libraries in every suite.
    """
    (scratch / "lists/partial").mkdir(parents=True)
    (scratch / "cache/archives/partial").mkdir(parents=True)
    (scratch / "status").touch()
    source_list = scratch / f"newer.{suffix}"
    source_list.write_text(sources, encoding="utf-8")
    options = {
        "Dir::Etc::sourcelist": source_list,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::State::lists": scratch / "lists",
        "Dir::State::status": scratch / "status",
        "Dir::State::extended_states": scratch / "extended_states",
        "Dir::Cache": scratch / "cache",
        "Dir::Log": scratch,
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        "Debug::NoLocking": "true",
    }
    apt = ["apt-get", "--quiet", "--yes"]
    for name, value in options.items():
        apt += ["-o", f"{name}={value}"]
    _run([*apt, "update"])
    _run([*apt, "install", "--download-only", "--no-install-recommends", "micropython"])
    root = scratch / "root"
    packages = sorted((scratch / "cache/archives").glob("*.deb"))
    for package in packages:
        _run(["dpkg-deb", "--extract", str(package), str(root)])
    return root


def _newer_sources() -> Iterator[tuple[str, str, str]]:
    """(suite, file suffix, text) of an apt source for each newer suite, from this machine's own."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)', _read("/etc/os-release"), re.MULTILINE))
    own = (release.get("VERSION_CODENAME", ""), *_ALIASES)
    families = [release.get("ID", ""), *release.get("ID_LIKE", "").split()]
    suites = next((_SUITES[name] for name in families if name in _SUITES), ())
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    texts = [(path.suffix, _read(path)) for path in files if path.suffix in (".list", ".sources")]
    for suite in suites:
        for suffix, text in texts:
            exchange = _exchange_deb822 if suffix == ".sources" else _exchange_one_line
            sources = exchange(text, own, suite)
            if sources:
                yield suite, suffix.lstrip("."), sources


def _exchange_one_line(text: str, own: tuple[str, ...], suite: str) -> str:
    """The lines ``deb [options] URI <suite> ...`` of a sources.list, for ``suite``, not ``own``."""
    suites = "|".join(re.escape(name) for name in own)
    line = re.compile(rf"^\s*(deb\s+(?:\[[^\]]*\]\s+)?\S+)\s+(?:{suites})\s+(.*)$")
    matches = (line.match(entry) for entry in text.splitlines())
    entries = (_without_architectures(f"{m[1]} {suite} {m[2]}") for m in matches if m)
    return "".join(f"{entry}\n" for entry in entries)


def _without_architectures(entry: str) -> str:
    return re.sub(r"\[\s*\]", "", re.sub(r"\barch=[\w,]+", "", entry))


def _exchange_deb822(text: str, own: tuple[str, ...], suite: str) -> str:
    """The stanzas of a .sources file (sources.list(5)) for ``suite`` in place of ``own``."""
    stanzas = []
    for stanza in re.split(r"\n\s*\n", text):
        lines = [line for line in stanza.splitlines() if not line.startswith("#")]
        fields = {line.partition(":")[0].lower(): line.partition(":")[2].split() for line in lines}
        if (
            "deb" not in fields.get("types", ())
            or not set(own) & set(fields.get("suites", ()))
            or fields.get("enabled", ["yes"])[0].lower() in ("no", "false", "without", "off", "0")
        ):
            continue
        exchanged = {"types": "Types: deb", "suites": f"Suites: {suite}", "architectures": ""}
        lines = [exchanged.get(line.partition(":")[0].lower(), line) for line in lines]
        stanzas.append("\n".join(line for line in lines if line.strip()) + "\n")
    return "\n".join(stanzas)


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _run(command: list[str]) -> str:
    """Run ``command``; its output, or MpotaError with the last thing that it complained about."""
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=environment,
            stdin=subprocess.DEVNULL,
            timeout=_APT_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MpotaError(f"{command[0]} failed: {error}") from error
    if done.returncode:
        complaints = [line for line in done.stderr.splitlines() if line.startswith("E:")]
        last = (complaints or done.stderr.splitlines() or ["no message"])[-1]
        raise MpotaError(f"{command[0]} failed: {last}")
    return done.stdout


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl  # not on Windows, where there is no apt either

    with open(path, "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
