"""Boards that have a package in /lib/ota, of this version or of 0.1."""

from __future__ import annotations

from collections.abc import Mapping

from mpota.filesystem.block_device import MemoryDevice
from mpota.filesystem.littlefs import FileSystem
from mpota.formats.partition_table import Partition
from mpota.mpy_cross import MpyFormat
from mpota.release.ota_package import package
from mpota.virtual.board import Board

from tests.support import boards, old_package

VFS = Partition("vfs", 1, 0x81, 0x90000, 0x100000)  # both packages fit
TABLE = (*boards.OTA_TABLE[:-1], VFS)
FORMAT = MpyFormat(6, 3, None)


def old_files() -> dict[str, bytes]:
    """The 52 modules of 0.1."""
    return {path.name: path.read_bytes() for path in (old_package.package() / "ota").iterdir()}


def new_files(*parts: str) -> dict[str, bytes]:
    return package(FORMAT, is_compiled=True, parts=parts or None)


def put(flash: bytes, files: Mapping[str, bytes], vfs: Partition = VFS) -> bytes:
    """The content of a flash with more files in its file system."""
    region = MemoryDevice(vfs.size, flash[vfs.offset : vfs.end])
    file_system = FileSystem(region)
    with file_system.writing() as writer:
        for path in sorted({"/".join(path.split("/")[:n]) for path in files for n in (2, 3, 4)}):
            if path not in files and "." not in path[1:2] and file_system.volume.find(path) is None:
                writer.mkdir(path)
        for path, data in files.items():
            writer.write(path, data)
    return flash[: vfs.offset] + region.to_bytes() + flash[vfs.end :]


def tree(flash: bytes, folder: str, vfs: Partition = VFS) -> dict[str, bytes] | None:
    """The files in a folder of the board, None if there is no such folder."""
    file_system = FileSystem(MemoryDevice(vfs.size, flash[vfs.offset : vfs.end]))
    entry = file_system.volume.find(folder)
    if entry is None:
        return None
    return {child.name: file_system.volume.content(child) for child in entry.entries}


def board_with(files: Mapping[str, bytes]) -> Board:
    """A formatted board with these files in /lib/ota."""
    board = boards.formatted(table=TABLE)
    content = put(board.flash.snapshot(), {f"/lib/ota/{name}": files[name] for name in files})
    board.flash.restore(content)
    return board


def tree_names(flash: bytes, folder: str, vfs: Partition = VFS) -> list[str]:
    """The names of all that is in a folder of the board."""
    file_system = FileSystem(MemoryDevice(vfs.size, flash[vfs.offset : vfs.end]))
    entry = file_system.volume.find(folder)
    return [child.name for child in entry.entries] if entry else []
