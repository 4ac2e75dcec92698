"""What the bootloader says of one app image, rule by rule and chip by chip."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpota.bootloader.boot import (
    BootloaderInfo,
    Cause,
    ImageVerdict,
    address_faults,
    bootloader_info,
    known_bootloader,
    set_boot_error,
    verify_image,
)
from mpota.bootloader.image_load import NEVER_RETURNS
from mpota.errors import MpotaError
from mpota.formats.chips import CHIPS, Chip, chip_by_name
from mpota.formats.image import Image, xor_bytes
from mpota.formats.memory import Region, memory_map
from mpota.virtual.flash import VirtualFlash

from tests.support.bootloader_images import (
    APP_DESC,
    SLOT_SIZE,
    app_segments,
    bootloader_segments,
    make_app,
    make_bootloader,
)
from tests.support.images import make_image, with_digest
from tests.support.real_files import SHARED, real_firmware, skip_unless

ESP32, ESP32C3, ESP32C6 = (chip_by_name(name) for name in ("esp32", "esp32c3", "esp32c6"))
by_chip = pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
SLOT = 0x10000


def info_of(chip: Chip, **bootloader: Any) -> BootloaderInfo:
    return bootloader_info(make_bootloader(chip, **bootloader))


def verify(
    image: bytes, bootloader: BootloaderInfo, *, size: int = SLOT_SIZE, is_boot: bool = True
) -> ImageVerdict:
    with VirtualFlash.create(0x40000, {SLOT: image}) as flash:
        before = flash.snapshot()
        verdict = verify_image(flash, SLOT, size, bootloader, is_boot=is_boot)
        assert flash.snapshot() == before
        assert set_boot_error(flash, SLOT, size, bootloader) in (0, 0x1503)
    assert verdict.is_bootable == (not verdict.faults)
    said = [fault.text for fault in verdict.faults if fault.cause not in NEVER_RETURNS]
    assert said == list(verdict.console)
    return verdict


def refused(image: bytes, bootloader: BootloaderInfo | None = None, **options: Any) -> str:
    """The one error line; image_load stops at the first."""
    verdict = verify(image, bootloader or info_of(ESP32), **options)
    assert len(verdict.console) == 1
    return verdict.console[0].removeprefix("esp_image: ")


@by_chip
def test_an_app_of_the_chip_is_accepted_and_measured(chip: Chip) -> None:
    app = make_app(chip)
    for bootloader in (info_of(chip), known_bootloader(chip)):
        verdict = verify(app, bootloader)
        assert (verdict.console, verdict.image_size) == ((), len(app))
        assert [s.load_addr for s in verdict.segments] == [a for a, _ in app_segments(chip)]


MERGED = {
    **dict.fromkeys((chip.name for chip in CHIPS), "overlaps bootloader stack"),
    "esp32": "overlaps bootloader data",
    "esp32s2": "overlaps bootloader data",
}


@by_chip
def test_a_merged_firmware_in_a_slot_collides_with_the_bootloader_that_it_starts_with(
    chip: Chip,
) -> None:
    merged = make_bootloader(chip)
    start, data = bootloader_segments(chip)[0]
    words = f"Segment 0 0x{start:08x}-0x{start + len(data):08x} invalid: {MERGED[chip.name]}"
    assert refused(merged, bootloader_info(merged)) == words
    with VirtualFlash.create(0x40000, {SLOT: merged}) as flash:
        assert set_boot_error(flash, SLOT, SLOT_SIZE, bootloader_info(merged)) == 0


@by_chip
def test_the_regions_come_from_the_bootloader_in_hand(chip: Chip) -> None:
    """A release that puts everything 0x1000 lower defends other addresses."""
    memory = memory_map(chip.name)
    shift = 0 if chip.name == "esp32" else 0x1000
    segments = [(a - shift, d) for a, d in bootloader_segments(chip)]
    info = bootloader_info(make_image(chip, segments, entry_addr=segments[1][0]))
    data_start = memory.data.start - shift
    assert info.data == Region(data_start, data_start + 0x1510)
    loader_start = memory.loader_iram.start - shift
    assert info.loader_iram == Region(loader_start, loader_start + 0x2000)


def load_case(chip: Chip, address: int, size: int = 0x40) -> str | None:
    verdict = verify(make_app(chip, [(address, b"\0" * size)]), info_of(chip))
    return verdict.console[0].split("Segment 3 ")[1] if verdict.console else None


@by_chip
def test_each_region_is_defended_to_its_last_word(chip: Chip) -> None:
    memory, info = memory_map(chip.name), info_of(chip)
    low = info.stack.start
    if low - 0x40 not in info.data:
        assert load_case(chip, low - 0x40) is None
    assert load_case(chip, low - 0x3C) == (
        f"0x{low - 0x3C:08x}-0x{low + 4:08x} invalid: overlaps bootloader stack"
    )
    start = info.data.start
    assert load_case(chip, start - 0x3C) in (
        f"0x{start - 0x3C:08x}-0x{start + 4:08x} invalid: overlaps bootloader data",
        f"0x{start - 0x3C:08x}-0x{start + 4:08x} invalid: overlaps bootloader stack",
    )
    end = memory.dram.end
    words = f"0x{end - 0x20:08x}-0x{end + 0x20:08x} invalid: bad load address range"
    assert load_case(chip, end - 0x20) == words
    for region in memory.plain:
        assert load_case(chip, region.start) is None
        assert load_case(chip, region.end - 0x40) is None


@by_chip
def test_loader_code_is_defended_on_its_own_bus_and_at_its_alias(chip: Chip) -> None:
    memory, loader = memory_map(chip.name), info_of(chip).loader_iram
    words = f"0x{loader.start:08x}-0x{loader.start + 0x40:08x} invalid: overlaps loader IRAM"
    if memory.is_one_bus:  # there it is DRAM first, of which only stack and data are defended
        verdict = verify(make_app(chip, [(loader.start, b"\0" * 0x40)]), info_of(chip))
        assert [fault.cause for fault in verdict.faults] == [Cause.OVERWRITES_LOADER]
        assert verdict.never_returns
        assert load_case(chip, loader.start - 0x40) is None
        assert load_case(chip, loader.end) is None
    elif chip.name == "esp32":  # the cache of the other core: no app may load there at all
        assert load_case(chip, loader.start) == words.replace(
            "overlaps loader IRAM", "bad load address range"
        )
    else:
        assert load_case(chip, loader.start) == words
        assert load_case(chip, memory.to_dram(loader.start)) == words  # said of the alias
        data = info_of(chip).data
        alias = memory.to_iram(data.start)
        assert load_case(chip, alias) in (
            f"0x{data.start:08x}-0x{data.start + 0x40:08x} invalid: overlaps bootloader data",
            f"0x{data.start:08x}-0x{data.start + 0x40:08x} invalid: overlaps bootloader stack",
        )


def test_esp32_reverses_the_words_of_its_alias_and_grew_iram_in_v5_1() -> None:
    """0x3fff8000 lies at 0x400a7ffc downwards; v5.1 counts that as IRAM, v5.0 does not."""
    app = make_app(ESP32, [(0x3FFF8000, b"\0" * 0x40)])
    assert refused(app) == ("Segment 3 0x400a7fbc-0x400a7ffc invalid: bad load address range")
    assert verify(app, info_of(ESP32, idf_version="v5.2")).is_bootable
    unnamed = info_of(ESP32, texts=b"image at 0x%lx has invalid magic byte")
    assert verify(app, unnamed).is_bootable


def test_a_unicore_bootloader_lets_apps_use_the_other_cores_cache() -> None:
    unicore = info_of(ESP32, texts=b"Unicore bootloader")
    assert refused(make_app(ESP32, [(0x40078000, b"\0" * 8)]), unicore) == (
        "Segment 3 0x40078000-0x40078008 invalid: overlaps loader IRAM"
    )
    assert verify(make_app(ESP32, [(0x4007C000, b"\0" * 8)]), unicore).is_bootable


@pytest.mark.parametrize("address", [0, 4, 0x0FFFFFFF])
def test_padding_segments_are_not_loaded(address: int) -> None:
    assert verify(make_app(ESP32, [(address, b"\0" * 8)]), info_of(ESP32)).is_bootable


@pytest.mark.parametrize("address", [0x20000000, 0x60000000, 0x7FFFFFF8, 0x80000000, 0xFFFFFFF8])
def test_addresses_that_are_no_memory_are_refused(address: int) -> None:
    end = (address + 16) & 0xFFFFFFFF
    assert refused(make_app(ESP32, [(address, b"\0" * 16)])) == (
        f"Segment 3 0x{address:08x}-0x{end:08x} invalid: bad load address range"
    )


def test_a_segment_without_bytes_may_have_any_address() -> None:
    assert verify(make_app(ESP32, [(0x3FFF0000, b"")]), info_of(ESP32)).is_bootable


def test_sixteen_segments_are_the_limit() -> None:
    extra = [(0, b"\0" * 4)] * 13
    assert verify(make_app(ESP32, extra), info_of(ESP32)).is_bootable
    assert refused(make_app(ESP32, [*extra, (0, b"")])) == (
        "image at 0x10000 segment count 17 exceeds max 16"
    )


def patched(offset: int, data: bytes) -> bytes:
    app = bytearray(make_app(ESP32))
    app[offset : offset + len(data)] = data
    return with_digest(app)


@pytest.mark.parametrize(
    ("image", "words", "cause"),
    [
        (
            b"\xff" * 64,
            "image at 0x10000 has invalid magic byte (nothing flashed here?)",
            Cause.MAGIC,
        ),
        (
            patched(28, struct.pack("<I", 0x1000000)),
            "invalid segment length 0x1000000",
            Cause.SEGMENT_LENGTH,
        ),
        (
            patched(28, struct.pack("<I", 0x101)),
            "invalid segment length 0x101",
            Cause.SEGMENT_LENGTH,
        ),
        (
            patched(24, struct.pack("<I", 0x3F400024)),
            "Segment 0 load address 0x3f400024, doesn't match data 0x00010020",
            Cause.MAP_ALIGNMENT,
        ),
        (
            make_app(ESP32)[:24],
            "invalid segment length 0xffffffff",
            Cause.SEGMENT_LENGTH,
        ),
        (make_app(ESP32)[:-40], "Checksum failed. Calculated 0xef read 0xff", Cause.CHECKSUM),
        (make_app(ESP32)[:-1], "Image hash failed - image is corrupt", Cause.DIGEST),
    ],
)
def test_the_words_of_each_rule(image: bytes, words: str, cause: Cause) -> None:
    verdict = verify(image, info_of(ESP32))
    assert verdict.console == (f"esp_image: {words}",)
    assert [fault.cause for fault in verdict.faults] == [cause]


def test_a_flipped_bit_in_the_data_fails_the_checksum_first() -> None:
    app = bytearray(make_app(ESP32))
    app[0x100] ^= 0x10
    stored = app[-33]
    words = f"Checksum failed. Calculated 0x{stored ^ 0x10:x} read 0x{stored:x}"
    assert refused(bytes(app)) == words
    assert refused(bytes(app), is_boot=False) == words  # set_boot() finds it as well
    app[-33] ^= 0x10
    assert refused(bytes(app)) == "Image hash failed - image is corrupt"
    assert verify(with_digest(app), info_of(ESP32)).is_bootable


def test_an_image_without_a_digest_needs_none() -> None:
    app = make_app(ESP32, has_digest=False)
    assert verify(app, info_of(ESP32)).is_bootable
    assert verify(app, info_of(ESP32)).image_size == len(app)


def test_an_image_as_large_as_the_slot_fits_and_one_byte_more_does_not() -> None:
    app = make_app(ESP32)
    assert verify(app, info_of(ESP32), size=len(app)).is_bootable
    assert refused(app, size=len(app) - 1) == (
        f"Image length {len(app)} doesn't fit in partition length {len(app) - 1}"
    )


def test_a_partition_above_16_mib_is_refused_where_the_bootloader_says_so() -> None:
    app = make_app(ESP32)
    words = "partition size 0x1000001 invalid, larger than 16MB"
    assert refused(app, size=0x1000001) == words
    newer = known_bootloader(chip_by_name("esp32s3"))
    assert verify(make_app(newer.chip), newer, size=0x1000001).is_bootable


def test_an_image_at_an_odd_offset_cannot_be_read() -> None:
    with VirtualFlash.create(0x20000) as flash:
        verdict = verify_image(flash, 0x10002, 0x1000, info_of(ESP32))
    words = "bootloader_flash: bootloader_flash_read src_addr 0x10002 not 4-byte aligned"
    assert verdict.console == (words,)


def test_a_segment_behind_the_flash_is_read_as_unmapped() -> None:
    app = patched(28, struct.pack("<I", 0x100000))
    assert refused(app) == "invalid segment length 0xbaadbaad"
    alone = bytearray(app)
    alone[1] = 1
    for odd in (0, 4):  # bytes behind the flash: the XOR of an odd number of 0xbaadbaad
        struct.pack_into("<I", alone, 28, 0x100000 + odd)
        in_flash = bytes(alone[32:]).ljust(0x40000 - SLOT - 32, b"\xff")
        behind = 32 + 0x100000 + odd - (0x40000 - SLOT)
        calculated = xor_bytes(in_flash) ^ 0xEF ^ xor_bytes(b"\xad\xba\xad\xba" * (behind // 4))
        assert refused(bytes(alone)) == f"Checksum failed. Calculated 0x{calculated:x} read 0xba"


def test_a_segment_of_gigabytes_is_not_read_to_find_that_nothing_follows() -> None:
    """The ESP32-S3's newer bootloaders have no limit of 16 MiB."""
    chip = chip_by_name("esp32s3")
    app = bytearray(make_app(chip))
    struct.pack_into("<I", app, 28, 0xFF03EE40)
    words = "invalid segment length 0xff03ee40"
    assert refused(bytes(app), info_of(chip)) == words
    assert refused(bytes(app), known_bootloader(chip)).startswith("Checksum failed. ")


