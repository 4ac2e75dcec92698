"""The chips, and where in their memory the bootloader of this board's flash stands.

Where the bootloader stands differs between chips and ESP-IDF releases, so its segments are read
from the flash. That is of use once in an update.
"""

import struct

from esp32 import Partition
from micropython import const

_MAGIC = const(0xE9)
_MAX_SEGMENTS = const(16)
# STACK_LOAD_HEADROOM, and what lies on the stack when it is checked (an estimate).
_STACK_HEADROOM = const(0x8000 + 0x400)

# One row a chip, from soc.h and bootloader.memory.ld.in; addresses in units of 16 bytes (the last
# of 4), so that they are small integers: chip id, name, bootloader's offset in flash, ranges
# mapped from flash, ranges of RAM (the first one is the data bus), the same RAM on both buses
# (instruction address, data address), the ROM stack's start, pages of the MMU where their size can
# be chosen.
# fmt: off
_CHIPS = (
    (0, "ESP32", 0x100, (0x3F40000, 0x3F80000, 0x400D000, 0x4040000),
     (0x3FFAE00, 0x4000000, 0x4008000, 0x400AA00, 0x400C000, 0x400C200,
      0x3FF8000, 0x3FF8200, 0x5000000, 0x5000200), None, 0x3FFE3F20 >> 2, 0),
    (2, "ESP32-S2", 0x100, (0x3F00000, 0x3FF8000, 0x4008000, 0x4080000),
     (0x3FFB000, 0x4000000, 0x4002000, 0x4007000, 0x4007000, 0x4007200,
      0x3FF9E00, 0x3FFA000, 0x5000000, 0x5000200), (0x4002000, 0x3FFB000), 0x3FFFE70C >> 2, 0),
    (9, "ESP32-S3", 0, (0x3C00000, 0x3E00000, 0x4200000, 0x4400000),
     (0x3FC8800, 0x3FD0000, 0x4037000, 0x403E000, 0x600FE00, 0x6010000,
      0x5000000, 0x5000200), (0x4037800, 0x3FC8800), 0x3FCEB710 >> 2, 0),
    (12, "ESP32-C2", 0, (0x3C00000, 0x3C40000, 0x4200000, 0x4240000),
     (0x3FCA000, 0x3FCE000, 0x4037C00, 0x403C000), (0x4038000, 0x3FCA000), 0x3FCDEB70 >> 2, 64),
    (5, "ESP32-C3", 0, (0x3C00000, 0x3C80000, 0x4200000, 0x4280000),
     (0x3FC8000, 0x3FCE000, 0x4037C00, 0x403E000, 0x5000000, 0x5000200),
     (0x4038000, 0x3FC8000), 0x3FCDE710 >> 2, 0),
    (23, "ESP32-C5", 0x200, (0x4200000, 0x4400000),
     (0x4080000, 0x4086000, 0x5000000, 0x5000400), None, 0x4085E5A0 >> 2, 0),
    (13, "ESP32-C6", 0, (0x4200000, 0x4300000),
     (0x4080000, 0x4088000, 0x5000000, 0x5000400), None, 0x4087E610 >> 2, 256),
    (20, "ESP32-C61", 0, (0x4200000, 0x4400000),
     (0x4080000, 0x4085000), None, 0x4084EA70 >> 2, 512),
    (16, "ESP32-H2", 0, (0x4200000, 0x4300000),
     (0x4080000, 0x4085000, 0x5000000, 0x5000100), None, 0x4084F380 >> 2, 256),
    (18, "ESP32-P4", 0x200, (0x4000000, 0x4400000, 0x4800000, 0x4C00000),
     (0x4FF0000, 0x4FFC000, 0x5010800, 0x5011000, 0x3010000, 0x3010200), None, 0x4FF3CFC0 >> 2, 0),
)
# fmt: on
_ESP32 = const(0)
_ESP32_C2 = const(12)
_ESP32_C61 = const(20)
_ESP32_P4 = const(18)
_P4_V3_STACK = const(0x4FFBCFC0 >> 2)  # SOC_ROM_STACK_START_REV2: of bootloaders built for v3 chips
_ESP32_DATA = const(0x3FFF0000)
_ESP32_ROM_DATA = const(0x3FFAE000)  # memory_layout.c: rom_data
_ESP32_ROM_DATA_END = const(0x3FFAE6E0)
_ESP32_SRAM1 = const(0x3FFE0000)
_ESP32_SRAM1_END = const(0x3FFF6000)  # above it is IRAM of newer releases: SOC_IRAM_HIGH
_PAGE = const(0x1000)
_MMU_PAGE = const(0x10000)
_LEAST_MMU_PAGE = const(0x4000)  # of the ESP32-C2
_C61_STACK = const(0x10000)  # above the loader's start, in every release: bootloader.ld
# Bytes of the loader that an app may overwrite on a single bus: they have run by then.
_LOADER_HEAD = const(16)


