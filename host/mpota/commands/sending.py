"""What the commands have in common that send an update to a board: ble push, push tcp://."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mpota import report
from mpota.errors import UsageError
from mpota.storage.file import read_file
from mpota.units import format_size

if TYPE_CHECKING:
    from mpota.wire import Options, Sent, Update

_MIN_SECRET_SIZE = 8


def read_secret(path: Path | None) -> bytes | None:
    """The secret in a file, white space around it left out; else that in MPOTA_SECRET, if any."""
    found = read_file(path) if path else os.environ.get("MPOTA_SECRET", "").encode()
    secret = found.strip()
    if not secret and path is None:
        return None
    if len(secret) < _MIN_SECRET_SIZE:
        raise UsageError(f"the secret has {len(secret)} bytes, {_MIN_SECRET_SIZE} are the least")
    return secret


def _read(context: click.Context, parameter: click.Parameter, value: Any) -> bytes | None:
    return read_secret(value)


secret_option = click.option(
    "--secret-file",
    "secret",
    type=click.Path(path_type=Path),
    callback=_read,
    help="The secret that the board asks for; or set MPOTA_SECRET.",
)


def send_file(
    file: str,
    push: Callable[[Update, Options], Sent],
    secret: bytes | None,
    *,
    restart: bool = True,
    attempts: int = 5,
) -> None:
    """Send a file, show how it goes, and print what has come of it."""
    from mpota.wire import Options, Update

    update = Update.open(file)
    size = len(update.data)
    start = time.monotonic()
    with report.progress(update.name, size) as progress:
        sent = push(update, Options(secret, restart, attempts, progress=progress, tell=report.say))
    seconds = time.monotonic() - start
    again = f", {sent.sent_size - size:,} of them twice" if sent.sent_size > size else ""
    rate = format_size(int(size / max(seconds, 1e-3)))
    report.say(f"{size:,} bytes in {seconds:.1f} s ({rate}/s){again}")
    then = "restarts into" if restart and sent.needs_restart else "has verified and selected"
    report.say(f"the board ({sent.board.version}) {then} {update.version or update.name}")
