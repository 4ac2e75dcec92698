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
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Protocol

from mpota.errors import MpotaError, UsageError
from mpota.formats.thin import ID_SIZE
from mpota.push.update import (
    NOT_LESS_CODES,
    LostLinkError,
    Options,
    Package,
    Pushed,
    RefusedError,
    RolledBackError,
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
_IS_SEEN = 8
_CONFIRMED = 1  # SEEN
_MORE = 2
_SETTLED = 4
_RESUME = 1  # BEGIN
_END_FIRST = 2
_RESTART = 1  # END, DONE

_HELLO = struct.Struct("<BB16s")
_WELCOME = struct.Struct("<BBB16sHHB")
_OLD_WELCOME = struct.Struct("<BBB16sHB")
_BEGIN = struct.Struct("<BBI32sHB")
_STATUS = struct.Struct("<BIH")
_LOOK = struct.Struct("<BH")
_SEEN = struct.Struct("<BB32s32s")
_OFFSET = struct.Struct("<H")
_CRC = struct.Struct("<I")
_MAX_VERSION_SIZE = 64

_ANSWER_TIMEOUT_S = 4.0
_SILENCE_TIMEOUT_S = 12.0  # the board speaks up every second while it waits for data
_END_TIMEOUT_S = 60.0  # it checks the whole, signatures included
_ATTEMPTS = 3
_TEMPORARY_CODES = ("busy", "timeout", "locked")
_MAX_LOOKS = 1000  # messages, of 19 files each
_LOOK_AGAIN_S = 0.1
_RESTART_S = 2.0  # a board that listens goes on for a moment before it restarts
_UNSEEN_CODES = ("part", "board", "protocol")  # answers to LOOK
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
    LOOK = 0x05
    WELCOME = 0x81
    STATUS = 0x82
    AGAIN = 0x83
    DONE = 0x84
    ERROR = 0x85
    READY = 0x86
    SEEN = 0x87


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
    package: Package | None = None  # that it is all of
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
        return cls(package.name, package.data, chip_id, package.version, is_signed, package)


@dataclass(frozen=True)
class Seen:
    """What a board says that it runs: the digests (hex, "" if it does not know) of its app and of
    its ``files`` payload, and the ids of files that it has (formats/thin.py)."""

    app: str
    files: str
    is_confirmed: bool
    is_settled: bool  # no update waits for the restart; older boards do not say so
    ids: frozenset[bytes]

    def runs(self, package: Package) -> bool:
        """Whether that is what the package brings, as far as it can be told."""
        files = (package.release or {}).get("sha256")
        has_files = files is None or self.files == files
        return has_files and (package.digest is None or self.app == package.digest)


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
            is_seen = await _see_through(connect, sender, update, options)
            assert sender.board is not None
            return Pushed(
                update.version,
                is_new=not sender.runs_already,
                sent_size=sender.sent_size,
                board=sender.board,
                needs_restart=sender.needs_restart,
                connections=connections,
                is_confirmed=is_seen,
            )
        except (LostLinkError, RefusedError) as error:
            if sender.takes_older(error) or sender.takes_whole(error):
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


async def _see_through(connect: Connect, sender: _Sender, update: Update, options: Options) -> bool:
    """Wait until the board says that it runs ``update``, confirmed, if that was asked for.

    Raises RolledBackError, and UnconfirmedError if that is not so in time.
    """
    if sender.runs_already or not (options.confirm_s and sender.is_seen and update.package):
        return sender.runs_already
    if not (sender.needs_restart and options.restart):
        return not sender.needs_restart
    options.tell(f"the board restarts into {update.version}")
    loop = asyncio.get_running_loop()
    start = loop.time()
    was_away = has_run = False
    while loop.time() < start + options.confirm_s:
        try:
            async with connect() as link:
                seen = await _Sender(update, options).see(link)
        except MpotaError:
            was_away = True
            await asyncio.sleep(_LOOK_AGAIN_S)
            continue
        runs = seen.runs(update.package)
        if runs and seen.is_confirmed:
            return True
        is_back = seen.is_settled or (was_away and loop.time() > start + _RESTART_S)
        if not runs and (has_run or is_back):
            raise RolledBackError("the board went back to what it ran before")
        has_run |= runs
        await asyncio.sleep(_LOOK_AGAIN_S)
    what = "runs it, and has not confirmed it" if has_run else "has not come back with it"
    raise UnconfirmedError(
        f"the board took {update.version} and {what} within {options.confirm_s:.0f} s",
        "its program has to listen again, and to call ota.rollback.cancel() when all is well",
    )


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
        self._stream = update.data  # what the positions count: see `talk`
        self.board: Welcome | None = None
        self.position = 0  # the board has all bytes before it
        self._end = 0  # the board lets us send up to here
        self._next = 0  # position of the byte that goes out next
        self.sent_size = 0
        self.needs_restart = False
        self.is_ended = False
        self.is_seen = False  # the board tells what it runs
        self.runs_already = False
        self._is_chosen = False  # what is sent
        self._whole = update
        self._is_end_first = False

    def takes_older(self, error: MpotaError) -> bool:
        """Whether the board has ota 0.1; then version 1 of the protocol is spoken from now on."""
        if self._version == OLD_VERSION or not isinstance(error, RefusedError):
            return False
        if error.code != "protocol" or str(error) != _SPEAKS_OLD:
            return False
        self._version = OLD_VERSION
        return True

    def takes_whole(self, error: MpotaError) -> bool:
        """Whether the board lacks a base for less than all; then all is sent from now on."""
        is_less = self._is_chosen and self._update is not self._whole
        if not is_less or not isinstance(error, RefusedError) or error.code not in NOT_LESS_CODES:
            return False
        self._update = self._whole
        self._options.tell(f"that is not enough here ({error}): sending all")
        return True

    async def talk(self, link: Link) -> None:
        """From HELLO to DONE. Raises LostLinkError and RefusedError."""
        needs_secret = await self._greet(link)
        await self._choose(link)
        if self.runs_already:
            return
        data = self._update.data
        self._stream = data[-WINDOW_SIZE:] + data if self._is_end_first else data
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
        self._is_end_first = bool(flags & _TAKES_IMAGES) and self._update.is_signed_image
        self.is_seen = not is_old and bool(flags & _IS_SEEN)
        return needs_secret

    # --- what the board has

    async def see(self, link: Link) -> Seen:
        """What the board runs. Raises RefusedError if it does not tell, LostLinkError."""
        await self._greet(link)
        if not self.is_seen:
            raise RefusedError("protocol", "the board does not tell what it runs")
        return await self._look(link, 1)

    async def _look(self, link: Link, limit: int = _MAX_LOOKS) -> Seen:
        """Ask with up to ``limit`` messages; the first answer has what runs, all have file ids."""
        ids: list[bytes] = []
        for _ in range(limit):
            look = _LOOK.pack(Kind.LOOK, len(ids))
            secret = self._options.secret
            if secret is not None:
                look += self._prove(b"mpota2 look", look)
            answer = await self._ask(link, look, Kind.SEEN)
            if secret is not None:
                answer, proof = answer[:-32], answer[-32:]
                self._check_proof(b"mpota2 seen", answer, proof)
            if len(answer) < _SEEN.size or (len(answer) - _SEEN.size) % ID_SIZE:
                raise _garbled(answer)
            _, flags, app, files = _SEEN.unpack_from(answer)
            new = [answer[at : at + ID_SIZE] for at in range(_SEEN.size, len(answer), ID_SIZE)]
            ids += new
            if not flags & _MORE or not new or len(ids) > 0xFFFF:
                break
        return Seen(
            app.hex() if any(app) else "",
            files.hex() if any(files) else "",
            bool(flags & _CONFIRMED),
            bool(flags & _SETTLED),
            frozenset(ids),
        )

    async def _choose(self, link: Link) -> None:
        """Choose once what to send: less than all, if the board has the rest."""
        package = self._whole.package
        if self._is_chosen or package is None or package.bundle is None or not self.is_seen:
            return
        has_files = bool(package.bundle.files)
        if not has_files and not package.suit:
            return
        self._is_chosen = True
        try:
            seen = await self._look(link)
        except RefusedError as error:
            if error.code not in _UNSEEN_CODES:
                raise
            raise LostLinkError(f"the board does not tell what it runs: {error}") from None
        self.runs_already = bool(self._options.confirm_s) and not self._options.force
        self.runs_already &= seen.is_confirmed and seen.runs(package)
        if self.runs_already:
            return
        suited = package.suit(seen.app, self._options.find_base) if package.suit else package
        less = suited.without(seen.ids) if seen.ids else None
        if less or suited is not package:
            self._update = replace(Update.of(less or suited), package=package)
            size, whole = len(self._update.data), len(package.data)
            what = suited.told(seen.ids) if has_files else "what differs"
            self._options.tell(f"sending {what}: {size:,} bytes instead of {whole:,}")

    # --- the update

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
