"""Writes what `mpremote mip install` needs: the lists of files, and device/mpy, the compiled ones.

    python device/build_mpy.py

package.json is the core, release.json, encoded.json, ... a part with all that it needs, all.json
the whole package; device/ota/web.gz is the page of ota.web, made of device/web. Run it after a
change in device/; a test notices when that was forgotten.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import mpota
from mpota import resources
from mpota.mpy_cross import PORTABLE
from mpota.release.ota_package import package, part_names

DEVICE = Path(__file__).parent
SOURCES = DEVICE / "ota"
COMPILED = DEVICE / "mpy"
PAGE = DEVICE / "web"

_COMMENT = re.compile(r"^\s*(?://.*|/\*.*\*/)$")


def lists() -> dict[str, tuple[str, ...]]:
    """List of files -> the parts that it has beside the core."""
    found: dict[str, tuple[str, ...]] = {"package.json": ()}
    for part in part_names():
        found[f"{part}.json"] = (part,)
    found["all.json"] = part_names()
    return found


def write_lists(directory: Path, *, is_compiled: bool) -> None:
    """Write the lists; their URLs are relative to the list (mpremote 1.25 and later)."""
    for old in directory.glob("*.json"):
        old.unlink()
    for list_name, parts in lists().items():
        urls = [[f"ota/{name}", name] for name in sorted(package(PORTABLE, is_compiled, parts))]
        text = json.dumps({"urls": urls, "deps": [], "version": mpota.__version__}, indent=1)
        # One file a line.
        text = re.sub(r"\[\s+(\"[^\"]+\"),\s+(\"[^\"]+\")\s+\]", r"[\1, \2]", text)
        (directory / list_name).write_text(text + "\n", encoding="utf-8")


def page() -> bytes:
    """The page as one file, without blanks at the start of lines, comments and empty lines."""
    whole = resources.page(PAGE)
    lines = (line.strip() for line in whole.splitlines() if not _COMMENT.match(line))
    return "\n".join(line for line in lines if line).encode()


def write_page(path: Path) -> None:
    """Write the page, compressed. A file with that content stays: zlib's output varies."""
    content = page()
    if not path.exists() or gzip.decompress(path.read_bytes()) != content:
        path.write_bytes(gzip.compress(content, 9, mtime=0))


def build(directory: Path) -> None:
    """Write the compiled package, and its lists of files."""
    directory.mkdir(exist_ok=True)
    for old in [*directory.glob("*.mpy"), *directory.glob("*.pack")]:
        old.unlink()
    for name, data in package(PORTABLE, is_compiled=True).items():
        (directory / name).write_bytes(data)
    write_lists(directory, is_compiled=True)


def main() -> None:
    write_page(SOURCES / "web.gz")
    build(COMPILED)
    write_lists(SOURCES, is_compiled=False)


if __name__ == "__main__":
    main()
