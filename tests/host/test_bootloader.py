"""The bootloader's decisions: which app starts, what is said, what is left in otadata."""

from __future__ import annotations

import dataclasses
import itertools
import random
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpota.bootloader.boot import BootResult, Cause, boot, bootloader_info
from mpota.formats.chips import CHIPS, Chip, chip_by_name
from mpota.formats.memory import memory_map
from mpota.formats.otadata import OtaState
from mpota.formats.partition_table import Partition
from mpota.virtual.cuts import record_changes
from mpota.virtual.flash import CutMode, VirtualFlash

from tests.support.bootloader_images import (
    FACTORY,
    FLASH_SIZE,
    OTA_0,
    OTA_1,
    OTA_TABLE,
    OTADATA,
    SLOT_SIZE,
    TEST,
    make_app,
    make_bootloader,
    make_flash,
    make_table,
    record,
)

ESP32 = chip_by_name("esp32")
BLANK = b"\xff" * 32
BAD = b"\xff" * 64  # an app that was never written
NEW, PENDING, VALID = OtaState.NEW, OtaState.PENDING_VERIFY, OtaState.VALID
INVALID, ABORTED, UNDEFINED = OtaState.INVALID, OtaState.ABORTED, OtaState.UNDEFINED
NOTHING = "boot: No bootable app partitions in the partition table"
MAGIC_0 = "esp_image: image at 0x10000 has invalid magic byte (nothing flashed here?)"
MAGIC_1 = "esp_image: image at 0x20000 has invalid magic byte (nothing flashed here?)"
SLOT_0 = "boot: OTA app partition slot 0 is not bootable"
SLOT_1 = "boot: OTA app partition slot 1 is not bootable"


def label(result: BootResult) -> str | None:
    return result.starts.label if result.starts else None


def boot_once(flash: VirtualFlash, **options: bool) -> BootResult:
    with flash:
        return boot(flash, **options)


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_every_chip_starts_its_own_app_without_an_error_line(chip: Chip) -> None:
    result = boot_once(make_flash(chip=chip))
    assert (label(result), result.console) == ("ota_0", ())
    assert result.bootloader is not None
    assert result.bootloader.chip is chip


@pytest.mark.parametrize(
    ("records", "starts", "after"),
    [
        ((BLANK, BLANK), "ota_0", (record(1, VALID), BLANK)),
        ((record(1, VALID), record(2, NEW)), "ota_1", (record(1, VALID), record(2, PENDING))),
        ((record(1, VALID), record(2, PENDING)), "ota_0", (record(1, VALID), record(2, ABORTED))),
        ((record(3, PENDING), record(2, VALID)), "ota_1", (record(3, ABORTED), record(2, VALID))),
        ((record(2, UNDEFINED), record(1, VALID)), "ota_1", None),
        ((record(5, 7), BLANK), "ota_0", None),  # a state without a meaning selects all the same
        ((record(0, VALID), BLANK), "ota_1", None),  # (0 - 1) % 2 in 32 bits
        ((record(2, INVALID), record(1, ABORTED)), "ota_0", None),
        ((record(2, VALID), record(2, VALID)), "ota_1", None),
        # Blank in seq, but the state is looked at first.
        ((record(0xFFFFFFFF, PENDING), BLANK), "ota_0", (record(1, VALID), BLANK)),
    ],
)
def test_otadata_selects_and_is_rewritten(
    records: tuple[bytes, bytes], starts: str, after: tuple[bytes, bytes] | None
) -> None:
    result = boot_once(make_flash(records=records))
    assert label(result) == starts
    assert result.otadata_after == (records if after is None else after)
    assert result.console == ()


def test_without_rollback_no_state_changes() -> None:
    records = record(1, PENDING), record(2, NEW)
    result = boot_once(make_flash(records=records), rollback=False)
    assert (label(result), result.otadata_after) == ("ota_1", records)


def test_a_damaged_unconfirmed_record_is_aborted_all_the_same() -> None:
    torn = record(2, PENDING)[:-4] + b"\0\0\0\0"
    result = boot_once(make_flash(records=(record(1, VALID), torn)))
    assert label(result) == "ota_0"
    assert result.otadata_after == (record(1, VALID), record(2, ABORTED)[:-4] + b"\0\0\0\0")


