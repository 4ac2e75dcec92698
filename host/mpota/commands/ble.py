"""``mpota ble``: updates over Bluetooth Low Energy."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import click

from mpota.commands import _report as report
from mpota.commands._options import complete_files, force_option
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


@command.command()
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write the page into this directory instead, for any https host.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0: any.")
@force_option
def web(output: Path | None, port: int, force: bool) -> None:
    """Serve a page on this computer that updates boards by Bluetooth, in a browser.

    It is one file, and needs a browser with Web Bluetooth: Chrome, Edge or Opera, on a computer or
    an Android phone; no browser of iPhone and iPad has it. With -o it is written, to be put on any
    https host: browsers give access to Bluetooth only to pages over https, or on localhost.
    """
    from mpota.push.ble_web import FILE_NAME, page
    from mpota.release.serve import FileServer, serve_forever
    from mpota.storage.file import check_output, make_directory, write_file

    if output is not None:
        target = output / FILE_NAME
        check_output(target, force=force)
        make_directory(output)
        write_file(target, page())
        report.written(target, f"{len(page()):,} bytes")
        return

    def start(server: FileServer) -> None:
        report.say(f"open {server.url.replace(_LOOPBACK, 'localhost')} in a browser (Ctrl-C ends)")

    with tempfile.TemporaryDirectory(prefix="mpota-") as directory:
        write_file(Path(directory) / FILE_NAME, page())
        serve_forever(Path(directory), _LOOPBACK, port, None, start, lambda served: None)


_LOOPBACK = "127.0.0.1"
