"""App and bootloader images: read and written to the byte, or refused if they are broken."""

from __future__ import annotations

import hashlib
import random
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpota.bootloader.check import check_app, check_flash
from mpota.errors import MpotaError, UsageError
from mpota.firmware import sample
from mpota.firmware.describe import describe
from mpota.firmware.firmware import Firmware, read_app
from mpota.formats.chips import CHIPS, FLASH_SIZES, Chip, chip_by_name
from mpota.formats.image import HEADER_SIZE, Image, ImageHeader, xor_bytes
from mpota.storage.file import FileImage

from tests.support import amount
from tests.support.bootloader_images import make_app, make_bootloader
from tests.support.firmware_files import small_app, small_firmware
from tests.support.images import make_image

ESP32 = chip_by_name("esp32")
APP = make_app(ESP32)
EACH_CHIP = pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)


@EACH_CHIP
def test_a_header_survives_a_round_trip(chip: Chip) -> None:
    app = small_app(chip.name)
    header = ImageHeader.from_bytes(app)
    assert header.to_bytes() == app[:HEADER_SIZE]
    assert header.chip is chip


@given(st.binary(min_size=23, max_size=23))
def test_any_header_survives_a_round_trip(fields: bytes) -> None:
    data = b"\xe9" + fields
    assert ImageHeader.from_bytes(data).to_bytes() == data


@given(
    st.lists(
        st.tuples(st.integers(0, 0xFFFFFFFF), st.binary(max_size=80)), min_size=1, max_size=16
    ),
    st.booleans(),
    st.binary(max_size=40),
)
@settings(deadline=None)
def test_any_image_is_read_as_it_was_written(
    segments: list[tuple[int, bytes]], has_digest: bool, behind: bytes
) -> None:
    padded = [(address, data + bytes(-len(data) % 4)) for address, data in segments]
    data = make_image(ESP32, padded, has_digest=has_digest)
    image = Image.from_bytes(data + behind)
    assert image.data == data
    assert [(s.load_addr, bytes(image.segment_data(s))) for s in image.segments] == padded
    image.check()


@given(st.binary(max_size=9000))
def test_the_folded_checksum_is_the_xor_of_all_bytes(data: bytes) -> None:
    expected = 0
    for byte in data:
        expected ^= byte
    assert xor_bytes(data) == expected


@EACH_CHIP
@pytest.mark.parametrize("size", FLASH_SIZES)
def test_another_flash_size_changes_one_byte_and_the_digest(chip: Chip, size: int) -> None:
    old = Image.from_bytes(sample.build_bootloader(chip))
    new = old.with_flash_size(size)
    new.check()
    assert new.header.flash_size == size
    assert new.data[:3] + new.data[4:-32] == old.data[:3] + old.data[4:-32]
    assert new.data[3] & 0xF == old.data[3] & 0xF
    assert new.data[-32:] == hashlib.sha256(new.data[:-32]).digest()
    assert Image.from_bytes(new.data) == new


@pytest.mark.parametrize("size", [0, 1, 3 << 20, 256 << 20, -(4 << 20)])
def test_a_flash_size_that_no_header_can_say_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match="is none that ESP32 images know"):
        Image.from_bytes(APP).with_flash_size(size)


def header_with(position: int, *values: int) -> bytes:
    return APP[:position] + bytes(values) + APP[position + len(values) :]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "image is 0 bytes"),
        (APP[:23], "image is 23 bytes, its header alone has 24"),
        (b"\xea" + APP[1:], "starts with 0xea"),
        (header_with(1, 0), "segment count 0"),
        (header_with(1, 17), "segment count 17, allowed are 1 to 16"),
        (header_with(12, 99), "chip id 99"),
        (header_with(28, 0, 0, 0, 1), "invalid segment length 0x1000000, it must be below 16 MiB"),
        (header_with(28, 1), "a multiple of 4"),
        (APP[:24], "truncated: 24 bytes"),
        (APP[:31], "truncated"),
        (APP[:100], "truncated"),
        (APP[:-1], "truncated"),
        (APP[:-32], "truncated"),
        (header_with(1, 16), "truncated"),
    ],
)
def test_a_broken_structure_is_refused_with_the_value_found(data: bytes, words: str) -> None:
    with pytest.raises(MpotaError) as error:
        Image.from_bytes(data)
    assert words in str(error.value)


def test_no_byte_of_an_app_image_can_change_unseen() -> None:
    for position in range(len(APP)):
        for mask in (0x01, 0x80, 0xFF):
            changed = bytearray(APP)
            changed[position] ^= mask
            with pytest.raises(MpotaError):
                read_app(bytes(changed), "app.bin")


def test_an_app_without_digest_is_read_but_not_one_that_lost_the_word_of_it() -> None:
    plain = make_app(ESP32, has_digest=False)
    assert read_app(plain, "app.bin").to_bytes() == plain
    lost = bytearray(APP)
    lost[23] = 0
    with pytest.raises(MpotaError, match="bytes follow"):
        read_app(bytes(lost), "app.bin")


@pytest.mark.parametrize("at", [0, 1, 24, 100, 0x7000, 0x7020, 0x8000, 0xF000, 0xF018])
def test_a_firmware_cut_anywhere_is_refused(at: int) -> None:
    with pytest.raises(MpotaError):
        Firmware.from_bytes(small_firmware()[:at])


def described(data: bytes, name: str) -> None:
    """`describe`, with what is wrong raised."""
    for problem in describe(data, name).problems:
        raise problem


def test_mutated_images_raise_nothing_but_the_projects_errors() -> None:
    rng = random.Random(3)
    for number in range(amount.some(10_000)):
        chip = rng.choice(CHIPS)
        image = bytearray(rng.choice((make_app, make_bootloader))(chip))[
            : 0x600 if number % 5 else None
        ]
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(min(len(image), 64 if number % 2 else len(image)))
            image[at : at + rng.randrange(1, 5)] = rng.randbytes(rng.randrange(1, 5))
        data = bytes(image)
        for read in (described, read_app):
            with pytest.raises(MpotaError):
                read(data, "mutated")
        if number % 20 == 0:
            with suppress(MpotaError):
                assert not check_app(data).is_ok


def test_mutated_firmware_raises_nothing_but_the_projects_errors() -> None:
    rng = random.Random(4)
    good = small_firmware()
    places = [*range(0, 32), *range(0x7000, 0x7100), *range(0xF000, 0xF140)]
    for _ in range(amount.some(400)):
        firmware = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            firmware[rng.choice(places)] ^= 1 << rng.randrange(8)
        data = bytes(firmware)
        if data == good:
            continue
        with pytest.raises(MpotaError):
            described(data, "mutated")
        if data[0] == 0xE9:
            assert not check_flash(FileImage(0x1000, data)).is_ok
