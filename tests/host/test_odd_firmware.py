"""Firmware that people have and MicroPython's build does not make.

The files in ``../shared/inputs`` are of users; without them what needs them is skipped.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import espsecure
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from mpota.bootloader.check import check_flash
from mpota.errors import MpotaError
from mpota.firmware import sample
from mpota.firmware.firmware import App
from mpota.formats.app_desc import APP_DESC_OFFSET
from mpota.formats.chips import CHIPS, Chip, chip_by_name
from mpota.formats.memory import is_app, memory_map
from mpota.formats.otadata import OtaRecord, OtaState
from mpota.formats.partition_csv import table_from_csv, table_to_csv
from mpota.formats.partition_table import Partition, PartitionTable
from mpota.storage.file import FileImage
from mpota.units import align_up

from tests.support.bootloader_images import (
    app_segments,
    make_app,
    make_bootloader,
    make_table,
    with_bytes,
)
from tests.support.firmware_files import SMALL_APP, assert_refused, run, small_app, small_firmware
from tests.support.images import make_image
from tests.support.real_files import SHARED, skip_unless

INPUTS = SHARED / "inputs"
FACTORY = Partition("factory", 0, 0x00, 0x10000, 0x20000)
ONE_BUS = [chip.name for chip in CHIPS if memory_map(chip.name).is_one_bus]


def user_file(name: str) -> Path:
    path = INPUTS / name
    skip_unless(path)
    return path


def as_json(*args: Any, code: int = 0) -> Any:
    result = run(*args, "--json")
    assert result.code == code, result.err or result.out
    return json.loads(result.out)


def merged(bootloader: bytes, app: bytes, table: tuple[Partition, ...] = (FACTORY,)) -> FileImage:
    data = bytearray(b"\xff" * 0x30000)
    for offset, part in ((0, bootloader), (0x8000, make_table(table)), (table[0].offset, app)):
        data[offset : offset + len(part)] = part
    return FileImage(0, bytes(data))


# Chip revisions


def with_legacy_revision(image: bytes, number: int) -> bytes:
    """As ESP-IDF before v4.4.3 wrote it: byte 14, and both full fields 0. Without a digest."""
    return image[:14] + bytes([number, 0, 0, 0, 0]) + image[19:]


@pytest.mark.parametrize(
    ("chip_name", "on_chip", "boots"),
    [
        ("esp32c3", None, "factory"),
        ("esp32c3", 3, "factory"),
        ("esp32c3", 2, None),
        ("esp32c2", None, "factory"),
        ("esp32c2", 300, "factory"),
        ("esp32c2", 203, None),
    ],
)
def test_the_old_revision_number_is_the_minor_one_on_the_c3_and_the_major_one_elsewhere(
    chip_name: str, on_chip: int | None, boots: str | None
) -> None:
    chip = chip_by_name(chip_name)
    texts = b"is configured for minimum revision %d"
    bootloader = make_bootloader(chip, texts=texts, has_digest=False)
    app = make_app(chip, has_digest=False)
    flash = merged(with_legacy_revision(bootloader, 3), with_legacy_revision(app, 3))
    check = check_flash(flash, chip_revision=on_chip)
    assert check.boots == boots
    if boots is None:
        limit = "v0.3" if chip_name == "esp32c3" else "v3.0"
        assert f"needs chip revision {limit}" in check.findings[0].cause


def test_a_c3_firmware_of_esp_idf_4_4_boots_on_the_chips_that_it_is_for() -> None:
    checked = as_json("check", user_file("c3_legacy_min_rev3.bin"))
    assert (checked["boots"], checked["ok"], checked["findings"]) == ("factory", True, [])


# What the bootloader does not refuse, and does not survive

FAR = (
    Partition("otadata", 1, 0x00, 0xD000, 0x2000),
    Partition("ota_0", 0, 0x10, 0x10000, 0x20000),
    Partition("ota_1", 0, 0x11, 0x800000, 0x20000),
)


def over_the_loader(chip: Chip) -> bytes:
    return make_app(chip, [(memory_map(chip.name).loader_iram.start, b"\0" * 0x1000)])


def over_rom_data(chip: Chip) -> bytes:
    return make_app(chip, [(0x3FFAE000, b"\0" * 0x40)])


def in_pages_of_32_kib(chip: Chip) -> bytes:
    return with_bytes(small_app(chip.name), APP_DESC_OFFSET + 180, b"\x0f")


@pytest.mark.parametrize(
    ("chip_name", "make", "words"),
    [
        *((name, over_the_loader, "it overwrites itself and never comes back") for name in ONE_BUS),
        ("esp32", over_rom_data, "the bootloader hangs"),
        ("esp32c6", in_pages_of_32_kib, "it aborts, and the chip resets for ever"),
        ("esp32h2", in_pages_of_32_kib, "it aborts, and the chip resets for ever"),
    ],
)
def test_what_the_bootloader_does_not_survive_is_called_what_it_is_and_refused(
    chip_name: str, make: Callable[[Chip], bytes], words: str, tmp_path: Path
) -> None:
    """The console stays silent: no error line of the bootloader's says it."""
    chip = chip_by_name(chip_name)
    texts = b"Failed to fetch app description header!"
    firmware, app, out = (tmp_path / name for name in ("firmware.bin", "app.bin", "out.bin"))
    app.write_bytes(make(chip))
    firmware.write_bytes(
        sample.build_firmware(
            chip,
            flash_size=16 << 20,
            table=PartitionTable(FAR),
            app=small_app(chip_name),
            bootloader=make_bootloader(chip, texts=texts, spi_size=4),
        )
    )
    checked = as_json("check", app, "--against", firmware, code=1)  # it would go to ota_1
    assert words in checked["findings"][0]["cause"]
    assert checked["console"] == []
    result = run("write", firmware, f"ota_1={app}", "-o", out)
    assert_refused(result, 1)
    assert words in result.err
    assert not out.exists()
    if make is in_pages_of_32_kib:  # further down they reach it
        assert run("write", firmware, f"ota_0={app}", "-o", out).code == 0


