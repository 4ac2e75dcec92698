"""Releases for the boards in boards.py: signed bundles, and boards to install them on."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

from mpota.formats.bundle import Bundle
from mpota.formats.manifest import Manifest
from mpota.formats.tar import Member, write_tar
from mpota.release.build import Content, bundle
from mpota.release.signing import PrivateKey
from mpota.virtual.board import Board

from tests.support import boards, once, ota_package

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
    made = once.directory(
        f"key-{number}",
        lambda target: (target / "key.pem").write_bytes(PrivateKey.generate().to_pem()),
    )
    return PrivateKey.from_pem((made / "key.pem").read_bytes())


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
    shutil.copytree(ota_package.compiled(), directory, dirs_exist_ok=True)
    heap_size = options.pop("heap_size", None)
    made = boards.formatted(**options)
    if heap_size:
        made.heap_size = heap_size
    made.frozen = directory
    return made


COUNTED = """
import ota.local
seen = 0
class Counted(ota.local.FileSource):
    def readinto(self, buf):
        global seen
        count = super().readinto(buf)
        seen += count
        return count
    try_readinto = readinto
ota.local.FileSource = Counted
"""
