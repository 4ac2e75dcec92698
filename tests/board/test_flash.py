"""The virtual flash chip: NOR rules, power cuts, faults, modelled time."""

from __future__ import annotations

import gc

import pytest
from mpota.errors import MpotaError, UsageError
from mpota.virtual.flash import (
    Cut,
    CutMode,
    FaultKind,
    FlashError,
    FlashFault,
    Operation,
    PowerCut,
    VirtualFlash,
)

SIZE = 0x40000


@pytest.fixture
def flash():
    with VirtualFlash.create(SIZE) as chip:
        yield chip


def test_a_new_chip_is_blank(flash):
    assert flash.size == SIZE
    assert flash.snapshot() == b"\xff" * SIZE
    assert flash.operations == []


def test_programming_clears_bits_and_may_clear_more_of_them(flash):
    flash.write(0x10, b"\xf0\x0f")
    flash.write(0x10, b"\x30\x0f")
    assert flash.read(0x0F, 4) == b"\xff\x30\x0f\xff"


def test_programming_cannot_set_a_bit_and_says_where(flash):
    flash.write(0x100, b"\x00" * 16)
    with pytest.raises(FlashError, match=r"0x105 would turn 0x00 into 0x01"):
        flash.write(0x100, b"\x00" * 5 + b"\x01" + b"\x00" * 10)
    assert flash.read(0x100, 16) == b"\x00" * 16
    assert len(flash.operations) == 1


def test_an_erase_sets_whole_sectors_and_nothing_beside_them(flash):
    flash.write(0x0FFF, b"\x00" * 0x1002)
    flash.erase(0x1000, 0x1000)
    assert flash.read(0x0FFF, 0x1002) == b"\x00" + b"\xff" * 0x1000 + b"\x00"


@pytest.mark.parametrize(("offset", "size"), [(0x1001, 0x1000), (0x1000, 0x800)])
def test_parts_of_a_sector_cannot_be_erased(flash, offset, size):
    with pytest.raises(FlashError, match="whole sectors"):
        flash.erase(offset, size)
    assert flash.operations == []


@pytest.mark.parametrize(
    "act",
    [
        lambda flash: flash.read(SIZE - 1, 2),
        lambda flash: flash.read(-1, 1),
        lambda flash: flash.write(SIZE, b"\x00"),
        lambda flash: flash.erase(SIZE, 0x1000),
    ],
    ids=["read over the end", "read before the start", "write behind the end", "erase behind it"],
)
def test_nothing_is_reached_outside_the_chip(flash, act):
    with pytest.raises(FlashError, match="outside the flash of 0x40000"):
        act(flash)
    assert flash.operations == []


def test_an_erase_goes_by_64_kib_blocks_where_it_can(flash):
    flash.erase(0xF000, 0x22000)
    assert flash.operations == [
        Operation("erase", 0xF000, 0x1000),
        Operation("erase", 0x10000, 0x10000),
        Operation("erase", 0x20000, 0x10000),
        Operation("erase", 0x30000, 0x1000),
    ]
    assert flash.duration_ms == pytest.approx(45 + 150 + 150 + 45)


def test_programming_takes_time_by_the_page(flash):
    flash.write(0, b"\x00" * 4096)
    assert flash.duration_ms == pytest.approx(16 * 0.4)
    flash.restart_count()
    flash.write(0x10FF, b"\x00\x00")  # touches two pages
    assert flash.duration_ms == pytest.approx(2 * 0.4)


def test_an_empty_write_is_no_operation(flash):
    flash.write(0, b"")
    flash.erase(0, 0)
    assert flash.operations == []


# --- power cuts --------------------------------------------------------------------------------


def cut_write(flash, mode, data=b"\x5a" * 1000, op=0):
    flash.cut = Cut(op, mode)
    with pytest.raises(PowerCut):
        flash.write(0x100, data)
    return flash.read(0x100, len(data))


def test_a_cut_before_a_write_leaves_nothing_of_it(flash):
    assert cut_write(flash, CutMode.BEFORE) == b"\xff" * 1000
    assert flash.operations == []


def test_a_cut_after_a_write_leaves_all_of_it(flash):
    assert cut_write(flash, CutMode.AFTER) == b"\x5a" * 1000
    assert len(flash.operations) == 1


def test_a_torn_write_leaves_a_prefix_up_to_some_bits_of_a_byte(flash):
    left = cut_write(flash, CutMode.TORN)
    done = len(left) - len(left.lstrip(b"\x5a"))
    assert 0 < done < 1000
    assert left[done] & 0x5A == 0x5A  # no bit is cleared that the write does not clear
    assert left[done + 1 :] == b"\xff" * (999 - done)


def test_where_a_write_tears_varies_but_not_from_one_run_to_the_next(flash):
    blank = flash.snapshot()
    places = []
    for number in range(8):
        flash.restore(blank)
        for filler in range(number):
            flash.write(0x2000 + filler, b"\x00")
        left = cut_write(flash, CutMode.TORN, op=number)
        places.append(len(left) - len(left.lstrip(b"\x5a")))
    assert len(set(places)) > 4
    flash.restore(blank)
    assert len(cut_write(flash, CutMode.TORN).rstrip(b"\xff")) in (places[0], places[0] + 1)


def test_a_garbled_write_leaves_any_of_its_bits(flash):
    left = cut_write(flash, CutMode.GARBLED)
    assert left not in (b"\xff" * 1000, b"\x5a" * 1000)
    assert all(byte & 0x5A == 0x5A for byte in left)


