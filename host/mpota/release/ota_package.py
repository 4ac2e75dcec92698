"""The ``ota`` package as files for a board: its parts, compiled or not."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache

from mpota.errors import MpotaError, UsageError
from mpota.mpy_cross import MpyFormat, compile_module
from mpota.resources import data_directory

MARK = "moving"  # a file in a package that takes the place of another: device/ota/confirm.py
MODULES = (".py", ".mpy")
NEEDS = {"channel": ("release",)}  # parts that are of no use without others


@cache
def parts() -> dict[str, tuple[str, ...]]:
    """The parts of the package, as it has them in ``status.py``: name -> its modules.

    What belongs to no other part is the core. Raises MpotaError where this installation comes
    without the package.
    """
    found = {part: tuple(modules.split()) for part, modules in _table()}
    others = {module for modules in found.values() for module in modules}
    stems = sorted(path.stem for path in (data_directory("device") / "ota").glob("*.py"))
    return {"core": tuple(stem for stem in stems if stem not in others), **found}


def _table() -> tuple[tuple[str, str], ...]:
    """PARTS of the board's ``status.py``, which only a board can run."""
    path = data_directory("device") / "ota" / "status.py"
    if not path.is_file():
        raise MpotaError("this mpota comes without the ota package")
    tree = ast.parse(path.read_bytes())
    values = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PARTS"
    )
    table: tuple[tuple[str, str], ...] = ast.literal_eval(next(values))
    return table


def part_names() -> tuple[str, ...]:
    """What ``--with`` takes."""
    return tuple(part for part in parts() if part != "core")


def modules_of(wanted: Iterable[str]) -> tuple[str, ...]:
    """The modules of the core and of parts. Raises UsageError."""
    found = set(parts()["core"])
    for part in wanted:
        if part not in parts():
            raise UsageError(f"there is no part '{part}'", f"{', '.join(part_names())}")
        found.update(*(parts()[name] for name in (part, *NEEDS.get(part, ()))))
    return tuple(sorted(found))


def choose_parts(
    wanted: Iterable[str], installed: Iterable[str], needs_release: bool
) -> tuple[str, ...]:
    """The parts for a board that has the files ``installed`` in its package, of any version."""
    stems = {name.rpartition(".")[0] for name in installed if name.endswith(MODULES)}
    modules_of(wanted)  # they exist
    chosen = {part for part in part_names() if part in wanted or parts()[part][0] in stems}
    if needs_release:
        chosen.add("release")
    chosen.update(*(NEEDS.get(part, ()) for part in chosen))
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
