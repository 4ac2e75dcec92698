"""littlefs 2 on flash: read without trusting a byte of it.

Source: littlefs ``SPEC.md`` and ``lfs.c`` (lfs_dir_fetchmatch, lfs_mount_, lfs_ctz_traverse).
The C library stops the whole process on damage that it does not expect (``LFS_ASSERT``), and
MicroPython's has no such checks at all. So everything is read here, and the C library only ever
sees a file system that is intact by this module.

Not handled: littlefs 1, and blocks of another size than 4 KiB, which MicroPython's ESP32 port
does not use.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from mpota.errors import MpotaError
from mpota.text import shown
from mpota.units import SECTOR_SIZE

BLOCK_SIZE = SECTOR_SIZE
MAGIC = b"littlefs"
MTIME = 1  # user attribute: ns since 1970, 8 bytes (MicroPython, extmod/vfs_lfs.c)
MAX_NAME_SIZE = 255
_MAX_PROBLEMS = 1000  # that are listed: a damaged disk may have no end of them
MAX_DEPTH = 100  # of directories: a limit of this module, for damage that nests without end
DISK_VERSIONS = (0x20000, 0x20001)  # what MicroPython >= 1.22 mounts

_NAME, _STRUCT, _USERATTR, _SPLICE, _CRC, _TAIL = 0x000, 0x200, 0x300, 0x400, 0x500, 0x600
_REGULAR, _DIRECTORY, _SUPERBLOCK = 0x001, 0x002, 0x0FF
_DIRSTRUCT, _INLINESTRUCT, _CTZSTRUCT = 0x200, 0x201, 0x202
_CREATE, _DELETE, _MOVESTATE, _HARDTAIL = 0x401, 0x4FF, 0x7FF, 0x601
_DELETED_SIZE = 0x3FF  # as a tag's size: the attribute is gone
_MAX_ID = 0x3FE
_MAX_FILE_SIZE, _MAX_ATTR_SIZE = 0x7FFFFFFF, 0x3FE
_NO_PAIR = (0xFFFFFFFF, 0xFFFFFFFF)
_PAIR = struct.Struct("<II")
_GSTATE = struct.Struct("<III")
_SUPERBLOCK_DATA = struct.Struct("<6I")
_LEAST_BLOCK_SIZE = 128  # lfs.c: lfs_init
_FIRST_CONTENT = 20  # bytes, behind the revision, the superblock's tag and name, and a tag

ReadBlock = Callable[[int], bytes]


class OtherBlocksError(MpotaError):
    """A littlefs whose blocks have another size, in bytes, than MicroPython's on an ESP32."""

    def __init__(self, block_size: int) -> None:
        super().__init__(
            f"a littlefs with blocks of {block_size:,} bytes, which is not MicroPython's: on an "
            f"ESP32 it has {BLOCK_SIZE:,}"
        )
        self.block_size = block_size


def version_text(version: int) -> str:
    """``2.1`` of a disk version."""
    return f"{version >> 16}.{version & 0xFFFF}"


@dataclass(frozen=True)
class Superblock:
    """What a file system says of itself; sizes in bytes, ``block_count`` in blocks of 4 KiB."""

    version: int
    block_size: int
    block_count: int
    name_max: int
    file_max: int
    attr_max: int

    @classmethod
    def at_start(cls, block: bytes) -> Superblock | None:
        """What a block tells whose log begins with one, as it does after every compaction.

        Nothing is proved: for whether the log is intact see `Volume`. None if it begins otherwise.
        """
        if block[8:16] != MAGIC or len(block) < _FIRST_CONTENT + _SUPERBLOCK_DATA.size:
            return None
        return cls(*_SUPERBLOCK_DATA.unpack_from(block, _FIRST_CONTENT))

    @property
    def size(self) -> int:
        """Bytes of the file system."""
        return self.block_size * self.block_count

    @property
    def version_text(self) -> str:
        return version_text(self.version)

    def to_bytes(self) -> bytes:
        return _SUPERBLOCK_DATA.pack(
            self.version,
            self.block_size,
            self.block_count,
            self.name_max,
            self.file_max,
            self.attr_max,
        )


