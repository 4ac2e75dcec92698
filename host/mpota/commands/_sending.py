"""What the commands have in common that send an update to a board: ble push, push tcp://."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mpota.commands import _report as report
from mpota.errors import UsageError
from mpota.storage.file import read_file
from mpota.units import format_size

if TYPE_CHECKING:
    from mpota.push.wire import Options, Sent, Update

_OLD_SECRET = "mpota.old-secret"  # in click's context


def read_secret(path: Path | None) -> bytes | None:
    """The secret in a file, white space around it left out; else that in MPOTA_SECRET, if any."""
    found = read_file(path) if path else os.environ.get("MPOTA_SECRET", "").encode()
    secret = found.strip()
    if not secret and path is None:
        return None
    if not secret:
        raise UsageError(f"there is no secret in '{path}'")
    return secret


def _read(context: click.Context, parameter: click.Parameter, value: Any) -> bytes | None:
    return read_secret(value)


def secret_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options for `send_file` that say what the board and the desk both know."""
    secret = click.option(
        "--secret-file",
        "secret",
        type=click.Path(path_type=Path),
        callback=_read,
        help="The secret that the board asks for, 16 bytes or more; or set MPOTA_SECRET.",
    )
    old = click.option(
        "--old-secret",
        is_flag=True,
        expose_value=False,
        callback=_remember,
        help="It may be shorter: of a board with ota 0.1.",
    )
    return secret(old(command))


def _remember(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    context.meta[_OLD_SECRET] = value


def send_file(
    file: str,
    push: Callable[[Update, Options], Sent],
    secret: bytes | None,
    *,
    restart: bool = True,
    attempts: int = 5,
) -> None:
    """Send a file, show how it goes, and print what has come of it."""
    from mpota.push.wire import Options, Update, check_secret

    is_old = bool(click.get_current_context().meta.get(_OLD_SECRET))
    options = Options(secret, is_old, restart, attempts, tell=report.say)
    check_secret(options)
    update = Update.open(file)
    size = len(update.data)
    start = time.monotonic()
    with report.progress(update.name, size) as progress:
        options.progress = progress
        sent = push(update, options)
    seconds = time.monotonic() - start
    again = f", {sent.sent_size - size:,} of them twice" if sent.sent_size > size else ""
    rate = format_size(int(size / max(seconds, 1e-3)))
    report.say(f"{size:,} bytes in {seconds:.1f} s ({rate}/s){again}")
    then = "restarts into" if restart and sent.needs_restart else "has verified and selected"
    report.say(f"the board ({sent.board.version}) {then} {update.version or update.name}")