# Chip and revisions


def test_another_chips_image() -> None:
    words = "boot_comm: mismatch chip ID, expected 0, found 5"
    assert refused(make_app(ESP32C3)) == words


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (b"Image requires chip rev", "Image requires chip rev >= v3.1, but chip is v1.0"),
        (
            b"chip revision check failed",
            "chip revision check failed. Required >= v3.1, found v1.0.",
        ),
    ],
)
def test_the_minimum_revision_in_the_words_of_the_release(texts: bytes, words: str) -> None:
    file = info_of(ESP32, texts=texts, min_rev=100)
    assert verify(make_app(ESP32, min_rev=301), file).is_bootable  # there are chips that run it
    assert not verify(make_app(ESP32, max_rev=99), file).is_bootable  # and none that runs this
    info = dataclasses.replace(file, is_chip_known=True)
    assert refused(make_app(ESP32, min_rev=301), info) == f"boot_comm: {words}"
    assert verify(make_app(ESP32, min_rev=100), info).is_bootable
    assert refused(make_app(ESP32, max_rev=99), info) == "boot_comm: " + words.replace(
        ">= v3.1", "<= v0.99"
    )
    for unset in (0, 0xFFFF, 100):
        assert verify(make_app(ESP32, max_rev=unset), info).is_bootable


