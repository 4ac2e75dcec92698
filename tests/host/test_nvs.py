"""NVS: ESP-IDF's format against Espressif's generator, and the store through power cuts."""

from __future__ import annotations

import csv
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpota.formats.nvs import (
    ENTRIES_OFFSET,
    ENTRY_SIZE,
    EntryState,
    Item,
    ItemType,
    PageHeader,
    PageState,
    parse_states,
    states_word,
)
from mpota.formats.partition_table import Partition
from mpota.units import SECTOR_SIZE
from mpota.virtual.cuts import CutPoint, Recording, record_changes
from mpota.virtual.flash import CutMode, VirtualFlash
from mpota.virtual.nvs import Nvs
from mpota.virtual.nvs_page import NvsError
from mpota.virtual.nvs_storage import Storage

from tests.support import amount

OFFSET = 0x9000
I32, BLOB = ord("i"), ord("b")
NOT_FOUND, NOT_ENOUGH_SPACE, VALUE_TOO_LONG = 0x1102, 0x1105, 0x110E

# What other parts of an app keep: (namespace, key, type, text in the CSV, stored bytes).
FOREIGN = [
    ("phy", "cal_mac", "hex2bin", "a4cf1208", bytes.fromhex("a4cf1208")),
    ("phy", "cal_version", "u32", "5200", struct.pack("<I", 5200)),
    ("phy", "cal_data", "hex2bin", "5a" * 1904, b"\x5a" * 1904),
    ("nvs.net80211", "opmode", "u8", "1", b"\x01"),
    ("nvs.net80211", "country", "string", "CH", b"CH\0"),
    ("numbers", "i8", "i8", "-128", b"\x80"),
    ("numbers", "u16", "u16", "65535", b"\xff\xff"),
    ("numbers", "i16", "i16", "-2", b"\xfe\xff"),
    ("numbers", "i32", "i32", "-7", struct.pack("<i", -7)),
    ("numbers", "u64", "u64", str(2**64 - 2), struct.pack("<Q", 2**64 - 2)),
    ("numbers", "fifteen-chars-k", "i64", str(-(2**63)), struct.pack("<q", -(2**63))),
    ("texts", "exact", "string", "x" * 31, b"x" * 31 + b"\0"),
    ("texts", "long", "string", "y" * 300, b"y" * 300 + b"\0"),
]
TYPES = {"hex2bin": ItemType.BLOB, "string": ItemType.STRING} | {
    f"{sign}{bits}": ItemType[f"{sign.upper()}{bits}"] for sign in "ui" for bits in (8, 16, 32, 64)
}


@pytest.fixture
def flash() -> Iterator[VirtualFlash]:
    with VirtualFlash.create(0x20000) as flash:
        yield flash


def partition(pages: int = 3, flags: int = 0) -> Partition:
    return Partition("nvs", 1, 2, OFFSET, pages * SECTOR_SIZE, flags)


