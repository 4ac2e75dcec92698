"""``mpota demo``: the whole story on the virtual board."""

from __future__ import annotations

from pathlib import Path

import click

from mpota.commands._options import table_offset_option


@click.command()
@click.argument("firmware", required=False, type=click.Path(path_type=Path))
@table_offset_option
def command(firmware: Path | None, table_offset: int) -> None:
    """Resize a firmware, boot it on the virtual board, update it, break it, see it recover.

    FIRMWARE is a merged firmware of yours; without it, it is the stock one that `make demo` has
    fetched, else one that is made. Needs no hardware: the board is a flash file, a model of the
    bootloader, and a real MicroPython.
    """
    from mpota.commands import _demo
    from mpota.storage.file import read_file

    data = read_file(firmware) if firmware else None
    _demo.run(data, firmware.name if firmware else "firmware.bin", table_offset)
