"""``navigator.serial`` of a page, with the loader of a virtual board behind it.

Chromium has no emulation of it. An init script stands in, whose streams go to Python; the page's
own scripts are unmodified, and see a port as any other.

The page's clock is ours. esptool-js gives a chip 100 ms to answer, and a busy machine may take
longer: so time passes for the page only while the port has nothing to say.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mpota.virtual.rom_loader import LoaderPort
from playwright.async_api import Page

_TICK_MS = 40
_STANDIN = """(() => {
  let reader = null, isOpen = false
  const listen = () => new ReadableStream({
    start(controller) { reader = controller },
    cancel() { reader = null; port.readable = isOpen ? listen() : null },
  })
  const port = {
    readable: null, writable: null, connected: true,
    async open(options) {
      isOpen = true
      port.readable = listen()
      port.writable = new WritableStream({
        write: bytes => __serial('write', btoa(String.fromCharCode(...bytes))),
      })
      await __serial('open', '')
    },
    async close() {
      isOpen = false
      reader = port.readable = port.writable = null
      await __serial('close', '')
    },
    async setSignals() {},
    async getSignals() { return {} },
    async forget() {},
    getInfo() { return {} },
    addEventListener() {}, removeEventListener() {},
  }
  window.__serialReceived = text => reader?.enqueue(
    Uint8Array.from(atob(text), letter => letter.charCodeAt(0)))
  const serial = {
    requestPort: async () => port, getPorts: async () => [],
    addEventListener() {}, removeEventListener() {},
  }
  Object.defineProperty(navigator, 'serial', {value: serial})
})()"""


@asynccontextmanager
async def plugged_in(page: Page, port: LoaderPort) -> AsyncIterator[None]:
    """``port`` is the one that the page gets to choose. Before its first `goto`; the page is the
    only one of its context, which has one clock for all.
    """
    to_page: asyncio.Queue[bytes] = asyncio.Queue()

    async def serial(source: object, action: str, text: str) -> None:
        if action == "open":
            port.opened(to_page.put_nowait)
        elif action == "write":
            port.received(base64.b64decode(text))
        else:
            port.closed()

    async def pass_time() -> None:
        while True:
            data = b""
            while not to_page.empty():
                data += to_page.get_nowait()
            if data:
                await page.evaluate("__serialReceived", base64.b64encode(data).decode())
            else:
                await page.clock.run_for(_TICK_MS)

    await page.expose_binding("__serial", serial)
    await page.add_init_script(_STANDIN)
    await page.clock.install(time="2030-01-01T00:00")
    await page.clock.pause_at("2030-01-01T01:00")
    passing = asyncio.ensure_future(pass_time())
    try:
        yield
    finally:
        passing.cancel()