# Bootloaders without rollback

OTA_TABLE = (
    Partition("otadata", 1, 0x00, 0xD000, 0x2000),
    Partition("ota_0", 0, 0x10, 0x10000, 0x20000),
    Partition("ota_1", 0, 0x11, 0x30000, 0x20000),
)


@pytest.mark.parametrize(
    ("app_release", "bootloader_release", "rollback", "boots"),
    [
        ("v5.4.2", "v5.4.2", True, "ota_0"),
        ("v5.4.2", "v6.1", None, "ota_0"),  # another build's: nothing tells
        ("v5.0.4", "", True, "ota_0"),
    ],
)
def test_check_predicts_for_both_where_nothing_tells_whether_there_is_rollback(
    app_release: str, bootloader_release: str, rollback: bool | None, boots: str
) -> None:
    """An update that was not confirmed: rolled back, or booted again."""
    app = sample.build_app("esp32c3", size=SMALL_APP, idf_version=app_release)
    bootloader = make_bootloader(chip_by_name("esp32c3"), idf_version=bootloader_release, min_rev=3)
    data = bytearray(b"\xff" * 0x50000)
    for offset, part in (
        (0, bootloader),
        (0x8000, make_table(OTA_TABLE)),
        (0xD000, OtaRecord.selecting(1, OtaState.VALID).to_bytes()),
        (0xE000, OtaRecord.selecting(2, OtaState.PENDING_VERIFY).to_bytes()),
        (0x10000, app),
        (0x30000, app),
    ):
        data[offset : offset + len(part)] = part
    check = check_flash(FileImage(0, bytes(data)))
    assert (check.rollback, check.boots) == (rollback, boots)
    assert check.boots_without_rollback == (None if rollback else "ota_1")
    told = [f.cause for f in check.findings if "without it, 'ota_1' boots" in f.cause]
    assert bool(told) == (rollback is None)


# Apps without a description


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_an_app_is_known_by_its_mapped_segments_and_a_bootloader_by_having_none(
    chip: Chip,
) -> None:
    (address, desc), *others = app_segments(chip)
    app = make_image(chip, [(address, bytes(len(desc))), *others])
    assert is_app(app)
    assert is_app(app[:64])
    assert App.from_bytes(app).to_bytes() == app
    bootloader = make_bootloader(chip)
    assert not is_app(bootloader)
    with pytest.raises(MpotaError, match="all of its segments go to RAM"):
        App.from_bytes(bootloader)


