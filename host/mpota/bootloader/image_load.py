"""What the second-stage bootloader makes of one app image: ESP-IDF's ``esp_image_format.c``.

`verify_image` goes through an image in the order of ``image_load`` and says, in the bootloader's
own words, what it stops at. Which of them a bootloader says, and which memory it defends, differs
between chips and releases: `BootloaderInfo` holds that, read from the bootloader in hand by
`bootloader_info`, or the newest release's by `known_bootloader`.

Not modelled: secure boot, flash encryption, anti-rollback, an attached debugger, the watchdog
that resets a chip whose bootloader reads for more than 9 s (a segment of some hundred MiB, which
only bootloaders without a limit of 16 MiB begin to read), and the assertion about a segment across
0x80000000.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from mpota.formats.app_desc import APP_DESC_MAGIC, find_bootloader_desc
from mpota.formats.chips import Chip
from mpota.formats.image import (
    CHECKSUM_SEED,
    DIGEST_SIZE,
    HEADER_SIZE,
    IMAGE_MAGIC,
    MAX_SEGMENT_SIZE,
    MAX_SEGMENTS,
    SEGMENT_HEADER_SIZE,
    Image,
    ImageHeader,
    Segment,
    xor_bytes,
)
from mpota.formats.memory import ESP32_IRAM_GREW, Memory, Region, memory_map
from mpota.storage import ReadOnlyFlash
from mpota.units import BLOCK_SIZE, MiB, align_up

ESP_ERR_OTA_VALIDATE_FAILED = 0x1503  # esp_ota_ops.h

_SEGMENT = struct.Struct("<II")
_BLK_REV = struct.Struct("<HHB")  # esp_app_desc_t: min/max_efuse_blk_rev_full, mmu_page_size
_BLK_REV_OFFSET = 176
_WORD = 0xFFFFFFFF

_MIN_C2_PAGE_SIZE = 0x4000
_PAGE_SIZES = (0x2000, 0x4000, 0x8000, 0x10000)  # mmu_types.h: those that these chips have

# Bytes of the loader's code that an app may overwrite: real bootloaders of C6, C61 and H2 boot an
# app that covers their first 16 bytes, which have run by then and are not needed again.
_LOADER_HEAD = 16

_STACK_HEADROOM = 32768  # esp_image_format.c: STACK_LOAD_HEADROOM
# How far below the top of the ROM's stack the bootloader's stack pointer stands when it checks a
# segment. An estimate: the frames from call_start_cpu0 to verify_load_addresses take 0x330 bytes
# in a v5.0.4 bootloader of an ESP32, those of the ROM that called it come on top.
_STACK_DEPTH = 0x400


# verify_image_header: before it, what stands at the bootloader's address counted as an app there.
_BOOTLOADER_IS_TOLD_APART = (5, 5)


class Level(str, Enum):
    """The letter that ESP-IDF's log puts in front of a line; ROM lines have none."""

    ERROR = "E"
    WARNING = "W"
    INFO = "I"
    ROM = ""


@dataclass(frozen=True)
class LogLine:
    """A line of the console, without colour and time stamp: ``esp_image: Checksum failed. ...``"""

    level: Level
    tag: str
    text: str

    def __str__(self) -> str:
        return f"{self.tag}: {self.text}" if self.tag else self.text

    @property
    def printed(self) -> str:
        """As ESP-IDF prints it, at time 0: ``E (0) esp_image: ...``."""
        return f"{self.level.value} (0) {self}" if self.level.value else str(self)


