"""The registers of each chip that flashing tools read through the loader in its ROM.

Addresses are those of ESP-IDF's ``soc/*/register/soc/*_reg.h`` and ``reg_base.h``. Every register
that is not named here reads as 0 and keeps what is written to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mpota.errors import UsageError
from mpota.formats.chips import chip_by_name
from mpota.units import align_down

# A ROM word that differs between chips and revisions of their ROM. esptool tells the first chips by
# it, esptool-js (magic2Chip) all of them.
MAGIC_REG = 0x40001000
WDT_KEY = 0x50D83AA1  # unlocks the RTC watchdog: rwdt_ll.h, RTC_CNTL_WDT_WKEY


@dataclass(frozen=True)
class SpiRegisters:
    """Offsets in the SPI flash controller, and whether it sends an address from the top bit."""

    user: int
    user1: int
    user2: int
    data: int
    is_address_msb: bool

    COMMAND = 0x00
    ADDRESS = 0x04


_SPI_ESP32 = SpiRegisters(0x1C, 0x20, 0x24, 0x80, True)
_SPI = SpiRegisters(0x18, 0x1C, 0x20, 0x58, False)


@dataclass(frozen=True)
class RomChip:
    """A row: one chip as it is seen through its loader.

    ``mac`` is the register that holds the last four bytes of the MAC, the first two are in the
    next one; ``values`` are other registers, among them the eFuses of the revision in
    ``revision``; ``block`` is that of eFuse block 2; ``xtal`` in MHz. ``security_info_size`` is
    what GET_SECURITY_INFO answers with: 20 bytes with the chip id, 12 without, 0 where the ROM does
    not know the command. ``spi0_base`` is the flash controller of the cache, which carries out
    commands as that at ``spi_base`` does: where it is given, esptool-js asks it, esptool the other.
    ``has_32bit_addresses``: flash behind 16 MiB can be reached.
    """

    name: str
    revision: str
    spi_base: int
    mac: int
    uart_clkdiv: int
    wdt_config0: int
    wdt_wprotect: int
    magic: int
    values: MappingProxyType[int, int]
    xtal: int = 40
    security_info_size: int = 20
    has_32bit_addresses: bool = False
    spi0_base: int | None = None
    spi: SpiRegisters = _SPI
    block: str = "v0.0"

    @property
    def chip_revision(self) -> int:
        """``revision`` as a number, major * 100 + minor."""
        return _number(self.revision)

    @property
    def block_revision(self) -> int | None:
        """``block`` in the same form; None for a chip that has none."""
        return _number(self.block) if chip_by_name(self.name).block_revision else None

    @property
    def registers(self) -> Mapping[int, int]:
        """``values``, and the eFuses that hold ``block``."""
        registers = dict(self.values)
        fields = chip_by_name(self.name).block_revision
        for field, number in zip(fields or (), divmod(_number(self.block), 100), strict=False):
            address = align_down(self.mac, 0x100) + field.address
            registers[address] = registers.get(address, 0) | number << field.shift
        return registers


def _number(revision: str) -> int:
    major, minor = revision.removeprefix("v").split(".")
    return int(major) * 100 + int(minor)


def _values(**registers: int) -> MappingProxyType[int, int]:
    """``_values(r60008850=4 << 18)``: registers by their address in hex."""
    return MappingProxyType({int(name[1:], 16): value for name, value in registers.items()})


ROM_CHIPS = (
    RomChip(
        "esp32",
        "v3.1",
        spi_base=0x3FF42000,
        mac=0x3FF5A004,
        uart_clkdiv=0x3FF40014,
        wdt_config0=0x3FF4808C,
        wdt_wprotect=0x3FF480A4,
        magic=0x00F01D83,
        security_info_size=0,
        spi=_SPI_ESP32,
        # The major revision is spread over two eFuses and the date of the SYSCON block
        # (efuse_hal.c: efuse_hal_get_major_chip_version). The last two let the ROM's own
        # calibration of its crystal come out at 40 MHz.
        values=_values(
            r3FF5A00C=1 << 15 | 1 << 13 | 1 << 9,
            r3FF5A014=1 << 20 | 1 << 24,
            r3FF6607C=1 << 31,
            r3FF5A010=64,
            r3FF5F06C=1600 << 7,
        ),
    ),
    RomChip(
        "esp32s2",
        "v1.0",
        block="v0.2",
        spi_base=0x3F402000,
        mac=0x3F41A044,
        uart_clkdiv=0x3F400014,
        wdt_config0=0x3F408094,
        wdt_wprotect=0x3F4080AC,
        magic=0x000007C6,
        security_info_size=12,
        values=_values(r3F41A050=1 << 18),
    ),
    RomChip(
        "esp32s3",
        "v0.2",
        block="v1.3",
        spi_base=0x60002000,
        mac=0x60007044,
        uart_clkdiv=0x60000014,
        wdt_config0=0x60008098,
        wdt_wprotect=0x600080B0,
        magic=0x00000009,
        has_32bit_addresses=True,
        values=_values(r60007050=2 << 18),
    ),
    RomChip(
        "esp32c2",
        "v1.1",
        block="v0.1",
        spi_base=0x60002000,
        mac=0x60008840,
        uart_clkdiv=0x60000014,
        wdt_config0=0x60008084,
        wdt_wprotect=0x6000809C,
        magic=0x7C41A06F,
        values=_values(r60008844=1 << 20 | 1 << 16),
    ),
    RomChip(
        "esp32c3",
        "v0.4",
        block="v1.3",
        spi_base=0x60002000,
        mac=0x60008844,
        uart_clkdiv=0x60000014,
        wdt_config0=0x60008090,
        wdt_wprotect=0x600080A8,
        magic=0x1B31506F,
        values=_values(r60008850=4 << 18),
    ),
    RomChip(
        "esp32c5",
        "v1.0",
        block="v0.1",
        spi_base=0x60003000,
        mac=0x600B4844,
        uart_clkdiv=0x60000014,
        wdt_config0=0x600B1C00,
        wdt_wprotect=0x600B1C18,
        magic=0x63E1406F,
        spi0_base=0x60002000,
        xtal=48,
        has_32bit_addresses=True,
        values=_values(r600B484C=1 << 4, r60096110=48 << 24),
    ),
    RomChip(
        "esp32c6",
        "v0.2",
        block="v0.3",
        spi_base=0x60003000,
        mac=0x600B0844,
        uart_clkdiv=0x60000014,
        wdt_config0=0x600B1C00,
        wdt_wprotect=0x600B1C18,
        magic=0x2CE0806F,
        spi0_base=0x60002000,
        values=_values(r600B0850=2 << 18),
    ),
    RomChip(
        "esp32c61",
        "v1.0",
        block="v0.1",
        spi_base=0x60003000,
        mac=0x600B4844,
        uart_clkdiv=0x60000014,
        wdt_config0=0x600B1C00,
        wdt_wprotect=0x600B1C18,
        magic=0x2421606F,
        spi0_base=0x60002000,
        has_32bit_addresses=True,
        values=_values(r600B484C=1 << 4),
    ),
    RomChip(
        "esp32h2",
        "v1.2",
        block="v0.3",
        spi_base=0x60003000,
        mac=0x600B0844,
        uart_clkdiv=0x60000014,
        wdt_config0=0x600B1C00,
        wdt_wprotect=0x600B1C1C,
        magic=0x97E30068,
        spi0_base=0x60002000,
        xtal=32,
        values=_values(r600B0850=1 << 21 | 2 << 18),
    ),
    RomChip(
        "esp32p4",
        "v1.3",
        block="v0.3",
        spi_base=0x5008D000,
        mac=0x5012D044,
        uart_clkdiv=0x500CA014,
        wdt_config0=0x50116000,
        wdt_wprotect=0x50116018,
        magic=0x0ADDBAD0,
        has_32bit_addresses=True,
        values=_values(r5012D04C=1 << 4 | 3),
    ),
)
_BY_NAME = {chip.name: chip for chip in ROM_CHIPS}


def rom_chip(name: str) -> RomChip:
    """The row of the chip called ``name``. Raises UsageError if there is none."""
    if name not in _BY_NAME:
        raise UsageError(f"chip '{name}' has no loader here", f"known: {', '.join(_BY_NAME)}")
    return _BY_NAME[name]
