"""What `ota.listen` and `ota.web` have in common: a TCP port, and frames for a Receiver."""

import asyncio
import socket

from micropython import const

from .push_receiver import MAX_MESSAGE, Receiver

_DATA = const(1)
_MAX_FRAME = const(1024)
_POLL_MS = const(200)  # more often would leave more garbage, which parts the heap
_REST_SIZE = const(256)
_BACKLOG = const(4)
_MAX_TASKS = const(6)  # the sessions, and those that are on their way out


class Server:
    """A TCP server for one Receiver; `Receiver` and the subclasses describe the options."""

    def __init__(self, secret, host, port, reboot, options):
        self.receiver = Receiver(secret, **options)
        self.reboots = reboot
        self._address = host, port
        self._tasks = 0
        self._buf = memoryview(bytearray(_MAX_FRAME))  # of the session whose update it is

    async def serve(self):
        """Listen, as long as the task runs. Raises StateError when the keys are cleared."""
        self.receiver.check_keys()
        server = socket.socket()
        try:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(socket.getaddrinfo(*self._address)[0][-1])
            server.listen(_BACKLOG)
            server.setblocking(False)
            await self._attend(server)
        finally:
            server.close()

    async def _attend(self, server):
        receiver = self.receiver
        try:
            while not receiver.is_shut:
                try:
                    receiver.poll()
                    self._look(server)
                except MemoryError:  # the next time, there may be some
                    pass
                await asyncio.sleep_ms(_POLL_MS)
        finally:
            receiver.close()
        receiver.check_keys()

    def _accept(self, server):
        """Take one client, if there is one; whether there was.

        asyncio.start_server would end for good with the first for whom there is no memory.
        """
        if self._tasks >= _MAX_TASKS:
            return False
        try:
            client, address = server.accept()
        except OSError:
            return False
        try:
            client.setblocking(False)
            stream = asyncio.StreamReader(client)
            asyncio.create_task(self._talk(stream, address[0]))  # noqa: RUF006  the loop holds it
            self._tasks += 1
        except MemoryError:
            client.close()
        return True

    async def _take_frame(self, session, stream, head):
        receiver = self.receiver
        size = head[0] | head[1] << 8
        is_data = head[2] == _DATA and session is receiver.active
        if head[2] > is_data or not 0 < size <= (_MAX_FRAME if is_data else MAX_MESSAGE):
            receiver.message(session, b"")
            return
        body = self._buf[:size] if is_data else memoryview(bytearray(size))
        await read(stream, body)
        if is_data:
            receiver.data(session, body)
        else:
            receiver.message(session, body)


async def read(stream, buf):
    """Fill ``buf``. Raises EOFError at the end."""
    done = 0
    while done < len(buf):
        count = await stream.readinto(buf[done:])
        if count == 0:
            raise EOFError
        done += count or 0


async def drop_rest(stream):
    """Read on until the client hangs up: closing before that would lose what it has not read.

    TCP resets a connection that is closed before all has been read: RFC 2525, 2.17.
    """
    buf = bytearray(_REST_SIZE)
    while await stream.readinto(buf) != 0:
        pass
