"""Files that flashing a firmware would cost: found, kept aside, moved to their new place."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mpota.errors import MpotaError
from mpota.filesystem.block_device import MemoryDevice, is_blank
from mpota.filesystem.littlefs import (
    NO_FILE_SYSTEM,
    FileSystem,
    OtherContentError,
    migrate,
)
from mpota.filesystem.volumes import Volumes
from mpota.firmware.firmware import Firmware
from mpota.formats.littlefs import BLOCK_SIZE
from mpota.formats.partition_table import Partition
from mpota.storage.board import BoardFlash
from mpota.storage.file import write_file
from mpota.units import align_down, format_size


@dataclass(frozen=True)
class LostFiles:
    """A file system of a board that a firmware has no place for where it stands.

    ``new`` is where its label goes; None: nowhere, or the firmware brings files of its own there.
    """

    old: Partition
    content: bytes = field(repr=False)
    new: Partition | None

    @property
    def words(self) -> str:
        """What is in it, for people."""
        try:
            volume = FileSystem(self._device()).volume
            files = [entry for _, entry in volume.walk() if not entry.is_dir]
        except MpotaError as error:
            kind = error.kind if isinstance(error, OtherContentError) else NO_FILE_SYSTEM
            what = "that are no littlefs" if kind == NO_FILE_SYSTEM else f"of {kind}"
            return f"{self.old.label}: {format_size(len(self.content))} {what}"
        size = format_size(sum(entry.size for entry in files))
        return f"{self.old.label}: {len(files)} file{'s' * (len(files) != 1)}, {size}"

    def moved(self) -> bytes:
        """The file system for its new place. Raises MpotaError if it cannot be kept."""
        if self.new is None:
            raise MpotaError(
                f"files cannot be kept: the firmware has no room for '{self.old.label}'"
            )
        return migrate(self.content, self.new.size, f"partition '{self.old.label}'").rstrip(b"\xff")

    def _device(self) -> MemoryDevice:
        return MemoryDevice(len(self.content), self.content, f"partition '{self.old.label}'")


def find_lost_files(
    board: BoardFlash, firmware: Firmware, old: Firmware | None
) -> tuple[LostFiles, ...]:
    """The file systems of the board, which has the firmware ``old``, that would not be there any
    more after flashing ``firmware``."""
    if old is None:
        return ()
    unlisted = firmware.unlisted_vfs(board.size)
    places = {p.label: p for p in (*firmware.table, *([unlisted] if unlisted else []))}
    lost = []
    for partition in Volumes.of_firmware(old, board).partitions:
        new = places.get(partition.label)
        if new is not None and firmware.read(new).strip(b"\xff"):
            new = None
        elif new is not None and (new.offset, new.size) == (partition.offset, partition.size):
            continue
        size = align_down(min(partition.end, board.size) - partition.offset, BLOCK_SIZE)
        content = board.read(partition.offset, size) if size > 0 else b""
        if content and not is_blank(MemoryDevice(size, content, partition.label)):
            lost.append(LostFiles(partition, content, new))
    return tuple(lost)


def moved_files(lost: Iterable[LostFiles]) -> Mapping[str, bytes]:
    """The contents of the new places, by their labels. Raises MpotaError as `LostFiles.moved`."""
    return {files.old.label: files.moved() for files in lost}


def back_up(files: LostFiles, mac: str, folder: Path) -> Path:
    """Write a file system to a file of its own, which `mpota fs` reads; none is overwritten."""
    label = re.sub(r"[^A-Za-z0-9_-]", "_", files.old.label)  # a label may hold any bytes
    stem = f"mpota-files-{mac}-{label}"
    names = (folder / f"{stem}{f'-{number}' if number else ''}.bin" for number in range(10_000))
    path = next(name for name in names if not os.path.lexists(name))
    write_file(path, files.content)
    return path
