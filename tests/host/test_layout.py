"""Edits of partition tables: what they do, what they refuse, and that no sequence slips through."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpota.errors import MpotaError, UsageError
from mpota.firmware.layout import LAYOUTS, Edits, Layout, NewPartition, parse_kind
from mpota.formats.partition_table import (
    APP,
    DATA,
    FACTORY,
    OTA_0,
    Partition,
    PartitionTable,
)
from mpota.units import KiB, MiB

from tests.support import amount
from tests.support.firmware_files import OTA_TABLE, TABLE

STOCK_APP = 1_672_800  # bytes of the ESP32_GENERIC app v1.23.0
STOCK = PartitionTable(
    (
        Partition("nvs", DATA, 2, 0x9000, 0x6000),
        Partition("phy_init", DATA, 1, 0xF000, 0x1000),
        Partition("factory", APP, FACTORY, 0x10000, 0x1F0000),
        Partition("vfs", DATA, 0x81, 0x200000, 0x200000),
    )
)
WITHOUT_VFS = PartitionTable(STOCK.partitions[:-1])


def layout(
    table: PartitionTable = STOCK, flash_size: int = 4 * MiB, app_size: int = STOCK_APP
) -> Layout:
    return Layout(table, flash_size, table.apps[0], app_size)


def places(result: Layout) -> dict[str, tuple[int, int]]:
    return {p.label: (p.offset, p.size) for p in result.table}


@pytest.mark.parametrize("size", [8 * MiB, 16 * MiB, 32 * MiB, 128 * MiB])
def test_the_file_system_that_ends_the_table_grows_with_the_flash(size: int) -> None:
    result = layout().resize_flash(size)
    assert places(result) == {**places(layout()), "vfs": (0x200000, size - 0x200000)}


def test_a_table_without_file_system_stays_as_it_is() -> None:
    assert layout(WITHOUT_VFS).resize_flash(16 * MiB).table == WITHOUT_VFS


def test_a_smaller_flash_takes_from_the_file_system_only() -> None:
    big = layout().resize_flash(16 * MiB)
    assert big.resize_flash(4 * MiB).table == STOCK
    with pytest.raises(MpotaError, match="starts at 0x200000: a flash of 0x200000 bytes leaves 0"):
        big.resize_flash(2 * MiB)
    with pytest.raises(MpotaError, match="'factory' ends at 0x200000, the flash at 0x100000"):
        layout(WITHOUT_VFS).resize_flash(MiB)


@pytest.mark.parametrize("size", [4 * MiB, 8 * MiB, 16 * MiB, 32 * MiB])
@pytest.mark.parametrize("table", [STOCK, WITHOUT_VFS], ids=["vfs", "no vfs"])
def test_an_ota_layout_holds_todays_app_twice(table: PartitionTable, size: int) -> None:
    result = layout(table, size).arrange("ota")
    result.check()
    slots = result.table.slots
    assert [s.label for s in slots] == ["ota_0", "ota_1"]
    assert slots[0].size == slots[1].size > STOCK_APP
    assert result.table.is_ota_capable
    assert result.sources["ota_0"] == table["factory"]
    assert "ota_1" not in result.sources
    assert result.table.end == size
    assert result.table["vfs"].size >= 64 * KiB
    otadata = result.table.otadata
    assert otadata is not None
    assert otadata.size == 0x2000


def test_no_ota_layout_fits_two_stock_apps_into_2_mb() -> None:
    with pytest.raises(MpotaError, match="2 app partitions of 0x1a0000") as error:
        layout(STOCK, 2 * MiB).arrange("ota")
    assert "2MB of flash leave" in str(error.value)


def test_an_app_size_overrides_what_mpota_would_take() -> None:
    slots = layout(STOCK, 8 * MiB).arrange("ota", 0x1C0000).table.slots
    assert {s.size for s in slots} == {0x1C0000}


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0x180000, "app image is 1,672,800 bytes, an app size of 0x180000 holds 1,572,864"),
        (0x1A0800, "not a multiple of 0x1000"),
        (0x1A1000, "not a multiple of 0x10000"),
        (0x400000, "2 app partitions of 0x400000"),
    ],
)
def test_an_app_size_that_cannot_be_is_refused(size: int, words: str) -> None:
    with pytest.raises(MpotaError) as error:
        layout().arrange("ota", size)
    assert words in str(error.value)


def test_single_is_the_way_back_from_ota() -> None:
    ota = layout().arrange("ota").table
    back = Layout(ota, 4 * MiB, ota["ota_1"], STOCK_APP).arrange("single")
    assert [p.label for p in back.table.apps] == ["factory"]
    assert back.table.otadata is None
    assert back.sources["factory"] == ota["ota_1"]
    assert back.table["nvs"].size == 0x6000


def test_romfs_gets_a_partition_of_its_own() -> None:
    romfs = layout(STOCK, 8 * MiB).arrange("romfs").table["romfs"]
    assert (romfs.type, romfs.subtype) == (DATA, 0x8F)


def test_an_own_partition_is_carried_over_into_a_layout() -> None:
    own = Partition("conf", DATA, 0x40, 0x200000, 0x10000, flags=1)
    vfs = Partition("vfs", DATA, 0x81, 0x210000, 0x1F0000)
    table = PartitionTable((*WITHOUT_VFS, own, vfs))
    result = layout(table, 8 * MiB).arrange("ota")
    conf = result.table["conf"]
    assert (conf.type, conf.subtype, conf.size, conf.flags) == (DATA, 0x40, 0x10000, 1)


def test_names_move_and_are_not_taken_twice() -> None:
    result = layout().rename("vfs", "files")
    assert result.table["files"].offset == 0x200000
    assert result.sources["files"] == STOCK["vfs"]
    assert layout().rename("vfs", "vfs").table == STOCK
    for new in ("nvs", "", "sixteen_bytes_xx", "ä" * 8, "a\x00b"):
        with pytest.raises(UsageError):
            layout().rename("vfs", new)
    with pytest.raises(MpotaError, match="no partition 'data' in the table, which has nvs"):
        layout().rename("data", "files")


def test_names_can_be_swapped_by_way_of_a_third() -> None:
    edits = Edits(renames=(("ota_0", "x"), ("ota_1", "ota_0"), ("x", "ota_1")))
    result = edits.apply(layout(OTA_TABLE, app_size=0x20000))
    assert result.sources["ota_0"] == OTA_TABLE["ota_1"]
    assert result.sources["ota_1"] == OTA_TABLE["ota_0"]


def test_a_larger_partition_pushes_up_what_is_behind_it() -> None:
    result = layout(STOCK, 8 * MiB).resize_flash(8 * MiB).set_size("factory", 0x280000)
    assert places(result)["factory"] == (0x10000, 0x280000)
    assert places(result)["vfs"] == (0x290000, 0x570000)
    pushed = layout().set_size("nvs", 0x7000)
    assert places(pushed)["phy_init"] == (0x10000, 0x1000)
    assert places(pushed)["factory"] == (0x20000, 0x1F0000)
    assert places(pushed)["vfs"] == (0x210000, 0x1F0000)


def test_size_0_takes_the_room_behind() -> None:
    assert places(layout().delete("phy_init").set_size("nvs", 0))["nvs"] == (0x9000, 0x7000)
    assert places(layout().set_size("vfs", 0))["vfs"] == (0x200000, 0x200000)
    wide = layout(STOCK, 16 * MiB)
    assert places(wide.set_size("vfs", 0))["vfs"] == (0x200000, 14 * MiB)


@pytest.mark.parametrize(
    ("label", "size", "words"),
    [
        ("factory", 5 * MiB, "would end at 0x510000, the flash ends at 0x400000"),
        ("factory", 0x100001, "not a multiple of 0x1000"),
        ("vfs", 3 * MiB, "'vfs' of 0x300000 bytes would end at 0x500000"),
        ("files", 0x1000, "no partition 'files'"),
        ("nvs", 0x1000, "needs 0x3000"),
    ],
)
def test_a_size_that_does_not_fit_is_refused(label: str, size: int, words: str) -> None:
    with pytest.raises(MpotaError) as error:
        layout().set_size(label, size)
    assert words in str(error.value)


def test_a_partition_is_added_into_the_first_gap_or_out_of_the_file_system() -> None:
    gap = layout().delete("phy_init").add("conf", "undefined", 0)
    assert places(gap) == {**places(layout().delete("phy_init")), "conf": (0xF000, 0x1000)}
    taken = layout().add("conf", "0x40/0x01", 0x10000)
    assert places(taken)["conf"] == (0x3F0000, 0x10000)
    assert places(taken)["vfs"] == (0x200000, 0x1F0000)
    assert (taken.table["conf"].type, taken.table["conf"].subtype) == (0x40, 1)
    assert "conf" not in taken.sources


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (NewPartition("vfs", "fat", 0x1000), "already"),
        (NewPartition("", "fat", 0x1000), "0 bytes"),
        (NewPartition("sixteen_bytes_xx", "fat", 0x1000), "16 bytes"),
        (NewPartition("x", "nothing", 0x1000), "subtype 'nothing'"),
        (NewPartition("x", "0x1ff", 0x1000), "0 to 0xff"),
        (NewPartition("x", "fat", 0x1001), "not a multiple of 0x1000"),
        (NewPartition("x", "fat", 0x1000, 0x8000), "all below 0x9000"),
        (NewPartition("x", "fat", 0x1000, 0x9800), "0x9800 is not a multiple of 0x1000"),
        (NewPartition("x", "fat", 0x1000, 0x9000), "overlap"),
        (NewPartition("x", "fat", 0x1000, 0x400000), "ends at 0x401000"),
        (NewPartition("x", "app/ota_0", 0x10000, 0x3F1000), "not a multiple of 0x10000"),
        (NewPartition("x", "fat", 16 * MiB), "no room for partition 'x' of 0x1000000 bytes"),
        (NewPartition("otadata", "", 0x1000, 0x9000), "otadata has 0x2000"),
        (NewPartition("x", "fat", 0, 0x300000), "overlap"),
    ],
)
def test_a_partition_that_cannot_be_added_is_refused(new: NewPartition, words: str) -> None:
    with pytest.raises(MpotaError) as error:
        Edits(adds=(new,)).apply(layout())
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nvs", (DATA, 2)),
        ("ota_1", (APP, OTA_0 + 1)),
        ("app/factory", (APP, FACTORY)),
        ("data/ota", (DATA, 0)),
        ("data/0x40", (DATA, 0x40)),
        ("0x8f", (DATA, 0x8F)),
        ("0x40/1", (0x40, 1)),
        ("64/0x1", (0x40, 1)),
    ],
)
def test_a_kind_is_a_name_or_numbers(text: str, expected: tuple[int, int]) -> None:
    assert parse_kind(text) == expected


def test_edits_are_made_in_their_order() -> None:
    edits = Edits(
        flash_size=16 * MiB,
        deletes=("phy_init",),
        renames=(("vfs", "files"),),
        sizes=(("nvs", 0), ("factory", 0x300000)),
        adds=(NewPartition("vfs", "fat", MiB),),
    )
    assert places(edits.apply(layout())) == {
        "nvs": (0x9000, 0x7000),
        "factory": (0x10000, 0x300000),
        "files": (0x310000, 0xF00000 - 0x310000),
        "vfs": (0xF00000, MiB),
    }


names = st.sampled_from(
    ["nvs", "phy_init", "factory", "vfs", "ota_0", "x", "y", "", "sixteen_bytes_xx"]
)
sizes = st.one_of(
    st.sampled_from([0, 1, 0x1000, 0x10000, 0x1F0000, MiB, 4 * MiB, 1 << 40]),
    st.integers(0, 0x1000).map(lambda blocks: blocks * 0x1000),
)
kinds = st.sampled_from(["", "fat", "nvs", "ota", "ota_0", "ota_1", "factory", "0x40/1", "test"])
edits = st.builds(
    Edits,
    flash_size=st.none() | st.sampled_from([MiB << n for n in range(8)]),
    arrange=st.none() | st.sampled_from(LAYOUTS),
    app_size=st.none() | sizes,
    deletes=st.lists(names, max_size=2).map(tuple),
    renames=st.lists(st.tuples(names, names), max_size=2).map(tuple),
    sizes=st.lists(st.tuples(names, sizes), max_size=2).map(tuple),
    adds=st.lists(st.builds(NewPartition, names, kinds, sizes, st.none() | sizes), max_size=2).map(
        tuple
    ),
)


@given(st.lists(edits, min_size=1, max_size=4), st.sampled_from([STOCK, WITHOUT_VFS, TABLE]))
@settings(max_examples=amount.some(400), deadline=None)
def test_any_edits_give_a_table_that_validates_or_an_error(
    steps: list[Edits], table: PartitionTable
) -> None:
    current = layout(table, app_size=0x20000)
    for step in steps:
        try:
            current = step.apply(current)
        except MpotaError:
            continue  # refused: the layout stays what it was
        current.table.check(current.flash_size)
        assert PartitionTable.from_bytes(current.table.to_bytes()) == current.table
        assert set(current.sources) <= {p.label for p in current.table}
        origins = [p.label for p in current.sources.values()]
        assert len(origins) == len(set(origins))
