"""The daily loop: from a save to a confirmed change on a virtual board, by cable and by TCP.

    python -m bench loop

A project of 20 files of 3 KB, of which one is changed; `mpota push --watch` pushes it.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mpota.firmware.sample import build_firmware
from mpota.formats.partition_csv import table_from_csv
from mpota.units import KiB, MiB
from mpota.virtual.board import Board
from mpota.virtual.flash import VirtualFlash
from mpota.virtual.repl import ConsolePort
from mpota.virtual.serial_port import SerialPort

from bench.pairs import ROOT

COUNT = 20
SAVES = 9
SECRET = "0123456789abcdef"
_SIZE = 3 * KiB
_HEAP_SIZE = 160 * KiB  # here modules take heap that come with the firmware, too
_LISTEN = """
import asyncio, ota.listen
ota.rollback.cancel()
asyncio.run(ota.listen.Listener({secret!r}, host="127.0.0.1", port={port}).serve())
"""


@dataclass
class Counted:
    """A cable to ``console`` (a `PortHandler`); ``sent_size``: bytes that went to the board."""

    console: ConsolePort
    sent_size: int = 0

    def opened(self, send: Callable[[bytes], None]) -> None:
        self.console.opened(send)

    def closed(self) -> None:
        self.console.closed()

    def received(self, data: bytes) -> None:
        self.sent_size += len(data)
        self.console.received(data)


@dataclass(frozen=True)
class Row:
    """``seconds``: of each save; ``cpu_s``: that a push takes of a processor, desk and board
    together; ``line_size``: bytes of an average push on the cable, 0 elsewhere; ``first_size``,
    ``size``: of the bundle the first time, and for a change."""

    way: str
    seconds: list[float]
    cpu_s: float
    first_size: int
    size: int
    line_size: int = 0


@contextmanager
def plugged_in(directory: Path) -> Iterator[tuple[Counted, str]]:
    """A board with ota in its firmware, and the port of its REPL."""
    frozen = directory / "frozen"
    shutil.copytree(ROOT / "device" / "mpy", frozen / "ota", dirs_exist_ok=True)
    size = 4 * MiB
    table = table_from_csv((ROOT / "partitions" / "4MB-ota.csv").read_text())
    firmware = build_firmware("esp32", flash_size=size, table=table)
    with VirtualFlash.create(size, {0x1000: firmware}) as flash:
        board = Board(flash, frozen=frozen, heap_size=_HEAP_SIZE)
        board.run("pass")
        with ConsolePort(board) as console:
            cable = Counted(console)
            port = SerialPort(cable)
            try:
                yield cable, port.path
            finally:
                port.unplug()


def make_project(directory: Path, main: str) -> Path:
    project = directory / "project"
    shutil.rmtree(project, ignore_errors=True)
    (project / "lib").mkdir(parents=True)
    (project / "pyproject.toml").write_text('[tool.mpota]\nname = "loop"\nversion = "1"\n')
    (project / "main.py").write_text(main)
    for number in range(COUNT - 1):
        line = f"VALUE_{number} = {number}  # what fills a line of a module\n"
        (project / f"lib/part{number}.py").write_text(line * (_SIZE // len(line)))
    return project


class Watched:
    """`mpota push TARGET DIR --watch`."""

    def __init__(self, target: str, project: Path) -> None:
        command = [sys.executable, "-m", "mpota", "push", target, str(project), "--watch"]
        environment = os.environ | {"MPOTA_SECRET": SECRET, "PYTHONPATH": str(ROOT / "host")}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )

    def wait(self) -> int:
        """Until a push is confirmed, and the next save is waited for; its bytes."""
        assert self.process.stdout
        size, shown = 0, ""
        for line in self.process.stdout:
            shown += line
            if found := re.search(r"confirmed \(([0-9,]+) bytes", line):
                size = int(found[1].replace(",", ""))
            if line.startswith("watching"):
                if not size:
                    break
                return size
        raise RuntimeError(shown)


def cpu_seconds(*processes: int) -> float:
    """Of this process, in which the board is, its children that ended, and others."""
    found = sum(os.times()[:4])
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
        found += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return found


def measure(way: str, target: str, project: Path, cable: Counted | None = None) -> Row:
    watched = Watched(target, project)
    try:
        first = watched.wait()
        start_s = cpu_seconds(watched.process.pid)
        before = cable.sent_size if cable else 0
        seconds, size = [], 0
        for number in range(SAVES):
            start = time.monotonic()
            with (project / "lib/part7.py").open("a") as file:
                file.write(f"SAVED = {number}\n")
            size = watched.wait()
            seconds.append(time.monotonic() - start)
        line = (cable.sent_size - before) // SAVES if cable else 0
        cpu_s = (cpu_seconds(watched.process.pid) - start_s) / SAVES
        return Row(way, seconds, cpu_s, first, size, line)
    finally:
        watched.process.kill()
        watched.process.wait()


def results() -> list[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        rows = []
        with plugged_in(directory) as (cable, port):
            rows.append(measure("cable", port, make_project(directory, "print('up')\n"), cable))
        with plugged_in(directory) as (cable, port), socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            number = found.getsockname()[1]
            found.close()
            project = make_project(directory, _LISTEN.format(secret=SECRET, port=number))
            command = [sys.executable, "-m", "mpota", "push", port, str(project)]
            subprocess.run(command, check=True, capture_output=True)
            with (project / "main.py").open("a") as file:
                file.write("# another one\n")
            rows.append(measure("tcp", f"tcp://127.0.0.1:{number}", project))
        return rows


def report(rows: list[Row]) -> None:
    print(f"{COUNT} files of {_SIZE:,} bytes, one of them changed; {SAVES} saves")
    print("way     median s    least s    cpu s   bundle   first   on the cable")
    for row in rows:
        median, least = statistics.median(row.seconds), min(row.seconds)
        sizes = f"{row.size:8,}{row.first_size:8,}{row.line_size or 0:15,}"
        print(f"{row.way:6}{median:10.2f}{least:11.2f}{row.cpu_s:9.2f} {sizes}")


def main() -> None:
    report(results())
