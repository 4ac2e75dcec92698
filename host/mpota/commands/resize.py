"""``mpota resize``: another flash size, another partition table."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from mpota.commands import _report as report
from mpota.commands._options import (
    Size,
    baud_option,
    complete_files,
    dry_run_option,
    firmware_argument,
    force_option,
    output_option,
    split_pair,
    table_offset_option,
    yes_option,
)
from mpota.edit.change import apply_to_file
from mpota.edit.resizing import find_layout, resize
from mpota.errors import UsageError
from mpota.firmware.firmware import Firmware
from mpota.firmware.layout import LAYOUTS, Edits, NewPartition
from mpota.storage.file import beside, check_output, write_file
from mpota.storage.ports import is_port
from mpota.units import format_flash_size, parse_size


def _complete_layout(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    names = [name for name in LAYOUTS if name.startswith(incomplete)]
    return [CompletionItem(name) for name in names] or complete_files(ctx, param, incomplete)


@click.command()
@firmware_argument
@click.option("-f", "--flash-size", type=Size(), help="Size of the flash: 4M, 8M, 16M, ...")
@output_option
@click.option(
    "--layout",
    help=f"{', '.join(LAYOUTS)}, a name from partitions/, or FILE.csv.",
    shell_complete=_complete_layout,
)
@click.option("--app-size", type=Size(), help="Bytes for each app partition.")
@click.option("--set", "sizes", multiple=True, metavar="NAME=SIZE", help="0 takes all room.")
@click.option("--add", "adds", multiple=True, metavar="NAME=SUBTYPE:SIZE[@OFFSET]")
@click.option("--delete", "deletes", multiple=True, metavar="NAME")
@click.option("--rename", "renames", multiple=True, metavar="OLD=NEW")
@click.option(
    "--backup", type=click.Path(path_type=Path), help="On a board: save what is overwritten here."
)
@click.option(
    "--keep-files/--drop-files",
    default=None,
    help="Carry the files over to a file system that moves or changes size. "
    "A board keeps them, a FIRMWARE file does not, unless told otherwise.",
)
@dry_run_option
@yes_option
@force_option
@baud_option
@table_offset_option
def command(
    firmware: Path,
    flash_size: int | None,
    output: Path | None,
    layout: str | None,
    app_size: int | None,
    sizes: tuple[str, ...],
    adds: tuple[str, ...],
    deletes: tuple[str, ...],
    renames: tuple[str, ...],
    backup: Path | None,
    keep_files: bool | None,
    dry_run: bool,
    yes: bool,
    force: bool,
    baud: int,
    table_offset: int,
) -> None:
    """Fit FIRMWARE to another flash size or partition table.

    With -f alone the file system that ends the table grows to the end of the flash. Edits are
    made in the order: layout, delete, rename, set, add. A FIRMWARE file itself is never changed.

    On the port of a board the board is changed: what will happen is shown first, and what it
    overwrites is saved to the backup. Interrupted, the same command goes on where it stopped;
    `mpota restore` takes it back.
    """
    arrange, table = find_layout(layout, table_offset)
    edits = Edits(
        flash_size,
        arrange,
        table,
        app_size,
        deletes,
        tuple(split_pair(text, "=", "OLD=NEW") for text in renames),
        tuple((name, parse_size(size, f"size of '{name}'")) for name, size in _pairs(sizes)),
        tuple(_parse_add(text) for text in adds),
    )
    if edits == Edits():
        raise UsageError("nothing to change", "give -f, --layout or another edit")
    done = (
        *([format_flash_size(flash_size)] if flash_size is not None else []),
        *([Path(layout).stem] if layout else []),
        *([f"app={app_size:#x}"] if app_size is not None else []),
        *(f"no-{label}" for label in deletes),
        *renames,
        *sizes,
        *(text.partition("=")[0] for text in adds),
    )
    if is_port(firmware):
        if output is not None:
            raise UsageError("-o is for a firmware in a file", "a board's backup is --backup FILE")
        from mpota.commands._resize_board import ResizeOptions, resize_board

        words = " ".join(("resize", *done, *adds))
        options = ResizeOptions(baud, backup, table_offset, keep_files is not False, dry_run, yes)
        resize_board(str(firmware), edits, words, options)
        return
    target = output or beside(firmware, "-".join(("", *done)) + ".bin")
    if not dry_run:
        check_output(target, (firmware,), force=force)
    data = _resize_file(firmware, edits, table_offset, keep_files=bool(keep_files))
    if dry_run:
        report.say("dry run: nothing written")
        return
    write_file(target, data)
    report.written(target, f"{len(data):,} bytes")


def _resize_file(firmware: Path, edits: Edits, table_offset: int, *, keep_files: bool) -> bytes:
    """The bytes of the changed firmware; what changes is printed."""
    old = Firmware.open(firmware, table_offset)
    change = resize(old, edits, keep_files=keep_files)
    data = apply_to_file(old, change)
    report.say(f"{firmware.name}: {old.chip.title}, {change.summary}")
    rows = report.difference_rows(change.differences)
    report.print_table(report.DIFFERENCE_COLUMNS, rows)
    for text in change.notes:
        report.note(text)
    return data


def _pairs(texts: tuple[str, ...]) -> list[tuple[str, str]]:
    return [split_pair(text, "=", "NAME=SIZE") for text in texts]


def _parse_add(text: str) -> NewPartition:
    form = "NAME=SUBTYPE:SIZE[@OFFSET]"
    label, rest = split_pair(text, "=", form)
    subtype, _, place = rest.rpartition(":")
    size, _, offset = place.partition("@")
    return NewPartition(
        label,
        subtype,
        parse_size(size, f"size of '{label}'"),
        parse_size(offset, f"offset of '{label}'") if offset else None,
    )
