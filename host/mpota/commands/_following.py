"""What ``mpota virtual --follow`` puts on a board: the package, keys, and a program that follows a
channel.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from mpota.commands import _report as report
from mpota.commands._publishing import read_public_keys, span
from mpota.errors import UsageError
from mpota.formats.chips import Chip
from mpota.publish.followed import Followed, find_channel
from mpota.units import KiB
from mpota.virtual.board import Board

_MARK = "# mpota virtual --follow"
_MAX_LINE = 1000
_TLS_SIZE = 48 * KiB  # of a connection: here in MicroPython's heap, on a board in ESP-IDF's
_PROGRAM = """\
{mark}
import asyncio
import time
import ota.channel
import ota.rollback

ota.rollback.cancel()  # it has come so far: confirmed
channel = ota.channel.Channel(
    {directory!r}, {name!r}, {channel!r}, log=lambda text: print("channel:", text){more}
)
channel.due = time.ticks_ms()  # now, not within ten minutes
asyncio.run(channel.run())
"""
_IS_OURS = """
def _is_ours():
    try:
        with open("/main.py") as file:
            return file.readline().startswith({mark!r})
    except OSError:
        return True
"""


def find(url: str, keys: tuple[Path, ...], ca: Path | None) -> Followed:
    """The channel at ``url``. Raises UsageError if there is none that one of ``keys`` signed."""
    if not keys:
        raise UsageError("--follow needs --key: the public key that signs the channel")
    if ca is not None:
        from mpota.push.install import read_certificates

        read_certificates(ca)  # raises if they cannot be used
    return find_channel(url, read_public_keys(keys), ca)


def follow(
    board: Board, chip: Chip, found: Followed, keys: tuple[Path, ...], ca: Path | None
) -> None:
    """Have the board follow a channel when it is switched on.

    Raises UsageError if it has a program of its own.
    """
    from mpota.push.install import ca_path, install
    from mpota.push.repl import Session
    from mpota.virtual.cable import plugged_in

    if found.directory.startswith("https:"):
        board.heap_size += _TLS_SIZE
    program = _PROGRAM.format(
        mark=_MARK,
        directory=found.directory,
        name=found.channel.name,
        channel=found.channel.channel,
        more="" if ca is None else f", cafile={ca_path(ca)!r}",
    )
    report.say("putting the package, the key and a program on the board")
    with (
        plugged_in(board, chip) as ports,
        Session(ports.console, keeps_app_stopped=True) as session,
    ):
        is_ours = session.evaluate(
            "_is_ours()", _IS_OURS.format(mark=_MARK), fits=lambda value: isinstance(value, bool)
        )
        if not is_ours:
            raise UsageError(
                f"'{board.flash.path}' has a main.py of its own",
                "have that follow the channel (docs: Follow a channel), or take another file",
            )
        install(session, keys, ca, ("channel", "encoded"))
        session.write_parts({"/main.py": program.encode()})
        session.finish_parts({"/main.py": b""})


def describe(found: Followed) -> str:
    channel = found.channel
    return (
        f"it follows {channel.name}, channel {channel.channel}: asks now, then about every "
        f"{span(channel.poll)}"
    )


class Listener:
    """Tells of the lines that the board prints on its console, from `begin` on: a board is faster
    than what there is to say of it first."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._rest = b""
        self._early: list[bytes] | None = []
        self._lock = threading.Lock()

    def begin(self) -> None:
        with self._lock:
            early, self._early = self._early or [], None
            for data in early:
                self._hear(data)

    def __call__(self, data: bytes) -> None:
        with self._lock:
            if self._early is None:
                self._hear(data)
            else:
                self._early.append(data)

    def _hear(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-_MAX_LINE:]
        for line in lines:
            if text := line.decode("utf-8", "replace").strip():
                self._tell(text)
