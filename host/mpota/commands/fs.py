"""``mpota fs``: the files in a firmware's littlefs, in a file or on a board."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import wraps
from pathlib import Path
from typing import Any

import click

from mpota.commands import _report as report
from mpota.commands._options import (
    Size,
    baud_option,
    complete_files,
    force_option,
    json_option,
    output_option,
    table_offset_option,
)
from mpota.errors import MpotaError, UsageError
from mpota.filesystem.block_device import BlockDevice, is_blank
from mpota.filesystem.littlefs import (
    BLANK,
    NO_FILE_SYSTEM,
    FileSystem,
    OtherContentError,
    build,
)
from mpota.filesystem.transfer import expand, get, local_files, make_directories, move, put, remove
from mpota.filesystem.volumes import Volumes, open_volumes, split_remote
from mpota.formats.littlefs import Entry
from mpota.formats.micropython import DISK_VERSION_2_0, DISK_VERSION_2_1
from mpota.storage.file import check_output, write_file
from mpota.units import format_size

_DISK_VERSIONS = {"2.0": DISK_VERSION_2_0, "2.1": DISK_VERSION_2_1}
_disk_version_option = click.option(
    "--disk-version",
    type=click.Choice(list(_DISK_VERSIONS)),
    help="Of the littlefs (default: what the firmware's MicroPython makes, else 2.0).",
)


@dataclass(frozen=True)
class Where:
    """Which firmware, and how to reach it; ``output`` is the file to write in its place."""

    name: str
    table_offset: int
    baud: int
    output: Path | None = None
    force: bool = False

    def open(self) -> AbstractContextManager[Volumes]:
        return open_volumes(
            self.name,
            output=self.output,
            force=self.force,
            table_offset=self.table_offset,
            baud=self.baud,
            progress=report.progress,
        )


def _reads(function: Callable[..., None]) -> Callable[..., None]:
    """A command on FIRMWARE: its first argument is `Where`."""

    @click.argument("firmware", shell_complete=complete_files)
    @table_offset_option
    @baud_option
    @wraps(function)
    def run(firmware: str, table_offset: int, baud: int, **options: Any) -> None:
        function(Where(firmware, table_offset, baud), **options)

    return run


def _writes(function: Callable[..., None]) -> Callable[..., None]:
    """A command that changes FIRMWARE: its first argument is `Where`."""

    @click.argument("firmware", shell_complete=complete_files)
    @output_option
    @force_option
    @table_offset_option
    @baud_option
    @wraps(function)
    def run(firmware: str, output: Path | None, force: bool, **options: Any) -> None:
        where = Where(firmware, options.pop("table_offset"), options.pop("baud"), output, force)
        function(where, **options)

    return run


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
@_reads
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@json_option
def ls(where: Where, paths: tuple[str, ...], as_json: bool) -> None:
    """List files and directories: size, time, name."""
    found: list[tuple[str, Entry]] = []
    with where.open() as volumes, _Damage() as damage:
        for text in paths or ("/",):
            file_system, path = _locate(volumes, text)
            damage.tell(file_system)
            found += _listing(file_system, path)
    if as_json:
        report.print_json([_to_json(path, entry) for path, entry in found])
        return
    for path, entry in found:
        size = "" if entry.is_dir else f"{entry.size:,}"
        report.say(f"{size:>12}  {_time(entry):16}  {path}{'/' * entry.is_dir}")


@command.command("tree")
@_reads
@click.argument("path", default="/")
def tree(where: Where, path: str) -> None:
    """Show a directory and all below it."""
    with where.open() as volumes, _Damage() as damage:
        file_system, path = _locate(volumes, path)
        damage.tell(file_system)
        for name, entry in expand(file_system, path):
            report.say(name)
            for line in _branches(entry, ""):
                report.say(line)


@command.command("cat")
@_reads
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
def cat(where: Where, paths: tuple[str, ...]) -> None:
    """Write files to standard output, byte for byte; on a terminal without control characters."""
    with where.open() as volumes:
        for text in paths:
            file_system, path = _locate(volumes, text)
            for name, _ in expand(file_system, path):
                report.write_out(file_system.read(name))
    sys.stdout.flush()


@command.command("get")
@_reads
@click.argument("paths", nargs=-1, required=True, metavar="PATH... [DESTINATION]")
@force_option
def get_command(where: Where, paths: tuple[str, ...], force: bool) -> None:
    """Copy files and directories to this computer: to DESTINATION, or here if one PATH is given.

    From a damaged file system it saves what can be read, and tells what cannot (exit code 1).
    """
    sources, destination = (paths[:-1], paths[-1]) if len(paths) > 1 else (paths, ".")
    lost: list[str] = []
    with where.open() as volumes, _Damage() as damage:
        for file_system, paths_of_it in _by_file_system(volumes, sources):
            damage.tell(file_system)
            lost += get(file_system, paths_of_it, destination, force=force, told=report.say)
        for line in lost:
            report.say(line, head="lost: ", tone=report.Tone.BAD, error=True)
        if lost:
            raise MpotaError(f"{volumes.name}: {len(lost)} files could not be read")


@command.command("put")
@_writes
@click.argument(
    "sources",
    nargs=-1,
    required=True,
    metavar="SOURCE... [DESTINATION]",
    shell_complete=complete_files,
)
@_exclude
def put_command(where: Where, sources: tuple[str, ...], exclude: tuple[str, ...]) -> None:
    """Copy files and directories into the file system: to DESTINATION, or / if one SOURCE is given.

    SOURCE/ with a slash means what is in the directory. Missing directories are made, files with
    the same content are left alone, and a blank partition gets a littlefs first.
    """
    files, target = (sources[:-1], sources[-1]) if len(sources) > 1 else (sources, "/")
    label, destination = split_remote(target)
    with where.open() as volumes:
        if is_blank(region := volumes.region(label)):
            volumes.format(label)
            report.say(f"{region.name} was blank: made a littlefs of {format_size(region.size)}")
        file_system = volumes.file_system(label)
        written = put(file_system, files, destination, exclude=exclude, told=report.say)
        if not written:
            report.say("nothing to write: all files are there already")


@command.command("rm")
@_writes
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("-r", "--recursive", is_flag=True, help="Directories, with all that is in them.")
def rm(where: Where, paths: tuple[str, ...], recursive: bool) -> None:
    """Remove files and directories."""
    with where.open() as volumes:
        for file_system, paths_of_it in _by_file_system(volumes, paths):
            for path in remove(file_system, paths_of_it, recursive=recursive):
                report.say(f"removed: {path}")


@command.command("mv")
@_writes
@click.argument("paths", nargs=-1, required=True, metavar="PATH... DESTINATION")
def mv(where: Where, paths: tuple[str, ...]) -> None:
    """Rename a file or directory, or move several into a directory."""
    if len(paths) < 2:
        raise UsageError("mv needs a PATH and a DESTINATION")
    places = [split_remote(text) for text in paths]
    with where.open() as volumes:
        labels = {volumes.partition(label).label for label, _ in places}
        if len(labels) > 1:
            raise UsageError(f"cannot move between {' and '.join(sorted(labels))}: get and put")
        *chosen, destination = [path for _, path in places]
        for old, new in move(volumes.file_system(labels.pop()), chosen, destination):
            report.say(f"{old} -> {new}")


@command.command("mkdir")
@_writes
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("-p", "--parents", is_flag=True, help="Make parents too; existing ones are fine.")
def mkdir(where: Where, paths: tuple[str, ...], parents: bool) -> None:
    """Make directories."""
    with where.open() as volumes:
        for text in paths:
            file_system, path = _locate(volumes, text)
            make_directories(file_system, [path], parents=parents)


@command.command("df")
@_reads
@json_option
def df(where: Where, as_json: bool) -> None:
    """Show how full the file systems are."""
    with where.open() as volumes:
        volumes.check_any()
        rows = [_df_row(volumes, p.label) for p in volumes.partitions]
    if as_json:
        report.print_json(rows)
        return
    columns = ("Name", ">Partition", ">Size", ">Used", ">Free", ">Files", ">Dirs", "State")
    report.print_table(columns, (_df_cells(row) for row in rows))
    for row in rows:
        if "note" in row:
            report.say(row["note"])


@command.command("mkfs")
@_writes
@_name
@_disk_version_option
def mkfs(where: Where, name: str | None, disk_version: str | None) -> None:
    """Make an empty littlefs in partition NAME ('vfs' if none is given).

    MicroPython 1.22 and later mount both disk versions, older ones only 2.0.
    """
    with where.open() as volumes:
        region = volumes.region(name)
        if not where.force:
            _check_blank(region)
        made = volumes.format(name, _DISK_VERSIONS[disk_version] if disk_version else None)
        version = made.superblock.version_text
        report.say(f"{region.name}: empty littlefs {version} of {format_size(region.size)}")


@command.command("grow")
@_writes
@_name
def grow(where: Where, name: str | None) -> None:
    """Make the littlefs as large as its partition, after a resize; all files stay."""
    with where.open() as volumes:
        file_system = volumes.file_system(name)
        old_size = file_system.superblock.size
        grown = file_system.grow()
        sizes = f"{format_size(old_size)} -> {format_size(file_system.superblock.size)}"
        report.say(f"{file_system.region.name}: {sizes if grown else 'fits already'}")


@command.command("check")
@_reads
@_name
@json_option
def check(where: Where, name: str | None, as_json: bool) -> None:
    """Look at every block of the file systems, or of NAME's; exit 1 if one is damaged.

    littlefs has no checksum over contents: it is their place that is proved.
    """
    with where.open() as volumes:
        volumes.check_any()
        labels = [volumes.partition(name).label] if name else [p.label for p in volumes.partitions]
        rows = [_checked(volumes, label) for label in labels]
    is_ok = not any(row["problems"] for row in rows)
    if as_json:
        report.print_json({"ok": is_ok, "partitions": rows})
    else:
        for row in rows:
            report.say(f"{row['name']}: {row['state']}")
            for text in (*row["problems"], *row["notes"]):
                report.say(f"  {text}")
    sys.exit(0 if is_ok else 1)


@command.command("build")
@click.argument("directory", type=click.Path(path_type=Path))
@output_option
@click.option("-s", "--size", type=Size(), help="Size of the partition it is for.")
@click.option("--for", "target", metavar="FIRMWARE[:NAME]", help="Take the size from a firmware.")
@_disk_version_option
@_exclude
@force_option
@table_offset_option
def build_command(
    directory: Path,
    output: Path | None,
    size: int | None,
    target: str | None,
    disk_version: str | None,
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
    version = DISK_VERSION_2_0
    if target is not None:
        firmware, _, label = (target, "", "") if Path(target).exists() else target.partition(":")
        with open_volumes(firmware, table_offset=table_offset) as volumes:
            size, version = volumes.for_littlefs(label or None).size, volumes.disk_version
    files = local_files(directory, exclude)
    data = build(files, size or 0, _DISK_VERSIONS[disk_version] if disk_version else version)
    write_file(output, data)
    count = sum(content is not None for content in files.values())
    report.written(output, f"{len(data):,} bytes, {count} files")


class _Damage:
    """Tells once per file system what is damaged; at the end that is an error."""

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
            report.note(file_system.mismatch, error=True)
        for problem in file_system.problems:
            report.say(problem, head="damaged: ", tone=report.Tone.BAD, error=True)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        damaged = [name for name, count in self._damaged.items() if count]
        if damaged and error is None:
            raise MpotaError(f"{damaged[0]}: the file system is damaged, this is what can be read")


def _locate(volumes: Volumes, text: str) -> tuple[FileSystem, str]:
    label, path = split_remote(text)
    return volumes.file_system(label), path


def _by_file_system(
    volumes: Volumes, texts: Sequence[str]
) -> Iterator[tuple[FileSystem, list[str]]]:
    """The paths, grouped by file system."""
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
        yield f"{indent}{'`-- ' if is_last else '|-- '}{child.name}{size}"
        yield from _branches(child, indent + ("    " if is_last else "|   "))


def _check_blank(region: BlockDevice) -> None:
    if is_blank(region):
        return
    try:
        FileSystem(region)
    except OtherContentError as error:
        if error.kind != NO_FILE_SYSTEM:
            raise UsageError(str(error), error.hint) from None
    except MpotaError:
        pass  # it may be damaged, and about to be replaced
    raise UsageError(f"{region.name} is not blank", "--force erases what is there")


def _checked(volumes: Volumes, label: str) -> dict[str, Any]:
    """One row of `mpota fs check`; its ``problems`` make the exit code 1.

    Other contents than a littlefs are a problem only where MicroPython mounts one.
    """
    row: dict[str, Any] = {"name": label, "problems": [], "notes": []}
    try:
        row["problems"] = list(volumes.check(label))
        is_damaged = bool(volumes.file_system(label).problems)
        unmounted = "not mounted" if row["problems"] else "intact"
        row["state"] = "damaged" if is_damaged else unmounted
    except OtherContentError as error:
        row["state"] = error.kind
        if error.kind != BLANK:
            is_mounted = volumes.is_mounted(label, error.kind)
            row["notes" if is_mounted else "problems"] = [str(error)]
    except MpotaError as error:
        row["state"] = "damaged"
        row["problems"] = [str(error)]
    return row


def _df_row(volumes: Volumes, label: str) -> dict[str, Any]:
    row: dict[str, Any] = {"name": label, "partition_size": volumes.partition(label).size}
    try:
        file_system = volumes.file_system(label)
        usage = file_system.usage()
    except OtherContentError as error:
        note = {} if error.kind == BLANK else {"note": str(error)}
        return {**row, "state": error.kind, **note}
    except MpotaError as error:
        return {**row, "state": "damaged", "note": str(error)}
    return {
        **row,
        "size": usage.size,
        "used": usage.used_size,
        "free": usage.free_size,
        "files": usage.files,
        "directories": usage.directories,
        "state": "other size" if file_system.mismatch else "ok",
        **({"note": file_system.mismatch} if file_system.mismatch else {}),
        "disk_version": file_system.superblock.version_text,
    }


def _df_cells(row: dict[str, Any]) -> Sequence[str]:
    sizes = [format_size(row[key]) if key in row else "-" for key in ("size", "used", "free")]
    counts = [str(row.get(key, "-")) for key in ("files", "directories")]
    return (row["name"], format_size(row["partition_size"]), *sizes, *counts, row["state"])


def _to_json(path: str, entry: Entry) -> dict[str, Any]:
    return {
        "path": path,
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
