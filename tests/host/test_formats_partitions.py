"""Partition tables, binary and CSV: the rules of gen_esp32part.py, and what a bootloader takes."""

from __future__ import annotations

import hashlib
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpota.bootloader.boot import boot
from mpota.errors import MpotaError
from mpota.firmware.firmware import read_table
from mpota.formats.chips import chip_by_name
from mpota.formats.partition_csv import table_from_csv, table_to_csv
from mpota.formats.partition_table import (
    APP,
    BOOTLOADER,
    DATA,
    DEFAULT_TABLE_OFFSET,
    TABLE_SIZE,
    Partition,
    PartitionTable,
)
from mpota.units import MiB
from mpota.virtual.flash import VirtualFlash

from tests.support import amount
from tests.support.firmware_files import NVS, OTA_TABLE, TABLE, small_firmware

NVS_ENTRY = bytes.fromhex("aa50 01 02 00900000 00600000 6e76730000000000 0000000000000000 00000000")


def md5_row(entries: bytes) -> bytes:
    return b"\xeb\xeb" + b"\xff" * 14 + hashlib.md5(entries).digest()


def test_an_entry_is_what_esp_idf_writes() -> None:
    assert NVS.to_bytes() == NVS_ENTRY
    assert Partition.from_bytes(NVS_ENTRY) == NVS
    table = PartitionTable((NVS,)).to_bytes()
    assert table == (NVS_ENTRY + md5_row(NVS_ENTRY)).ljust(0xC00, b"\xff")


def rows(text: str, table_offset: int = DEFAULT_TABLE_OFFSET) -> list[tuple[object, ...]]:
    return [
        (p.label, p.type, p.subtype, p.offset, p.size, p.flags)
        for p in table_from_csv(text, table_offset)
    ]


# Expected values: what gen_esp32part.py (ESP-IDF 6.2) makes of the same lines.
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nvs,data,nvs,0x9000,0x6000", ("nvs", 1, 2, 0x9000, 0x6000, 0)),
        ("nvs, data, nvs, , 24K,", ("nvs", 1, 2, 0x9000, 0x6000, 0)),
        (" nvs\t,DATA , NVS,36K,0x6000 ", ("nvs", 1, 2, 0x9000, 0x6000, 0)),
        ("f,app,factory,,1M", ("f", 0, 0, 0x10000, 0x100000, 0)),
        ("f,0,0x10,,1m", ("f", 0, 0x10, 0x10000, 0x100000, 0)),
        ("f,app,ota_15,,0x1000", ("f", 0, 0x1F, 0x10000, 0x1000, 0)),
        ("f,app,tee_1,,64k", ("f", 0, 0x31, 0x10000, 0x10000, 0)),
        ("f,app,test,64K,64K", ("f", 0, 0x20, 0x10000, 0x10000, 0)),
        ("u,data,,,4096", ("u", 1, 6, 0x9000, 0x1000, 0)),
        ("u,0x40,,,4096", ("u", 0x40, 6, 0x9000, 0x1000, 0)),
        ("u,0x40,0xfe,,4096", ("u", 0x40, 0xFE, 0x9000, 0x1000, 0)),
        ("u,254,255,,0o10000", ("u", 254, 255, 0x9000, 0x1000, 0)),
        ("c,data,coredump,,64K,encrypted", ("c", 1, 3, 0x9000, 0x10000, 1)),
        ("c,data,fat,,64K,encrypted:readonly", ("c", 1, 0x81, 0x9000, 0x10000, 3)),
        ("c,data,littlefs,,64K,readonly,", ("c", 1, 0x83, 0x9000, 0x10000, 2)),
        ("v,data,fat,0x9000,-4M", ("v", 1, 0x81, 0x9000, 0x3F7000, 0)),
        ("v,data,fat,,-0x400000", ("v", 1, 0x81, 0x9000, 0x3F7000, 0)),
        ("a#b,data,fat,,0x1000", ("a#b", 1, 0x81, 0x9000, 0x1000, 0)),
        (
            "r,data,fat,,0x1000,,# fields after the sixth say nothing",
            ("r", 1, 0x81, 0x9000, 0x1000, 0),
        ),
        ("t,partition_table,primary,,", ("t", 3, 0, 0x8000, 0x1000, 0)),
    ],
)
def test_a_csv_line_means_what_it_means_to_esp_idf(line: str, expected: tuple[object, ...]) -> None:
    assert rows(line) == [expected]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_empty_offsets_are_filled_in_with_the_alignment_of_the_type(ending: str) -> None:
    text = ending.join(
        (
            "# Name, Type, SubType, Offset, Size, Flags",
            "nvs, data, nvs, , 0x4000,",
            "",
            "   # an indented comment",
            "otadata, data, ota, , 0x2000  # a comment at the end of a line",
            "phy, data, phy, , 4K",
            "a, app, ota_0, , 0x101000",
            "b, app, ota_1, , 1M",
            "s, data, spiffs, , 64K",
            "x, 0x77, 3, , 0x1234",
            "y, data, 0x99, , 0x1000",
        )
    )
    offsets = [0x9000, 0xD000, 0xF000, 0x10000, 0x120000, 0x220000, 0x230000, 0x232000]
    assert [row[3] for row in rows(text)] == offsets
    moved = [0x11000, 0x15000, 0x17000, 0x20000, 0x130000, 0x230000, 0x240000, 0x242000]
    assert [row[3] for row in rows(text, 0x10000)] == moved


