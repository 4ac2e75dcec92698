"""A virtual board on the desk: one flash file, and the serial ports by which tools reach it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from mpota.errors import MpotaError, UsageError
from mpota.firmware.firmware import Firmware, find_base
from mpota.formats.chips import Chip, chip_by_name
from mpota.storage.file import FileImage, read_file
from mpota.units import format_flash_size
from mpota.virtual.board import Board
from mpota.virtual.flash import VirtualFlash
from mpota.virtual.repl import ConsolePort
from mpota.virtual.rom_chips import rom_chip
from mpota.virtual.rom_loader import DEFAULT_MAC, LoaderPort
from mpota.virtual.serial_port import SerialPort

_VENDOR = bytes.fromhex("240ac4")  # one of Espressif's


@dataclass(frozen=True)
class Ports:
    """The names of a board's ports, and what is behind them."""

    console: str  # MicroPython's REPL: mpremote, a terminal program
    loader: str  # the ROM's serial loader: esptool
    board: ConsolePort


def open_flash(
    path: Path, firmware: Path | None = None, flash_size: int | None = None
) -> VirtualFlash:
    """The flash file ``path``; made from a ``firmware`` file, or blank, if there is none yet.

    Raises UsageError if it cannot be made of what is given, or if what is given is not what an
    existing one holds, and MpotaError for a file that is no firmware.
    """
    if path.exists():
        if firmware is not None:
            raise UsageError(f"{path} exists, and keeps what is in it", "leave out --firmware")
        flash = VirtualFlash(path)
        if flash_size not in (None, flash.size):
            flash.close()
            raise UsageError(f"{path} is {format_flash_size(flash.size)} of flash", "leave out -f")
        return flash
    if firmware is not None:
        data = read_file(firmware)
        base = find_base(data, firmware.name)
        size = Firmware.from_flash(FileImage(base, data), firmware.name).flash_size
        return VirtualFlash.create(flash_size or size, {base: data}, path)
    if flash_size is None:
        raise UsageError(f"{path} does not exist", "--firmware FILE or -f SIZE makes it")
    return VirtualFlash.create(flash_size, path=path)


@contextmanager
def powered_alone(path: Path) -> Iterator[None]:
    """A flash chip is on one board: raises UsageError while ``path`` is that of another one."""
    import fcntl

    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"{path} is the flash of a virtual board that is on already",
                "use its ports, or give this one a file of its own",
            ) from None
        yield


def mac_of(path: Path) -> bytes:
    """A MAC for the board with that flash file: each has its own, and keeps it."""
    return _VENDOR + sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).digest()[:3]


@contextmanager
def plugged_in(
    board: Board,
    chip: Chip,
    mac: bytes = DEFAULT_MAC,
    heard: Callable[[bytes], None] | None = None,
) -> Iterator[Ports]:
    """Power the board, and connect both of its ports until the block ends.

    ``heard`` is told of all that it prints on its console, whoever has that open.

    Whoever gets hold of the ROM loader resets the board into it; it boots again when that port is
    closed. The chip and its eFuses are of the revisions that its loader shows, and it boots nothing
    that needs more.
    """
    rom = rom_chip(chip.name)
    if board.chip_revision is None:
        board.chip_revision = rom.chip_revision
    if board.block_revision is None:
        board.block_revision = rom.block_revision
    console = ConsolePort(board, heard=heard)
    loader = LoaderPort(board.flash, chip.name, console.power_off, console.power_on, mac)
    with SerialPort(console) as console_port, SerialPort(loader) as loader_port, console:
        yield Ports(console_port.path, loader_port.path, console)


def find_chip(flash: VirtualFlash, name: str | None) -> Chip:
    """The chip by its ``name``, else the one that the bootloader in ``flash`` is for.

    Raises UsageError for a blank flash without a name, and for a name that is none.
    """
    if name is not None:
        return chip_by_name(name)
    try:
        content = FileImage(0, flash.read(0, flash.size))
        return Firmware.from_flash(content, flash.path.name).chip
    except MpotaError as error:
        raise UsageError(f"{error}: which chip is it?", "--chip NAME tells") from None
