"""Pictures of pages for the documentation, where MPOTA_PICTURES names a directory for them."""

from __future__ import annotations

import os
from pathlib import Path

from playwright.async_api import Page

DIRECTORY = os.environ.get("MPOTA_PICTURES")
_SIZES = {"phone": (390, 780), "desktop": (900, 640)}


async def take(page: Page, name: str, size: str, colours: str) -> None:
    """``NAME-SIZE-COLOURS.png``: ``size`` is phone or desktop, ``colours`` light or dark."""
    if DIRECTORY is None:
        return
    width, height = _SIZES[size]
    await page.set_viewport_size({"width": width, "height": height})
    await page.emulate_media(color_scheme="dark" if colours == "dark" else "light")
    await page.screenshot(path=Path(DIRECTORY) / f"{name}-{size}-{colours}.png")