@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf"])
def test_a_csv_file_may_start_with_a_byte_order_mark(prefix: bytes) -> None:
    text = "# Größe\nnvs,data,nvs,,0x6000\n"
    assert read_table(prefix + text.encode(), "t.csv")["nvs"].size == 0x6000
    assert read_table(text.encode("utf-16"), "t.csv")["nvs"].size == 0x6000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no partition"),
        ("# nothing\n", "no partition"),
        ("nvs", "line 1: type '' is not a number"),
        ("\nnvs,data,nvs,0x9000", "line 2: size '' is not a number"),
        ("nvs,dta,nvs,,4K", "type 'dta' is not a number, or one of app, data"),
        ("nvs,data,nvss,,4K", "subtype 'nvss'"),
        ("f,app,,,1M", "needs a subtype"),
        ("nvs,data,nvs,0x8000,4K", "offset 0x8000 is below 0x9000"),
        ("a,data,nvs,,0x6000\nb,data,phy,0xe000,4K", "line 2: offset 0xe000 is below 0xf000"),
        ("nvs,data,nvs,,4G", "size '4G'"),
        ("nvs,data,nvs,,1e6", "size '1e6'"),
        ("nvs,data,nvs,,010", "size '010'"),
        ("nvs,data,nvs,,0x", "size '0x'"),
        ("nvs,data,nvs,,99999M", "size 99999M is outside"),
        ("nvs,data,nvs,-1,4K", "offset -1 is outside"),
        ("nvs,data,nvs,,4K,locked", "flag 'locked' is not one of encrypted, readonly"),
        ("nvs,data,nvs,,4K,,more", "7 fields"),
        ("nvs,data,nvs,,-0x9000", "ends the partition before its offset"),
        ("nvs,256,nvs,,4K", "type 256 is outside"),
        ("nvs,data,256,,4K", "subtype 256 is outside"),
    ],
)
def test_a_csv_that_cannot_be_read_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(MpotaError, match="CSV") as error:
        table_from_csv(text)
    assert words in str(error.value)


SECTOR = 0x1000


def data(label: str, offset: int, size: int = SECTOR, subtype: int = 6) -> Partition:
    return Partition(label, DATA, subtype, offset, size)


