"""Boards that listen on the local network, and pushes to them over TCP on loopback."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from mpota.push import tcp
from mpota.push.update import Pushed, RefusedError
from mpota.push.wire import Update
from mpota.virtual.board import Board

from tests.support import ota_board
from tests.support.radio import SECRET, Powered, options

BOTH = ("ota_0", "ota_1")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def listener(port: int, options: str) -> str:
    """A script that says "listening", and does until an update is complete, or one of version
    "stop" comes."""
    return f"""
import asyncio, ota.listen
def accept(size, chip, version):
    if version == "stop":
        task.cancel()
        return False
async def main():
    global task
    l = ota.listen.Listener(host="127.0.0.1", port={port}, accept=accept{options})
    task = asyncio.create_task(l.serve())
    await asyncio.sleep_ms(1)
    print("listening")
    try:
        await task
    except asyncio.CancelledError:
        await asyncio.sleep_ms(0 if hasattr(l, "_tasks") else 300)  # ota 0.1 has no count of them
        while getattr(l, "_tasks", 0):  # until its client has heard why
            await asyncio.sleep_ms(1)
asyncio.run(main())
"""


def push_tcp(port: int, what: Update, **changes: Any) -> Pushed:
    changes = {"secret": SECRET.encode(), "attempts": 20} | changes
    return tcp.push(f"tcp://127.0.0.1:{port}", what, options(**changes))


@contextmanager
def listening(
    options: str = f", secret={SECRET!r}",
    content: bytes | None = None,
    trusts: str = "",
    script: Callable[[str], str] = str,
) -> Iterator[tuple[Powered, Board, int]]:
    """A board that listens by now; what it is left doing at the end fails the test.

    ``script``: what becomes of `listener`.
    """
    port = free_port()
    with ota_board.updating_board(content) as board:
        if trusts:
            ota_board.output(board, f"import ota; ota.keys.add({trusts!r})")
        board.flash.restart_count()
        powered = Powered(board, script(listener(port, options))).heard("listening")
        yield powered, board, port
        powered.wait()


def stop(port: int, **changes: Any) -> None:
    """Have the listener's script end."""
    with pytest.raises(RefusedError, match="does not want version stop"):
        push_tcp(port, Update("stop", b"stop", version="stop"), **changes)