class Cause(Enum):
    """Why something does not boot, or why another app boots than was selected."""

    # the ROM
    BOOTLOADER_MISSING = "bootloader-missing"
    BOOTLOADER_CORRUPT = "bootloader-corrupt"
    # the partition table
    TABLE_MAGIC = "table-magic"
    TABLE_MD5 = "table-md5"
    TABLE_TWO_MD5 = "table-two-md5"
    TABLE_FLASH_SIZE = "table-flash-size"
    TABLE_NO_END = "table-no-end"
    # otadata
    OTADATA_SIZE = "otadata-size"
    OTADATA_WRITE = "otadata-write"
    OTADATA_INVALID = "otadata-invalid"
    # an app image
    PARTITION_SIZE = "partition-size"
    OFFSET_ALIGNMENT = "offset-alignment"
    MAGIC = "magic"
    CHIP = "chip"
    MIN_REVISION = "min-revision"
    MAX_REVISION = "max-revision"
    MIN_BLOCK_REVISION = "min-block-revision"
    MAX_BLOCK_REVISION = "max-block-revision"
    SEGMENT_COUNT = "segment-count"
    SEGMENT_LENGTH = "segment-length"
    APP_DESC = "app-desc"
    MAP_ALIGNMENT = "map-alignment"
    OVERLAPS_STACK = "overlaps-stack"
    OVERLAPS_DATA = "overlaps-data"
    OVERLAPS_LOADER = "overlaps-loader"
    BAD_ADDRESS = "bad-address"
    OVERWRITES_LOADER = "overwrites-loader"
    OVERWRITES_ROM_DATA = "overwrites-rom-data"
    MMU_PAGES = "mmu-pages"
    CHECKSUM = "checksum"
    LENGTH = "length"
    DIGEST = "digest"
    # the end
    TWO_MAPPED_SEGMENTS = "two-mapped-segments"
    NO_BOOTABLE_APP = "no-bootable-app"


# The bootloader does not refuse these: it stops in the middle, without a word, until its watchdog
# or the assertion resets the chip.
NEVER_RETURNS = (Cause.OVERWRITES_LOADER, Cause.OVERWRITES_ROM_DATA, Cause.MMU_PAGES)


@dataclass(frozen=True)
class BootFault:
    """A cause, the words on the console, and their numbers by name; sizes in bytes.

    For a cause in `NEVER_RETURNS` the text is mpota's own: the console stays silent.
    """

    cause: Cause
    text: str
    values: dict[str, int] = field(default_factory=dict)


class Log:
    """Collects what the bootloader says, and why."""

    def __init__(self) -> None:
        self.lines: list[LogLine] = []
        self.faults: list[BootFault] = []

    def fail(self, cause: Cause, tag: str, text: str, **values: int) -> None:
        """Record an error line with its cause."""
        self.error(tag, text)
        self.faults.append(BootFault(cause, f"{tag}: {text}", values))

    def note(self, cause: Cause, tag: str, text: str, **values: int) -> None:
        """Record a cause that the console does not mention."""
        self.faults.append(BootFault(cause, f"{tag}: {text}", values))

    def error(self, tag: str, text: str) -> None:
        self.lines.append(LogLine(Level.ERROR, tag, text))

    def warning(self, tag: str, text: str) -> None:
        self.lines.append(LogLine(Level.WARNING, tag, text))

    def info(self, tag: str, text: str) -> None:
        self.lines.append(LogLine(Level.INFO, tag, text))

    def rom(self, text: str) -> None:
        self.lines.append(LogLine(Level.ROM, "", text))


def error_lines(lines: tuple[LogLine, ...]) -> tuple[str, ...]:
    """The error lines alone, in order."""
    return tuple(str(line) for line in lines if line.level is Level.ERROR)


@dataclass(frozen=True)
class Rules:
    """What differs between releases. ``max_image_size`` (bytes) is of a partition and, exclusive,
    of a segment; ``revision_style`` is a key of the texts below; ``prints_info`` tells whether
    lines of level info were built in.
    """

    prints_info: bool
    max_image_size: int
    revision_style: str
    checks_block_revision: bool
    checks_app_desc: bool


@dataclass(frozen=True)
class BootloaderInfo:
    """A bootloader, as far as it decides what boots.

    ``idf_version`` is the release it names ("v5.4.2"), None if it names none: the description
    came with v5.2. ``release`` is (5, 4, 2) of it, or (5, 1), (5, 0) by the texts of one without a
    name, the newest where nothing tells. ``data``, ``loader_iram`` and ``stack`` are what no app
    segment may touch.
    ``chip_revision`` and ``block_revision`` (major * 100 + minor) are of the chip that it runs on;
    None skips the check. ``is_chip_known`` False: ``chip_revision`` is the lowest that there can
    be, and an image that needs a higher one is for a chip that has it. ``flash_size`` is what its
    header declares (bytes): the bootloader believes that, not the flash. ``page_size`` (bytes) is
    that of the MMU that it was built for.
    Whether it was built with app rollback, nothing in a binary shows soundly.
    """

    chip: Chip
    memory: Memory
    idf_version: str | None
    flash_size: int | None
    chip_revision: int | None
    block_revision: int | None
    data: Region
    loader_iram: Region
    stack: Region
    release: tuple[int, ...]
    rules: Rules
    page_size: int = BLOCK_SIZE
    is_chip_known: bool = True