# What gen_esp32part.py verify() and esp_partition_table_verify() refuse, with the numbers.
@pytest.mark.parametrize(
    ("partitions", "words"),
    [
        ([Partition("f", APP, 0, 0x11000, 0x10000)], "0x11000 is not a multiple of 0x10000"),
        ([data("d", 0x9100)], "0x9100 is not a multiple of 0x1000"),
        ([Partition("f", APP, 0, 0x10000, 0x10100)], "size 0x10100 is not a multiple of 0x1000"),
        ([data("d", 0x9000), data("d", 0xA000)], "2 partitions have the name 'd'"),
        ([data("a", 0x9000, 0x2000), data("b", 0xA000)], "'b' starts at 0xa000, but 'a' goes to"),
        ([data("b", 0xA000), data("a", 0x9000, 0x2000)], "overlap"),
        ([data("a", 0x8000)], "all below 0x9000"),
        ([data("o", 0x9000, 0x1000, 0)], "otadata has 0x2000"),
        ([data("o", 0x9000, 0x1000, 0x90)], "otadata has 0x2000"),
        ([data("o", 0x9000, 0x2000, 0), data("p", 0xB000, 0x2000, 0)], "more than one otadata"),
        ([data("o", 0x9000, 0x2000, 0x90), data("p", 0xB000, 0x2000, 0x90)], "one TEE otadata"),
        ([data("n", 0x9000, 0x2000, 2)], "nvs that is written needs 0x3000"),
        ([Partition("o", DATA, 0, 0x9000, 0x2000, 2)], "cannot be readonly"),
        ([Partition("c", DATA, 3, 0x9000, 0x2000, 2)], "cannot be readonly"),
        ([data("", 0x9000)], "1 to 16"),
        ([data("seventeen_bytes_x", 0x9000)], "17 bytes"),
        ([data("umlautäöü12345", 0x9000)], "17 bytes"),
        ([data("a\nb", 0x9000)], "printable"),
        ([data("z", 0x9000, 0)], "size 0"),
        ([data("z", 0x3FF000, 0x2000)], "ends at 0x401000, the flash at 0x400000"),
        ([data("z", 0xFFFFF000, 0x2000)], "ends at 0x100001000"),
        ([Partition("b", BOOTLOADER, 1, 0x1000, 0x1000)], "all below 0x9000"),
        ([data(f"p{n}", 0x9000 + n * 0x1000) for n in range(95)], "95 entries, 94 are the limit"),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused(partitions: list[Partition], words: str) -> None:
    with pytest.raises(MpotaError) as error:
        PartitionTable(tuple(partitions)).check(4 * MiB)
    assert words in str(error.value)


def test_what_the_rules_allow_is_allowed() -> None:
    PartitionTable(
        (
            Partition("boot", BOOTLOADER, 0, 0x1000, 0x7000),
            Partition("table", 3, 0, 0x8000, 0x1000),
            Partition("nvs_ro", DATA, 2, 0x9000, 0x1000, 2),
            Partition("fifteen_bytes_x", 0x40, 0xFF, 0xA000, 0x1),
            Partition("app", APP, 0, 0x10000, 0x1000),
        )
    ).check(MiB)


@pytest.mark.parametrize(("count", "has_md5"), [(94, True), (95, False)])
def test_the_largest_table_is_one_that_the_bootloader_takes(count: int, has_md5: bool) -> None:
    chip = chip_by_name("esp32")
    extra = tuple(data(f"p{n}", 0x40000 + n * 0x1000) for n in range(count - 1))
    table = PartitionTable((Partition("factory", APP, 0, 0x10000, 0x30000), *extra), has_md5)
    table.check(4 * MiB)
    assert PartitionTable.from_bytes(table.to_bytes()) == table
    firmware = bytearray(small_firmware())
    firmware[0x7000 : 0x7000 + TABLE_SIZE] = table.to_bytes()
    with VirtualFlash.create(4 * MiB, {chip.bootloader_offset: bytes(firmware)}) as flash:
        result = boot(flash)
    assert (result.console, result.starts) == ((), table["factory"])
    larger = PartitionTable((*table, data("last", 0x3FF000)), has_md5)
    with pytest.raises(MpotaError, match=f"{count + 1} entries, {count} are the limit"):
        larger.to_bytes()


TABLE_BYTES = OTA_TABLE.to_bytes()
ENTRIES = TABLE_BYTES[: 32 * len(OTA_TABLE)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "starts with nothing"),
        (b"\xff" * 0xC00, "starts with ffff"),
        (TABLE_BYTES[:31], "truncated"),
        (TABLE_BYTES[:32], "no end"),
        (TABLE_BYTES[:33], "truncated"),
        (ENTRIES, "no end"),
        (ENTRIES + md5_row(ENTRIES), "no end"),
        (ENTRIES + md5_row(b"other") + b"\xff" * 32, "MD5"),
        (ENTRIES + md5_row(ENTRIES) + ENTRIES, "goes on behind its MD5"),
        (ENTRIES + md5_row(ENTRIES) * 2 + b"\xff" * 32, "goes on behind its MD5"),
        (ENTRIES + b"\xff" * 32 + ENTRIES, "ends at byte 0xc0, but more follows"),
        (ENTRIES + bytes(32) + b"\xff" * 32, "entry 6 has magic 0000"),
    ],
)
def test_bytes_that_are_no_whole_table_are_refused(content: bytes, words: str) -> None:
    with pytest.raises(MpotaError) as error:
        PartitionTable.from_bytes(content)
    assert words in str(error.value)