def test_an_app_without_description_is_shown_extracted_and_checked_alone(tmp_path: Path) -> None:
    path = user_file("no_app_desc.bin")
    facts = as_json("show", path)
    assert (facts["app"]["partition"], facts["app"]["size"]) == ("factory", 1104)
    assert as_json("check", path)["boots"] == "factory"
    app = tmp_path / "app.bin"
    assert run("extract", path, "-o", app).code == 0
    assert app.stat().st_size == 1104
    for args in ((), ("--as-app",), ("--as-app", "--against", path)):
        assert as_json("check", app, *args)["ok"]


# Apps larger than their slot

LARGE_TABLE = PartitionTable(
    (
        Partition("nvs", 1, 2, 0x9000, 0x4000),
        Partition("otadata", 1, 0, 0xD000, 0x2000),
        Partition("phy_init", 1, 1, 0xF000, 0x1000),
        Partition("ota_0", 0, 0x10, 0x10000, 0x10000),
        Partition("ota_1", 0, 0x11, 0x20000, 0x10000),
    )
)


@pytest.fixture
def too_large(tmp_path: Path) -> Path:
    """A whole app of 0x18690 bytes in a slot of 0x10000; its end stands in the next slot."""
    path = tmp_path / "large.bin"
    path.write_bytes(sample.build_firmware("esp32", table=LARGE_TABLE, app=small_app()))
    return path


def test_an_app_larger_than_its_slot_does_not_fit_and_is_not_truncated(too_large: Path) -> None:
    checked = as_json("check", too_large, code=1)
    assert "the app does not fit" in next(
        f["cause"] for f in checked["findings"] if f["where"] == "ota_0"
    )
    shown = run("show", too_large)
    assert shown.code == 1
    assert "% of ota_0, " in shown.out
    assert "the app does not fit" in shown.err
    assert "--app-size 0x20000" in shown.err


def test_resize_mends_an_app_larger_than_its_slot(too_large: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.bin"
    result = run("resize", too_large, "--app-size", "0x20000", "-o", made)
    assert result.code == 0, result.err
    checked = as_json("check", made)
    assert checked["boots"] == "ota_0"
    assert [slot["blank"] for slot in checked["slots"]] == [False, True]
    out = tmp_path / "app.bin"
    assert run("extract", made, "-o", out).code == 0
    assert out.read_bytes() == small_app()
    assert_refused(run("resize", too_large, "--app-size", "0x10000", "-o", tmp_path / "no"))


# Damaged firmware


@pytest.mark.parametrize(
    ("offset", "size", "shown", "problem"),
    [
        (0x1100, None, ["ESP32", "factory"], "bootloader"),
        (0x8010, None, ["ESP32", "ESP-IDF v5.4.2"], "partition table has MD5"),
        (0x10200, None, ["ESP32", "ESP-IDF v5.4.2", "vfs"], "factory"),
        (None, 0x12000, ["ESP32", "ESP-IDF v5.4.2", "vfs"], "image is truncated"),
        (None, 0x6000, ["ESP32", "ESP-IDF v5.4.2"], "before the partition table"),
    ],
    ids=["bootloader", "table", "app", "short", "shorter"],
)
def test_show_tells_what_can_be_read_of_a_damaged_firmware_then_what_is_wrong(
    offset: int | None, size: int | None, shown: list[str], problem: str, tmp_path: Path
) -> None:
    data = bytearray(small_firmware())
    if offset is not None:
        data[offset - 0x1000] ^= 0x10
    path = tmp_path / "damaged.bin"
    path.write_bytes(data if size is None else data[: size - 0x1000])
    result = run("show", path)
    assert_refused(result, 1)
    for words in shown:
        assert words in result.out
    assert problem in result.err
    facts = json.loads(run("show", path, "--json").out)
    assert facts["chip"] == "esp32"
    assert problem in facts["problems"][0]


# Tables that break rules and boot

NVS = Partition("nvs", 1, 2, 0x9000, 0x4000)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (Partition("sixteen_letters_", 1, 0x99, 0x40000, 0x1000), None),
        (Partition("", 1, 0x99, 0x40000, 0x1000), "the name is 0 bytes"),
        (Partition("\ufeffnvs2", 1, 0x99, 0x40000, 0x1000), "the name is 7 bytes"),
        (Partition("\udcff\udcfe", 1, 0x99, 0x40000, 0x1000), "the name is 2 bytes"),
        (Partition("empty", 1, 0x99, 0x40000, 0), "has size 0"),
        (Partition("nvs2", 1, 2, 0x40000, 0x1000), "nvs that is written needs"),
        (Partition("factory", 1, 0x99, 0x40000, 0x1000), "2 partitions have the name 'factory'"),
    ],
    ids=["16 bytes", "empty", "BOM", "not UTF-8", "size 0", "small nvs", "twice"],
)
def test_an_odd_table_that_boots_is_read_and_what_is_odd_is_said(
    odd: Partition, words: str | None, tmp_path: Path
) -> None:
    table = PartitionTable((NVS, FACTORY, odd))
    path = tmp_path / "odd.bin"
    path.write_bytes(sample.build_firmware("esp32", table=table, app=small_app()))
    checked = as_json("check", path)
    assert (checked["boots"], checked["ok"]) == ("factory", True)
    facts = as_json("show", path)
    assert facts["partitions"][2]["offset"] == 0x40000
    for said in (facts["oddities"], [f["cause"] for f in checked["findings"]]):
        assert len(said) == (words is not None)
        assert words is None or words in said[0]
    app = tmp_path / "app.bin"
    assert run("extract", path, "-o", app).code == 0
    assert app.read_bytes() == small_app()
    if words is not None:
        assert_refused(run("resize", path, "-f", "8M", "-o", tmp_path / "no.bin"), 1)