def test_the_oldest_releases_know_major_revisions_only() -> None:
    file = info_of(ESP32, texts=b"is configured for minimum revision %d")
    info = dataclasses.replace(file, is_chip_known=True)
    app = bytearray(make_app(ESP32))
    app[14] = 3
    assert verify(with_digest(app), file).is_bootable
    assert refused(with_digest(app), info) == (
        "boot_comm: This chip is revision 0 but the application is configured for minimum "
        "revision 3. Can't run."
    )


def test_without_a_bootloader_in_hand_no_revision_is_refused() -> None:
    assert verify(make_app(ESP32, min_rev=301), known_bootloader(ESP32)).is_bootable


def desc_app(chip: Chip, **fields: int) -> bytes:
    desc = bytearray(APP_DESC)
    struct.pack_into("<HHB", desc, 176, fields.get("low", 0), fields.get("high", 0), 0)
    desc[180] = fields.get("page", 0)
    struct.pack_into("<I", desc, 0, fields.get("magic", 0xABCD5432))
    (address, _), *rest = app_segments(chip)
    return make_image(chip, [(address, bytes(desc)), *rest])


def test_the_efuse_block_revision_counts_where_the_release_checks_it() -> None:
    info = info_of(ESP32C3, texts=b"Image requires efuse blk rev >= v%lu.%lu")
    on_v1_2 = dataclasses.replace(info, block_revision=102)
    assert refused(desc_app(ESP32C3, low=103), on_v1_2) == (
        "boot_comm: Image requires efuse blk rev >= v1.3, but chip is v1.2"
    )
    assert refused(desc_app(ESP32C3, high=101), on_v1_2) == (
        "boot_comm: Image requires efuse blk rev <= v1.1, but chip is v1.2"
    )
    assert verify(desc_app(ESP32C3, low=103), info).is_bootable  # a file's chip is not known
    older = dataclasses.replace(info_of(ESP32C3), block_revision=102)
    assert verify(desc_app(ESP32C3, low=103), older).is_bootable


