"""The browser that other tests are driven in is what they take it for."""

from __future__ import annotations

import asyncio

import pytest
from playwright.async_api import BrowserContext

from tests.support import browser
from tests.support.browser import Chromium
from tests.support.web import File, WebServer


def test_a_page_of_a_plain_host_has_no_cryptography_and_one_of_localhost_has_bluetooth(
    chromium: Chromium, server: WebServer
) -> None:
    server.files["/page.html"] = File(b"<!doctype html><title>page</title>")
    port = server.server_address[1]

    async def look(context: BrowserContext) -> list[list[bool]]:
        page = await context.new_page()
        found = []
        for host in (browser.PLAIN_HOST, "localhost"):
            await page.goto(f"http://{host}:{port}/page.html")
            found.append(
                await page.evaluate("[isSecureContext, !!crypto.subtle, 'bluetooth' in navigator]")
            )
        return found

    assert chromium.run(look) == [[False, False, False], [True, True, True]]
    asyncio.run(asyncio.sleep(0))  # it leaves this thread without a running loop


def test_an_error_that_a_page_has_not_caught_fails_the_test(chromium: Chromium) -> None:
    async def fail(context: BrowserContext) -> None:
        page = await context.new_page()
        async with context.expect_event("weberror"):
            await page.set_content("<script>setTimeout(() => { throw Error('lost') })</script>")

    with pytest.raises(AssertionError, match="lost"):
        chromium.run(fail)