def test_a_torn_erase_leaves_half_a_sector(flash):
    flash.write(0x3000, b"\x00" * 0x3000)
    flash.cut = Cut(1, CutMode.TORN)
    with pytest.raises(PowerCut):
        flash.erase(0x4000, 0x1000)
    half = 0x800
    assert flash.read(0x3000, 0x3000) == bytes(0x1000) + b"\xff" * half + bytes(half) + bytes(
        0x1000
    )


def test_a_torn_block_erase_ends_within_one_of_its_sectors(flash):
    flash.write(0x10000, bytes(0x10000))
    flash.cut = Cut(1, CutMode.TORN)
    with pytest.raises(PowerCut):
        flash.erase(0x10000, 0x10000)
    left = flash.read(0x10000, 0x10000)
    done = len(left) - len(left.lstrip(b"\xff"))
    assert done % 0x1000 == 0x800
    assert left[done:] == bytes(0x10000 - done)


def test_each_sector_of_an_erase_can_be_cut_from_the_next(flash):
    flash.write(0, bytes(0x3000))
    flash.cut = Cut(2, CutMode.BEFORE)
    with pytest.raises(PowerCut):
        flash.erase(0, 0x3000)
    assert flash.read(0, 0x3000) == b"\xff" * 0x1000 + bytes(0x2000)


def test_the_power_is_back_after_a_cut(flash):
    cut_write(flash, CutMode.BEFORE)
    flash.write(0x100, b"\x00")
    assert flash.read(0x100, 1) == b"\x00"


# --- faults ------------------------------------------------------------------------------------


def test_lost_bytes_stay_as_they_were_and_the_rest_arrives(flash):
    flash.inject(FlashFault(FaultKind.LOST, 0x1010, 3, times=1))
    flash.write(0x1000, b"\x11" * 32)
    assert flash.read(0x1000, 32) == b"\x11" * 16 + b"\xff" * 3 + b"\x11" * 13
    flash.erase(0x1000, 0x1000)
    flash.write(0x1000, b"\x11" * 32)  # the fault has struck once: now all is well
    assert flash.read(0x1000, 32) == b"\x11" * 32


def test_a_fault_strikes_only_what_touches_it(flash):
    flash.inject(FlashFault(FaultKind.ZEROED, 0x1010, times=1))
    flash.write(0x1000, b"\x11" * 16)
    assert flash.read(0x1000, 16) == b"\x11" * 16
    flash.write(0x1010, b"\x11" * 2)
    assert flash.read(0x1010, 2) == b"\x00\x11"


def test_bits_stuck_at_0_survive_an_erase_and_at_1_a_write(flash):
    flash.inject(FlashFault(FaultKind.STUCK_AT_0, 0x2000, mask=0x80))
    flash.inject(FlashFault(FaultKind.STUCK_AT_1, 0x2001, mask=0x01))
    flash.erase(0x2000, 0x1000)
    assert flash.read(0x2000, 2) == b"\x7f\xff"
    flash.write(0x2000, b"\x00\x00")
    assert flash.read(0x2000, 2) == b"\x00\x01"


def test_a_healed_chip_has_no_faults(flash):
    flash.inject(FlashFault(FaultKind.ZEROED, 0))
    flash.heal()
    flash.write(0, b"\x11")
    assert flash.read(0, 1) == b"\x11"


# --- files -------------------------------------------------------------------------------------


def test_the_content_is_the_files(tmp_path):
    path = tmp_path / "flash.bin"
    with VirtualFlash.create(SIZE, {0x1000: b"abc"}, path) as flash:
        flash.write(0x2000, b"\x00")
    with VirtualFlash(path) as flash:
        assert flash.read(0x1000, 3) == b"abc"
        assert flash.read(0x2000, 1) == b"\x00"
    assert path.stat().st_size == SIZE


def test_a_temporary_chip_leaves_no_file_behind():
    with VirtualFlash.create(SIZE) as flash:
        assert flash.path.exists()
    assert not flash.path.exists()


def test_a_temporary_chip_that_is_forgotten_leaves_no_file_either():
    path = VirtualFlash.create(SIZE).path
    gc.collect()
    assert not path.exists()


def test_a_snapshot_can_be_restored_whatever_was_programmed(flash):
    content = flash.snapshot()
    flash.write(0, b"\x00" * 10)
    flash.cut = Cut(7, CutMode.TORN)
    flash.inject(FlashFault(FaultKind.ZEROED, 0))
    flash.restore(content)
    assert flash.snapshot() == content
    assert (flash.operations, flash.cut) == ([], None)
    flash.write(0, b"\x11")
    assert flash.read(0, 1) == b"\x11"


@pytest.mark.parametrize("size", [0, 1000, 0x10000 + 0x1000])
def test_a_file_that_is_no_chip_is_refused(tmp_path, size):
    path = tmp_path / "flash.bin"
    path.write_bytes(b"\xff" * size)
    with pytest.raises(MpotaError, match="a chip has a multiple of 0x10000"):
        VirtualFlash(path)


def test_a_missing_file_is_an_error_with_its_name(tmp_path):
    with pytest.raises(MpotaError, match=r"nothing\.bin: No such file"):
        VirtualFlash(tmp_path / "nothing.bin")


def test_contents_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="0x10 bytes at 0x3fff8 do not fit"):
        VirtualFlash.create(SIZE, {SIZE - 8: b"\x00" * 16})
