"""Virtual boards whose console is a serial port, and the real mpremote."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mpota.formats.partition_table import APP, DATA, Partition, PartitionTable
from mpota.sample import build_app, build_firmware
from mpota.units import KiB, MiB
from mpota.virtual.board import Board
from mpota.virtual.flash import VirtualFlash
from mpota.virtual.repl import ConsolePort
from mpota.virtual.serial_port import SerialPort
from mpota.virtual.terminal import RING_SIZE

DEVICE = Path(__file__).resolve().parents[2] / "device"
CHIP = "esp32"
APP_SIZE = 112 * KiB

OTA_TABLE = PartitionTable(
    (
        Partition("nvs", DATA, 2, 0x9000, 0x4000),
        Partition("otadata", DATA, 0, 0xD000, 0x2000),
        Partition("ota_0", APP, 0x10, 0x10000, 0x40000),
        Partition("ota_1", APP, 0x11, 0x50000, 0x40000),
        Partition("vfs", DATA, 0x81, 0x90000, 0x60000),
    )
)


def app(version: str = "v1.26.1", size: int = APP_SIZE) -> bytes:
    return build_app(CHIP, version=version, size=size)


def ota_flash(size: int = 1 * MiB) -> VirtualFlash:
    """A chip with two OTA slots, v1.26.1 in the first."""
    firmware = build_firmware(CHIP, flash_size=size, table=OTA_TABLE, app=app())
    return VirtualFlash.create(size, {0x1000: firmware})


@dataclass
class Bench:
    """A board that is on, on a cable."""

    board: Board
    console: ConsolePort
    port: SerialPort

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
        """The board without power and with nobody at its port: for `Board.run`."""
        self.console.power_off()
        yield self.board
        self.console.power_on()


@contextmanager
def bench(
    flash: VirtualFlash | None = None, *, has_ota: bool = False, buffer_size: int = RING_SIZE
) -> Iterator[Bench]:
    """A board with the input buffer of a real one, so that a lack of flow control is found."""
    board = Board(flash or ota_flash(), frozen=DEVICE if has_ota else None)
    console = ConsolePort(board, buffer_size)
    with SerialPort(console) as port, console:
        yield Bench(board, console, port)
    assert console.failure is None
    assert port.failure is None