def generated(directory: Path, rows: list[tuple[str, str, str, str, bytes]], size: int) -> bytes:
    """What Espressif's generator makes of ``rows``."""
    with open(directory / "nvs.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "type", "encoding", "value"])
        namespace = None
        for row in rows:
            if row[0] != namespace:
                namespace = row[0]
                writer.writerow([namespace, "namespace", "", ""])
            writer.writerow([row[1], "data", row[2], row[3]])
    command = [sys.executable, "-m", "esp_idf_nvs_partition_gen", "generate"]
    arguments = [str(directory / "nvs.csv"), str(directory / "nvs.bin"), hex(size)]
    subprocess.run(command + arguments, check=True, capture_output=True)
    return (directory / "nvs.bin").read_bytes()


def read_all(
    storage: Storage, rows: list[tuple[str, str, str, str, bytes]] = FOREIGN
) -> list[bytes]:
    values = []
    for namespace, key, encoding, _, _ in rows:
        number = storage.namespace(namespace.encode())
        assert number is not None
        values.append(storage.read(number, TYPES[encoding], key.encode()))
    return values


def write_all(storage: Storage, rows: list[tuple[str, str, str, str, bytes]] = FOREIGN) -> None:
    for namespace, key, encoding, _, value in rows:
        number = storage.create_namespace(namespace.encode())
        storage.write(number, TYPES[encoding], key.encode(), value)


# So much that the page which has room has some of these values as well, and takes them along.
CROWDED = [("app", "fixed", "hex2bin", "f1" * 3000, b"\xf1" * 3000)]
CROWDED += [row for row in FOREIGN if row[1] != "cal_data"]
CROWDED_VALUES = [row[4] for row in CROWDED]


# --- against the generator ---------------------------------------------------------------------


def test_what_the_generator_writes_is_read_value_for_value(flash, tmp_path):
    big = ("files", "big", "hex2bin", "c3" * 9000, b"\xc3" * 9000)  # in chunks, on three pages
    rows = [*FOREIGN, big]
    flash.write(OFFSET, generated(tmp_path, rows, 0x6000))
    flash.restart_count()
    assert read_all(Storage(flash, OFFSET, 0x6000), rows) == [row[4] for row in rows]
    assert flash.operations == [], "nothing is repaired"


def test_a_page_is_written_as_the_generator_writes_it(flash, tmp_path):
    write_all(Storage(flash, OFFSET, 0x3000))
    assert flash.read(OFFSET, 0x3000) == generated(tmp_path, FOREIGN, 0x3000)


def test_foreign_values_outlive_the_updates_of_others(flash, tmp_path):
    flash.write(OFFSET, generated(tmp_path, CROWDED, 0x3000))
    nvs = Nvs(flash, partition())
    places = set()
    for number in range(200):
        assert nvs.set(b"ota", b"download", BLOB, bytes([number]) * 176) == 0
        assert nvs.commit() == 0
        places.add(flash.read(OFFSET, 0x3000).find(b"y" * 300))
    assert len(places) > 1, "they are moved from page to page"
    assert read_all(Storage(flash, OFFSET, 0x3000), CROWDED) == CROWDED_VALUES
    assert Nvs(flash, partition()).get(b"ota", b"download", BLOB) == (0, b"\xc7" * 176)


# --- the format --------------------------------------------------------------------------------


def test_a_page_header_and_an_item_come_back_as_they_were():
    header = PageHeader(PageState.ACTIVE, 7)
    assert PageHeader.from_bytes(header.to_bytes()) == header
    item = Item.with_data(3, ItemType.BLOB_DATA, b"k", b"x" * 33, 0x80)
    assert (item.span, item.data_size) == (3, 33)
    assert Item.from_bytes(item.to_bytes(), 123) == item
    assert Item.from_bytes(item.to_bytes(), 124) is None, "it would go beyond the page"


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 8, 24])
def test_an_item_with_a_wrong_bit_is_none(offset):
    data = bytearray(Item.with_value(1, ItemType.I32, b"key", bytes(4)).to_bytes())
    data[offset] ^= 1
    assert Item.from_bytes(bytes(data), 0) is None


@pytest.mark.parametrize(
    "item",
    [
        Item(1, ItemType.I32, 2, 0xFF, b"k", bytes(8)),
        Item(1, ItemType.BLOB_INDEX, 1, 0, b"k", bytes(8)),
        Item(1, ItemType.BLOB_INDEX, 1, 0xFF, b"k", b"\xff" * 8),
        Item(1, ItemType.BLOB_DATA, 1, 0xFF, b"k", bytes(8)),
        Item(1, ItemType.STRING, 1, 0xFF, b"k", struct.pack("<HHI", 5, 0xFFFF, 0)),
    ],
    ids=["span of a number", "chunk of an index", "size of a blob", "chunk of none", "span"],
)
def test_an_item_that_contradicts_itself_is_none(item):
    assert Item.from_bytes(item.to_bytes(), 0) is None


def test_entry_states_stand_in_two_bits_each_from_the_lowest():
    states = [EntryState.WRITTEN, EntryState.ERASED, EntryState.ILLEGAL]
    states += [EntryState.EMPTY] * 123
    words = b"".join(states_word(states, number) for number in range(8))
    assert words == bytes.fromhex("d2ffffff") + b"\xff" * 28
    assert parse_states(words) == states


# --- the store ---------------------------------------------------------------------------------


def test_nothing_is_stored_before_the_commit(flash):
    nvs = Nvs(flash, partition())
    nvs.set(b"app", b"x", I32, b"1234")
    assert nvs.get(b"app", b"x", I32) == (0, b"1234")
    assert nvs.erase(b"app", b"x") == 0
    assert nvs.get(b"app", b"x", I32) == (NOT_FOUND, b"")
    nvs.set(b"app", b"y", BLOB, b"")
    assert flash.operations == []
    assert nvs.commit() == 0
    again = Nvs(flash, partition())
    assert again.get(b"app", b"x", I32) == (NOT_FOUND, b"")
    assert again.get(b"app", b"y", BLOB) == (0, b"")