def test_the_app_description_is_demanded_where_the_mmu_page_size_is_read_from_it() -> None:
    texts = b"Failed to fetch app description header!"
    words = "Failed to fetch app description header!"
    newer = info_of(ESP32C6, texts=texts)
    assert refused(desc_app(ESP32C6, magic=0), newer) == words
    assert verify(desc_app(ESP32C6, magic=0), info_of(ESP32C6)).is_bootable
    assert refused(make_bootloader(ESP32C6), newer) == words  # before any address is looked at
    # Pages of 32 KiB: what is off by half a page of 64 KiB fits.
    off = bytearray(desc_app(ESP32C6, page=15))
    struct.pack_into("<I", off, 24, 0x42008020)
    assert verify(with_digest(off), newer).is_bootable
    off[32 + 180] = 16
    off[-33] ^= 15 ^ 16
    assert "load address 0x42008020, doesn't match data 0x00010020" in refused(
        with_digest(off), newer
    )


@pytest.mark.parametrize(
    ("page", "fits"),
    [
        (0, False),  # an older release's app: pages of 64 KiB
        (12, True),
        (15, True),
        (16, False),
        (31, False),
        (32, True),  # 1 << 32 is 1 to a RISC-V core
        (47, True),
        (48, False),
        (255, False),  # 1 << 31
    ],
)
def test_the_page_size_is_the_apps_own_shifted_as_the_chip_shifts(page: int, fits: bool) -> None:
    """verify_segment_header: a segment that stands half a page of 64 KiB off."""
    newer = info_of(ESP32C6, texts=b"Failed to fetch app description header!")
    off = bytearray(desc_app(ESP32C6, page=page))
    struct.pack_into("<I", off, 24, 0x42008020)
    verdict = verify(with_digest(off), newer)
    assert verdict.is_bootable == fits
    assert fits or verdict.faults[0].cause is Cause.MAP_ALIGNMENT


