"""``mpota demo``: the whole story on the virtual board."""

from __future__ import annotations

from pathlib import Path

import click

from mpota.commands._options import table_offset_option


@click.command()
@click.argument("firmware", required=False, type=click.Path(path_type=Path))
@click.option("--console", is_flag=True, help="Show all that the board prints.")
@table_offset_option
def command(firmware: Path | None, console: bool, table_offset: int) -> None:
    """Resize a firmware, boot it on the virtual board, update it, break it, see it recover.

    FIRMWARE is a merged firmware of yours; without it, it is the stock one that `make demo` has
    fetched, else one that is made. Needs no hardware: the board is a flash file, a model of the
    bootloader, and a real MicroPython.
    """
    from mpota.commands import _demo
    from mpota.storage.file import read_file

    data = read_file(firmware) if firmware else None
    name = str(firmware) if firmware else "firmware.bin"
    _demo.run(data, name, table_offset, shows_console=console)
