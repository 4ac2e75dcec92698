"""The serial loader in an ESP32's ROM, and the stub that esptool loads over it, on a flash.

Modelled, from Espressif's description of the serial protocol (esptool's documentation, "Serial
Protocol"), from what esptool sends (``loader.py``: ESPLoader.sync, command, check_command,
flash_begin, flash_defl_begin, read_flash, run_spiflash_command, ...) and from what its stub does
with it (esp-flasher-stub, ``command_handler.c``; it answers before it writes a block, so that an
error shows at the next command):

- SLIP frames, the request and response headers, the data checksum;
- ROM: SYNC, READ_REG, WRITE_REG, MEM_*, FLASH_*, FLASH_DEFL_*, READ_FLASH_SLOW, SPI_ATTACH,
  SPI_SET_PARAMS, SPI_FLASH_MD5, CHANGE_BAUDRATE, GET_SECURITY_INFO;
- stub: the same, and ERASE_FLASH, ERASE_REGION, READ_FLASH, RUN_USER_CODE. The code that is
  uploaded is not run: whoever starts an entry point inside of it gets the stub's answers;
- the SPI flash controller's registers as far as esptool uses them: JEDEC id, status, SFDP;
- a reset by the RTC watchdog and by FLASH_END.

Stricter than silicon: lengths, sequence numbers, checksums, RAM ranges and flash ranges are checked
everywhere; flash must be attached before the ROM touches it; what was announced must have arrived
when a download ends.

Not modelled: baud rates (a pty has none), encryption and secure download mode, NAND flash.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from enum import Enum

from mpota.errors import MpotaError
from mpota.formats.chips import chip_by_name
from mpota.formats.image import CHECKSUM_SEED, xor_bytes
from mpota.storage import Flash
from mpota.units import BLOCK_SIZE, SECTOR_SIZE, MiB, align_down, align_up
from mpota.virtual.rom_chips import MAGIC_REG, WDT_KEY, SpiRegisters, rom_chip

DEFAULT_MAC = bytes.fromhex("240ac4000102")
ROM_BAUD = 115200

_ROM_FLASH_SIZE = 2 * MiB  # what the ROM believes until SPI_SET_PARAMS: cmds.py, erase_region
_SYNC_DATA = b"\x07\x07\x12\x20" + b"\x55" * 32
_ROM_SYNC_VALUE = 0x55201207  # not 0: by a 0 esptool knows that a stub answers
_INFLATE_WINDOW = 32 * 1024  # the stub writes whenever its window is full: TINFL_LZ_DICT_SIZE
_MAX_READ_PACKET = 4096
_SLOW_READ_SIZE = 64
_MAX_FRAME_SIZE = 2 * (16 * 1024 + 64)  # the stub's buffer, every byte of it escaped
_BROKEN_ESCAPE = re.compile(rb"\xdb(?![\xdc\xdd])")
_SFDP = b"SFDP" + bytes([6, 1, 0, 0xFF]) + b"\0\6\1\x10\x30\0\0\xff" + b"\xef\0\1\4\x80\0\0\xff"
_JEDEC = b"\xef\x40"  # Winbond W25Q; the third byte is the size


class Op(int, Enum):
    """Command bytes: loader.py, ESPLoader.ESP_CMDS."""

    FLASH_BEGIN = 0x02
    FLASH_DATA = 0x03
    FLASH_END = 0x04
    MEM_BEGIN = 0x05
    MEM_END = 0x06
    MEM_DATA = 0x07
    SYNC = 0x08
    WRITE_REG = 0x09
    READ_REG = 0x0A
    SPI_SET_PARAMS = 0x0B
    SPI_ATTACH = 0x0D
    READ_FLASH_SLOW = 0x0E
    CHANGE_BAUDRATE = 0x0F
    FLASH_DEFL_BEGIN = 0x10
    FLASH_DEFL_DATA = 0x11
    FLASH_DEFL_END = 0x12
    SPI_FLASH_MD5 = 0x13
    GET_SECURITY_INFO = 0x14
    ERASE_FLASH = 0xD0
    ERASE_REGION = 0xD1
    READ_FLASH = 0xD2
    RUN_USER_CODE = 0xD3


class RomStatus(Enum):
    """Why a command failed: the ROM's error byte, and the stub's (commands.h)."""

    LENGTH = (0x05, 0xC0)
    CHECKSUM = (0x07, 0xC1)
    COMMAND = (0x05, 0xC3)
    FLASH = (0x08, 0xC4)
    NOT_BEGUN = (0x06, 0xC6)
    INFLATE = (0x0B, 0xC7)
    TOO_MUCH = (0x06, 0xC9)


class CommandError(Exception):
    """A command that is answered with an error status."""

    def __init__(self, status: RomStatus) -> None:
        super().__init__(status.name)
        self.status = status


@dataclass
class _Download:
    """A FLASH_BEGIN or FLASH_DEFL_BEGIN and what followed. Offsets are flash addresses."""

    offset: int
    remaining: int
    block_size: int
    blocks: int
    inflater: zlib._Decompress | None
    erased_to: int
    erase_end: int
    next_seq: int = 0
    window: bytearray = field(default_factory=bytearray)


@dataclass
class _RamDownload:
    address: int
    remaining: int
    next_seq: int = 0


class RomLoader:
    """One chip and its cable. Feed it with `receive`; it answers through ``send``.

    ``halt`` is called when a host has got hold of the chip (the first SYNC: from here on the flash
    is the host's), ``boot`` when the chip starts its app again: by a command that resets it, or by
    `disconnect`. Whatever the flash raises that is no MpotaError (a power cut) goes through to the
    caller of `receive`.
    """

    def __init__(
        self,
        flash: Flash,
        chip: str,
        send: Callable[[bytes], None],
        halt: Callable[[], None] = lambda: None,
        boot: Callable[[], None] = lambda: None,
        mac: bytes = DEFAULT_MAC,
    ) -> None:
        self.flash = flash
        self.chip = rom_chip(chip)
        self._chip_id = chip_by_name(chip).chip_id
        self._send = send
        self._halt = halt
        self._boot = boot
        self._mac = mac
        self.is_halted = False
        self.reset()

    def reset(self) -> None:
        """Into download mode: the ROM answers, everything in RAM is gone."""
        self.is_stub = False
        self._is_attached = False
        self._flash_limit = _ROM_FLASH_SIZE
        mac, registers = self.chip.mac, self.chip.registers
        self._registers = {
            **registers,
            MAGIC_REG: self.chip.magic,
            mac: int.from_bytes(self._mac[2:], "big"),
            mac + 4: int.from_bytes(self._mac[:2], "big") | registers.get(mac + 4, 0),
        }
        self._set_baud(ROM_BAUD)
        self._ram: list[tuple[int, int]] = []  # what was uploaded, as (start, end)
        self._ram_download: _RamDownload | None = None
        self._download: _Download | None = None
        self._read_job: Generator[None, bytes, None] | None = None
        self._deferred: RomStatus | None = None
        self._is_watchdog_on = False
        self._after_reply: Callable[[], None] | None = None
        self._frame: bytearray | None = None

    def disconnect(self) -> None:
        """The host let go of the cable: the chip leaves download mode and starts its app."""
        self._restart()

    def _restart(self) -> None:
        self.reset()
        if self.is_halted:
            self.is_halted = False
            self._boot()

    # --- frames ----------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Bytes from the host, in pieces of any size. What stands between frames is noise."""
        first, *others = data.split(b"\xc0")
        if self._frame is not None:
            self._frame += first
        for piece in others:  # each of them behind a delimiter
            if self._frame:
                frame, self._frame = bytes(self._frame), None
                if not _BROKEN_ESCAPE.search(frame):
                    self._handle_frame(_unescaped(frame))
            else:
                self._frame = bytearray()
            if self._frame is not None:
                self._frame += piece
        if self._frame is not None and len(self._frame) > _MAX_FRAME_SIZE:
            self._frame = None

    def _send_frame(self, data: bytes) -> None:
        self._send(
            b"\xc0" + data.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc") + b"\xc0"
        )

    def _respond(
        self, op: int, value: int = 0, body: bytes = b"", status: RomStatus | None = None
    ) -> None:
        if self.is_stub:
            tail = bytes([status.value[1] if status else 0, 0])
        else:
            tail = bytes([1 if status else 0, status.value[0] if status else 0, 0, 0])
        self._send_frame(struct.pack("<BBHI", 1, op, len(body) + len(tail), value) + body + tail)

    def _handle_frame(self, frame: bytes) -> None:
        if self._read_job is not None:
            self._acknowledge(frame)
            return
        if len(frame) < 8 or frame[0] != 0:
            return
        _, op, size, checksum = struct.unpack_from("<BBHI", frame)
        if not self.is_halted and op != Op.SYNC:
            return  # the app runs, and knows nothing of all this
        data = frame[8:]
        self._after_reply = None
        try:
            if self._deferred is not None:
                raise CommandError(self._deferred)
            if len(data) != size:
                raise CommandError(RomStatus.LENGTH)
            value, body = self._run(op, data, checksum)
        except CommandError as error:
            self._deferred = None
            # The ROM answers what it does not know under another command's name.
            is_unknown = error.status is RomStatus.COMMAND and not self.is_stub
            self._respond(0 if is_unknown else op, status=error.status)
            return
        if op != Op.RUN_USER_CODE:
            self._respond(op, value, body)
        self._run_after_reply()

    def _run_after_reply(self) -> None:
        if self._after_reply is None:
            return
        try:
            self._after_reply()
        except CommandError as error:
            self._deferred = error.status
            self._download = None  # what follows cannot be written at its place any more

    def _run(self, op: int, data: bytes, checksum: int) -> tuple[int, bytes]:
        """Carry a command out: the response's value and body."""
        if op in (Op.MEM_DATA, Op.FLASH_DATA, Op.FLASH_DEFL_DATA):
            payload, seq = _checked_payload(data, checksum)
            {
                Op.MEM_DATA: self._mem_data,
                Op.FLASH_DATA: self._flash_data,
                Op.FLASH_DEFL_DATA: self._flash_defl_data,
            }[Op(op)](payload, seq)
            return 0, b""
        commands = _STUB_COMMANDS if self.is_stub else _ROM_COMMANDS
        if op not in commands:
            raise CommandError(RomStatus.COMMAND)
        sizes, method = commands[op]
        if sizes and len(data) not in sizes:
            raise CommandError(RomStatus.LENGTH)
        words = struct.unpack(f"<{len(data) // 4}I", data) if sizes else ()
        result = method(self, words if sizes else data)
        if isinstance(result, int):
            return result, b""
        return 0, result or b""

    # --- the chip --------------------------------------------------------------------------------

    def _sync(self, data: bytes) -> int:
        if data != _SYNC_DATA:
            raise CommandError(RomStatus.LENGTH)
        if not self.is_halted:
            self.is_halted = True
            self._halt()
        value = 0 if self.is_stub else _ROM_SYNC_VALUE
        for _ in range(7):
            self._respond(Op.SYNC, value)
        return value

    def _get_security_info(self, _: tuple[int, ...]) -> bytes:
        if not self.chip.security_info_size:
            raise CommandError(RomStatus.COMMAND)
        info = struct.pack("<IB7xII", 0, 0, self._chip_id, 0)
        return info[: self.chip.security_info_size]

    def _change_baudrate(self, words: tuple[int, ...]) -> None:
        if not words[0]:
            raise CommandError(RomStatus.LENGTH)
        self._set_baud(words[0])

    def _set_baud(self, baud: int) -> None:
        """The divider by which esptool works out the crystal's frequency."""
        self._registers[self.chip.uart_clkdiv] = round(self.chip.xtal * 1_000_000 / baud)

    def _read_reg(self, words: tuple[int, ...]) -> int:
        return self._registers.get(_aligned(words[0]), 0)

    def _write_reg(self, data: bytes) -> None:
        if not data or len(data) % 16:
            raise CommandError(RomStatus.LENGTH)
        for address, value, mask, _delay in struct.iter_unpack("<4I", data):
            old = self._registers.get(_aligned(address), 0)
            self._registers[address] = (value & mask) | (old & ~mask)
            self._after_write(address)

    def _after_write(self, address: int) -> None:
        chip, value = self.chip, self._registers[address]
        for base in (chip.spi_base, chip.spi0_base):
            if address - SpiRegisters.COMMAND == base and value & 1 << 18:
                self._run_spi_command(base)
        is_unlocked = self._registers.get(chip.wdt_wprotect) == WDT_KEY
        if address == chip.wdt_config0 and is_unlocked:
            self._is_watchdog_on = bool(value >> 31)
        if address == chip.wdt_wprotect and not is_unlocked and self._is_watchdog_on:
            self._after_reply = self._restart  # it bites soon after it was set up

    def _run_spi_command(self, base: int) -> None:
        """SPI_CMD_USR: the command in USER2, its answer in W0 (run_spiflash_command)."""
        spi = self.chip.spi
        command = self._registers.get(base + spi.user2, 0) & 0xFF
        address = self._registers.get(base + SpiRegisters.ADDRESS, 0)
        if spi.is_address_msb:
            address >>= 8
        answer = b""
        if self._is_attached or self.is_stub:
            if command == 0x9F:  # RDID
                answer = _JEDEC + bytes([self.flash.size.bit_length() - 1])
            elif command == 0x5A:  # RDSFDP
                answer = _SFDP[address : address + 4]
        self._registers[base + spi.data] = int.from_bytes(answer, "little")
        self._registers[base + SpiRegisters.COMMAND] = 0

    # --- RAM -------------------------------------------------------------------------------------

    def _mem_begin(self, words: tuple[int, ...]) -> None:
        size, blocks, block_size, address = words
        if not size <= blocks * block_size < size + block_size:
            raise CommandError(RomStatus.LENGTH)
        self._ram_download = _RamDownload(address, size)

    def _mem_data(self, payload: bytes, seq: int) -> None:
        ram = self._ram_download
        if ram is None:
            raise CommandError(RomStatus.NOT_BEGUN)
        if seq != ram.next_seq or len(payload) > ram.remaining:
            raise CommandError(RomStatus.TOO_MUCH)
        self._ram.append((ram.address, ram.address + len(payload)))
        ram.address += len(payload)
        ram.remaining -= len(payload)
        ram.next_seq += 1

    def _mem_end(self, words: tuple[int, ...]) -> None:
        stay, entry = words
        if self._ram_download is None or self._ram_download.remaining:
            raise CommandError(RomStatus.NOT_BEGUN)
        self._ram_download = None
        if stay:
            return
        if not any(start <= entry < end for start, end in self._ram):
            raise CommandError(RomStatus.LENGTH)
        self._after_reply = self._start_stub

    def _start_stub(self) -> None:
        self.is_stub = True
        self._download = None
        self._flash_limit = self.flash.size
        self._send_frame(b"OHAI")

    # --- flash -----------------------------------------------------------------------------------

    def _spi_attach(self, _: tuple[int, ...]) -> None:
        self._is_attached = True

    def _spi_set_params(self, words: tuple[int, ...]) -> None:
        _, size, block_size, sector_size, page_size, _ = words
        if (block_size, sector_size, page_size) != (BLOCK_SIZE, SECTOR_SIZE, 256):
            raise CommandError(RomStatus.FLASH)
        self._flash_limit = min(size, self.flash.size)

    def _check_range(self, offset: int, size: int) -> None:
        limit = self._flash_limit
        if not (self.is_stub and self.chip.has_32bit_addresses):
            limit = min(limit, 16 * MiB)
        if offset + size > limit or not (self.is_stub or self._is_attached):
            raise CommandError(RomStatus.FLASH)

    def _read(self, offset: int, size: int) -> bytes:
        self._check_range(offset, size)
        return self.flash.read(offset, size)

    def _flash_begin(self, words: tuple[int, ...]) -> None:
        self._begin(words, None)

    def _flash_defl_begin(self, words: tuple[int, ...]) -> None:
        self._begin(words, zlib.decompressobj())

    def _begin(self, words: tuple[int, ...], inflater: zlib._Decompress | None) -> None:
        size, blocks, block_size, offset = words[:4]
        if len(words) == 5 and words[4]:
            raise CommandError(RomStatus.FLASH)  # encrypted
        if size and not (blocks and block_size):
            raise CommandError(RomStatus.LENGTH)
        erase_start, erase_end = (
            align_down(offset, SECTOR_SIZE),
            align_up(offset + size, SECTOR_SIZE),
        )
        if size:
            self._check_range(erase_start, erase_end - erase_start)
        self._download = _Download(
            offset, size, block_size, blocks, inflater, erase_start, erase_end
        )
        # The ROM erases everything now, the stub as it goes.
        self._erase_to(erase_start + 1 if self.is_stub and size else erase_end)

    def _erase_to(self, end: int) -> None:
        """Erase as far as ``end`` at least, by blocks where the download allows."""
        download = self._download
        assert download is not None
        while download.erased_to < min(end, download.erase_end):
            at = download.erased_to
            is_block = at % BLOCK_SIZE == 0 and download.erase_end - at >= BLOCK_SIZE
            step = BLOCK_SIZE if is_block else SECTOR_SIZE
            self._erase(at, step)
            download.erased_to += step

    def _erase(self, offset: int, size: int) -> None:
        try:
            self.flash.erase(offset, size)
        except MpotaError:
            raise CommandError(RomStatus.FLASH) from None

    def _active_download(self, is_compressed: bool, payload: bytes, seq: int) -> _Download:
        download = self._download
        if download is None or (download.inflater is not None) != is_compressed:
            raise CommandError(RomStatus.NOT_BEGUN)
        if seq != download.next_seq or seq >= download.blocks or len(payload) > download.block_size:
            raise CommandError(RomStatus.TOO_MUCH)
        return download

    def _flash_data(self, payload: bytes, seq: int) -> None:
        download = self._active_download(False, payload, seq)
        if len(payload) != download.block_size:
            raise CommandError(RomStatus.LENGTH)
        download.next_seq += 1
        # The last block is filled up with 0xFF.
        self._now_or_later(lambda: self._program(payload[: download.remaining]))

    def _flash_defl_data(self, payload: bytes, seq: int) -> None:
        download = self._active_download(True, payload, seq)
        download.next_seq += 1
        self._now_or_later(lambda: self._inflate(download, payload))

    def _now_or_later(self, action: Callable[[], None]) -> None:
        """The ROM writes and answers, the stub answers and writes."""
        if self.is_stub:
            self._after_reply = action
        else:
            action()

    def _inflate(self, download: _Download, payload: bytes) -> None:
        assert download.inflater is not None
        try:
            download.window += download.inflater.decompress(payload)
        except zlib.error:
            raise CommandError(RomStatus.INFLATE) from None
        if len(download.window) > download.remaining or download.inflater.unused_data:
            raise CommandError(RomStatus.TOO_MUCH)
        while len(download.window) >= _INFLATE_WINDOW:
            self._program(bytes(download.window[:_INFLATE_WINDOW]))
            del download.window[:_INFLATE_WINDOW]
        if download.inflater.eof:
            self._program(bytes(download.window))
            download.window.clear()

    def _program(self, data: bytes) -> None:
        download = self._download
        assert download is not None
        self._erase_to(download.offset + len(data))
        for start in range(0, len(data), SECTOR_SIZE):
            piece = data[start : start + SECTOR_SIZE]
            try:
                self.flash.write(download.offset, piece)
            except MpotaError:
                raise CommandError(RomStatus.FLASH) from None
            download.offset += len(piece)
            download.remaining -= len(piece)

    def _flash_end(self, words: tuple[int, ...]) -> None:
        if self._download is None:
            raise CommandError(RomStatus.NOT_BEGUN)
        if self._download.remaining:
            raise CommandError(RomStatus.LENGTH)
        self._download = None
        if not self.is_stub:  # 0 reboots, 1 runs the app; the stub does neither: s_flash_end
            self._after_reply = self._restart

    def _run_user_code(self, _: tuple[int, ...]) -> None:
        self._after_reply = self._restart

    def _spi_flash_md5(self, words: tuple[int, ...]) -> bytes:
        digest = hashlib.md5(self._read(words[0], words[1]), usedforsecurity=False)
        return digest.digest() if self.is_stub else digest.hexdigest().encode()

    def _read_flash_slow(self, words: tuple[int, ...]) -> bytes:
        offset, size = words
        if size > _SLOW_READ_SIZE:
            raise CommandError(RomStatus.LENGTH)
        return self._read(offset, size).ljust(_SLOW_READ_SIZE, b"\0")

    def _erase_flash(self, _: tuple[int, ...]) -> None:
        self._erase(0, self.flash.size)

    def _erase_region(self, words: tuple[int, ...]) -> None:
        offset, size = words
        if offset % SECTOR_SIZE or size % SECTOR_SIZE:
            raise CommandError(RomStatus.LENGTH)
        self._check_range(offset, size)
        self._erase(offset, size)

    def _read_flash(self, words: tuple[int, ...]) -> None:
        offset, size, packet_size, _max_in_flight = words
        if not 0 < packet_size <= _MAX_READ_PACKET:
            raise CommandError(RomStatus.LENGTH)
        self._check_range(offset, size)
        self._after_reply = lambda: self._start_reading(offset, size, packet_size)

    def _start_reading(self, offset: int, size: int, packet_size: int) -> None:
        self._read_job = self._read_packets(offset, size, packet_size)
        self._acknowledge(b"")

    def _read_packets(
        self, offset: int, size: int, packet_size: int
    ) -> Generator[None, bytes, None]:
        """One packet, one acknowledgement of all bytes so far; at the end the MD5."""
        digest = hashlib.md5(usedforsecurity=False)
        for start in range(0, size, packet_size):
            packet = self.flash.read(offset + start, min(packet_size, size - start))
            digest.update(packet)
            self._send_frame(packet)
            acknowledged = yield
            if acknowledged != struct.pack("<I", start + len(packet)):
                return  # the host gave up, or lost count: it gets no digest
        self._send_frame(digest.digest())

    def _acknowledge(self, frame: bytes) -> None:
        assert self._read_job is not None
        try:
            if frame:
                self._read_job.send(frame)
            else:
                next(self._read_job)
        except StopIteration:
            self._read_job = None


def _unescaped(frame: bytes) -> bytes:
    return frame.replace(b"\xdb\xdc", b"\xc0").replace(b"\xdb\xdd", b"\xdb")


def _aligned(address: int) -> int:
    if address % 4:
        raise CommandError(RomStatus.LENGTH)
    return address


def _checked_payload(data: bytes, checksum: int) -> tuple[bytes, int]:
    """The payload of a MEM_DATA, FLASH_DATA or FLASH_DEFL_DATA command, and its number."""
    if len(data) < 16:
        raise CommandError(RomStatus.LENGTH)
    size, seq, zero1, zero2 = struct.unpack_from("<4I", data)
    payload = data[16:]
    if size != len(payload) or zero1 or zero2:
        raise CommandError(RomStatus.LENGTH)
    if CHECKSUM_SEED ^ xor_bytes(payload) != checksum:
        raise CommandError(RomStatus.CHECKSUM)
    return payload, seq


# Command: sizes that its data may have, in bytes, and its method, which takes the data as words.
# Without a size it takes the bytes, and looks at their number itself.
_COMMON_COMMANDS: dict[int, tuple[tuple[int, ...], Callable[..., int | bytes | None]]] = {
    Op.SYNC: ((), RomLoader._sync),
    Op.READ_REG: ((4,), RomLoader._read_reg),
    Op.WRITE_REG: ((), RomLoader._write_reg),
    Op.MEM_BEGIN: ((16,), RomLoader._mem_begin),
    Op.MEM_END: ((8,), RomLoader._mem_end),
    Op.SPI_SET_PARAMS: ((24,), RomLoader._spi_set_params),
    Op.CHANGE_BAUDRATE: ((8,), RomLoader._change_baudrate),
    Op.FLASH_BEGIN: ((16, 20), RomLoader._flash_begin),
    Op.FLASH_END: ((4,), RomLoader._flash_end),
    Op.FLASH_DEFL_BEGIN: ((16, 20), RomLoader._flash_defl_begin),
    Op.FLASH_DEFL_END: ((4,), RomLoader._flash_end),
    Op.SPI_FLASH_MD5: ((16,), RomLoader._spi_flash_md5),
    Op.GET_SECURITY_INFO: ((0,), RomLoader._get_security_info),
}
_ROM_COMMANDS = {
    **_COMMON_COMMANDS,
    Op.SPI_ATTACH: ((8,), RomLoader._spi_attach),
    Op.READ_FLASH_SLOW: ((8,), RomLoader._read_flash_slow),
}
_STUB_COMMANDS = {
    **_COMMON_COMMANDS,
    Op.SPI_ATTACH: ((4,), RomLoader._spi_attach),
    Op.ERASE_FLASH: ((0,), RomLoader._erase_flash),
    Op.ERASE_REGION: ((8,), RomLoader._erase_region),
    Op.READ_FLASH: ((16,), RomLoader._read_flash),
    Op.RUN_USER_CODE: ((0,), RomLoader._run_user_code),
}


class LoaderPort:
    """What lives behind the serial port of a virtual board: its loader (a `PortHandler`).

    A pty has no DTR and RTS by which esptool could reset the chip: it says that the chip was not
    reset, and goes on. So the loader always listens, takes hold of the chip at the first SYNC, and
    lets it boot when the port is closed, as a hard reset would.
    """

    def __init__(
        self,
        flash: Flash,
        chip: str,
        halt: Callable[[], None] = lambda: None,
        boot: Callable[[], None] = lambda: None,
        mac: bytes = DEFAULT_MAC,
    ) -> None:
        self._reply: Callable[[bytes], None] = lambda data: None
        self.loader = RomLoader(flash, chip, lambda data: self._reply(data), halt, boot, mac)

    def opened(self, send: Callable[[bytes], None]) -> None:
        self._reply = send

    def received(self, data: bytes) -> None:
        self.loader.receive(data)

    def closed(self) -> None:
        self.loader.disconnect()
