"""The desk's side of an update that is sent to a board: docs/PROTOCOL.md, without what carries it.

`mpota.push.ble` and `mpota.push.tcp` connect, and bring messages and packets to the board and back.
Boards with ota 0.1 speak version 1 of the protocol: they get what they understand.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import struct
import zlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from mpota.errors import MpotaError, UsageError
from mpota.push.update import (
    LostLinkError,
    Options,
    Package,
    Pushed,
    RefusedError,
    UnconfirmedError,
    Welcome,
)
from mpota.text import shown

VERSION = 2
OLD_VERSION = 1  # of boards with ota 0.1
MIN_SECRET_SIZE = 16
WINDOW_SIZE = 4096
ANY_CHIP = 0xFFFF

_NEEDS_SECRET = 1  # WELCOME
_SIGNED_ONLY = 2
_TAKES_IMAGES = 4
_RESUME = 1  # BEGIN
_END_FIRST = 2
_RESTART = 1  # END, DONE

_HELLO = struct.Struct("<BB16s")
_WELCOME = struct.Struct("<BBB16sHHB")
_OLD_WELCOME = struct.Struct("<BBB16sHB")
_BEGIN = struct.Struct("<BBI32sHB")
_STATUS = struct.Struct("<BIH")
_OFFSET = struct.Struct("<H")
_CRC = struct.Struct("<I")
_MAX_VERSION_SIZE = 64

_ANSWER_TIMEOUT_S = 4.0
_SILENCE_TIMEOUT_S = 12.0  # the board speaks up every second while it waits for data
_END_TIMEOUT_S = 60.0  # it checks the whole, signatures included
_ATTEMPTS = 3
_TEMPORARY_CODES = ("busy", "timeout", "locked")
_MIN_PACKET_SIZE = 8  # offset, a byte, CRC
_SPEAKS_OLD = f"protocol version {VERSION}, this is {OLD_VERSION}"

# What a proof starts with: per version, for BEGIN, READY, DONE.
_LABELS = {
    OLD_VERSION: (b"mpota client", b"mpota board", b"mpota done"),
    VERSION: (b"mpota2 begin", b"mpota2 ready", b"mpota2 done"),
}


class Kind(IntEnum):
    """The first byte of a message."""

    HELLO = 0x01
    BEGIN = 0x02
    END = 0x03
    ABORT = 0x04
    WELCOME = 0x81
    STATUS = 0x82
    AGAIN = 0x83
    DONE = 0x84
    ERROR = 0x85
    READY = 0x86


_STATUS_KINDS = (Kind.STATUS, Kind.AGAIN, Kind.READY)


class Link(Protocol):
    """A connection to a board."""

    @property
    def packet_size(self) -> int:
        """Bytes that a data packet may have, its offset included."""

    async def send(self, message: bytes) -> None:
        """Raises LostLinkError, as the others do."""

    async def send_data(self, packet: bytes) -> None: ...

    async def receive(self, timeout_s: float) -> bytes | None:
        """The next message; None if there is none in time."""


@dataclass(frozen=True)
class Update:
    """What is to be sent. ``is_signed_image``: an app image that ends with its signature sector."""

    name: str
    data: bytes
    chip_id: int = ANY_CHIP
    version: str = ""
    is_signed_image: bool = False
    sha256: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", hashlib.sha256(self.data).digest())

    @classmethod
    def of(cls, package: Package) -> Update:
        """Raises UsageError for a URL."""
        if package.url is not None:
            raise UsageError(f"{package.url} is a URL: a file is needed, which is sent from here")
        app = package.app
        chip_id = app.image.chip.chip_id if app else ANY_CHIP
        is_signed = bool(app and app.signature and package.plain_size and not package.release)
        return cls(package.name, package.data, chip_id, package.version, is_signed)


Connect = Callable[[], AbstractAsyncContextManager[Link]]


async def send_update(connect: Connect, update: Update, options: Options) -> Pushed:
    """Bring ``update`` to the board, through as many connections as it takes.

    Raises RefusedError if the board does not take it, LostLinkError if it cannot be reached,
    UnconfirmedError if it is lost when it has all, UsageError for a secret that is too short.
    """
    check_secret(options)
    sender = _Sender(update, options)
    failures, connections = 0, 0
    while True:
        before = sender.position
        try:
            async with connect() as link:
                connections += 1
                await sender.talk(link)
            assert sender.board is not None
            return Pushed(
                update.version,
                sent_size=sender.sent_size,
                board=sender.board,
                needs_restart=sender.needs_restart,
                connections=connections,
            )
        except (LostLinkError, RefusedError) as error:
            if sender.takes_older(error):
                continue
            if isinstance(error, RefusedError) and error.code not in _TEMPORARY_CODES:
                raise
            if sender.is_ended and isinstance(error, LostLinkError):
                raise UnconfirmedError(
                    f"the board has all of {update.name}, but did not say that it switched: "
                    f"{error}",
                    "see what it runs; sending it again does no harm",
                ) from None
            failures = 1 if sender.position > before else failures + 1
            if failures >= options.attempts:
                raise
            pause_s = options.pause_s * 2 ** (failures - 1)
            options.tell(f"{error}; again in {pause_s:g} s")
            await asyncio.sleep(pause_s)


def check_secret(options: Options) -> None:
    """Raises UsageError for a secret that could be guessed."""
    secret = options.secret
    if secret is not None and len(secret) < MIN_SECRET_SIZE and not options.is_old_secret:
        raise UsageError(
            f"the secret has {len(secret)} bytes, {MIN_SECRET_SIZE} are the least: "
            "who hears one push could try out shorter ones",
            "openssl rand -hex 16 makes one; a board with ota 0.1 that has a shorter one "
            "takes it with --old-secret",
        )


class _Sender:
    """One update on its way, over all connections."""

    def __init__(self, update: Update, options: Options) -> None:
        self._update = update
        self._options = options
        self._version = VERSION
        self._nonces = b""
        self._packet_size = 0
        self._stream = update.data  # what the positions count
        self.board: Welcome | None = None
        self.position = 0  # the board has all before it
        self._end = 0  # it lets us go up to here
        self._next = 0  # what goes out next
        self.sent_size = 0
        self.needs_restart = False
        self.is_ended = False
        self._is_end_first = False

    def takes_older(self, error: MpotaError) -> bool:
        """Whether that was a board with ota 0.1: it is spoken to in its own way from now on."""
        if self._version == OLD_VERSION or not isinstance(error, RefusedError):
            return False
        if error.code != "protocol" or str(error) != _SPEAKS_OLD:
            return False
        self._version = OLD_VERSION
        return True

    async def talk(self, link: Link) -> None:
        """From HELLO to DONE. Raises LostLinkError and RefusedError."""
        needs_secret = await self._greet(link)
        await self._begin(link, needs_secret)
        await self._send_all(link)
        await self._finish(link)

    async def _greet(self, link: Link) -> bool:
        nonce = os.urandom(16)
        hello = _HELLO.pack(Kind.HELLO, self._version, nonce)
        answer = await self._ask(link, hello, Kind.WELCOME)
        is_old = self._version == OLD_VERSION
        head = _OLD_WELCOME if is_old else _WELCOME
        if len(answer) < head.size or answer[1] != self._version:
            raise _garbled(answer)
        if is_old:
            _, _, flags, own, chip_id, size = head.unpack_from(answer)
            self._packet_size = link.packet_size
        else:
            _, _, flags, own, chip_id, packet_size, size = head.unpack_from(answer)
            self._packet_size = min(link.packet_size, packet_size)
            if packet_size < _MIN_PACKET_SIZE:
                raise _garbled(answer)
        self._nonces = nonce + own
        needs_secret = bool(flags & _NEEDS_SECRET)
        if needs_secret and self._options.secret is None:
            raise MpotaError("the board asks for a secret", "--secret-file FILE, or MPOTA_SECRET")
        if self._options.secret is not None and not needs_secret:
            raise MpotaError(
                "the board asks for no secret: it may be another one",
                "without --secret-file it is sent all the same",
            )
        text = answer[head.size : head.size + size].decode("utf-8", "replace")
        self.board = Welcome(shown(text), chip_id, bool(flags & _SIGNED_ONLY), self._version)
        data = self._update.data
        self._is_end_first = bool(flags & _TAKES_IMAGES) and self._update.is_signed_image
        self._stream = data[-WINDOW_SIZE:] + data if self._is_end_first else data
        return needs_secret

    async def _begin(self, link: Link, needs_secret: bool) -> None:
        update = self._update
        version = update.version.encode()[:_MAX_VERSION_SIZE].decode("utf-8", "ignore").encode()
        flags = _RESUME | (_END_FIRST if self._is_end_first else 0)
        begin = _BEGIN.pack(
            Kind.BEGIN, flags, len(update.data), update.sha256, update.chip_id, len(version)
        )
        begin += version
        for_begin, for_ready, _ = _LABELS[self._version]
        if needs_secret:
            begin += self._prove(for_begin, begin)
        ready = await self._ask(link, begin, Kind.READY, _END_TIMEOUT_S / _ATTEMPTS)
        if needs_secret:
            self._check_proof(for_ready, ready[: _STATUS.size], ready[_STATUS.size :])
        self._take_status(ready[: _STATUS.size])
        if self.position:
            self._options.tell(f"going on: the board has {self.position:,} bytes from before")

    async def _ask(
        self, link: Link, message: bytes, kind: Kind, timeout_s: float = _ANSWER_TIMEOUT_S
    ) -> bytes:
        """The answer of that kind to a message, which is sent again if none comes."""
        for _ in range(_ATTEMPTS):
            await link.send(message)
            while answer := await link.receive(timeout_s):
                _check_error(answer)
                if answer[0] == kind:
                    return answer
        raise LostLinkError(f"the board does not answer {Kind(message[0]).name}")

    async def _receive(self, link: Link, timeout_s: float, what: str) -> bytes:
        message = await link.receive(timeout_s)
        if not message:
            raise LostLinkError(f"the board is silent for {timeout_s:.0f} s: {what} is due")
        _check_error(message)
        return message

    def _take_status(self, message: bytes) -> None:
        if message[0] not in _STATUS_KINDS or len(message) != _STATUS.size:
            raise _garbled(message)
        _, position, credit = _STATUS.unpack(message)
        if position + credit > len(self._stream):
            raise _garbled(message)
        self.position, self._end = position, position + credit
        if message[0] != Kind.STATUS:
            self._next = position
        self._options.progress(position, len(self._stream))

    async def _send_all(self, link: Link) -> None:
        size = len(self._stream)
        while self.position < size:
            timeout_s = 0.0 if self._next < self._end else _SILENCE_TIMEOUT_S
            if timeout_s:
                self._take_status(await self._receive(link, timeout_s, "more credit"))
                continue
            message = await link.receive(0)
            if message:
                _check_error(message)
                self._take_status(message)
                continue
            packet, count = self._packet(self._packet_size)
            await link.send_data(packet)
            self._next += count
            self.sent_size += count

    def _packet(self, size: int) -> tuple[bytes, int]:
        """A data packet of at most ``size`` bytes, and the bytes of payload in it."""
        data = self._stream
        start = self._next - self._next % WINDOW_SIZE
        end = min(start + WINDOW_SIZE, len(data))
        room = size - _OFFSET.size
        left = end - self._next
        head = _OFFSET.pack(self._next & 0xFFFF)
        if left + _CRC.size <= room:
            crc = _CRC.pack(zlib.crc32(data[start:end]))
            return head + data[self._next : end] + crc, left
        count = min(room, left - 1)  # one byte at least goes with the digest
        return head + data[self._next : self._next + count], count

    async def _finish(self, link: Link) -> None:
        end = bytes((Kind.END, _RESTART if self._options.restart else 0))
        if self._options.secret is not None and self._version != OLD_VERSION:
            end += self._prove(b"mpota2 end", end + self._update.sha256)
        self.is_ended = True
        done = await self._ask(link, end, Kind.DONE, _END_TIMEOUT_S / _ATTEMPTS)
        if len(done) < 2:
            raise _garbled(done)
        if self._options.secret is not None:
            label = _LABELS[self._version][2]
            self._check_proof(label, done[:2] + self._update.sha256, done[2:])
        self.needs_restart = bool(done[1] & _RESTART)

    def _prove(self, label: bytes, message: bytes) -> bytes:
        secret = self._options.secret or b""
        return hmac.digest(secret, label + self._nonces + message, "sha256")

    def _check_proof(self, label: bytes, message: bytes, proof: bytes) -> None:
        if not hmac.compare_digest(self._prove(label, message), proof):
            raise MpotaError("the board does not know the secret: it is another one, or a fake")


def _check_error(message: bytes) -> None:
    if message[0] != Kind.ERROR:
        return
    end = 2 + (message[1] if len(message) > 1 else 0)
    code = shown(message[2:end].decode("ascii", "replace"))
    raise RefusedError(code, shown(message[end:].decode("utf-8", "replace")) or code)


def _garbled(message: bytes) -> MpotaError:
    return MpotaError(f"the board sent what makes no sense: {message[:16].hex(' ')}")