def test_what_is_stored_already_is_not_written_again(flash):
    nvs = Nvs(flash, partition())
    for _ in range(2):
        nvs.set(b"app", b"x", I32, b"1234")
        nvs.set(b"app", b"y", BLOB, b"5678" * 1000)
        assert nvs.commit() == 0
        count = len(flash.operations)
        flash.restart_count()
    assert count == 0


def test_a_key_has_one_value_whatever_its_type(flash):
    nvs = Nvs(flash, partition())
    nvs.set(b"app", b"x", I32, b"1234")
    nvs.commit()
    nvs.set(b"app", b"x", BLOB, b"blob")
    nvs.commit()
    assert nvs.get(b"app", b"x", I32) == (NOT_FOUND, b"")
    nvs.set(b"app", b"x", I32, b"4321")
    nvs.commit()
    nvs = Nvs(flash, partition())
    assert nvs.get(b"app", b"x", BLOB) == (NOT_FOUND, b"")
    assert nvs.get(b"app", b"x", I32) == (0, b"4321")


def test_a_blob_in_one_piece_is_read_and_replaced(flash):
    storage = Storage(flash, OFFSET, 0x3000)
    number = storage.create_namespace(b"old")
    storage._write_item(number, ItemType.BLOB, b"k", b"as ESP-IDF 3 wrote it")
    nvs = Nvs(flash, partition())
    assert nvs.get(b"old", b"k", BLOB) == (0, b"as ESP-IDF 3 wrote it")
    nvs.set(b"old", b"k", BLOB, b"new")
    nvs.commit()
    nvs = Nvs(flash, partition())
    assert nvs.get(b"old", b"k", BLOB) == (0, b"new")
    assert nvs.erase(b"old", b"k") == 0


def test_a_value_that_does_not_fit_leaves_the_old_one(flash):
    nvs = Nvs(flash, partition(3))
    nvs.set(b"app", b"x", BLOB, b"o" * 3000)
    assert nvs.commit() == 0
    for size, error in ((5000, NOT_ENOUGH_SPACE), (8001, VALUE_TOO_LONG)):
        nvs.set(b"app", b"x", BLOB, b"n" * size)
        nvs.set(b"app", b"y", I32, b"1234")
        assert nvs.commit() == error
        assert nvs.get(b"app", b"x", BLOB) == (0, b"o" * 3000)
        assert nvs.get(b"app", b"y", I32) == (NOT_FOUND, b""), "it came after the error"
    assert Nvs(flash, partition(3)).get(b"app", b"x", BLOB) == (0, b"o" * 3000)


def test_a_full_partition_says_so_and_can_be_emptied(flash):
    nvs = Nvs(flash, partition(3))
    keys = []
    while True:
        keys.append(b"%d" % len(keys))
        nvs.set(b"app", keys[-1], I32, b"1234")
        if error := nvs.commit():
            break
    assert (error, len(keys)) == (NOT_ENOUGH_SPACE, 2 * 126), "251 values and their namespace"
    for key in keys[:-1]:
        assert nvs.erase(b"app", key) == 0
    nvs.set(b"app", b"blob", BLOB, b"b" * 3000)
    assert nvs.commit() == 0
    assert Nvs(flash, partition(3)).get(b"app", b"blob", BLOB) == (0, b"b" * 3000)


@pytest.mark.parametrize("pages", [2, 3])
def test_two_pages_are_enough_for_a_boot(flash, pages):
    for number in range(200):
        nvs = Nvs(flash, partition(pages))
        nvs.set(b"app", b"x", I32, struct.pack("<i", number))
        assert nvs.commit() == 0
        assert nvs.get(b"app", b"x", I32) == (0, struct.pack("<i", number))


def test_one_page_is_erased_at_each_boot(flash):
    nvs = Nvs(flash, partition(1))
    nvs.set(b"app", b"x", I32, b"1234")
    assert nvs.commit() == 0
    assert Nvs(flash, partition(1)).get(b"app", b"x", I32) == (NOT_FOUND, b"")


@pytest.mark.parametrize("version", [0xFD, 0x00])
def test_a_newer_version_is_erased_at_boot(flash, version):
    flash.write(OFFSET, PageHeader(PageState.ACTIVE, 0, version).to_bytes())
    with pytest.raises(NvsError, match="0x1110"):
        Storage(flash, OFFSET, 0x3000)
    nvs = Nvs(flash, partition())
    assert flash.read(OFFSET, 0x3000) == b"\xff" * 0x3000
    nvs.set(b"app", b"x", I32, b"1234")
    assert nvs.commit() == 0


