"""`mpota resize`: the result is what was asked for, to the byte, and real tools find it intact."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mpota
import pytest
from esptool.bin_image import LoadFirmwareImage
from mpota.edit.change import apply_to_file
from mpota.edit.resizing import resize
from mpota.firmware import sample
from mpota.firmware.firmware import Firmware
from mpota.firmware.layout import Edits
from mpota.formats.chips import CHIPS, Chip, chip_by_name
from mpota.formats.otadata import OtaRecord, OtaState
from mpota.formats.partition_csv import table_to_csv
from mpota.formats.partition_table import APP, DATA, OTA_0, Partition, PartitionTable
from mpota.storage.file import FileImage
from mpota.units import SECTOR_SIZE, MiB

from tests.support.firmware_files import (
    FACTORY_APP,
    NVS,
    OTA_TABLE,
    PHY,
    TABLE,
    assert_refused,
    run,
    small_app,
    small_firmware,
)
from tests.support.real_files import BOOTLOADERS, REAL, real_bootloader, real_firmware

SIZES = [4, 8, 16, 32]
EACH_CHIP = pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)


def assert_esptool_finds_intact(firmware: Firmware) -> None:
    app = firmware.app(firmware.app_partition).image
    for image in (firmware.bootloader, app):
        seen = LoadFirmwareImage(firmware.chip.name, image.data)
        assert seen.checksum == seen.calculate_checksum()
        assert seen.append_digest
        assert seen.stored_digest == seen.calc_digest


def assert_only_asked_for(old: bytes, new: bytes, before: Firmware, after: Firmware) -> None:
    """The files differ in the flash size byte, the bootloader's digest and the table at most."""
    assert len(old) == len(new)
    base, start = before.flash.base, before.chip.bootloader_offset
    digest = start + before.bootloader.body_size
    free = [(start + 3, start + 4), (digest, digest + 32), (0x8000, 0x8C00)]
    changed = [base + place for place in places_that_differ(old, new)]
    assert [i for i in changed if not any(first <= i < end for first, end in free)] == []
    assert new[start + 3 - base] & 0xF == old[start + 3 - base] & 0xF
    if before.flash_size == after.flash_size:
        assert changed == []


def places_that_differ(old: bytes, new: bytes) -> list[int]:
    return [
        at
        for start in range(0, len(old), SECTOR_SIZE)
        if old[start : start + SECTOR_SIZE] != new[start : start + SECTOR_SIZE]
        for at in range(start, min(start + SECTOR_SIZE, len(old)))
        if old[at] != new[at]
    ]


def check_resize(source: Path, size: int, tmp_path: Path, *options: object) -> Firmware:
    old = source.read_bytes()
    target = tmp_path / "out.bin"
    result = run("resize", source, "-f", f"{size}M", "-o", target, *options)
    assert result.code == 0, result.err
    (tmp_path / "out.txt").write_text(result.out)
    assert source.read_bytes() == old
    before, after = Firmware.open(source), Firmware.open(target)
    assert after.flash_size == size * MiB
    assert_esptool_finds_intact(after)
    assert after.app(after.app_partition) == before.app(before.app_partition)
    return after


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chip", REAL)
def test_real_firmware_for_another_flash_differs_only_in_what_was_asked_for(
    chip: str, size: int, tmp_path: Path
) -> None:
    source = real_firmware(chip)
    before, after = Firmware.open(source), check_resize(source, size, tmp_path)
    new = (tmp_path / "out.bin").read_bytes()
    assert_only_asked_for(source.read_bytes(), new, before, after)
    vfs = before.table.find("vfs")
    expected = [
        (p.label, p.offset, size * MiB - p.offset if p == vfs else p.size) for p in before.table
    ]
    assert [(p.label, p.offset, p.size) for p in after.table] == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chip", REAL)
