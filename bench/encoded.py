"""An update from a compressed image and from a delta on the board, against the plain image.

Measured as in bench/board.py. ``C code`` is the part of the decoder's time that is MicroPython's
own `deflate`, which is the same for whoever uses it. Heap is told twice: all of it, and without
the code of the package, which is loaded beforehand then (in frozen modules it takes none).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mpota.formats.delta import make_delta
from mpota.formats.frames import compress
from mpota.release.signing import PrivateKey, sign
from mpota.virtual.board import Board
from mpota.virtual.flash import VirtualFlash

from bench import board as plain
from bench.pairs import pairs

LIMIT = 32 * 1024  # bytes of heap above idle

_MODULES = """
import ota.update, ota.pump, ota.http, ota.http_resume
import ota.frames, ota.delta, ota.recovery
"""
_HEAP = """
import gc
gc.collect()
idle = peak = gc.mem_alloc()
import ota.update
def tick(done, total):
    global peak
    gc.collect()
    peak = max(peak, gc.mem_alloc())
ota.update.from_file("http://{host}:{port}/{name}", verbose=False, reboot=False, progress=tick)
print(peak - idle)
"""
_UPDATE = """
import ota.update
ota.update.from_file("http://{host}:{port}/{name}", verbose=False, reboot=False,
                     progress=(lambda done, total: tick()) if tick else None)
"""
_INFLATE = """
import time, io, deflate, struct
data = open("/frozen/new.deflate", "rb").read()
left = struct.unpack_from("<I", data, 8)[0]
buf = memoryview(bytearray(4096))
at = 12
took = 0
while at < len(data):
    size, sectors = struct.unpack_from("<HH", data, at)
    stream = io.BytesIO(data[at + 4 : at + 4 + size])
    start = time.ticks_us()
    source = deflate.DeflateIO(stream, deflate.RAW, 12)
    for _ in range(sectors):
        left -= source.readinto(buf[:left])
    took += time.ticks_diff(time.ticks_us(), start)
    at += 4 + size
print(took)
"""
_SIGNATURE = """
import time, ota.keys
sector = open("/frozen/sector", "rb").read()
from hashlib import sha256
digest = sha256(open("/frozen/signed", "rb").read()).digest()
start = time.ticks_us()
ota.keys.check_signed(digest, sector)
print(time.ticks_diff(time.ticks_us(), start))
"""


@dataclass(frozen=True)
class Row:
    """Of one form: size of what is sent, heap in bytes above idle."""

    result: plain.Result
    size: int
    heap: int  # without the code
    heap_and_code: int


@dataclass(frozen=True)
class Results:
    rows: list[Row]
    deflate_ms: float
    signature_ms: float


def results(compiled: Path) -> Results:
    pair = next(pair for pair in pairs() if pair.what.startswith("function"))
    files = {
        "new.bin": pair.new,
        "new.deflate": compress(pair.new).to_bytes(),
        "new.delta": make_delta(pair.old, pair.new).to_bytes(),
        "signed": pair.new.ljust(-(-len(pair.new) // 4096) * 4096, b"\xff"),
        "sector": sign(pair.new, (PrivateKey.generate(),)),
    }
    content = plain.make_flash(pair.old)
    for name, data in files.items():
        (compiled / name).write_bytes(data)
    forms = {
        "image": "new.bin",
        "compressed": "new.deflate",
        "delta": "new.delta",
    }
    with plain.serving(compiled) as where, VirtualFlash.create(len(content)) as flash:
        board = Board(flash, heap_size=plain.HEAP_SIZE, frozen=compiled)
        fields = {label: {**where, "name": name} for label, name in forms.items()}
        bodies = {label: _UPDATE.format(**field) for label, field in fields.items()}
        rows = [
            Row(
                result,
                len(files[forms[result.name]]),
                _peak(board, content, _MODULES + _HEAP.format(**fields[result.name])),
                _peak(board, content, _HEAP.format(**fields[result.name])),
            )
            for result in plain.measure(board, content, bodies)
        ]
        roomy = Board(flash, heap_size=8 << 20, frozen=compiled)
        inflate = min(int(plain.run(roomy, content, _INFLATE).output) for _ in range(5))
        signature = min(int(plain.run(roomy, content, _SIGNATURE).output) for _ in range(5))
    return Results(rows, inflate / 1000, signature / 1000)


def _peak(board: Board, content: bytes, script: str) -> int:
    return int(plain.run(board, content, script).output.split()[-1])


def report(found: Results) -> None:
    full = found.rows[0].result
    print("Updates on the board, of a delta's new app")
    print(
        f"{'':20}{'sent':>11}{'elapsed':>19}{'CPU':>19}{'flash, modelled':>17}"
        f"{'heap':>9}{'and code':>10}"
    )
    for row in found.rows:
        result = row.result
        print(
            f"{result.name:20}{row.size:11,}"
            f"{result.elapsed_ms:10.1f} ms {result.elapsed_ms / full.elapsed_ms:5.2f}x"
            f"{result.cpu_ms:10.1f} ms {result.cpu_ms / full.cpu_ms:5.2f}x"
            f"{result.flash_ms / 1000:15.1f} s{row.heap:9,}{row.heap_and_code:10,}"
        )
    compressed = found.rows[1].result
    added = compressed.elapsed_ms - full.elapsed_ms
    total = full.elapsed_ms + full.flash_ms
    print(
        f"decoding adds {added:.1f} ms ({found.deflate_ms:.1f} ms is MicroPython's own deflate "
        f"alone): {added / total:.1%} of the update with its modelled flash time"
    )
    share = found.signature_ms / total
    print(f"signature check: {found.signature_ms:.1f} ms, {share:.2%} of the update")
