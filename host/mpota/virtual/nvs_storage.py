"""The pages of an NVS partition and the items in them: ESP-IDF's ``nvs_pagemanager.cpp`` and
``nvs_storage.cpp``.

A new value is appended, then the old one erased. When a page is full the next one is taken; when
that would be the last free one, the page with the most entries not in use is copied into it and
erased.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mpota.formats.nvs import (
    CHUNK_STARTS,
    ENTRY_COUNT,
    ENTRY_SIZE,
    MAX_CHUNKS,
    MAX_DATA_SIZE,
    NAMESPACES,
    NO_CHUNK,
    Item,
    ItemType,
    PageState,
)
from mpota.storage import Flash
from mpota.units import SECTOR_SIZE
from mpota.virtual.nvs_page import (
    INVALID_STATE,
    NO_FREE_PAGES,
    NOT_ENOUGH_SPACE,
    NOT_FOUND,
    VALUE_TOO_LONG,
    NvsError,
    Page,
)

_MIN_FIRST_CHUNK = MAX_DATA_SIZE // 10  # a blob does not begin in less, if it is larger
_MAX_NAMESPACE = 254


class _Place(NamedTuple):
    """Where an item is: the page, and the entry that is its head."""

    page: Page
    entry: int
    item: Item


class Storage:
    """The partition of ``size`` bytes at ``offset``.

    Loading it finishes or undoes what a power cut interrupted. Values are bytes as they are
    stored: numbers little-endian, strings with the NUL at their end. All methods raise NvsError.
    With ``loses_blobs`` it has a defect of ESP-IDF's: `Page`.
    """

    def __init__(self, flash: Flash, offset: int, size: int, *, loses_blobs: bool = True) -> None:
        """Raises NvsError(NO_FREE_PAGES) and NvsError(NEW_VERSION_FOUND): it has to be erased."""
        offsets = range(offset, offset + size, SECTOR_SIZE)
        pages = [Page(flash, at, loses_blobs=loses_blobs) for at in offsets]
        is_free = (PageState.UNINITIALIZED, PageState.CORRUPT)
        self._free = [page for page in pages if page.state in is_free]
        self._pages = [page for page in pages if page.state not in is_free]
        self._pages.sort(key=lambda page: page.seq_number)
        if self._pages:
            self._next_seq_number = self._pages[-1].seq_number + 1
            self._erase_older_value()
            self._finish_freeing()
            if not self._free:
                raise NvsError(NO_FREE_PAGES)
        else:
            self._next_seq_number = 0
            self._activate_page()
        self._namespaces: dict[bytes, int] = {}
        for _, _, item in self._items():
            if (item.namespace, item.type) == (NAMESPACES, ItemType.U8):
                self._namespaces.setdefault(item.key, item.value[0])
        self._erase_broken_blobs()

    # --- values --------------------------------------------------------------------------------

    def namespace(self, name: bytes) -> int | None:
        """The number of a namespace, None if there is none of this name."""
        return self._namespaces.get(name)

    def create_namespace(self, name: bytes) -> int:
        """The number of a namespace, which may be a new one: createOrOpenNamespace."""
        number = self._namespaces.get(name)
        if number is None:
            used = set(self._namespaces.values())
            number = next((n for n in range(1, _MAX_NAMESPACE + 1) if n not in used), None)
            if number is None:
                raise NvsError(NOT_ENOUGH_SPACE)
            self.write(NAMESPACES, ItemType.U8, name, bytes([number]))
            self._namespaces[name] = number
        return number

    def read(self, namespace: int, kind: ItemType, key: bytes) -> bytes:
        """The value; of a BLOB whether it is stored in chunks or in one piece."""
        if kind is ItemType.BLOB and self._find(namespace, ItemType.BLOB_INDEX, key):
            return self._read_blob(namespace, key)
        page, index, item = self._need(self._find(namespace, kind, key))
        return _read_data(page, index) if kind.has_data else item.value[: kind & 0xF]

    def has(self, namespace: int, key: bytes) -> bool:
        """Whether the key has a value, of whatever type."""
        return self._find(namespace, None, key) is not None

    def write(self, namespace: int, kind: ItemType, key: bytes, value: bytes) -> None:
        """Store the value of a new or known key, whatever its type was. BLOBs go in chunks."""
        old = self._find_old(namespace, kind, key)
        stored = ItemType.BLOB_INDEX if kind is ItemType.BLOB else kind
        is_same_type = old is not None and old.item.type is stored
        if is_same_type and self._holds(namespace, kind, key, value):
            return
        if kind is ItemType.BLOB:
            start = CHUNK_STARTS[0]
            if old is not None and is_same_type and old.item.chunk_start == start:
                start = CHUNK_STARTS[1]
            self._write_blob(namespace, key, value, start)
        else:
            self._write_item(namespace, kind, key, value)
        if old is not None and old.item.type is ItemType.BLOB_INDEX:
            self._erase_blob(old[2])
        elif old is not None:
            # Found anew: it may have been moved to another page.
            page, index, _ = self._need(self._find(namespace, old.item.type, key))
            page.erase_item(index)

    def erase(self, namespace: int, key: bytes) -> None:
        """Erase a key, whatever its type. Raises NvsError(NOT_FOUND)."""
        page, index, item = self._need(self._find(namespace, None, key))
        if item.type is ItemType.BLOB_INDEX:
            self._erase_blob(item)
        else:
            page.erase_item(index)

    # --- finding -------------------------------------------------------------------------------

    def _items(self) -> Iterator[_Place]:
        for page in self._pages:
            for index, item in page.items():
                yield _Place(page, index, item)

    def _find(
        self, namespace: int, kind: ItemType | None, key: bytes, chunk_index: int = NO_CHUNK
    ) -> _Place | None:
        """On each page the first item of the key counts, whether it is of this type or not."""
        for page in self._pages:
            found = page.find(namespace, key, chunk_index)
            if found and kind in (None, found[1].type):
                return _Place(page, *found)
        return None

    def _find_old(self, namespace: int, kind: ItemType, key: bytes) -> _Place | None:
        """What a new value replaces: of the same type if there is one."""
        stored = ItemType.BLOB_INDEX if kind is ItemType.BLOB else kind
        return self._find(namespace, stored, key) or self._find(namespace, None, key)

    @staticmethod
    def _need(found: _Place | None) -> _Place:
        if found is None:
            raise NvsError(NOT_FOUND)
        return found

    def _holds(self, namespace: int, kind: ItemType, key: bytes, value: bytes) -> bool:
        try:
            return self.read(namespace, kind, key) == value
        except NvsError:  # it is damaged
            return False

    # --- pages ---------------------------------------------------------------------------------

    def _activate_page(self) -> Page:
        if not self._free:
            raise NvsError(NOT_ENOUGH_SPACE)
        page = self._free.pop(0)
        page.activate(self._next_seq_number)
        self._next_seq_number += 1
        self._pages.append(page)
        return page

    def _next_page(self) -> None:
        """End the current page and take another, with what is left of an old one if need be."""
        if self._pages[-1].state is not PageState.FULL:
            self._pages[-1].set_state(PageState.FULL)
        if not self._free:
            raise NvsError(INVALID_STATE)
        if len(self._free) > 1:
            self._activate_page()
            return
        emptiest = min(self._pages, key=lambda page: page.used_count)
        if emptiest.used_count == ENTRY_COUNT:
            raise NvsError(NOT_ENOUGH_SPACE)
        target = self._activate_page()
        emptiest.set_state(PageState.FREEING)
        self._empty(emptiest, target)

    def _empty(self, page: Page, target: Page) -> None:
        """Copy the items of ``page``, which is FREEING, to a new one, and erase it."""
        page.copy_items(target)
        page.erase()
        self._pages.remove(page)
        self._free.append(page)

    # --- writing -------------------------------------------------------------------------------

    def _write_item(self, namespace: int, kind: ItemType, key: bytes, value: bytes) -> None:
        if len(value) > MAX_DATA_SIZE:
            raise NvsError(VALUE_TOO_LONG)
        if kind.has_data:
            item, data = Item.with_data(namespace, kind, key, value), value
        else:
            item, data = Item.with_value(namespace, kind, key, value), b""
        if not self._pages[-1].write(item, data):
            self._next_page()
            if not self._pages[-1].write(item, data):
                raise NvsError(NOT_ENOUGH_SPACE)

    def _write_blob(self, namespace: int, key: bytes, value: bytes, start: int) -> None:
        """Write the chunks, then the index, without which they do not count."""
        max_chunks = min(len(self._pages) + len(self._free) - 1, MAX_CHUNKS)
        if len(value) > max_chunks * MAX_DATA_SIZE:
            raise NvsError(VALUE_TOO_LONG)
        try:
            count = self._write_chunks(namespace, key, value, start)
            index = Item.blob_index(namespace, key, len(value), count, start)
            if not self._pages[-1].write(index):
                raise NvsError(NOT_ENOUGH_SPACE)
        except NvsError:
            self._erase_chunks((namespace, key, start))
            raise

    def _write_chunks(self, namespace: int, key: bytes, value: bytes, start: int) -> int:
        """Fill the pages to their end. The number of chunks that it took."""
        while (tailroom := self._pages[-1].tailroom) < min(_MIN_FIRST_CHUNK, max(1, len(value))):
            self._next_page()
            if self._pages[-1].tailroom == tailroom:
                raise NvsError(NOT_ENOUGH_SPACE)
        count, rest = 0, value
        while rest or not count:
            page = self._pages[-1]
            if page.tailroom == 0:
                raise NvsError(NOT_ENOUGH_SPACE)
            chunk, rest = rest[: page.tailroom], rest[page.tailroom :]
            left = page.tailroom - len(chunk)
            page.write(
                Item.with_data(namespace, ItemType.BLOB_DATA, key, chunk, start + count), chunk
            )
            count += 1
            if rest or left < ENTRY_SIZE:  # no room for the index
                self._next_page()
        return count

    # --- blobs ---------------------------------------------------------------------------------

    def _read_blob(self, namespace: int, key: bytes) -> bytes:
        _, _, blob = self._need(self._find(namespace, ItemType.BLOB_INDEX, key))
        data = b""
        for chunk_index in range(blob.chunk_start, blob.chunk_start + blob.chunk_count):
            found = self._find(namespace, ItemType.BLOB_DATA, key, chunk_index)
            page, index, _ = self._need(found)
            data += _read_data(page, index)
        return data

    def _erase_blob(self, blob: Item) -> None:
        """Erase the BLOB_INDEX ``blob`` of a key, then its chunks."""
        for page, index, item in self._items():
            if item == blob:
                page.erase_item(index)
        self._erase_chunks((blob.namespace, blob.key, blob.chunk_start))

    def _erase_chunks(self, family: tuple[int, bytes, int]) -> None:
        for page, index, item in self._items():
            if item.type is ItemType.BLOB_DATA and _family(item) == family:
                page.erase_item(index)

    # --- after a power cut ---------------------------------------------------------------------

    def _erase_older_value(self) -> None:
        """The last item may be a new value whose older one, on another page, was not erased."""
        last = self._pages[-1]
        items = list(last.items())
        if not items:
            return
        item = items[-1][1]
        kinds = [item.type]
        if item.type is ItemType.BLOB_INDEX:
            kinds.append(ItemType.BLOB)  # it was stored in one piece
        for kind in kinds:
            for page in self._pages[:-1]:
                found = page.find(*item.identity)
                if page.state is not PageState.FREEING and found and found[1].type is kind:
                    page.erase_item(found[0])
                    return

    def _finish_freeing(self) -> None:
        """If a page was being emptied, do it again from the start."""
        freeing = next((page for page in self._pages if page.state is PageState.FREEING), None)
        if freeing is None:
            return
        target = self._pages[-1]
        if target.state is PageState.ACTIVE:
            target.erase()
            self._pages.remove(target)
            self._free.append(target)
        self._empty(freeing, self._activate_page())

    def _erase_broken_blobs(self) -> None:
        """Erase blobs that are not whole, then chunks that belong to no blob: they were not all
        written, or not all erased.
        """
        items = list(self._items())
        chunks = [found for found in items if found.item.type is ItemType.BLOB_DATA]
        needed = set()
        for page, index, blob in items:
            if blob.type is not ItemType.BLOB_INDEX:
                continue
            family = (blob.namespace, blob.key, blob.chunk_start)
            own = [chunk for _, _, chunk in chunks if _family(chunk) == family]
            size = sum(chunk.data_size for chunk in own)
            if (len(own), size) == (blob.chunk_count, blob.blob_size):
                needed |= {chunk.identity for chunk in own}
            else:
                page.erase_item(index)
        for page, index, chunk in chunks:
            if chunk.identity not in needed:
                page.erase_item(index)


def _family(chunk: Item) -> tuple[int, bytes, int]:
    """What the chunks of one value of a blob have in common: namespace, key, chunk_start."""
    return chunk.namespace, chunk.key, chunk.chunk_index & CHUNK_STARTS[1]


def _read_data(page: Page, index: int) -> bytes:
    data = page.data(index)
    if data is None:  # the CRC is wrong
        raise NvsError(NOT_FOUND)
    return data