def test_no_free_page_is_erased_at_boot(flash):
    for number in range(3):
        header = PageHeader(PageState.FULL, number).to_bytes()
        flash.write(OFFSET + number * SECTOR_SIZE, header)
    Nvs(flash, partition())
    assert flash.read(OFFSET, 0x3000) == b"\xff" * 0x3000


@pytest.mark.parametrize("flags", [1, 2], ids=["encrypted", "readonly"])
def test_an_encrypted_or_readonly_partition_is_not_used(flash, flags):
    nvs = Nvs(flash, partition(flags=flags))
    assert nvs.set(b"app", b"x", I32, b"1234") != 0
    assert nvs.commit() != 0
    assert flash.operations == []


def test_a_damaged_value_is_not_found_and_can_be_set_anew(flash):
    nvs = Nvs(flash, partition())
    nvs.set(b"app", b"x", BLOB, b"blob")
    nvs.commit()
    flash.write(OFFSET + ENTRIES_OFFSET + 2 * ENTRY_SIZE, b"bl\0b")
    nvs = Nvs(flash, partition())
    assert nvs.get(b"app", b"x", BLOB) == (NOT_FOUND, b"")
    nvs.set(b"app", b"x", BLOB, b"blob")
    assert nvs.commit() == 0
    assert nvs.get(b"app", b"x", BLOB) == (0, b"blob")


# --- any sequence ------------------------------------------------------------------------------

