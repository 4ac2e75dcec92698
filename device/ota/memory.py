"""Where an app may be loaded: the chip's memory less what the bootloader in this flash uses.

The bootloader refuses an app that would be loaded over itself (``esp_image_format.c:
verify_load_addresses``), set_boot() does not look.
"""

from micropython import const

_FIRST_LOADED = const(0x10000000)  # below: padding, never loaded (should_load)


class Memory:
    """The memory of one chip and of the bootloader in this board's flash: see chips.py.

    Addresses in ``mapped``, ``ram`` and ``alias`` are in units of 16 bytes.
    """

    bootloader_offset = None  # in flash
    mapped = ram = ()
    alias = None

    def __init__(self):
        self.used = []  # (by what, start, end), on the data bus

    def on_data_bus(self, address):
        if self.alias:
            base = self.alias[0] << 4
            if base <= address <= self.ram[3] << 4:
                return address - base + (self.alias[1] << 4)
        return address

    def is_mapped(self, address):
        """Whether a segment for this address is mapped from flash, not loaded (should_map)."""
        return _is_in(self.mapped, address, address)

    def find_conflict(self, start, end):
        """Why the bootloader would not load a segment to start..end, None if it would."""
        if not self.ram or start == end or start < _FIRST_LOADED or self.is_mapped(start):
            return None
        if not _is_in(self.ram, start, end - 1):
            return "is not in memory that an app can be loaded to"
        start = self.on_data_bus(start)
        end = self.on_data_bus(end)
        for what, used_start, used_end in self.used:
            if start < used_end and end > used_start:
                return "overlaps %s (0x%08x-0x%08x)" % (what, used_start, used_end)
        return None


def _is_in(ranges, first, last):
    first >>= 4
    last >>= 4
    return any(ranges[i] <= first and last < ranges[i + 1] for i in range(0, len(ranges), 2))
