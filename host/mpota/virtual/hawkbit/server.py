"""The stand-in on a socket, in this program: ``with running() as server``."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mpota.errors import UsageError
from mpota.virtual.hawkbit.faults import Exchange, Faults
from mpota.virtual.hawkbit.state import State

if TYPE_CHECKING:
    from aiohttp import web

LOOPBACK = "127.0.0.1"
_MAX_BODY_SIZE = 1 << 18  # of what a device says
_BACKLOG = 1024  # boards that reset at once also connect at once
_SHUTDOWN_S = 2.0


@dataclass
class Server:
    """A stand-in that runs. ``url``: without a slash at its end. ``exchanges``: see `asked`."""

    url: str
    state: State
    faults: Faults = field(default_factory=Faults)
    exchanges: list[Exchange] = field(default_factory=list)

    def asked(self) -> list[str]:
        """Method, path and status of all requests of devices since the last call."""
        found = [str(one) for one in self.exchanges]
        self.exchanges.clear()
        return found


@asynccontextmanager
async def serving(
    state: State,
    host: str = LOOPBACK,
    port: int = 0,
    context: ssl.SSLContext | None = None,
    add: Callable[[web.Application], None] | None = None,
    on_exchange: Callable[[Exchange], None] | None = None,
) -> AsyncIterator[Server]:
    """Serve ``state`` while the block runs; port 0 takes any free one.

    ``add`` puts more into the application, as an API for people. ``on_exchange`` is told of what
    is asked, instead of its being kept. Raises UsageError if it cannot listen there.
    """
    try:
        from aiohttp import web

        from mpota.virtual.hawkbit.ddi import add_routes
    except ImportError:
        raise UsageError("a stand-in for hawkBit needs aiohttp", "pip install aiohttp") from None
    server = Server("", state)
    application = web.Application(client_max_size=_MAX_BODY_SIZE)
    add_routes(application, state, server.faults, on_exchange or server.exchanges.append)
    if add is not None:
        add(application)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, ssl_context=context, backlog=_BACKLOG)
        try:
            await site.start()
        except OSError as error:
            raise UsageError(f"cannot serve at {host} port {port}: {error.strerror}") from None
        found = runner.addresses[0][1]
        server.url = f"{'https' if context else 'http'}://{host}:{found}"
        yield server
    finally:
        await runner.cleanup()


@contextmanager
def running(
    state: State | None = None,
    host: str = LOOPBACK,
    port: int = 0,
    context: ssl.SSLContext | None = None,
    add: Callable[[web.Application], None] | None = None,
    on_exchange: Callable[[Exchange], None] | None = None,
) -> Iterator[Server]:
    """As `serving`, in a thread of its own: for programs that are not asynchronous."""
    loop = asyncio.new_event_loop()
    is_up = threading.Event()
    is_over = asyncio.Event()
    found: list[Server | BaseException] = []

    async def main() -> None:
        try:
            async with serving(state or State(), host, port, context, add, on_exchange) as server:
                found.append(server)
                is_up.set()
                await is_over.wait()
        except BaseException as error:  # raised where it is waited for
            found.append(error)
            is_up.set()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    is_up.wait()
    try:
        (server,) = found
        if isinstance(server, BaseException):
            raise server
        yield server
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(is_over.set)
        thread.join()
        loop.close()
