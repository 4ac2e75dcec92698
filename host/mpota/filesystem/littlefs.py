"""littlefs in a part of a flash: files read and written as MicroPython on ESP32 does.

The only module that imports littlefs-python. Reading needs none of it (`mpota.formats.littlefs`);
writing does, and only on a file system that was found intact before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpota.errors import MpotaError, UsageError
from mpota.filesystem.block_device import BlockDevice, MemoryDevice, is_blank
from mpota.formats.littlefs import (
    BLOCK_SIZE,
    MAGIC,
    MTIME,
    Entry,
    OtherBlocksError,
    Superblock,
    Volume,
    is_littlefs,
    split_path,
    superblock_commit,
)
from mpota.formats.micropython import DISK_VERSION_2_1
from mpota.text import shown
from mpota.units import align_down, format_size

if TYPE_CHECKING:
    from littlefs import LFSConfig

_INLINE_MAX = 128  # MicroPython's cache: 4 * 32 bytes (extmod/vfs_lfsx.c: init_config)
_MIN_BLOCKS = 4


BLANK, FAT, NO_FILE_SYSTEM = "blank", "FAT", "no file system"


class OtherContentError(MpotaError):
    """A region holds no littlefs of MicroPython's; ``kind`` is what it holds, in a word or two."""

    def __init__(self, message: str, hint: str, kind: str) -> None:
        super().__init__(message, hint)
        self.kind = kind


@dataclass(frozen=True)
class Usage:
    """What a file system holds; sizes in bytes, whole blocks for what is used."""

    size: int
    used_size: int
    files: int
    directories: int

    @property
    def free_size(self) -> int:
        return self.size - self.used_size


