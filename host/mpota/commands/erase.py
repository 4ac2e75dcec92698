"""``mpota erase``: partitions of a board made blank."""

from __future__ import annotations

import click

from mpota.commands._live import change_board, connected_firmware
from mpota.commands._options import change_options, port_argument
from mpota.flashing.live import plan_erase


@click.command()
@port_argument
@click.argument("partitions", nargs=-1, required=True, metavar="PARTITION...")
@click.option("--force", is_flag=True, help="Even if nothing boots afterwards.")
@change_options
def command(
    port: str,
    partitions: tuple[str, ...],
    force: bool,
    dry_run: bool,
    yes: bool,
    baud: int,
    table_offset: int,
) -> None:
    """Erase PARTITIONs of the board on PORT, unless it would not boot afterwards."""
    with connected_firmware(port, baud, table_offset) as (board, firmware):
        change = plan_erase(board, firmware, partitions, force=force)
        change_board(board, change, dry_run=dry_run, yes=yes)
