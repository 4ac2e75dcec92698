"""All measurements, side by side, in one run.

    python -m bench [desk] [board] [weight] [encoded] [sizes] [serve] [rollout] [hawkbit] [loop]

Without a name, all of them. What peers are not installed (pip install -e '.[bench]') is left out.
Writes docs/bench.svg.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import board, encoded, fleet, hawkbit, loop, plot, rollout, sizes, weight
from bench.pairs import ROOT

PLOT = ROOT / "docs" / "bench.svg"


def run_desk() -> None:
    import subprocess

    subprocess.run([sys.executable, ROOT / "bench" / "desk.py", "-n", "7"], check=False)


def run_encoded() -> None:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "ota").symlink_to(ROOT / "device" / "mpy", target_is_directory=True)
        encoded.report(encoded.results(Path(directory)))


def run_sizes() -> None:
    rows = sizes.results()
    sizes.report(rows)
    plot.write(PLOT, rows)
    print(f"written: {PLOT.relative_to(ROOT)}")


PARTS: dict[str, Callable[[], None]] = {
    "desk": run_desk,
    "board": board.main,
    "weight": weight.main,
    "encoded": run_encoded,
    "sizes": run_sizes,
    "serve": lambda: fleet.report(fleet.results()),
    "rollout": rollout.main,
    "hawkbit": hawkbit.main,
    "loop": loop.main,
}


def main(names: list[str]) -> None:
    unknown = set(names) - set(PARTS)
    if unknown:
        sys.exit(f"there is no '{unknown.pop()}': the parts are {', '.join(PARTS)}")
    for name in names or PARTS:
        print(f"--- {name}", flush=True)
        PARTS[name]()
        print(flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