# bootloader_common_loader.c: bootloader_common_check_chip_validity; v4.4, v5.0, v5.5.
_REVISION_TEXTS = {
    "major": (
        (
            "This chip is revision {chip} but the application is configured for minimum "
            "revision {limit}. Can't run."
        ),
        "",
    ),
    "full": (
        "Image requires chip rev >= {limit}, but chip is {chip}",
        "Image requires chip rev <= {limit}, but chip is {chip}",
    ),
    "required": (
        "chip revision check failed. Required >= {limit}, found {chip}.",
        "chip revision check failed. Required <= {limit}, found {chip}.",
    ),
}


def known_bootloader(chip: Chip, min_chip_rev: int = 0) -> BootloaderInfo:
    """The bootloader of the newest release, for when none is in hand. Checks no revision.

    ``min_chip_rev`` is the min_chip_rev_full of the image to be loaded: see `memory_map`.
    """
    memory = memory_map(chip.name, min_chip_rev)
    return BootloaderInfo(
        chip=chip,
        memory=memory,
        idf_version=None,
        flash_size=None,
        chip_revision=None,
        block_revision=None,
        data=memory.data,
        loader_iram=memory.loader_iram,
        stack=_stack(memory),
        release=_NEWEST,
        rules=Rules(
            prints_info=True,
            max_image_size=_WORD if memory.has_big_images else MAX_SEGMENT_SIZE,
            revision_style="required",
            checks_block_revision=chip.name != "esp32",
            checks_app_desc=memory.has_mmu_page_sizes,
        ),
    )


def bootloader_info(
    data: bytes, chip_revision: int | None = None, block_revision: int | None = None
) -> BootloaderInfo:
    """What the bootloader image that starts ``data`` will do.

    ``chip_revision`` (major * 100 + minor) is the chip's; None, for a file that belongs to no chip,
    takes the lowest that the bootloader and each image run on. ``block_revision`` is that of its
    eFuse block 2; None: whatever an image needs.
    Raises MpotaError if ``data`` does not start with a whole image.
    """
    image = Image.from_bytes(data)
    chip, minimum = image.chip, image.header.min_revision
    memory = memory_map(chip.name, minimum)
    region, loader = memory.bootloader_regions(image.segments, image.header.entry_addr)
    desc = find_bootloader_desc(image.data)
    release = _release(desc.idf_ver if desc else None, image.data)
    if chip.name == "esp32" and release < ESP32_IRAM_GREW:
        memory = replace(memory, iram=Region(memory.iram.start, memory.diram_iram.start))
    if chip.name == "esp32" and b"Unicore bootloader" in image.data:
        # esp_ptr_in_iram: the other core's cache is memory then.
        memory = replace(memory, iram=Region(memory.loader_iram.start, memory.iram.end))
    if chip.name == "esp32c61":
        # bootloader.ld of v5.4 to v6.1: the stack's top moved (v5.5.5, v6.0.1) and the loader with
        # it, always 64 KiB below.
        memory = replace(memory, rom_stack_start=loader.start + 0x10000)
    is_chip_known = chip_revision is not None
    if chip_revision is None:
        chip_revision = minimum if minimum != 0xFFFF else 0
    flash_size = _declared_flash_size(image.header, release)
    info = replace(
        known_bootloader(chip, minimum),
        memory=memory,
        idf_version=desc.idf_ver if desc else None,
        flash_size=flash_size,
        chip_revision=chip_revision,
        block_revision=block_revision,
        data=region,
        loader_iram=loader,
        stack=_stack(memory),
        release=release,
        page_size=_page_size(memory, flash_size),
        is_chip_known=is_chip_known,
    )
    return replace(info, rules=_rules_of(image.data)) if _has_texts(image.data) else info


def _has_texts(image: bytes) -> bool:
    """Whether the rules can be read off the log texts, which a silent build or v6's binary log
    lacks.
    """
    return b"invalid segment length" in image


