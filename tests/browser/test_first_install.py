"""A first installation from a page: the real ESP Web Tools on virtual boards."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mpota.bootloader.check import check_flash
from mpota.filesystem.volumes import Volumes
from mpota.firmware.firmware import Firmware
from mpota.formats.chips import CHIPS
from mpota.formats.otadata import OtaRecord, OtaState
from mpota.release.serve import serving
from mpota.storage.file import FileImage
from mpota.storage.memory import MemoryFlash
from mpota.units import MiB
from mpota.virtual.flash import VirtualFlash
from mpota.virtual.rom_chips import rom_chip
from mpota.virtual.rom_loader import LoaderPort
from playwright.async_api import Browser, BrowserContext, Page, expect

from tests.support import amount, esp_web_tools, pictures
from tests.support.browser import PATIENCE_S, Chromium
from tests.support.firmware_files import NVS, OTA_TABLE, run, small_app, small_firmware
from tests.support.web_serial import plugged_in

expect.set_options(timeout=PATIENCE_S * 1000)
FLASH_SIZE = 4 * MiB
SETTINGS = b"settings of a user"
OTADATA = OTA_TABLE["otadata"]
# A board that has run something else, and was told to boot its second slot.
FORMERLY = {
    NVS.offset: SETTINGS,
    OTADATA.offset: OtaRecord.selecting(2, OtaState.VALID).to_bytes(),
    OTA_TABLE["ota_1"].offset: small_app("esp32", "v1.20.0"),
    OTA_TABLE["vfs"].offset + 0x1000: b"what is left of a file" * 100,
}
DEFAULT_CHIPS = ("esp32", "esp32s3", "esp32c3", "esp32c6")


@dataclass
class Desk:
    """A board at the USB port of whoever visits the page."""

    chip: str
    is_erased: bool
    flash: VirtualFlash
    events: list[str] = field(default_factory=list)

    def port(self) -> LoaderPort:
        def halt() -> None:
            self.events.append("halt")

        def boot() -> None:
            self.events.append("boot")

        return LoaderPort(self.flash, self.chip, halt, boot)


@pytest.fixture(scope="module", name="site")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page for all chips, with the package on board."""
    esp_web_tools.need()
    directory = tmp_path_factory.mktemp("site")
    for chip in CHIPS:
        (directory / f"{chip.name}.bin").write_bytes(small_firmware(chip.name, OTA_TABLE))
    made = run(
        "web",
        *sorted(directory.glob("*.bin")),
        *("-o", directory / "site", "--name", "Greenhouse", "--version", "1.2.0"),
        "--with-package",
    )
    assert made.code == 0, made.err
    return directory / "site"


async def install(page: Page, *, erase: bool) -> None:
    """What a visitor does."""
    await page.get_by_role("button", name="Install", exact=True).click()
    await page.get_by_text("Install Greenhouse").click()
    if erase:
        await page.get_by_role("checkbox").check()
    await page.get_by_text("Next").click()
    await page.get_by_text("Install", exact=True).last.click()
    dialog = page.locator("ewt-install-dialog")
    await expect(dialog).to_contain_text(
        re.compile("complete|failed|error|not supported", re.IGNORECASE)
    )
    await expect(dialog).to_contain_text("Installation complete")
    await page.get_by_text("Next").click()


def test_the_unmodified_esp_web_tools_installs_on_every_chip_and_the_board_boots(
    site: Path, chromium: Chromium
) -> None:
    chips = [c.name for c in CHIPS] if amount.is_all else DEFAULT_CHIPS
    desks = [
        Desk(chip, number % 2 == 1, VirtualFlash.create(FLASH_SIZE, FORMERLY))
        for number, chip in enumerate(chips)
    ]

    async def at(desk: Desk, browser: Browser, url: str) -> None:
        # A context has one clock for all of its pages, and each board has its own.
        async with await browser.new_context() as context:
            context.set_default_timeout(PATIENCE_S * 1000)
            asked: list[str] = []
            context.on("request", lambda request: asked.append(request.url))
            page = await context.new_page()
            async with plugged_in(page, desk.port()):
                await page.goto(url)
                if desk.chip == DEFAULT_CHIPS[0]:
                    await pictures.take(page, "install", "phone", "dark")
                    await pictures.take(page, "install", "desktop", "light")
                await install(page, erase=desk.is_erased)
            assert asked
            assert [other for other in asked if not other.startswith((url, "blob:"))] == []

    async def all_at_once(context: BrowserContext) -> None:
        assert context.browser is not None
        async with serving(site, "127.0.0.1", 0) as server:
            await asyncio.gather(*(at(desk, context.browser, server.url) for desk in desks))

    chromium.run(all_at_once)
    for desk in desks:
        with desk.flash as flash:
            assert desk.events == ["halt", "boot"], desk.chip
            contents = FileImage(0, flash.snapshot())
        revision = rom_chip(desk.chip).chip_revision
        check = check_flash(contents, flash_size=FLASH_SIZE, chip_revision=revision)
        assert (check.is_ok, check.boots) == (True, "ota_0"), (desk.chip, check.findings)
        assert check.slots[0].version == "v1.26.1"
        is_kept = contents.read(NVS.offset, len(SETTINGS)) == SETTINGS
        assert is_kept is not desk.is_erased
        firmware = Firmware.from_flash(contents, desk.chip)
        volumes = Volumes.of_firmware(firmware, MemoryFlash(contents, FLASH_SIZE))
        assert volumes.check("vfs") == ()
        assert "__init__.mpy" in [e.name for e in volumes.file_system().entry("/lib/ota").entries]
