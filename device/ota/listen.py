"""Takes updates from the local network: `mpota push tcp://HOST` is at the other end.

    asyncio.create_task(ota.listen.Listener(secret=b"...").serve())

Nothing listens unless the app asks for it so. docs/PROTOCOL.md says what goes over the line.
"""

import asyncio
import socket

from micropython import const

from .errors import StateError
from .receive import MAX_MESSAGE, Receiver, busy, send_error

PORT = const(8266)

_CONTROL = const(0)
_DATA = const(1)
_HEAD_SIZE = const(3)
_MAX_FRAME = const(1024)
_CREDIT = const(16384)  # TCP keeps what the board has not taken yet
_POLL_MS = const(200)
_RESTART_MS = const(1000)
_LINGER_MS = const(1000)
_REST_SIZE = const(256)
_BACKLOG = const(2)


class Listener:
    """Listens on a TCP port.

    ``secret``: what client and board have in common, 16 random bytes or more; without one the
    board must have keys, and takes signed bundles only. ``reboot``: restart into a complete update.
    All else is for `Receiver`: ``accept``, ``progress``, ``version``, ``silence``, ``keep``,
    ``force``, ``verify``.
    """

    def __init__(self, secret=None, *, port=PORT, host="0.0.0.0", reboot=True, **options):
        if not secret:
            from .keys import load

            if not load().trusted:
                raise StateError(
                    "open", "without a secret, and with no keys installed, anyone could update it"
                )
        self.receiver = Receiver(secret or None, **options)
        self._address = host, port
        self._reboot = reboot
        self._buf = memoryview(bytearray(_MAX_FRAME))

    async def serve(self):
        """Listen, as long as the task runs."""
        server = socket.socket()
        try:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(socket.getaddrinfo(*self._address)[0][-1])
            server.listen(_BACKLOG)
            server.setblocking(False)
            while True:
                self.receiver.poll()
                self._accept(server)
                await asyncio.sleep_ms(_POLL_MS)
        finally:
            server.close()
            self.receiver.close()

    def _accept(self, server):
        """Take one client, if there is one.

        asyncio.start_server would end for good with the first for whom there is no memory.
        """
        try:
            client, _ = server.accept()
        except (OSError, MemoryError):
            return
        try:
            client.setblocking(False)
            stream = asyncio.StreamReader(client)
            asyncio.create_task(self._talk(stream, stream))  # noqa: RUF006  the loop holds it
        except MemoryError:
            client.close()

    def name(self):
        """The name that the board answers to on the network.

        ESP32 firmware has an mDNS responder, which knows the host name and no services: set it by
        network.hostname() before the interface connects.
        """
        from network import hostname

        return hostname() + ".local"

    async def _talk(self, reader, writer):
        link = _Link(writer)
        try:
            await self._serve_client(reader, link)
            await asyncio.wait_for_ms(_drop_rest(reader), _LINGER_MS)
        except (OSError, EOFError, MemoryError, asyncio.TimeoutError):
            pass  # it has gone, or cannot even be told why it has to go
        finally:
            if self.receiver.link is link:
                self.receiver.lost()
            writer.close()
            await writer.wait_closed()
        if self._reboot and self.receiver.is_done and self.receiver.wants_restart:
            import machine

            await asyncio.sleep_ms(_RESTART_MS)
            machine.reset()

    async def _serve_client(self, reader, link):
        try:
            if self.receiver.open(link):
                await self._read_frames(reader, link)
            else:
                send_error(link, busy())
            await link.flush()
        except asyncio.CancelledError:
            if not link.is_closed:
                raise

    async def _read_frames(self, reader, link):
        receiver = self.receiver
        head = memoryview(bytearray(_HEAD_SIZE))
        while receiver.link is link:
            try:
                await self._take_frame(reader, head)
                await link.flush()
            except MemoryError as error:
                receiver.fail(error)
                await asyncio.sleep_ms(_POLL_MS)  # for others to give memory back

    async def _take_frame(self, reader, head):
        receiver = self.receiver
        await _read(reader, head)
        size = head[0] | head[1] << 8
        limit = _MAX_FRAME if head[2] == _DATA else MAX_MESSAGE
        if head[2] > _DATA or not 0 < size <= limit:
            receiver.message(b"")
            return
        body = self._buf[:size]
        await _read(reader, body)
        if head[2] == _DATA:
            receiver.data(body)
        else:
            receiver.message(body)


async def _read(reader, buf):
    """Fill ``buf``. Raises EOFError at the end."""
    done = 0
    while done < len(buf):
        count = await reader.readinto(buf[done:])
        if count == 0:
            raise EOFError
        done += count or 0


async def _drop_rest(reader):
    """Read on until the client hangs up: else the close takes back what it has not read yet.

    TCP resets a connection that is closed before all has been read: RFC 2525, 2.17.
    """
    buf = bytearray(_REST_SIZE)
    while await reader.readinto(buf) != 0:
        pass


class _Link:
    """One connection: see Receiver."""

    credit = _CREDIT

    def __init__(self, writer):
        self._writer = writer
        self._has_more = False
        self._task = asyncio.current_task()
        self.is_closed = False

    def send(self, message):
        size = len(message)
        try:
            self._writer.write(bytes((size & 0xFF, size >> 8, _CONTROL)) + message)
        except OSError:  # it has gone: the next read tells
            pass
        self._has_more = True

    async def flush(self):
        if self._has_more:
            self._has_more = False
            await self._writer.drain()

    def close(self):
        """`_talk` does it, if it does not wait for more."""
        self.is_closed = True
        if asyncio.current_task() is not self._task:
            self._task.cancel()