def test_records_with_wrong_crcs_select_nothing_and_are_left_alone() -> None:
    torn = record(1, VALID)[:-4] + b"\0\0\0\0"
    result = boot_once(make_flash(records=(torn, torn)))
    words = "boot: ota data partition invalid and no factory, will try all partitions"
    assert (label(result), result.console) == ("ota_0", (words,))
    assert result.otadata_after == (torn, torn)
    with_factory = (OTADATA, FACTORY, dataclasses.replace(OTA_1, subtype=0x10))
    result = boot_once(make_flash(with_factory, records=(torn, torn)))
    assert label(result) == "factory"
    assert result.console == ("boot: ota data partition invalid, falling back to factory",)


def test_factory_starts_when_otadata_is_blank_and_stays_blank() -> None:
    result = boot_once(make_flash((OTADATA, FACTORY, dataclasses.replace(OTA_1, subtype=0x10))))
    assert label(result) == "factory"
    assert result.otadata_after == (BLANK, BLANK)


def test_fallback_goes_down_to_factory_then_up_then_to_the_test_app() -> None:
    slots = [Partition(f"ota_{n}", 0, 0x10 + n, 0x20000 + n * 0x10000, SLOT_SIZE) for n in range(4)]
    test = dataclasses.replace(TEST, offset=0x60000)
    bad = {slot.label: BAD for slot in slots} | {"factory": BAD}
    flash = make_flash(
        (OTADATA, FACTORY, *slots, test), records=(record(2, VALID), BLANK), apps=bad, size=0x80000
    )
    result = boot_once(flash)
    assert label(result) == "test"
    assert result.selected == slots[1]
    assert [p.label for p, _ in result.verdicts] == [
        *("ota_1", "ota_0", "factory", "ota_2", "ota_3", "test")
    ]
    assert "boot: Factory app partition is not bootable" in result.console
    last = [line for line in result.lines if line.level.value == "W"]
    assert [str(line) for line in last] == [
        "boot: Falling back to test app as only bootable partition"
    ]


def test_blank_otadata_is_set_to_the_slot_that_was_found_to_boot() -> None:
    result = boot_once(make_flash(apps={"ota_0": BAD}))
    assert label(result) == "ota_1"
    assert result.console == (MAGIC_0, SLOT_0)
    assert result.otadata_after == (record(2, VALID), BLANK)


def test_a_new_app_that_does_not_load_is_pending_and_the_old_one_starts() -> None:
    flash = make_flash(records=(record(1, VALID), record(2, NEW)), apps={"ota_1": BAD})
    with flash:
        result = boot(flash)
        assert (label(result), result.console) == ("ota_0", (MAGIC_1, SLOT_1))
        assert result.otadata_after == (record(1, VALID), record(2, PENDING))
        again = boot(flash)
        assert (label(again), again.console) == ("ota_0", ())
        assert again.otadata_after == (record(1, VALID), record(2, ABORTED))


def test_nothing_boots_when_no_slot_holds_an_app() -> None:
    result = boot_once(make_flash(apps={"ota_0": BAD, "ota_1": BAD}))
    assert label(result) is None
    assert result.console == (MAGIC_0, SLOT_0, MAGIC_1, SLOT_1, NOTHING)
    assert result.faults[-1].cause is Cause.NO_BOOTABLE_APP
    assert result.otadata_after == (BLANK, BLANK)


def test_a_new_app_is_given_up_by_the_resets_when_no_app_starts() -> None:
    bad = {"ota_0": BAD, "ota_1": BAD}
    result = boot_once(make_flash(records=(record(1, VALID), record(2, NEW)), apps=bad))
    assert label(result) is None
    assert result.console == (MAGIC_1, SLOT_1, MAGIC_0, SLOT_0, NOTHING)  # said once more each time
    assert result.otadata_after == (record(1, VALID), record(2, ABORTED))


