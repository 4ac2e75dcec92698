"""A development server for boards: a directory over HTTP/1.1 or HTTPS, with ranges.

aiohttp does the protocol (``pip install mpota[serve]``); it is imported here only, and lazily.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from mpota.errors import UsageError
from mpota.formats.bundle import is_bundle
from mpota.formats.image import IMAGE_MAGIC
from mpota.local_ca import LocalCa

if TYPE_CHECKING:
    from aiohttp import web

DEFAULT_PORT = 8000
# Boards of a fleet that reset at once also connect at once.
_BACKLOG = 1024
_CHUNK_SIZE = 65536
# A place in the network that needs not exist: asked only for the way there (RFC 5737).
_ANYWHERE = ("192.0.2.1", 9)


@dataclass(frozen=True)
class Served:
    """One answer: ``status``, and the bytes of the file that were asked for."""

    client: str
    method: str
    path: str
    status: int
    range: str | None


@dataclass(frozen=True)
class Server:
    """A server that runs. ``url`` ends in a slash."""

    url: str
    ca: bytes | None  # DER of the root that signed its certificate, None for plain HTTP

    def board_line(self, path: str, head: bytes) -> str | None:
        """What to type on a board to install the file at ``path``; None if it is no update.

        ``head``: the first bytes of the file.
        """
        is_release = is_bundle(head) or head[:1] == b"{"
        if not is_release and head[:1] != bytes([IMAGE_MAGIC]):
            return None
        install = "ota.release.install" if is_release else "ota.update.from_file"
        certificate = f", cadata=bytes.fromhex('{self.ca.hex()}')" if self.ca else ""
        return f"import ota; {install}('{self.url}{quote(path)}'{certificate})"


@asynccontextmanager
async def serving(
    directory: Path,
    host: str,
    port: int,
    ca: LocalCa | None = None,
    on_served: Callable[[Served], None] | None = None,
) -> AsyncIterator[Server]:
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
    runner = web.AppRunner(_application(directory.resolve(), on_served), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, ssl_context=context, backlog=_BACKLOG)
        await site.start()
        scheme = "http" if context is None else "https"
        name = f"[{address}]" if ":" in address else address
        yield Server(f"{scheme}://{name}:{runner.addresses[0][1]}/", ca.der if ca else None)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"cannot serve at {host} port {port}: {error.strerror}") from None
    finally:
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
    on_start: Callable[[Server], None],
    on_served: Callable[[Served], None],
) -> None:
    """Serve until interrupted."""

    async def main() -> None:
        async with serving(directory, host, port, ca, on_served) as server:
            on_start(server)
            await asyncio.Event().wait()

    asyncio.run(main())


def _application(directory: Path, on_served: Callable[[Served], None] | None) -> web.Application:
    from aiohttp import web

    @web.middleware
    async def tell(
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        response = await handler(request)
        if on_served is not None:
            asked = request.headers.get("Range")
            on_served(
                Served(request.remote or "", request.method, request.path, response.status, asked)
            )
        return response

    async def send(request: web.Request) -> web.StreamResponse:
        path = (directory / request.match_info["path"]).resolve()
        if not path.is_relative_to(directory) or not path.is_file():
            return web.Response(status=404, text="there is no such file\n")
        stat = path.stat()
        tag = f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'  # as FileResponse makes it
        if request.headers.get("If-Range", tag) != tag:
            # aiohttp knows dates only: a range that was asked for may be part of another file.
            return web.Response(body=path.open("rb"), headers={"ETag": tag})
        return web.FileResponse(path, chunk_size=_CHUNK_SIZE)

    application = web.Application(middlewares=[tell])
    application.router.add_get("/{path:.*}", send)
    return application
