"""The `ota` package as boards have it: compiled. As source it would take their heap."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

from mpota.mpy_cross import PORTABLE, compile_module
from mpota.release.ota_package import DATA, parts

from tests.support import once
from tests.support.real_files import ROOT

DEVICE = ROOT / "device"


@cache
def compiled() -> Path:
    """A directory with the package in ``ota``, for `Board.frozen`."""

    def fill(target: Path) -> None:
        compile_all(DEVICE / "ota", target / "ota", "ota/")
        for name in DATA.values():
            shutil.copy(DEVICE / "ota" / name, target / "ota")

    return once.directory("ota-package", fill)


@cache
def core() -> Path:
    """As `compiled`, without the parts that are installed only if asked for."""

    def fill(target: Path) -> None:
        (target / "ota").mkdir()
        for name in parts()["core"]:
            shutil.copy(compiled() / "ota" / f"{name}.mpy", target / "ota")

    return once.directory("ota-core", fill)


def compile_all(sources: Path, target: Path, prefix: str) -> None:
    """Compile the modules in ``sources``. Tracebacks name them ``prefix`` and the file."""
    target.mkdir(exist_ok=True)
    for source in sorted(sources.glob("*.py")):
        made = compile_module(source.read_bytes(), f"{prefix}{source.name}", PORTABLE)
        (target / f"{source.stem}.mpy").write_bytes(made)
