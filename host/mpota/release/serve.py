"""A development server for boards: a directory over HTTP/1.1 or HTTPS, with ranges.

aiohttp does the protocol (``pip install mpota[serve]``); it is imported here only, and lazily.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from mpota.errors import MpotaError, UsageError
from mpota.formats.bundle import is_bundle
from mpota.formats.channel import CHANNEL_SUFFIX, FRESH_SUFFIX, MAX_LINE_SIZE, Channel
from mpota.formats.image import IMAGE_MAGIC
from mpota.formats.private_key import is_private_key
from mpota.release.local_ca import LocalCa

if TYPE_CHECKING:
    from aiohttp import web

DEFAULT_PORT = 8000
HEAD_SIZE = MAX_LINE_SIZE  # bytes that tell what a file is
# Boards of a fleet that reset at once also connect at once.
_BACKLOG = 1024
_CHUNK_SIZE = 65536
_MAX_CONNECTIONS = 512
_HEAD_TIMEOUT_S = 10.0  # for a request to be said to its end, and for the TLS handshake
_IDLE_TIMEOUT_S = 30.0  # between two requests
_STALL_TIMEOUT_S = 120.0  # of a board that takes nothing: it may be erasing its flash
_SHUTDOWN_S = 2.0
_MAX_KEY_FILE_SIZE = 8 << 20  # bytes in which a private key is looked for
_HEAD_END = re.compile(rb"\n\r?\n")
_DENIED = "there is no such file\n"
# An address that need not exist (RFC 5737): only the route to it is looked up.
_ANYWHERE = ("192.0.2.1", 9)


@dataclass(frozen=True)
class Served:
    """One answer: ``status``, and the bytes of the file that were asked for."""

    client: str
    method: str
    path: str
    status: int
    range: str | None
    note: str = ""


@dataclass(frozen=True)
class FileServer:
    """A server that runs. ``url`` ends in a slash."""

    url: str
    ca: bytes | None  # DER of the root that signed its certificate, None for plain HTTP

    def board_line(self, path: str, head: bytes) -> str | None:
        """What to type on a board to install the file at ``path``; None if it is no update.

        ``head``: the first bytes of the file, `HEAD_SIZE` of them.
        """
        if path.endswith(CHANNEL_SUFFIX):
            return self._channel_line(path, head)
        if path.endswith(FRESH_SUFFIX):
            return None
        is_release = is_bundle(head) or head[:1] == b"{"
        if not is_release and head[:1] != bytes([IMAGE_MAGIC]):
            return None
        install = "ota.release.install" if is_release else "ota.update.from_file"
        place = f"{self.url}{quote(os.fsencode(path))}"
        return f"import ota; {install}('{place}'{self._certificate})"

    def _channel_line(self, path: str, head: bytes) -> str | None:
        """What has a board follow a channel, whose whole line is in ``head``."""
        try:
            channel = Channel.from_line(head.partition(b"\n")[0] + b"\n")
        except MpotaError:
            return None
        folder = self.url + quote(os.fsencode(path.rpartition("/")[0]))
        given = f"'{folder}', name='{channel.name}', channel='{channel.channel}'"
        made = f"ota.channel.Channel({given}{self._certificate})"
        return f"import ota.channel; {made}.update(by_hand=True)"

    @property
    def _certificate(self) -> str:
        return f", cadata=bytes.fromhex('{self.ca.hex()}')" if self.ca else ""


@asynccontextmanager
async def serving(
    directory: Path,
    host: str,
    port: int,
    ca: LocalCa | None = None,
    on_served: Callable[[Served], None] | None = None,
) -> AsyncIterator[FileServer]:
    """Serve ``directory`` while the block runs; with ``ca``, over TLS by a certificate of it.

    Port 0 takes any free one. Raises UsageError if it cannot listen there.
    """
    try:
        from aiohttp import web
    except ImportError:
        raise UsageError("mpota serve needs aiohttp", "pip install aiohttp") from None
    if not directory.is_dir():
        raise UsageError(f"'{directory}' is not a directory")
    address = own_address() if host in ("0.0.0.0", "::", "") else host
    context = None if ca is None else ca.server_context((address, socket.gethostname()))
    runner = web.AppRunner(
        _application(directory.resolve(), on_served),
        access_log=None,
        logger=_silent_log(),
        keepalive_timeout=_IDLE_TIMEOUT_S,
        shutdown_timeout=_SHUTDOWN_S,
    )
    await runner.setup()
    assert runner.server is not None
    door = _Door(runner.server)
    try:
        server = await asyncio.get_running_loop().create_server(
            door.admit,
            host,
            port,
            ssl=context,
            backlog=_BACKLOG,
            ssl_handshake_timeout=None if context is None else _HEAD_TIMEOUT_S,
        )
    except (OSError, ssl.SSLError) as error:
        await runner.cleanup()
        raise UsageError(f"cannot serve at {host} port {port}: {error.strerror}") from None
    try:
        scheme = "http" if context is None else "https"
        name = f"[{address}]" if ":" in address else address
        found_port = server.sockets[0].getsockname()[1]
        yield FileServer(f"{scheme}://{name}:{found_port}/", ca.der if ca else None)
    finally:
        server.close()
        await runner.cleanup()


def own_address() -> str:
    """The address by which others in the network reach this machine, as far as it can be told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ANYWHERE)  # sends nothing
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def serve_forever(
    directory: Path,
    host: str,
    port: int,
    ca: LocalCa | None,
    on_start: Callable[[FileServer], None],
    on_served: Callable[[Served], None],
) -> None:
    """Serve until interrupted."""

    async def main() -> None:
        async with serving(directory, host, port, ca, on_served) as server:
            on_start(server)
            await asyncio.Event().wait()

    asyncio.run(main())


