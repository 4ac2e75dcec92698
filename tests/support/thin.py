"""Releases of files of which a board has some already, and a board that has them."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path

from mpota.formats.bundle import Bundle
from mpota.formats.tar import Member, write_tar
from mpota.formats.thin import file_id
from mpota.release.build import Content
from mpota.virtual.board import Board
from mpota.virtual.flash import VirtualFlash

from tests.support import once, releases
from tests.support.releases import key, make

MAIN = """
import sys, ota, code
print("runs", sys.version.split()[2], code.VERSION)
ota.rollback.cancel()
"""
OLD = {
    "lib/code.py": b"VERSION = 1\n",
    "lib/deep/empty.py": b"",
    "lib/deep/ünder.bin": bytes(range(256)) * 40,
    "main.py": MAIN.encode(),
    "page.html": b"<p>1</p>\n" * 600,
}
NEW = OLD | {"lib/code.py": b"VERSION = 2\n", "added.py": b"x = 1\n"}


def expand(thin: bytes, tree: Mapping[str, bytes]) -> bytes:
    """The whole payload, as a board with the files ``tree`` (by path) makes it."""
    members = []
    at = 0
    while at < len(thin):
        kind, end = thin[at : at + 1], at + 2 + thin[at + 1]
        name = thin[at + 2 : end].decode()
        data = tree[name] if kind == b"=" else b""
        at = end
        if kind == b"+":
            at += 4 + int.from_bytes(thin[end : end + 4], "little")
            data = thin[end + 4 : at]
        members.append(Member(name, data, kind == b"/"))
    return write_tar(members)


def archive(files: Mapping[str, bytes]) -> bytes:
    members = {name: Member(name, data) for name, data in files.items()}
    for name in files:
        parts = name.split("/")[:-1]
        for depth in range(len(parts)):
            folder = "/".join(parts[: depth + 1])
            members[folder] = Member(folder, b"", is_directory=True)
    return write_tar(members[name] for name in sorted(members, key=lambda name: name.split("/")))


def files(tree: Mapping[str, bytes]) -> Content:
    return Content("files", "files.tar", archive(tree))


def release(version: int, tree: Mapping[str, bytes], *more: Content) -> Bundle:
    options = {"version": f"{version}.0", "counter": version}
    return make(*more, files(tree), keys=(key(),), **options)


def ids(tree: Mapping[str, bytes]) -> set[bytes]:
    return {file_id(name, data) for name, data in tree.items()}


@functools.cache
def prepared() -> tuple[Path, bytes]:
    """/frozen, and the flash of a board on which release 1.0 with `OLD` is confirmed."""
    directory = once.directory("thin", prepare)
    return directory, (directory / "flash.bin").read_bytes()


def prepare(directory: Path) -> None:
    board = releases.board(directory)
    (directory / "old.bundle").write_bytes(release(1, OLD).to_bytes())
    trust = f"import ota; ota.keys.add({key().public.digest.hex()!r})"
    run = board.run(f"{trust}\nota.release.install('/frozen/old.bundle')")
    assert "runs v1.26.1 1" in run.output, run.console
    (directory / "flash.bin").write_bytes(board.flash.snapshot())


def fresh(directory: Path) -> Board:
    """That board; its /frozen is ``directory`` / "frozen"."""
    frozen, start = prepared()
    frozen = shutil.copytree(frozen, directory / "frozen")
    return Board(VirtualFlash.create(len(start), {0: start}), frozen=frozen)