def test_slots_with_a_gap_are_counted_not_numbered() -> None:
    far = dataclasses.replace(OTA_1, subtype=0x12, label="ota_2")
    result = boot_once(make_flash((OTADATA, OTA_0, far), records=(record(2, VALID), BLANK)))
    assert label(result) == "ota_0"  # index 1 is no partition, ota_2 beyond the count
    assert result.selected is None


def test_of_two_entries_for_one_slot_the_last_counts_and_both_are_counted() -> None:
    twin = dataclasses.replace(OTA_1, subtype=0x10, label="twin")
    result = boot_once(make_flash((OTADATA, OTA_0, twin), records=(record(1, VALID), BLANK)))
    assert label(result) == "twin"
    result = boot_once(make_flash((OTADATA, OTA_0, twin), records=(record(2, VALID), BLANK)))
    assert label(result) == "twin"


def test_a_slot_of_size_0_is_passed_over_silently() -> None:
    empty = dataclasses.replace(OTA_1, size=0)
    result = boot_once(make_flash((OTADATA, OTA_0, empty), records=(record(2, VALID), BLANK)))
    assert (label(result), result.console) == ("ota_0", ())


def test_a_table_without_otadata_tries_factory_and_every_slot() -> None:
    result = boot_once(make_flash((OTA_0, OTA_1), apps={"ota_0": BAD}))
    assert (label(result), result.console) == ("ota_1", (MAGIC_0, SLOT_0))
    assert result.otadata_after is None


@pytest.mark.parametrize(
    ("otadata", "words"),
    [
        (
            dataclasses.replace(OTADATA, size=0x1000),
            ["boot: ota_info partition size 4096 is too small (minimum 8192 bytes)"],
        ),
        (
            dataclasses.replace(OTADATA, offset=0, size=0x400000),
            [],
        ),
    ],
)
def test_otadata_of_a_wrong_size(otadata: Partition, words: list[str]) -> None:
    bootloader = make_bootloader(ESP32, spi_size=2)
    result = boot_once(make_flash((otadata, OTA_0, OTA_1), bootloader=bootloader))
    assert list(result.console) == words
    assert label(result) == (None if words else "ota_0")  # offset 0 counts as: there is none


def test_otadata_larger_than_can_be_mapped_stops_the_boot() -> None:
    large = dataclasses.replace(OTADATA, size=0x330000)
    bootloader = make_bootloader(ESP32, spi_size=2)
    result = boot_once(make_flash((large, OTA_0), bootloader=bootloader))
    assert result.console == (
        "bootloader_flash: bootloader_mmap excess size 330000",
        "boot: bootloader_mmap(0xd000, 0x330000) failed",
    )
    assert label(result) is None


# The partition table


def table_case(table: bytes, **options: Any) -> BootResult:
    return boot_once(make_flash(contents={0x8000: table}, **options))


GOOD_TABLE = make_table(OTA_TABLE)
MD5_ROW = GOOD_TABLE[0x60:0x80]
FAILED = ("boot: Failed to verify partition table", "boot: load partition table error!")


@pytest.mark.parametrize(
    ("table", "words", "cause"),
    [
        (b"\0" + GOOD_TABLE[1:], "partition 0 invalid magic number 0x5000", Cause.TABLE_MAGIC),
        (
            GOOD_TABLE[:0x40] + b"\0" * 32,
            "partition 2 invalid magic number 0x0",
            Cause.TABLE_MAGIC,
        ),
        (GOOD_TABLE[:0x70] + b"\0" * 16, "Incorrect MD5 checksum", Cause.TABLE_MD5),
        (GOOD_TABLE + MD5_ROW, "Only one MD5 checksum is allowed", Cause.TABLE_TWO_MD5),
        (
            make_table([dataclasses.replace(OTA_0, size=0xF8000)]),
            "partition 0 invalid - offset 0x10000 size 0xf8000 exceeds flash chip size 0x100000",
            Cause.TABLE_FLASH_SIZE,
        ),
        (
            make_table([dataclasses.replace(OTA_0, offset=0x200000, size=0xFFF00000)]),
            "partition 0 invalid - offset 0x200000 size 0xfff00000 exceeds flash chip size "
            "0x100000",
            Cause.TABLE_FLASH_SIZE,
        ),
        (
            OTA_0.to_bytes() * 96,
            "partition table has no terminating entry, not valid",
            Cause.TABLE_NO_END,
        ),
    ],
)
def test_a_table_that_does_not_verify_starts_nothing(
    table: bytes, words: str, cause: Cause
) -> None:
    records = record(1, PENDING), BLANK
    result = table_case(table, records=records)
    assert label(result) is None
    assert result.console == (f"flash_parts: {words}", *FAILED)
    assert [fault.cause for fault in result.faults] == [cause]
    if result.otadata:
        assert result.otadata_after == records  # otadata is not touched


