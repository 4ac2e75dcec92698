"""Files between this computer and a littlefs: patterns, directories, what is already there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from mpota.errors import MpotaError, UsageError
from mpota.filesystem.littlefs import FileSystem, Writer, mtime_attrs
from mpota.formats.littlefs import Entry, split_path
from mpota.storage.file import from_os, replacing, to_os

_PATTERN = re.compile(r"[*?\[]")
Report = Callable[[str], object]


def expand(file_system: FileSystem, path: str) -> list[tuple[str, Entry]]:
    """What ``path`` names: one entry, or all that a pattern with ``*``, ``?``, ``[...]`` fits.

    A name that is there is taken as it is, whatever characters it has. Raises MpotaError if
    nothing fits.
    """
    names = split_path(path)
    found = [("", file_system.volume.root)]
    for name in names:
        found = [
            (f"{parent}/{child.name}", child)
            for parent, entry in found
            for child in _matching(entry, name)
        ]
    if not found:
        file_system.entry(path)
        raise MpotaError(f"{file_system.region.name}: nothing fits '{path}'")
    return [(text or "/", entry) for text, entry in found]


def put(
    file_system: FileSystem,
    sources: Sequence[str],
    destination: str = "/",
    *,
    exclude: Sequence[str] = (),
    told: Report = lambda line: None,
) -> int:
    """Copy files and directories of this computer to ``destination``; how many were written.

    As with `cp`: into a directory that is there, or to a new name if it is one source; of a
    source that ends in ``/`` the contents. Files that have the same content already are left
    alone. All sources are read before the first write. Raises MpotaError if one of them does not
    fit, UsageError if one cannot be read.
    """
    plan: dict[str, Path | None] = {}
    target = file_system.volume.find(destination)
    is_directory = target.is_dir if target else destination.endswith("/")
    if len(sources) > 1 and not is_directory:
        raise UsageError(f"'{destination}' is no directory: several sources need one")
    for parent in _parents(destination, itself=is_directory):
        plan[parent] = None
    for text in sources:
        source, base = Path(text), split_path(destination)
        if is_directory and not (source.is_dir() and text.endswith(("/", os.sep))):
            base = [*base, from_os(source.resolve().name)]
        for names, path in _local_tree(source, exclude):
            plan["/" + "/".join([*base, *names])] = path
    plan.pop("/", None)
    return _write_plan(file_system, plan, told)


def get(
    file_system: FileSystem,
    paths: Iterable[str],
    destination: str,
    *,
    force: bool = False,
    told: Report = lambda line: None,
) -> list[str]:
    """Copy files and directories to this computer, with their times; what could not be read.

    Into ``destination`` if it is a directory, else to that name. Raises UsageError if a file is
    there already and ``force`` is not given, MpotaError for names that cannot be files here.
    """
    chosen = [pair for path in paths for pair in expand(file_system, path)]
    target = Path(destination)
    is_directory = target.is_dir() or destination.endswith(("/", os.sep))
    if len(chosen) > 1 and not is_directory:
        if target.exists():
            raise UsageError(f"'{destination}' is no directory: several files need one")
        is_directory = True
    copies: list[tuple[str, Entry, Path]] = []
    for path, entry in chosen:
        base = target / _local_name(entry.name) if is_directory and path != "/" else target
        copies.append((path, entry, base))
        for below, child in file_system.volume.walk(entry, "") if entry.is_dir else ():
            local = base.joinpath(*(_local_name(name) for name in split_path(below)))
            copies.append((path.rstrip("/") + below, child, local))
    taken = [local for _, entry, local in copies if not entry.is_dir and local.exists()]
    if taken and not force:
        raise UsageError(f"'{taken[0]}' exists", "use --force to overwrite it")
    return list(_copy_out(file_system, copies, told))


def remove(file_system: FileSystem, paths: Iterable[str], *, recursive: bool = False) -> list[str]:
    """Remove files, and directories if ``recursive``; the paths that are gone."""
    doomed: dict[str, None] = {}
    for pattern in paths:
        for path, entry in expand(file_system, pattern):
            if path == "/":
                raise UsageError("the root directory cannot be removed", "rm -r '/*', or mkfs")
            if entry.is_dir and not recursive:
                raise UsageError(f"'{path}' is a directory", "use -r to remove it")
            below = [p for p, _ in file_system.volume.walk(entry, path)] if entry.is_dir else []
            doomed.update(dict.fromkeys([*reversed(below), path]))
    # A directory's contents go before it, whichever pattern named them.
    gone = sorted(doomed, key=lambda path: path.count("/"), reverse=True)
    with file_system.writing() as writer:
        for path in gone:
            writer.remove(path)
    return gone


def move(file_system: FileSystem, paths: Sequence[str], destination: str) -> list[tuple[str, str]]:
    """Rename one entry, or move entries into a directory; old and new paths."""
    chosen = [path for pattern in paths for path, _ in expand(file_system, pattern)]
    target = file_system.volume.find(destination)
    is_directory = target is not None and target.is_dir
    if not is_directory and (len(chosen) > 1 or destination.endswith("/")):
        raise UsageError(f"'{destination}' is no directory")
    to = "/" + "/".join(split_path(destination))
    moves = []
    for path in chosen:
        new = f"{to.rstrip('/')}/{path.rpartition('/')[2]}" if is_directory else to
        if new != path:
            moves.append((path, new))
    with file_system.writing() as writer:
        for old, new in moves:
            writer.rename(old, new)
    return moves


def make_directories(
    file_system: FileSystem, paths: Iterable[str], *, parents: bool = False
) -> None:
    """Raises MpotaError if one is there already, unless ``parents`` is given."""
    wanted: dict[str, None] = {}
    for path in paths:
        names = [*_parents(path), "/" + "/".join(split_path(path))] if parents else [path]
        for name in names:
            entry = file_system.volume.find(name)
            if not (parents and entry is not None and entry.is_dir):
                wanted[name] = None
    with file_system.writing() as writer:
        for path in wanted:
            writer.mkdir(path)


def local_files(directory: Path, exclude: Sequence[str] = ()) -> dict[str, bytes | None]:
    """All that is in a directory of this computer, for `mpota.filesystem.littlefs.build`."""
    if not directory.is_dir():
        raise UsageError(f"'{directory}' is no directory")
    return {
        "/" + "/".join(names): None if path is None else _read_local(path)
        for names, path in _local_tree(directory, exclude)
        if names
    }


def _write_plan(file_system: FileSystem, plan: dict[str, Path | None], told: Report) -> int:
    contents = {path: _read_local(source) for path, source in plan.items() if source is not None}
    written = 0
    with file_system.writing() as writer:
        for path, source in plan.items():
            old = file_system.volume.find(path)
            if source is None:
                if old is None:
                    writer.mkdir(path)
                elif not old.is_dir:
                    raise MpotaError(f"{file_system.region.name}: '{path}' is a file")
            elif _is_new(file_system, old, path, contents[path]):
                _write_file(writer, path, contents[path], source)
                written += 1
                told(f"{path} ({len(contents[path]):,} bytes)")
    return written


def _write_file(writer: Writer, path: str, data: bytes, source: Path) -> None:
    writer.write(path, data, mtime_attrs(source))


def _is_new(file_system: FileSystem, old: Entry | None, path: str, data: bytes) -> bool:
    if old is None or old.size != len(data):
        return True
    return old.is_dir or file_system.read(path) != data


def _copy_out(
    file_system: FileSystem, copies: Iterable[tuple[str, Entry, Path]], told: Report
) -> Iterator[str]:
    for path, entry, local in copies:
        try:
            if entry.is_dir:
                local.mkdir(parents=True, exist_ok=True)
                continue
            data = file_system.volume.content(entry)
            local.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make directory '{local}': {error.strerror}") from None
        except MpotaError as error:
            yield f"{path}: {error}"
            continue
        with replacing(local) as temporary:
            temporary.write_bytes(data)
            if entry.mtime_ns is not None and entry.mtime_ns < 1 << 62:
                os.utime(temporary, ns=(entry.mtime_ns, entry.mtime_ns))
        told(f"{path} -> {local} ({len(data):,} bytes)")


def _matching(entry: Entry, name: str) -> list[Entry]:
    if not entry.is_dir:
        return []
    exact = entry.find(name)
    if exact is not None or not _PATTERN.search(name):
        return [exact] if exact is not None else []
    return [child for child in entry.entries if fnmatchcase(child.name, name)]


def _local_tree(
    source: Path, exclude: Sequence[str]
) -> Iterator[tuple[tuple[str, ...], Path | None]]:
    """A file, or a directory (path None) with all below it; names relative to ``source``."""
    if not source.is_dir():
        yield (), source
        return
    yield (), None
    for root, directories, files in os.walk(source):
        kept = sorted(n for n in directories if not _is_excluded(n, exclude))
        directories[:] = kept
        names = tuple(map(from_os, Path(root).relative_to(source).parts))
        for name in kept:
            yield (*names, from_os(name)), None
        for name in sorted(files):
            if not _is_excluded(name, exclude):
                yield (*names, from_os(name)), Path(root, name)


def _is_excluded(name: str, exclude: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in exclude)


def _parents(path: str, *, itself: bool = False) -> Iterator[str]:
    names = split_path(path)
    for count in range(1, len(names) + itself):
        yield "/" + "/".join(names[:count])


def _read_local(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read '{path}': {error.strerror}") from None


def _local_name(name: str) -> str:
    """A name in the file system as one of this computer's. Raises MpotaError if it is none."""
    if name in ("", ".", "..") or any(c in name for c in ("/", os.sep, "\0")):
        raise MpotaError(f"'{name}' cannot be a file name here")
    if os.name == "nt" and any(c in name for c in '<>:"|?*'):
        raise MpotaError(f"'{name}' cannot be a file name on Windows")
    return to_os(name)