def test_bootloader_and_table_rows_of_the_newer_csv_dialect_are_read() -> None:
    text = (
        "bootloader, bootloader, primary, 0x1000, N/A\n"
        "table, partition_table, primary, N/A, N/A\n"
        "factory, app, factory, , 1M\n"
    )
    table = table_from_csv(text)
    assert [(p.offset, p.size) for p in table] == [
        (0x1000, 0x7000),
        (0x8000, 0x1000),
        (0x10000, 0x100000),
    ]
    table.check()
    with pytest.raises(MpotaError, match="depends on the chip"):
        table_from_csv("bootloader, bootloader, primary, N/A, N/A\n")


# Signatures by ECDSA

SIGNED_APP = Path(__file__).parents[1] / "data" / "c6_ecdsa_signed.app"


def ecdsa_key(curve: ec.EllipticCurve) -> tuple[bytes, bytes]:
    """A private key and its public one, in PEM."""
    key = ec.generate_private_key(curve)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private, public


def signed_by_espsecure(content: bytes, private_pem: bytes) -> bytes:
    content = content.ljust(align_up(len(content), 0x1000), b"\xff")
    blocks = espsecure.generate_signature_block_using_private_key([BytesIO(private_pem)], content)
    return content + blocks.ljust(0x1000, b"\xff")


def test_an_app_signed_by_ecdsa_is_shown_as_signed_and_kept_with_its_signature() -> None:
    facts = as_json("show", SIGNED_APP)
    assert facts["app"]["signed"]
    assert facts["app"]["signature_scheme"] == "ECDSA P-256"
    assert "signed (ECDSA P-256)" in run("show", SIGNED_APP).out
    assert App.from_bytes(SIGNED_APP.read_bytes()).to_bytes() == SIGNED_APP.read_bytes()
    assert as_json("check", SIGNED_APP)["ok"]


@pytest.mark.parametrize(
    ("curve", "scheme"),
    [(ec.SECP256R1(), "ECDSA P-256"), (ec.SECP384R1(), "ECDSA P-384")],
    ids=["P-256", "P-384"],
)
def test_what_espsecure_signs_by_ecdsa_is_verified(
    curve: ec.EllipticCurve, scheme: str, tmp_path: Path
) -> None:
    private, public = ecdsa_key(curve)
    _, other = ecdsa_key(curve)
    signed = signed_by_espsecure(small_app("esp32c6"), private)
    app, key, other_key = (tmp_path / name for name in ("app.bin", "key.pem", "other.pem"))
    app.write_bytes(signed)
    key.write_bytes(public)
    other_key.write_bytes(other)
    assert as_json("show", app)["app"]["signature_scheme"] == scheme
    digest = espsecure._digest_sbv2_public_key(BytesIO(public)).hex()
    assert as_json("verify", app, "--key", key)["signed_by"] == digest
    assert_refused(run("verify", app, "--key", other_key), 1)
    changed = bytearray(signed)
    changed[-0x1000 + 160] ^= 1  # within r and s, which the CRC-32 covers as well
    changed[-0x1000 + 1196 : -0x1000 + 1200] = zlib.crc32(changed[-0x1000:][:1196]).to_bytes(
        4, "little"
    )
    app.write_bytes(changed)
    assert "is not valid" in run("verify", app, "--key", key).err


