"""Commands on a board, through the real esptool."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace
from types import MappingProxyType

import pytest
from mpota.bootloader.boot import boot
from mpota.filesystem.block_device import MemoryDevice
from mpota.filesystem.littlefs import FileSystem, build
from mpota.firmware import sample
from mpota.firmware.firmware import Firmware
from mpota.formats.app_desc import APP_DESC_OFFSET
from mpota.formats.chips import CHIPS
from mpota.formats.otadata import OtaRecord, OtaState, parse_otadata
from mpota.formats.partition_table import PartitionTable
from mpota.storage.board import open_board
from mpota.units import MiB
from mpota.virtual import rom_chips
from mpota.virtual.flash import FaultKind, FlashFault, VirtualFlash

from tests.support.bootloader_images import with_bytes
from tests.support.cable_boards import CHIP, NEW_APP, NVS_DATA, OLD_APP, OTA, SINGLE, firmware


@pytest.fixture
def board(plug_in):
    """``board(table=, app=, size=, contents=)``: a board with a firmware, files and settings."""

    def board(table=SINGLE, app=OLD_APP, size=2 * MiB, contents=None):
        data = firmware(table, app, is_dump=True, contents={"nvs": NVS_DATA, **(contents or {})})
        flash = VirtualFlash.create(size, {0: data})
        return plug_in(flash, CHIP)

    return board


@pytest.fixture
def merged(tmp_path):
    """``merged(**options)``: the path of a firmware file."""

    def merged(name="firmware.bin", **options):
        path = tmp_path / name
        path.write_bytes(firmware(**options))
        return path

    return merged


@pytest.fixture
def app_file(tmp_path):
    path = tmp_path / "app.bin"
    path.write_bytes(NEW_APP)
    return path


def boots(cable) -> str | None:
    cable.unplug()
    starts = boot(cable.flash).starts
    return starts.label if starts else None


# --- flash ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("chip", [chip.name for chip in CHIPS])
def test_flash_puts_a_firmware_on_a_blank_board_of_every_chip(plug_in, mpota, tmp_path, chip):
    data = sample.build_firmware(
        chip, table=SINGLE, app=sample.build_app(chip, size=98_304), flash_size=2 * MiB
    )
    (tmp_path / "new.bin").write_bytes(data)
    cable = plug_in(chip=chip, size=2 * MiB)
    assert "'factory' boots" in mpota("flash", "-y", "new.bin", cable.path)
    offset = next(c.bootloader_offset for c in CHIPS if c.name == chip)
    assert cable.flash.read(offset, len(data)) == data
    assert boots(cable) == "factory"
    assert cable.events == ["halt", "boot"]


def test_flash_refuses_what_needs_another_chip_revision(plug_in, mpota, tmp_path):
    """The virtual ESP32-P4 is v1.3; builds for v3 keep their memory elsewhere."""
    app = sample.build_app("esp32p4", size=98_304, min_chip_rev=300)
    bootloader = sample.build_bootloader("esp32p4", min_chip_rev=300, flash_size=2 * MiB)
    data = sample.build_firmware(
        "esp32p4", table=SINGLE, app=app, bootloader=bootloader, flash_size=2 * MiB
    )
    (tmp_path / "new.bin").write_bytes(data)
    cable = plug_in(chip="esp32p4", size=2 * MiB)
    output = mpota("flash", "new.bin", cable.path, exit_code=1)
    assert "needs chip revision v3.0, the chip is v1.3" in output
    assert cable.flash.operations == []


@pytest.mark.parametrize("chip", [chip.name for chip in CHIPS])
def test_the_revisions_of_a_chip_and_its_efuses_are_read_by_cable(plug_in, chip):
    cable = plug_in(chip=chip, size=2 * MiB)
    rom = rom_chips.rom_chip(chip)
    with open_board(cable.path) as board:
        assert (board.chip_revision, board.block_revision) == (
            rom.chip_revision,
            rom.block_revision,
        )
    assert (rom.block_revision is None) == (chip == "esp32")


def needing(app: bytes, block_revision: int) -> bytes:
    """The app with this min_efuse_blk_rev_full, major * 100 + minor."""
    return with_bytes(app, APP_DESC_OFFSET + 176, block_revision.to_bytes(2, "little"))


@pytest.mark.parametrize("command", ["flash", "ota", "write"])
def test_what_needs_another_efuse_block_revision_is_refused_before_writing(
    board, mpota, tmp_path, merged, command
):
    """The virtual ESP32-C3 has v1.3."""
    cable = board(OTA)
    cable.flash.restart_count()

    def run(block_revision: int, exit_code: int) -> str:
        app = needing(NEW_APP, block_revision)
        path = merged(table=OTA, app=app)
        (tmp_path / "app.bin").write_bytes(app)
        args = {
            "flash": ("flash", path, cable.path),
            "ota": ("ota", cable.path, "app.bin"),
            "write": ("write", cable.path, "ota_1=app.bin"),
        }[command]
        # A file alone is for any chip.
        assert "'ota_0' boots" in mpota("check", path)
        return mpota(*args, "-y", exit_code=exit_code)

    output = run(104, 1)
    assert "needs efuse block revision v1.4, the chip has v1.3" in output
    assert cable.flash.operations == []
    run(103, 0)
    assert boots(cable) is not None


def test_flash_keeps_nvs_and_files_and_clears_stale_otadata(board, mpota, merged):
    records = {"otadata": OtaRecord.selecting(2, OtaState.VALID).to_bytes(), "ota_1": OLD_APP}
    cable = board(OTA, contents={**records, "vfs": b"files"})
    assert boot(cable.flash).starts.label == "ota_1"
    output = mpota("flash", "-y", merged(table=OTA, app=NEW_APP), cable.path)
    assert "kept: nvs, vfs" in output
    assert boots(cable) == "ota_0"
    assert cable.flash.read(0x10000, len(NEW_APP)) == NEW_APP
    assert cable.flash.read(0x9000, len(NVS_DATA)) == NVS_DATA
    assert cable.flash.read(OTA["vfs"].offset, 5) == b"files"


FILES = {"main.py": b"print('hello')", "log.txt": b"21.5 C" * 1000}


def _files(content: bytes) -> dict[str, bytes]:
    system = FileSystem(MemoryDevice(len(content), content))
    return {path: system.volume.content(entry) for path, entry in system.volume.walk()}


def test_files_that_flash_would_lose_are_told_and_saved_before(board, mpota, merged, tmp_path):
    cable = board(contents={"vfs": build(FILES, SINGLE["vfs"].size)})
    shown = mpota("flash", "-y", merged(table=OTA, app=NEW_APP), cable.path)
    assert "lost by this, and saved before: vfs: 2 files, 5.9 KiB (--keep-files keeps" in shown
    (backup,) = tmp_path.glob("mpota-files-*-vfs.bin")
    assert f"backup: {backup.name}" in shown
    assert "main.py" in mpota("fs", "ls", backup)
    assert cable.flash.read(OTA["vfs"].offset, 0x1000) == b"\xff" * 0x1000


def test_flash_keeps_files_at_another_place_where_that_is_wanted(board, mpota, merged, tmp_path):
    cable = board(contents={"vfs": build(FILES, SINGLE["vfs"].size)})
    options = ("--keep-files", "-y")
    shown = mpota("flash", merged(table=OTA, app=NEW_APP), cable.path, *options)
    assert "files kept, at their new place: vfs" in shown
    found = _files(cable.flash.read(OTA["vfs"].offset, OTA["vfs"].size))
    assert {path.lstrip("/"): data for path, data in found.items()} == FILES
    assert boots(cable) == "ota_0"


def test_what_is_no_littlefs_is_saved_and_cannot_be_kept(board, mpota, merged, tmp_path):
    cable = board(contents={"vfs": b"files"})
    file = merged(table=OTA)
    mpota("flash", file, cable.path, "--keep-files", "-y", exit_code=1)
    shown = mpota("flash", file, cable.path, "-y")
    assert "vfs: 1.56 MiB that are no littlefs" in shown
    (backup,) = tmp_path.glob("mpota-files-*-vfs.bin")
    assert backup.read_bytes().startswith(b"files")


def test_a_fat_that_flash_would_lose_is_called_fat_and_saved(board, mpota, merged, tmp_path):
    sector = bytes(54) + b"FAT16   " + bytes(448) + b"\x55\xaa"
    cable = board(contents={"vfs": sector})
    shown = mpota("flash", merged(table=OTA), cable.path, "-y")
    assert "saved before: vfs: 1.56 MiB of FAT" in shown
    (backup,) = tmp_path.glob("mpota-files-*-vfs.bin")
    assert backup.read_bytes().startswith(sector)


def test_flash_with_another_table_leaves_no_rests_of_the_old_one(board, mpota, merged):
    cable = board(contents={"vfs": b"files"})
    mpota("flash", "-y", merged(table=OTA), cable.path)
    assert cable.flash.read(0x9000, 0x4000) == b"\xff" * 0x4000, "nvs has another size"
    assert cable.flash.read(OTA["vfs"].offset, 0x1000) == b"\xff" * 0x1000
    assert boots(cable) == "ota_0"


def test_flash_keeps_data_also_where_an_interrupted_one_left_no_table(board, mpota, merged):
    files = build({"main.py": b"print('hello')"}, SINGLE["vfs"].size)
    cable = board(contents={"vfs": files})
    cable.flash.erase(0x8000, 0x1000)
    assert "kept: nvs, vfs" in mpota("flash", "-y", merged(app=NEW_APP), cable.path)
    assert cable.flash.read(0x9000, len(NVS_DATA)) == NVS_DATA
    assert cable.flash.read(SINGLE["vfs"].offset, 0x10000) == files[:0x10000]
    cable.flash.erase(0x8000, 0x1000)
    cable.flash.write(0xA000, b"something else than nvs")
    cable.flash.erase(0x9000, 0x1000)
    cable.flash.write(0x9000, b"something else than nvs")
    assert "kept: vfs" in mpota("flash", "-y", merged(app=NEW_APP), cable.path)
    assert cable.flash.read(0x9000, 0x6000) == b"\xff" * 0x6000
    assert boots(cable) == "factory"


def test_flash_erases_everything_if_asked(board, mpota, merged):
    cable = board(contents={"vfs": b"files"})
    mpota("flash", "-y", merged(), cable.path, "--erase")
    assert cable.flash.read(0x9000, 0x7000) == b"\xff" * 0x7000
    assert cable.flash.read(SINGLE["vfs"].offset, 0x1000) == b"\xff" * 0x1000
    assert boots(cable) == "factory"


@pytest.mark.parametrize(("answer", "exit_code"), [("n", 1), ("y", 0)])
def test_who_sits_at_a_terminal_is_asked(board, mpota, merged, monkeypatch, answer, exit_code):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    cable = board()
    cable.flash.restart_count()
    monkeypatch.setattr("sys.stdin", Terminal(answer + "\n"))
    output = mpota("flash", merged(app=NEW_APP), cable.path, exit_code=exit_code)
    assert "Write this?" in output
    assert bool(cable.flash.operations) == (answer == "y")


@pytest.mark.parametrize("options", [(), ("--erase",)])
def test_where_nobody_can_be_asked_nothing_is_written_without_yes(board, mpota, merged, options):
    cable = board(contents={"vfs": b"files"})
    cable.flash.restart_count()
    shown = mpota("flash", merged(app=NEW_APP), cable.path, *options, exit_code=2)
    assert "nothing was written: no terminal to ask at" in shown
    assert "hint: -y writes without asking" in shown
    assert cable.flash.operations == []


@pytest.mark.parametrize("options", [(), ("--erase",)])
def test_a_dry_run_shows_the_plan_of_the_run(board, mpota, merged, options):
    cable = board(contents={"vfs": b"files"})
    args = ("flash", merged(app=NEW_APP), cable.path, *options)
    shown = mpota(*args, "--dry-run")
    assert shown.endswith("dry run: nothing written\n")
    plan = shown.removesuffix("dry run: nothing written\n")
    assert mpota(*args, "-y").startswith(plan)


def test_flash_again_writes_nothing(board, mpota, merged):
    cable = board()
    cable.flash.restart_count()
    assert "nothing to write" in mpota("flash", "-y", merged(), cable.path)
    assert cable.flash.operations == []


def test_flash_names_a_wrong_chip_and_a_flash_that_is_too_small(plug_in, mpota, merged):
    cable = plug_in(chip="esp32s3", size=2 * MiB)
    output = mpota("flash", "-y", merged(), cable.path, exit_code=1)
    assert f"firmware.bin is for ESP32-C3, on {cable.path} is ESP32-S3" in output
    cable = plug_in(chip=CHIP, size=2 * MiB)
    large = merged("large.bin", flash_size=4 * MiB)
    output = mpota("flash", "-y", large, cable.path, exit_code=1)
    assert "made for 4MB of flash, the board has 2MB" in output
    assert cable.flash.operations == []


@pytest.mark.parametrize("size", [4, 16])
def test_flash_fits_the_firmware_to_the_board(plug_in, mpota, merged, size):
    cable = plug_in(chip=CHIP, size=size * MiB)
    mpota("flash", "-y", merged(), cable.path, "--fit")
    assert boots(cable) == "factory"
    cable = plug_in(cable.flash, CHIP)
    shown = json.loads(mpota("show", cable.path, "--json"))
    assert shown["flash_size"] == size * MiB
    last = shown["partitions"][-1]
    assert (last["label"], last["offset"] + last["size"]) == ("vfs", size * MiB)


def test_flash_of_an_app_alone_says_how_it_is_written(plug_in, mpota, app_file):
    cable = plug_in(chip=CHIP, size=2 * MiB)
    output = mpota("flash", "-y", app_file, cable.path, exit_code=1)
    assert f"mpota ota {cable.path} {app_file}" in output
    assert cable.events == []


def test_flash_refuses_what_would_not_boot(plug_in, mpota, tmp_path, merged):
    data = bytearray(firmware())
    data[0x10000 + 5_000] ^= 1
    (tmp_path / "broken.bin").write_bytes(data)
    cable = plug_in(chip=CHIP, size=2 * MiB)
    mpota("flash", "-y", "broken.bin", cable.path, exit_code=1)
    assert cable.flash.operations == []


@pytest.mark.parametrize("kind", [FaultKind.ZEROED, FaultKind.LOST])
def test_flash_that_does_not_keep_its_bytes_is_named(plug_in, mpota, merged, kind):
    cable = plug_in(chip=CHIP, size=2 * MiB)
    cable.flash.inject(FlashFault(kind, 0x12345, mask=0xFF))
    output = mpota("flash", "-y", merged(), cable.path, exit_code=1)
    assert "flash does not keep what is written to it" in output
    assert f"0x12345: {'0xff' if kind is FaultKind.LOST else '0x00'} instead of" in output


def test_a_write_that_fails_once_is_repeated(plug_in, mpota, merged):
    cable = plug_in(chip=CHIP, size=2 * MiB)
    cable.flash.inject(FlashFault(FaultKind.LOST, 0x12345, times=1))
    mpota("flash", "-y", merged(), cable.path)
    assert boots(cable) == "factory"


# --- ota, slots, erase ---------------------------------------------------------------------------


@pytest.mark.parametrize("no_rollback", [False, True])
def test_ota_fills_the_other_slot_and_selects_it_as_set_boot_does(
    board, mpota, app_file, no_rollback
):
    cable = board(OTA)
    before = cable.flash.read(0x10000, 0x40000)
    options = ["--no-rollback"] if no_rollback else []
    output = mpota("ota", cable.path, "-y", app_file, *options)
    assert "safe against a power cut at any moment" in output
    assert cable.flash.read(0x10000, 0x40000) == before
    records = parse_otadata(cable.flash.read(0xD000, 0x2000))
    assert [r.ota_seq for r in records if r.is_valid] == [2]
    state = next(r.ota_state for r in records if r.is_valid)
    assert state == (OtaState.VALID if no_rollback else OtaState.NEW)
    assert boots(cable) == "ota_1"
    assert (boot(cable.flash).starts.label == "ota_1") == no_rollback, "unconfirmed: rolled back"


def test_ota_takes_the_app_out_of_a_merged_firmware(board, mpota, merged):
    cable = board(OTA)
    mpota("ota", cable.path, "-y", merged(app=NEW_APP))
    assert cable.flash.read(0x50000, len(NEW_APP)) == NEW_APP


@pytest.mark.parametrize("state", [OtaState.NEW, OtaState.PENDING_VERIFY])
def test_ota_never_overwrites_what_an_unconfirmed_app_falls_back_to(board, mpota, app_file, state):
    pending = OtaRecord.selecting(2, state).to_bytes()
    cable = board(OTA, contents={"ota_1": OLD_APP, "otadata": pending})
    before = cable.flash.read(0x10000, 0x40000)
    mpota("ota", cable.path, "-y", app_file)
    assert cable.flash.read(0x10000, 0x40000) == before
    assert cable.flash.read(0x50000, len(NEW_APP)) == NEW_APP


def test_ota_says_what_is_missing_for_it(board, mpota, app_file, tmp_path):
    cable = board()
    output = mpota("ota", cable.path, "-y", app_file, exit_code=1)
    assert f"mpota resize {cable.path} --layout ota" in output
    cable = board(OTA)
    other = sample.build_app("esp32", size=98_304)
    (tmp_path / "other.bin").write_bytes(other)
    cable.flash.restart_count()
    mpota("ota", cable.path, "-y", tmp_path / "other.bin", exit_code=1)
    big = sample.build_app(CHIP, size=0x50000, flash_size=2 * MiB)
    (tmp_path / "big.bin").write_bytes(big)
    output = mpota("ota", cable.path, "-y", tmp_path / "big.bin", exit_code=1)
    assert "app image is 327,680 bytes, slot ota_1 holds 262,144" in output
    assert cable.flash.operations == []


def test_slots_shows_and_edits_otadata(board, mpota):
    cable = board(OTA, contents={"ota_1": NEW_APP})
    slots = json.loads(mpota("slots", cable.path, "--json"))
    assert [(s["label"], s["boots"], s["version"]) for s in slots] == [
        ("ota_0", True, "v1.25.0"),
        ("ota_1", False, "v1.26.1"),
    ]
    mpota("slots", cable.path, "-y", "--boot", "ota_1")
    slots = json.loads(mpota("slots", cable.path, "--json"))
    assert slots[1]["boots"]
    assert slots[1]["records"] == [{"ota_seq": 2, "ota_state": "NEW"}]
    mpota("slots", cable.path, "-y", "--mark", "valid")
    assert parse_otadata(cable.flash.read(0xD000, 0x2000))[0].ota_state == OtaState.VALID
    mpota("slots", cable.path, "-y", "--mark", "invalid")
    assert boots(cable) == "ota_0"


def test_slots_refuses_to_select_what_would_not_boot(board, mpota):
    cable = board(OTA, contents={"ota_1": NEW_APP[:62_840]})
    cable.flash.restart_count()
    output = mpota("slots", cable.path, "-y", "--boot", "ota_1", exit_code=1)
    assert "the bootloader would not start 'ota_1'" in output
    output = mpota("slots", cable.path)
    assert "no: esp_image: " in output
    mpota("slots", cable.path, "-y", "--mark", "valid", exit_code=1)
    mpota("slots", cable.path, "-y", "--boot", "vfs", exit_code=2)
    assert cable.flash.operations == []


def test_erase_knows_the_file_system_behind_the_table(board, mpota):
    table = PartitionTable(tuple(p for p in SINGLE if p.label != "vfs"))
    cable = board(table, NEW_APP)  # MicroPython 1.25 makes none there
    cable.flash.write(0x70000, bytes(0x3000))
    mpota("erase", cable.path, "-y", "vfs")
    assert cable.flash.read(0x70000, 0x3000) == b"\xff" * 0x3000


ENCRYPTED = {0x60008834: 1 << 18}  # EFUSE_SPI_BOOT_CRYPT_CNT, efuse_reg.h of the ESP32-C3


def test_a_board_with_flash_encryption_is_left_alone(plug_in, mpota, monkeypatch, merged):
    row = rom_chips.rom_chip(CHIP)
    locked = replace(row, values=MappingProxyType({**row.values, **ENCRYPTED}))
    monkeypatch.setitem(rom_chips._BY_NAME, CHIP, locked)
    cable = plug_in(chip=CHIP, size=2 * MiB)
    assert "flash encryption is on" in mpota("flash", "-y", merged(), cable.path, exit_code=1)
    assert cable.flash.operations == []


def test_erase_makes_partitions_blank_but_not_a_board_that_does_not_boot(board, mpota):
    cable = board(contents={"vfs": b"files"})
    mpota("erase", cable.path, "-y", "nvs", "vfs")
    assert cable.flash.read(0x9000, 0x6000) == b"\xff" * 0x6000
    assert cable.flash.read(SINGLE["vfs"].offset, 0x1000) == b"\xff" * 0x1000
    mpota("erase", cable.path, "-y", "factory", exit_code=1)
    mpota("erase", cable.path, "-y", "nvs2", exit_code=1)
    assert boot(cable.flash).starts.label == "factory"
    mpota("erase", cable.path, "-y", "factory", "--force")
    assert boots(cable) is None


# --- verify --------------------------------------------------------------------------------------


def test_verify_finds_nothing_on_a_board_that_is_right(board, mpota, merged, tmp_path):
    cable = board()
    assert "149,824 bytes are the same" in mpota("verify", merged(), cable.path)
    (tmp_path / "old.bin").write_bytes(OLD_APP)
    assert "factory at 0x10000: 149,824 bytes" in mpota("verify", "old.bin", cable.path)


def zeroed(app: bytes) -> bytes:
    data = bytearray(app)
    places = random.Random(7).sample([i for i, byte in enumerate(app) if byte], 37)
    for place in places:
        data[place] = 0
    return bytes(data)


FAULTS = {
    "zeroed": (zeroed, "37 of 149,824 bytes differ", "zeroed: 37 bytes are 0x00"),
    "truncated": (
        lambda app: app[:62_840],
        "of 149,824 bytes differ",
        "truncated: right up to 62,840 of 149,824 bytes (0xf578), all behind it is erased",
    ),
    "sector lost": (
        lambda app: app[:0x8000] + app[0x9000:],
        "of 149,824 bytes differ",
        "shifted: from 0x8000 on the right bytes stand 4,096 bytes (0x1000) earlier",
    ),
    "sector twice": (
        lambda app: app[:0x8000] + app[0x7000:],
        "of 149,824 bytes differ",
        "shifted: from 0x8000 on the right bytes stand 4,096 bytes (0x1000) later",
    ),
    "wrong offset": (
        lambda app: b"\xff" * 4096 + app,
        "of 149,824 bytes differ",
        "shifted: from 0x0 on the right bytes stand 4,096 bytes (0x1000) later",
    ),
    "bit flip": (
        lambda app: app[:70_000] + bytes([app[70_000] ^ 4]) + app[70_001:],
        "1 of 149,824 bytes differ",
        "changed bits: 1 bytes",
    ),
    "another app": (lambda app: NEW_APP, "of 149,824 bytes differ", "other content: "),
    "blank": (lambda app: b"\xff", "of 149,824 bytes differ", "erased: nothing is there"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_says_what_is_wrong_with_the_flash(board, mpota, tmp_path, fault):
    spoil, count, kind = FAULTS[fault]
    (tmp_path / "old.bin").write_bytes(OLD_APP)
    cable = board(app=spoil(OLD_APP))
    output = mpota("verify", "old.bin", cable.path, "factory", exit_code=1)
    assert count in output
    assert kind in output
    wrong = "the bootloader would boot it" if fault == "another app" else "it does not boot:"
    assert wrong in output


def test_verify_explains_a_resize(board, mpota, merged):
    cable = board(size=4 * MiB)
    mpota("resize", cable.path, "-y", "-f", "4M")
    output = mpota("verify", merged(), cable.path, exit_code=1)
    assert "the same but for the flash size in its header, 4MB" in output
    assert "a valid table with other partitions: nvs, phy_init, factory, vfs" in output
    assert "factory at 0x10000: 149,824 bytes are the same" in output


# --- resize and restore --------------------------------------------------------------------------


def files_in(flash: VirtualFlash, partition) -> dict[str, bytes]:
    data = flash.read(partition.offset, partition.size)
    files = FileSystem(MemoryDevice(partition.size, data))
    return {path: files.read(path) for path in ("/main.py", "/lib/settings.json")}


def test_resize_moves_files_and_keeps_nvs(board, mpota):
    wanted = {"/main.py": b"print('hello')\n", "/lib/settings.json": bytes(9_000)}
    files = {"lib": None, **{path.lstrip("/"): data for path, data in wanted.items()}}
    cable = board(size=4 * MiB, contents={"vfs": build(files, SINGLE["vfs"].size)})
    output = mpota(
        "resize", cable.path, "-y", "-f", "4M", "--layout", "ota", "--app-size", "0x40000"
    )
    assert "files kept" in output
    assert "content kept" in output
    assert boots(cable) == "ota_0"
    table = Firmware.from_flash(_Reader(cable.flash), "board").table
    assert table["vfs"].offset != SINGLE["vfs"].offset
    assert files_in(cable.flash, table["vfs"]) == wanted
    assert table["nvs"].size == 0x4000
    assert cable.flash.read(0x9000, len(NVS_DATA)) == NVS_DATA


def test_resize_drops_files_only_if_told_to(board, mpota, tmp_path):
    files = {"big.bin": random.Random(3).randbytes(0xC0000)}
    cable = board(contents={"vfs": build(files, SINGLE["vfs"].size)})
    cable.flash.restart_count()
    args = ("resize", cable.path, "-y", "--layout", "ota", "--app-size", "0xA0000")
    output = mpota(*args, exit_code=1)
    assert "files cannot be kept: " in output
    assert cable.flash.operations == []
    assert list(tmp_path.iterdir()) == []
    assert "loses the contents of vfs" in mpota(*args, "--drop-files")
    assert boots(cable) == "ota_0"


def test_resize_converts_a_live_board_and_restore_takes_it_back(board, mpota, tmp_path):
    cable = board(size=4 * MiB, contents={"vfs": b"no file system"})
    original = cable.flash.snapshot()
    assert "files cannot be kept" in mpota("resize", cable.path, "-y", "-f", "4M", exit_code=1)
    args = ("resize", cable.path, "-y", "-f", "4M", "--layout", "ota", "--drop-files")
    output = mpota(*args, "--dry-run")
    assert "dry run" in output
    assert "not safe against a power cut: bootloader, partition table." in output
    assert "loses the contents of vfs" in output
    assert cable.flash.snapshot() == original
    mpota(*args)
    changed = Firmware.from_flash(_Reader(cable.flash), "board")
    assert [s.label for s in changed.table.slots] == ["ota_0", "ota_1"]
    assert changed.flash_size == 4 * MiB
    assert boot(cable.flash).starts.label == "ota_0"
    (backup,) = tmp_path.glob("mpota-backup-*.zip")
    mpota("restore", backup, cable.path, "-y")
    assert cable.flash.snapshot() == original
    assert boots(cable) == "factory"


def test_resize_keeps_the_slot_that_an_update_filled(board, mpota):
    selected = OtaRecord.selecting(2, OtaState.VALID).to_bytes()
    cable = board(OTA, size=4 * MiB, contents={"ota_1": NEW_APP, "otadata": selected})
    mpota("resize", cable.path, "-y", "-f", "4M")
    assert boots(cable) == "ota_1"


def test_resize_refuses_more_flash_than_there_is(board, mpota, tmp_path):
    cable = board()
    cable.flash.restart_count()
    output = mpota("resize", cable.path, "-y", "-f", "4M", exit_code=1)
    assert "the flash chip has 2MB, not 4MB" in output
    mpota("resize", cable.path, "-y", "--layout", "ota", "-o", "x.bin", exit_code=2)
    assert cable.flash.operations == []
    assert list(tmp_path.iterdir()) == []


def test_resize_of_a_board_without_a_table_asks_for_the_journal(board, mpota):
    cable = board()
    cable.flash.erase(0x8000, 0x1000)
    output = mpota("resize", cable.path, "-y", "--layout", "ota", exit_code=1)
    assert "Run it again where its .unfinished file is" in output


def test_restore_refuses_another_board_and_a_damaged_backup(board, plug_in, mpota, tmp_path):
    cable = board()
    mpota("resize", cable.path, "-y", "--layout", "ota", "--backup", "b.zip")
    other = plug_in(chip="esp32s3", size=2 * MiB)
    assert "of another board" in mpota("restore", "b.zip", other.path, "-y", exit_code=1)
    data = bytearray((tmp_path / "b.zip").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "c.zip").write_bytes(data)
    (tmp_path / "d.zip").write_bytes(b"no zip")
    for name in ("c.zip", "d.zip"):
        assert "damaged" in mpota("restore", name, cable.path, "-y", exit_code=1)


# --- reading -------------------------------------------------------------------------------------


def test_show_check_extract_table_and_write_take_a_port(board, mpota, tmp_path, app_file):
    cable = board(OTA)
    shown = json.loads(mpota("show", cable.path, "--json"))
    assert shown["chip"] == CHIP
    assert shown["board"] == {
        "port": cable.path,
        "mac": "24:0a:c4:00:01:02",
        "flash_size": 2 * MiB,
    }
    assert "board:      MAC 24:0a:c4:00:01:02, 2MB of flash" in mpota("show", cable.path)
    assert json.loads(mpota("check", cable.path, "--json"))["boots"] == "ota_0"
    assert "ota_0,app,ota_0,0x10000,0x40000" in mpota("table", cable.path).replace(" ", "")
    mpota("extract", cable.path, "-o", "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == OLD_APP
    mpota("check", app_file, "--as-app", "--against", cable.path)
    mpota("write", cable.path, "-y", f"ota_1={app_file}")
    assert cable.flash.read(0x50000, len(NEW_APP)) == NEW_APP
    assert "nothing to write" in mpota("write", cable.path, "-y", f"ota_1={app_file}")
    mpota("write", cable.path, "-y", f"ota_0={tmp_path / 'out.bin'}", "--erase", "nvs")
    assert cable.flash.read(0x9000, 0x4000) == b"\xff" * 0x4000


def test_what_is_no_board_is_said(mpota, tmp_path, plug_in):
    output = mpota("show", "/dev/ttyNoSuchPort", exit_code=1)
    assert "/dev/ttyNoSuchPort: no board answers" in output
    mpota("flash", "x.bin", "nonsense", exit_code=2)
    blank = plug_in(chip=CHIP)
    assert "no bootloader" in mpota("show", blank.path, exit_code=1)


class _Reader:
    """A flash as a firmware is read from."""

    base = 0

    def __init__(self, flash: VirtualFlash) -> None:
        self.read = flash.read
        self.end = flash.size


def test_write_repairs_a_board_whose_app_is_broken(board, mpota, app_file):
    cable = board(app=OLD_APP[:62_840])
    output = mpota("check", cable.path, exit_code=1)
    assert "nothing boots" in output
    mpota("write", cable.path, "-y", f"factory={app_file}")
    assert boots(cable) == "factory"
