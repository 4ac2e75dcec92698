"""What the commands that send an update to a listening board have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mpota.commands import _report as report
from mpota.errors import MpotaError
from mpota.units import format_size

if TYPE_CHECKING:
    from mpota.push.update import Options

_OLD_SECRET = "mpota.old-secret"  # in click's context


def _read(context: click.Context, parameter: click.Parameter, value: Any) -> bytes | None:
    from mpota.push.schemes import read_secret

    return read_secret(value)


def secret_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for the secret that board and desk share, for `send_file`."""
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


def with_old_secret(options: Options) -> Options:
    """``options`` as --old-secret has them."""
    return replace(options, is_old_secret=bool(click.get_current_context().meta.get(_OLD_SECRET)))


check_option = click.option(
    "--check",
    metavar="EXPR|FILE.py",
    help="Health check on the board: an expression that is true, or a script that ends well.",
)


SETTLE_S = 3.0
SETTLE_PROJECT_S = 1.0  # shorter, since a project is pushed again and again


def settle_option(what: str, more: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add --settle. ``what`` starts, "the app", say; ``more`` describes a default of None."""
    return click.option(
        "--settle",
        type=click.FloatRange(min=0.05),
        default=None if more else SETTLE_S,
        help=f"Seconds of silence after which {what} counts as started (default 3{more}).",
    )


@contextmanager
def outcomes(as_json: bool) -> Iterator[None]:
    """With ``as_json`` print the error that ends the block as JSON on standard output as well."""
    from mpota.push.outcome import INTERRUPTED, error_to_json

    try:
        yield
    except MpotaError as error:
        if as_json:
            report.print_json(error_to_json(error))
        raise
    except KeyboardInterrupt:
        if as_json:
            report.print_json({"outcome": INTERRUPTED, "exit_code": 130})
        raise


def send_file(target: str, file: str, options: Options, *, as_json: bool = False) -> None:
    """Send a file to a board that listens, show how it goes, and print what has come of it."""
    from mpota.push.outcome import pushed_to_json
    from mpota.push.schemes import connect
    from mpota.push.update import Package
    from mpota.push.wire import Update, check_secret

    options = with_old_secret(options)
    if not as_json:
        options = replace(options, tell=report.say)
    check_secret(options)
    package = Package.open(file)
    Update.of(package)
    size = len(package.data)
    start = time.monotonic()
    label = f"sending {package.name}"
    with connect(target) as board, report.progress(label, size) as progress:
        sent = board.push(package, replace(options, progress=progress))
    if as_json:
        report.print_json(pushed_to_json(sent))
        return
    seconds = time.monotonic() - start
    size = min(size, sent.sent_size)  # the board had some of it
    again = f", {sent.sent_size - size:,} of them twice" if sent.sent_size > size else ""
    rate = format_size(int(size / max(seconds, 1e-3)))
    report.say(f"{size:,} bytes in {seconds:.1f} s ({rate}/s){again}")
    assert sent.board is not None  # a listening board sends its WELCOME
    what = sent.version or package.name
    if not sent.needs_restart:
        said = f"has {what} in force, no restart is needed"
    elif options.restart:
        said = f"restarts into {what}"
    else:
        said = f"has verified and selected {what}"
    report.say(f"the board ({sent.board.version}) {said}", tone=report.Tone.GOOD)