@dataclass(frozen=True)
class Entry:
    """A file or a directory. ``name`` is as stored; bytes that are no UTF-8 are surrogates.

    A file's content is ``inline``, or the chain of blocks that ends at ``head``. ``mtime_ns`` is
    nanoseconds since 1970, None where it is not stored.
    """

    name: str
    is_dir: bool
    size: int = 0
    attrs: Mapping[int, bytes] = field(default_factory=dict)
    inline: bytes | None = None
    head: int = 0
    entries: tuple[Entry, ...] = ()

    @property
    def mtime_ns(self) -> int | None:
        data = self.attrs.get(MTIME, b"")
        return int.from_bytes(data, "little") if len(data) == 8 else None

    def find(self, name: str) -> Entry | None:
        """The entry of this name in a directory, or None."""
        return next((entry for entry in self.entries if entry.name == name), None)


@dataclass
class _Record:
    """An id in the log: its name, where its content is, its attributes."""

    name: tuple[int, bytes] | None = None
    content: tuple[int, bytes] | None = None
    attrs: dict[int, bytes] = field(default_factory=dict)


@dataclass
class MetadataPair:
    """A pair of blocks with a log of directory entries: the state after its last valid commit."""

    blocks: tuple[int, int]  # the one that counts first
    revision: int = 0
    records: list[_Record] = field(default_factory=list)
    tail: tuple[int, int] = _NO_PAIR
    is_split: bool = False  # the tail continues this directory
    gstate: tuple[int, int, int] = (0, 0, 0)

    @property
    def superblock(self) -> Superblock | None:
        first = self.records[0] if self.records else None
        if first is None or first.name != (_SUPERBLOCK, MAGIC) or first.content is None:
            return None
        kind, data = first.content
        if kind != _INLINESTRUCT or len(data) < _SUPERBLOCK_DATA.size:
            return None
        return Superblock(*_SUPERBLOCK_DATA.unpack_from(data))

    def apply(self, kind: int, number: int, data: bytes | None) -> None:
        """One tag of a valid commit; ``data`` None: deleted. Raises MpotaError if it cannot be."""
        group = kind & 0x700
        if kind == _CREATE and number <= len(self.records) <= _MAX_ID:
            self.records.insert(number, _Record())
        elif kind == _DELETE and number < len(self.records):
            del self.records[number]
        elif kind in (_REGULAR, _DIRECTORY, _SUPERBLOCK) and number <= _MAX_ID and data:
            self._record(number).name = (kind, data)
        elif group == _STRUCT and number <= _MAX_ID and data is not None:
            self._record(number).content = (kind, data)
        elif group == _USERATTR and number <= _MAX_ID:
            attrs = self._record(number).attrs
            attrs.pop(kind & 0xFF, None)
            if data is not None:
                attrs[kind & 0xFF] = data
        elif kind in (_TAIL, _HARDTAIL) and data is not None and len(data) == _PAIR.size:
            self.tail = _PAIR.unpack(data)
            self.is_split = kind == _HARDTAIL
        elif kind == _MOVESTATE and data is not None and len(data) == _GSTATE.size:
            self.gstate = _GSTATE.unpack(data)
        elif group != _CRC:
            raise MpotaError(f"an entry of type {kind:#05x} for id {number} that cannot be")

    def _record(self, number: int) -> _Record:
        """A compacted log has no CREATE: an entry's first tag brings its id with it."""
        while number >= len(self.records):
            self.records.append(_Record())
        return self.records[number]


