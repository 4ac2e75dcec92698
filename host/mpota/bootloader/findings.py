"""What the bootloader's refusals mean, in plain words, and what to do about them."""

from __future__ import annotations

from dataclasses import dataclass

from mpota.bootloader.boot import BootFault, Cause
from mpota.formats.chips import find_chip


@dataclass(frozen=True)
class Finding:
    """A problem: where it is, its cause, and what to do about it."""

    where: str
    cause: str
    remedy: str


EXTRACT = "write the app image alone: `mpota extract FIRMWARE` takes it out of a merged file"
DOWNLOAD = "download or build the file again and compare its SHA-256"
TABLE = "write a table that validates: `mpota table` checks it, `mpota resize` makes one"

# For each cause its plain words and the remedy; the numbers of the fault fill the braces.
_WORDS = {
    Cause.BOOTLOADER_MISSING: (
        "there is no bootloader at {offset:#x}",
        "flash a merged firmware at the chip's bootloader offset: `mpota flash`",
    ),
    Cause.BOOTLOADER_CORRUPT: ("the bootloader at {offset:#x} is damaged", DOWNLOAD),
    Cause.TABLE_MAGIC: (
        "entry {index} of the partition table starts with {found:#06x}: there is no table, "
        "or one that is damaged",
        TABLE,
    ),
    Cause.TABLE_MD5: ("the partition table was changed without its MD5", TABLE),
    Cause.TABLE_TWO_MD5: ("the partition table has two MD5 entries", TABLE),
    Cause.TABLE_FLASH_SIZE: (
        "partition {index} goes to {end:#x}, the bootloader takes the flash for {limit:#x} bytes",
        "set the flash size: `mpota resize -f`",
    ),
    Cause.TABLE_NO_END: ("the partition table has no end", TABLE),
    Cause.OTADATA_SIZE: ("otadata has {size:#x} bytes, the bootloader wants {limit:#x}", TABLE),
    Cause.OTADATA_WRITE: ("otadata at {offset:#x} could not be written", "replace the flash chip"),
    Cause.OTADATA_INVALID: (
        "no otadata record selects a slot",
        "erase otadata, so that the first slot boots",
    ),
    Cause.PARTITION_SIZE: (
        "the partition has {size:#x} bytes, more than this bootloader can map",
        "make it 16 MiB at most",
    ),
    Cause.OFFSET_ALIGNMENT: ("the partition starts at {offset:#x}, no multiple of 4", TABLE),
    Cause.MAGIC: ("there is no image: it starts with {found:#04x}, images with 0xe9", EXTRACT),
    Cause.CHIP: (
        "the image is for {found_chip}, the bootloader for {expected_chip}",
        "use the firmware for {expected_chip}",
    ),
    Cause.MIN_REVISION: (
        "the image needs chip revision {limit_revision}, the chip is {found_revision}",
        "use a firmware for this revision",
    ),
    Cause.MAX_REVISION: (
        "the image is for chips up to revision {limit_revision}, the chip is {found_revision}",
        "use a firmware for this revision",
    ),
    Cause.MIN_BLOCK_REVISION: (
        "the image needs efuse block revision {limit_revision}, the chip has {found_revision}",
        "use a firmware for this revision",
    ),
    Cause.MAX_BLOCK_REVISION: (
        "the image is for efuse block revisions up to {limit_revision}, "
        "the chip has {found_revision}",
        "use a firmware for this revision",
    ),
    Cause.SEGMENT_COUNT: ("the header says {found} segments, {limit} are the limit", DOWNLOAD),
    Cause.SEGMENT_LENGTH: (
        "segment {segment} says it has {length:#x} bytes: "
        "the image is truncated, shifted or partly erased",
        DOWNLOAD,
    ),
    Cause.APP_DESC: (
        "the image has no app description, which this bootloader demands",
        "build the app with ESP-IDF's own description, or use an older bootloader",
    ),
    Cause.MAP_ALIGNMENT: (
        "segment {segment} maps {load_addr:#x} onto flash {data_offset:#x}, which differ within a "
        "page of {page_size:#x}: the image is shifted, or stands at the wrong offset",
        "app partitions start at multiples of 0x10000",
    ),
    Cause.OVERLAPS_STACK: (
        "segment {segment} would load over the bootloader's stack {region_start:#x}-"
        "{region_end:#x}",
        "link the app below it, or use the bootloader that the app was built with",
    ),
    Cause.OVERLAPS_DATA: (
        "segment {segment} would load over the bootloader's data {region_start:#x}-{region_end:#x}",
        "link the app below it, or use the bootloader that the app was built with",
    ),
    Cause.OVERLAPS_LOADER: (
        "segment {segment} would load over the bootloader's code {region_start:#x}-{region_end:#x}",
        "link the app below it, or use the bootloader that the app was built with",
    ),
    Cause.BAD_ADDRESS: (
        "segment {segment} would load to {start:#x}, where the chip has no memory for it",
        DOWNLOAD,
    ),
    Cause.OVERWRITES_LOADER: (
        "segment {segment} would load over the bootloader's own code {region_start:#x}-"
        "{region_end:#x}: it overwrites itself and never comes back",
        "link the app below it, or use the bootloader that the app was built with",
    ),
    Cause.OVERWRITES_ROM_DATA: (
        "segment {segment} would load over the data of the chip's ROM {region_start:#x}-"
        "{region_end:#x}: the bootloader hangs",
        "link the app above it",
    ),
    Cause.MMU_PAGES: (
        "the app was built for MMU pages of {page_size:#x} bytes, which this bootloader cannot "
        "map at this place: it aborts, and the chip resets for ever",
        "put the app further down in the flash, or build it for pages of 0x10000 bytes",
    ),
    Cause.CHECKSUM: (
        "the segments give checksum {calculated:#04x}, the image says {found:#04x}: "
        "bytes were lost or changed",
        DOWNLOAD,
    ),
    Cause.LENGTH: (
        "the app does not fit: it is {length:,} bytes, the partition holds {limit:,}",
        "make the app partitions larger: `mpota resize --app-size`",
    ),
    Cause.DIGEST: ("the appended SHA-256 does not fit: bytes were lost or changed", DOWNLOAD),
    Cause.TWO_MAPPED_SEGMENTS: (
        "the image has more segments to map than the bootloader can: the last one wins, "
        "and the app will crash",
        "build the app again: its linker script is for another chip",
    ),
    Cause.NO_BOOTABLE_APP: (
        "no app partition holds an app that boots",
        "write an app image into one: `mpota write FIRMWARE NAME=FILE`",
    ),
}
_MEMORY_CAUSES = (
    Cause.OVERLAPS_STACK,
    Cause.OVERLAPS_DATA,
    Cause.OVERLAPS_LOADER,
    Cause.BAD_ADDRESS,
    Cause.OVERWRITES_LOADER,
    Cause.OVERWRITES_ROM_DATA,
    Cause.APP_DESC,
)


def finding(fault: BootFault, where: str, *, is_app: bool = True) -> Finding:
    """The cause and remedy of a fault. ``is_app``: whether the image is one by its structure."""
    values: dict[str, object] = dict(fault.values)
    values["end"] = fault.values.get("offset", 0) + fault.values.get("size", 0)
    for key in ("found", "limit", "expected"):
        number = fault.values.get(key, 0)
        chip = find_chip(number)
        values[f"{key}_chip"] = chip.title if chip else f"chip id {number}"
        values[f"{key}_revision"] = f"v{number // 100}.{number % 100}"
    cause, remedy = _WORDS[fault.cause]
    cause = cause.format(**values)
    if fault.cause in _MEMORY_CAUSES and not is_app:
        cause = f"this is a merged firmware or a bootloader, not an app image: {cause}"
        remedy = EXTRACT
    return Finding(where, cause, remedy.format(**values))
