"""Realistic firmware for every chip, made with esptool's own image writer: for demos and tests.

The images are laid out like a MicroPython build for the chip: segments at its real addresses,
flash-mapped ones aligned to the MMU's pages, an app description, MicroPython's texts. Their code is
noise that compresses about as well as real code does. The same arguments give the same bytes, and
two versions of an app differ as builds do: most code is common, and some of it has moved.
"""

from __future__ import annotations

import hashlib
import random
import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mpota.errors import MpotaError, UsageError
from mpota.formats.app_desc import (
    APP_DESC_MAGIC,
    APP_DESC_SIZE,
    BOOTLOADER_DESC_MAGIC,
    find_micropython,
)
from mpota.formats.chips import FLASH_MODES, Chip, chip_by_name
from mpota.formats.image import HEADER_SIZE, SEGMENT_HEADER_SIZE, Image
from mpota.formats.memory import memory_map
from mpota.formats.partition_table import (
    APP,
    DATA,
    DATA_NVS,
    DATA_PHY,
    DEFAULT_TABLE_OFFSET,
    FACTORY,
    Partition,
    PartitionTable,
)
from mpota.units import BLOCK_SIZE, KiB, MiB, align_down, align_up

DEFAULT_APP_SIZE = 1600 * KiB
MIN_APP_SIZE = 96 * KiB  # IROM starts on the second page of flash: below that no code is left
DEFAULT_VERSION = "v1.26.1"
DEFAULT_DATE = "2025-09-11"
DEFAULT_IDF_VERSION = "v5.4.2"

# partitions-4MiB.csv of MicroPython 1.26 and later: the file system is in no entry
STOCK_TABLE = PartitionTable(
    (
        Partition("nvs", DATA, DATA_NVS, 0x9000, 0x6000),
        Partition("phy_init", DATA, DATA_PHY, 0xF000, 0x1000),
        Partition("factory", APP, FACTORY, 0x10000, 0x1F0000),
    )
)

Segments = Sequence[tuple[int, bytes]]  # load address and data

_FIRST_DATA = HEADER_SIZE + SEGMENT_HEADER_SIZE  # where mapped data starts in its page
_LEAST_CODE = 0x100
_MMU_PAGE_BITS = 16  # 64 KiB
_STARTUP_SIZE = 0x2800  # iram_seg of bootloader.memory.ld.in, right below iram_loader_seg
_BOOTLOADER_BSS_SIZE = 0x120
# Noise repeats this many words of this many bytes: zlib packs it to two thirds, as firmware.
_WORDS, _WORD_SIZE = 16384, 4
# What a bootloader without its info lines still says; check reads the release's habits off these.
_BOOTLOADER_TEXTS = (
    " is not bootable",
    "E (%lu) %s: Factory app partition%s",
    "E (%lu) %s: OTA app partition slot %d%s",
    "E (%lu) %s: No bootable app partitions in the partition table",
    "overlaps bootloader stack",
    "overlaps bootloader data",
    "overlaps loader IRAM",
    "bad load address range",
    "E (%lu) %s: Segment %d 0x%08x-0x%08x invalid: %s",
    "E (%lu) %s: invalid segment length 0x%lx",
    "E (%lu) %s: partition size 0x%lx invalid, larger than 16MB",
    "E (%lu) %s: Checksum failed. Calculated 0x%x read 0x%x",
    "E (%lu) %s: image at 0x%lx has invalid magic byte (nothing flashed here?)",
    "E (%lu) %s: Image hash failed - image is corrupt",
    "E (%lu) %s: Image requires efuse blk rev >= v%lu.%lu, but chip is v%lu.%lu",
    "E (%lu) %s: mismatch chip ID, expected %d, found %d",
    "E (%lu) %s: Image requires chip rev >= v%d.%d, but chip is v%d.%d",
)


