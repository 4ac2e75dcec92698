"""Sizes of compressed apps and of deltas, against detools, bsdiff and gzip, on the same pairs."""

from __future__ import annotations

import gzip
import io
import time
from collections.abc import Callable
from dataclasses import dataclass

from mpota.formats.delta import apply_delta, make_delta
from mpota.formats.frames import Frames, compress, decompress

from bench.pairs import Pair, pairs


@dataclass(frozen=True)
class Size:
    """``share`` of the new app; None where the other tool is not installed."""

    tool: str
    share: float | None
    seconds: float


def delta(pair: Pair) -> bytes:
    data = make_delta(pair.old, pair.new).to_bytes()
    if apply_delta(pair.old, Frames.from_bytes(data)) != pair.new:
        raise RuntimeError(f"the delta for {pair.name} gives something else")
    return data


def compressed(pair: Pair) -> bytes:
    data = compress(pair.new).to_bytes()
    if decompress(Frames.from_bytes(data)) != pair.new:
        raise RuntimeError(f"{pair.name} is not what was compressed")
    return data


def detools(compression: str) -> Callable[[Pair], bytes]:
    def make(pair: Pair) -> bytes:
        from detools import create_patch

        patch = io.BytesIO()
        create_patch(io.BytesIO(pair.old), io.BytesIO(pair.new), patch, compression=compression)
        return patch.getvalue()

    return make


def bsdiff(pair: Pair) -> bytes:
    import bsdiff4

    return bytes(bsdiff4.diff(pair.old, pair.new))


DELTAS: dict[str, Callable[[Pair], bytes]] = {
    "mpota delta": delta,
    "detools lzma": detools("lzma"),
    "detools heatshrink": detools("heatshrink"),
    "detools crle": detools("crle"),
    "bsdiff4": bsdiff,
}
WHOLE: dict[str, Callable[[Pair], bytes]] = {
    "mpota compressed": compressed,
    "gzip -9": lambda pair: gzip.compress(pair.new, 9),
}


def measure(pair: Pair, tool: str, make: Callable[[Pair], bytes]) -> Size:
    start = time.perf_counter()
    try:
        size = len(make(pair))
    except ImportError:
        return Size(tool, None, 0)
    return Size(tool, size / len(pair.new), time.perf_counter() - start)


def results() -> list[tuple[Pair, list[Size]]]:
    tools = DELTAS | WHOLE
    return [(pair, [measure(pair, *tool) for tool in tools.items()]) for pair in pairs()]


def report(rows: list[tuple[Pair, list[Size]]]) -> None:
    print("Sizes, in percent of the new app (and seconds to make them)")
    tools = [size.tool for size in rows[0][1]]
    print(f"{'':30}" + "".join(f"{tool:>20}" for tool in tools))
    for pair, sizes in rows:
        cells = "".join(
            f"{'not installed':>20}"
            if size.share is None
            else f"{size.share:>11.2%} {size.seconds:6.1f} s"
            for size in sizes
        )
        print(f"{pair.name + ', ' + pair.what:30}{cells}")
