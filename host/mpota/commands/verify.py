"""``mpota verify``: read a board back and compare."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mpota import report
from mpota.commands.live import connected
from mpota.commands.options import baud_option, json_option, port_argument, table_offset_option
from mpota.storage.file import read_file
from mpota.verify import Verified, find_regions, verify


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@port_argument
@click.argument("partition", required=False)
@json_option
@baud_option
@table_offset_option
def command(
    file: Path, port: str, partition: str | None, as_json: bool, baud: int, table_offset: int
) -> None:
    """Compare FILE with what is on the board on PORT; exit 1 if it differs.

    FILE is a firmware, an app image (the slot that boots, or PARTITION), or the content of
    PARTITION. Says where the first differences are, how many, and what they look like.
    """
    data = read_file(file)
    with connected(port, baud) as board:
        regions = find_regions(board, data, file.name, partition, table_offset)
        results = verify(board, regions, table_offset)
    if as_json:
        report.print_json([result.to_json() for result in results])
    else:
        for result in results:
            _print(result)
    sys.exit(0 if all(result.comparison.is_equal for result in results) else 1)


def _print(result: Verified) -> None:
    region, found = result.region, result.comparison
    place = f"{region.name} at {region.offset:#x}"
    if found.is_equal:
        print(f"{place}: {found.size:,} bytes are the same")
        return
    print(f"{place}: {found.differing:,} of {found.size:,} bytes differ")
    for kind in (result.note,) if result.note else found.kinds:
        print(f"  {kind}")
    shown = ", ".join(f"{start:#x}-{end:#x}" for start, end in found.shown_ranges)
    more = len(found.ranges) - len(found.shown_ranges)
    print(f"  at {shown}" + (f" and {more:,} more places" if more else ""))
    if result.slot is not None:
        verdict = result.slot.verdict
        print("  the bootloader would boot it" if verdict.is_bootable else "  it does not boot:")
        for line in verdict.console:
            print(f"    {line}")