@dataclass(frozen=True)
class _Build:
    """Where MicroPython's build for a chip puts its segments, and the revisions it is for.

    ``irom`` and ``drom`` are mapped flash. ``drom_follows``: both share one MMU table, so that
    DROM stands behind IROM. ``rtc`` is None without RTC memory. Revisions are major * 100 + minor.
    ``spi_speed`` is the header's code, 80 MHz where the chip's builds use that.
    Source: ESP-IDF ``memory.ld.in`` of the chip, and released builds.
    """

    irom: int
    drom: int
    iram: int
    dram: int
    rtc: int | None
    min_rev: int
    max_rev: int
    drom_follows: bool = True
    spi_speed: int = 0xF


_BUILDS = {
    "esp32": _Build(
        0x400D0000, 0x3F400000, 0x40080000, 0x3FFBDB60, 0x400C0000, 0, 399, False, spi_speed=0
    ),
    "esp32s2": _Build(0x40080000, 0x3F000000, 0x40024000, 0x3FFCB800, 0x40070000, 0, 199, False),
    "esp32s3": _Build(0x42000000, 0x3C000000, 0x40374000, 0x3FC9ED00, 0x600FE000, 0, 99),
    "esp32c2": _Build(0x42000000, 0x3C000000, 0x40380000, 0x3FCB7600, None, 100, 299),
    "esp32c3": _Build(0x42000000, 0x3C000000, 0x40380000, 0x3FC97600, 0x50000000, 3, 199),
    "esp32c5": _Build(0x42000000, 0x42000000, 0x40800000, 0x40817600, 0x50000000, 100, 199),
    "esp32c6": _Build(0x42000000, 0x42000000, 0x40800000, 0x40817600, 0x50000000, 0, 99),
    "esp32c61": _Build(0x42000000, 0x42000000, 0x40800000, 0x40817600, None, 100, 199),
    "esp32h2": _Build(0x42000000, 0x42000000, 0x40800000, 0x40817600, 0x50000000, 0, 199),
    "esp32p4": _Build(0x40000000, 0x40000000, 0x4FF00000, 0x4FF17600, 0x50108000, 100, 199),
}
# From revision 3 on the L2 cache lies below the RAM (esp32p4/memory.ld.in, SRAM_START).
_P4_REV3 = _Build(0x40000000, 0x40000000, 0x4FF40000, 0x4FF57600, 0x50108000, 300, 399)