KEYS = [(b"ota", b"download"), (b"ota", b"n"), (b"app", b"n"), (b"app", b"fifteen-chars-k")]
steps = st.one_of(
    st.tuples(
        st.just("blob"),
        st.sampled_from(KEYS),
        st.tuples(st.sampled_from([0, 1, 32, 33, 176, 390, 900]), st.integers(0, 255)),
    ),
    st.tuples(st.just("i32"), st.sampled_from(KEYS), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(st.sampled_from(["erase", "commit", "boot"]), st.sampled_from(KEYS), st.none()),
)


@given(st.lists(steps, max_size=80), st.integers(3, 4))
@settings(max_examples=amount.some(60), deadline=None)
def test_the_store_holds_what_was_committed(sequence, pages):
    stored, current = {}, {}
    with VirtualFlash.create(0x20000) as flash:
        nvs = Nvs(flash, partition(pages))
        for step, key, argument in sequence:
            if step == "boot":
                nvs = Nvs(flash, partition(pages))
                current = dict(stored)
            elif step == "commit":
                assert nvs.commit() == 0
                stored = dict(current)
            elif step == "erase":
                assert nvs.erase(*key) == (0 if key in current else NOT_FOUND)
                current.pop(key, None)
            else:
                kind = BLOB if step == "blob" else I32
                is_blob = step == "blob"
                value = (
                    bytes([argument[1]]) * argument[0]
                    if is_blob
                    else argument.to_bytes(4, "little", signed=True)
                )
                assert nvs.set(*key, kind, value) == 0
                current[key] = kind, value
            for known in KEYS:
                for kind in (I32, BLOB):
                    is_it = known in current and current[known][0] == kind
                    expected = (0, current[known][1]) if is_it else (NOT_FOUND, b"")
                    assert nvs.get(*known, kind) == expected


@given(st.integers(0, 2**32), st.integers(1, 40))
@settings(max_examples=amount.some(60), deadline=None)
def test_any_content_boots_and_can_be_written_to(seed, count):
    """Pages with damage in them: nothing but an error code may come of it."""
    rng = random.Random(seed)
    with VirtualFlash.create(0x20000) as flash:
        write_all(Storage(flash, OFFSET, 0x3000))
        content = bytearray(flash.read(OFFSET, 0x3000))
        for _ in range(count):
            at = rng.choice([rng.randrange(0x3000), rng.randrange(96), rng.randrange(0x600)])
            content[at] = rng.choice([0, 0xFF, content[at] ^ 1 << rng.randrange(8)])
        flash.erase(OFFSET, 0x3000)
        flash.write(OFFSET, bytes(content))
        for number in range(15):
            nvs = Nvs(flash, partition())
            nvs.set(b"ota", b"x", BLOB, bytes([number]) * 500)
            if nvs.commit() == 0:
                # Where bits were cleared before, what is written does not arrive.
                results = (0, bytes([number]) * 500), (NOT_FOUND, b"")
                assert nvs.get(b"ota", b"x", BLOB) in results


# --- power cuts --------------------------------------------------------------------------------


def change(nvs: Nvs, number: int) -> None:
    """Changes of one key each; pages fill up with them and are freed."""
    key = (b"download", b"trust", b"n")[number % 3]
    if number % 7 == 6:
        nvs.erase(b"ota", key)
    elif key == b"n":
        nvs.set(b"ota", key, I32, struct.pack("<i", number))
    else:
        nvs.set(b"ota", key, BLOB, bytes([number % 256]) * (176 if key == b"download" else 420))
    assert nvs.commit() == 0


def repaired(flash: VirtualFlash) -> Nvs:
    """What a boot makes of it, without the defect of ESP-IDF since 5.1."""
    return Nvs(flash, partition(), loses_blobs=False)


def known_values(flash: VirtualFlash) -> tuple[object, ...]:
    nvs = repaired(flash)
    kinds = ((b"download", BLOB), (b"trust", BLOB), (b"n", I32))
    return tuple(nvs.get(b"ota", key, kind) for key, kind in kinds)


def is_freeing(recording: Recording) -> bool:
    return any(op.kind == "erase" for op in recording.operations)


def recorded(flash: VirtualFlash, number: int) -> Recording:
    """Change ``number``, made and recorded."""
    nvs = Nvs(flash, partition())
    return record_changes(f"change-{number}", flash, lambda: change(nvs, number))


def points(recording: Recording, mode: CutMode, number: int, step: int) -> list[CutPoint]:
    """The cuts that are tried: none of most changes, each ``step``-th of those that free a page.

    They have hundreds of operations.
    """
    if is_freeing(recording):
        return recording.all_points([mode])[:: 1 if amount.is_all else step]
    return recording.all_points([mode]) if amount.is_chosen(number) else []


@pytest.mark.parametrize("mode", CutMode)
def test_each_power_cut_leaves_the_old_or_the_new_value(flash, mode):
    write_all(Storage(flash, OFFSET, 0x3000), CROWDED)
    old = known_values(flash)
    cuts = frees = 0
    for number in range(60):
        recording = recorded(flash, number)
        end, new = flash.snapshot(), known_values(flash)
        frees += is_freeing(recording)
        for point in points(recording, mode, number, 5):
            flash.restore(recording.content(point))
            assert known_values(flash) in (old, new), str(point)
            assert read_all(Storage(flash, OFFSET, 0x3000), CROWDED) == CROWDED_VALUES, str(point)
            cuts += 1
        flash.restore(end)
        old = new
    assert frees > 2
    assert cuts > amount.some(500)


def test_esp_idfs_defect_costs_a_blob_and_nothing_else(flash):
    nvs = Nvs(flash, partition())
    nvs.set(b"ota", b"n", I32, b"1234")
    nvs.set(b"ota", b"trust", BLOB, b"old")
    nvs.commit()
    nvs.set(b"ota", b"trust", BLOB, b"new")
    recording = record_changes("blob", flash, nvs.commit)
    found = []
    for point in recording.all_points([CutMode.AFTER]):
        flash.restore(recording.content(point))
        nvs = Nvs(flash, partition())
        assert nvs.get(b"ota", b"n", I32) == (0, b"1234")
        found.append(nvs.get(b"ota", b"trust", BLOB)[1].decode())
    # head and data of the chunk, each written and marked; then the index
    assert found == ["old", "old", "old", "", "old", "new", "new", "new"]


def test_a_power_cut_while_another_one_is_repaired_does_no_harm(flash):
    write_all(Storage(flash, OFFSET, 0x3000), CROWDED)
    repairs = 0
    for number in range(40):
        old = known_values(flash)
        recording = recorded(flash, number)
        end, new = flash.snapshot(), known_values(flash)
        for point in points(recording, CutMode.TORN, number, 9):
            flash.restore(recording.content(point))
            repair = record_changes("repair", flash, lambda: repaired(flash))
            for second in repair.all_points([CutMode.GARBLED])[:: 1 + len(repair.effects) // 5]:
                flash.restore(repair.content(second))
                assert known_values(flash) in (old, new), f"{point}, {second}"
                assert read_all(Storage(flash, OFFSET, 0x3000), CROWDED) == CROWDED_VALUES
                repairs += 1
        flash.restore(end)
    assert repairs > amount.some(100)
