"""Takes updates from the local network: `mpota push tcp://HOST` is at the other end.

    asyncio.create_task(ota.listen.Listener(secret=b"...").serve())

Nothing listens unless the app asks for it so. docs/PROTOCOL.md says what goes over the line.
"""

import asyncio
import socket

from esp32 import Partition
from micropython import const

from . import __version__
from .push_receiver import MAX_MESSAGE, Receiver, busy, send_error

PORT = const(8266)

_CONTROL = const(0)
_DATA = const(1)
_HEAD_SIZE = const(3)
_MAX_FRAME = const(1024)
_CREDIT = const(16384)  # TCP keeps what the board has not taken yet
_POLL_MS = const(200)  # one client in this time, whoever they are
_RESTART_MS = const(300)  # for the end of a connection to go out: its client has gone by then
_LINGER_MS = const(1000)
_REST_SIZE = const(256)
_BACKLOG = const(4)
_MAX_TASKS = const(6)  # the sessions, and those that are on their way out

_QUESTION_SIZE = const(256)  # no answer is longer, whoever's address the question bears
_TEXT_SIZE = const(238)
_ON_TRIAL = const(1)
_UPDATING = const(2)
_WAITING = const(3)


class Listener:
    """Listens on a TCP port.

    ``secret``: what client and board have in common, 16 random bytes or more; without one the
    board must have keys, and takes what they have signed; or ``open=True``: anyone may update it.
    ``reboot``: restart into a complete update. ``visible``: answer `mpota scan`, which asks for
    name, release, state and what an update needs. All else is for `Receiver`: ``accept``,
    ``progress``, ``version``, ``silence``, ``keep``, ``force``, ``verify``.
    """

    def __init__(
        self, secret=None, *, port=PORT, host="0.0.0.0", reboot=True, visible=True, **options
    ):
        self.receiver = Receiver(secret, **options)
        self._address = host, port
        self._reboot = reboot
        self._visible = visible
        self._tasks = 0
        self._buf = memoryview(bytearray(_MAX_FRAME))  # of the session whose update it is

    async def serve(self):
        """Listen, as long as the task runs. Raises StateError when the keys are cleared."""
        receiver = self.receiver
        receiver.check_keys()
        server = socket.socket()
        questions = None
        try:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            address = socket.getaddrinfo(*self._address)[0][-1]
            server.bind(address)
            server.listen(_BACKLOG)
            server.setblocking(False)
            if self._visible:
                try:
                    questions = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    questions.bind(address)
                    questions.setblocking(False)
                except OSError:  # it is somebody else's: updates come all the same
                    questions = None
            while not receiver.is_shut:
                try:
                    receiver.poll()
                    self._accept(server)
                    if questions:
                        _answer(questions, receiver)
                except MemoryError:  # the next time, there may be some
                    pass
                await asyncio.sleep_ms(_POLL_MS)
        finally:
            server.close()
            if questions:
                questions.close()
            receiver.close()
        receiver.check_keys()

    def _accept(self, server):
        """Take one client, if there is one.

        asyncio.start_server would end for good with the first for whom there is no memory.
        """
        if self._tasks >= _MAX_TASKS:
            return
        try:
            client, address = server.accept()
        except OSError:
            return
        try:
            client.setblocking(False)
            stream = asyncio.StreamReader(client)
            asyncio.create_task(self._talk(stream, address[0]))  # noqa: RUF006  the loop holds it
            self._tasks += 1
        except MemoryError:
            client.close()

    def name(self):
        """The name that the board answers to on the network.

        ESP32 firmware has an mDNS responder, which knows the host name and no services: set it by
        network.hostname() before the interface connects.
        """
        from network import hostname

        return hostname() + ".local"

    async def _talk(self, stream, peer):
        receiver = self.receiver
        session = None
        try:
            link = _Link(stream, peer)
            session = receiver.open(link)
            try:
                if session:
                    await self._read_frames(session, link)
                else:
                    send_error(link, busy())
                await link.flush()
            except asyncio.CancelledError:
                if not link.is_closed:
                    raise
            await asyncio.wait_for_ms(_drop_rest(stream), _LINGER_MS)
        except (OSError, EOFError, MemoryError, asyncio.TimeoutError):
            pass  # it has gone, or cannot even be told why it has to go
        finally:
            if session:
                receiver.lost(session)
            self._tasks -= 1
            stream.close()
            await stream.wait_closed()
        if session and session.begun and receiver.wants_restart and self._reboot:
            import machine

            await asyncio.sleep_ms(_RESTART_MS)
            machine.reset()

    async def _read_frames(self, session, link):
        receiver = self.receiver
        head = memoryview(bytearray(_HEAD_SIZE))
        while not link.is_closed:
            try:
                await _read(link.stream, head)
                await self._take_frame(session, link.stream, head)
                while receiver.work():
                    await asyncio.sleep_ms(0)
                await link.flush()
            except MemoryError as error:
                receiver.fail(session, error)
                await asyncio.sleep_ms(_POLL_MS)  # for others to give memory back

    async def _take_frame(self, session, stream, head):
        receiver = self.receiver
        size = head[0] | head[1] << 8
        is_data = head[2] == _DATA and session is receiver.active
        if head[2] > is_data or not 0 < size <= (_MAX_FRAME if is_data else MAX_MESSAGE):
            receiver.message(session, b"")
            return
        body = self._buf[:size] if is_data else memoryview(bytearray(size))
        await _read(stream, body)
        if is_data:
            receiver.data(session, body)
        else:
            receiver.message(session, body)