def _rules_of(image: bytes) -> Rules:
    """The rules that a bootloader was built with, told by the error texts in its image."""
    style = "full"
    if b"chip revision check failed" in image:
        style = "required"
    elif b"is configured for minimum revision" in image:
        style = "major"
    return Rules(
        prints_info=b"Loaded app from partition" in image,
        max_image_size=MAX_SEGMENT_SIZE if b"larger than 16MB" in image else _WORD,
        revision_style=style,
        checks_block_revision=b"efuse blk rev >=" in image,
        checks_app_desc=b"Failed to fetch app description header" in image,
    )


_NEWEST = (99,)


def _release(idf_version: str | None, image: bytes) -> tuple[int, ...]:
    """(5, 4, 2) of "v5.4.2". A bootloader older than v5.2 names none: its texts tell it apart."""
    match = re.match(r"v(\d+)\.(\d+)(?:\.(\d+))?", idf_version or "")
    if match:
        return tuple(int(number or 0) for number in match.groups())
    if not _has_texts(image):
        return _NEWEST
    # v5.1 was the first to print offsets by PRIx32.
    return (5, 1) if b"image at 0x%lx" in image else (5, 0)


# The release in which the chip's update_flash_config (bootloader_flash_config_<chip>.c, before
# that bootloader_<chip>.c) learned of more than 16 MiB; those not named did with all others.
_KNOWS_BIG_FLASH = {"esp32s2": (4,), "esp32s3": (4,), "esp32p4": (5, 4), "esp32c5": (5, 5)}
_ALL_KNOW_BIG_FLASH = (5, 5, 2)
_ALL_KNOW_BIG_FLASH_V5_4 = (5, 4, 4)


def _declared_flash_size(header: ImageHeader, release: tuple[int, ...]) -> int:
    """update_flash_config: what the header says; a code that it does not know is 2 MiB."""
    since = _KNOWS_BIG_FLASH.get(header.chip.name, _ALL_KNOW_BIG_FLASH)
    is_big_known = release >= since or _ALL_KNOW_BIG_FLASH_V5_4 <= release < (5, 5)
    size = header.flash_size
    return 2 * MiB if size is None or (size > 16 * MiB and not is_big_known) else size


