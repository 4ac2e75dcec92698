"""``mpota table``: convert and validate partition tables."""

from __future__ import annotations

from pathlib import Path

import click

from mpota.commands import _report as report
from mpota.commands._live import opened
from mpota.commands._options import (
    Size,
    baud_option,
    force_option,
    look_option,
    output_option,
    table_offset_option,
)
from mpota.errors import UsageError
from mpota.firmware.firmware import read_table
from mpota.formats.partition_csv import table_to_csv
from mpota.storage.file import check_output, read_file, write_file
from mpota.storage.ports import is_port


@click.command()
@click.argument("input_file", metavar="INPUT", type=click.Path(path_type=Path))
@output_option
@click.option("-f", "--flash-size", type=Size(), help="Also check that it fits this flash.")
@force_option
@table_offset_option
@baud_option
@look_option
def command(
    input_file: Path,
    output: Path | None,
    flash_size: int | None,
    force: bool,
    table_offset: int,
    baud: int,
    yes: bool,
) -> None:
    """Validate the partition table in INPUT: a CSV, a binary table, a firmware or a board's port.

    Printed as CSV, or written to OUT.csv or OUT.bin (-o).
    """
    if output is not None:
        if output.suffix not in (".csv", ".bin"):
            raise UsageError(f"output '{output}' ends neither in .csv nor in .bin")
        check_output(output, (input_file,), force=force)
    if is_port(input_file):
        with opened(input_file, baud, table_offset, yes=yes) as on_board:
            table = on_board.table
    else:
        table = read_table(read_file(input_file), input_file.name, table_offset)
    table.check(flash_size, table_offset)
    csv = table_to_csv(table)
    if output is None:
        for line in csv.split("\n")[:-1]:
            report.say(line, is_whole=True)
        return
    write_file(output, csv.encode() if output.suffix == ".csv" else table.to_bytes())
    report.written(output, f"{len(table)} partitions")
