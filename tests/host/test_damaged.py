"""`mpota show` of a damaged firmware: what can be read, then what is wrong, and exit code 1."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from mpota.edit.change import apply_to_file
from mpota.edit.resizing import resize
from mpota.firmware.firmware import Firmware
from mpota.firmware.layout import Edits
from mpota.firmware.sample import build_firmware
from mpota.formats.otadata import OtaRecord, OtaState
from mpota.units import SECTOR_SIZE

from tests.support.firmware_files import Run, run

BASE, TABLE, OTADATA, OTA_0 = 0x1000, 0x8000, 0xD000, 0x10000
CHIP = "chip:       ESP32\nflash:      4MB, DIO, 40m\n"
BOOTLOADER = "bootloader: ESP-IDF v5.4.2, 19,552 bytes at 0x1000, digest valid\n"
APP = "app:        ota_0, MicroPython v1.26.1 (2025-09-11), ESP-IDF v5.4.2\n"
BROKEN = "broken:     ota_0, MicroPython v1.26.1 (2025-09-11), ESP-IDF v5.4.2\n"
ROWS = ("nvs", "otadata", "phy_init", "ota_0", "ota_1", "vfs")


def made() -> bytes:
    firmware = Firmware.from_bytes(build_firmware("esp32"), "firmware.bin")
    return apply_to_file(firmware, resize(firmware, Edits(arrange="ota")))


WHOLE = made()
IMAGE = Firmware.from_bytes(WHOLE, "firmware.bin").layout()
SEGMENTS = [
    (s.data_offset, s.data_size)
    for s in Firmware.from_bytes(WHOLE, "x").app(IMAGE.table["ota_0"]).image.segments
]
END = BASE + len(WHOLE)


def show(tmp_path: Path, data: bytes, *options: str) -> Run:
    (tmp_path / "x.bin").write_bytes(data)
    shown = run("show", tmp_path / "x.bin", *options)
    assert shown.code == 1, shown.out
    assert "Traceback" not in shown.err
    return shown


def changed(at: int, *values: int) -> bytes:
    """With these bytes at a flash address; without any, the one there is inverted."""
    data = bytearray(WHOLE)
    new = bytes(values) or bytes([data[at - BASE] ^ 0xFF])
    data[at - BASE : at - BASE + len(new)] = new
    return bytes(data)


def rows(out: str) -> tuple[str, ...]:
    """The partitions of the table that is shown."""
    words = [line.split() for line in out.splitlines() if re.match(r"  \S", line)]
    return tuple(line[0] for line in words if len(line) > 4 and line[3].startswith("0x"))


def test_a_whole_firmware_is_shown_with_exit_code_0(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(WHOLE)
    shown = run("show", tmp_path / "x.bin")
    assert (shown.code, shown.err) == (0, "")
    assert all(text in shown.out for text in (CHIP, BOOTLOADER, APP))
    assert rows(shown.out) == ROWS


@pytest.mark.parametrize("end", [0x1001, 0x1017])
def test_cut_in_the_first_header_nothing_can_be_read(tmp_path: Path, end: int) -> None:
    shown = show(tmp_path, WHOLE[: end - BASE])
    assert f"image is {end - BASE} bytes, its header alone has 24" in shown.err


@pytest.mark.parametrize("end", [0x1018, 0x1020, 0x1100, 0x3000, BASE + 19_551])
def test_cut_in_the_bootloader_its_header_is_shown(tmp_path: Path, end: int) -> None:
    shown = show(tmp_path, WHOLE[: end - BASE])
    assert CHIP in shown.out
    assert f"bootloader: image is truncated: {end - BASE:,} bytes" in shown.err


@pytest.mark.parametrize("end", [BASE + 19_552, 0x7FFF, TABLE])
def test_cut_before_the_table_the_bootloader_is_shown(tmp_path: Path, end: int) -> None:
    shown = show(tmp_path, WHOLE[: end - BASE])
    assert CHIP + BOOTLOADER in shown.out
    assert f"ends at flash offset {end:#x}, before the partition table" in shown.err


@pytest.mark.parametrize(
    ("end", "count"), [(0x8001, 0), (0x8020, 1), (0x8040, 2), (0x80C0, 6), (0x80DF, 6)]
)
def test_cut_in_the_table_the_entries_before_are_shown(
    tmp_path: Path, end: int, count: int
) -> None:
    shown = show(tmp_path, WHOLE[: end - BASE])
    assert CHIP + BOOTLOADER in shown.out
    assert rows(shown.out) == ROWS[:count]
    assert f"ends at flash offset {end:#x}, in the partition table" in shown.err


@pytest.mark.parametrize("end", [0x80E0, 0x9000, OTADATA, OTADATA + SECTOR_SIZE, OTA_0])
def test_cut_before_the_app_the_table_is_shown(tmp_path: Path, end: int) -> None:
    shown = show(tmp_path, WHOLE[: end - BASE])
    assert CHIP + BOOTLOADER in shown.out
    assert rows(shown.out) == ROWS
    assert f"ota_0: the file ends at flash offset {end:#x}, before it" in shown.err


@pytest.mark.parametrize("number", range(len(SEGMENTS)))
@pytest.mark.parametrize("place", ["before its header", "behind it", "in its data"])
def test_cut_in_a_segment_the_app_s_version_is_shown_and_what_is_whole(
    tmp_path: Path, number: int, place: str
) -> None:
    start, size = SEGMENTS[number]
    at = {"before its header": start - 8, "behind it": start, "in its data": start + size // 2}
    shown = show(tmp_path, WHOLE[: OTA_0 + at[place] - BASE])
    if number or place == "in its data":  # both stand in the first one
        assert BROKEN in shown.out
    assert f"            {number} of {len(SEGMENTS)} segments are whole\n" in shown.out
    assert rows(shown.out) == ROWS
    assert f"ota_0: image is truncated: {at[place]:,} bytes" in shown.err


@pytest.mark.parametrize("missing", [1, 32, 33])
def test_cut_in_the_digest_or_before_the_checksum_is_told(tmp_path: Path, missing: int) -> None:
    shown = show(tmp_path, WHOLE[:-missing])
    assert BROKEN in shown.out
    assert f"it goes on for at least {missing} more" in shown.err


def test_a_file_without_its_bootloader_is_shown_by_its_table(tmp_path: Path) -> None:
    shown = show(tmp_path, changed(BASE))
    assert "chip:       ESP32, as its app says\n" in shown.out
    assert APP in shown.out
    assert rows(shown.out) == ROWS
    assert "it is no firmware for a chip that is known" in shown.err


@pytest.mark.parametrize(
    ("at", "words"),
    [
        (0x100C, "image has chip id 255"),
        (0x101F, "bootloader: segment 0 has invalid segment length"),
        (0x1200, "bootloader: image: checksum is"),
        (BASE + 19_551, "bootloader: appended SHA-256 is ..."),
    ],
)
def test_of_a_damaged_bootloader_the_rest_is_shown(tmp_path: Path, at: int, words: str) -> None:
    shown = show(tmp_path, changed(at))
    assert APP in shown.out
    assert "blank:      ota_1" in shown.out
    assert rows(shown.out) == ROWS
    assert words in shown.err


@pytest.mark.parametrize(
    ("at", "gone", "words"),
    [
        (TABLE, "nvs", "partition table starts with 55"),
        (TABLE + 0x20, "otadata", "partition table entry 1 has magic 55"),
        (TABLE + 0x25, None, "partition table has MD5"),
        (TABLE + 0xD5, None, "partition table has MD5"),
    ],
)
def test_of_a_damaged_table_the_entries_that_can_be_read_are_shown(
    tmp_path: Path, at: int, gone: str | None, words: str
) -> None:
    shown = show(tmp_path, changed(at))
    assert CHIP + BOOTLOADER + APP in shown.out
    assert rows(shown.out) == tuple(row for row in ROWS if row != gone)
    assert words in shown.err


def test_a_blank_table_is_told(tmp_path: Path) -> None:
    shown = show(tmp_path, changed(TABLE, *(b"\xff" * 0xC00)))
    assert CHIP + BOOTLOADER in shown.out
    assert rows(shown.out) == ()
    assert "at 0x8000: partition table starts with ffff" in shown.err


@pytest.mark.parametrize("number", [0, 1])
def test_of_damaged_otadata_the_record_is_named(tmp_path: Path, number: int) -> None:
    record = OtaRecord.selecting(5, OtaState.VALID)._replace(crc=0x12345678).to_bytes()
    shown = show(tmp_path, changed(OTADATA + number * SECTOR_SIZE, *record))
    assert APP in shown.out
    assert f"otadata record {number} is damaged: its CRC is 0x12345678" in shown.err
    assert "mpota check tells what boots" in shown.err


def test_all_that_is_wrong_is_told(tmp_path: Path) -> None:
    shown = show(
        tmp_path, changed(OTADATA, *(bytes(range(32)).ljust(0x1000, b"\xff") + bytes(range(32))))
    )
    assert "otadata record 0 is damaged" in shown.err
    assert "otadata record 1 is damaged" in shown.err


SEGMENT_DAMAGE = {
    "length": "has invalid segment length",
    "address": "appended SHA-256 is",
    "data": "checksum is",
}


@pytest.mark.parametrize(
    ("number", "place"),
    [
        (number, place)
        for place in SEGMENT_DAMAGE
        for number, (_, size) in enumerate(SEGMENTS)
        if size or place != "data"
    ],
)
def test_of_a_damaged_segment_the_rest_is_shown(tmp_path: Path, number: int, place: str) -> None:
    start, size = SEGMENTS[number]
    words = SEGMENT_DAMAGE[place]
    at = OTA_0 + start + {"length": -1, "address": -8, "data": size // 2}[place]
    shown = show(tmp_path, changed(at))
    assert CHIP + BOOTLOADER + BROKEN in shown.out
    assert rows(shown.out) == ROWS
    assert words in shown.err
    if place == "length":
        assert f"{number} of {len(SEGMENTS)} segments are whole" in shown.out


@pytest.mark.parametrize(
    ("at", "words"),
    [(END - 33, "checksum is"), (END - 32, "appended SHA-256 is"), (END - 1, "SHA-256 is ...")],
)
def test_a_changed_checksum_or_digest_is_told(tmp_path: Path, at: int, words: str) -> None:
    shown = show(tmp_path, changed(at))
    assert BROKEN in shown.out
    assert words in shown.err


def test_json_tells_the_same(tmp_path: Path) -> None:
    start, _ = SEGMENTS[3]
    shown = show(tmp_path, WHOLE[: OTA_0 + start - BASE], "--json")
    found = json.loads(shown.out)
    (broken,) = found["broken"]
    assert broken["partition"] == "ota_0"
    assert broken["micropython"] == "v1.26.1"
    assert (broken["whole_segments"], broken["segments"]) == (3, len(SEGMENTS))
    assert broken["reason"].startswith("image is truncated")
    assert len(found["problems"]) == 1