def test_a_table_may_do_without_md5_and_an_erased_one_has_no_apps() -> None:
    assert label(table_case(make_table(OTA_TABLE, has_md5=False))) == "ota_0"
    assert table_case(b"").console == (NOTHING,)
    newer = make_bootloader(ESP32, idf_version="v5.5.1")
    words = "flash_parts: partition 0 invalid magic number 0xffff"
    assert table_case(b"", bootloader=newer).console == (words, *FAILED)


@pytest.mark.parametrize(
    ("idf_version", "starts"),
    [("", "ota_0"), ("v5.5.5", "ota_0"), ("v6.0.2", "ota_0"), ("v6.1", None)],
)
def test_an_entry_whose_end_wraps_is_refused_from_v6_1_on(
    idf_version: str, starts: str | None
) -> None:
    """esp_partition_table_verify: before, offset + size was compared in 32 bits."""
    wrapped = Partition("wrapped", 1, 0x81, 0x20000, 0xFFFFF000)
    bootloader = make_bootloader(ESP32, idf_version=idf_version)
    result = boot_once(make_flash((OTADATA, OTA_0, wrapped), bootloader=bootloader))
    assert label(result) == starts
    words = "flash_parts: partition 2 invalid - offset 0x20000 size 0xfffff000 exceeds flash chip "
    assert result.console == (() if starts else (f"{words}size 0x100000", *FAILED))


def test_entries_behind_the_md5_push_the_last_one_out() -> None:
    """partitions are counted without the MD5 entry, but read from the first row on."""
    result = table_case(GOOD_TABLE + TEST.to_bytes())
    assert [p.type for p in result.partitions] == [1, 0, 0, 0xFF]
    assert label(result) == "ota_0"


def test_the_bootloaders_header_decides_how_large_the_flash_is() -> None:
    at_2m = dataclasses.replace(OTA_1, offset=0x200000)
    for spi_size, starts in ((1, None), (2, "ota_1"), (5, None)):  # v5.0 takes 32 MB for 2 MB
        bootloader = make_bootloader(ESP32, spi_size=spi_size)
        records = record(2, VALID), BLANK
        flash = make_flash(
            (OTADATA, OTA_0, at_2m), bootloader=bootloader, records=records, size=0x400000
        )
        assert label(boot_once(flash)) == starts


# Tables that no tool makes

OTA_2 = Partition("ota_2", 0, 0x12, 0x30000, SLOT_SIZE)
FACTORY_AT_0 = dataclasses.replace(FACTORY, offset=0)
MOVED_OTADATA = dataclasses.replace(OTADATA, offset=0x9000, label="moved")
MANY = (OTADATA, OTA_0, *[OTA_1] * 16)  # 17 slots are counted, two are there
UNALIGNED = dataclasses.replace(OTA_1, offset=0x20002)
NOT_ALIGNED = "bootloader_flash: bootloader_flash_read src_addr 0x20002 not 4-byte aligned"


