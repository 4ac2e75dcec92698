"""`mpota show`, `check`, `extract`, `write` and `table` on whole files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mpota.firmware import sample
from mpota.firmware.firmware import Firmware
from mpota.formats.chips import CHIPS, Chip, chip_by_name
from mpota.formats.image import Image
from mpota.formats.memory import memory_map
from mpota.formats.partition_csv import table_to_csv
from mpota.formats.partition_table import Partition, PartitionTable
from mpota.units import MiB

from tests.support.boot_truth import RECORDINGS, Case, cases
from tests.support.firmware_files import (
    OTA_TABLE,
    TABLE,
    assert_refused,
    run,
    small_app,
    small_firmware,
)
from tests.support.real_files import BOOTLOADERS, REAL, real_bootloader, real_firmware

ESP32_CASES = [case for one in RECORDINGS if one.chip == "esp32" for case in cases(one)]
EACH_CHIP = pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
EXPECTED_REAL = {
    "esp32": ("v1.23.0", "Generic ESP32 module with ESP32", 1_672_800),
    "esp32s3": ("v1.26.1", "Generic ESP32S3 module with ESP32S3", 1_669_920),
    "esp32c3": ("v1.22.2-dirty", "ESP32C3 module with ESP32C3", 1_848_416),
    "esp32 v1.25.0": ("v1.25.0", "Generic ESP32 module with ESP32", 1_640_800),
}


def show(path: Path) -> Any:
    result = run("show", path, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.mark.parametrize("name", REAL)
def test_show_tells_what_is_in_real_firmware(name: str) -> None:
    facts = show(real_firmware(name))
    version, board, size = EXPECTED_REAL[name]
    assert (facts["chip"], facts["flash_size"]) == (name.split()[0], 4 * MiB)
    assert facts["micropython"]["version"] == version
    assert facts["micropython"]["board"] == board
    assert (facts["app"]["size"], facts["app"]["digest_state"]) == (size, "valid")
    assert facts["bootloader"]["digest_state"] == "valid"
    text = run("show", real_firmware(name))
    for words in (version, board, f"{size:,} bytes", "factory", "0x10000", "DIO"):
        assert words in text.out


@EACH_CHIP
@pytest.mark.parametrize("is_dump", [False, True], ids=["merged", "dump"])
def test_show_as_json_has_names_as_strings_and_numbers_as_integers(
    chip: Chip, is_dump: bool, tmp_path: Path
) -> None:
    path = tmp_path / "firmware.bin"
    app = small_app(chip.name)
    path.write_bytes(sample.build_firmware(chip, table=TABLE, app=app, is_dump=is_dump))
    facts = show(path)
    assert facts["chip"] == chip.name
    assert facts["bootloader"]["offset"] == chip.bootloader_offset
    assert facts["bootloader"]["idf_version"] == "v5.4.2"
    assert facts["app"]["digest"] == app[-32:].hex()
    assert facts["partitions"][2] == {
        "label": "factory",
        "type": "app",
        "subtype": "factory",
        "offset": 0x10000,
        "size": 0x30000,
        "flags": 0,
    }


def test_show_takes_apps_and_tables_alone(tmp_path: Path) -> None:
    app, csv, table = (tmp_path / name for name in ("a.bin", "t.csv", "t.bin"))
    app.write_bytes(small_app("esp32c6"))
    csv.write_text(table_to_csv(OTA_TABLE))
    table.write_bytes(OTA_TABLE.to_bytes())
    assert show(app)["chip"] == "esp32c6"
    assert show(csv)["partitions"] == show(table)["partitions"]
    assert [p["label"] for p in show(csv)["partitions"]] == [p.label for p in OTA_TABLE]
    for path in (app, csv, table):
        assert run("show", path).code == 0


@pytest.mark.parametrize("case", ESP32_CASES, ids=str)
def test_check_says_what_the_real_bootloader_did(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "flash.bin"
    path.write_bytes(case.flash())
    result = run("check", path, "--json")
    verdict = json.loads(result.out)
    assert verdict["boots"] == case.starts
    assert tuple(verdict["console"]) == case.console
    if verdict["otadata_after"] is not None:
        assert tuple(verdict["otadata_after"]) == case.otadata_after
    assert result.code == (0 if case.starts else 1)


@pytest.mark.parametrize("name", BOOTLOADERS)
def test_a_merged_image_is_no_app_and_the_app_out_of_it_is_one(name: str, tmp_path: Path) -> None:
    chip = chip_by_name(name.split()[0])
    revision = 300 if chip.name == "esp32p4" and name.endswith("3") else None
    app = sample.build_app(chip, size=0x20000, min_chip_rev=revision)
    merged, extracted = tmp_path / "merged.bin", tmp_path / "app.bin"
    bootloader = real_bootloader(name)
    table = OTA_TABLE
    merged.write_bytes(sample.build_firmware(chip, table=table, app=app, bootloader=bootloader))
    for against in ([], ["--against", merged]):
        result = run("check", merged, "--as-app", "--json", *against)
        assert result.code == 1
        verdict = json.loads(result.out)
        assert verdict["boots"] is None
        if memory_map(chip.name).has_mmu_page_sizes:
            # This bootloader looks for the page size in the app description first.
            assert verdict["console"] == ["esp_image: Failed to fetch app description header!"]
        else:
            assert verdict["console"][0].startswith("esp_image: Segment 0 0x")
            assert "invalid: overlaps bootloader" in verdict["console"][0]
        assert "invalid: overlaps bootloader" in result.out
        assert "merged firmware" in verdict["findings"][0]["cause"]
        assert "mpota extract" in verdict["findings"][0]["remedy"]
    assert run("extract", merged, "-o", extracted).code == 0
    assert extracted.read_bytes() == app
    assert run("check", extracted, "--as-app", "--against", merged).code == 0
    assert run("check", extracted).code == 0
    wrong = run("write", merged, f"ota_1={merged}", "-o", tmp_path / "out.bin")
    assert_refused(wrong, 1)
    assert verdict["console"][0] in wrong.err
    assert not (tmp_path / "out.bin").exists()


def test_an_app_for_another_chip_is_refused(tmp_path: Path) -> None:
    firmware, app = tmp_path / "firmware.bin", tmp_path / "app.bin"
    firmware.write_bytes(small_firmware("esp32"))
    app.write_bytes(small_app("esp32c3"))
    result = run("write", firmware, f"factory={app}", "-o", tmp_path / "out.bin")
    assert_refused(result, 1)
    assert "ESP32-C3" in result.err
    assert run("check", app, "--against", firmware).code == 1


@EACH_CHIP
def test_what_was_written_is_what_is_extracted(chip: Chip, tmp_path: Path) -> None:
    firmware, out = tmp_path / "firmware.bin", tmp_path / "out.bin"
    data = small_firmware(chip.name)
    firmware.write_bytes(data)
    new = {"nvs": b"n" * 0x6000, "factory": small_app(chip.name, "v1.27.0"), "vfs": b"files"}
    for name, content in new.items():
        (tmp_path / name).write_bytes(content)
    done = run("write", firmware, *(f"{n}={tmp_path / n}" for n in new), "-o", out)
    assert done.code == 0, done.err
    assert firmware.read_bytes() == data
    for name, content in new.items():
        part = tmp_path / f"{name}.out"
        assert run("extract", out, name, "--trim", "-o", part).code == 0
        assert part.read_bytes() == content
    assert run("extract", out, "nvs", "-o", tmp_path / "full").code == 0
    assert len((tmp_path / "full").read_bytes()) == 0x6000
    written = Firmware.open(out)
    assert written.table == TABLE
    assert written.bootloader == Firmware.from_bytes(data).bootloader
    assert run("check", out).code == 0


def test_content_that_does_not_fit_is_refused_with_the_numbers(tmp_path: Path) -> None:
    firmware, big = tmp_path / "firmware.bin", tmp_path / "big"
    firmware.write_bytes(small_firmware())
    big.write_bytes(b"x" * 0x6001)
    for name in ("nvs", "phy_init"):
        result = run("write", firmware, f"{name}={big}")
        assert_refused(result, 1)
        assert "24,577 bytes" in result.err
    big.write_bytes(sample.build_app("esp32", size=0x30010))
    assert_refused(run("write", firmware, f"factory={big}"), 1)
    assert_refused(run("write", firmware, f"nothing={big}"), 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big", "firmware.bin"]


def test_a_new_bootloader_is_set_to_the_flash_size_of_the_firmware(tmp_path: Path) -> None:
    firmware, new, out = (tmp_path / name for name in ("f.bin", "b.bin", "out.bin"))
    firmware.write_bytes(small_firmware())
    new.write_bytes(sample.build_bootloader("esp32", flash_size=16 * MiB, idf_version="v5.5"))
    assert run("write", firmware, f"bootloader={new}", "-o", out).code == 0
    after = Firmware.open(out)
    assert after.bootloader.header.flash_size == 4 * MiB
    after.bootloader.check()
    assert show(out)["bootloader"]["idf_version"] == "v5.5"
    part = tmp_path / "part"
    assert run("extract", out, "bootloader", "-o", part).code == 0
    assert Image.from_bytes(part.read_bytes()) == after.bootloader
    for wrong in (small_app(), sample.build_bootloader("esp32s2"), b"\xe9" * 100):
        new.write_bytes(wrong)
        assert_refused(run("write", firmware, f"bootloader={new}", "-o", out, "--force"), 1)
        assert Firmware.open(out).bootloader == after.bootloader


def test_tables_are_converted_both_ways_unknown_kinds_and_flags_included(tmp_path: Path) -> None:
    table = PartitionTable((*OTA_TABLE, Partition("own", 0x77, 0x99, 0x400000, 0x1234, 0xA5000001)))
    binary, csv, again = (tmp_path / name for name in ("t.bin", "t.csv", "again.bin"))
    binary.write_bytes(table.to_bytes())
    assert run("table", binary, "-o", csv).code == 0
    assert run("table", csv, "-o", again).code == 0
    assert again.read_bytes() == binary.read_bytes()
    assert run("table", binary).out == csv.read_text() == run("table", csv).out
    refused = run("table", csv, "-f", "4M")
    assert_refused(refused, 1)
    assert "'own' ends at 0x401234, the flash at 0x400000" in refused.err


def test_the_table_of_a_firmware_is_printed_as_csv(tmp_path: Path) -> None:
    firmware = tmp_path / "firmware.bin"
    firmware.write_bytes(small_firmware(table_offset=0x9000, table=_shifted()))
    assert_refused(run("table", firmware), 1)
    assert run("table", firmware, "--table-offset", "0x9000").out == table_to_csv(_shifted())


def _shifted() -> PartitionTable:
    return PartitionTable((Partition("nvs", 1, 2, 0xA000, 0x5000), *TABLE.partitions[1:]))