def test_real_firmware_becomes_one_with_two_slots(chip: str, size: int, tmp_path: Path) -> None:
    after = check_resize(real_firmware(chip), size, tmp_path, "--layout", "ota")
    assert [s.label for s in after.table.slots] == ["ota_0", "ota_1"]
    assert after.app_partition.label == "ota_0"
    assert after.table.end == size * MiB
    check = run("check", tmp_path / "out.bin")
    if size == 32 and chip != "esp32s3":
        # ESP-IDF up to v5.2 takes what it does not know for 2 MB.
        assert (check.code, "nothing boots" in check.out) == (1, True)
        assert "does not know 32MB and takes it for 2MB: it will not boot" in done_text(tmp_path)
    else:
        assert (check.code, "'ota_0' boots" in check.out) == (0, True)
        assert "will not boot" not in done_text(tmp_path)


def done_text(tmp_path: Path) -> str:
    return (tmp_path / "out.txt").read_text()


@pytest.mark.parametrize("chip", REAL)
def test_esptools_command_finds_the_resized_firmware_valid(chip: str, tmp_path: Path) -> None:
    after = check_resize(real_firmware(chip), 16, tmp_path)
    app = tmp_path / "app.bin"
    app.write_bytes(after.app(after.app_partition).to_bytes())
    for path in (tmp_path / "out.bin", app):
        done = subprocess.run(
            [sys.executable, "-m", "esptool", "--chip", chip.split()[0], "image-info", path],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "(valid)" in done.stdout
        assert "invalid" not in done.stdout
        assert done.stdout.count("(valid)") == 2  # checksum and digest


@pytest.mark.parametrize("name", BOOTLOADERS)
def test_a_firmware_with_a_real_bootloader_is_resized_on_every_chip(
    name: str, tmp_path: Path
) -> None:
    chip = chip_by_name(name.split()[0])
    revision = 300 if name == "esp32p4 revision 3" else None
    app = sample.build_app(chip, size=0x20000, min_chip_rev=revision)
    source = tmp_path / "firmware.bin"
    source.write_bytes(
        sample.build_firmware(chip, table=TABLE, app=app, bootloader=real_bootloader(name))
    )
    # ESP-IDF up to v5.2 takes what it does not know for 2 MB.
    for size in (8, 16, 4) if name.endswith("v5.2.2") else (8, 16, 32, 4):
        after = check_resize(source, size, tmp_path, "--force")
        before = Firmware.open(source)
        assert_only_asked_for(
            source.read_bytes(), (tmp_path / "out.bin").read_bytes(), before, after
        ) if before.flash_size != size * MiB else None
        assert after.table["vfs"].end == size * MiB
        assert run("check", tmp_path / "out.bin").code == 0


@EACH_CHIP
@pytest.mark.parametrize("is_dump", [False, True], ids=["merged", "dump"])
def test_sample_firmware_is_resized_and_boots_on_every_chip(
    chip: Chip, is_dump: bool, tmp_path: Path
) -> None:
    source = tmp_path / "firmware.bin"
    data = sample.build_firmware(chip, table=TABLE, app=small_app(chip.name), is_dump=is_dump)
    source.write_bytes(data)
    for size in (8, 4):
        after = check_resize(source, size, tmp_path, "--layout", "ota", "--force")
        assert after.chip is chip
        assert after.flash.base == (0 if is_dump else chip.bootloader_offset)
        if is_dump:
            assert (tmp_path / "out.bin").stat().st_size == size * MiB
        check = run("check", tmp_path / "out.bin")
        assert "'ota_0' boots" in check.out
        assert check.code == 0


def test_contents_move_with_their_partition_and_changed_data_starts_blank(tmp_path: Path) -> None:
    table = PartitionTable(
        (
            NVS,
            PHY,
            Partition("factory", APP, 0, 0x10000, 0x20000),
            Partition("conf", DATA, 0x40, 0x30000, 0x10000),
            Partition("same", DATA, 0x41, 0x50000, 0x10000),
            Partition("vfs", DATA, 0x81, 0x60000, 0x3A0000),
        )
    )
    contents = {name: name.encode() * 100 for name in ("nvs", "phy_init", "conf", "same", "vfs")}
    source = tmp_path / "firmware.bin"
    app = small_app()
    source.write_bytes(
        sample.build_firmware("esp32", table=table, app=app, contents=contents, is_dump=True)
    )
    out = tmp_path / "out.bin"
    done = run("resize", source, "-o", out, "--set", "factory=0x30000", "--rename", "same=kept")
    assert done.code == 0, done.err
    after = Firmware.open(out)
    assert after.content(after.table["kept"]) == contents["same"]
    assert after.content(after.table["nvs"]) == contents["nvs"]
    assert after.content(after.table["phy_init"]) == contents["phy_init"]
    assert after.table["conf"].offset == 0x40000
    assert after.content(after.table["conf"]) == b""
    assert after.content(after.table["vfs"]) == contents["vfs"]
    rows = {line.split()[0]: line for line in done.out.splitlines() if line.startswith("  ")}
    assert "moved, content reset" in rows["conf"]
    assert "grown" in rows["factory"]
    assert "was same" in rows["kept"]


def test_the_app_that_runs_is_the_one_that_boots_after_the_table_changed(tmp_path: Path) -> None:
    apps = {"ota_0": small_app(version="v1.25.0"), "ota_1": small_app(version="v1.26.1")}
    records = [OtaRecord.selecting(n, OtaState.VALID).to_bytes() for n in (1, 2)]
    otadata = records[0].ljust(0x1000, b"\xff") + records[1].ljust(0x1000, b"\xff")
    source = tmp_path / "dump.bin"
    source.write_bytes(
        sample.build_firmware(
            "esp32", table=OTA_TABLE, contents={**apps, "otadata": otadata}, is_dump=True
        )
    )
    out = tmp_path / "out.bin"
    assert run("resize", source, "--layout", "single", "-o", out).code == 0
    after = Firmware.open(out)
    assert after.app(after.table["factory"]).to_bytes() == apps["ota_1"]
    done = run("resize", source, "-f", "8M", "-o", out, "--force")
    assert done.code == 0
    after = Firmware.open(out)
    assert after.content(after.table["otadata"]) == b""
    assert after.app(after.table["ota_1"]).to_bytes() == apps["ota_1"]
    assert "otadata selected 'ota_1' and is blank now: 'ota_0' boots" in done.out


@pytest.mark.parametrize("offset", [0x9000, 0xA000, 0x10000])
def test_a_table_elsewhere_is_rewritten_where_it_stands(offset: int, tmp_path: Path) -> None:
    table = PartitionTable(
        (
            Partition("nvs", DATA, 2, offset + 0x1000, 0x4000, 2),
            Partition("factory", APP, 0, 0x20000, 0x20000),
            Partition("odd", 0x77, 0x99, 0x40000, 0x1000, flags=0xA5000001),
            Partition("vfs", DATA, 0x83, 0x50000, 0x3B0000),
        )
    )
    source, out = tmp_path / "firmware.bin", tmp_path / "out.bin"
    data = small_firmware("esp32s3", table, offset)
    source.write_bytes(data)
    assert_refused(run("resize", source, "-f", "8M", "-o", out), 1)
    assert f"--table-offset {offset:#x}" in run("show", source).err
    done = run("resize", source, "-f", "8M", "-o", out, "--table-offset", hex(offset))
    assert done.code == 0, done.err
    after = Firmware.open(out, offset)
    assert after.table["odd"] == table["odd"]
    assert after.table["nvs"] == table["nvs"]
    assert after.table["vfs"].end == 8 * MiB
    new = out.read_bytes()
    assert new[offset + 0xC00 :] == data[offset + 0xC00 :]


def test_places_that_come_to_be_in_no_partition_are_said(tmp_path: Path) -> None:
    source = tmp_path / "in.bin"
    source.write_bytes(small_firmware())
    csv = tmp_path / "t.csv"
    csv.write_text(table_to_csv(TABLE))
    same = run("resize", source, "-f", "8M", "--layout", csv, "--dry-run")
    assert "note: 0x400000 to 0x800000 (4 MiB) is in no partition" in same.out
    assert "no file system" not in same.out
    full = run("resize", source, "--layout", csv, "--dry-run")
    assert "note:" not in full.out
    gap = run("resize", source, "--set", "nvs=0x4000", "--dry-run")
    assert "note: 0xd000 to 0xf000 (8 KiB) is in no partition" in gap.out
    source.write_bytes(small_firmware(table=PartitionTable((NVS, PHY, FACTORY_APP))))
    rest = run("resize", source, "--delete", "phy_init", "--dry-run")
    assert rest.out.count("is in no partition") == 1  # not what MicroPython takes by itself


def test_the_output_is_named_after_what_was_done(tmp_path: Path) -> None:
    source = tmp_path / "firmware.bin"
    source.write_bytes(small_firmware())
    for options, name in (
        (["-f", "16M", "--layout", "ota"], "firmware-16MB-ota.bin"),
        (["-f", "8M"], "firmware-8MB.bin"),
        (["--layout", "4MB-ota"], "firmware-4MB-ota.bin"),
        (["--set", "vfs=1M"], "firmware-vfs=1M.bin"),
        (["--delete", "phy_init"], "firmware-no-phy_init.bin"),
        (["--rename", "vfs=files"], "firmware-vfs=files.bin"),
        (["--add", "a=0x40/1:4K@0xf0000", "--set", "vfs=64K"], "firmware-vfs=64K-a.bin"),
    ):
        done = run("resize", source, *options)
        assert done.code == 0, done.err
        assert (tmp_path / name).exists()
        assert name in done.out
        again = run("resize", source, *options)
        assert_refused(again, 2)
        assert "exists" in again.err
        assert run("resize", source, *options, "--force").code == 0


def test_a_dry_run_shows_all_and_writes_nothing(tmp_path: Path) -> None:
    source = tmp_path / "firmware.bin"
    source.write_bytes(small_firmware())
    done = run("resize", source, "-f", "16M", "--layout", "ota", "--dry-run")
    assert done.code == 0
    assert "ota_1" in done.out
    assert "nothing written" in done.out
    assert list(tmp_path.iterdir()) == [source]


def test_every_carried_table_validates_and_takes_a_stock_app(tmp_path: Path) -> None:
    from mpota.resources import data_directory

    tables = sorted(data_directory("partitions").glob("*.csv"))
    assert len(tables) >= 12
    source = tmp_path / "firmware.bin"
    source.write_bytes(sample.build_firmware("esp32s3"))
    for path in tables:
        size = path.stem.split("-")[0].removesuffix("B")
        out = tmp_path / f"{path.stem}.bin"
        done = run("resize", source, "-f", size, "--layout", path.stem, "-o", out)
        assert done.code == 0, (path.name, done.err)
        assert Firmware.open(out).table.end == Firmware.open(out).flash_size
        assert run("check", out).code == 0
        assert run("table", path, "-f", size).code == 0


def test_a_table_of_the_users_own_is_taken_from_a_csv(tmp_path: Path) -> None:
    source, csv, out = tmp_path / "f.bin", tmp_path / "my.csv", tmp_path / "out.bin"
    source.write_bytes(small_firmware())
    csv.write_text("nvs,data,nvs,,0x4000\notadata,data,ota,,0x2000\nmain,app,ota_0,,128K\n")
    assert run("resize", source, "--layout", csv, "-o", out).code == 0
    after = Firmware.open(out)
    assert after.app(after.table["main"]).to_bytes() == small_app()
    csv.write_text("nvs,data,nvs,,0x4000\nmain,app,ota_0,,64K\n")
    refused = run("resize", source, "--layout", csv, "-o", out, "--force")
    assert_refused(refused, 1)
    assert "100,000" in refused.err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 2, "nothing to change"),
        (["-f", "3M"], 2, "flash size 0x300000"),
        (["-f", "0"], 2, "flash size 0x0"),
        (["-f", "256M"], 2, "flash size 0x10000000"),
        (["-f", "-1"], 2, "-1"),
        (["-f", "1e6"], 2, "'1e6' is not a size"),
        (["-f", "0x"], 2, "'0x' is not a size"),
        (["-f", "99999999M"], 2, "is none that"),
        (["-f", "16MiBs"], 2, "is not a size"),
        (["-f", ""], 2, "is not a size"),
        (["-f", "128K"], 2, "flash size"),
        (
            ["--set", "factory=5M"],
            1,
            "'factory' of 0x500000 bytes would end at 0x510000, the flash",
        ),
        (["--set", "factory=64K"], 1, "100,000"),
        (["--set", "factory"], 2, "NAME=SIZE"),
        (["--set", "=1M"], 2, "NAME=SIZE"),
        (["--set", "factory="], 2, "NAME=SIZE"),
        (["--set", "factory=1M=2M"], 2, "not a size"),
        (["--set", "nothing=1M"], 1, "no partition 'nothing'"),
        (["--set", "factory=0x30001"], 2, "not a multiple of 0x1000"),
        (["--set", "vfs=99999999M"], 1, "flash"),
        (["--app-size", "0x10000"], 1, "100,000"),
        (["--app-size", "0x30800"], 2, "not a multiple"),
        (["--app-size", "-4096"], 2, "-4096"),
        (["--layout", "ota", "--app-size", "0x10000"], 1, "100,000"),
        (["--layout", "nothing"], 2, "layout 'nothing' is not one of single, ota, romfs"),
        (["--layout", "missing.csv"], 2, "cannot read"),
        (["--delete", "factory"], 1, "app"),
        (["--delete", "nothing"], 1, "no partition 'nothing'"),
        (["--delete", "vfs", "--delete", "vfs"], 1, "no partition 'vfs'"),
        (["--rename", "vfs"], 2, "OLD=NEW"),
        (["--rename", "vfs=nvs"], 2, "already"),
        (["--rename", "vfs=sixteen_bytes_xx"], 2, "16 bytes"),
        (["--rename", "vfs="], 2, "OLD=NEW"),
        (["--rename", "vfs=\udcff"], 2, "printable"),
        (["--add", "x"], 2, "SUBTYPE:SIZE"),
        (["--add", "x=fat"], 2, "not a size"),
        (["--add", "x=fat:"], 2, "not a size"),
        (["--add", "x=what:4K"], 2, "subtype 'what'"),
        (["--add", "x=fat:4K@0x8000"], 1, "0x8000"),
        (["--add", "vfs=fat:4K"], 2, "already"),
        (["--add", "x=fat:4K", "--add", "x=fat:4K"], 2, "already"),
        (["--table-offset", "0x8100", "-f", "8M"], 2, "not a multiple of 0x1000"),
        (["--table-offset", "0", "-f", "8M"], 2, "not a multiple of 0x1000"),
        (["--table-offset", "0xfffffffff000", "-f", "8M"], 2, "0xfffffffff000"),
        (["--table-offset", "0x9000", "-f", "8M"], 1, "--table-offset 0x8000"),
    ],
)
def test_what_cannot_be_is_refused_with_the_numbers(
    options: list[str], code: int, words: str, tmp_path: Path
) -> None:
    source, out = tmp_path / "firmware.bin", tmp_path / "out.bin"
    source.write_bytes(small_firmware())
    result = run("resize", source, "-o", out, *options)
    assert_refused(result, code)
    assert words in result.err.encode("utf-8", "backslashreplace").decode()
    assert list(tmp_path.iterdir()) == [source]
    assert source.read_bytes() == small_firmware()


