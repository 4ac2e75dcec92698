"""An update page on the board, for any browser on the network.

    ota.web.Page(secret="...").run()

or, in an asyncio program, ``await page.serve()``. Nothing listens unless the app asks for it so.
What the page and the board say to each other is docs/PROTOCOL.md, in the bodies of HTTP requests;
the page itself is a file of this package, web.gz, which device/build_mpy.py makes of device/web.
"""

import asyncio
from time import ticks_diff, ticks_ms

from micropython import const

from .base import unload
from .push_receiver import busy, send_error
from .tcp import Server, drop_rest, read

PORT = const(80)

_CREDIT = const(16384)  # of one request
_PACKET = const(1024)
_MAX_BODY = const(24576)  # credit, with the heads of frames
_HELLO_FRAME = const(21)
_NAME_SIZE = const(32)
_MAX_OUT = const(512)  # bytes of messages that wait for a request
_MAX_TASKS = const(6)  # connections
_MAX_HEAD = const(8192)  # bytes of a request's head: cookies of other apps at this address
_PIECE = const(256)  # of a line of it, of which no more is kept
_PATIENCE_MS = const(10000)  # for a head; for an answer to be taken
_LINGER_MS = const(1000)
_WAIT_MS = const(10)
# Before the restart, for the last answer to arrive: it has where its connection has ended.
_RESTART_MS = const(1500)
_STEP_MS = const(100)

_WANTED = (b"host", b"origin", b"content-length", b"transfer-encoding")
_TEXT = {"Content-Type": "text/plain"}
_FRAMES = {"Content-Type": "application/octet-stream"}


class Page(Server):
    """A page that shows what runs, and takes updates.

    ``secret``: what whoever updates the board has to type in, 16 characters or more; without one
    the board must have keys, and takes what they have signed; or ``open=True``: anyone may update
    it. ``hosts``: names that the board is reached by, besides its addresses and
    network.hostname(), with and without ".local": requests to others get nothing. ``buttons``: the
    page can confirm what runs, and go back. ``download``: a dict of options for downloads
    (``cafile``, ...), where the page is given a URL. ``reboot``: restart into a complete update.
    All else is for `Receiver`. Raises OTAError ("part") where the page itself is not installed.
    """

    fetched = None  # of a download, what web_more.py tells of it

    def __init__(
        self,
        secret=None,
        *,
        port=PORT,
        host="0.0.0.0",
        reboot=True,
        hosts=(),
        buttons=False,
        download=None,
        **options,
    ):
        super().__init__(secret, host, port, reboot, options)
        # A signature says nothing of who brings it.
        self.takes_orders = bool(secret or options.get("open"))
        self.hosts = hosts
        self.buttons = buttons
        self.download = download or {}
        self.seconds = 0  # since the board has started
        self._ticks = 0
        self._lines = []  # a task for each connection, the oldest first
        self.ended = None  # the link of the last session that has ended
        self._restarts = False
        from .web_more import prepare

        prepare(self)

    def run(self):
        """`serve`, for a program without asyncio."""
        asyncio.run(self.serve())

    async def attend(self):
        """As `serve`, for an app with a web server of its own: nothing listens, see `answer`."""
        self.receiver.check_keys()
        await self._attend(None)

    async def answer(self, method, path, stream=None, length=0, host="", origin="", peer=None):
        """What to answer to a request: (status, headers, body).

        ``path``: behind where the page is mounted: "/" is the page. ``stream`` (with ``await
        stream.readinto(buf)``, or with ``read(size)`` alone) has the ``length`` bytes of the
        request's body. ``host`` and ``origin`` are those headers, ``peer`` is who asks, for a dict.
        ``body`` is bytes, or of the page itself a file that is open. Where the status is not 200,
        the request's body was not read, and the connection has to be closed.
        """
        name = host.partition(":")[0].lower()
        if not (host[:1] == "[" or self._is_own(name)):
            return 403, _TEXT, b"this board has another name: hosts="
        if method == "GET" and not length:
            from .web_more import get

            return get(self, path)
        if method == "POST" and length:
            if origin != "http://" + host:
                return 403, _TEXT, b"from another site"
            name = path[3:]
            if len(name) == _NAME_SIZE and length <= _MAX_BODY:
                if not hasattr(stream, "readinto"):
                    from .web_more import Readable

                    stream = Readable(stream)
                if path[:3] == "/s/":
                    return await self._exchange(name, peer, stream, length)
                if path[:3] == "/o/":
                    from .web_more import order

                    return await self._exchange(name, peer, stream, length, order)
        return 404, _TEXT, b"there is nothing here"

    def _is_own(self, name):
        if name and not name.strip("0123456789."):  # no name that can be had is like this
            return True
        from network import hostname

        own = hostname().lower()
        return name in (own, own + ".local") or name in self.hosts

    # --- messages and packets

    async def _exchange(self, name, peer, stream, left, take=None):
        """Frames in, frames out. ``take``: who takes the messages, if not the receiver."""
        receiver = self.receiver
        session = None
        for one in receiver._sessions:
            if one.link.name == name and one.link.peer == peer:
                session = one
        if not session:
            link = self.ended
            if link and link.name == name and link.peer == peer:
                return 410, _FRAMES, link.out  # the client does not know yet that it has ended
            if left != _HELLO_FRAME or take:
                return 410, _TEXT, b"the board has forgotten this session"
            unload("web_more")
            link = _Link(self, name, peer)
            session = receiver.open(link)
            if not session:
                send_error(link, busy())
                return 410, _FRAMES, link.out
        link = session.link
        if link.is_read:  # by a connection that its client has given up
            link.task.cancel()
        task = link.task = asyncio.current_task()
        link.is_read = True
        link.out = b""
        try:
            try:
                await self._read_frames(session, stream, left, take)
            except MemoryError as error:
                receiver.fail(session, error)
            while not (link.out or link.is_closed):
                await asyncio.sleep_ms(_WAIT_MS)
        except asyncio.CancelledError:
            if not link.is_closed:
                raise
        finally:
            if link.task is task:
                link.is_read = False
        if session.begun and receiver.wants_restart and self.reboots:
            self.restart(task)
        return 410 if link.is_closed else 200, _FRAMES, link.out

    async def _read_frames(self, session, stream, left, take):
        receiver = self.receiver
        head = memoryview(bytearray(3))
        while left and not session.link.is_closed:
            await read(stream, head)
            size = head[0] | head[1] << 8
            left -= 3 + size
            if left < 0:
                receiver.message(session, b"")
            elif take:
                body = memoryview(bytearray(size))
                await read(stream, body)
                take(self, session, body)
                return
            else:
                await self._take_frame(session, stream, head)
            while receiver.work():
                await asyncio.sleep_ms(0)

    def restart(self, task=None):
        """Restart the board, once what was said has arrived: the connection of ``task`` ends."""
        if not self._restarts:
            asyncio.create_task(_restart(task))  # noqa: RUF006  the loop holds it
            self._restarts = True

    # --- connections

    def _look(self, server):
        passed = ticks_diff(ticks_ms(), self._ticks) // 1000  # ticks_ms() wraps around
        self.seconds += passed
        self._ticks += passed * 1000
        if not server:
            return
        if self._tasks >= _MAX_TASKS:  # the oldest makes room, whatever it is there for
            active = self.receiver.active
            for task in self._lines:
                if not active or active.link.task is not task:
                    self._lines.remove(task)
                    task.cancel()
                    break
        while self._accept(server):  # all that wait, as long as there is room
            pass

    async def _talk(self, stream, peer):
        task = asyncio.current_task()
        self._lines.append(task)
        try:
            while await self._serve_one(stream, peer):
                pass
            await asyncio.wait_for_ms(drop_rest(stream), _LINGER_MS)
        except (OSError, EOFError, MemoryError, asyncio.TimeoutError):
            pass  # it has gone, or says nothing that could be answered
        finally:
            if task in self._lines:
                self._lines.remove(task)
            self._tasks -= 1
            stream.close()
            await stream.wait_closed()

    async def _serve_one(self, stream, peer):
        """One request and its answer; whether another one may come on this connection."""
        line, found = await asyncio.wait_for_ms(_read_head(stream), _PATIENCE_MS)
        status = 400
        headers, body = _TEXT, b""
        try:
            method, path, version = [str(part, "utf-8") for part in line]
            length = int(found.get(b"content-length", b"0"))
            host, origin = (str(found.get(key, b""), "utf-8") for key in (b"host", b"origin"))
            if length < 0 or b"transfer-encoding" in found or version[:7] != "HTTP/1.":
                raise ValueError
        except ValueError:  # a UnicodeError is one
            pass
        else:
            status, headers, body = await self.answer(
                method, path.partition("?")[0], stream, length, host, origin, peer
            )
        stays = status == 200 and not self._restarts
        await asyncio.wait_for_ms(_send(stream, status, headers, body, stays), _PATIENCE_MS)
        return stays


