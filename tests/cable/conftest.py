"""Virtual boards with a cable, and the real esptool."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mpota.cli import main
from mpota.units import MiB
from mpota.virtual.flash import VirtualFlash
from mpota.virtual.rom_loader import LoaderPort
from mpota.virtual.serial_port import SerialPort

from tests.support.consoles import Bench, bench


@dataclass
class Cable:
    """A board on a cable. ``events`` lists what the cable made it do."""

    flash: VirtualFlash
    port: SerialPort
    events: list[str] = field(default_factory=list)

    @property
    def path(self) -> str:
        return self.port.path

    def unplug(self) -> None:
        """Pull the cable and let the port's thread come to its end."""
        self.port.unplug()


@pytest.fixture
def plug_in() -> Iterator[Callable[..., Cable]]:
    """``plug_in(flash=, chip=, size=)``: a cable to a board; a blank one without a flash."""
    with ExitStack() as stack:

        def plug_in(
            flash: VirtualFlash | None = None, chip: str = "esp32s3", size: int = 4 * MiB
        ) -> Cable:
            if flash is None:
                flash = stack.enter_context(VirtualFlash.create(size))
            events: list[str] = []
            handler = LoaderPort(
                flash, chip, lambda: events.append("halt"), lambda: events.append("boot")
            )
            port = stack.enter_context(SerialPort(handler))
            return Cable(flash, port, events)

        yield plug_in


@pytest.fixture
def silent_port() -> Iterator[str]:
    """A port at whose other end nobody is."""
    other_end, port = pty.openpty()
    try:
        tty.setraw(port)
        yield os.ttyname(port)
    finally:
        os.close(other_end)
        os.close(port)


@pytest.fixture
def board() -> Iterator[Bench]:
    """v1.26.1 runs from ota_0, confirmed; ota_1 is blank; the package is in the firmware."""
    with bench(has_ota=True) as board:
        yield board
        assert board.console.lost_size == 0, "more was sent than the board has room for"


@pytest.fixture
def esptool(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The real esptool on a cable: ``esptool(cable, "flash-id")``."""

    def run(cable: Cable, *args: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "esptool", "--port", cable.path, *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)

    return run


@pytest.fixture
def mpota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The ``mpota`` command in this process: ``mpota("show", path, exit_code=1)`` -> all output.

    The working directory is ``tmp_path``.
    """
    monkeypatch.chdir(tmp_path)

    def run(*args: str | Path, exit_code: int = 0) -> str:
        output = io.StringIO()
        with (
            redirect_stdout(output),
            redirect_stderr(output),
            pytest.raises(SystemExit) as exit_info,
        ):
            main([str(arg) for arg in args])
        assert (exit_info.value.code or 0) == exit_code, output.getvalue()
        assert "Traceback" not in output.getvalue()
        return output.getvalue()

    return run
