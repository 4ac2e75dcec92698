"""One push for every way to a board. The scheme of a target tells which::

PORT, rfc2217://..., socket://...   its REPL, by a serial line (serial.py)
tcp://HOST[:PORT]                   it listens on the network (tcp.py)
ble://NAME, ble://ADDRESS           it listens by Bluetooth (ble.py)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mpota.errors import UsageError
from mpota.push import serial
from mpota.push.repl import Session
from mpota.push.update import Options, Package, Pushed
from mpota.storage.file import read_file

# A computer has one radio: boards of a plan take turns.
_RADIO = threading.Lock()


class Connection(Protocol):
    """A board that can be updated."""

    @property
    def session(self) -> Session | None:
        """Its REPL; None: it takes updates and nothing else."""

    def push(self, package: Package, options: Options) -> Pushed:
        """Raises MpotaError: see `mpota.push.serial.push` and `mpota.push.wire.send_update`."""


def connect(target: str) -> AbstractContextManager[Connection]:
    """A way to the board ``target``. Raises UsageError for one that cannot be, MpotaError."""
    return _CONNECT.get(_scheme(target), _repl)(target)


def has_repl(target: str) -> bool:
    """Whether ``target`` names a serial line; other boards take updates and nothing else."""
    return _scheme(target) not in _CONNECT


def read_secret(path: Path | None) -> bytes | None:
    """The secret in a file, white space around it left out; else that in MPOTA_SECRET, if any."""
    found = read_file(path) if path else os.environ.get("MPOTA_SECRET", "").encode()
    secret = found.strip()
    if not secret and path is None:
        return None
    if not secret:
        raise UsageError(f"there is no secret in '{path}'")
    return secret


def _scheme(target: str) -> str:
    return target.partition("://")[0] if "://" in target else ""


@dataclass(frozen=True)
class _AtRepl:
    session: Session

    def push(self, package: Package, options: Options) -> Pushed:
        return serial.push(self.session, package, options)


@contextmanager
def _repl(target: str) -> Iterator[Connection]:
    with Session(target) as session:
        yield _AtRepl(session)


@dataclass(frozen=True)
class _Listening:
    """A board that listens: links to it are made, and made again, while an update goes on."""

    send: Callable[[Package, Options], Pushed]
    session: None = None

    def push(self, package: Package, options: Options) -> Pushed:
        return self.send(package, options)


def _tcp(target: str) -> AbstractContextManager[Connection]:
    from mpota.push import tcp
    from mpota.push.wire import Update

    tcp.split_target(target)
    return nullcontext(
        _Listening(lambda package, options: tcp.push(target, Update.of(package), options))
    )


def _ble(target: str) -> AbstractContextManager[Connection]:
    import asyncio

    from mpota.push import ble
    from mpota.push.wire import Update

    name = target.partition("://")[2]
    if not name:
        raise UsageError(f"'{target}' is not ble://NAME or ble://ADDRESS")

    def send(package: Package, options: Options) -> Pushed:
        update = Update.of(package)
        with _RADIO:
            return asyncio.run(
                ble.push(name, update, options, pair=options.pair, timeout_s=options.find_s)
            )

    return nullcontext(_Listening(send))


_CONNECT: dict[str, Callable[[str], AbstractContextManager[Connection]]] = {
    "tcp": _tcp,
    "ble": _ble,
}