class _Link:
    """What push_receiver.py knows of a client, which may come by one connection after the other."""

    credit = _CREDIT
    packet_size = _PACKET
    is_closed = False
    is_read = False  # a request is under way
    task = None  # of the last connection
    out = b""

    def __init__(self, page, name, peer):
        self.page = page
        self.name = name
        self.peer = peer

    def send(self, message):
        if len(self.out) > _MAX_OUT:
            self.out = b""
        size = len(message)
        self.out += bytes((size & 0xFF, size >> 8, 0)) + message

    def close(self):
        self.is_closed = True
        self.page.ended = self
        if self.is_read and asyncio.current_task() is not self.task:
            self.task.cancel()


async def _restart(task):
    import machine

    for _ in range(_RESTART_MS // _STEP_MS):
        await asyncio.sleep_ms(_STEP_MS)
        if not task or task.done():
            break
    machine.reset()


async def _read_head(stream):
    """The three parts of a request's first line, and the headers that matter.

    Raises EOFError for what is none.
    """
    left = _MAX_HEAD
    first = None
    found = {}
    line = b""
    while True:
        await stream.read(0)  # until there is something
        part = stream.s.readline(_PIECE)
        if part is None:
            continue
        left -= len(part)
        if not part or left < 0:
            raise EOFError
        if len(line) < _PIECE:
            line += part
        if part[-1] != 10:
            continue
        line = line.strip()
        if first is None:
            first = line.split(b" ")
        elif not line:
            return first, found
        else:
            name, _, value = line.partition(b":")
            name = name.lower()
            if name in found:
                raise EOFError
            if name in _WANTED:
                found[name] = value.strip()
        line = b""


async def _send(stream, status, headers, body, stays):
    is_file = not isinstance(body, bytes)
    lines = ["HTTP/1.1 %d -" % status]
    lines += ["%s: %s" % item for item in headers.items()]
    lines.append("Cache-Control: no-store")
    lines.append("Content-Length: %d" % (body.seek(0, 2) if is_file else len(body)))
    lines.append("\r\n" if stays else "Connection: close\r\n\r\n")
    head = "\r\n".join(lines).encode()
    # In one write: a second packet would wait until the first one is acknowledged (Nagle).
    stream.write(head if is_file else head + body)
    if is_file:
        from .web_more import send_file

        await send_file(stream, body)
    await stream.drain()
