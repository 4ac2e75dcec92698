"""``mpota ota``: an OTA update over the cable."""

from __future__ import annotations

from pathlib import Path

import click

from mpota.commands._live import change_board, connected_firmware
from mpota.commands._options import change_options, port_argument
from mpota.firmware.firmware import read_app
from mpota.flashing.live import plan_ota
from mpota.storage.file import read_file


@click.command()
@port_argument
@click.argument("app", type=click.Path(path_type=Path))
@click.option("--no-rollback", is_flag=True, help="The new app need not confirm itself.")
@change_options
def command(
    port: str,
    app: Path,
    no_rollback: bool,
    dry_run: bool,
    yes: bool,
    baud: int,
    table_offset: int,
) -> None:
    """Write APP, an app image or a merged firmware, into the next OTA slot of the board on PORT.

    otadata becomes what set_boot() writes: the new app gets one boot to confirm itself. The app
    that boots now stays whole, so that an interruption does no harm.
    """
    image = read_app(read_file(app), app.name, table_offset)
    with connected_firmware(port, baud, table_offset) as (board, firmware):
        change = plan_ota(board, firmware, image, is_confirmed=no_rollback)
        change_board(board, change, dry_run=dry_run, yes=yes)
