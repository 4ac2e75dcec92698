"""Whole-process time and memory of `mpota show` and `mpota resize` against mp-image-tool-esp32.

    python bench/desk.py [FIRMWARE] [-n RUNS]

Both tools come from the environment of the Python that runs this, and run in turn, so that a slow
moment of the machine hits both. Python may keep the bytecode of both, as it does by default.
Without FIRMWARE one is made (ESP32, 1.6 MB). Exit code 1 if the median time of `resize` is more
than half of the other tool's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

LIMIT = 0.5  # of the other tool's time
# Without bytecode an editable checkout that was changed is compiled again by each run.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


@dataclass
class Contender:
    """A command line, and what its runs took: seconds of wall-clock time, KiB of peak memory."""

    label: str
    arguments: list[str]
    seconds: list[float] = field(default_factory=list)
    peak_kib: int = 0

    def run(self, directory: Path) -> None:
        start = time.perf_counter()
        process = subprocess.Popen(
            self.arguments,
            cwd=directory,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        self.seconds.append(time.perf_counter() - start)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{' '.join(self.arguments)} exits with {process.returncode}")
        # ru_maxrss is in KiB, on macOS in bytes.
        peak = usage.ru_maxrss // 1024 if sys.platform == "darwin" else usage.ru_maxrss
        self.peak_kib = max(self.peak_kib, peak)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)

    def row(self) -> str:
        times = f"{self.median:8.3f} s {self.best:8.3f} s"
        return f"{self.label:<32}{times} {self.peak_kib / 1024:8.1f} MiB"


def find_script(name: str) -> str:
    path = shutil.which(name, path=sysconfig.get_path("scripts"))
    if path is None:
        sys.exit(f"{name} is not installed beside {sys.executable}: pip install -e '.[dev]'")
    return path


def kind_of_install() -> str:
    """PEP 610: pip notes in direct_url.json where a package came from."""
    origin = json.loads(metadata.distribution("mpota").read_text("direct_url.json") or "{}")
    return "an editable install" if origin.get("dir_info", {}).get("editable") else "a wheel"


def contenders() -> dict[str, tuple[Contender, Contender]]:
    mpota, peer = find_script("mpota"), find_script("mp-image-tool-esp32")
    out = ["-o", "out.bin"]
    return {
        "show": (
            Contender("mpota show", [mpota, "show", "in.bin"]),
            Contender("mp-image-tool-esp32", [peer, "in.bin"]),
        ),
        "resize": (
            Contender(
                "mpota resize -f 16M", [mpota, "resize", "in.bin", "-f", "16M", *out, "--force"]
            ),
            Contender(
                "mp-image-tool-esp32 -f 16M",
                [peer, "in.bin", "-f", "16M", "--resize", "vfs=0", *out],
            ),
        ),
    }


def make_firmware(directory: Path) -> None:
    # In processes of their own: a child's peak memory starts with what its parent has.
    mpota = find_script("mpota")
    for arguments in (
        ["sample", "esp32", "-o", "sample.bin"],
        ["resize", "sample.bin", "--layout", "4MB", "-o", "in.bin"],
    ):
        subprocess.run([mpota, *arguments], cwd=directory, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("firmware", nargs="?", type=Path, help="with a vfs partition")
    parser.add_argument("-n", "--runs", type=int, default=25)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if options.firmware:
            shutil.copyfile(options.firmware, directory / "in.bin")
        else:
            make_firmware(directory)
        size = (directory / "in.bin").stat().st_size
        pairs = contenders()
        for pair in pairs.values():
            for contender in pair:
                contender.run(directory)  # warm the caches
                contender.seconds.clear()
            for _ in range(options.runs):
                for contender in pair:
                    contender.run(directory)
    print(f"{size:,} bytes, {options.runs} runs each, in turn; mpota is {kind_of_install()}\n")
    print(f"{'':<32}{'median':>10} {'best':>10} {'peak memory':>12}")
    for ours, theirs in pairs.values():
        print(f"{ours.row()}\n{theirs.row()}")
        median, best = ours.median / theirs.median, ours.best / theirs.best
        print(f"{'of the time':<32}{median:8.0%}   {best:8.0%}\n")
    ours, theirs = pairs["resize"]
    if ours.median > LIMIT * theirs.median:
        sys.exit(f"resize takes more than {LIMIT:.0%} of the other tool's time")


if __name__ == "__main__":
    main()