@pytest.mark.parametrize(
    ("chip_name", "page", "offset", "boots"),
    [
        ("esp32c6", 15, 0x7E0000, True),
        ("esp32c6", 15, 0x800000, False),
        ("esp32c6", 14, 0x400000, False),
        ("esp32c6", 16, 0x800000, True),
        ("esp32h2", 15, 0x800000, False),
        ("esp32h2", 14, 0x3E0000, True),
        ("esp32h2", 14, 0x400000, False),
        ("esp32c61", 15, 0x800000, True),
        ("esp32c61", 14, 0x800000, False),
    ],
)
def test_small_mmu_pages_reach_only_the_lower_flash(
    chip_name: str, page: int, offset: int, boots: bool
) -> None:
    """mmu_ll_check_valid_paddr_region: beyond it the bootloader aborts, after all its checks."""
    chip = chip_by_name(chip_name)
    newer = info_of(chip, texts=b"Failed to fetch app description header!")
    image = desc_app(chip, page=page)
    with VirtualFlash.create(0x1000000, {offset: image}) as flash:
        verdict = verify_image(flash, offset, SLOT_SIZE, newer)
        assert set_boot_error(flash, offset, SLOT_SIZE, newer) == 0
    assert verdict.is_bootable == boots
    assert verdict.console == ()
    assert boots or verdict.faults[0].cause is Cause.MMU_PAGES