class Volume:
    """The tree of a littlefs in ``block_count`` blocks that ``read_block`` gives.

    ``problems`` says in words what is damaged; ``root`` holds what could be read all the same.
    ``block_count`` may be more or less than what the superblock says: see `superblock`. Raises
    MpotaError if there is no superblock that can be read.
    """

    def __init__(self, read_block: ReadBlock, block_count: int) -> None:
        self._read_block = read_block
        self.problems: list[str] = []
        self.owners: dict[int, str] = {}  # block -> whose it is
        self._readers: dict[int, int] = {}  # block -> id of the entry whose content was read
        self._limit = block_count  # reading ends there
        _check_block_size(read_block(0))
        first = self._fetch((0, 1))
        superblock = first.superblock
        if superblock is None:
            raise MpotaError("blocks 0 and 1 hold no littlefs superblock")
        _check_superblock(superblock)
        self._limit = min(block_count, superblock.block_count)
        self.superblock_pairs: list[MetadataPair] = []
        self._pairs = list(self._walk_tails(first))
        root = self.superblock_pairs[-1]
        self.superblock = root.superblock or superblock
        self._by_block = {block: pair for pair in self._pairs for block in pair.blocks}
        self._moving = self._pending_move()
        self._taken = {min(root.blocks)}
        self.root = Entry("", True, entries=tuple(self._entries(root, "")))
        if not self.has_orphans and not self.problems:
            self._check_all_taken()

    # --- content ---------------------------------------------------------------------------------

    def find(self, path: str) -> Entry | None:
        """The entry at ``path`` (``/lib/a.py``; ``/`` is the root), or None."""
        entry: Entry | None = self.root
        for name in split_path(path):
            entry = entry.find(name) if entry is not None and entry.is_dir else None
        return entry

    def walk(self, entry: Entry | None = None, path: str = "") -> Iterator[tuple[str, Entry]]:
        """All entries below a directory (None: the root at ``/``), parents first, with paths."""
        for child in (entry or self.root).entries:
            child_path = f"{path}/{child.name}"
            yield child_path, child
            if child.is_dir:
                yield from self.walk(child, child_path)

    def content(self, entry: Entry) -> bytes:
        """All bytes of a file. Raises MpotaError if its chain of blocks is damaged."""
        if entry.inline is not None:
            return entry.inline
        blocks = self._chain(entry)
        # However many files are said to be in them, all are no more than the blocks hold.
        if any(self._readers.setdefault(block, id(entry)) != id(entry) for block in blocks):
            raise MpotaError("it is in blocks that are another file's")
        parts = []
        for index, block in enumerate(blocks):
            start = 4 * _pointer_count(index)
            parts.append(self._read(block)[start:])
        return b"".join(parts)[: entry.size]

    def check_files(self) -> None:
        """Follow every file's blocks, and note in ``problems`` what is wrong with them."""
        for path, entry in self.walk():
            if entry.is_dir or entry.inline is not None:
                continue
            try:
                if not all(self._own(block, shown(path)) for block in self._chain(entry)):
                    continue  # one shared block is enough for a problem
            except MpotaError as error:
                self.problems.append(f"{shown(path)}: {error}")
            if len(self.problems) > _MAX_PROBLEMS:
                self.problems.append("and more: this is no file system that can be saved")
                return

    @property
    def has_orphans(self) -> bool:
        """Whether a power cut left orphans, which littlefs mends before its next write."""
        return bool(self._gstate[0] >> 31)

    @property
    def stale_superblocks(self) -> tuple[MetadataPair, ...]:
        """Outer copies of the superblock that tell another size than the one that counts.

        MicroPython, which mounts with a fixed size, then does not mount.
        """
        size = self.superblock.block_count
        copies = ((pair, pair.superblock) for pair in self.superblock_pairs)
        return tuple(pair for pair, copy in copies if copy and copy.block_count != size)

    @property
    def used_blocks(self) -> int:
        """Blocks that are in use, once `check_files` has been called."""
        return len(self.owners)

    # --- metadata --------------------------------------------------------------------------------

    def _read(self, block: int) -> bytes:
        if block >= self._limit:
            raise MpotaError(f"block {block:#x} is beyond the end, there are {self._limit:#x}")
        return self._read_block(block)

    def _fetch(self, blocks: tuple[int, int]) -> MetadataPair:
        """lfs.c: lfs_dir_fetchmatch: the newer block of a pair that has a valid commit."""
        if blocks[0] == blocks[1]:
            raise MpotaError(f"a directory in twice the same block {blocks[0]:#x}")
        data = [self._read(block) for block in blocks]
        revisions = [int.from_bytes(d[:4], "little") for d in data]
        newer = int(0 < (revisions[1] - revisions[0]) & 0xFFFFFFFF < 0x80000000)
        for index in (newer, 1 - newer):
            pair = MetadataPair((blocks[index], blocks[1 - index]), revisions[index])
            if _read_log(pair, data[index]):
                return pair
        raise MpotaError(f"neither of blocks {blocks[0]:#x} and {blocks[1]:#x} has a valid commit")

    def _walk_tails(self, first: MetadataPair) -> Iterator[MetadataPair]:
        """All metadata pairs, in the order of the list that littlefs threads through them."""
        pair = first
        while True:
            for block in pair.blocks:
                if not self._own(block, "a directory"):
                    return
            if pair.superblock is not None:
                self.superblock_pairs.append(pair)
            yield pair
            if _NO_PAIR[0] in pair.tail:
                return
            try:
                pair = self._fetch(pair.tail)
            except MpotaError as error:
                self.problems.append(f"directories behind block {pair.blocks[0]:#x}: {error}")
                return

    def _own(self, block: int, owner: str) -> bool:
        if block in self.owners:
            self.problems.append(
                f"block {block:#x} is used twice, by {self.owners[block]} and {owner}"
            )
            return False
        self.owners[block] = owner
        return True

    def _pending_move(self) -> tuple[int, int] | None:
        """Block and id of an entry that a power cut left in two places: this one is the old."""
        state = [0, 0, 0]
        for pair in self._pairs:
            state = [a ^ b for a, b in zip(state, pair.gstate, strict=True)]
        self._gstate = state
        if state[0] & 0x3FF:
            self.problems.append(f"the global state {state[0]:#x} has bits that are never stored")
        kind = state[0] >> 20 & 0x7FF
        if not kind & 0x700:
            return None
        number = state[0] >> 10 & 0x3FF
        found = self._by_block.get(state[1])
        is_known = found is not None and set(found.blocks) == set(state[1:])
        if found is None or not is_known or kind != _DELETE or number >= len(found.records):
            self.problems.append("an entry that was being renamed leads nowhere")
            return None
        return found.blocks[0], number

    def _entries(self, pair: MetadataPair, path: str) -> Iterator[Entry]:
        """The entries of the directory that starts at ``pair``."""
        names = set()
        while True:
            for number, record in enumerate(pair.records):
                is_moved = (pair.blocks[0], number) == self._moving
                if is_moved or (record.name or (0, b""))[0] == _SUPERBLOCK:
                    continue
                try:
                    entry = self._entry(record, path)
                    if entry.name in names:
                        raise MpotaError("two entries of this name")
                except MpotaError as error:
                    name = (record.name or (0, b"?"))[1].decode("utf-8", "surrogateescape")
                    self.problems.append(f"{shown(f'{path}/{name}')}: {error}")
                    continue
                names.add(entry.name)
                yield entry
            if not pair.is_split:
                return
            following = self._by_block.get(pair.tail[0]) or self._by_block.get(pair.tail[1])
            if following is None or min(following.blocks) in self._taken:
                self.problems.append(f"{shown(path) or '/'}: the rest of the directory is lost")
                return
            self._taken.add(min(following.blocks))
            pair = following

    def _entry(self, record: _Record, path: str) -> Entry:
        if record.name is None or record.content is None:
            raise MpotaError("an entry without name or content")
        name_kind, raw = record.name
        kind, data = record.content
        limit = self.superblock.name_max or MAX_NAME_SIZE
        if len(raw) > limit or raw in (b".", b"..") or set(raw) & {0, 0x2F}:
            raise MpotaError(f"the name, of {len(raw)} bytes, is none that littlefs allows")
        entry = Entry(raw.decode("utf-8", "surrogateescape"), name_kind == _DIRECTORY)
        entry = replace(entry, attrs=dict(record.attrs))
        if (kind == _DIRSTRUCT) != entry.is_dir:
            raise MpotaError("a directory's entry for a file, or the other way round")
        if kind == _INLINESTRUCT:
            return replace(entry, size=len(data), inline=data)
        if len(data) != _PAIR.size or kind not in (_DIRSTRUCT, _CTZSTRUCT):
            raise MpotaError(f"content of type {kind:#05x} with {len(data)} bytes")
        first, second = _PAIR.unpack(data)
        if kind == _CTZSTRUCT:
            return replace(entry, size=second, head=first)
        pair = self._by_block.get(first) or self._by_block.get(second)
        is_found = pair is not None and {first, second} == set(pair.blocks)
        # Only a power cut while littlefs moved a directory leaves one block of it behind.
        if pair is None or min(pair.blocks) in self._taken or not (is_found or self.has_orphans):
            raise MpotaError(f"directory at blocks {first:#x} and {second:#x} is lost")
        if max(first, second) >= self._limit or path.count("/") >= MAX_DEPTH:
            raise MpotaError(
                f"directory at blocks {first:#x} and {second:#x}: {self._limit:#x} blocks and "
                f"{MAX_DEPTH} levels are the limit"
            )
        self._taken.add(min(pair.blocks))
        return replace(entry, entries=tuple(self._entries(pair, f"{path}/{entry.name}")))

    def _check_all_taken(self) -> None:
        copies = {min(pair.blocks) for pair in self.superblock_pairs}
        for pair in self._pairs:
            if not {min(pair.blocks)} & (self._taken | copies):
                self.problems.append(f"directory at block {pair.blocks[0]:#x} belongs to no other")

    # --- files -----------------------------------------------------------------------------------

    def _chain(self, entry: Entry) -> list[int]:
        """A file's blocks in order. lfs.c: lfs_ctz_find, lfs_ctz_traverse.

        Block i starts with pointers to the blocks i - 1, i - 2, i - 4, ..., as many as i is
        divisible by two, and one. Raises MpotaError if one of them is wrong.
        """
        count = _block_count(entry.size)
        limit = self._limit
        if not 0 < count <= limit:
            raise MpotaError(f"size {entry.size:,} bytes, the file system has {limit:#x} blocks")
        blocks = [0] * count
        block = entry.head
        pointers: dict[int, tuple[int, ...]] = {}
        for index in range(count - 1, -1, -1):
            blocks[index] = block
            data = self._read(block)
            pointers[index] = struct.unpack_from(f"<{_pointer_count(index)}I", data)
            block = pointers[index][0] if index else 0
        if len({*blocks}) < count:
            raise MpotaError("the chain of blocks comes back to where it was")
        for index, found in pointers.items():
            if found != tuple(blocks[index - (1 << n)] for n in range(len(found))):
                raise MpotaError(f"the chain of blocks is broken at block {blocks[index]:#x}")
        return blocks