def test_a_signed_bootloader_is_called_signed_and_not_truncated(tmp_path: Path) -> None:
    private, _ = ecdsa_key(ec.SECP256R1())
    firmware, bootloader = tmp_path / "firmware.bin", tmp_path / "bootloader.bin"
    firmware.write_bytes(small_firmware())
    bootloader.write_bytes(signed_by_espsecure(sample.build_bootloader("esp32"), private))
    made = tmp_path / "made.bin"
    result = run("write", firmware, f"bootloader={bootloader}", "-o", made)
    assert_refused(result, 1)
    assert "signed for Secure Boot" in result.err
    assert not made.exists()


# Slots without ota_0, factory with one slot


def slots_table(*subtypes: int) -> PartitionTable:
    apps = [
        Partition("factory" if s == 0 else f"ota_{s - 16}", 0, s, 0x10000 + n * 0x20000, 0x20000)
        for n, s in enumerate(subtypes)
    ]
    return PartitionTable((NVS, OTA_TABLE[0], *apps))


def test_a_sequence_number_selects_a_slot_by_its_subtype() -> None:
    """bootloader_utility.c: index_to_partition; of two slots the numbers are 0 and 1."""
    table = slots_table(0x11, 0x12)
    labels = [found.label if found else None for found in map(table.slot_of, (1, 2, 3, 4))]
    assert labels == [None, "ota_1", None, "ota_1"]
    assert [p.label for p in table.counted_slots] == []
    assert not table.is_ota_capable


@pytest.mark.parametrize(
    ("table", "trouble", "capable"),
    [
        (slots_table(0x10, 0x11), None, True),
        (slots_table(0x00, 0x10, 0x11), None, True),
        (slots_table(0x11, 0x12), "has ota_1, ota_2 and no ota_0", False),
        (slots_table(0x00, 0x10), "beside factory the table has one slot", True),
        (slots_table(0x10), "the table has one slot", False),
        (slots_table(0x00), None, False),
    ],
)
def test_slots_that_will_not_take_updates_are_named_beforehand(
    table: PartitionTable, trouble: str | None, capable: bool, tmp_path: Path
) -> None:
    assert table.is_ota_capable == capable
    path, csv = tmp_path / "firmware.bin", tmp_path / "table.csv"
    path.write_bytes(sample.build_firmware("esp32", table=table, app=small_app()))
    csv.write_text(table_to_csv(table))
    for result in (
        run("show", path),
        run("resize", path, "--layout", csv, "--dry-run", "-o", tmp_path / "no.bin"),
    ):
        assert result.code == 0, result.err
        out = " ".join(result.out.split())
        assert (trouble or "one slot") in out if trouble else "one slot" not in out


def test_the_note_about_the_first_boot_names_the_app_that_check_finds(tmp_path: Path) -> None:
    """pull11.csv, fo.csv: with a factory partition a blank otadata starts that one."""
    path, made = tmp_path / "firmware.bin", tmp_path / "made.bin"
    csv = tmp_path / "table.csv"
    path.write_bytes(small_firmware())
    csv.write_text(table_to_csv(slots_table(0x00, 0x10, 0x11)))
    result = run("resize", path, "--layout", csv, "-o", made)
    assert result.code == 0, result.err
    assert "the first boot starts factory" in result.out
    assert as_json("check", made)["boots"] == "factory"


# What is no firmware for an ESP32, or stands in the wrong place

ESP8266 = bytes.fromhex("e9030040 401f1040 00001040 10000000").ljust(0x1000, b"\1")
ESP8266_V2 = bytes.fromhex("ea040000 401f1040 00000000 10000000").ljust(0x1000, b"\1")
ENCRYPTED = random.Random(5).randbytes(0x40000)


MOVED_TABLE = PartitionTable((Partition("factory", 0, 0x00, 0x10000, 0x20000),))


def moved(chip: str, offset: int) -> bytes:
    """A whole firmware whose bootloader stands at ``offset``."""
    return b"\xff" * offset + small_firmware(chip)


def from_address_0(chip: str) -> bytes:
    """The flash of 4 MiB after a merged firmware was written to its first byte."""
    return small_firmware(chip).ljust(4 << 20, b"\xff")


