"""Which boards take updates, here and now: on the local network (docs/PROTOCOL.md, "Who is there")
and by Bluetooth.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from mpota.errors import MpotaError, UsageError
from mpota.push import tcp
from mpota.text import shown

BROADCAST = "255.255.255.255"

_QUESTION, _ANSWER = b"mpota ?\x01", b"mpota !\x01"
_QUESTION_SIZE = 256  # no answer is longer
_TOKEN_SIZE = 8
_TEXTS = 4
_NEEDS = ((1, "secret"), (2, "signature"))  # flags of WELCOME
_ASKED = 3  # times that the question is sent: a datagram may be lost
_MAX_FOUND = 4096

STATES = ("confirmed", "on trial", "updating", "waits for its restart")


@dataclass(frozen=True)
class FoundBoard:
    """A board that takes updates; ``target`` is what `mpota push` takes.

    ``release``, ``state`` (one of STATES), ``ota`` and ``runs`` are what it says itself, and
    nobody vouches for; ``needs``: "secret", "signature". Of a board seen by Bluetooth all of this
    is None.
    """

    name: str
    target: str
    release: str | None = None
    state: str | None = None
    ota: str | None = None
    runs: str | None = None
    needs: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, object]:
        fields = dict(self.__dict__)
        return fields | {"needs": None if self.needs is None else list(self.needs)}


def parse_address(text: str) -> tuple[str, int]:
    """ADDRESS or ADDRESS:PORT. Raises UsageError."""
    try:
        return tcp.split_target(f"tcp://{text}")
    except UsageError:
        raise UsageError(f"'{text}' is not ADDRESS or ADDRESS:PORT") from None


def ask(addresses: Sequence[tuple[str, int]], timeout_s: float) -> list[FoundBoard]:
    """The boards that answer at these addresses, (host, UDP port), in ``timeout_s``; or once each
    of them has answered by itself, as none of a broadcast can.

    Raises MpotaError if nothing can be asked, as without a network.
    """
    token = os.urandom(_TOKEN_SIZE)
    found: dict[str, FoundBoard] = {}
    silent = set(addresses)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for _ in range(_ASKED):
            _send(sender, addresses, token)
            for data, (host, port) in _received(sender, timeout_s / _ASKED):
                board = _parse(data, token, host, port)
                if board and len(found) < _MAX_FOUND:
                    found.setdefault(board.target, board)
                    silent.discard((host, port))
                if not silent:
                    return _sorted(found.values())
    return _sorted(found.values())


def _sorted(boards: Iterable[FoundBoard]) -> list[FoundBoard]:
    return sorted(boards, key=lambda board: (board.name, board.target))


def look(timeout_s: float) -> list[FoundBoard]:
    """The boards in reach of this computer's Bluetooth. Raises MpotaError, UsageError."""
    from mpota.push import ble

    seen = asyncio.run(ble.scan(timeout_s))
    names = [board.name for board in seen]
    return [
        FoundBoard(
            board.name or board.address,
            f"ble://{board.name if names.count(board.name) == 1 and board.name else board.address}",
        )
        for board in seen
    ]


def named(boards: Sequence[FoundBoard]) -> list[FoundBoard]:
    """The boards with distinct names: many share MicroPython's default host name."""
    taken: set[str] = set()
    unique = []
    for board in boards:
        name, number = board.name, 1
        while name in taken:
            number += 1
            name = f"{board.name}-{number}"
        taken.add(name)
        unique.append(replace(board, name=name))
    return unique


def _send(sender: socket.socket, addresses: Sequence[tuple[str, int]], token: bytes) -> None:
    question = (_QUESTION + token).ljust(_QUESTION_SIZE, b"\0")
    failures = []
    for address in addresses:
        try:
            sender.sendto(question, address)
        except OSError as error:
            failures.append(f"{address[0]} cannot be asked: {error.strerror or error}")
    if len(failures) == len(addresses):
        raise MpotaError("; ".join(failures), "is this computer in the network of the boards?")


def _received(sender: socket.socket, seconds: float) -> Iterator[tuple[bytes, tuple[str, int]]]:
    """Yield the datagrams that come within ``seconds``."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([sender], [], [], left)[0]:
            try:
                yield sender.recvfrom(_QUESTION_SIZE + 1)
            except OSError:  # Windows: nobody listens at an address that was asked
                continue


def _parse(data: bytes, token: bytes, host: str, port: int) -> FoundBoard | None:
    """The board that an answer describes; None if ``data`` is no answer."""
    head = _ANSWER + token
    at = len(head) + 2
    if len(data) > _QUESTION_SIZE or not data.startswith(head) or len(data) < at:
        return None
    texts = data[at:].decode("utf-8", "replace").split("\n", _TEXTS - 1)
    if len(texts) < _TEXTS:
        return None
    flags, state = data[at - 2], data[at - 1]
    name, release, ota, runs = map(shown, texts)
    return FoundBoard(
        name or host,
        f"tcp://{host}" + (f":{port}" if port != tcp.PORT else ""),
        release,
        STATES[state] if state < len(STATES) else f"state {state}",
        ota,
        runs,
        tuple(word for bit, word in _NEEDS if flags & bit),
    )
