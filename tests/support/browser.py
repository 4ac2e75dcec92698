"""Chromium without a window, driven by playwright: one process for all tests of a worker.

Playwright's calls run in a loop of their own, in a thread of their own: those of its other form,
that wait, leave a loop running, and no test that comes later could call asyncio.run().
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, Playwright

Result = TypeVar("Result")

# A page there is one of a plain-http host, as a board's is: no secure context.
PLAIN_HOST = "board.local"
_ARGUMENTS = (
    "--no-sandbox",
    "--enable-features=WebBluetooth",  # else there is no navigator.bluetooth on Linux
    f"--host-resolver-rules=MAP {PLAIN_HOST} 127.0.0.1",
    "--disable-dev-shm-usage",  # its files would be taken for what a test has left behind
)
# How long a page may take for one thing that is waited for. Longer than any busy machine takes.
PATIENCE_S = 100


class Chromium:
    """A browser process, which is started by the first that wants it and again if it crashed."""

    def __init__(self, program: Path, home: Path) -> None:
        self._program = program
        self._home = home
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._playwright: Playwright | None = None
        self._browser: Browser | None = None

    def run(
        self, steps: Callable[[BrowserContext], Coroutine[Any, Any, Result]], **options: Any
    ) -> Result:
        """What ``steps`` returns, with a browser context (a profile) of its own.

        ``options`` are those of playwright's ``new_context``: viewport, color_scheme... An error
        that no code of a page has caught fails the test. ``context.browser`` is the browser.
        """
        return self._wait(self._in_context(steps, options))

    async def _in_context(
        self,
        steps: Callable[[BrowserContext], Awaitable[Result]],
        options: dict[str, Any],
    ) -> Result:
        browser = await self._started()
        context = await browser.new_context(**options)
        errors: list[str] = []
        context.on("weberror", lambda event: errors.append(str(event.error)))
        context.set_default_timeout(PATIENCE_S * 1000)
        try:
            result = await steps(context)
        finally:
            await context.close()
        assert errors == []
        return result

    async def _started(self) -> Browser:
        from playwright.async_api import async_playwright

        if self._playwright is None:
            self._playwright = await async_playwright().start()
        if self._browser is None or not self._browser.is_connected():
            self._browser = await self._playwright.chromium.launch(
                executable_path=self._program,
                args=_ARGUMENTS,
                env={**os.environ, "HOME": str(self._home), "XDG_CACHE_HOME": str(self._home)},
                timeout=PATIENCE_S * 1000,
            )
        return self._browser

    def _wait(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Its result. A test that is broken off meanwhile, by its time limit, cancels it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End the browser, the driver and the thread."""
        try:
            self._wait(self._stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _stop(self) -> None:
        if self._browser is not None:
            await self._browser.close()
        if self._playwright is not None:
            await self._playwright.stop()


@contextmanager
def running(program: Path, home: Path) -> Iterator[Chromium]:
    """The browser ``program``; ``home``: a directory for what it keeps."""
    chromium = Chromium(program, home)
    try:
        yield chromium
    finally:
        chromium.close()
