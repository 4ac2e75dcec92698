"""Writes what `mpremote mip install` needs: the lists of files, and device/mpy, the compiled ones.

    python device/build_mpy.py

package.json is the core, release.json, encoded.json, ... a part with all that it needs, all.json
the whole package. Run it after a change in device/ota; a test notices when that was forgotten.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import mpota
from mpota.mpy_cross import PORTABLE, compile_module
from mpota.release.ota_package import modules_of, part_names

DEVICE = Path(__file__).parent
SOURCES = DEVICE / "ota"
COMPILED = DEVICE / "mpy"


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
        made = compile_module(source.read_bytes(), f"ota/{source.name}", PORTABLE)
        (directory / f"{source.stem}.mpy").write_bytes(made)
    write_lists(directory, ".mpy")


def main() -> None:
    build(COMPILED)
    write_lists(SOURCES, ".py")


if __name__ == "__main__":
    main()
