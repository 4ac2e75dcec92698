"""The update page of a board (ota.web) in a real browser, against real MicroPython."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from mpota.formats.chips import chip_by_name
from playwright.async_api import BrowserContext, Page, Route, expect

from tests.support import boards, images, ota_board, page_boards, releases
from tests.support import hostile as hostile_apps
from tests.support.browser import PATIENCE_S, PLAIN_HOST, Chromium
from tests.support.ota_board import merged_firmware
from tests.support.page_boards import FAILS, WAITS, relayed, serving_page, state
from tests.support.radio import SECRET
from tests.support.web import File, WebServer

NEW = boards.app("v1.27.0", 0x27000)
SMALL = boards.app("v1.27.0", 0x9000)
BOTH = ("ota_0", "ota_1")
expect.set_options(timeout=PATIENCE_S * 1000)

Steps = Callable[[Page], Coroutine[Any, Any, None]]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return put(tmp_path, NEW)


def put(directory: Path, data: bytes, name: str = "new.bin") -> Path:
    path = directory / name
    path.write_bytes(data)
    return path


def url(port: int) -> str:
    return f"http://{PLAIN_HOST}:{port}/"


def visit(chromium: Chromium, port: int, steps: Steps, **options: Any) -> None:
    async def run(context: BrowserContext) -> None:
        page = await context.new_page()
        await page.goto(url(port))
        await expect(page.locator("#runs")).to_contain_text("ota_")
        await steps(page)

    chromium.run(run, **options)


async def send(page: Page, path: Path, secret: str | None = SECRET) -> None:
    await page.set_input_files("#file", path)
    if secret:
        await page.fill("#secret", secret)
    await expect(page.locator("#judged")).to_contain_text("This board can take it")
    await page.click("#go")


async def outcome(page: Page, text: str) -> None:
    await expect(page.locator("#outcome")).to_contain_text(text)


# --- an update


def test_a_file_is_judged_sent_started_and_found_confirmed(chromium: Chromium, app: Path) -> None:
    """By keyboard alone, as by a screen reader: all that is there has a role and a name."""

    async def steps(page: Page) -> None:
        await expect(page.locator("#state")).to_have_text("Confirmed")
        await expect(page.get_by_role("heading", level=1)).to_have_text(page_boards.NAME)
        await expect(page.get_by_role("button", name="Update")).to_be_disabled()
        await page.get_by_label("Choose a file").set_input_files(app)
        judged = page.locator("#judged")
        await expect(judged).to_contain_text("This board can take it")
        for text in ("App image", "ESP32", "v1.27.0", "none", "155.6 KiB"):
            await expect(judged).to_contain_text(text)
        await page.get_by_label("Secret of this board").focus()
        await page.keyboard.type(SECRET)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("progressbar")).to_have_attribute("max", "1")
        await outcome(page, "runs and is confirmed")
        assert await page.evaluate("document.activeElement.id") == "outcome"
        await expect(page.locator("#runs")).to_contain_text("ota_1")

    with serving_page() as (powered, board, port):
        visit(chromium, port, steps)
        assert ota_board.slot_content(board, len(NEW)) == NEW
    assert powered.wait().labels == BOTH


def test_an_app_on_trial_waits_for_the_page_s_buttons(chromium: Chromium, tmp_path: Path) -> None:
    async def steps(page: Page) -> None:
        await send(page, put(tmp_path, SMALL))
        await outcome(page, "runs, and is not confirmed yet")
        await expect(page.locator("#state")).to_have_text("On trial")
        await page.get_by_role("button", name="Confirm").click()
        await outcome(page, "runs and is confirmed")
        page.on("dialog", lambda dialog: dialog.accept())
        await page.get_by_role("button", name="Go back").click()
        await expect(page.locator("#runs")).to_contain_text("ota_0")

    with serving_page(f", secret={SECRET!r}, buttons=True", first=WAITS) as (powered, _, port):
        visit(chromium, port, steps)
    assert powered.wait().labels == ("ota_0", "ota_1", "ota_0")


def test_a_merged_firmware_that_does_not_come_up_is_told_of(
    chromium: Chromium, tmp_path: Path
) -> None:
    async def steps(page: Page) -> None:
        await send(page, put(tmp_path, merged_firmware(SMALL)))
        await expect(page.locator("#judged")).to_contain_text("Merged firmware: its app is taken")
        await outcome(page, "The board went back to MicroPython")

    with serving_page(first=FAILS) as (powered, _, port):
        visit(chromium, port, steps)
    assert powered.wait().labels == ("ota_0", "ota_1", "ota_0")


def test_a_url_is_fetched_by_the_board(chromium: Chromium, server: WebServer) -> None:
    server.files["/new.bin"] = File(SMALL)

    async def steps(page: Page) -> None:
        await page.get_by_text("From a URL").click()
        await page.fill("#secret", SECRET)
        await page.fill("#url", server.url("/none.bin"))
        await page.click("#go")
        await outcome(page, "404")
        await page.fill("#url", server.url("/new.bin"))
        await page.click("#go")
        await outcome(page, "runs and is confirmed")

    with serving_page() as (powered, _, port):
        visit(chromium, port, steps)
    assert powered.wait().labels == BOTH


def test_a_board_with_keys_takes_what_is_signed_and_asks_for_no_secret(
    chromium: Chromium, tmp_path: Path
) -> None:
    made = releases.make(releases.app(size=0x9000), keys=(releases.key(),)).to_bytes()
    foreign = releases.make(releases.app(size=0x9000), keys=(releases.key(3),)).to_bytes()

    async def steps(page: Page) -> None:
        await expect(page.locator("#secret")).to_be_hidden()
        await page.set_input_files("#file", put(tmp_path, SMALL, "unsigned.bin"))
        await expect(page.locator("#judged")).to_contain_text("It is not signed")
        await send(page, put(tmp_path, foreign, "foreign.bundle"), None)
        await outcome(page, "(untrusted)")
        await send(page, put(tmp_path, made, "new.bundle"), None)
        await expect(page.locator("#judged")).to_contain_text("demo 2.0")
        await outcome(page, "runs and is confirmed")

    with serving_page("", trusts=releases.key().public.digest.hex()) as (powered, _, port):
        visit(chromium, port, steps)
    assert powered.wait().labels == BOTH


# --- what is refused


def unfit() -> Iterator[tuple[bytes, str]]:
    """Files, and what the page says of them before it sends anything."""
    c3 = images.make_image(chip_by_name("esp32c3"), [(0x3C000020, images.app_start("v1", "x"))])
    yield c3, "It is for ESP32-C3, this board is ESP32."
    yield boards.app("v1.27.0", 0x80000), "the slot ota_1 of this board holds 256.0 KiB"
    yield SMALL[:-1000], "The file ends too early"
    yield SMALL[:5000] + b"x" + SMALL[5001:], "The file is damaged"
    yield b"", "The file is empty"
    yield b"\x7fELF" + bytes(100), "an ELF file: take the .bin beside it"
    yield b"\1\2\3", "starts with 0x01, an image with 0xe9"
    yield merged_firmware(b""), "The file ends before its app begins"
    yield boards.BOOTLOADER, "a bootloader without an app"
    yield b"\xff" * 9000, "it starts blank"
    bundle = releases.make(releases.app(size=0x9000), chip="esp32s3").to_bytes()
    yield bundle, "It is for ESP32-S3, this board is ESP32."
    yield bundle[:9000], "it is not whole"


def test_what_cannot_succeed_is_refused_before_anything_is_sent(
    chromium: Chromium, tmp_path: Path
) -> None:
    async def steps(page: Page) -> None:
        posted: list[str] = []
        page.on("request", lambda asked: asked.method == "POST" and posted.append(asked.url))
        for number, (data, text) in enumerate(unfit()):
            await page.set_input_files("#file", put(tmp_path, data, f"{number}.bin"))
            await expect(page.locator("#judged")).to_contain_text(text)
            await expect(page.locator("#go")).to_be_disabled()
        assert posted == []

    with serving_page() as (powered, board, port):
        visit(chromium, port, steps)
        assert board.flash.operations == []
    assert powered.wait().labels == ("ota_0",)


def test_what_the_board_refuses_is_said_in_full_and_the_next_file_goes(
    chromium: Chromium, tmp_path: Path
) -> None:
    start = images.app_start("v1.28.0", "x").ljust(0x3000, b"x")
    overlaps = images.small_image([(images.DROM, start), (0x3FFF0030, bytes(0x200))])

    async def steps(page: Page) -> None:
        await page.fill("#secret", "not the secret of this board")
        await send(page, put(tmp_path, SMALL), None)
        await outcome(page, "the client does not know this board's secret (secret)")
        await send(page, put(tmp_path, overlaps, "overlaps.bin"))
        await outcome(page, "segment 1 (0x3fff0030-0x3fff0230) overlaps")
        await outcome(page, "(load-address)")
        await send(page, put(tmp_path, SMALL, "small.bin"))
        await outcome(page, "runs and is confirmed")

    with serving_page() as (powered, _, port):
        visit(chromium, port, steps)
    assert powered.wait().labels == BOTH


# --- connections and clients that come and go


@pytest.mark.parametrize("is_forgotten", [False, True], ids=["short", "long"])
def test_an_update_goes_on_after_the_connection_broke(
    chromium: Chromium, app: Path, is_forgotten: bool
) -> None:
    """``is_forgotten``: for so long that the board has given up its client."""
    with serving_page(f", secret={SECRET!r}, silence=1") as (powered, board, port):
        with relayed(port) as relay:

            async def steps(page: Page) -> None:
                relay.cut_after(90_000)
                await send(page, app)
                await expect(page.locator("#doing")).to_contain_text("interrupted: trying again")
                while is_forgotten and "slot" not in state(port):
                    await asyncio.sleep(0.1)
                written = page.locator("#numbers")
                assert "written and verified" in await written.inner_text()
                relay.mend()
                await outcome(page, "runs and is confirmed")

            visit(chromium, relay.port, steps)
        written = [
            op.size for op in hostile_apps.touched(board.flash.operations) if op.kind == "write"
        ]
        assert sum(written) < len(NEW) + 0x2000  # what had come was not sent again
        assert ota_board.slot_content(board, len(NEW)) == NEW
    assert powered.wait().labels == BOTH


def test_of_two_tabs_one_updates_the_board_and_the_other_is_told(
    chromium: Chromium, app: Path
) -> None:
    async def steps(context: BrowserContext) -> None:
        first, second = [await context.new_page() for _ in range(2)]
        is_held, is_free = asyncio.Event(), asyncio.Event()
        count = 0

        async def hold(route: Route) -> None:
            nonlocal count
            count += 1
            if count == 4:  # HELLO, BEGIN, the first packets
                is_held.set()
                await is_free.wait()
            await route.continue_()

        await first.route("**/s/*", hold)
        for page in (first, second):
            await page.goto(url(port))
        await send(first, app)
        await is_held.wait()
        await send(second, app)
        await outcome(second, "(busy)")
        is_free.set()
        await outcome(first, "runs and is confirmed")
        await expect(second.locator("#runs")).to_contain_text("ota_1")

    with serving_page(f", secret={SECRET!r}, silence=200") as (powered, _, port):
        chromium.run(steps)
    assert powered.wait().labels == BOTH


def test_pages_of_other_sites_get_nothing(
    chromium: Chromium, server: WebServer, hostile: Callable[..., None]
) -> None:
    server.files["/evil.html"] = File(
        b"<!doctype html><form id=f method=post enctype=text/plain target=t><input name=a></form>"
        b"<iframe name=t></iframe>"
    )
    hostile(4)

    async def steps(context: BrowserContext) -> None:
        page = await context.new_page()
        await page.goto(f"http://localhost:{server.server_address[1]}/evil.html")
        path = url(port) + "s/" + "0" * 32
        for mode in ("cors", "no-cors"):
            told = await page.evaluate(
                """([url, mode]) => fetch(url, {mode, method: 'POST', body: new Uint8Array(21)})
                    .then(answer => answer.type, error => 'blocked')""",
                [path, mode],
            )
            assert told in ("blocked", "opaque")
        read = "url => fetch(url).then(a => a.text(), () => 'blocked')"
        assert await page.evaluate(read, url(port) + "state") == "blocked"
        async with page.expect_event("framenavigated"):
            await page.evaluate("path => { f.action = path; f.submit() }", path)

    with serving_page() as (_, board, port):
        chromium.run(steps)
        assert board.flash.operations == []
