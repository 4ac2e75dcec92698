"""What an image says of itself: app description, bootloader description, MicroPython's texts."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from mpota.formats.micropython import parse_release

APP_DESC_OFFSET = 32  # behind the image header and the first segment's header
APP_DESC_MAGIC = 0xABCD5432
APP_DESC_SIZE = 256
BOOTLOADER_DESC_MAGIC = 0x50
BOOTLOADER_DESC_SIZE = 80

_APP_DESC = struct.Struct("<II8s32s32s16s16s32s32sHHB")
_BOOTLOADER_DESC = struct.Struct("<B3xI32s24s")


class AppDesc(NamedTuple):
    """``esp_app_desc_t`` (esp_app_desc.h). MicroPython leaves version and project_name empty.

    ``mmu_page_size`` is the logarithm to base 2, 0 where the release did not write it.
    """

    secure_version: int
    version: str
    project_name: str
    time: str
    date: str
    idf_ver: str
    app_elf_sha256: bytes
    min_efuse_blk_rev_full: int
    max_efuse_blk_rev_full: int
    mmu_page_size: int


class BootloaderDesc(NamedTuple):
    """``esp_bootloader_desc_t`` (esp_bootloader_desc.h), ESP-IDF 5.2 and later."""

    version: int
    idf_ver: str
    date_time: str


class MicroPythonText(NamedTuple):
    """The texts that MicroPython prints at its prompt, None where the image does not hold them."""

    version: str | None  # v1.26.1
    build_date: str | None  # 2025-09-11
    board: str | None  # Generic ESP32S3 module with ESP32S3


def find_app_desc(image: bytes | memoryview) -> AppDesc | None:
    """The app description of the image that starts ``image``, or None if it has none."""
    data = bytes(image[APP_DESC_OFFSET : APP_DESC_OFFSET + APP_DESC_SIZE])
    if len(data) < APP_DESC_SIZE:
        return None
    magic, secure_version, _, version, name, time, date, idf, elf, low, high, page = (
        _APP_DESC.unpack_from(data)
    )
    if magic != APP_DESC_MAGIC:
        return None
    return AppDesc(
        secure_version,
        _text(version),
        _text(name),
        _text(time),
        _text(date),
        _text(idf),
        elf,
        low,
        high,
        page,
    )


def find_bootloader_desc(image: bytes | memoryview) -> BootloaderDesc | None:
    """The bootloader description of the image that starts ``image``, or None."""
    data = bytes(image[APP_DESC_OFFSET : APP_DESC_OFFSET + BOOTLOADER_DESC_SIZE])
    if len(data) < BOOTLOADER_DESC_SIZE or data[0] != BOOTLOADER_DESC_MAGIC:
        return None
    _, version, idf_ver, date_time = _BOOTLOADER_DESC.unpack_from(data)
    # An app may start with the same byte, so the ESP-IDF release has to be there as well.
    if not _text(idf_ver).isprintable() or not _text(idf_ver):
        return None
    return BootloaderDesc(version, _text(idf_ver), _text(date_time))


# mpconfig.h, MICROPY_BANNER_NAME_AND_VERSION: "MicroPython v1.26.1 on 2025-09-11"; a build
# between releases says "v1.27.0-preview.12.gabcdef-dirty".
_VERSION = rb"MicroPython ([!-~]{1,64}) on (\d{4}-\d\d-\d\d)"
# mpconfig.h, MICROPY_BANNER_MACHINE, behind it at the prompt: "; <board> with <ESP32-something>"
_BOARD = rb"; ([ -~]{1,100}? with ESP32[\w-]*)"


def find_micropython(image: bytes | memoryview) -> MicroPythonText:
    """MicroPython's version and board texts in an app image."""
    version = re.search(_VERSION, image)
    board = re.search(_BOARD, image)
    return MicroPythonText(
        version[1].decode() if version else None,
        version[2].decode() if version else None,
        board[1].decode() if board else None,
    )


def has_rollback(version: str | None) -> bool | None:
    """Whether MicroPython of this version comes with a bootloader that rolls back.

    Since v1.21 all builds do (ports/esp32/boards/sdkconfig.base). None: the text says no version.
    """
    release = parse_release(version)
    return release >= (1, 21) if release else None


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")
