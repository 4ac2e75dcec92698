"""The Bluetooth page in a real browser: over a virtual radio, with MicroPython's ota.ble behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from mpota.release.serve import serving
from mpota.virtual.board import Board
from mpota.virtual.radio import Noise, Radio
from playwright.async_api import BrowserContext, Page, expect

from tests.support import browser, ota_board, pictures, web_bluetooth
from tests.support.browser import PATIENCE_S, Chromium
from tests.support.firmware_files import run, small_app
from tests.support.radio import SECRET, Powered, in_reach, peripheral, stop, update

expect.set_options(timeout=PATIENCE_S * 1000)
NOISY = Noise(loss=0.02, repeat=0.01, delay=0.01)
BOTH = ("ota_0", "ota_1")
OPTIONS = f", secret={SECRET!r}"
CONFIRMS = "import ota.rollback\nota.rollback.cancel()\n"
GIVES_UP = """
from esp32 import Partition
if Partition(Partition.RUNNING).info()[4] == "ota_1":
    import machine, time
    time.sleep(4)  # the page may look meanwhile, and find nobody
    machine.reset()
"""


@pytest.fixture(scope="module", name="site")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("page")
    assert run("ble", "web", "-o", directory).code == 0
    return directory


def save(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "new.bin"
    path.write_bytes(data)
    return path


def install_main(board: Board, script: str) -> None:
    """What runs from the second boot on."""
    ota_board.output(board, f"with open('/main.py', 'w') as file:\n    file.write({script!r})")


@asynccontextmanager
async def opened(
    context: BrowserContext, site: Path, radio: Radio, break_after: int | None = None
) -> AsyncIterator[tuple[Page, list[int]]]:
    async with serving(site, "127.0.0.1", 0) as server:
        page = await context.new_page()
        async with web_bluetooth.in_reach(page, radio, break_after=break_after) as starts:
            await page.goto(server.url.replace("127.0.0.1", "localhost"))
            yield page, starts


async def choose_board(page: Page) -> None:
    await page.get_by_role("button", name="Choose a board").click()
    await expect(page.locator("#runs")).to_contain_text("MicroPython")


async def send(page: Page, path: Path, secret: str = SECRET) -> None:
    await page.set_input_files("#file", path)
    await page.get_by_label("Secret of this board").fill(secret)
    await page.get_by_role("button", name="Update to").click()


def test_an_update_arrives_through_losses_and_a_broken_link_and_is_confirmed(
    site: Path, chromium: Chromium, tmp_path: Path
) -> None:
    new = update()
    path = save(tmp_path, new.data)
    with in_reach(NOISY) as (radio, board):
        install_main(board, CONFIRMS + peripheral(OPTIONS))
        powered = Powered(board, peripheral(OPTIONS), timeout_s=250)

        async def visit(context: BrowserContext) -> None:
            async with opened(context, site, radio, len(new.data) // 2) as (page, starts):
                await choose_board(page)
                await page.set_input_files("#file", path)
                await expect(page.locator("#judged")).to_contain_text("This board can take it.")
                await pictures.take(page, "ble", "phone", "light")
                await send(page, path)
                await expect(page.locator("#numbers")).to_contain_text("written and verified")
                await pictures.take(page, "ble", "phone", "dark")
                await expect(page.locator("#outcome")).to_contain_text("runs and is confirmed")
                await expect(page.locator("#state")).to_have_text("Confirmed")
                await pictures.take(page, "ble", "desktop", "light")
                first, again = starts
                assert first == 0
                assert again > len(new.data) // 4

        chromium.run(visit)
        stop(radio, secret=SECRET.encode())
        run_ = powered.wait()
        assert (run_.labels, run_.traceback) == (BOTH, "")
        assert ota_board.slot_content(board, len(new.data)) == new.data
    assert radio.traffic.lost > 0


def test_what_does_not_fit_is_refused_before_and_by_the_board_and_a_stopped_update_goes_on(
    site: Path, chromium: Chromium, tmp_path: Path
) -> None:
    new = update()
    path = save(tmp_path, new.data)
    other = tmp_path / "other.bin"
    other.write_bytes(small_app("esp32s3"))
    with in_reach() as (radio, board):
        install_main(board, GIVES_UP + peripheral(OPTIONS))
        powered = Powered(board, peripheral(OPTIONS), timeout_s=250)

        async def visit(context: BrowserContext) -> None:
            async with opened(context, site, radio) as (page, _):
                update_button = page.locator("#go")
                outcome = page.locator("#outcome")
                await page.set_input_files("#file", other)
                await choose_board(page)
                await expect(page.locator("#judged")).to_contain_text(
                    "It is for ESP32-S3, this board is ESP32."
                )
                await expect(update_button).to_be_disabled()
                await pictures.take(page, "ble", "desktop", "dark")
                assert board.flash.operations[-1:] == before

                await send(page, path, secret="not the one that the board has")
                await expect(outcome).to_contain_text("(secret)")
                await expect(outcome).to_contain_text("What ran before goes on running.")

                await page.get_by_label("Secret of this board").fill(SECRET)
                await page.evaluate("for (const id of ['go', 'stop']) at(id).click()")
                await expect(outcome).to_contain_text("Stopped")

                await update_button.click()
                await expect(outcome).to_contain_text("The board runs what it ran before")

        before = board.flash.operations[-1:]
        chromium.run(visit)
        stop(radio, secret=SECRET.encode())
        run_ = powered.wait()
        assert (run_.labels, run_.traceback) == (("ota_0", "ota_1", "ota_0"), "")


def test_a_board_with_a_passkey_is_paired_by_the_system(
    site: Path, chromium: Chromium, tmp_path: Path
) -> None:
    new = update(0x8000)
    path = save(tmp_path, new.data)
    with in_reach(passkey=123456) as (radio, board):
        powered = Powered(board, peripheral(", passkey=123456"), timeout_s=250)

        async def visit(context: BrowserContext) -> None:
            async with opened(context, site, radio) as (page, _):
                await choose_board(page)
                await page.set_input_files("#file", path)
                await page.get_by_role("button", name="Update to").click()
                # Nobody is there any more when it has restarted: the page says so in the end.
                await expect(page.locator("#doing")).to_contain_text("restarts")

        chromium.run(visit)
        run_ = powered.wait()
        assert (run_.labels, run_.traceback) == (BOTH, "")


def test_a_browser_that_cannot_is_told_what_can(site: Path, chromium: Chromium) -> None:
    iphone = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15"
    without = "delete Navigator.prototype.bluetooth"
    cases = (
        (browser.PLAIN_HOST, "", "", "only to pages over https"),
        ("localhost", iphone, without, "No browser of iPhone and iPad has"),
        ("localhost", "", without, "chrome://flags/#enable-web-bluetooth"),
        ("localhost", "Mozilla/5.0 (Windows NT 10.0)", without, "Open this page in Chrome"),
    )

    async def look(host: str, words: str, script: str, context: BrowserContext) -> None:
        async with serving(site, "127.0.0.1", 0) as server:
            page = await context.new_page()
            await page.add_init_script(script)
            await page.goto(server.url.replace("127.0.0.1", host))
            await expect(page.get_by_role("alert")).to_contain_text(words)
            await expect(page.get_by_role("button", name="Choose a board")).to_be_disabled()

    for host, agent, script, words in cases:
        options = {"user_agent": agent} if agent else {}
        chromium.run(partial(look, host, words, script), **options)


def test_a_file_is_fetched_by_its_url_where_its_server_allows_that(
    site: Path, chromium: Chromium
) -> None:
    async def visit(context: BrowserContext) -> None:
        await context.route(
            "https://releases.example/pump.bin", lambda route: route.fulfill(body=small_app())
        )
        async with serving(site, "127.0.0.1", 0) as server:
            page = await context.new_page()
            await page.goto(f"{server.url}?url=https://releases.example/pump.bin")
            await page.get_by_role("button", name="Fetch").click()
            await expect(page.locator("#drop-text")).to_have_text("pump.bin")
            await expect(page.locator("#judged")).to_contain_text("App image")
            # Another origin, whose answers do not say that others may read them.
            await page.locator("#url").fill(server.url.replace("127.0.0.1", "localhost"))
            await page.keyboard.press("Enter")
            await expect(page.locator("#judged")).to_contain_text("CORS")
            await expect(page.locator("#go")).to_be_disabled()

    chromium.run(visit)