async def _read(stream, buf):
    """Fill ``buf``. Raises EOFError at the end."""
    done = 0
    while done < len(buf):
        count = await stream.readinto(buf[done:])
        if count == 0:
            raise EOFError
        done += count or 0


async def _drop_rest(stream):
    """Read on until the client hangs up: else the close takes back what it has not read yet.

    TCP resets a connection that is closed before all has been read: RFC 2525, 2.17.
    """
    buf = bytearray(_REST_SIZE)
    while await stream.readinto(buf) != 0:
        pass


class _Link:
    """One connection: see push_receiver.py."""

    credit = _CREDIT
    packet_size = _MAX_FRAME
    is_closed = False

    def __init__(self, stream, peer):
        self.stream = stream
        self.peer = peer
        self._has_more = False
        self._task = asyncio.current_task()

    def send(self, message):
        size = len(message)
        try:
            self.stream.write(bytes((size & 0xFF, size >> 8, _CONTROL)) + message)
        except OSError:  # it has gone: the next read tells
            pass
        self._has_more = True

    async def flush(self):
        if self._has_more:
            self._has_more = False
            await self.stream.drain()

    def close(self):
        """`_talk` does it, if it does not wait for more."""
        self.is_closed = True
        if asyncio.current_task() is not self._task:
            self._task.cancel()


# --- who is there: docs/PROTOCOL.md


def _answer(questions, receiver):
    """Answer one question. What is none gets no answer."""
    try:
        question, address = questions.recvfrom(_QUESTION_SIZE + 1)
        if len(question) != _QUESTION_SIZE or question[:8] != b"mpota ?\1":
            return
        found = {}
        if receiver.active:  # it has the memory
            state = _UPDATING
        elif receiver.is_done and receiver.needs_restart:
            state = _WAITING
        else:
            from . import otadata

            running = Partition(Partition.RUNNING)
            state = _ON_TRIAL * (otadata.state(running) == otadata.PENDING_VERIFY)
            if otadata.has_home():
                from . import boot

                state = state or boot.is_on_trial()
                found = boot.running()
        release = " ".join([found[key] for key in ("name", "version") if key in found])
        from network import hostname

        texts = "\n".join((hostname(), release, __version__, "")).encode() + receiver.runs
        head = bytes((receiver.flags, state))
        questions.sendto(b"mpota !\1" + question[8:16] + head + texts[:_TEXT_SIZE], address)
    except OSError:  # there is none, or nobody to be reached
        pass
