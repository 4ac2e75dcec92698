"""Makes what a release consists of, in dist/, and tries each piece of it.

    make release

The wheel and the source archive of mpota, and the compiled package for boards as
``ota-VERSION-mpy.zip``: unpacked, it is a directory that `mpremote mip install` takes, and so is
the URL of one on a web server.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
COMPILED = ROOT / "device" / "mpy"
_DATE = 1980, 1, 1, 0, 0, 0  # the same files give the same archive


def python(*arguments: str | Path, **environment: str) -> str:
    """Run this Python; returns what it printed. Ends the program if that fails."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"{done.stdout}{' '.join(command)} ended with {done.returncode}")
    return done.stdout


def check_changelog(version: str) -> None:
    """Ends the program if what is to be released is not described."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", text, re.MULTILINE):
        sys.exit(f"CHANGELOG.md has no section '## [{version}] - DATE'")


def compile_package(directory: Path) -> None:
    """Compile device/ota anew. Ends the program if git has something else."""
    build = runpy.run_path(str(ROOT / "device" / "build_mpy.py"))
    build["build"](directory)
    names = {path.name for place in (directory, COMPILED) for path in place.iterdir()}
    _, different, missing = filecmp.cmpfiles(directory, COMPILED, names, shallow=False)
    if different or missing:
        stale = ", ".join(sorted(different + missing))
        sys.exit(f"device/mpy is not what device/ota gives: python device/build_mpy.py ({stale})")


def pack(directory: Path, target: Path) -> None:
    """Write the files of ``directory`` as an archive with that one directory."""
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(directory.iterdir()):
            entry = zipfile.ZipInfo(f"{directory.name}/{path.name}", _DATE)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)


def check_archive(target: Path, version: str) -> None:
    """Ends the program unless every list of files names the version and files that are there."""
    with zipfile.ZipFile(target) as archive:
        names = archive.namelist()
        lists = [name for name in names if name.endswith(".json")]
        for name in lists:
            content = json.loads(archive.read(name))
            folder = name.rpartition("/")[0]
            absent = [url for _, url in content["urls"] if f"{folder}/{url}" not in names]
            if absent or content["version"] != version:
                sys.exit(f"{target.name}: {name} names {absent}, version {content['version']}")
    if not lists:
        sys.exit(f"{target.name} has no package.json")


def check_wheel(wheel: Path, version: str, directory: Path) -> None:
    """Ends the program unless what the wheel installs runs, away from the checkout."""
    python("-m", "pip", "install", "--quiet", "--no-deps", "--target", directory, wheel)
    place = {"PYTHONPATH": str(directory)}
    where = python("-c", "import mpota; print(mpota.__file__)", **place)
    said = python("-m", "mpota", "--version", **place)
    if not Path(where.strip()).is_relative_to(directory) or version not in said.split():
        sys.exit(f"{wheel.name}: {where}{said}")
    sample = directory / "sample.bin"
    python("-m", "mpota", "sample", "esp32", "-o", sample, **place)
    python("-m", "mpota", "check", sample, **place)


def main() -> None:
    version: str = runpy.run_path(str(ROOT / "host" / "mpota" / "__init__.py"))["__version__"]
    check_changelog(version)
    shutil.rmtree(DIST, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        compiled = Path(temporary, f"ota-{version}")
        compile_package(compiled)
        print(python("-m", "build", "--outdir", DIST).splitlines()[-1])
        archive = DIST / f"ota-{version}-mpy.zip"
        pack(compiled, archive)
        check_archive(archive, version)
        (wheel,) = DIST.glob("*.whl")
        (source,) = DIST.glob("*.tar.gz")
        print(python("-m", "twine", "check", "--strict", wheel, source), end="")
        check_wheel(wheel, version, Path(temporary, "installed"))
    for path in sorted(DIST.iterdir()):
        print(f"dist/{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
