"""NVS, ESP-IDF's store of keys and values: the header of a page and the entries in it.

A page is a flash sector: a header of 32 bytes, two bits of state for each entry, and 126 entries
of 32 bytes. A value is an item: a head, for strings and blobs followed by entries of data.

Source: ESP-IDF ``components/nvs_flash/src`` (``nvs_page.hpp``, ``nvs_types.cpp``) as of v5.5.
Encrypted NVS is not handled.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from mpota.units import align_up

ENTRY_SIZE = 32
ENTRY_COUNT = 126
STATES_OFFSET = 32  # in the page
ENTRIES_OFFSET = 64
STATES_PER_WORD = 16
MAX_DATA_SIZE = (ENTRY_COUNT - 1) * ENTRY_SIZE  # of a string, and of one chunk of a blob
MAX_KEY_SIZE = 15
VERSION = 0xFE  # of a page, counts down; version 0xFF has no blobs in chunks
NAMESPACES = 0  # number of the namespace whose U8 items give names to the other numbers
NO_CHUNK = 0xFF  # chunk_index of what is not BLOB_DATA
CHUNK_STARTS = (0, 0x80)  # a blob's next value takes the other half of the chunk indices
MAX_CHUNKS = 127

_PAGE_HEADER = struct.Struct("<IIB19sI")
_ITEM = struct.Struct("<BBBBI16s8s")
_DATA_INFO = struct.Struct("<HHI")  # size, reserved, CRC-32
_BLOB_INDEX = struct.Struct("<IBBH")  # size, number of chunks, index of the first one, reserved
_ALL_ONES = 0xFFFFFFFF


class PageState(IntEnum):
    UNINITIALIZED = 0xFFFFFFFF
    ACTIVE = 0xFFFFFFFE  # it takes new items
    FULL = 0xFFFFFFFC
    FREEING = 0xFFFFFFF8  # its items are being copied to another page
    CORRUPT = 0xFFFFFFF0


LOADED_STATES = (PageState.ACTIVE, PageState.FULL, PageState.FREEING)  # pages whose items count


class EntryState(IntEnum):
    EMPTY = 3
    WRITTEN = 2
    ERASED = 0
    ILLEGAL = 1


class ItemType(IntEnum):
    U8 = 0x01
    U16 = 0x02
    U32 = 0x04
    U64 = 0x08
    I8 = 0x11
    I16 = 0x12
    I32 = 0x14
    I64 = 0x18
    STRING = 0x21
    BLOB = 0x41  # in one piece, as of version 0xFF
    BLOB_DATA = 0x42  # a chunk
    BLOB_INDEX = 0x48

    @property
    def has_data(self) -> bool:
        """Whether entries of data follow the head."""
        return self in (ItemType.STRING, ItemType.BLOB, ItemType.BLOB_DATA)


_ITEM_TYPES = frozenset(ItemType)
_ENTRY_STATES = tuple(EntryState(number) for number in range(4))


@dataclass(frozen=True)
class PageHeader:
    """``Page::Header``. ``state`` may hold a number that is no PageState."""

    state: int
    seq_number: int
    version: int = VERSION
    reserved: bytes = b"\xff" * 19

    @classmethod
    def from_bytes(cls, data: bytes) -> PageHeader | None:
        """Parse 32 bytes; None if the CRC is wrong."""
        state, seq_number, version, reserved, crc = _PAGE_HEADER.unpack(data)
        return cls(state, seq_number, version, reserved) if crc == _header_crc(data) else None

    def to_bytes(self) -> bytes:
        data = _PAGE_HEADER.pack(self.state, self.seq_number, self.version, self.reserved, 0)
        return data[:-4] + struct.pack("<I", _header_crc(data))


@dataclass(frozen=True)
class Item:
    """The head of an item; ``value`` are its last 8 bytes, what they mean depends on ``type``."""

    namespace: int
    type: ItemType
    span: int  # entries, this one included
    chunk_index: int
    key: bytes
    value: bytes

    @classmethod
    def from_bytes(cls, data: bytes, index: int) -> Item | None:
        """Parse the 32 bytes of entry ``index`` of a page; None if they are no head.

        Item::checkHeaderConsistency.
        """
        namespace, kind, span, chunk_index, crc, key, value = _ITEM.unpack(data)
        if crc != _item_crc(data) or kind not in _ITEM_TYPES:
            return None
        key = key[:MAX_KEY_SIZE].split(b"\0", 1)[0]
        item = cls(namespace, ItemType(kind), span, chunk_index, key, value)
        return item if item._is_consistent(index) else None

    @classmethod
    def with_value(cls, namespace: int, kind: ItemType, key: bytes, value: bytes) -> Item:
        """A number of up to 8 bytes."""
        return cls(namespace, kind, 1, NO_CHUNK, key, value.ljust(8, b"\xff"))

    @classmethod
    def with_data(
        cls, namespace: int, kind: ItemType, key: bytes, data: bytes, chunk_index: int = NO_CHUNK
    ) -> Item:
        """The head of a string, or of a chunk of a blob."""
        info = _DATA_INFO.pack(len(data), 0xFFFF, _crc(data))
        return cls(namespace, kind, span_of(len(data)), chunk_index, key, info)

    @classmethod
    def blob_index(
        cls, namespace: int, key: bytes, size: int, chunk_count: int, chunk_start: int
    ) -> Item:
        value = _BLOB_INDEX.pack(size, chunk_count, chunk_start, 0xFFFF)
        return cls(namespace, ItemType.BLOB_INDEX, 1, NO_CHUNK, key, value)

    def to_bytes(self) -> bytes:
        kind, key = self.type, self.key.ljust(16, b"\0")
        data = _ITEM.pack(self.namespace, kind, self.span, self.chunk_index, 0, key, self.value)
        return data[:4] + struct.pack("<I", _item_crc(data)) + data[8:]

    @property
    def identity(self) -> tuple[int, bytes, int]:
        """What HashList hashes: no two items share it, but for an old and a new value."""
        return self.namespace, self.key, self.chunk_index

    @property
    def data_size(self) -> int:
        size: int = _DATA_INFO.unpack(self.value)[0]
        return size

    def is_data(self, data: bytes) -> bool:
        """Whether this is the head of exactly ``data``."""
        size, _, crc = _DATA_INFO.unpack(self.value)
        return bool(size == len(data) and crc == _crc(data))

    @property
    def blob_size(self) -> int:
        size: int = _BLOB_INDEX.unpack(self.value)[0]
        return size

    @property
    def chunk_count(self) -> int:
        count: int = _BLOB_INDEX.unpack(self.value)[1]
        return count

    @property
    def chunk_start(self) -> int:
        start: int = _BLOB_INDEX.unpack(self.value)[2]
        return start

    def _is_consistent(self, index: int) -> bool:
        if self.type.has_data:
            return (
                (self.type is not ItemType.BLOB_DATA or self.chunk_index != NO_CHUNK)
                and self.span == span_of(self.data_size)
                and index + self.span <= ENTRY_COUNT
            )
        if self.type is ItemType.BLOB_INDEX:
            is_small = self.blob_size <= MAX_CHUNKS * MAX_DATA_SIZE
            return self.span == 1 and self.chunk_index == NO_CHUNK and is_small
        return self.span == 1


def span_of(data_size: int) -> int:
    """Entries that an item with this many bytes of data takes, its head included."""
    return 1 + align_up(data_size, ENTRY_SIZE) // ENTRY_SIZE


def parse_states(words: bytes) -> list[EntryState]:
    """The states of all entries, from the 32 bytes behind the page header."""
    bits = int.from_bytes(words, "little")
    return [_ENTRY_STATES[bits >> 2 * index & 3] for index in range(ENTRY_COUNT)]


def states_word(states: Sequence[EntryState], number: int) -> bytes:
    """The 4 bytes that hold the states of the entries 16 * ``number`` to 16 * ``number`` + 15."""
    group = states[number * STATES_PER_WORD : (number + 1) * STATES_PER_WORD]
    word = _ALL_ONES
    for index, state in enumerate(group):
        word &= ~((3 ^ state) << 2 * index)
    return struct.pack("<I", word)


def _header_crc(header: bytes) -> int:
    return _crc(header[4:28])  # without the state, which changes


def _item_crc(item: bytes) -> int:
    return _crc(item[:4] + item[8:])


def _crc(data: bytes) -> int:
    return zlib.crc32(data, _ALL_ONES)
