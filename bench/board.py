"""An update on the board against the plain loop: read HTTP, write 4 KiB blocks, nothing else.

    python -m bench.board

All run on the same MicroPython with the same heap, flash model and loopback server, for the real
app (../shared/firmware, else one made as large), by turns, and the best of each counts: what others
do on the machine only adds. Elapsed is the time from the first line of the script to its end,
imports included; CPU is that of the MicroPython process, less that of a board that only starts. In
both the flash takes next to no time: what it would take on a board is modelled, and told apart,
otadata and the notes in NVS included. CPU time holds SHA-256 in software, which boards have in
hardware; so the plain loop is also shown with SHA-256 over what it reads. Heap (above idle) and
allocations are what MicroPython counts, in bytes.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mpota.firmware import sample
from mpota.formats.chips import chip_by_name
from mpota.formats.partition_table import Partition, PartitionTable
from mpota.virtual.board import Board, End
from mpota.virtual.flash import VirtualFlash

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("MPOTA_SHARED", ROOT.parent / "shared"))
FIRMWARE = SHARED / "firmware" / "ESP32_GENERIC-20240602-v1.23.0.bin"
APP_IN_FIRMWARE = 0xF000
APP_SIZE = 1_672_800
HEAP_SIZE = 120 * 1024
REPEATS = 15

SLOT_SIZE = 0x1B0000
TABLE = PartitionTable(
    (
        Partition("nvs", 1, 2, 0x9000, 0x4000),
        Partition("otadata", 1, 0, 0xD000, 0x2000),
        Partition("phy_init", 1, 1, 0xF000, 0x1000),
        Partition("ota_0", 0, 0x10, 0x10000, SLOT_SIZE),
        Partition("ota_1", 0, 0x11, 0x10000 + SLOT_SIZE, SLOT_SIZE),
        Partition("vfs", 1, 0x81, 0x10000 + 2 * SLOT_SIZE, 0x90000),
    )
)

PLAIN = """
def plain(host, port, path, sha):
    import socket
    from esp32 import Partition
    part = Partition(Partition.RUNNING).get_next_update()
    s = socket.socket()
    s.connect(socket.getaddrinfo(host, port)[0][-1])
    s.write(b"GET " + path + b" HTTP/1.0\\r\\n\\r\\n")
    while s.readline() != b"\\r\\n":
        pass
    buf = bytearray(4096)
    block = 0
    while s.readinto(buf):
        if sha:
            sha.update(buf)
        part.writeblocks(block, buf)
        block += 1
        if tick:
            tick()
    part.set_boot()
plain({host!r}, {port}, b"/app.bin", None)
"""
HASHED = PLAIN.replace(", None)", ", __import__('hashlib').sha256())")
_OTA = """
import ota.update
ota.update.from_file(
    "http://{host}:{port}/app.bin", verbose=False, reboot=False,
    progress=(lambda done, total: tick()) if tick else None,
)
"""
_TIME = """
import time
tick = None
start = time.ticks_us()
{body}
print(time.ticks_diff(time.ticks_us(), start))
"""
# Counted in a run of its own: the collections take time.
_COUNT = """
import gc, micropython
gc.collect()
idle = peak = gc.mem_alloc()
total = micropython.mem_total()
ticks = 0
def tick():
    global ticks, peak
    ticks += 1
    if ticks % 16 == 0:
        gc.collect()
        peak = max(peak, gc.mem_alloc())
{body}
print("heap", peak - idle, micropython.mem_total() - total)
"""


@dataclass(frozen=True)
class Result:
    """Of one way to update: times in ms, heap in bytes above idle."""

    name: str
    elapsed_ms: float
    cpu_ms: float
    flash_ms: float
    heap_peak: int
    allocated: int


def app_image() -> bytes:
    """The app of a released MicroPython, or one of its size that is made here."""
    if FIRMWARE.is_file():
        return FIRMWARE.read_bytes()[APP_IN_FIRMWARE:]
    return sample.build_app("esp32", size=APP_SIZE)


def make_flash(app: bytes) -> bytes:
    chip = chip_by_name("esp32")
    firmware = sample.build_firmware(chip, table=TABLE, app=app, is_dump=True)
    with VirtualFlash.create(len(firmware), {0: firmware}) as flash:
        run = Board(flash).run()  # makes the file system
        assert run.end is End.IDLE, run.console
        return flash.snapshot()


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[dict[str, object]]:
    """A server in a process of its own: ``host`` and ``port``."""
    host = "127.0.0.1"
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", host]
    server = subprocess.Popen(
        [*command, "--directory", directory],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with server:
        try:
            assert server.stdout is not None
            words = server.stdout.readline().split()
            yield {"host": host, "port": int(words[words.index("port") + 1])}
        finally:
            server.terminate()


@dataclass(frozen=True)
class Once:
    """One run of a script: CPU time of MicroPython, modelled flash time, output."""

    cpu_ms: float
    flash_ms: float
    output: str


def run(board: Board, content: bytes, script: str) -> Once:
    """Run a script on a fresh board."""
    board.flash.restore(content)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = board.run(script)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if run.end is not End.IDLE or run.traceback:
        raise RuntimeError(run.console)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Once(seconds * 1000, run.duration_ms, run.output)


def measure(board: Board, content: bytes, bodies: dict[str, str]) -> list[Result]:
    """Run the bodies by turns."""
    scripts = {name: _TIME.format(body=body) for name, body in {"": "", **bodies}.items()}
    runs: dict[str, list[Once]] = {name: [] for name in scripts}
    for _ in range(REPEATS):
        for name, script in scripts.items():
            runs[name].append(run(board, content, script))
    idle_ms = min(once.cpu_ms for once in runs.pop(""))
    results = []
    for name, found in runs.items():
        heap_peak, allocated = run(board, content, _COUNT.format(body=bodies[name])).output.split()[
            -2:
        ]
        results.append(
            Result(
                name,
                min(int(once.output.split()[-1]) / 1000 for once in found),
                min(once.cpu_ms for once in found) - idle_ms,
                found[0].flash_ms,
                int(heap_peak),
                int(allocated),
            )
        )
    return results


def results(compiled: Path) -> list[Result]:
    """``compiled``: a directory with the package as .mpy, as boards have it."""
    app = app_image()
    content = make_flash(app)
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "app.bin").write_bytes(app)
        with serving(Path(directory)) as where, VirtualFlash.create(len(content)) as flash:
            board = Board(flash, heap_size=HEAP_SIZE, frozen=compiled)
            bodies = {
                "plain loop": PLAIN.format(**where),
                "plain, SHA-256": HASHED.format(**where),
                "ota": _OTA.format(**where),
            }
            return measure(board, content, bodies)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "ota").symlink_to(ROOT / "device" / "mpy", target_is_directory=True)
        rows = results(Path(directory))
    plain = rows[0]
    print(f"update of {len(app_image()):,} bytes with a heap of {HEAP_SIZE // 1024} KiB")
    print(f"{'':16}{'elapsed':>17}{'CPU':>17}{'flash, modelled':>18}{'heap':>10}{'allocated':>11}")
    for row in rows:
        print(
            f"{row.name:16}"
            f"{row.elapsed_ms:8.1f} ms {row.elapsed_ms / plain.elapsed_ms:4.2f}x"
            f"{row.cpu_ms:8.1f} ms {row.cpu_ms / plain.cpu_ms:4.2f}x"
            f"{row.flash_ms / 1000:10.1f} s {row.flash_ms / plain.flash_ms:4.2f}x"
            f"{row.heap_peak:10,}{row.allocated:11,}"
        )


if __name__ == "__main__":
    main()
