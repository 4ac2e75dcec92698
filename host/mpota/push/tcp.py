"""Updates by push on the local network: the desk's side of a board's ``ota.listen``."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import urlsplit

from mpota.errors import UsageError
from mpota.push.update import LostLinkError, Options, Pushed
from mpota.push.wire import Update, send_update

PORT = 8266

_HEAD = struct.Struct("<HB")  # size of what follows, channel
_CONTROL, _DATA = 0, 1
_PACKET_SIZE = 1024
_MAX_MESSAGE_SIZE = 512
_CONNECT_TIMEOUT_S = 10.0


def push(target: str, update: Update, options: Options) -> Pushed:
    """Send ``update`` to the board at ``tcp://HOST[:PORT]``. Raises MpotaError."""
    host, port = split_target(target)
    return asyncio.run(send_update(partial(connect, host, port), update, options))


def split_target(target: str) -> tuple[str, int]:
    """Host and port. Raises UsageError."""
    try:
        parts = urlsplit(target)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{target}: {error}") from None
    if parts.scheme != "tcp" or not host or parts.path.strip("/") or "@" in parts.netloc:
        raise UsageError(f"'{target}' is not tcp://HOST or tcp://HOST:PORT")
    return host, port or PORT


@asynccontextmanager
async def connect(host: str, port: int = PORT) -> AsyncIterator[TcpLink]:
    """A link to the board that listens there. Raises LostLinkError."""
    try:
        opened = asyncio.open_connection(host, port)
        reader, writer = await asyncio.wait_for(opened, _CONNECT_TIMEOUT_S)
    except (OSError, TimeoutError, asyncio.TimeoutError) as error:
        raise LostLinkError(f"cannot reach {host} port {port}: {error or 'no answer'}") from None
    link = TcpLink(reader, writer)
    try:
        yield link
    finally:
        link.close()


class TcpLink:
    """See `mpota.push.wire.Link`."""

    packet_size = _PACKET_SIZE

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._read())

    async def send(self, message: bytes) -> None:
        await self._send(_CONTROL, message)

    async def send_data(self, packet: bytes) -> None:
        await self._send(_DATA, packet)

    async def _send(self, channel: int, content: bytes) -> None:
        try:
            self._writer.write(_HEAD.pack(len(content), channel) + content)
            await self._writer.drain()
        except OSError as error:
            # Why the board has hung up may be there to be read already.
            if self._messages.empty():
                raise LostLinkError(f"the connection broke: {error}") from None

    async def receive(self, timeout_s: float) -> bytes | None:
        if timeout_s == 0 and self._messages.empty():
            return None
        try:
            message = await asyncio.wait_for(self._messages.get(), timeout_s or None)
        except asyncio.TimeoutError:
            return None
        if message is None:
            self._messages.put_nowait(None)
            raise LostLinkError("the board closed the connection")
        return message

    async def _read(self) -> None:
        """Put the messages that come into the queue, None at the end."""
        try:
            while True:
                size, channel = _HEAD.unpack(await self._reader.readexactly(_HEAD.size))
                if channel != _CONTROL or not 0 < size <= _MAX_MESSAGE_SIZE:
                    break
                self._messages.put_nowait(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, OSError):
            pass
        self._messages.put_nowait(None)

    def close(self) -> None:
        self._task.cancel()
        self._writer.close()