def split_path(path: str) -> list[str]:
    """The names in a path, from the root on; ``//`` and ``.`` count for nothing."""
    return [name for name in path.split("/") if name not in ("", ".")]


def is_littlefs(start: bytes) -> bool:
    """Whether the first two blocks look like a littlefs 2, intact or not."""
    return MAGIC in (start[8:16], start[BLOCK_SIZE + 8 :][:8])


def superblock_commit(pair: MetadataPair, superblock: Superblock) -> bytes:
    """A block that takes over from ``pair``, an outer copy of the superblock, with new values.

    It goes into the pair's second block: until it is complete, the first one counts. Raises
    MpotaError if the pair holds more than a superblock.
    """
    if len(pair.records) != 1:
        raise MpotaError(f"the superblock at block {pair.blocks[0]:#x} holds files as well")
    tags = [
        (_SUPERBLOCK, 0, MAGIC),
        (_INLINESTRUCT, 0, superblock.to_bytes()),
        *((_USERATTR + kind, 0, data) for kind, data in pair.records[0].attrs.items()),
        (_HARDTAIL if pair.is_split else _TAIL, 0x3FF, _PAIR.pack(*pair.tail)),
        *([(_MOVESTATE, 0x3FF, _GSTATE.pack(*pair.gstate))] if any(pair.gstate) else []),
    ]
    data = ((pair.revision + 1) & 0xFFFFFFFF).to_bytes(4, "little")
    previous = 0xFFFFFFFF
    for kind, number, content in tags:
        tag = kind << 20 | number << 10 | len(content)
        data += (tag ^ previous).to_bytes(4, "big") + content
        previous = tag
    tag = _CRC << 20 | 0x3FF << 10 | 4
    data += (tag ^ previous).to_bytes(4, "big")
    data += _crc(data).to_bytes(4, "little")
    return data.ljust(BLOCK_SIZE, b"\xff")


