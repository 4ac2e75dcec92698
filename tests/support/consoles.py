"""Virtual boards whose console is a serial port, and the real mpremote."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mpota.firmware.sample import build_app, build_firmware
from mpota.formats.partition_table import APP, DATA, Partition, PartitionTable
from mpota.units import KiB, MiB
from mpota.virtual.board import Board
from mpota.virtual.flash import VirtualFlash
from mpota.virtual.repl import ConsolePort
from mpota.virtual.serial_port import SerialPort
from mpota.virtual.terminal import RING_SIZE

from tests.support import ota_package
from tests.support.boards import FIRST_LOOK

CHIP = "esp32"
APP_SIZE = 112 * KiB

OTA_TABLE = PartitionTable(
    (
        Partition("nvs", DATA, 2, 0x9000, 0x4000),
        Partition("otadata", DATA, 0, 0xD000, 0x2000),
        Partition("ota_0", APP, 0x10, 0x10000, 0x40000),
        Partition("ota_1", APP, 0x11, 0x50000, 0x40000),
        Partition("vfs", DATA, 0x81, 0x90000, 0x100000),
    )
)


@functools.cache
def app(version: str = "v1.26.1", size: int = APP_SIZE) -> bytes:
    return build_app(CHIP, version=version, size=size)


def ota_flash(size: int = 2 * MiB) -> VirtualFlash:
    """A chip with two OTA slots, v1.26.1 in the first."""
    return VirtualFlash.create(size, {0x1000: _firmware(size)})


@functools.cache
def _firmware(size: int) -> bytes:
    return build_firmware(CHIP, flash_size=size, table=OTA_TABLE, app=app())


@functools.cache
def _after_first_boot() -> bytes:
    """`ota_flash` with the file system, and the namespace of `ota` in NVS."""
    with ota_flash() as flash:
        Board(flash).run(FIRST_LOOK)
        return flash.snapshot()


class Wire:
    """A cable between a port and a console (a `PortHandler`), which can break and lose bytes.

    ``cut_after``: bytes from the desk until it is pulled; ``lose``: which of them, counted from 0,
    are lost on their way. ``sent_size`` is what went through it to the board.
    """

    def __init__(self, console: ConsolePort) -> None:
        self._console = console
        self.port: SerialPort | None = None
        self.cut_after: int | None = None
        self.lose: set[int] = set()
        self.sent_size = 0
        self.on_output: Callable[[bytes], object] = lambda data: None

    def opened(self, send: Callable[[bytes], None]) -> None:
        def tell(data: bytes) -> None:
            send(data)
            self.on_output(data)

        self._console.opened(tell)

    def closed(self) -> None:
        self._console.closed()

    def received(self, data: bytes) -> None:
        start, self.sent_size = self.sent_size, self.sent_size + len(data)
        if self.cut_after is not None and self.sent_size >= self.cut_after:
            data = data[: self.cut_after - start]
        if self.lose:
            data = bytes(byte for at, byte in enumerate(data, start) if at not in self.lose)
        self._console.received(data)
        if self.cut_after is not None and self.sent_size >= self.cut_after:
            assert self.port is not None
            self.port.unplug()


class Bench:
    """A board that is on, on a cable."""

    def __init__(self, board: Board, console: ConsolePort) -> None:
        self.board = board
        self.console = console
        self.plug_in()

    def plug_in(self) -> None:
        """Connect the cable, or a new one after the former was pulled."""
        self.wire = Wire(self.console)
        self.port = self.wire.port = SerialPort(self.wire)

    @property
    def flash(self) -> VirtualFlash:
        return self.board.flash

    def mpremote(self, *args: str | Path) -> subprocess.CompletedProcess[str]:
        """Run the real mpremote on the board's port."""
        command = [sys.executable, "-m", "mpremote", "connect", self.port.path, *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    def say(self, *args: str | Path) -> str:
        """What mpremote prints; it must succeed."""
        done = self.mpremote(*args)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def write(self, name: str, text: str) -> None:
        """Put a file on the board."""
        self.say("exec", f"f = open({name!r}, 'w')\nf.write({text!r})\nf.close()")

    @contextmanager
    def off(self) -> Iterator[Board]:
        """The board without power: for `Board.run`."""
        self.console.power_off()
        yield self.board
        self.console.power_on()


@contextmanager
def bench(
    flash: VirtualFlash | None = None, *, has_ota: bool = False, buffer_size: int = RING_SIZE
) -> Iterator[Bench]:
    """A board with the input buffer of a real one, so that a lack of flow control is found."""
    has_booted = flash is None
    flash = flash or VirtualFlash.create(2 * MiB, {0: _after_first_boot()})
    board = Board(flash, frozen=ota_package.compiled() if has_ota else None)
    if not has_booted:
        board.run(FIRST_LOOK)
    with ConsolePort(board, buffer_size) as console:
        made = Bench(board, console)
        try:
            yield made
        finally:
            made.port.unplug()
    assert console.failure is None
    assert made.port.failure is None
