"""``mpota extract``: the app image or a partition's content, as a file."""

from __future__ import annotations

from pathlib import Path

import click

from mpota.commands import _report as report
from mpota.commands._live import opened
from mpota.commands._options import (
    baud_option,
    firmware_argument,
    force_option,
    look_option,
    output_option,
    table_offset_option,
)
from mpota.edit.contents import extract
from mpota.storage.file import beside, check_output, write_file
from mpota.storage.ports import is_port


@click.command()
@firmware_argument
@click.argument("partition", required=False)
@output_option
@click.option("--trim", is_flag=True, help="Leave out the blank end of a data partition.")
@force_option
@table_offset_option
@baud_option
@look_option
def command(
    firmware: Path,
    partition: str | None,
    output: Path | None,
    trim: bool,
    force: bool,
    table_offset: int,
    baud: int,
    yes: bool,
) -> None:
    """Take the app image out of FIRMWARE, ready for an OTA update; or any PARTITION's content.

    FIRMWARE may be the port of a board.

    PARTITION may also be 'bootloader'. App images are cut to their exact length and their digest
    is checked.
    """
    ending = f"-{partition}.bin" if partition else ".app-bin"
    on_board = is_port(firmware)
    named = Path(f"board{ending}") if on_board else beside(firmware, ending)
    target = output or named
    check_output(target, () if on_board else (firmware,), force=force)
    with opened(firmware, baud, table_offset, yes=yes) as source:
        data = extract(source, partition)
    if trim:
        data = data.rstrip(b"\xff")
    write_file(target, data)
    report.written(target, f"{len(data):,} bytes")
