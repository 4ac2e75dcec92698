"""What an update over BLE costs on the air: real MicroPython, two controllers of bumble.

    python -m bench.ble

Overhead is what goes over the air, both ways and with what is sent twice, over the file's size: as
the protocol has it (offsets, digests, credit), with the headers of ATT, of L2CAP, and of the link
layer (1M PHY). `bare` is what writes without response alone would cost, nothing noticed and
nothing asked for: no protocol can have less. Heap is the peak above idle, the modules left out. The
time is that of the models, not of a radio.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from mpota.push import ble
from mpota.push.update import Options, Pushed
from mpota.push.wire import Update
from mpota.virtual.board import Board
from mpota.virtual.flash import VirtualFlash
from mpota.virtual.radio import Noise, Radio, Traffic

from bench import board as bench_board

NAME = "bench"
CASES = ((247, 0.0), (247, 0.01), (517, 0.0), (185, 0.0))
SMALL_MTU = 23
LIMIT = 0.03  # of protocol and ATT, at an MTU of 247 without loss

_SCRIPT = f"""
import gc, ota.ble, ota.update, ota.push_intake
gc.collect()
idle, peak = gc.mem_alloc(), 0
def progress(done, total):
    global peak
    gc.collect()
    peak = max(peak, gc.mem_alloc() - idle)
p = ota.ble.Peripheral({NAME!r}, mtu=517, open=True, reboot=False, progress=progress)
p.run()
print(peak)
"""


@dataclass(frozen=True)
class Row:
    mtu: int
    loss: float
    size: int
    sent: Pushed
    traffic: Traffic
    seconds: float
    heap_peak: int

    @property
    def overheads(self) -> tuple[float, ...]:
        traffic = self.traffic
        sizes = (traffic.values, traffic.att, traffic.l2cap, traffic.link)
        return tuple(size / self.size - 1 for size in sizes)

    @property
    def bare(self) -> float:
        """The link layer's share, had the file gone out in plain writes."""
        bare = Traffic()
        room = min(self.mtu - 3, 512)
        for start in range(0, self.size, room):
            bare.count(min(room, self.size - start))
        return bare.link / self.size - 1


def measure(mtu: int, loss: float, image: bytes, frozen: Path, content: bytes) -> Row:
    update = Update("app", image)
    with Radio(Noise(loss=loss), mtu) as radio, VirtualFlash.create(len(content)) as flash:
        flash.restore(content)
        board = Board(flash, frozen=frozen, radio_port=radio.port)
        printed: list[str] = []
        thread = threading.Thread(target=lambda: printed.append(board.run(_SCRIPT).output))
        thread.start()
        start = time.monotonic()
        backend = ble.Backend(radio.client, radio.scanner)
        sent = asyncio.run(ble.push(NAME, update, Options(), backend=backend))
        seconds = time.monotonic() - start
        thread.join()
        return Row(mtu, loss, len(image), sent, radio.traffic, seconds, int(printed[0]))


def results(frozen: Path) -> list[Row]:
    image = bench_board.app_image()
    content = bench_board.make_flash(image)
    rows = [measure(mtu, loss, image, frozen, content) for mtu, loss in CASES]
    return [*rows, measure(SMALL_MTU, 0.0, image, frozen, content)]


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        frozen = Path(directory)
        (frozen / "ota").symlink_to(bench_board.ROOT / "device" / "mpy", target_is_directory=True)
        rows = results(frozen)
    print(f"{rows[0].size:,} bytes over BLE, overhead on the air")
    print("  MTU  loss   protocol   + ATT  + L2CAP  + link    bare   twice     time      heap")
    for row in rows:
        shares = " ".join(f"{share:8.2%}" for share in (*row.overheads, row.bare))
        twice = row.sent.sent_size / row.size - 1
        print(
            f"{row.mtu:5} {row.loss:5.0%}  {shares} {twice:7.2%} {row.seconds:6.1f} s"
            f" {row.heap_peak / 1024:5.1f} KiB"
        )
    assert rows[0].overheads[1] < LIMIT, f"more than {LIMIT:.0%} at an MTU of 247"


if __name__ == "__main__":
    main()
