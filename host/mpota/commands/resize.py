"""``mpota resize``: another flash size, another partition table."""

from __future__ import annotations

from pathlib import Path

import click

from mpota import report
from mpota.commands.options import (
    Size,
    firmware_argument,
    force_option,
    output_option,
    split_pair,
    table_offset_option,
)
from mpota.edit import find_layout, resize
from mpota.errors import UsageError
from mpota.firmware import Firmware
from mpota.layout import LAYOUTS, Edits, NewPartition
from mpota.storage.file import check_output, write_file
from mpota.units import format_flash_size, parse_size


@click.command()
@firmware_argument
@click.option("-f", "--flash-size", type=Size(), help="Size of the flash: 4M, 8M, 16M, ...")
@output_option
@click.option("--layout", help=f"{', '.join(LAYOUTS)}, a name from partitions/, or FILE.csv.")
@click.option("--app-size", type=Size(), help="Bytes for each app partition.")
@click.option("--set", "sizes", multiple=True, metavar="NAME=SIZE", help="0 takes all room.")
@click.option("--add", "adds", multiple=True, metavar="NAME=SUBTYPE:SIZE[@OFFSET]")
@click.option("--delete", "deletes", multiple=True, metavar="NAME")
@click.option("--rename", "renames", multiple=True, metavar="OLD=NEW")
@click.option("--dry-run", is_flag=True, help="Show what would change, write nothing.")
@force_option
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
    dry_run: bool,
    force: bool,
    table_offset: int,
) -> None:
    """Fit FIRMWARE to another flash size or partition table.

    With -f alone the file system that ends the table grows to the end of the flash. Edits are
    made in the order: layout, delete, rename, set, add. FIRMWARE itself is never changed.
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
    target = output or firmware.with_name("-".join((firmware.stem, *done)) + ".bin")
    if not dry_run:
        check_output(target, (firmware,), force=force)
    result = resize(Firmware.open(firmware, table_offset), edits)
    print(f"{firmware.name}: {result.chip.title}, {result.summary}")
    rows = report.difference_rows(result.differences)
    report.print_table(report.DIFFERENCE_COLUMNS, rows)
    for note in result.notes:
        print(f"note: {note}")
    if dry_run:
        print("dry run: nothing written")
        return
    write_file(target, result.data)
    print(f"written: {target} ({len(result.data):,} bytes)")


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
