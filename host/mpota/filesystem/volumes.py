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
from mpota.filesystem.littlefs import BLANK, FAT, NO_FILE_SYSTEM, FileSystem
from mpota.firmware.firmware import Firmware, find_base
from mpota.firmware.layout import FAT_SUBTYPE, find_root
from mpota.firmware.on_board import board_firmware
from mpota.formats.littlefs import BLOCK_SIZE, is_littlefs, version_text
from mpota.formats.micropython import (
    FFAT,
    VFS,
    disk_version,
    name_release,
    root_labels,
)
from mpota.formats.partition_table import DATA, DEFAULT_TABLE_OFFSET, Partition
from mpota.storage import Flash, Reader
from mpota.storage.file import (
    MAX_FILE_SIZE,
    FileImage,
    check_output,
    from_os,
    read_file,
    write_file,
)
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
    if partition.is_file_system or partition.label in root_labels(None):
        return True
    return is_littlefs(flash.read(partition.offset, 2 * BLOCK_SIZE))


def split_remote(text: str) -> tuple[str | None, str]:
    """``NAME:/path`` as partition and path; without a name, or only ``:``, the first is None."""
    text = from_os(text)
    match = _PATH.fullmatch(text)
    label, path = (match[1], match[2]) if match else ("", text)
    return label or None, "/" + path.lstrip("/")


class Volumes:
    """The file systems of a firmware, in ``partitions`` of its table or behind it.

    Without ``firmware`` it is a file system by itself.
    """

    def __init__(
        self,
        name: str,
        flash: Flash,
        partitions: tuple[Partition, ...],
        firmware: Firmware | None = None,
    ) -> None:
        self.name = name
        self.flash = flash
        self.partitions = partitions
        self._firmware = firmware
        self._open: dict[str, FileSystem] = {}

    @classmethod
    def of_firmware(cls, firmware: Firmware, flash: Flash) -> Volumes:
        partitions = [p for p in firmware.table if is_volume(flash, p)]
        vfs = firmware.unlisted_vfs(flash.size)
        return cls(firmware.name, flash, (*partitions, *([vfs] if vfs else [])), firmware)

    @property
    def disk_version(self) -> int:
        """The version of a new littlefs: what the firmware would make, 2.0 if that is unknown."""
        return disk_version(self._firmware.release if self._firmware else None)

    def partition(self, label: str | None = None) -> Partition:
        """The partition of this label; None: what MicroPython mounts, else the only one there is.

        Raises MpotaError, naming those that are there.
        """
        labels = [p.label for p in self.partitions]
        wanted = label
        if wanted is None:
            root = find_root(self.partitions, None)
            wanted = root.label if root else labels[0] if len(labels) == 1 else VFS
        for partition in self.partitions:
            if partition.label == wanted:
                return partition
        raise MpotaError(
            f"{self.name}: no file system partition '{wanted}', there are: "
            f"{', '.join(labels) or 'none'}",
            self._missing_hint(label),
        )

    def check_any(self) -> None:
        """Raises MpotaError if there is no partition for files."""
        if not self.partitions:
            raise MpotaError(f"{self.name}: no file system partition", self._missing_hint(None))

    def _missing_hint(self, label: str | None) -> str | None:
        if label is None and self.partitions:
            return "NAME:/path means the one called NAME"
        release = self._firmware.release if self._firmware else None
        if release is None or self.partitions:
            return None
        return f"{name_release(release)} mounts a partition '{VFS}': mpota resize --add {VFS}=fat:0"

    def check(self, label: str) -> tuple[str, ...]:
        """What is wrong with a littlefs, or why MicroPython does not mount an intact one."""
        file_system = self.file_system(label)
        problems = file_system.check()
        release = self._firmware.release if self._firmware else None
        found, limit = file_system.superblock.version, disk_version(release)
        if release is None or label not in root_labels(release) or found <= limit:
            return problems
        return (
            *problems,
            f"littlefs disk version {version_text(found)}, {name_release(release)} mounts "
            f"{version_text(limit)} at most: get the files, mkfs --force, and put them back",
        )

    def is_mounted(self, label: str, kind: str) -> bool:
        """Whether MicroPython, where it mounts this partition at boot, mounts a ``kind`` there."""
        if label not in root_labels(None):
            return True
        return kind in (BLANK, FAT) or (label == FFAT and kind != NO_FILE_SYSTEM)

    def for_littlefs(self, label: str | None = None) -> BlockDevice:
        """The region that a new littlefs is for.

        Raises MpotaError where MicroPython makes another kind of file system, and mounts no other.
        """
        region = self.region(label)
        if self.partition(label).label == FFAT:
            raise MpotaError(
                f"{region.name} is for FAT: MicroPython mounts it with blocks of 512 bytes",
                "it makes the FAT at its first boot; then `mpremote fs cp` copies files",
            )
        return region

    def format(self, label: str | None = None, version: int | None = None) -> FileSystem:
        """An empty littlefs in a partition, whatever it holds; ``version`` None: `disk_version`.

        Raises MpotaError as `for_littlefs`.
        """
        region = self.for_littlefs(label)
        made = FileSystem.format(region, self.disk_version if version is None else version)
        self._open[self.partition(label).label] = made
        return made

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
            firmware = board_firmware(board, table_offset)
            yield Volumes.of_firmware(firmware, board)
        return
    path = Path(name)
    if output is not None:
        check_output(output, (path,), force=force)
    data = read_file(path)
    image, volumes, flash = _in_file(data, path.name, table_offset)
    yield volumes
    # The file keeps its length, or grows to the last byte written.
    changed = flash.read(image.base, max(image.end, flash.written_end) - image.base)
    if output is not None:
        write_file(output, changed)
    elif changed != data:
        if not os.access(path, os.W_OK):  # else the rename would replace a read-only file
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