@pytest.mark.parametrize(
    ("flash_code", "page", "boots"), [(2, 15, False), (2, 14, False), (2, 16, True), (1, 15, True)]
)
def test_the_c2_maps_no_pages_smaller_than_those_of_its_bootloader(
    flash_code: int, page: int, boots: bool
) -> None:
    """mmu_ll_write_entry: an entry beyond the last. Flash codes 1 and 2 are 2 and 4 MiB."""
    chip = chip_by_name("esp32c2")
    texts = b"Failed to fetch app description header!"
    info = info_of(chip, texts=texts, spi_size=flash_code)
    verdict = verify(desc_app(chip, page=page), info)
    assert verdict.is_bootable == boots
    assert verdict.never_returns != boots


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        (0x3FFAE000, Cause.OVERWRITES_ROM_DATA),
        (0x3FFAE6DC, Cause.OVERWRITES_ROM_DATA),
        (0x3FFAE6E0, None),
    ],
)
def test_an_esp32_app_over_the_data_of_the_rom_hangs_the_bootloader(
    address: int, cause: Cause | None
) -> None:
    verdict = verify(make_app(ESP32, [(address, b"\0" * 0x40)]), info_of(ESP32))
    assert [fault.cause for fault in verdict.faults] == ([cause] if cause else [])


@pytest.mark.parametrize("top", [0x4084EA70, 0x4084E670])
def test_the_stack_of_the_c61_lies_64_kib_above_the_loader_in_hand(top: int) -> None:
    """It moved within v5.5 and v6.0, and the loader with it."""
    chip = chip_by_name("esp32c61")
    shift = top - memory_map("esp32c61").rom_stack_start
    segments = [(a + shift, d) for a, d in bootloader_segments(chip)]
    info = bootloader_info(make_image(chip, segments, entry_addr=segments[1][0]))
    assert info.stack.end == top


def test_what_stands_at_the_bootloaders_own_address_is_checked_as_a_bootloader() -> None:
    """esp_image_format.c: is_bootloader. It needs no app description, and no digest that fits."""
    chip = ESP32C6
    newer = info_of(chip, texts=b"Failed to fetch app description header!")
    edited = bytearray(desc_app(chip, magic=0))
    edited[-1] ^= 1
    at = chip.bootloader_offset
    with VirtualFlash.create(0x40000, {at: bytes(edited), SLOT: bytes(edited)}) as flash:
        assert verify_image(flash, at, SLOT_SIZE, newer).is_bootable
        assert verify_image(flash, SLOT, SLOT_SIZE, newer).faults[0].cause is Cause.APP_DESC


# The public pieces


def test_every_collision_of_an_image_can_be_listed() -> None:
    merged = make_bootloader(ESP32C3)
    faults = address_faults(Image.from_bytes(merged).segments, bootloader_info(merged))
    assert [(f.cause, f.values["segment"]) for f in faults] == [
        (Cause.OVERLAPS_STACK, 0),
        (Cause.OVERLAPS_LOADER, 2),
    ]
    assert (
        address_faults(Image.from_bytes(make_app(ESP32C3)).segments, known_bootloader(ESP32C3))
        == ()
    )


def test_a_bootloader_without_texts_is_taken_for_one_of_the_newest_release() -> None:
    info = info_of(ESP32C6, texts=b"")
    known = known_bootloader(ESP32C6)
    assert info.rules == known.rules
    assert info.data != known.data  # its segments are its own
    assert refused(desc_app(ESP32C6, magic=0), info) == "Failed to fetch app description header!"
    assert verify(make_app(ESP32, [(0x3FFF8000, b"\0" * 8)]), info_of(ESP32, texts=b"")).is_bootable


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, make_bootloader(ESP32)[:-1]])
def test_what_is_no_whole_bootloader_is_an_error(data: bytes) -> None:
    with pytest.raises(MpotaError):
        bootloader_info(data)


