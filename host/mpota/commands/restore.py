"""``mpota restore``: take back what a change to a board overwrote."""

from __future__ import annotations

from pathlib import Path

import click

from mpota.commands._live import change_board, connected
from mpota.commands._options import baud_option, dry_run_option, port_argument, yes_option
from mpota.flashing.backup import Backup, close_journal
from mpota.flashing.live import LiveChange


@click.command()
@click.argument("backup", type=click.Path(path_type=Path))
@port_argument
@dry_run_option
@yes_option
@baud_option
def command(backup: Path, port: str, dry_run: bool, yes: bool, baud: int) -> None:
    """Write BACKUP, made by `mpota resize PORT`, back to the board on PORT that it is of.

    Also undoes a change that was interrupted: its backup's name ends in .unfinished.
    """
    with connected(port, baud) as board:
        saved = Backup.load(backup, board)
        change = LiveChange(f"undo '{saved.change}'", saved.plan_undo(board))
        change_board(board, change, dry_run=dry_run, yes=yes)
        if not dry_run:
            close_journal(backup)
