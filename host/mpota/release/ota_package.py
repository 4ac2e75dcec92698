"""The ``ota`` package as files for a board: its parts, compiled or not."""

from __future__ import annotations

import runpy
from collections.abc import Iterable
from functools import cache
from typing import Any

from mpota.errors import MpotaError, UsageError
from mpota.mpy_cross import MpyFormat, compile_module
from mpota.resources import data_directory

MARK = "moving"  # a file in a package that takes the place of another: device/ota/self_update.py
MODULES = (".py", ".mpy")


@cache
def _table() -> dict[str, Any]:
    path = data_directory("device") / "ota" / "package.py"
    if not path.is_file():
        raise MpotaError("this mpota comes without the ota package")
    return runpy.run_path(str(path))


def part_names() -> tuple[str, ...]:
    """What ``--with`` takes."""
    hidden = {"core", *_table()["NEEDS"].values()}
    return tuple(part for part, _ in _table()["PARTS"] if part not in hidden)


def modules_of(parts: Iterable[str]) -> tuple[str, ...]:
    """The modules of the core and of ``parts``, with all that these need. Raises UsageError."""
    table, needs = dict(_table()["PARTS"]), _table()["NEEDS"]
    wanted = {"core": None}
    for part in parts:
        if part not in ("core", *part_names()):
            raise UsageError(f"there is no part '{part}'", f"{', '.join(part_names())}")
        wanted |= {needs.get(part, part): None, part: None}
    return tuple(sorted(name for part in wanted for name in table[part].split()))


def choose_parts(
    parts: Iterable[str], installed: Iterable[str], needs_release: bool
) -> tuple[str, ...]:
    """The parts for a board that has the files ``installed`` in its package, of any version."""
    stems = {name.rpartition(".")[0] for name in installed if name.endswith(MODULES)}
    entries = {part: modules.split()[0] for part, modules in _table()["PARTS"]}
    modules_of(parts)  # they exist
    chosen = {part for part in part_names() if part in parts or entries[part] in stems}
    if needs_release:
        chosen.add("release")
    return ("core", *(part for part in part_names() if part in chosen))


def package(
    format: MpyFormat, is_compiled: bool, parts: Iterable[str] | None = None
) -> dict[str, bytes]:
    """The files of the ``ota`` package for a board, by their names in it; all parts by default."""
    directory = data_directory("device") / "ota"
    files = {}
    for name in modules_of(part_names() if parts is None else parts):
        source = (directory / f"{name}.py").read_bytes()
        if is_compiled:
            files[f"{name}.mpy"] = compile_module(source, f"ota/{name}.py", format)
        else:
            files[f"{name}.py"] = source
    return files