def chip_name(chip_id):
    """Espressif's name of the chip, or the number for one that this version does not know."""
    for row in _CHIPS:
        if row[0] == chip_id:
            return row[1]
    return "chip id %d" % chip_id


def running_chip_id():
    """The chip that the running app is for: the number in image headers."""
    head = bytearray(14)
    Partition(Partition.RUNNING).readblocks(0, head, 0)
    return head[12] | head[13] << 8


def running_chip():
    """The same as manifests and channels name it, like "esp32s3"."""
    return chip_name(running_chip_id()).lower().replace("-", "")


def load_memory(chip_id):
    """The Memory of a chip and of the bootloader in this board's flash.

    Of a chip that is not in the table nothing is known, and every address passes.
    """
    from .image import Memory

    memory = Memory()
    for row in _CHIPS:
        if row[0] == chip_id:
            memory.bootloader_offset = row[2] << 4
            memory.mapped, memory.ram, memory.alias = row[3], row[4], row[5]
            memory.mmu_pages = row[7]
            _find_used(memory, chip_id, row[6] << 2)
    return memory


def _find_used(memory, chip_id, stack):
    flash_size, segments = _read_segments(memory.bootloader_offset)
    if chip_id == _ESP32_C2:  # Kconfig: the smallest that reaches all of the flash
        memory.least_page = max(min(flash_size // memory.mmu_pages, _MMU_PAGE), _LEAST_MMU_PAGE)
    data = [s for s in segments if memory.ram[0] << 4 <= s[0] < memory.ram[1] << 4]
    code = [s for s in segments if s not in data]
    if not memory.alias and chip_id != _ESP32:  # one bus: the data lies above all code
        data.sort()
        code, data = data[:-1], data[-1:]
    if chip_id == _ESP32_P4 and data and data[0][0] > stack:
        stack = _P4_V3_STACK << 2
    # An app may overwrite iram_seg, not the loader (iram_loader_seg), which is the larger.
    loader = max(code, key=lambda s: s[1] - s[0]) if code else None
    if loader:
        loader = memory.on_data_bus(loader[0]), memory.on_data_bus(loader[1])
        head = 0 if memory.alias or chip_id == _ESP32 else _LOADER_HEAD
        memory.used.append(("the bootloader's loader", loader[0] + head, loader[1]))
        if chip_id == _ESP32_C61:
            stack = loader[0] + _C61_STACK
    memory.used.append(("the bootloader's stack", stack - _STACK_HEADROOM, stack))
    for start, end in data:
        # .bss lies in front and is in no segment: dram_seg starts at a fixed address on the
        # ESP32, whole pages after the loader's start on the others.
        if chip_id == _ESP32:
            start = min(start, _ESP32_DATA)
        elif loader:
            start -= (start - loader[0]) % _PAGE
        memory.used.append(("the bootloader's data", start, end))
    if chip_id == _ESP32:
        # SRAM1 is D/IRAM, and what lies here is no IRAM on the other bus: not loaded either.
        memory.used += (
            ("SRAM1", _ESP32_SRAM1, _ESP32_SRAM1_END),
            ("ROM data", _ESP32_ROM_DATA, _ESP32_ROM_DATA_END),
        )


def _read_segments(offset):
    """What the bootloader at a flash address takes for the size of the flash, and its segments.

    These as (start, end) in RAM; none if there is no image, or it cannot be read (encrypted flash).
    """
    import esp

    header = bytearray(8)
    try:
        esp.flash_read(offset, header)
        if header[0] != _MAGIC or not 1 <= header[1] <= _MAX_SEGMENTS:
            return 0, ()
        flash_size = 0x100000 << (header[3] >> 4)
        segments = []
        offset += 24
        for _ in range(header[1]):
            esp.flash_read(offset, header)
            start, size = struct.unpack("<II", header)
            if size >= 1 << 24:
                return 0, ()
            segments.append((start, start + size))
            offset += 8 + size
        return flash_size, segments
    except OSError:
        return 0, ()
