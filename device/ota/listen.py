"""Takes updates from the local network: `mpota push tcp://HOST` is at the other end.

    asyncio.create_task(ota.listen.Listener(secret=b"...").serve())

Nothing listens unless the app asks for it so. docs/PROTOCOL.md says what goes over the line.
"""

import asyncio
import socket

from esp32 import Partition
from micropython import const

from . import __version__
from .push_receiver import busy, send_error
from .tcp import Server, drop_rest, read

PORT = const(8266)

_CONTROL = const(0)
_HEAD_SIZE = const(3)
_MAX_FRAME = const(1024)
_CREDIT = const(16384)  # TCP keeps what the board has not taken yet
_POLL_MS = const(200)  # one client in this time, whoever they are
_RESTART_MS = const(100)  # for the end of a connection to go out: its client has gone by then
_LINGER_MS = const(1000)

_QUESTION_SIZE = const(256)  # no answer is longer, whoever's address the question bears
_TEXT_SIZE = const(238)
_ON_TRIAL = const(1)
_UPDATING = const(2)
_WAITING = const(3)


class Listener(Server):
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
        super().__init__(secret, host, port, reboot, options)
        self._visible = visible
        self._questions = None

    async def serve(self):
        """Listen, as long as the task runs. Raises StateError when the keys are cleared."""
        self.receiver.check_keys()
        questions = None
        try:
            if self._visible:
                try:
                    questions = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    questions.bind(socket.getaddrinfo(*self._address)[0][-1])
                    questions.setblocking(False)
                    self._questions = questions
                except OSError:  # it is somebody else's: updates come all the same
                    pass
            await super().serve()
        finally:
            if questions:
                questions.close()

    def _look(self, server):
        self._accept(server)
        if self._questions:
            _answer(self._questions, self.receiver)

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
            await asyncio.wait_for_ms(drop_rest(stream), _LINGER_MS)
        except (OSError, EOFError, MemoryError, asyncio.TimeoutError):
            pass  # it has gone, or cannot even be told why it has to go
        finally:
            if session:
                receiver.lost(session)
            self._tasks -= 1
            stream.close()
            await stream.wait_closed()
        if session and session.begun and receiver.wants_restart and self.reboots:
            import machine

            await asyncio.sleep_ms(_RESTART_MS)
            machine.reset()

    async def _read_frames(self, session, link):
        receiver = self.receiver
        head = memoryview(bytearray(_HEAD_SIZE))
        while not link.is_closed:
            try:
                await read(link.stream, head)
                await self._take_frame(session, link.stream, head)
                while receiver.work():
                    await asyncio.sleep_ms(0)
                await link.flush()
            except MemoryError as error:
                receiver.fail(session, error)
                await asyncio.sleep_ms(_POLL_MS)  # for others to give memory back


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
    """Answer one question; another datagram gets no answer."""
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
    except OSError:  # no question is there, or its sender cannot be reached
        pass