def _read_log(pair: MetadataPair, data: bytes) -> bool:
    """Bring ``pair`` to the state of its last valid commit; False if there is none."""
    offset, tag, start = 4, 0xFFFFFFFF, 0
    pending: list[tuple[int, int, bytes | None]] = []
    is_valid = False
    while offset + 4 <= len(data):
        tag ^= int.from_bytes(data[offset : offset + 4], "big")
        size = tag & 0x3FF
        end = offset + 4 + (0 if size == _DELETED_SIZE else size)
        if tag & 0x80000000 or end > len(data):
            break
        kind = tag >> 20 & 0x7FF
        if kind & 0x780 == _CRC:
            stored = data[offset + 4 : offset + 8]
            if len(stored) < 4 or _crc(data[start : offset + 4]) != int.from_bytes(
                stored, "little"
            ):
                break
            for change in pending:
                pair.apply(*change)
            pending = []
            is_valid = True
            tag ^= (kind & 1) << 31
            start = end
        else:
            content = None if size == _DELETED_SIZE else data[offset + 4 : end]
            pending.append((kind, tag >> 10 & 0x3FF, content))
        offset = end
    return is_valid


def _check_block_size(block: bytes) -> None:
    """Of blocks of another size, block 1 stands where ours has none: what 0 starts with tells."""
    superblock = Superblock.at_start(block)
    size = superblock.block_size if superblock else BLOCK_SIZE
    is_one = size >= _LEAST_BLOCK_SIZE and not size & (size - 1)
    if is_one and size != BLOCK_SIZE and _read_log(MetadataPair((0, 1)), block[:size]):
        raise OtherBlocksError(size)


