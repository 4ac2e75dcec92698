"""What the commands have in common that send an update to a board: ble push, push tcp://."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from mpota.errors import UsageError
from mpota.storage.file import read_file
from mpota.units import format_size
from mpota.wire import Sent, Update

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


def print_sent(update: Update, sent: Sent, seconds: float) -> None:
    size = len(update.data)
    rate = format_size(int(size / max(seconds, 1e-3)))
    again = f", {sent.sent_size - size:,} of them twice" if sent.sent_size > size else ""
    print(f"{size:,} bytes in {seconds:.1f} s ({rate}/s){again}")
    print(f"{sent.board.version} has verified and selected {update.version or update.name}")