def build_app(
    chip: Chip | str,
    *,
    version: str = DEFAULT_VERSION,
    date: str = DEFAULT_DATE,
    board: str | None = None,
    size: int = DEFAULT_APP_SIZE,
    idf_version: str = DEFAULT_IDF_VERSION,
    secure_version: int = 0,
    min_chip_rev: int | None = None,
    flash_size: int = 4 * MiB,
) -> bytes:
    """An app image of exactly ``size`` bytes (a multiple of 16, at least `MIN_APP_SIZE`).

    ``version`` and ``date`` are MicroPython's, ``board`` its machine text (``Generic ESP32 module
    with ESP32``). ``min_chip_rev`` (major * 100 + minor) is the build's own if None; 300 makes an
    ESP32-P4 app for revision 3. Raises UsageError for an unknown chip or an unfit size.
    """
    row = _chip(chip)
    if size < MIN_APP_SIZE or size % 16:
        raise UsageError(
            f"sample app of {size:,} bytes: sizes are multiples of 16 from {MIN_APP_SIZE:,} on"
        )
    build = _build(row, min_chip_rev)
    board = board or f"Generic {row.name.upper()} module with {row.name.upper()}"
    texts = f'MicroPython {version} on {date}\0; {board}\r\nType "help()" for more information.\0'
    header = _app_desc(idf_version, secure_version, f"{version} {date}") + texts.encode()

    rodata = header + _code(f"{row.name} rodata", version, size // 6)
    ram = [
        (build.dram, _code(f"{row.name} data", version, min(0x5000, size // 40))),
        (build.iram, _code(f"{row.name} iram", version, min(0x17000, size // 12))),
    ]
    if build.rtc is not None:
        ram.append((build.rtc, bytes(0x18)))

    def write(code_size: int) -> bytes:
        drom = build.drom + (align_up(code_size, BLOCK_SIZE) if build.drom_follows else 0)
        code = _code(f"{row.name} irom", version, code_size)
        segments = [(drom + _FIRST_DATA, rodata), *ram, (build.irom + _FIRST_DATA, code)]
        return _write_image(row, build, segments, build.iram + 0x528, flash_size)

    # How much the writer pads in front of IROM shows once it has written some.
    image = write(_LEAST_CODE + size - len(write(_LEAST_CODE)))
    if len(image) > size:  # ESP32: no segment may end in the first bytes of a page
        image = write(_LEAST_CODE + size - len(write(_LEAST_CODE)) - 0x30)
    return image


def build_bootloader(
    chip: Chip | str,
    *,
    flash_size: int = 4 * MiB,
    idf_version: str = DEFAULT_IDF_VERSION,
    min_chip_rev: int | None = None,
) -> bytes:
    """A bootloader image for ``chip``, which declares ``flash_size`` bytes of flash.

    Its segments lie where the chip's bootloaders do (formats/memory.py): data, start-up code and
    loader code. Raises UsageError for an unknown chip or a flash size that no header can say.
    """
    row = _chip(chip)
    build = _build(row, min_chip_rev)
    memory = memory_map(row.name, build.min_rev)
    startup = 0x40080400 if row.name == "esp32" else memory.loader_iram.start - _STARTUP_SIZE
    description = struct.pack(
        "<B3xI32s24s16x", BOOTLOADER_DESC_MAGIC, 1, idf_version.encode(), b"Sep 11 2025 05:06:05"
    )
    texts = "\0".join(_BOOTLOADER_TEXTS).encode()
    segments = [
        (memory.data.start + _BOOTLOADER_BSS_SIZE, (description + texts).ljust(0x1400, b"\0")),
        (startup, _code(f"{row.name} start-up", idf_version, 0xC00)),
        (memory.loader_iram.start, _code(f"{row.name} loader", idf_version, 0x2C00)),
    ]
    return _write_image(row, build, segments, startup + 0x1B4, flash_size)


def build_firmware(
    chip: Chip | str,
    *,
    flash_size: int = 4 * MiB,
    table: PartitionTable = STOCK_TABLE,
    table_offset: int = DEFAULT_TABLE_OFFSET,
    app: bytes | None = None,
    bootloader: bytes | None = None,
    contents: Mapping[str, bytes] | None = None,
    is_dump: bool = False,
) -> bytes:
    """A merged firmware, as MicroPython's build makes it: from the chip's bootloader offset to
    the end of the app, blank in between; with ``is_dump`` all of the flash, from address 0.

    ``app`` (`build_app` if None) goes to the factory partition, else to the first app partition,
    and ``contents`` (partition name -> bytes) to others. Nothing is checked, so that broken
    firmware can be built as well. Raises MpotaError for a name that the table does not have.
    """
    row = _chip(chip)
    parts = {
        row.bootloader_offset: bootloader or build_bootloader(row, flash_size=flash_size),
        table_offset: table.to_bytes(),
    }
    if table.apps:
        first = next((p for p in table.apps if p.subtype == FACTORY), table.apps[0])
        parts[first.offset] = app or build_app(row, flash_size=flash_size)
    parts.update({table[label].offset: data for label, data in (contents or {}).items()})
    base = 0 if is_dump else row.bootloader_offset
    end = max(offset + len(data) for offset, data in parts.items())
    firmware = bytearray(b"\xff" * ((max(end, flash_size) if is_dump else end) - base))
    for offset, data in parts.items():
        firmware[offset - base : offset - base + len(data)] = data
    return bytes(firmware)


def next_version(app: bytes) -> bytes:
    """The same app with the last digit of its MicroPython version raised, 9 to 0.

    Checksum and digest are made to fit. Raises MpotaError for an app without a version text.
    """
    image = Image.from_bytes(app)
    version = find_micropython(image.data).version
    if version is None:
        raise MpotaError("the app holds no MicroPython version text")
    end = max(i for i, c in enumerate(version) if c.isdigit())
    raised = f"{version[:end]}{(int(version[end]) + 1) % 10}{version[end + 1 :]}"
    body = image.data[: image.body_size].replace(version.encode(), raised.encode())
    return replace(image, data=body + image.data[image.body_size :]).sealed().data


def _chip(chip: Chip | str) -> Chip:
    return chip_by_name(chip) if isinstance(chip, str) else chip


def _build(chip: Chip, min_chip_rev: int | None) -> _Build:
    build = _BUILDS[chip.name]
    if min_chip_rev is None:
        return build
    if chip.name == "esp32p4" and min_chip_rev >= _P4_REV3.min_rev:
        build = _P4_REV3
    return replace(build, min_rev=min_chip_rev)


def _write_image(
    chip: Chip, build: _Build, segments: Segments, entry_addr: int, flash_size: int
) -> bytes:
    """The image as esptool writes it; the first of ``segments`` also comes first in the file."""
    from esptool import bin_image

    image = getattr(bin_image, f"{chip.name.upper()}FirmwareImage")()
    image.entrypoint = entry_addr
    image.flash_mode = FLASH_MODES.index("DIO")
    image.flash_size_freq = chip.flash_size_code(flash_size) << 4 | build.spi_speed
    image.min_rev, image.min_rev_full = build.min_rev // 100, build.min_rev
    image.max_rev_full = build.max_rev
    # The writer sorts by address, but for the sections with these names: they stay in front.
    names = [".flash.appdesc" if image.is_flash_addr(segments[0][0]) else ".dram0.bootdesc"]
    names += [".data"] * len(segments[1:])
    image.segments = [
        bin_image.ELFSection(name.encode(), address, data, 0)
        for name, (address, data) in zip(names, segments, strict=True)
    ]
    return bytes(image.save(None))


def _app_desc(idf_version: str, secure_version: int, build: str) -> bytes:
    """``esp_app_desc_t`` as MicroPython's builds have it: without version and project name."""
    return struct.pack(
        "<II8x64x16s16s32s32sHHB",
        APP_DESC_MAGIC,
        secure_version,
        b"05:07:27",
        b"Sep 11 2025",
        idf_version.encode(),
        hashlib.sha256(build.encode()).digest(),
        0,
        199,
        _MMU_PAGE_BITS,
    ).ljust(APP_DESC_SIZE, b"\0")


def _code(name: str, version: str, size: int) -> bytes:
    """``size`` bytes, rounded up to a multiple of 4, that look like code to a compressor.

    Common to all versions, but for some bytes a third of the way in, which push the rest back.
    """
    size = align_up(size, 4)
    own = _noise(f"{name} {version}", min(4 * KiB, align_down(size // 16, 4)))
    common = _noise(name, size - len(own))
    third = align_down(len(common) // 3, 4)
    return common[:third] + own + common[third:]


def _noise(seed: str, size: int) -> bytes:
    """Words as `random.choices` draws them, in less time.

    It takes 64 random bits a word, and multiplies so that the number of words, a power of two,
    takes its place from the highest of the first 32.
    """
    rng = random.Random(seed)
    words = array("I", rng.randbytes(_WORDS * _WORD_SIZE))
    drawn = rng.randbytes(8 * (size // _WORD_SIZE + 1))
    places = zip(drawn[3::8], drawn[2::8], strict=True)
    return array("I", [words[high << 6 | low >> 2] for high, low in places]).tobytes()[:size]
