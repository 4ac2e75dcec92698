"""The ``ota`` package as files for a board: its parts, compiled or not."""

from __future__ import annotations

import ast
import struct
import zlib
from collections.abc import Iterable, Mapping
from functools import cache

from mpota.errors import MpotaError, UsageError
from mpota.mpy_cross import MpyFormat, compile_module
from mpota.resources import data_directory

MARK = "moving"  # a file in a package that takes the place of another: device/ota/confirm.py
MODULES = (".py", ".mpy", ".pack")
INIT = "__init__"  # the module that is in no pack
DATA = {"web": "web.gz"}  # part: a file that comes with its modules
# Parts that are of no use without others.
NEEDS = {
    "channel": ("release",),
    "ddi": ("release",),
    "mqtt": ("release", "channel"),
    "web": ("listen",),
}


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
    """PARTS of the board's ``status.py``, read as text, since only a board can import it."""
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
    modules_of(wanted)  # raises for an unknown part
    chosen = {
        part
        for part in part_names()
        if part in wanted or part in stems or parts()[part][0] in stems
    }
    if needs_release:
        chosen.add("release")
    chosen.update(*(NEEDS.get(part, ()) for part in chosen))
    return ("core", *(part for part in part_names() if part in chosen))


def package(
    format: MpyFormat, is_compiled: bool, parts: Iterable[str] | None = None
) -> dict[str, bytes]:
    """The files of the ``ota`` package for a board, by their names in it; all parts by default.

    Compiled ones are in packs, one a part: see device/packed.py.
    """
    wanted = part_names() if parts is None else tuple(parts)
    names = modules_of(wanted)
    data = {DATA[part]: _source(f"ota/{DATA[part]}") for part in wanted if part in DATA}
    if not is_compiled:
        return data | {f"{name}.py": _source(f"ota/{name}.py") for name in names}
    packs: dict[str, dict[str, bytes]] = {}
    for name in names:
        if name != INIT:
            packs.setdefault(f"{_pack_of(name)}.pack", {})[name] = _compiled(name, format)
    files = {f"{INIT}.mpy": _compiled_init(format)}
    return data | files | {name: make_pack(modules) for name, modules in sorted(packs.items())}


def _source(path: str) -> bytes:
    return (data_directory("device") / path).read_bytes()


def _compiled(name: str, format: MpyFormat) -> bytes:
    return compile_module(_source(f"ota/{name}.py"), f"ota/{name}.py", format)


def _compiled_init(format: MpyFormat) -> bytes:
    """``__init__``, with what imports the others from packs."""
    source = _source(f"ota/{INIT}.py") + _source("packed.py")
    return compile_module(source, f"ota/{INIT}.py", format)


def _pack_of(module: str) -> str:
    """The name of the pack that has a module: of its part, or of those that share it."""
    return "-".join(part for part, modules in parts().items() if module in modules)


# --- packs

_ENTRY = struct.Struct("<16sI")
_IS_DEFLATED = 1 << 31
_WINDOW_BITS = 9  # 512 bytes of the board's heap
# Inflating takes 2 KiB of heap: modules that load while an update holds its buffer stay plain.
_STORED = {
    "base", "update", "otadata", "slot", "pump", "image", "chips", "ready", "begin", "finish",
    "console", "rollback", "http", "http_ask", "http_connect", "http_resume",
    "release", "chain", "frames", "delta",
}  # fmt: skip


def make_pack(modules: Mapping[str, bytes]) -> bytes:
    """The pack of modules (.mpy), by their names: at most 16 bytes each."""
    index, data = b"", b""
    start = _ENTRY.size * (len(modules) + 1)
    for name, module in modules.items():
        deflated = _deflate(module)
        is_deflated = name not in _STORED and len(deflated) < len(module)
        offset = start + len(data) | (_IS_DEFLATED if is_deflated else 0)
        index += _ENTRY.pack(name.encode(), offset)
        data += deflated if is_deflated else module
    return index + bytes(_ENTRY.size) + data


def _deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -_WINDOW_BITS, 9)
    return compressor.compress(data) + compressor.flush()
