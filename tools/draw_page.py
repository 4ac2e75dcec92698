"""Pictures of the update page (ota.web) for the documentation: of a virtual board, in Chromium.

    PYTHONPATH=host:. python tools/draw_page.py

Writes docs/images/page-*.png. Look at them after a change in device/web.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "host")]

from mpota.formats.chips import chip_by_name  # noqa: E402
from playwright.async_api import BrowserContext, Page, Route, expect  # noqa: E402

from tests.support import boards, browser, images, once  # noqa: E402
from tests.support.page_boards import serving_page  # noqa: E402
from tests.support.radio import SECRET  # noqa: E402

IMAGES = ROOT / "docs" / "images"
NEW = boards.app("v1.27.0", 0x3D000)
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 780},
    "device_scale_factor": 1.5,
    "has_touch": True,
    "is_mobile": True,
}
DESKTOP: dict[str, Any] = {"viewport": {"width": 900, "height": 760}}
LIGHT, DARK = {"color_scheme": "light"}, {"color_scheme": "dark"}

Steps = Callable[[Page, Path], Awaitable[None]]


async def choose(
    page: Page, directory: Path, data: bytes = NEW, name: str = "pump-2.1.bin"
) -> None:
    path = directory / name
    path.write_bytes(data)
    await page.set_input_files("#file", path)
    await page.fill("#secret", SECRET)


async def show_fit(page: Page, directory: Path) -> None:
    await choose(page, directory)
    await expect(page.locator("#judged")).to_contain_text("can take it")


async def show_unfit(page: Page, directory: Path) -> None:
    chip = chip_by_name("esp32c3")
    start = images.app_start("v1.27.0", "x").ljust(0x3D000, b"x")
    data = images.make_image(chip, [(0x3C000020, start)])
    await choose(page, directory, data, "pump-c3.bin")
    await expect(page.locator("#judged")).to_contain_text("this board is ESP32")


async def show_writing(page: Page, directory: Path) -> None:
    count = 0

    async def hold(route: Route) -> None:
        nonlocal count
        count += 1
        if count == 11:
            await asyncio.sleep(3)
        await route.continue_()

    await page.route("**/s/*", hold)
    await show_fit(page, directory)
    await page.click("#go")
    while count < 11:
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)  # the bar moves


async def show_confirmed(page: Page, directory: Path) -> None:
    await show_fit(page, directory)
    await page.click("#go")
    await expect(page.locator("#outcome")).to_contain_text("is confirmed")


PICTURES: dict[str, tuple[Steps, dict[str, Any]]] = {
    "phone-light": (show_fit, PHONE | LIGHT),
    "phone-dark": (show_writing, PHONE | DARK),
    "desktop-light": (show_confirmed, DESKTOP | LIGHT),
    "desktop-dark": (show_unfit, DESKTOP | DARK),
}


def draw(chromium: browser.Chromium, name: str, directory: Path) -> None:
    steps, options = PICTURES[name]
    with serving_page(f", secret={SECRET!r}, silence=2") as (_, _, port):

        async def run(context: BrowserContext) -> None:
            page = await context.new_page()
            await page.goto(f"http://{browser.PLAIN_HOST}:{port}/")
            await expect(page.locator("#runs")).to_contain_text("ota_")
            await steps(page, directory)
            await page.evaluate("scrollTo(0, 0)")
            await page.screenshot(path=IMAGES / f"page-{name}.png", full_page=True)

        chromium.run(run, **options)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    run = once.begin_run()
    try:
        with tempfile.TemporaryDirectory() as home:
            program = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
            with browser.running(program, Path(home)) as chromium:
                for name in sys.argv[1:] or PICTURES:
                    draw(chromium, name, Path(home))
    finally:
        once.end_run(run, keep=False)


if __name__ == "__main__":
    main()
