"""``mpota show``: what is in a firmware, an app image or a partition table."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from mpota import report
from mpota.commands.options import firmware_argument, json_option, table_offset_option
from mpota.describe import describe
from mpota.storage.file import read_file


@click.command()
@firmware_argument
@json_option
@table_offset_option
def command(firmware: Path, as_json: bool, table_offset: int) -> None:
    """Show what is in FIRMWARE: chip, bootloader, MicroPython, apps and partitions."""
    description = describe(read_file(firmware), firmware.name, table_offset)
    if as_json:
        report.print_json(description.to_json())
    else:
        report.print_description(description)
