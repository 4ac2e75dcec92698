"""One page of NVS in the flash, and what a power cut left of it: ESP-IDF's ``nvs_page.cpp``."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from mpota.formats.nvs import (
    ENTRIES_OFFSET,
    ENTRY_COUNT,
    ENTRY_SIZE,
    LOADED_STATES,
    NO_CHUNK,
    STATES_OFFSET,
    STATES_PER_WORD,
    VERSION,
    EntryState,
    Item,
    ItemType,
    PageHeader,
    PageState,
    parse_states,
    states_word,
)
from mpota.storage import Flash
from mpota.units import SECTOR_SIZE

NOT_FOUND = 0x1102
NOT_ENOUGH_SPACE = 0x1105
INVALID_STATE = 0x110B
NO_FREE_PAGES = 0x110D
VALUE_TOO_LONG = 0x110E
NEW_VERSION_FOUND = 0x1110

_BLANK = b"\xff" * SECTOR_SIZE
_parse_item = functools.lru_cache(maxsize=1024)(Item.from_bytes)  # every search reads them anew


class NvsError(Exception):
    """ESP-IDF's function would return ``code``, an ESP_ERR_NVS_*."""

    def __init__(self, code: int) -> None:
        super().__init__(f"{code:#x}")
        self.code = code


class Page:
    """The sector at ``offset``. What an interrupted write left there is erased on loading.

    ``states`` of the entries are held as ESP-IDF holds them; entries are read from the flash.
    ``next_free``: the entry that the next item gets, 126 if there is none.

    With ``loses_blobs`` as ESP-IDF since 5.1: `_lose_blob`. Raises NvsError(NEW_VERSION_FOUND).
    """

    def __init__(self, flash: Flash, offset: int, *, loses_blobs: bool = True) -> None:
        self._flash = flash
        self._offset = offset
        self.states = [EntryState.EMPTY] * ENTRY_COUNT
        self.next_free = 0
        self.seq_number = 0
        self.state = self._load_state()
        if self.state in LOADED_STATES:
            self.states = parse_states(flash.read(offset + STATES_OFFSET, STATES_OFFSET))
            self.next_free = ENTRY_COUNT
        if self.state is PageState.ACTIVE:
            self._recover_end()
            self._recover_active()
            if loses_blobs:
                self._lose_blob()
        elif self.state in LOADED_STATES:
            self._recover_full()

    # --- reading -------------------------------------------------------------------------------

    def items(self) -> Iterator[tuple[int, Item]]:
        """The items from first to last, each with the index of its head."""
        index = 0
        while index < self.next_free:
            if self.states[index] is not EntryState.WRITTEN:
                index += 1
                continue
            item = self._item(index)
            if item is None:  # spoilt since the page was loaded
                self.erase_item(index)
                index += 1
            else:
                yield index, item
                index += item.span

    def find(
        self, namespace: int, key: bytes, chunk_index: int = NO_CHUNK
    ) -> tuple[int, Item] | None:
        """The first item with this identity, whatever its type."""
        identity = (namespace, key, chunk_index)
        return next((found for found in self.items() if found[1].identity == identity), None)

    def data(self, index: int) -> bytes | None:
        """What the entries behind the head at ``index`` hold; None if that is damaged."""
        item = self._item(index)
        if item is None:
            return None
        data = self._flash.read(self._entry_offset(index + 1), item.data_size)
        return data if item.is_data(data) else None

    @property
    def used_count(self) -> int:
        """Entries in use."""
        return self.states.count(EntryState.WRITTEN)

    @property
    def tailroom(self) -> int:
        """Bytes that a string or chunk may have to fit behind what is there."""
        if self.state is PageState.FULL:
            return 0
        return max(0, ENTRY_COUNT - self.next_free - 1) * ENTRY_SIZE

    # --- writing -------------------------------------------------------------------------------

    def activate(self, seq_number: int) -> None:
        """Take the page into use; its header is written with the first item."""
        if self.state is PageState.CORRUPT:
            self.erase()
        self.seq_number = seq_number

    def write(self, item: Item, data: bytes = b"") -> bool:
        """Append an item: each part of it is written, then marked. False: it does not fit."""
        self._initialize()
        if self.state is PageState.FULL or self.next_free + item.span > ENTRY_COUNT:
            return False
        self._append(item.to_bytes())
        whole = len(data) // ENTRY_SIZE * ENTRY_SIZE
        if whole:
            self._append(data[:whole])
        if len(data) > whole:
            self._append(data[whole:].ljust(ENTRY_SIZE, b"\xff"))
        return True

    def copy_items(self, target: Page) -> None:
        """Append all items to the new page ``target``."""
        for index, item in self.items():
            target._initialize()
            for number in range(index, index + item.span):
                target._append(self._entry(number))

    def erase_item(self, index: int) -> None:
        """Mark the item whose head is at ``index`` as erased, from its end to its head."""
        item = self._item(index) if self.states[index] is EntryState.WRITTEN else None
        end = index + (item.span if item else 1)
        self._mark(index, end, EntryState.ERASED)
        self.next_free = max(self.next_free, end)

    def set_state(self, state: PageState) -> None:
        self._program(0, state.to_bytes(4, "little"))
        self.state = state

    def erase(self) -> None:
        self._flash.erase(self._offset, SECTOR_SIZE)
        self.state = PageState.UNINITIALIZED
        self.states = [EntryState.EMPTY] * ENTRY_COUNT
        self.next_free = 0

    # --- loading -------------------------------------------------------------------------------

    def _load_state(self) -> PageState:
        data = self._flash.read(self._offset, SECTOR_SIZE)
        if data == _BLANK:
            return PageState.UNINITIALIZED
        header = PageHeader.from_bytes(data[:STATES_OFFSET])
        if header is None or header.state == PageState.UNINITIALIZED:
            return PageState.CORRUPT
        if header.version < VERSION:
            raise NvsError(NEW_VERSION_FOUND)
        self.seq_number = header.seq_number
        return PageState(header.state) if header.state in LOADED_STATES else PageState.CORRUPT

    def _recover_end(self) -> None:
        """Find the first free entry, and mark those as erased that were written but not marked."""
        if EntryState.EMPTY in self.states:
            self.next_free = self.states.index(EntryState.EMPTY)
        while self.next_free < ENTRY_COUNT and self._entry(self.next_free)[:4] != b"\xff" * 4:
            self._mark(self.next_free, self.next_free + 1, EntryState.ERASED)
            self.next_free += 1

    def _recover_active(self) -> None:
        """Erase items that are not whole, and of two with one identity the older one."""
        found: dict[tuple[int, bytes, int], int] = {}
        index, end = 0, self.next_free
        while index < end:
            item = self._item(index) if self.states[index] is EntryState.WRITTEN else None
            span = item.span if item else 1
            if item and self._is_whole(index, item):
                if item.identity in found:
                    self.erase_item(found[item.identity])
                found[item.identity] = index
            elif self.states[index] is not EntryState.ERASED:
                self.erase_item(index)
            index += span

    def _lose_blob(self) -> None:
        """A defect of ESP-IDF 5.1 to 6.0 at least: mLoadEntryTable takes the last item for a
        duplicate of a chunk of the same blob, though one is of the old and one of the new value.

        If the power goes when the new chunk is written and its index is not, both values are lost.
        """
        items = list(self.items())
        if not items or items[-1][1].type is not ItemType.BLOB_DATA:
            return
        last_index, last = items[-1]
        if last_index + last.span != self.next_free:
            return
        for index, item in items[:-1]:
            same_key = (item.namespace, item.key) == (last.namespace, last.key)
            if item.type is ItemType.BLOB_DATA and same_key:
                self.erase_item(index)
                return

    def _recover_full(self) -> None:
        """Erase items that are not whole: a power cut broke their erasure off."""
        index = 0
        while index < ENTRY_COUNT:
            item = self._item(index) if self.states[index] is EntryState.WRITTEN else None
            if self.states[index] is EntryState.WRITTEN and not (
                item and self._is_whole(index, item)
            ):
                self.erase_item(index)
            index += item.span if item else 1

    def _is_whole(self, index: int, item: Item) -> bool:
        return set(self.states[index : index + item.span]) == {EntryState.WRITTEN}

    # --- bytes ---------------------------------------------------------------------------------

    def _initialize(self) -> None:
        if self.state is PageState.UNINITIALIZED:
            self._program(0, PageHeader(PageState.ACTIVE, self.seq_number).to_bytes())
            self.state = PageState.ACTIVE

    def _append(self, entries: bytes) -> None:
        end = self.next_free + len(entries) // ENTRY_SIZE
        self._program(ENTRIES_OFFSET + self.next_free * ENTRY_SIZE, entries)
        self._mark(self.next_free, end, EntryState.WRITTEN)
        self.next_free = end

    def _mark(self, begin: int, end: int, state: EntryState) -> None:
        """alterEntryRangeState: word by word, the last one first."""
        self.states[begin:end] = [state] * (end - begin)
        for number in range((end - 1) // STATES_PER_WORD, begin // STATES_PER_WORD - 1, -1):
            self._program(STATES_OFFSET + number * 4, states_word(self.states, number))

    def _program(self, offset: int, data: bytes) -> None:
        # ESP-IDF does not look what was there: on silicon what is cleared stays so.
        before = self._flash.read(self._offset + offset, len(data))
        result = bytes(old & new for old, new in zip(before, data, strict=True))
        self._flash.write(self._offset + offset, result)

    def _item(self, index: int) -> Item | None:
        return _parse_item(self._entry(index), index)

    def _entry(self, index: int) -> bytes:
        return self._flash.read(self._entry_offset(index), ENTRY_SIZE)

    def _entry_offset(self, index: int) -> int:
        return self._offset + ENTRIES_OFFSET + index * ENTRY_SIZE