class FileSystem:
    """The littlefs in a region. Paths are absolute, with ``/`` between names.

    Raises MpotaError if there is none, saying what there is instead. A damaged one can be opened
    and read as far as it goes: see `problems`.
    """

    def __init__(self, region: BlockDevice) -> None:
        self.region = region
        self._volume: Volume | None = None
        self._check_kind()
        self.volume  # noqa: B018 - the superblock is looked at now

    @classmethod
    def format(cls, region: BlockDevice, disk_version: int = DISK_VERSION_2_1) -> FileSystem:
        """Make an empty littlefs in ``region``, whatever it holds."""
        if region.block_count < _MIN_BLOCKS:
            raise MpotaError(
                f"{region.name} is {region.size:,} bytes, littlefs needs {_MIN_BLOCKS * BLOCK_SIZE}"
            )
        from littlefs import LittleFSError, lfs

        config, device = _config(region, region.block_count, disk_version)
        try:
            lfs.format(lfs.LFSFilesystem(), config)
        except LittleFSError as error:
            region.discard()
            raise _translated(error, region.name) from None
        device.check()
        region.flush()
        return cls(region)

    # --- reading ---------------------------------------------------------------------------------

    @property
    def volume(self) -> Volume:
        """The tree as it stands in the region."""
        if self._volume is None:
            try:
                self._volume = Volume(self.region.read_block, self.region.block_count)
            except OtherBlocksError as error:
                raise OtherContentError(
                    f"{self.region.name} holds {error}",
                    "it is for the program that made it, or for MicroPython with a block device "
                    "of its own",
                    f"littlefs, blocks of {error.block_size:,}",
                ) from None
            except MpotaError as error:
                raise MpotaError(f"{self.region.name}: {error}", error.hint) from None
        return self._volume

    @property
    def superblock(self) -> Superblock:
        return self.volume.superblock

    @property
    def problems(self) -> tuple[str, ...]:
        """What is damaged in the directories, and known of files; empty if nothing is."""
        texts = list(self.volume.problems)
        for pair in self.volume.stale_superblocks:
            texts.append(
                f"the superblock at block {min(pair.blocks):#x} tells another size than the one "
                "that counts: MicroPython does not mount it until `mpota fs grow` has ended"
            )
        return tuple(texts)

    @property
    def mismatch(self) -> str:
        """Both sizes in words if the file system is not as large as its partition, else ''."""
        size = self.superblock.size
        if size == self.region.size:
            return ""
        return (
            f"the file system is {size:,} bytes ({format_size(size)}), {self.region.name} "
            f"{self.region.size:,} ({format_size(self.region.size)}): MicroPython does not mount it"
        )

    def check(self) -> tuple[str, ...]:
        """Everything that is wrong, in words: all blocks of all files are looked at.

        Contents have no checksum in littlefs: only their place is proved.
        """
        self._volume = None
        self.volume.check_files()
        return (*([self.mismatch] if self.mismatch else []), *self.problems)

    def usage(self) -> Usage:
        """How full it is. Raises MpotaError if a file's blocks are damaged."""
        self.require_intact()
        entries = [entry for _, entry in self.volume.walk()]
        directories = sum(entry.is_dir for entry in entries)
        used = self.volume.used_blocks * BLOCK_SIZE
        return Usage(self.superblock.size, used, len(entries) - directories, directories)

    def entry(self, path: str) -> Entry:
        """Raises MpotaError if there is nothing at ``path``."""
        entry = self.volume.find(path)
        if entry is None:
            raise MpotaError(f"{self.region.name}: no '{path}'", self._damage_hint())
        return entry

    def read(self, path: str) -> bytes:
        """A file's content. Raises MpotaError if it is no file, or damaged."""
        entry = self.entry(path)
        if entry.is_dir:
            raise MpotaError(f"{self.region.name}: '{path}' is a directory")
        try:
            return self.volume.content(entry)
        except MpotaError as error:
            raise MpotaError(f"{self.region.name}: {path}: {error}", error.hint) from None

    # --- writing ---------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """Write operations: each is on the flash when its call ends.

        A cut in the middle leaves every file as it was or as it will be; a new one may be there
        and empty. Raises MpotaError if the file system is damaged or does not fit its partition.
        """
        if self.mismatch:
            raise MpotaError(f"{self.region.name}: {self.mismatch}", self._size_hint())
        self.require_intact()
        yield from self._mounted(self.superblock.block_count)
        self.require_intact()  # before a file takes the place of the old one

    def grow(self) -> int:
        """Make the file system as large as its region; the number of bytes it grew by.

        Files stay where they are. Run again after an interruption, it ends what was begun.
        Raises MpotaError if the region is smaller than the file system.
        """
        old_size, region = self.superblock.size, self.region
        if old_size > region.size:
            raise MpotaError(f"{region.name}: {self.mismatch}", self._size_hint())
        self.require_intact(is_growing=True)
        if old_size < region.size:
            with contextmanager(self._mounted)(0) as writer:
                writer.grow(region.block_count)
        # lfs_fs_grow changes only the copy of the superblock that has the root directory. Where
        # many writes have made littlefs add more of them, the others refuse the new size.
        for pair in self.volume.stale_superblocks:
            region.program(pair.blocks[1], superblock_commit(pair, self.superblock))
            region.flush()
        self._volume = None
        return region.size - old_size

    def _mounted(self, block_count: int) -> Iterator[Writer]:
        from littlefs import LittleFSError, lfs

        config, device = _config(self.region, block_count, self.superblock.version)
        mounted = lfs.LFSFilesystem()
        self.region.protect(self.volume.owners)
        try:
            lfs.mount(mounted, config)
        except LittleFSError as error:
            raise _translated(error, self.region.name) from None
        try:
            yield Writer(mounted, device, self.region)
        finally:
            self._volume = None
            lfs.unmount(mounted)
            self.region.discard()

    # --- checks ----------------------------------------------------------------------------------

    def _check_kind(self) -> None:
        start = self.region.read_block(0) + self.region.read_block(1)
        if is_littlefs(start):
            return
        name = self.region.name
        if is_blank(self.region):
            raise OtherContentError(
                f"{name} is blank: it holds no file system yet",
                "MicroPython makes one at its first boot, `mpota fs mkfs` makes one now",
                BLANK,
            )
        kind = find_kind(start)
        if kind is not None:
            raise OtherContentError(
                f"{name} holds a {kind}, `mpota fs` is for littlefs", _REACHED_BY[kind], kind
            )
        raise OtherContentError(
            f"{name} holds something else (it starts with {start[:8].hex(' ')}), not a littlefs "
            "that can be read",
            "`mpota fs mkfs --force` makes an empty littlefs in its place",
            NO_FILE_SYSTEM,
        )

    def require_intact(self, *, is_growing: bool = False) -> None:
        """Raises MpotaError if anything is damaged; ``is_growing``: apart from a half-done grow."""
        self._volume = None
        self.volume.check_files()
        problems = self.volume.problems if is_growing else self.problems
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise MpotaError(
                f"{self.region.name}: the file system is damaged: {problems[0]}{more}",
                "`mpota fs check` tells all, `mpota fs get` saves what can be read",
            )

    def _damage_hint(self) -> str | None:
        return f"the file system is damaged: {self.problems[0]}" if self.problems else None

    def _size_hint(self) -> str:
        if self.superblock.size < self.region.size:
            return "`mpota fs grow` makes it fit"
        return "what is behind the end is lost: get the files, mkfs, and put them back"


class Writer:
    """Operations on a mounted littlefs. Each raises MpotaError, and then has changed nothing."""

    def __init__(self, mounted: Any, device: _RegionContext, region: BlockDevice) -> None:
        self._mounted = mounted
        self._device = device
        self._region = region
        self._is_broken = False

    def write(self, path: str, data: bytes, attrs: Mapping[int, bytes] | None = None) -> None:
        """A file with this content, new or in place of the one that is there."""
        from littlefs import lfs

        with self._operation(path, len(data)) as name:
            file = lfs.file_open(self._mounted, name, "w")
            try:
                lfs.file_write(self._mounted, file, data)
            finally:
                # Open files are known to the C library by their address: always close them.
                lfs.file_close(self._mounted, file)
            for kind, value in (attrs or {}).items():
                if value:
                    lfs.setattr(self._mounted, name, kind, value)

    def mkdir(self, path: str) -> None:
        from littlefs import lfs

        with self._operation(path) as name:
            lfs.mkdir(self._mounted, name)

    def set_attrs(self, path: str, attrs: Mapping[int, bytes]) -> None:
        from littlefs import lfs

        with self._operation(path) as name:
            for kind, value in attrs.items():
                if value:  # littlefs-python cannot set an empty attribute
                    lfs.setattr(self._mounted, name, kind, value)

    def remove(self, path: str) -> None:
        """A file, or a directory that is empty."""
        from littlefs import lfs

        with self._operation(path) as name:
            lfs.remove(self._mounted, name)

    def rename(self, old: str, new: str) -> None:
        """Move a file or directory; a file at ``new`` is replaced."""
        from littlefs import lfs

        target = _encodable(new)
        with self._operation(old) as name:
            if target.startswith(f"{name.rstrip('/')}/"):  # the C library would lose it
                raise UsageError(f"cannot move '{old}' into itself")
            lfs.rename(self._mounted, name, target)

    def grow(self, block_count: int) -> None:
        from littlefs import lfs

        with self._operation("/"):
            lfs.fs_grow(self._mounted, block_count)

    @contextmanager
    def _operation(self, path: str, size: int = 0) -> Iterator[str]:
        from littlefs import LittleFSError

        if self._is_broken:
            raise RuntimeError("a write failed before: the state in memory is not on the flash")
        try:
            yield _encodable(path)
            self._device.check()
            self._region.flush()
        except BaseException as error:
            self._is_broken = True
            self._region.discard()
            if isinstance(error, LittleFSError):
                self._device.check()
                raise _translated(error, self._region.name, path, size) from None
            raise


def migrate(old: bytes, new_size: int, name: str = "file system") -> bytes:
    """The littlefs in ``old``, with all its files, for a partition of ``new_size`` bytes.

    To become larger it grows, and its blocks stay as they are; to become smaller it is written
    anew. Times and other attributes are kept. ``name`` is for messages. Raises MpotaError if
    ``old`` is no intact littlefs, or if the files do not fit.
    """
    source = FileSystem(MemoryDevice(align_down(len(old), BLOCK_SIZE), old, name))
    source.require_intact(is_growing=True)
    size = source.superblock.size
    region = MemoryDevice(align_down(new_size, BLOCK_SIZE), old[: min(size, new_size)], name)
    if size > region.size:
        return _rewritten(source, region.size, name)
    FileSystem(region).grow()
    return region.to_bytes()


def _rewritten(source: FileSystem, new_size: int, name: str) -> bytes:
    usage = source.usage()
    region = MemoryDevice(new_size, name=name)
    try:
        with FileSystem.format(region, source.superblock.version).writing() as writer:
            writer.set_attrs("/", source.volume.root.attrs)
            for path, entry in source.volume.walk():
                if entry.is_dir:
                    writer.mkdir(path)
                    writer.set_attrs(path, entry.attrs)
                else:
                    writer.write(path, source.volume.content(entry), entry.attrs)
    except MpotaError as error:
        if usage.used_size <= new_size:
            raise
        raise MpotaError(
            f"{name}: {usage.files} files take {usage.used_size:,} bytes "
            f"({format_size(usage.used_size)}), the new file system holds {new_size:,} "
            f"({format_size(new_size)})",
            error.hint,
        ) from None
    return region.to_bytes()


def build(
    files: Mapping[str, bytes | None], size: int, disk_version: int = DISK_VERSION_2_1
) -> bytes:
    """A littlefs image of ``size`` bytes. ``files`` maps paths to contents, None for directories.

    The same files give the same bytes: no times are stored. Raises MpotaError if they do not fit.
    """
    if size % BLOCK_SIZE:
        raise UsageError(f"size {size:#x} is not a multiple of {BLOCK_SIZE:#x}")
    region = MemoryDevice(size)
    with FileSystem.format(region, disk_version).writing() as writer:
        for path, data in files.items():
            if data is None:
                writer.mkdir(path)
            else:
                writer.write(path, data)
    return region.to_bytes()


def mtime_attrs(path: Path) -> dict[int, bytes]:
    """A host file's time as MicroPython stores it."""
    return {MTIME: (path.stat().st_mtime_ns & (1 << 64) - 1).to_bytes(8, "little")}