def test_no_bit_of_a_table_can_flip_unseen() -> None:
    for bit in range(8 * TABLE_SIZE):
        flipped = bytearray(TABLE_BYTES)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MpotaError):
            PartitionTable.from_bytes(flipped)


def test_a_table_without_md5_stays_one() -> None:
    old = PartitionTable(TABLE.partitions, has_md5=False)
    assert b"\xeb\xeb" not in old.to_bytes()
    assert PartitionTable.from_bytes(old.to_bytes()) == old


def test_a_label_ends_at_its_first_nul() -> None:
    entry = bytearray(NVS_ENTRY)
    entry[12:28] = b"nvs\0left-overs\0\0"
    assert Partition.from_bytes(bytes(entry)).label == "nvs"


def test_a_label_that_a_csv_cannot_hold_is_not_written_to_one() -> None:
    for label in ("a,b", "#a", " a", "a "):
        table = PartitionTable((data(label, 0x9000),))
        assert PartitionTable.from_bytes(table.to_bytes()) == table
        with pytest.raises(MpotaError, match="cannot be written in a CSV"):
            table_to_csv(table)


labels = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1, max_size=15)
partitions = st.builds(
    Partition,
    labels.filter(lambda text: len(text.encode()) <= 15 and text.isprintable()),
    st.integers(0, 0xFE),
    st.integers(0, 0xFF),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFFFFFF),
)
tables = st.builds(
    PartitionTable,
    st.lists(partitions, min_size=1, max_size=94).map(tuple),
    st.booleans(),
)


@given(tables)
@settings(max_examples=100, deadline=None)
def test_any_table_survives_a_round_trip_through_bytes(table: PartitionTable) -> None:
    assert PartitionTable.from_bytes(table.to_bytes()) == table


@st.composite
def valid_tables(draw: st.DrawFn) -> PartitionTable:
    """Tables that keep the rules, of all types, subtypes and flags."""
    names = draw(st.lists(labels, min_size=1, max_size=20, unique=True))
    offset = 0x9000
    found = []
    for name in names:
        kind = draw(st.sampled_from([0, 1, 1, 2, 3, 0x40, 0xFE]))
        subtype = draw(st.integers(1, 0xFF))
        alignment = 0x10000 if kind == APP else 0x1000
        offset = -(-offset // alignment) * alignment + alignment * draw(st.integers(0, 2))
        size = 0x1000 * draw(st.integers(3, 40))
        found.append(Partition(name, kind, subtype, offset, size, draw(st.integers(0, 0xFFFFFFFF))))
        offset += size
    return PartitionTable(tuple(found))


@given(valid_tables())
@settings(max_examples=100, deadline=None)
def test_any_valid_table_survives_a_round_trip_through_a_csv(table: PartitionTable) -> None:
    try:
        table.check()
        text = table_to_csv(table)
    except MpotaError:
        return  # a readonly coredump, a name with a comma: the tests above say which
    assert table_from_csv(text) == table
    assert read_table(text.encode(), "table.csv") == table


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_table_or_refused(text: str) -> None:
    try:
        table = table_from_csv(text)
    except MpotaError:
        return
    assert len(table) > 0


def test_mutated_tables_raise_nothing_but_the_projects_errors() -> None:
    rng = random.Random(2)
    accepted = 0
    csv = table_to_csv(OTA_TABLE)
    for number in range(amount.some(10_000)):
        binary = bytearray(TABLE_BYTES if number % 2 else csv.encode())
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(min(len(binary), 300))
            binary[at : at + rng.randrange(3)] = rng.choice(
                (rng.randbytes(rng.randrange(3)), b",", b"0", b"\xaa\x50", struct.pack("<I", at))
            )
        try:
            table = read_table(bytes(binary), "mutated")
        except MpotaError:
            continue
        table.check()
        accepted += 1
    assert accepted < amount.some(5_000)