def test_ota_on_2_mb_is_refused_with_the_numbers(tmp_path: Path) -> None:
    source = tmp_path / "firmware.bin"
    source.write_bytes(sample.build_firmware("esp32"))
    result = run("resize", source, "-f", "2M", "--layout", "ota")
    assert_refused(result, 1)
    assert "2MB of flash leave" in result.err
    assert list(tmp_path.iterdir()) == [source]


def test_the_library_edits_values_and_touches_no_file() -> None:
    firmware = Firmware.from_bytes(small_firmware())
    change = resize(firmware, Edits(flash_size=8 * MiB, arrange="ota"))
    assert isinstance(firmware.flash, FileImage)
    assert firmware.flash.data == small_firmware()
    after = Firmware.from_bytes(apply_to_file(firmware, change))
    assert after.table.slots[0].subtype == OTA_0
    assert {part.what for part in change.changes} >= {"partition table", "bootloader"}


def test_the_example_of_the_package_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("firmware.bin").write_bytes(small_firmware())
    lines = (mpota.__doc__ or "").splitlines()
    exec("\n".join(line[4:] for line in lines if line.startswith("    ")), {})
    assert capsys.readouterr().out == "ESP32 2555904 ota_0\n"
    assert Path("app.bin").read_bytes() == small_app()
    assert Firmware.open("resized.bin").flash_size == 16 * MiB