class _RegionContext:
    """The C library's view of a region: its context, which must never raise.

    Every program is one whole block, as prog_size says. So a commit never adds to the block of
    metadata that counts, it goes to the other one of the pair: a cable that is pulled while a
    block is rewritten costs nothing that was there before.
    """

    def __init__(self, region: BlockDevice) -> None:
        self._region = region
        self._error: BaseException | None = None

    def check(self) -> None:
        """Raises the error that a callback met."""
        if self._error is not None:
            raise self._error

    def read(self, config: LFSConfig, block: int, offset: int, size: int) -> bytes:
        data = b""
        with self._caught():
            data = self._region.read_block(block)[offset : offset + size]
        return data.ljust(size, b"\xff")  # the C library copies size bytes in any case

    def prog(self, config: LFSConfig, block: int, offset: int, data: bytes) -> int:
        self._region.program(block, data)
        return -5 if self._error else 0  # LFS_ERR_IO

    def erase(self, config: LFSConfig, block: int) -> int:
        return 0

    def sync(self, config: LFSConfig) -> int:
        return -5 if self._error else 0

    @contextmanager
    def _caught(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # even Ctrl-C: Cython would print it and go on
            self._error = error


def _config(
    region: BlockDevice, block_count: int, disk_version: int
) -> tuple[LFSConfig, _RegionContext]:
    from littlefs import LFSConfig

    device = _RegionContext(region)
    config = LFSConfig(
        device,
        block_size=BLOCK_SIZE,
        block_count=block_count,
        read_size=BLOCK_SIZE,
        prog_size=BLOCK_SIZE,
        cache_size=BLOCK_SIZE,
        lookahead_size=512,
        block_cycles=-1,  # no wear levelling: a desk writes seldom, so directories stay in place
        inline_max=_INLINE_MAX,
        disk_version=disk_version,
    )
    return config, device


_REASONS = {
    "LFS_ERR_NOENT": "no such file or directory",
    "LFS_ERR_EXIST": "exists already",
    "LFS_ERR_NOTDIR": "is not a directory",
    "LFS_ERR_ISDIR": "is a directory",
    "LFS_ERR_NOTEMPTY": "directory is not empty",
    "LFS_ERR_NAMETOOLONG": "the name is too long, 255 bytes are the limit",
    "LFS_ERR_INVAL": "not possible",
    "LFS_ERR_CORRUPT": "the file system is damaged",
}


def _translated(error: Exception, name: str, path: str = "", size: int = 0) -> MpotaError:
    where = f"{name}: {path}" if path else name
    kind = getattr(error, "name", "") or ""
    if kind == "LFS_ERR_NOSPC":
        hint = "`mpota fs df` tells what is free"
        return MpotaError(f"{where}: no room for {size:,} bytes", hint)
    return MpotaError(f"{where}: {_REASONS.get(kind, str(error))}")


def _encodable(path: str) -> str:
    path = "/" + "/".join(split_path(path))
    try:
        path.encode()
    except UnicodeEncodeError:
        raise MpotaError(
            f"name '{shown(path)}' is not UTF-8: littlefs-python cannot write it"
        ) from None
    if "\0" in path or ".." in split_path(path):
        raise UsageError(f"path '{shown(path)}' is none that littlefs allows")
    return path


_REACHED_BY = {
    FAT: "MicroPython mounts it: its files are reached through the REPL, by `mpremote fs`",
    "littlefs 1": "MicroPython's VfsLfs1 reads it: `mpremote fs`",
    "ROMFS": "it is written as a whole: `mpota write FIRMWARE romfs=FILE`",
}


def find_kind(start: bytes) -> str | None:
    """What the first two blocks hold in place of a littlefs 2: a key of `_REACHED_BY`, or None."""
    for sector in (start, start[BLOCK_SIZE:]):  # ESP-IDF's wear levelling may keep the first one
        names = (sector[54:62], sector[82:90], sector[3:11])  # FAT12/16, FAT32, exFAT
        if sector[510:512] == b"\x55\xaa" and any(b"FAT" in name for name in names):
            return FAT
    if MAGIC in start[:64]:
        return "littlefs 1"
    return "ROMFS" if start[:3] == b"\xd2\xcd\x31" else None