@settings(max_examples=200, deadline=None)
@given(
    chip=st.sampled_from(CHIPS),
    edits=st.lists(st.tuples(st.integers(0, 420), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 600),
)
def test_no_image_raises_anything_and_what_is_damaged_is_refused(
    chip: Chip, edits: list[tuple[int, int]], cut: int
) -> None:
    app = make_app(chip)
    broken = bytearray(app)
    for offset, value in edits:
        broken[offset % len(app)] = value
    image = bytes(broken[: max(1, len(app) - cut)])
    verdict = verify(image, info_of(chip))
    seen = image.ljust(len(app), b"\xff")
    if verdict.is_bootable and seen != app:
        assert seen[23] != app[23]  # only the flag that there is a digest takes it away
    assert all(line.isascii() for line in verdict.console)


# The real ones

REAL = {
    "esp32": "Segment 0 0x3fff0040-0x3fff18a0 invalid: overlaps bootloader data",
    "esp32c2": "Failed to fetch app description header!",
    "esp32c3": "Segment 0 0x3fcd5830-0x3fcd6d6c invalid: overlaps bootloader stack",
    "esp32c5": "Segment 0 0x408556c0-0x40856c60 invalid: overlaps bootloader stack",
    "esp32c6": "Failed to fetch app description header!",
    "esp32c61": "Failed to fetch app description header!",
    "esp32h2": "Failed to fetch app description header!",
    "esp32p4-v0": "Segment 0 0x4ff33ce0-0x4ff351e4 invalid: overlaps bootloader stack",
    "esp32p4-v3": "Segment 0 0x4ffb60d0-0x4ffb75d8 invalid: overlaps bootloader stack",
    "esp32s2": "Segment 0 0x3ffe5110-0x3ffe66a0 invalid: overlaps bootloader data",
    "esp32s3": "Segment 0 0x3fce2820-0x3fce3cf0 invalid: overlaps bootloader stack",
}
FIRMWARE = {
    "esp32 v1.25.0": (0xF000, "Segment 0 0x3fff0030-0x3fff134c invalid: overlaps bootloader data"),
    "esp32": (
        0xF000,
        "Segment 0 0x3fff0030-0x3fff12a8 invalid: overlaps bootloader data",
    ),
    "esp32s3": (
        0x10000,
        "Segment 0 0x3fce2820-0x3fce3694 invalid: overlaps bootloader stack",
    ),
    "esp32c3": (
        0x10000,
        "Segment 0 0x3fcd5820-0x3fcd66ac invalid: overlaps bootloader stack",
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_bootloader_refuses_itself_in_its_own_words(name: str) -> None:
    path = SHARED / "bootloaders" / f"{name}-bootloader.bin"
    skip_unless(path)
    data = path.read_bytes()
    info = bootloader_info(data)
    assert refused(data, info) == REAL[name]
    minimum = Image.from_bytes(data).header.min_chip_rev_full
    assert refused(data, known_bootloader(info.chip, minimum)) == REAL[name]
    assert address_faults(Image.from_bytes(data).segments, info)[0].values["segment"] == 0
    known = known_bootloader(info.chip, minimum)
    assert (info.data.start, info.loader_iram.start) == (
        known.data.start,
        known.loader_iram.start,
    )
    assert info.data.end <= known.data.end
    assert info.loader_iram.end <= known.loader_iram.end


@pytest.mark.parametrize("name", FIRMWARE)
def test_real_firmware_is_refused_merged_and_accepted_as_an_app(name: str) -> None:
    merged = real_firmware(name).read_bytes()
    app_start, words = FIRMWARE[name]
    info = bootloader_info(merged)
    for image, console in ((merged, (f"esp_image: {words}",)), (merged[app_start:], ())):
        with VirtualFlash.create(0x400000, {SLOT: image}) as flash:
            verdict = verify_image(flash, SLOT, 0x200000, info)
        assert verdict.console == console
    assert info.data.start % 0x10 == 0
    assert info.data.start < int(words[10:20], 16)  # .bss lies in front of what is loaded