@pytest.mark.parametrize(
    ("partitions", "records", "bad", "starts", "console"),
    [
        # bootloader_utility_get_selected_boot_partition
        ((OTADATA, OTA_0, OTA_1, OTA_2), (record(0xFFFFFFFE, VALID), BLANK), (), "ota_1", ()),
        ((OTADATA, FACTORY), (record(1, NEW), BLANK), (), "factory", ()),
        ((OTADATA, TEST), (record(1, NEW), BLANK), (), "test", ()),
        ((OTADATA, FACTORY_AT_0, OTA_0), (BLANK, BLANK), (), "ota_0", ()),
        # bootloader_utility_load_boot_image: no factory to select, but one to fall back to
        ((OTADATA, FACTORY_AT_0, OTA_0), (BLANK, BLANK), ("ota_0",), "factory", (MAGIC_0, SLOT_0)),
        (
            (OTADATA, OTA_0, UNALIGNED),
            (record(2, VALID), BLANK),
            (),
            "ota_0",
            (NOT_ALIGNED, SLOT_1),
        ),
        # index_to_partition: index 16 is no slot, however many are counted; 17 % 17 is one again
        (MANY, (record(17, VALID), BLANK), (), "ota_1", ()),
        (MANY, (record(18, VALID), BLANK), (), "ota_0", ()),
        # bootloader_utility_load_partition_table: the last otadata counts, subtype 0x21 is no app
        ((OTADATA, MOVED_OTADATA, OTA_0, OTA_1), (record(2, VALID), BLANK), (), "ota_0", ()),
        (
            (OTADATA, OTA_0, dataclasses.replace(OTA_1, subtype=0x21)),
            (record(2, VALID), BLANK),
            (),
            "ota_0",
            (),
        ),
        ((), (BLANK, BLANK), (), None, (NOTHING,)),
    ],
)
def test_odd_tables_boot_as_the_rules_have_it(
    partitions: tuple[Partition, ...],
    records: tuple[bytes, bytes],
    bad: tuple[str, ...],
    starts: str | None,
    console: tuple[str, ...],
) -> None:
    """What ESP-IDF's own functions did with these flashes, compiled for a desk (v5.0.4)."""
    result = boot_once(make_flash(partitions, records=records, apps=dict.fromkeys(bad, BAD)))
    assert (label(result), result.console) == (starts, console)


# The ROM


def test_no_bootloader_no_boot() -> None:
    result = boot_once(make_flash(bootloader=b"\0\0\0\0"))
    assert (label(result), result.console) == (None, ())
    assert [str(line) for line in result.lines] == ["invalid header: 0x00000000"]
    assert [fault.cause for fault in result.faults] == [Cause.BOOTLOADER_MISSING]
    assert result.bootloader is None


def test_a_bootloader_with_a_flipped_bit_does_not_run() -> None:
    broken = bytearray(make_bootloader(ESP32))
    broken[0x400] ^= 4
    result = boot_once(make_flash(bootloader=bytes(broken)))
    assert label(result) is None
    assert [fault.cause for fault in result.faults] == [Cause.BOOTLOADER_CORRUPT]
    assert str(result.lines[-1]).startswith("csum err:0x")
    result = boot_once(make_flash(bootloader=make_bootloader(ESP32)[:0x1000]))
    assert label(result) is None
    assert [fault.cause for fault in result.faults] == [Cause.BOOTLOADER_CORRUPT]


def test_a_bootloader_whose_digest_does_not_fit_runs() -> None:
    """As after a change of the flash size in its header by a tool that forgets the digest."""
    for name, words in (("esp32", 0), ("esp32c3", 2)):
        chip = chip_by_name(name)
        edited = bytearray(make_bootloader(chip))
        edited[3] = 0x20
        result = boot_once(make_flash(chip=chip, bootloader=bytes(edited)))
        assert label(result) == "ota_0"
        lines = [str(line) for line in result.lines]
        assert ("SHA-256 comparison failed:" in lines) == bool(words)


def test_a_bootloader_for_a_newer_chip_stops_by_itself() -> None:
    flash = make_flash(bootloader=make_bootloader(ESP32, min_rev=300))
    with flash:
        result = boot(flash, chip_revision=100)
        assert label(result) is None
        assert result.console == ("boot_comm: Image requires chip rev >= v3.0, but chip is v1.0",)
        assert label(boot(flash)) == "ota_0"


def test_whole_flash_of_another_chip_is_not_this_chips() -> None:
    with make_flash() as flash:
        result = boot(flash, chip=chip_by_name("esp32c3"))
    assert [fault.cause for fault in result.faults] == [Cause.BOOTLOADER_MISSING]


# Power cuts