def laid_out(data: bytes, directory: Path) -> tuple[Path, Path, Path]:
    """A file with ``data``, one that is not there, and a firmware."""
    path, out, firmware = (directory / name for name in ("what.bin", "out.bin", "firmware.bin"))
    path.write_bytes(data)
    firmware.write_bytes(small_firmware())
    return path, out, firmware


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (ESP8266, "is an image for the ESP8266"),
        (ESP8266_V2, "is an image for the ESP8266"),
        (b"UF2\n" + bytes(508), "is a UF2 file"),
        (b":020000040000FA\r\n" * 8, "is an Intel HEX file"),
        (ENCRYPTED, "looks like flash that is encrypted"),
        (moved("esp32c3", 0x1000), "stands at 0x1000, the chip starts it at 0x0"),
        (moved("esp32", 0x2000), "stands at 0x2000, the chip starts it at 0x1000"),
        (moved("esp32c5", 0x1000), "stands at 0x1000, the chip starts it at 0x2000"),
        (from_address_0("esp32c5"), "stands at 0x0, the chip starts it at 0x2000"),
        (from_address_0("esp32p4"), "stands at 0x0, the chip starts it at 0x2000"),
        (from_address_0("esp32"), "stands at 0x0, the chip starts it at 0x1000"),
    ],
    ids=[
        "esp8266",
        "esp8266 v2",
        "uf2",
        "hex",
        "encrypted",
        "c3 moved",
        "esp32 moved",
        "c5 moved",
        "c5 from 0",
        "p4 from 0",
        "esp32 from 0",
    ],
)
def test_what_it_is_instead_is_one_line_from_every_command(
    data: bytes, words: str, tmp_path: Path
) -> None:
    path, out, firmware = laid_out(data, tmp_path)
    for args in (
        ("show", path),
        ("check", path),
        ("extract", path, "-o", out),
        ("resize", path, "-f", "8M", "-o", out),
        ("write", path, f"vfs={firmware}", "-o", out),
        ("table", path),
        ("fs", "df", path),
        ("fs", "put", path, firmware),
        ("bundle", path, "--name", "a", "--version", "1.0.0", "-o", out),
        ("delta", firmware, path, "-o", out),
        ("verify", path),
        ("flash", path, "none.rom"),
        ("ota", "none.rom", path),
        ("push", "none.repl", path),
    ):
        result = run(*args)
        assert_refused(result, 1)
        assert words in result.err, args
        assert "  hint: " in result.err, args
    assert not out.exists()
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (ESP8266, "is an image for the ESP8266"),
        (b"UF2\n" + bytes(508), "is a UF2 file"),
        (b":020000040000FA\r\n" * 8, "is an Intel HEX file"),
        (ENCRYPTED, "looks like flash that is encrypted"),
    ],
    ids=["esp8266", "uf2", "hex", "encrypted"],
)
def test_in_the_place_of_an_app_it_is_called_the_same(
    data: bytes, words: str, tmp_path: Path
) -> None:
    path, out, firmware = laid_out(data, tmp_path)
    for args in (
        ("check", path, "--as-app"),
        ("check", path, "--against", firmware),
        ("write", firmware, f"factory={path}", "-o", out),
    ):
        result = run(*args)
        assert_refused(result, 1)
        assert words in result.err
    assert not out.exists()
    # A data partition takes what it is given.
    assert run("write", firmware, f"vfs={path}", "-o", out).code == 0


@pytest.mark.parametrize("chip", ["esp32", "esp32c5", "esp32p4"])
def test_a_whole_flash_and_a_merged_file_are_told_apart_by_their_first_bytes(
    chip: str, tmp_path: Path
) -> None:
    path = tmp_path / "firmware.bin"
    merged = small_firmware(chip)
    start = chip_by_name(chip).bootloader_offset
    for data in (
        merged,
        b"\xff" * start + merged,
        (b"\xff" * start + merged).ljust(4 << 20, b"\xff"),
    ):
        path.write_bytes(data)
        assert as_json("check", path)["boots"] == "factory"


def test_a_table_elsewhere_is_pointed_out_by_show_and_check(tmp_path: Path) -> None:
    path = tmp_path / "firmware.bin"
    path.write_bytes(small_firmware(table_offset=0xD000, table=MOVED_TABLE))
    assert "--table-offset 0xd000" in run("show", path).err
    assert "--table-offset 0xd000" in run("check", path).out
    assert as_json("check", path, "--table-offset", "0xd000")["boots"] == "factory"
