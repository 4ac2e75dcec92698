"""``mpota serve`` with many boards that fetch at once: real sockets on loopback."""

from __future__ import annotations

import asyncio
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from mpota.release.serve import serving

from bench.pairs import apps

BOARDS = 500
_PIECE = 65536


@dataclass(frozen=True)
class Fleet:
    boards: int
    size: int
    seconds: float
    slowest: float
    failed: int
    peak_kib: int


def results(boards: int = BOARDS) -> Fleet:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * boards + 100  # both ends of a connection, and the file
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    app = next(iter(apps().values()))
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "app.bin").write_bytes(app)
        return asyncio.run(_fetch_all(Path(directory), len(app), boards))


async def _fetch_all(directory: Path, size: int, boards: int) -> Fleet:
    async with serving(directory, "127.0.0.1", 0) as server:
        port = int(server.url.rstrip("/").rpartition(":")[2])
        start = time.perf_counter()
        took = await asyncio.gather(
            *(_fetch(port, size) for _ in range(boards)), return_exceptions=True
        )
        seconds = time.perf_counter() - start
    good = [one for one in took if isinstance(one, float)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_kib = peak // 1024 if sys.platform == "darwin" else peak
    return Fleet(boards, size, seconds, max(good, default=0), boards - len(good), peak_kib)


async def _fetch(port: int, size: int) -> float:
    """Fetch the app as a board does, and drop it; seconds. Raises ValueError if it is not all."""
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /app.bin HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise ValueError(head)
    left = size
    while left:
        data = await reader.read(_PIECE)
        if not data:
            raise ValueError(f"{left} bytes are missing")
        left -= len(data)
    writer.close()
    return time.perf_counter() - start


def report(fleet: Fleet) -> None:
    total = fleet.boards * fleet.size
    rate = total / fleet.seconds / 1e6
    print(
        f"mpota serve: {fleet.boards} boards at once, {fleet.size:,} bytes each, clients and "
        f"server in one process:\n  {fleet.seconds:.1f} s, {rate:.0f} MB/s, the slowest "
        f"{fleet.slowest:.1f} s, {fleet.failed} failed, "
        f"peak memory {fleet.peak_kib / 1024:.0f} MiB"
    )
