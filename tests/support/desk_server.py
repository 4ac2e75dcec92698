"""``mpota serve`` on loopback, and a client of it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from mpota.release.local_ca import LocalCa
from mpota.release.serve import FileServer, Served, serving

DATA = bytes(range(256)) * 1000
LOOPBACK = "127.0.0.1"


@contextlib.contextmanager
def running(
    directory: Path, ca: LocalCa | None = None
) -> Iterator[tuple[FileServer, list[Served]]]:
    """A server in a thread of its own, and what it has served."""
    served: list[Served] = []
    started: list[FileServer] = []
    is_up = threading.Event()
    loop = asyncio.new_event_loop()
    is_over = asyncio.Event()

    async def main() -> None:
        async with serving(directory, LOOPBACK, 0, ca, served.append) as server:
            started.append(server)
            is_up.set()
            await is_over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    assert is_up.wait(10)
    try:
        yield started[0], served
    finally:
        loop.call_soon_threadsafe(is_over.set)
        thread.join()
        loop.close()


def connect(server: FileServer, ca: LocalCa | None = None) -> http.client.HTTPConnection:
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    if ca is None:
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    context = ssl.create_default_context(cadata=ca.der)
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 and browsers do
    return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=10, context=context)


def get(
    connection: http.client.HTTPConnection, path: str, **headers: str
) -> tuple[int, bytes, http.client.HTTPResponse]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("GET", path, headers=names)
    response = connection.getresponse()
    return response.status, response.read(), response
