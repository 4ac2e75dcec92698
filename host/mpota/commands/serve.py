"""``mpota serve``: a directory, for boards to update from."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import click

from mpota.commands import _report as report
from mpota.errors import MpotaError
from mpota.release.local_ca import LocalCa
from mpota.release.serve import (
    DEFAULT_PORT,
    HEAD_SIZE,
    FileServer,
    Served,
    serve_forever,
    why_hidden,
)
from mpota.units import short_digest
from mpota.virtual.micropython import cache_dir

_MAX_LINES = 10


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--host", default="0.0.0.0", help="Listen at this address only.")
@click.option("--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, help="0: any.")
@click.option("--tls", is_flag=True, help="HTTPS, by a certificate authority made for you.")
def command(directory: Path, host: str, port: int, tls: bool) -> None:
    """Serve DIRECTORY over HTTP/1.1 with ranges, and print what to paste on a board.

    A server for development: with --tls its authority is kept in your cache directory, and the
    line for the board carries its certificate. A directory that mpota publish has filled is a
    channel that boards follow. Hidden files and private keys are not served.
    """
    ca = LocalCa.open(cache_dir() / "serve") if tls else None

    def start(server: FileServer) -> None:
        report.say(f"serving {directory} at {server.url} (Ctrl-C ends it)")
        for line, path in _board_lines(server, directory):
            if what := _words(path):
                report.say(f"{path.name}: {what}")
            report.say(f"on the board: {line}", is_whole=True)

    serve_forever(directory, host, port, ca, start, _tell)


def _board_lines(server: FileServer, directory: Path) -> list[tuple[str, Path]]:
    """A line for each file that a board can install, the newest first."""
    top = directory.resolve()
    found = []
    for path in top.iterdir():
        with suppress(OSError):  # files that we may not read
            real = path.resolve()
            is_ours = path.is_file() and real.is_relative_to(top)
            if is_ours and not path.name.startswith(".") and not why_hidden(real, top):
                found.append((path.stat().st_mtime, path))
    lines = []
    for _, path in sorted(found, reverse=True):
        with path.open("rb") as file:
            line = server.board_line(path.name, file.read(HEAD_SIZE))
        if line:
            lines.append((line, path))
    return lines[:_MAX_LINES]


def _words(path: Path) -> str:
    """The version and digest of an update, as far as they are known, in words."""
    from mpota.push.update import Package

    try:
        package = Package.open(str(path))
    except MpotaError:
        return ""
    digest = f", digest {short_digest(package.digest)}" if package.digest else ""
    return package.version + digest


def _tell(served: Served) -> None:
    asked = f" {served.range}" if served.range else ""
    note = f" ({served.note})" if served.note else ""
    report.say(f"{served.client} {served.method} {served.path} {served.status}{asked}{note}")
