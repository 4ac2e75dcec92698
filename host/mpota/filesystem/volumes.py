"""Where file systems are: in a firmware file, in a file of their own, or on a board."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mpota.errors import MpotaError, UsageError
from mpota.filesystem.block_device import BlockDevice
from mpota.filesystem.littlefs import FileSystem
from mpota.firmware.firmware import Firmware, find_base
from mpota.firmware.layout import FAT_SUBTYPE, ROOT_LABELS, VFS, unlisted_vfs
from mpota.formats.littlefs import BLOCK_SIZE, is_littlefs
from mpota.formats.partition_table import DATA, DEFAULT_TABLE_OFFSET, Partition
from mpota.storage import Flash, Reader
from mpota.storage.file import MAX_FILE_SIZE, FileImage, check_output, read_file, write_file
from mpota.storage.memory import MemoryFlash
from mpota.storage.ports import DEFAULT_BAUD, is_port
from mpota.units import align_down

if TYPE_CHECKING:
    from mpota.storage.board import Progress

_PATH = re.compile(r"([^/:]*):(.*)", re.DOTALL)


def is_volume(flash: Reader, partition: Partition) -> bool:
    """Whether a partition is for files: by its subtype, or because it holds a littlefs."""
    if partition.type != DATA or partition.size < 2 * BLOCK_SIZE:
        return False
    if partition.is_file_system or partition.label in ROOT_LABELS:
        return True
    return is_littlefs(flash.read(partition.offset, 2 * BLOCK_SIZE))


def split_remote(text: str) -> tuple[str | None, str]:
    """``NAME:/path`` as partition and path; without a name, or only ``:``, the first is None."""
    match = _PATH.fullmatch(text)
    label, path = (match[1], match[2]) if match else ("", text)
    return label or None, "/" + path.lstrip("/")


class Volumes:
    """The file systems of a firmware, in ``partitions`` of its table or behind it."""

    def __init__(self, name: str, flash: Flash, partitions: tuple[Partition, ...]) -> None:
        self.name = name
        self.flash = flash
        self.partitions = partitions
        self._open: dict[str, FileSystem] = {}

    @classmethod
    def of_firmware(cls, firmware: Firmware, flash: Flash) -> Volumes:
        partitions = [p for p in firmware.table if is_volume(flash, p)]
        vfs = unlisted_vfs(firmware.table, flash.size)
        return cls(firmware.name, flash, (*partitions, *([vfs] if vfs else [])))

    def partition(self, label: str | None = None) -> Partition:
        """The partition of this label; None: ``vfs``, else the only one there is.

        Raises MpotaError, naming those that are there.
        """
        labels = [p.label for p in self.partitions]
        wanted = label
        if wanted is None:
            wanted = VFS if VFS in labels or len(labels) != 1 else labels[0]
        for partition in self.partitions:
            if partition.label == wanted:
                return partition
        raise MpotaError(
            f"{self.name}: no file system partition '{wanted}', there are: "
            f"{', '.join(labels) or 'none'}",
            "NAME:/path means the one called NAME" if label is None and labels else None,
        )

    def region(self, label: str | None = None) -> BlockDevice:
        partition = self.partition(label)
        if partition.end > self.flash.size:
            raise MpotaError(
                f"{self.name}: partition '{partition.label}' ends at {partition.end:#x}, "
                f"the flash at {self.flash.size:#x}"
            )
        size = align_down(partition.size, BLOCK_SIZE)
        return BlockDevice(self.flash, partition.offset, size, f"partition '{partition.label}'")

    def file_system(self, label: str | None = None) -> FileSystem:
        """Opened once. Raises MpotaError if there is no littlefs in the partition."""
        name = self.partition(label).label
        if name not in self._open:
            self._open[name] = FileSystem(self.region(name))
        return self._open[name]


@contextmanager
def open_volumes(
    name: str,
    *,
    output: Path | None = None,
    force: bool = False,
    table_offset: int = DEFAULT_TABLE_OFFSET,
    baud: int = DEFAULT_BAUD,
    progress: Progress | None = None,
) -> Iterator[Volumes]:
    """The file systems of a file or of the board on a port.

    What is written is on a board at once; a file is replaced as a whole when the block ends
    without an error, or ``output`` is written in its place. Raises UsageError for an output that
    must not be written.
    """
    if is_port(name):
        from mpota.storage.board import open_board, quiet

        if output is not None:
            raise UsageError(f"-o is for files, '{name}' is a port")
        with open_board(name, baud=baud, progress=progress or quiet) as board:
            firmware = Firmware.from_flash(board, board.name, table_offset)
            yield Volumes.of_firmware(firmware, board)
        return
    path = Path(name)
    if output is not None:
        check_output(output, (path,), force=force)
    data = read_file(path)
    image, volumes, flash = _in_file(data, path.name, table_offset)
    yield volumes
    # As long as it was, or up to the last byte written.
    changed = flash.read(image.base, max(image.end, flash.written_end) - image.base)
    if output is not None:
        write_file(output, changed)
    elif changed != data:
        if not os.access(path, os.W_OK):  # a rename would replace it all the same
            raise UsageError(f"'{path}' is read-only", "write another file: -o OUT")
        write_file(path, changed)


def _in_file(data: bytes, name: str, table_offset: int) -> tuple[FileImage, Volumes, MemoryFlash]:
    """A file, the file systems in it, and the flash in memory that they change."""
    if is_littlefs(data[: 2 * BLOCK_SIZE]):
        # A file system by itself, as `mpota fs build` and `mpota extract` make it.
        image = FileImage(0, data)
        flash = MemoryFlash(image, len(data))
        whole = Partition(VFS, DATA, FAT_SUBTYPE, 0, len(data))
        return image, Volumes(name, flash, (whole,)), flash
    image = FileImage(find_base(data, name), data)
    firmware = Firmware.from_flash(image, name, table_offset)
    size = max(firmware.flash_size, image.end)
    if size > MAX_FILE_SIZE:
        raise MpotaError(f"{name}: a flash of {size:,} bytes, {MAX_FILE_SIZE:,} are the limit")
    flash = MemoryFlash(image, size)
    return image, Volumes.of_firmware(firmware, flash), flash
