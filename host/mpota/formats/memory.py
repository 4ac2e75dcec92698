"""The memory of each chip, as far as it decides whether an app image may be loaded.

Source: ESP-IDF ``components/soc/<chip>/include/soc/soc.h`` (SOC_DRAM_LOW/HIGH, SOC_ROM_STACK_START
and so on), ``soc_caps.h``, and the bootloader's linker scripts
``components/bootloader/subproject/main/ld/<chip>/`` (dram_seg, iram_loader_seg).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from mpota.formats.app_desc import find_app_desc
from mpota.formats.chips import find_chip
from mpota.formats.image import HEADER_SIZE, IMAGE_MAGIC, ImageHeader, Segment
from mpota.units import MiB, align_down

# soc.h of ESP32 moved SOC_IRAM_HIGH in this release: below it no D/IRAM address is IRAM.
ESP32_IRAM_GREW = (5, 1)


@dataclass(frozen=True)
class Region:
    """Addresses from ``start`` up to, not including, ``end``."""

    start: int
    end: int

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.end

    def holds(self, other: Region) -> bool:
        """Whether the first and the last byte of ``other`` lie inside."""
        return other.start in self and other.end - 1 in self

    def overlaps(self, other: Region) -> bool:
        """bootloader_util.h: bootloader_util_regions_overlap."""
        return self.end > other.start and other.end > self.start

    def __str__(self) -> str:
        return f"0x{self.start:08x}-0x{self.end:08x}"


@dataclass(frozen=True)
class Memory:
    """The memory map of one chip.

    ``mapped``: flash (and on ESP32-P4 PSRAM) that the cache maps, DROM first, IROM last; its
    segments are never loaded. ``plain``: RTC and tightly coupled memory, loaded without a check.
    ``diram_dram`` and ``diram_iram`` are one memory on two buses, in reversed word order on the
    ESP32. ``rom_stack_start``: the top of the stack that the ROM gives the bootloader. ``data``
    and ``loader_iram``: dram_seg and iram_loader_seg of the newest linker script, for when no
    bootloader is at hand. ``mmap_size``: bytes that bootloader_mmap maps at once.
    ``flash_limit``: bytes of flash that the cache reaches. ``has_mmu_page_sizes``:
    SOC_MMU_PAGE_SIZE_CONFIGURABLE, ``mmu_pages`` is then SOC_MMU_MAX_PADDR_PAGE_NUM.
    ``has_big_images``: SOC_SPI_MEM_SUPPORT_CACHE_32BIT_ADDR_MAP, an app may be larger than 16 MiB.
    ``rom_data``: what the ROM's functions keep in DRAM, which no check defends. ``unmapped``: the
    word that a cache page shows which maps no flash.
    """

    chip: str
    mapped: tuple[Region, ...]
    dram: Region
    iram: Region
    diram_dram: Region
    diram_iram: Region
    plain: tuple[Region, ...]
    rom_stack_start: int
    data: Region
    loader_iram: Region
    mmap_size: int
    flash_limit: int = 16 * MiB
    is_diram_inverted: bool = False
    has_mmu_page_sizes: bool = False
    has_big_images: bool = False
    mmu_pages: int = 0
    rom_data: Region | None = None
    unmapped: bytes = bytes(4)

    @property
    def is_one_bus(self) -> bool:
        """Whether RAM has one address for data and code, as on the newer RISC-V chips."""
        return self.dram == self.iram

    def is_mapped(self, address: int) -> bool:
        """esp_image_format.c: should_map."""
        return any(address in region for region in self.mapped)

    def to_iram(self, address: int) -> int:
        """bootloader_memory_utils.h: esp_ptr_diram_dram_to_iram."""
        if self.is_diram_inverted:
            return self.diram_iram.start + (self.diram_dram.end - address) - 4
        return self.diram_iram.start + (address - self.diram_dram.start)

    def to_dram(self, address: int) -> int:
        """bootloader_memory_utils.h: esp_ptr_diram_iram_to_dram."""
        if self.is_diram_inverted:
            return self.diram_dram.start + (self.diram_iram.end - address) - 4
        return self.diram_dram.start + (address - self.diram_iram.start)

    def bootloader_regions(
        self, segments: Sequence[Segment], entry_addr: int
    ) -> tuple[Region, Region]:
        """The static data and the loader code of a bootloader with these segments.

        That is _dram_start.._dram_end and _loader_text_start.._loader_text_end of its linker
        script. The segments say where both end; .bss, in front of the data, is in no segment, so
        that the data's start is derived: dram_seg follows iram_loader_seg, whose size is a
        multiple of 4 KiB in every release, except on the ESP32, where dram_seg is fixed. A
        region that no segment shows is the chip's known one.
        """
        runs = _merged(segments)
        data = [run for run in runs if self.dram.holds(run)]
        code = [run for run in runs if self.iram.holds(run) or run.start in self.loader_iram]
        if self.is_one_bus:  # one bus: the data lies on top, above the loader
            data, code = data[-1:], code[:-1]
        # .iram_loader.text is the larger part of the code, and never holds the entry point.
        code = [run for run in code if entry_addr not in run]
        loader = max(code, key=lambda run: run.end - run.start, default=self.loader_iram)
        if not data:
            return self.data, loader
        start = data[0].start
        if self.chip == "esp32":
            start = min(start, self.data.start)
        elif code and loader.start in self.diram_iram:
            seg_start = self.to_dram(loader.start)
            start = seg_start + align_down(start - seg_start, 0x1000)
        return Region(start, data[-1].end), loader


def _merged(segments: Sequence[Segment]) -> list[Region]:
    """The memory that segments fill, lowest first, touching ones as one."""
    runs: list[Region] = []
    for segment in sorted(segments, key=lambda s: s.load_addr):
        if runs and runs[-1].end == segment.load_addr:
            runs[-1] = Region(runs[-1].start, segment.load_end)
        elif segment.data_size:
            runs.append(Region(segment.load_addr, segment.load_end))
    return runs


def _unified(
    chip: str,
    ram: Region,
    flash: Region,
    plain: tuple[Region, ...],
    rom_stack_start: int,
    loader_start: int,
    mmap_size: int,
    *,
    psram: tuple[Region, ...] = (),
    loader_size: int = 0x7000,
    flash_limit: int = 16 * MiB,
    has_mmu_page_sizes: bool = False,
    has_big_images: bool = False,
    mmu_pages: int = 0,
) -> Memory:
    """A RISC-V chip on which data and code share one bus, and DROM and IROM one range."""
    data_start = loader_start + loader_size
    return Memory(
        chip,
        (flash, *psram),
        ram,
        ram,
        ram,
        ram,
        plain,
        rom_stack_start,
        Region(data_start, data_start + 0x5000),
        Region(loader_start, data_start),
        mmap_size,
        flash_limit,
        has_mmu_page_sizes=has_mmu_page_sizes,
        has_big_images=has_big_images,
        mmu_pages=mmu_pages,
    )


_ROWS = (
    Memory(
        "esp32",
        (Region(0x3F400000, 0x3F800000), Region(0x400D0000, 0x40400000)),
        Region(0x3FFAE000, 0x40000000),
        Region(0x40080000, 0x400AA000),  # up to 0x400A0000 before ESP32_IRAM_GREW
        Region(0x3FFE0000, 0x40000000),
        Region(0x400A0000, 0x400C0000),
        (
            Region(0x400C0000, 0x400C2000),
            Region(0x3FF80000, 0x3FF82000),
            Region(0x50000000, 0x50002000),
        ),
        0x3FFE3F20,
        Region(0x3FFF0000, 0x40000000),  # bootloader.ld: dram_seg
        Region(0x40078000, 0x40080000),  # bootloader.ld: iram_loader_seg
        0x320000,
        is_diram_inverted=True,
        rom_data=Region(0x3FFAE000, 0x3FFAE6E0),  # heap/port/esp32/memory_layout.c: rom_data
        unmapped=b"\xad\xba\xad\xba",
    ),
    Memory(
        "esp32s2",
        (Region(0x3F000000, 0x3FF80000), Region(0x40080000, 0x40800000)),
        Region(0x3FFB0000, 0x40000000),
        Region(0x40020000, 0x40070000),
        Region(0x3FFB0000, 0x40000000),
        Region(0x40020000, 0x40070000),
        (
            Region(0x40070000, 0x40072000),
            Region(0x3FF9E000, 0x3FFA0000),
            Region(0x50000000, 0x50002000),
        ),
        0x3FFFE70C,
        Region(0x3FFE5000, 0x3FFEAB00),
        Region(0x4004E000, 0x40055000),
        0x380000,
    ),
    Memory(
        "esp32s3",
        (Region(0x3C000000, 0x3E000000), Region(0x42000000, 0x44000000)),
        Region(0x3FC88000, 0x3FD00000),
        Region(0x40370000, 0x403E0000),
        Region(0x3FC88000, 0x3FCF0000),
        Region(0x40378000, 0x403E0000),
        (Region(0x600FE000, 0x60100000), Region(0x50000000, 0x50002000)),
        0x3FCEB710,
        Region(0x3FCE2700, 0x3FCE7700),
        Region(0x403CB700, 0x403D2700),
        32 * MiB,
        flash_limit=128 * MiB,
        has_big_images=True,
    ),
    Memory(
        "esp32c2",
        (Region(0x3C000000, 0x3C400000), Region(0x42000000, 0x42400000)),
        Region(0x3FCA0000, 0x3FCE0000),
        Region(0x4037C000, 0x403C0000),
        Region(0x3FCA0000, 0x3FCE0000),
        Region(0x40380000, 0x403C0000),
        (),
        0x3FCDEB70,
        Region(0x3FCD5B70, 0x3FCDAB70),
        Region(0x403AEB70, 0x403B5B70),
        4 * MiB,
        flash_limit=4 * MiB,
        has_mmu_page_sizes=True,
        mmu_pages=64,
    ),
    Memory(
        "esp32c3",
        (Region(0x3C000000, 0x3C800000), Region(0x42000000, 0x42800000)),
        Region(0x3FC80000, 0x3FCE0000),
        Region(0x4037C000, 0x403E0000),
        Region(0x3FC80000, 0x3FCE0000),
        Region(0x40380000, 0x403E0000),
        (Region(0x50000000, 0x50002000),),
        0x3FCDE710,
        Region(0x3FCD5710, 0x3FCDA710),
        Region(0x403CE710, 0x403D5710),
        8 * MiB,
    ),
    _unified(
        "esp32c5",
        Region(0x40800000, 0x40860000),
        Region(0x42000000, 0x44000000),
        (Region(0x50000000, 0x50004000),),
        0x4085E5A0,
        0x4084E5A0,
        32 * MiB,
        flash_limit=32 * MiB,
        has_big_images=True,
    ),
    _unified(
        "esp32c6",
        Region(0x40800000, 0x40880000),
        Region(0x42000000, 0x43000000),
        (Region(0x50000000, 0x50004000),),
        0x4087E610,
        0x4086E610,
        16 * MiB,
        has_mmu_page_sizes=True,
        mmu_pages=256,
    ),
    _unified(
        "esp32c61",
        Region(0x40800000, 0x40850000),
        Region(0x42000000, 0x44000000),
        (),
        0x4084E670,  # 0x4084EA70 before v5.5.5 and v6.0.1: the bootloader in hand tells
        0x4083E670,
        32 * MiB,
        flash_limit=32 * MiB,
        has_mmu_page_sizes=True,
        has_big_images=True,
        mmu_pages=512,
    ),
    _unified(
        "esp32h2",
        Region(0x40800000, 0x40850000),
        Region(0x42000000, 0x43000000),
        (Region(0x50000000, 0x50001000),),
        0x4084F380,
        0x4083EFD0,
        16 * MiB,
        has_mmu_page_sizes=True,
        mmu_pages=256,
    ),
)
# SOC_ROM_STACK_START and SOC_ROM_STACK_START_REV2, bootloader.ld.in and bootloader.rev3.ld.in
_P4_STACK, _P4_LOADER = 0x4FF3CFC0, 0x4FF2BBD0
_P4_STACK_REV3, _P4_LOADER_REV3 = 0x4FFBCFC0, 0x4FFADFC0
_P4_REV3 = 300  # chip revision, major * 100 + minor


def _esp32p4(rom_stack_start: int, loader_start: int) -> Memory:
    return _unified(
        "esp32p4",
        Region(0x4FF00000, 0x4FFC0000),
        Region(0x40000000, 0x44000000),
        (Region(0x50108000, 0x50110000), Region(0x30100000, 0x30102000)),  # LP memory, TCM
        rom_stack_start,
        loader_start,
        64 * MiB,
        psram=(Region(0x48000000, 0x4C000000),),
        loader_size=0x8000,
        flash_limit=128 * MiB,
        has_big_images=True,
    )


_BY_CHIP = {row.chip: row for row in _ROWS}


def memory_map(chip: str, min_chip_rev: int = 0) -> Memory:
    """The memory map of the chip called ``chip`` for an image with this ``min_chip_rev_full``.

    It makes a difference on ESP32-P4, whose builds before and from revision 3 on keep apart.
    """
    if chip == "esp32p4":
        if _P4_REV3 <= min_chip_rev < 0xFFFF:  # 0xFFFF: not set
            return _esp32p4(_P4_STACK_REV3, _P4_LOADER_REV3)
        return _esp32p4(_P4_STACK, _P4_LOADER)
    return _BY_CHIP[chip]


def is_app(data: bytes | memoryview) -> bool:
    """Whether ``data`` starts with an app image, intact or not, and not with a bootloader.

    An app has an app description, which other frameworks leave out, or a segment that is mapped
    from flash: bootloaders run from RAM alone.
    """
    if len(data) < HEADER_SIZE or data[0] != IMAGE_MAGIC:
        return False
    header = ImageHeader.from_bytes(bytes(data[:HEADER_SIZE]))
    chip = find_chip(header.chip_id)
    if chip is None or find_app_desc(data) is not None:
        return chip is not None
    memory = memory_map(chip.name, header.min_revision)
    position = HEADER_SIZE
    for _ in range(header.segment_count):
        if position + _SEGMENT.size > len(data):
            break
        load_addr, data_size = _SEGMENT.unpack_from(data, position)
        if memory.is_mapped(load_addr) and data_size:
            return True
        position += _SEGMENT.size + data_size
    return False


_SEGMENT = struct.Struct("<II")
