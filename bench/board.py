"""An update on the board against the plain loop: read HTTP, write 4 KiB blocks, nothing else.

    python -m bench.board

All run on the same MicroPython with the same heap, flash model and loopback server, for the real
app (../shared/firmware, else one made as large). Elapsed is the time from the first line of the
script to its end, imports included; CPU is that of the MicroPython process, less that of a board
that only starts. In both the flash takes next to no time: what it would take on a board is
modelled, and told apart; but for the notes that a download makes in NVS every 64 KiB, which ESP-IDF
appends to a page, while the model erases one for each. CPU time holds SHA-256 in software, which
boards have in hardware; so the plain loop is also shown with SHA-256 over what it reads. Heap
(above idle) and allocations are what MicroPython counts, in bytes.
"""

from __future__ import annotations

import functools
import http.server
import os
import resource
import statistics
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from mpota import sample
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

_PLAIN = """
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
_HASHED = _PLAIN.replace(", None)", ", __import__('hashlib').sha256())")
_OTA = """
import ota.update
ota.update.from_file(
    "http://{host}:{port}/app.bin", verbose=False, reboot=False, block_size={block_size},
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


def cpu_ms(board: Board, content: bytes, script: str) -> tuple[float, float, str]:
    """(CPU time of MicroPython, modelled flash time, output) of a script on a fresh board."""
    board.flash.restore(content)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = board.run(script)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if run.end is not End.IDLE or run.traceback:
        raise RuntimeError(run.console)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    nvs = TABLE["nvs"]
    flash_ms = sum(op.duration_ms for op in run.operations if not nvs.offset <= op.offset < nvs.end)
    return seconds * 1000, flash_ms, run.output


def measure(board: Board, content: bytes, name: str, body: str) -> Result:
    timed = [cpu_ms(board, content, _TIME.format(body=body)) for _ in range(REPEATS)]
    idle = [cpu_ms(board, content, _TIME.format(body=""))[0] for _ in range(REPEATS)]
    _, _, printed = cpu_ms(board, content, _COUNT.format(body=body))
    heap_peak, allocated = printed.split()[-2:]
    return Result(
        name,
        statistics.median(int(printed.split()[-1]) / 1000 for _, _, printed in timed),
        statistics.median(cpu for cpu, _, _ in timed) - statistics.median(idle),
        timed[0][1],
        int(heap_peak),
        int(allocated),
    )


def results(compiled: Path) -> list[Result]:
    """``compiled``: a directory with the package as .mpy, as boards have it."""
    app = app_image()
    content = make_flash(app)
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "app.bin").write_bytes(app)
        handler = functools.partial(_Quiet, directory=directory)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = {"host": "127.0.0.1", "port": server.server_port}
        try:
            with VirtualFlash.create(len(content)) as flash:
                board = Board(flash, heap_size=HEAP_SIZE, frozen=compiled)
                return [
                    measure(board, content, "plain loop", _PLAIN.format(**where)),
                    measure(board, content, "plain, SHA-256", _HASHED.format(**where)),
                    measure(board, content, "ota, 64 KiB", _OTA.format(**where, block_size=0)),
                    measure(board, content, "ota, 4 KiB", _OTA.format(**where, block_size=4096)),
                ]
        finally:
            server.shutdown()
            server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


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