def _check_superblock(superblock: Superblock) -> None:
    """Raises MpotaError if this is not a littlefs as MicroPython's ESP32 port has it."""
    if superblock.version not in DISK_VERSIONS:
        raise MpotaError(
            f"littlefs disk version {superblock.version_text}, 2.0 and 2.1 are known here"
        )
    if superblock.block_size != BLOCK_SIZE:
        raise OtherBlocksError(superblock.block_size)
    if superblock.block_count < 2:
        raise MpotaError(f"littlefs of {superblock.block_count} blocks, 2 are the least")
    for name, found, limit in (
        ("names", superblock.name_max, MAX_NAME_SIZE),
        ("files", superblock.file_max, _MAX_FILE_SIZE),
        ("attributes", superblock.attr_max, _MAX_ATTR_SIZE),
    ):
        if found > limit:
            raise MpotaError(f"littlefs with {name} of {found:,} bytes, MicroPython has {limit:,}")


def _block_count(size: int) -> int:
    """Blocks of a file that is not inline. lfs.c: lfs_ctz_index."""
    if size <= 0:
        return 0
    usable, last = BLOCK_SIZE - 8, size - 1
    index = last // usable
    if index:
        index = (last - 4 * ((index - 1).bit_count() + 2)) // usable
    return index + 1


def _pointer_count(index: int) -> int:
    return (index & -index).bit_length()


def _crc(data: bytes) -> int:
    """littlefs' CRC-32: zlib's without the inversion at the end, seed 0xFFFFFFFF."""
    return zlib.crc32(data) ^ 0xFFFFFFFF
