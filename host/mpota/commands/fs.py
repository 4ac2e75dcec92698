"""``mpota fs``: the files in a firmware's littlefs, in a file or on a board."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from mpota import report
from mpota.commands.options import (
    Size,
    force_option,
    json_option,
    output_option,
    table_offset_option,
)
from mpota.errors import MpotaError, UsageError
from mpota.filesystem import DISK_VERSION, FileSystem, build, is_blank
from mpota.formats.littlefs import Entry
from mpota.storage.file import check_output, write_file
from mpota.transfer import expand, get, local_files, make_directories, move, put, remove
from mpota.units import format_size
from mpota.volumes import Volumes, open_volumes, split_remote

_DISK_VERSIONS = {"2.0": 0x20000, "2.1": DISK_VERSION}

_where = click.argument("where", metavar="FIRMWARE")
_name = click.argument("name", required=False, metavar="[NAME]")
_exclude = click.option("--exclude", multiple=True, metavar="PATTERN", help="Names to leave out.")


@click.group()
def command() -> None:
    """Files in the littlefs of FIRMWARE: a firmware file, a littlefs image or a board's port.

    PATH is /path in the partition 'vfs', or NAME:/path in another one, and may be a pattern
    (quote it). Commands that write change FIRMWARE itself, as a whole or not at all; with -o they
    write another file. Only blocks that change are written to a board.
    """


@command.command("ls")
@_where
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@json_option
@table_offset_option
def ls(where: str, paths: tuple[str, ...], as_json: bool, table_offset: int) -> None:
    """List files and directories: size, time, name."""
    found: list[tuple[str, Entry]] = []
    with open_volumes(where, table_offset=table_offset) as volumes, _Damage() as damage:
        for text in paths or ("/",):
            file_system, path = _locate(volumes, text)
            damage.tell(file_system)
            found += _listing(file_system, path)
    if as_json:
        report.print_json([_to_json(path, entry) for path, entry in found])
        return
    for path, entry in found:
        size = "" if entry.is_dir else f"{entry.size:,}"
        print(f"{size:>12}  {_time(entry):16}  {_shown(path)}{'/' * entry.is_dir}")


@command.command("tree")
@_where
@click.argument("path", default="/")
@table_offset_option
def tree(where: str, path: str, table_offset: int) -> None:
    """Show a directory and all below it."""
    with open_volumes(where, table_offset=table_offset) as volumes, _Damage() as damage:
        file_system, path = _locate(volumes, path)
        damage.tell(file_system)
        for name, entry in expand(file_system, path):
            print(_shown(name))
            for line in _branches(entry, ""):
                print(line)


@command.command("cat")
@_where
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@table_offset_option
def cat(where: str, paths: tuple[str, ...], table_offset: int) -> None:
    """Write files to standard output, byte for byte."""
    with open_volumes(where, table_offset=table_offset) as volumes:
        for text in paths:
            file_system, path = _locate(volumes, text)
            for name, _ in expand(file_system, path):
                data = file_system.read(name)
                sys.stdout.buffer.write(data)
    sys.stdout.flush()


@command.command("get")
@_where
@click.argument("paths", nargs=-1, required=True, metavar="PATH... [DESTINATION]")
@force_option
@table_offset_option
def get_command(where: str, paths: tuple[str, ...], force: bool, table_offset: int) -> None:
    """Copy files and directories to this computer: to DESTINATION, or here if one PATH is given.

    From a damaged file system it saves what can be read, and tells what cannot (exit code 1).
    """
    sources, destination = (paths[:-1], Path(paths[-1])) if len(paths) > 1 else (paths, Path())
    if len(paths) > 1 and paths[-1].endswith("/"):
        destination = destination.absolute()
        destination.mkdir(parents=True, exist_ok=True)
    lost: list[str] = []
    with open_volumes(where, table_offset=table_offset) as volumes, _Damage() as damage:
        for file_system, paths_of_it in _by_file_system(volumes, sources):
            damage.tell(file_system)
            lost += get(file_system, paths_of_it, destination, force=force, told=print)
        for line in lost:
            print(f"lost: {line}", file=sys.stderr)
        if lost:
            raise MpotaError(f"{volumes.name}: {len(lost)} files could not be read")


@command.command("put")
@_where
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE... [DESTINATION]")
@_exclude
@output_option
@force_option
@table_offset_option
def put_command(
    where: str,
    sources: tuple[str, ...],
    exclude: tuple[str, ...],
    output: Path | None,
    force: bool,
    table_offset: int,
) -> None:
    """Copy files and directories into the file system: to DESTINATION, or / if one SOURCE is given.

    SOURCE/ with a slash means what is in the directory. Missing directories are made, files with
    the same content are left alone, and a blank partition gets a littlefs first.
    """
    files, target = (sources[:-1], sources[-1]) if len(sources) > 1 else (sources, "/")
    label, destination = split_remote(target)
    with _writable(where, output, force, table_offset) as volumes:
        if is_blank(region := volumes.region(label)):
            FileSystem.format(region)
            print(f"{region.name} was blank: made a littlefs of {format_size(region.size)}")
        file_system = volumes.file_system(label)
        written = put(file_system, files, destination, exclude=exclude, told=print)
        if not written:
            print("nothing to write: all files are there already")


@command.command("rm")
@_where
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("-r", "--recursive", is_flag=True, help="Directories, with all that is in them.")
@output_option
@force_option
@table_offset_option
def rm(
    where: str,
    paths: tuple[str, ...],
    recursive: bool,
    output: Path | None,
    force: bool,
    table_offset: int,
) -> None:
    """Remove files and directories."""
    with _writable(where, output, force, table_offset) as volumes:
        for file_system, paths_of_it in _by_file_system(volumes, paths):
            for path in remove(file_system, paths_of_it, recursive=recursive):
                print(f"removed: {_shown(path)}")


@command.command("mv")
@_where
@click.argument("paths", nargs=-1, required=True, metavar="PATH... DESTINATION")
@output_option
@force_option
@table_offset_option
def mv(
    where: str, paths: tuple[str, ...], output: Path | None, force: bool, table_offset: int
) -> None:
    """Rename a file or directory, or move several into a directory."""
    if len(paths) < 2:
        raise UsageError("mv needs a PATH and a DESTINATION")
    places = [split_remote(text) for text in paths]
    with _writable(where, output, force, table_offset) as volumes:
        labels = {volumes.partition(label).label for label, _ in places}
        if len(labels) > 1:
            raise UsageError(f"cannot move between {' and '.join(sorted(labels))}: get and put")
        *chosen, destination = [path for _, path in places]
        for old, new in move(volumes.file_system(labels.pop()), chosen, destination):
            print(f"{_shown(old)} -> {_shown(new)}")


@command.command("mkdir")
@_where
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("-p", "--parents", is_flag=True, help="Make parents too; existing ones are fine.")
@output_option
@force_option
@table_offset_option
def mkdir(
    where: str,
    paths: tuple[str, ...],
    parents: bool,
    output: Path | None,
    force: bool,
    table_offset: int,
) -> None:
    """Make directories."""
    with _writable(where, output, force, table_offset) as volumes:
        for text in paths:
            file_system, path = _locate(volumes, text)
            make_directories(file_system, [path], parents=parents)


@command.command("df")
@_where
@json_option
@table_offset_option
def df(where: str, as_json: bool, table_offset: int) -> None:
    """Show how full the file systems are."""
    with open_volumes(where, table_offset=table_offset) as volumes:
        rows = [_df_row(volumes, p.label) for p in volumes.partitions]
    if as_json:
        report.print_json(rows)
        return
    columns = ("Name", ">Partition", ">Size", ">Used", ">Free", ">Files", ">Dirs", "State")
    report.print_table(columns, (_df_cells(row) for row in rows))


@command.command("mkfs")
@_where
@_name
@click.option("--disk-version", type=click.Choice(list(_DISK_VERSIONS)), default="2.1")
@click.option("--force", is_flag=True, help="Also over what is there, or over the output file.")
@output_option
@table_offset_option
def mkfs(
    where: str,
    name: str | None,
    disk_version: str,
    force: bool,
    output: Path | None,
    table_offset: int,
) -> None:
    """Make an empty littlefs in partition NAME ('vfs' if none is given).

    MicroPython 1.22 and later mount both disk versions, older ones only 2.0.
    """
    with _writable(where, output, force, table_offset) as volumes:
        region = volumes.region(name)
        if not is_blank(region) and not force:
            raise UsageError(f"{region.name} is not blank", "--force erases what is there")
        FileSystem.format(region, _DISK_VERSIONS[disk_version])
        print(f"{region.name}: empty littlefs of {format_size(region.size)}")


@command.command("grow")
@_where
@_name
@output_option
@force_option
@table_offset_option
def grow(where: str, name: str | None, output: Path | None, force: bool, table_offset: int) -> None:
    """Make the littlefs as large as its partition, after a resize; all files stay."""
    with _writable(where, output, force, table_offset) as volumes:
        file_system = volumes.file_system(name)
        old_size = file_system.superblock.size
        grown = file_system.grow()
        sizes = f"{format_size(old_size)} -> {format_size(file_system.superblock.size)}"
        print(f"{file_system.region.name}: {sizes if grown else 'fits already'}")


@command.command("check")
@_where
@_name
@json_option
@table_offset_option
def check(where: str, name: str | None, as_json: bool, table_offset: int) -> None:
    """Look at every block of the file systems, or of NAME's; exit 1 if one is damaged.

    littlefs has no checksum over contents: it is their place that is proved.
    """
    with open_volumes(where, table_offset=table_offset) as volumes:
        labels = [volumes.partition(name).label] if name else [p.label for p in volumes.partitions]
        problems = {label: _problems(volumes, label) for label in labels}
    if as_json:
        report.print_json({"ok": not any(problems.values()), "partitions": problems})
    else:
        for label, texts in problems.items():
            print(f"{label}: {'damaged' if texts else 'intact'}")
            for text in texts:
                print(f"  {text}")
    sys.exit(1 if any(problems.values()) else 0)


@command.command("build")
@click.argument("directory", type=click.Path(path_type=Path))
@output_option
@click.option("-s", "--size", type=Size(), help="Size of the partition it is for.")
@click.option("--for", "target", metavar="FIRMWARE[:NAME]", help="Take the size from a firmware.")
@click.option("--disk-version", type=click.Choice(list(_DISK_VERSIONS)), default="2.1")
@_exclude
@force_option
@table_offset_option
def build_command(
    directory: Path,
    output: Path | None,
    size: int | None,
    target: str | None,
    disk_version: str,
    exclude: tuple[str, ...],
    force: bool,
    table_offset: int,
) -> None:
    """Make a littlefs image with what is in DIRECTORY, for `mpota write FIRMWARE vfs=IMAGE`.

    It has to have the partition's size, or MicroPython does not mount it. The same files give
    the same bytes.
    """
    output = output or Path("vfs.img")
    if (size is None) == (target is None):
        raise UsageError("give either --size or --for", "--for FIRMWARE takes its vfs partition's")
    check_output(output, force=force)
    if target is not None:
        firmware, _, label = (target, "", "") if Path(target).exists() else target.partition(":")
        with open_volumes(firmware, table_offset=table_offset) as volumes:
            size = volumes.region(label or None).size
    files = local_files(directory, exclude)
    data = build(files, size or 0, _DISK_VERSIONS[disk_version])
    write_file(output, data)
    count = sum(content is not None for content in files.values())
    print(f"written: {output} ({len(data):,} bytes, {count} files)")


class _Damage:
    """Tells what is damaged, once a file system; at the end it is an error."""

    def __init__(self) -> None:
        self._damaged: dict[str, int] = {}

    def __enter__(self) -> _Damage:
        return self

    def tell(self, file_system: FileSystem) -> None:
        name = file_system.region.name
        if name in self._damaged:
            return
        self._damaged[name] = len(file_system.problems)
        if file_system.mismatch:
            print(f"note: {file_system.mismatch}", file=sys.stderr)
        for problem in file_system.problems:
            print(f"damaged: {problem}", file=sys.stderr)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        damaged = [name for name, count in self._damaged.items() if count]
        if damaged and error is None:
            raise MpotaError(f"{damaged[0]}: the file system is damaged, this is what can be read")


def _writable(where: str, output: Path | None, force: bool, table_offset: int) -> Any:
    return open_volumes(where, output=output, force=force, table_offset=table_offset)


def _locate(volumes: Volumes, text: str) -> tuple[FileSystem, str]:
    label, path = split_remote(text)
    return volumes.file_system(label), path


def _by_file_system(
    volumes: Volumes, texts: Sequence[str]
) -> Iterator[tuple[FileSystem, list[str]]]:
    """The paths of each file system together."""
    paths: dict[str, list[str]] = {}
    for text in texts:
        label, path = split_remote(text)
        paths.setdefault(volumes.partition(label).label, []).append(path)
    for label, found in paths.items():
        yield volumes.file_system(label), found


def _listing(file_system: FileSystem, path: str) -> Iterator[tuple[str, Entry]]:
    chosen = expand(file_system, path)
    for name, entry in chosen:
        if entry.is_dir and len(chosen) == 1:
            children = sorted(entry.entries, key=lambda child: child.name)
            yield from ((f"{name.rstrip('/')}/{child.name}", child) for child in children)
        else:
            yield name, entry


def _branches(entry: Entry, indent: str) -> Iterator[str]:
    children = sorted(entry.entries, key=lambda child: child.name)
    for child in children:
        is_last = child is children[-1]
        size = "/" if child.is_dir else f"  {child.size:,}"
        yield f"{indent}{'`-- ' if is_last else '|-- '}{_shown(child.name)}{size}"
        yield from _branches(child, indent + ("    " if is_last else "|   "))


def _problems(volumes: Volumes, label: str) -> list[str]:
    try:
        return list(volumes.file_system(label).check())
    except MpotaError as error:
        return [str(error)]


def _df_row(volumes: Volumes, label: str) -> dict[str, Any]:
    row: dict[str, Any] = {"name": label, "partition_size": volumes.partition(label).size}
    try:
        file_system = volumes.file_system(label)
        usage = file_system.usage()
    except MpotaError as error:
        return {**row, "state": str(error)}
    return {
        **row,
        "size": usage.size,
        "used": usage.used_size,
        "free": usage.free_size,
        "files": usage.files,
        "directories": usage.directories,
        "state": file_system.mismatch or "ok",
        "disk_version": file_system.superblock.version_text,
    }


def _df_cells(row: dict[str, Any]) -> Sequence[str]:
    sizes = [format_size(row[key]) if key in row else "-" for key in ("size", "used", "free")]
    counts = [str(row.get(key, "-")) for key in ("files", "directories")]
    return (row["name"], format_size(row["partition_size"]), *sizes, *counts, row["state"])


def _to_json(path: str, entry: Entry) -> dict[str, Any]:
    return {
        "path": _shown(path),
        "type": "directory" if entry.is_dir else "file",
        "size": entry.size,
        "mtime_ns": entry.mtime_ns,
    }


def _time(entry: Entry) -> str:
    try:
        moment = datetime.fromtimestamp((entry.mtime_ns or 0) / 1e9, timezone.utc)
    except (OverflowError, ValueError, OSError):
        return "?"
    return moment.strftime("%Y-%m-%d %H:%M") if entry.mtime_ns else ""


def _shown(name: str) -> str:
    """A name as it may be printed: a hostile one could hold terminal commands."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