def why_hidden(path: Path, directory: Path) -> str | None:
    """Why a file is not for others, None if it is.

    ``path`` is resolved, and in ``directory``. Raises OSError if it cannot be read.
    """
    if any(part.startswith(".") for part in path.relative_to(directory).parts):
        return "a hidden file"
    status = path.stat()
    if _holds_key(path, status.st_mtime_ns, status.st_size):
        return "it holds a private key"
    return None


@functools.lru_cache(maxsize=4096)
def _holds_key(path: Path, mtime_ns: int, size: int) -> bool:
    with path.open("rb") as file:
        return is_private_key(file.read(_MAX_KEY_FILE_SIZE))


class _Door:
    """Admits so many connections, and closes those that send no whole request in time."""

    def __init__(self, serve: Callable[[], asyncio.Protocol]) -> None:
        self._serve = serve
        self.inside: set[_Guard] = set()
        self.waiting: dict[_Guard, None] = {}  # those without a whole request, the oldest first

    def admit(self) -> asyncio.Protocol:
        return _Guard(self, self._serve())

    def enter(self, guard: _Guard) -> bool:
        """Whether there is room; the one that has been silent longest makes way."""
        if len(self.inside) >= _MAX_CONNECTIONS:
            if not self.waiting:
                return False
            next(iter(self.waiting)).abort()
        self.inside.add(guard)
        return True


class _Guard(asyncio.Protocol):
    """aiohttp's protocol with a time limit for the head of a request, which it lacks."""

    def __init__(self, door: _Door, inner: asyncio.Protocol) -> None:
        self._door = door
        self._inner = inner
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not self._door.enter(self):
            transport.abort()
            return
        _limit_stalls(transport.get_extra_info("socket"))
        self._inner.connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        if self not in self._door.inside:
            return
        seen = self._tail + data
        ends = [match.end() for match in _HEAD_END.finditer(seen)]
        rest = seen[ends[-1] :] if ends else seen
        if ends:
            self._stop_waiting()
        if rest:
            self._wait()
        self._tail = rest[-2:]
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self in self._door.inside else None

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_waiting()
        if self in self._door.inside:
            self._door.inside.discard(self)
            self._inner.connection_lost(error)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def abort(self) -> None:
        self._stop_waiting()
        if self._transport is not None:
            self._transport.abort()

    def _wait(self) -> None:
        """Start the clock for the rest of a request, or for the first one."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_HEAD_TIMEOUT_S, self.abort)
            self._door.waiting[self] = None

    def _stop_waiting(self) -> None:
        self._door.waiting.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _limit_stalls(connection: socket.socket | None) -> None:
    """Have the kernel end a connection whose other end takes nothing for long."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # not everywhere
    if connection is not None and option is not None:
        connection.setsockopt(socket.IPPROTO_TCP, option, int(_STALL_TIMEOUT_S * 1000))


def _silent_log() -> logging.Logger:
    """A log for aiohttp, which would print a traceback for each senseless request."""
    log = logging.Logger("mpota.release.serve")
    log.addHandler(logging.NullHandler())
    return log


def _find(directory: Path, asked: str) -> Path | None:
    """The file of ``directory`` that a path in a URL means; None if there is none for others.

    Raises ValueError for what cannot be a path.
    """
    if "\0" in asked:
        raise ValueError("NUL")
    parts = asked.split("/")
    if any(part in ("", ".", "..") or part.startswith(".") for part in parts):
        return None
    if os.name == "nt" and re.search(r'[\\:*?"<>|]', asked):
        return None
    try:
        path = (directory / asked).resolve()
        if not path.is_relative_to(directory) or not path.is_file() or not os.access(path, os.R_OK):
            return None
    except (OSError, RuntimeError, ValueError):  # too long, links in a circle, no text
        return None
    return path


class _HiddenError(Exception):
    """A file that is there and is not for others; ``str()`` says why."""


def _application(directory: Path, on_served: Callable[[Served], None] | None) -> web.Application:
    from aiohttp import web

    def tell(request: web.Request, status: int, note: str = "") -> None:
        if on_served is not None:
            asked = request.headers.get("Range")
            path = request.path
            on_served(Served(request.remote or "", request.method, path, status, asked, note))

    @web.middleware
    async def watch(
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        note = ""
        try:
            response = await handler(request)
        except web.HTTPException as error:
            tell(request, error.status)
            raise
        except (OSError, _HiddenError) as error:  # OSError: gone, or changed, just now
            response = web.Response(status=404, text=_DENIED)
            note = str(error) if isinstance(error, _HiddenError) else ""
        tell(request, response.status, note)
        return response

    async def send(request: web.Request) -> web.StreamResponse:
        try:
            path = _find(directory, request.match_info["path"] or "index.html")
        except ValueError:
            return web.Response(status=400, text="this is no path\n")
        if path is None:
            return web.Response(status=404, text=_DENIED)
        reason = await asyncio.to_thread(why_hidden, path, directory)
        if reason:
            raise _HiddenError(reason)
        stat = path.stat()
        tag = f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'  # as FileResponse makes it
        if request.headers.get("If-Range", tag) != tag:
            # aiohttp knows dates only: a range that was asked for may be part of another file.
            return web.Response(body=path.open("rb"), headers={"ETag": tag})
        return web.FileResponse(path, chunk_size=_CHUNK_SIZE)

    application = web.Application(middlewares=[watch])
    application.router.add_get("/{path:.*}", send)
    return application