@pytest.mark.parametrize("mode", CutMode)
@pytest.mark.parametrize(
    "records",
    [
        (BLANK, BLANK),
        (record(1, VALID), record(2, NEW)),
        (record(1, VALID), record(2, PENDING)),
        (record(3, PENDING), record(2, PENDING)),
        (record(1, UNDEFINED), record(2, NEW)),
    ],
    ids=["blank", "new", "pending", "both pending", "undefined"],
)
def test_a_power_cut_in_the_bootloader_leaves_a_board_that_boots(
    records: tuple[bytes, bytes], mode: CutMode
) -> None:
    with make_flash(records=records) as flash:
        recording = record_changes("boot", flash, lambda: boot(flash))
        assert len(recording.effects) >= 2
        for point in recording.all_points([mode]):
            flash.restore(recording.content(point))
            assert label(boot(flash)) is not None, str(point)


def test_a_record_is_rewritten_by_one_erase_and_one_write() -> None:
    with make_flash(records=(record(1, VALID), record(2, NEW))) as flash:
        flash.restart_count()
        boot(flash)
        assert [tuple(op) for op in flash.operations] == [
            ("erase", 0xE000, 0x1000),
            ("write", 0xE000, 32),
        ]


def test_a_boot_that_changes_nothing_touches_no_flash() -> None:
    with make_flash(records=(record(1, VALID), BLANK)) as flash:
        flash.restart_count()
        boot(flash)
        assert not flash.operations


# Whatever the flash holds

STATES = (*OtaState, 9)
RECORDS = st.one_of(
    st.just(BLANK),
    st.builds(
        record, st.sampled_from([0, 1, 2, 3, 4, 0xFFFFFFFE, 0xFFFFFFFF]), st.sampled_from(STATES)
    ),
    st.binary(min_size=32, max_size=32),
)


def seq_and_state(raw: bytes) -> tuple[int, int]:
    return struct.unpack_from("<I", raw)[0], struct.unpack_from("<I", raw, 24)[0]


@settings(max_examples=150, deadline=None)
@given(first=RECORDS, second=RECORDS)
def test_any_otadata_boots_and_ends_in_the_states_that_esp_idf_knows(
    first: bytes, second: bytes
) -> None:
    with make_flash(records=(first, second)) as flash:
        result = boot(flash)
        assert label(result) in ("ota_0", "ota_1")
        assert result.otadata_after is not None
        for before, after in zip((first, second), result.otadata_after, strict=True):
            state = {PENDING: ABORTED, NEW: PENDING}.get(seq_and_state(before)[1])
            changed = before[:24] + struct.pack("<I", state or 0) + before[28:]
            assert after in (before, changed, record(1, VALID))
            if seq_and_state(before)[1] == PENDING:
                assert after != before  # an app that did not confirm is never left as it was
        # What runs unconfirmed now is given up at the next boot.
        again = boot(flash).otadata_after
        assert again is not None
        for now, then in zip(result.otadata_after, again, strict=True):
            if seq_and_state(now)[1] == PENDING:
                assert seq_and_state(then)[1] == ABORTED or then == record(1, VALID)


@settings(max_examples=150, deadline=None)
@given(
    edits=st.lists(
        st.tuples(
            st.one_of(
                st.integers(0x1000, 0x1100),
                st.integers(0x8000, 0x80A0),
                st.integers(0xD000, 0xD01F),
                st.integers(0x10000, 0x10200),
                st.integers(0, FLASH_SIZE - 64),
            ),
            st.binary(min_size=1, max_size=64),
        ),
        max_size=8,
    )
)
def test_no_flash_content_raises_anything(edits: list[tuple[int, bytes]]) -> None:
    with make_flash() as flash:
        image = bytearray(flash.snapshot())
        for offset, data in edits:
            image[offset : offset + len(data)] = data
        flash.restore(bytes(image))
        result = boot(flash)
        assert result.starts is None or result.starts in result.partitions
        assert (result.starts is None) <= bool(result.faults)
        assert all("\n" not in line and line.isascii() for line in result.printed)


def test_random_bytes_are_no_board() -> None:
    for seed in range(20):
        content = random.Random(seed).randbytes(0x20000)
        with VirtualFlash.create(0x20000, {0: content}) as flash:
            assert boot(flash).starts is None