def _page_size(memory: Memory, flash_size: int) -> int:
    """Kconfig of the ESP32-C2: the smallest page with which the MMU reaches all of the flash."""
    if memory.chip != "esp32c2":
        return BLOCK_SIZE
    return max(min(flash_size // memory.mmu_pages, BLOCK_SIZE), _MIN_C2_PAGE_SIZE)


def _stack(memory: Memory) -> Region:
    """esp_image_format.c: verify_load_addresses, from sp - STACK_LOAD_HEADROOM up."""
    top = memory.rom_stack_start
    return Region(top - _STACK_DEPTH - _STACK_HEADROOM, top)


@dataclass(frozen=True)
class ImageVerdict:
    """What was made of one image. ``image_size`` (bytes, digest included) and ``segments`` are
    those read until it stopped; ``lines`` all that was said, ``faults`` why it is not bootable.
    """

    is_bootable: bool
    image_size: int
    segments: tuple[Segment, ...]
    lines: tuple[LogLine, ...]
    faults: tuple[BootFault, ...]

    @property
    def console(self) -> tuple[str, ...]:
        """The error lines, in order."""
        return error_lines(self.lines)

    @property
    def never_returns(self) -> bool:
        """The bootloader does not come back from this image: no other one is tried."""
        return any(fault.cause in NEVER_RETURNS for fault in self.faults)


def verify_image(
    flash: ReadOnlyFlash,
    offset: int,
    size: int,
    bootloader: BootloaderInfo,
    *,
    is_boot: bool = True,
) -> ImageVerdict:
    """What ``bootloader`` says of the image in the partition of ``size`` bytes at ``offset``.

    ``is_boot=False`` is the running app's own verification, by esp_ota_set_boot_partition and the
    like (`set_boot_error`): the same but for the load addresses, which only the bootloader checks.
    """
    return _Load(flash, offset, size, bootloader, is_boot).run()


def set_boot_error(flash: ReadOnlyFlash, offset: int, size: int, bootloader: BootloaderInfo) -> int:
    """What esp_ota_set_boot_partition makes of the image (esp_ota_ops.c: image_validate).

    0, or ESP_ERR_OTA_VALIDATE_FAILED, of which MicroPython makes OSError(-5379).
    """
    verdict = verify_image(flash, offset, size, bootloader, is_boot=False)
    return 0 if verdict.is_bootable else ESP_ERR_OTA_VALIDATE_FAILED


def read_mapped(flash: ReadOnlyFlash, offset: int, size: int, limit: int, unmapped: bytes) -> bytes:
    """Flash as the cache shows it; beyond the chip, or ``limit``, it shows the word ``unmapped``.

    A real chip with less flash than the address says may answer with other bytes of it; neither
    is ever an image.
    """
    end = min(flash.size, limit)
    inside = max(0, min(size, end - offset))
    data = flash.read(offset, inside) if inside else b""
    if inside == size:
        return data
    phase = (offset + inside) % 4
    return data + (unmapped * (size // 4 + 2))[phase : phase + size - inside]


@dataclass(frozen=True)
class _Collision:
    """A segment that may not be loaded: where it would lie, and what is in its way there."""

    cause: Cause
    load: Region
    region: Region

    def text(self, index: int) -> str:
        refused = "" if self.cause in NEVER_RETURNS else "invalid: "
        return f"Segment {index} {self.load} {refused}{_COLLISION_TEXTS[self.cause]}"

    def values(self) -> dict[str, int]:
        load, region = self.load, self.region
        return {
            "start": load.start,
            "end": load.end,
            "region_start": region.start,
            "region_end": region.end,
        }


_COLLISION_TEXTS = {
    Cause.OVERLAPS_STACK: "overlaps bootloader stack",
    Cause.OVERLAPS_DATA: "overlaps bootloader data",
    Cause.OVERLAPS_LOADER: "overlaps loader IRAM",
    Cause.BAD_ADDRESS: "bad load address range",
    Cause.OVERWRITES_LOADER: "overwrites the loader itself",
    Cause.OVERWRITES_ROM_DATA: "overwrites the ROM's data",
}


def address_faults(
    segments: Sequence[Segment], bootloader: BootloaderInfo
) -> tuple[BootFault, ...]:
    """Every segment that ``bootloader`` would not load, in its words, or would not survive.

    The bootloader itself stops at the first thing that is wrong, which may be another one.
    """
    faults = []
    for index, segment in enumerate(segments):
        if _is_loaded(segment, bootloader.memory) and segment.data_size:
            found = _verify_load_addresses(segment, bootloader)
            if found is not None:
                text = f"esp_image: {found.text(index)}"
                faults.append(BootFault(found.cause, text, {"segment": index, **found.values()}))
    return tuple(faults)


def _is_loaded(segment: Segment, memory: Memory) -> bool:
    """should_load: neither mapped, nor one of the numbers that padding has for an address."""
    return not memory.is_mapped(segment.load_addr) and segment.load_addr >= 0x10000000


def _verify_load_addresses(segment: Segment, bootloader: BootloaderInfo) -> _Collision | None:
    load = Region(segment.load_addr, (segment.load_addr + segment.data_size) & _WORD)
    return _find_collision(load, bootloader, is_alias=False)


def _find_collision(load: Region, bootloader: BootloaderInfo, is_alias: bool) -> _Collision | None:
    """verify_load_addresses: what would be overwritten that the bootloader needs.

    What lies in D/IRAM is checked once more at its address on the other bus. Where both are one
    bus it checks stack and data alone, and overwrites itself.
    """
    memory = bootloader.memory
    if memory.dram.holds(load):
        for cause, region in (
            (Cause.OVERLAPS_STACK, bootloader.stack),
            (Cause.OVERLAPS_DATA, bootloader.data),
        ):
            if region.overlaps(load):
                return _Collision(cause, load, region)
        if memory.rom_data is not None and memory.rom_data.overlaps(load):
            return _Collision(Cause.OVERWRITES_ROM_DATA, load, memory.rom_data)
        if memory.is_one_bus:
            return _find_overwritten_loader(load, bootloader.loader_iram)
        bus, convert = memory.diram_dram, memory.to_iram
    elif memory.iram.holds(load):
        if bootloader.loader_iram.overlaps(load):
            return _Collision(Cause.OVERLAPS_LOADER, load, bootloader.loader_iram)
        bus, convert = memory.diram_iram, memory.to_dram
    elif any(region.holds(load) for region in memory.plain):
        return None
    else:
        return _Collision(Cause.BAD_ADDRESS, load, load)
    if is_alias or not bus.overlaps(load):
        return None
    ends = (
        convert(load.start if load.start in bus else bus.start),
        convert(load.end if load.end - 1 in bus else bus.end),
    )
    return _find_collision(Region(min(ends), max(ends)), bootloader, is_alias=True)


def _find_overwritten_loader(load: Region, loader: Region) -> _Collision | None:
    needed = Region(loader.start + _LOADER_HEAD, loader.end)
    return _Collision(Cause.OVERWRITES_LOADER, load, loader) if needed.overlaps(load) else None


class _Stop(Exception):
    """The image is refused; the log says why."""


class _Load:
    """One pass over an image: esp_image_format.c, function by function."""

    def __init__(
        self,
        flash: ReadOnlyFlash,
        offset: int,
        size: int,
        bootloader: BootloaderInfo,
        is_boot: bool,
    ) -> None:
        self.flash = flash
        self.offset = offset
        self.size = size
        self.bootloader = bootloader
        self.memory = bootloader.memory
        self.is_boot = is_boot
        # is_bootloader: what stands at the bootloader's own address is checked as a bootloader.
        self.is_app = offset != bootloader.chip.bootloader_offset
        self.log = Log()
        self.segments: list[Segment] = []
        self.image_size = 0
        self.checksum = CHECKSUM_SEED
        self.page_size = BLOCK_SIZE
        self.digest = hashlib.sha256()

    def run(self) -> ImageVerdict:
        try:
            self.image_load()
            is_bootable = True
        except _Stop:
            is_bootable = False
        return ImageVerdict(
            is_bootable,
            self.image_size,
            tuple(self.segments),
            tuple(self.log.lines),
            tuple(self.log.faults),
        )

    def image_load(self) -> None:
        if self.size > self.bootloader.rules.max_image_size:
            self.fail(
                Cause.PARTITION_SIZE,
                f"partition size 0x{self.size:x} invalid, larger than 16MB",
                size=self.size,
            )
        header = self.process_image_header()
        for index in range(header.segment_count):
            self.process_segment(index)
        self.process_checksum()
        self.process_appended_hash(bool(header.hash_appended))
        if self.is_boot:
            self.check_mapping()

    def fail(self, cause: Cause, text: str, *, tag: str = "esp_image", **values: int) -> None:
        self.log.fail(cause, tag, text, **values)
        raise _Stop

    def read(self, offset: int, size: int) -> bytes:
        """bootloader_flash.c: bootloader_flash_read and bootloader_mmap, through the cache."""
        memory = self.memory
        return read_mapped(self.flash, offset, size, memory.flash_limit, memory.unmapped)

    def process_image_header(self) -> ImageHeader:
        if self.offset % 4:
            self.fail(
                Cause.OFFSET_ALIGNMENT,
                f"bootloader_flash_read src_addr 0x{self.offset:x} not 4-byte aligned",
                tag="bootloader_flash",
                offset=self.offset,
            )
        raw = self.read(self.offset, HEADER_SIZE)
        self.digest.update(raw)
        if raw[0] != IMAGE_MAGIC:
            self.fail(
                Cause.MAGIC,
                f"image at 0x{self.offset:x} has invalid magic byte (nothing flashed here?)",
                offset=self.offset,
                found=raw[0],
            )
        header = ImageHeader.from_bytes(raw)
        is_app = self.is_app or self.bootloader.release < _BOOTLOADER_IS_TOLD_APART
        check_chip_validity(header, self.bootloader, self.log, is_app=is_app)
        if self.log.faults:
            raise _Stop
        if header.segment_count > MAX_SEGMENTS:
            self.fail(
                Cause.SEGMENT_COUNT,
                f"image at 0x{self.offset:x} segment count {header.segment_count} "
                f"exceeds max {MAX_SEGMENTS}",
                offset=self.offset,
                found=header.segment_count,
                limit=MAX_SEGMENTS,
            )
        self.image_size = HEADER_SIZE
        return header

    def process_segment(self, index: int) -> None:
        raw = self.read(self.offset + self.image_size, SEGMENT_HEADER_SIZE)
        self.digest.update(raw)
        load_addr, length = _SEGMENT.unpack(raw)
        segment = Segment(load_addr, self.image_size + SEGMENT_HEADER_SIZE, length)
        data_offset = self.offset + segment.data_offset
        self.verify_segment_header(index, segment, data_offset)
        is_mapped = self.memory.is_mapped(load_addr)
        is_loaded = self.is_boot and _is_loaded(segment, self.memory)
        use = "load" if is_loaded else "map" if is_mapped else ""
        self.log.info(
            "esp_image",
            f"segment {index}: paddr={data_offset:08x} vaddr={load_addr:08x} "
            f"size={length:05x}h ({length:6d}) {use}",
        )
        if is_loaded and length:
            found = _verify_load_addresses(segment, self.bootloader)
            if found is not None:
                values = {"segment": index, **found.values()}
                say = self.log.note if found.cause in NEVER_RETURNS else self.log.fail
                say(found.cause, "esp_image", found.text(index), **values)
                raise _Stop
        self.segments.append(segment)
        self.image_size = segment.data_offset + length
        # What lies beyond the flash is one word over and over: an even number of them is nothing
        # to the checksum, and no digest can be made to fit, so that gigabytes need not be read.
        beyond = max(0, data_offset + length - min(self.flash.size, self.memory.flash_limit))
        data = self.read(data_offset, length - max(0, beyond // 8 - 1) * 8)
        if index == 0 and length and self.is_app:
            self.check_block_revision(data)
        self.checksum ^= xor_bytes(data)
        self.digest.update(data)

    def verify_segment_header(self, index: int, segment: Segment, data_offset: int) -> None:
        length = segment.data_size
        if length % 4 or length >= self.bootloader.rules.max_image_size:
            self.fail(
                Cause.SEGMENT_LENGTH,
                f"invalid segment length 0x{length:x}",
                segment=index,
                length=length,
                limit=self.bootloader.rules.max_image_size,
            )
        if index == 0 and self.is_app and self.bootloader.rules.checks_app_desc:
            self.check_app_desc(data_offset)
        load_addr = segment.load_addr
        # should_map; a mapped segment lies in flash as in memory, relative to the MMU page.
        if self.memory.is_mapped(load_addr) and (data_offset - load_addr) % self.page_size:
            self.fail(
                Cause.MAP_ALIGNMENT,
                f"Segment {index} load address 0x{load_addr:08x}, "
                f"doesn't match data 0x{data_offset:08x}",
                segment=index,
                load_addr=load_addr,
                data_offset=data_offset,
                page_size=self.page_size,
            )

    def check_app_desc(self, data_offset: int) -> None:
        """verify_segment_header, SOC_MMU_PAGE_SIZE_CONFIGURABLE, from v5.4 on."""
        found = int.from_bytes(self.read(data_offset, 4), "little")
        if found != APP_DESC_MAGIC:
            self.fail(
                Cause.APP_DESC,
                "Failed to fetch app description header!",
                found=found,
                offset=data_offset - self.offset,
            )
        _, _, log2 = _BLK_REV.unpack(self.read(data_offset + _BLK_REV_OFFSET, _BLK_REV.size))
        if log2:
            self.page_size = 1 << log2 % 32  # as RISC-V shifts, and only RISC-V chips read it

    def check_block_revision(self, data: bytes) -> None:
        """bootloader_common_check_efuse_blk_validity."""
        found = self.bootloader.block_revision
        if not self.bootloader.rules.checks_block_revision or found is None:
            return
        if len(data) < _BLK_REV_OFFSET + _BLK_REV.size:
            return
        minimum, maximum, _ = _BLK_REV.unpack_from(data, _BLK_REV_OFFSET)
        chip = _revision(found)
        for cause, sign, limit, is_bad in (
            (Cause.MIN_BLOCK_REVISION, ">=", minimum, found < minimum),
            (Cause.MAX_BLOCK_REVISION, "<=", maximum, found > maximum),
        ):
            if limit not in (0, 0xFFFF) and is_bad:
                self.log.fail(
                    cause,
                    "boot_comm",
                    f"Image requires efuse blk rev {sign} {_revision(limit)}, but chip is {chip}",
                    found=found,
                    limit=limit,
                )
        if self.log.faults:
            raise _Stop

    def process_checksum(self) -> None:
        end = align_up(self.image_size + 1, 16)
        padding = self.read(self.offset + self.image_size, end - self.image_size)
        if self.checksum != padding[-1]:
            self.fail(
                Cause.CHECKSUM,
                f"Checksum failed. Calculated 0x{self.checksum:x} read 0x{padding[-1]:x}",
                calculated=self.checksum,
                found=padding[-1],
            )
        self.digest.update(padding)
        self.image_size = end

    def process_appended_hash(self, is_appended: bool) -> None:
        """process_appended_hash_and_sig, then verify_simple_hash."""
        stored = self.read(self.offset + self.image_size, DIGEST_SIZE) if is_appended else b""
        self.image_size += len(stored)
        if self.image_size > self.size:
            self.fail(
                Cause.LENGTH,
                f"Image length {self.image_size} doesn't fit in partition length {self.size}",
                length=self.image_size,
                limit=self.size,
            )
        if is_appended and self.is_app and stored != self.digest.digest():
            self.fail(Cause.DIGEST, "Image hash failed - image is corrupt")

    def check_mapping(self) -> None:
        """mmu_hal.c: mmu_hal_map_region's assertions, for another page size than 64 KiB.

        The MMU has so many pages that they reach all of the largest flash only at 64 KiB each
        (mmu_ll_check_valid_paddr_region); on the ESP32-C2 the page that shows the app its own
        place has no entry if the bootloader was built for larger pages (mmu_ll_write_entry).
        """
        page, pages = self.page_size, self.memory.mmu_pages
        if page not in _PAGE_SIZES or not pages:
            return
        ends = [
            self.offset + segment.data_offset + segment.data_size
            for segment in self.segments
            if self.memory.is_mapped(segment.load_addr)
        ]
        end = max(ends, default=0)
        built_for = self.bootloader.page_size
        if self.memory.chip == "esp32c2" and page < built_for:
            text = f"MMU pages of 0x{page:x}, this bootloader maps pages of 0x{built_for:x}"
        elif end > page * pages:
            text = f"{pages} MMU pages of 0x{page:x} do not reach up to 0x{end:x}"
        else:
            return
        self.log.note(Cause.MMU_PAGES, "boot", text, page_size=page)
        raise _Stop


def check_chip_validity(
    header: ImageHeader, bootloader: BootloaderInfo, log: Log, *, is_app: bool
) -> None:
    """bootloader_common_loader.c: bootloader_common_check_chip_validity."""
    expected = bootloader.chip.chip_id
    if header.chip_id != expected:
        log.fail(
            Cause.CHIP,
            "boot_comm",
            f"mismatch chip ID, expected {expected}, found {header.chip_id}",
            expected=expected,
            found=header.chip_id,
        )
        if bootloader.rules.revision_style != "major":
            return
    revision = bootloader.chip_revision
    if revision is None:
        return
    low_text, high_text = _REVISION_TEXTS[bootloader.rules.revision_style]
    if bootloader.rules.revision_style == "major":
        # Its one number: ImageHeader.min_revision.
        unit = 1 if bootloader.chip.name == "esp32c3" else 100
        number = revision % 100 if unit == 1 else revision // 100
        if bootloader.is_chip_known and number < header.min_chip_rev:
            text = low_text.format(chip=number, limit=header.min_chip_rev)
            limit = header.min_chip_rev * unit
            log.fail(Cause.MIN_REVISION, "boot_comm", text, found=revision, limit=limit)
        return
    minimum, maximum = header.min_chip_rev_full, header.max_chip_rev_full
    limit = maximum if is_app and maximum not in (0, 0xFFFF) else 0xFFFE
    if not bootloader.is_chip_known and minimum <= limit:
        revision = max(revision, minimum)  # there are chips that have it
    chip = _revision(revision)
    if revision < minimum:
        text = low_text.format(limit=_revision(minimum), chip=chip)
        log.fail(Cause.MIN_REVISION, "boot_comm", text, found=revision, limit=minimum)
        if bootloader.rules.revision_style == "required":
            return
    if revision > limit:
        text = high_text.format(limit=_revision(maximum), chip=chip)
        log.fail(Cause.MAX_REVISION, "boot_comm", text, found=revision, limit=maximum)


def _revision(number: int) -> str:
    return f"v{number // 100}.{number % 100}"
