"""``mpota ble``: updates over Bluetooth Low Energy."""

from __future__ import annotations

import asyncio

import click

from mpota.commands import _report as report
from mpota.commands._options import complete_files
from mpota.commands._sending import secret_option, send_file


@click.group()
def command() -> None:
    """Boards that take updates over Bluetooth Low Energy."""


@command.command()
@click.option("--timeout", type=click.FloatRange(0.1, 600), default=5.0, help="Seconds to listen.")
def scan(timeout: float) -> None:
    """Show the boards in reach that take updates."""
    from mpota.push import ble

    with report.doing(f"looking for boards, {timeout:g} s"):
        found = asyncio.run(ble.scan(timeout))
    rows = [(board.name, board.address, f"{board.rssi}") for board in found]
    report.print_table(("Name", "Address", ">dBm"), rows)


@command.command()
@click.argument("board", metavar="NAME|ADDRESS")
@click.argument("file", metavar="APP|FIRMWARE|BUNDLE", shell_complete=complete_files)
@secret_option
@click.option("--pair", is_flag=True, help="Pair first: the board shows a passkey.")
@click.option("--no-restart", is_flag=True, help="Leave the restart to the app on the board.")
@click.option(
    "--timeout", type=click.FloatRange(0.1, 600), default=10.0, help="Seconds to look for it."
)
@click.option(
    "--attempts",
    type=click.IntRange(1, 1000),
    default=5,
    help="Connections in a row that may fail (default 5).",
)
def push(
    board: str,
    file: str,
    secret: bytes | None,
    pair: bool,
    no_restart: bool,
    timeout: float,
    attempts: int,
) -> None:
    """Send an update to a board. After a lost connection it goes on where it was."""
    from mpota.push.update import Options

    options = Options(
        secret=secret, restart=not no_restart, attempts=attempts, pair=pair, find_s=timeout
    )
    send_file(f"ble://{board}", file, options)