@pytest.mark.parametrize("size", [0x10000, 0x20000])
def test_a_flash_smaller_than_its_header_says_is_read_as_unmapped(size: int) -> None:
    """The table names partitions behind the end of the chip."""
    with make_flash() as whole:
        content = whole.read(0, size)
    with VirtualFlash.create(size, {0: content}) as flash:
        result = boot(flash)
        assert label(result) == ("ota_0" if size > 0x10000 else None)


def test_the_console_of_a_bootloader_with_info_lines_shows_the_table_and_the_segments() -> None:
    chatty = make_bootloader(ESP32, texts=b"Loaded app from partition at offset 0x%x")
    lines = boot_once(make_flash(bootloader=chatty)).printed
    assert "I (0) boot:  1 ota_0            OTA app          00 10 00010000 00010000" in lines
    assert "I (0) boot: Loaded app from partition at offset 0x10000" in lines
    assert any(line.startswith("I (0) esp_image: segment 0: paddr=00010020") for line in lines)
    quiet = boot_once(make_flash()).printed
    assert not any(line.startswith("I ") for line in quiet)


def test_combinations_of_states_agree_with_the_rules_written_out() -> None:
    """esp-idf's rules once more, in one line each, for every pair of sequence and state."""
    for (seq_a, a), (seq_b, b) in itertools.product(
        itertools.product((1, 2), OtaState), itertools.product((3, 4), OtaState)
    ):
        usable_b = b not in (INVALID, ABORTED, PENDING)
        usable_a = a not in (INVALID, ABORTED, PENDING)
        expected = (
            f"ota_{(seq_b - 1) % 2}" if usable_b else f"ota_{seq_a - 1}" if usable_a else "ota_0"
        )
        with make_flash(records=(record(seq_a, a), record(seq_b, b))) as flash:
            assert label(boot(flash)) == expected


def test_bootloader_info_says_what_is_known() -> None:
    info = bootloader_info(make_bootloader(ESP32))
    assert (info.idf_version, info.flash_size) == (None, 1 << 20)
    info = bootloader_info(make_bootloader(ESP32, idf_version="v6.0.1", min_rev=100, spi_size=5))
    assert (info.idf_version, info.chip_revision, info.flash_size) == ("v6.0.1", 100, 32 << 20)


@pytest.mark.parametrize(
    ("name", "idf_version", "megabytes"),
    [
        ("esp32", "v5.5", 2),
        ("esp32c3", "v5.5.1", 2),
        ("esp32c3", "v5.5.2", 32),
        ("esp32c6", "v5.4.3", 2),
        ("esp32c6", "v5.4.4-dirty", 32),
        ("esp32s3", "v5.2", 32),
        ("esp32p4", "v5.4", 32),
        ("esp32c5", "v5.5", 32),
        ("esp32c3", "v6.0", 32),
    ],
)
def test_a_bootloader_that_does_not_know_32_mb_takes_it_for_2(
    name: str, idf_version: str, megabytes: int
) -> None:
    chip = chip_by_name(name)
    bootloader = make_bootloader(chip, idf_version=idf_version, spi_size=5)
    assert bootloader_info(bootloader).flash_size == megabytes << 20


@pytest.mark.parametrize(
    ("state", "starts"), [(OtaState.NEW, "ota_0"), (OtaState.VALID, None)], ids=["new", "valid"]
)
def test_a_bootloader_that_overwrites_itself_comes_back_only_by_rollback(
    state: OtaState, starts: str | None
) -> None:
    """On chips with one bus the loader's own code is not defended (verify_load_addresses)."""
    chip = chip_by_name("esp32c6")
    app = make_app(chip, [(memory_map("esp32c6").loader_iram.start, b"\0" * 0x1000)])
    records = (record(1, OtaState.VALID), record(2, state))
    with make_flash(chip=chip, records=records, apps={"ota_1": app}) as flash:
        result = boot(flash)
    assert (result.starts.label if result.starts else None) == starts
    assert result.selected == OTA_1
    assert result.console == ()
    assert Cause.OVERWRITES_LOADER in [fault.cause for fault in result.faults]
