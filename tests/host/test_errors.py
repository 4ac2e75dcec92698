"""Damaged files and impossible requests: refused in a line, with nothing written or touched."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mpota.bootloader.check import check_flash
from mpota.firmware import sample
from mpota.formats.image import Image
from mpota.formats.partition_csv import table_to_csv
from mpota.formats.partition_table import Partition, PartitionTable
from mpota.storage.file import FileImage

from tests.support import amount
from tests.support.firmware_files import (
    OTA_TABLE,
    TABLE,
    Run,
    assert_refused,
    run,
    small_app,
    small_firmware,
)
from tests.support.real_files import REAL, real_firmware

GOOD = small_firmware()
APP = small_app()
BOOTLOADER_SIZE = Image.from_bytes(GOOD).size
TABLE_AT, APP_AT = 0x7000, 0xF000  # in a file that starts at 0x1000

COMMANDS: dict[str, Callable[[Path, Path], list[object]]] = {
    "show": lambda bad, _: ["show", bad],
    "show json": lambda bad, _: ["show", bad, "--json"],
    "check": lambda bad, _: ["check", bad],
    "check json": lambda bad, _: ["check", bad, "--json"],
    "check as app": lambda bad, _: ["check", bad, "--as-app"],
    "check against": lambda bad, good: ["check", good / "app.bin", "--against", bad],
    "resize": lambda bad, good: ["resize", bad, "-f", "8M", "-o", good / "out.bin"],
    "resize name": lambda bad, _: ["resize", bad, "-f", "8M", "--layout", "ota"],
    "layout": lambda bad, good: ["resize", good / "good.bin", "--layout", bad, "-o", "out.bin"],
    "extract": lambda bad, good: ["extract", bad, "-o", good / "out.bin"],
    "extract name": lambda bad, _: ["extract", bad],
    "extract nvs": lambda bad, good: ["extract", bad, "nvs", "-o", good / "out.bin"],
    "extract bootloader": lambda bad, good: ["extract", bad, "bootloader", "-o", good / "out.bin"],
    "write": lambda bad, good: ["write", bad, f"factory={good / 'app.bin'}", "-o", good / "o.bin"],
    "erase": lambda bad, good: ["write", bad, "--erase", "nvs", "-o", good / "out.bin"],
    "write app": lambda bad, good: ["write", good / "good.bin", f"factory={bad}"],
    "write bootloader": lambda bad, good: ["write", good / "good.bin", f"bootloader={bad}"],
    "table": lambda bad, _: ["table", bad],
    "table csv": lambda bad, good: ["table", bad, "-o", good / "out.csv"],
}


@pytest.fixture(name="files")
def _files(tmp_path: Path) -> Path:
    (tmp_path / "good.bin").write_bytes(GOOD)
    (tmp_path / "app.bin").write_bytes(APP)
    return tmp_path


def assert_every_command_refuses(data: bytes, files: Path, *, skip: tuple[str, ...] = ()) -> None:
    bad = files / "bad.bin"
    bad.write_bytes(data)
    for name, arguments in COMMANDS.items():
        if name in skip:
            continue
        result = run(*arguments(bad, files))
        assert result.code in (1, 2), name
        if not result.out:  # check prints its verdict instead
            assert_refused(result)
        assert sorted(p.name for p in files.iterdir()) == ["app.bin", "bad.bin", "good.bin"], name
    assert bad.read_bytes() == data


@pytest.mark.parametrize(
    "size",
    [
        *(1, 3, 23, 24, 31, 32, 100, 0x1000, BOOTLOADER_SIZE - 1, BOOTLOADER_SIZE, TABLE_AT),
        *(TABLE_AT + n for n in (1, 32, 0x80, 0xA0, 0xC00, 0x1000)),
        *(APP_AT - 1, APP_AT, APP_AT + 1, APP_AT + 24, APP_AT + 0x120, 0x14000),
        *(len(GOOD) - n for n in (4096, 49, 48, 33, 32, 31, 16, 1)),
    ],
)
def test_every_command_refuses_a_firmware_cut_at_any_place(size: int, files: Path) -> None:
    # What ends between bootloader and table is an intact bootloader, which `write` may take.
    is_bootloader = BOOTLOADER_SIZE <= size <= TABLE_AT
    skip = ("write bootloader",) if is_bootloader else ()
    assert_every_command_refuses(GOOD[:size], files, skip=skip)


@pytest.mark.parametrize("size", [24, 32, 0x120, 5000, len(APP) - 33, len(APP) - 32, len(APP) - 1])
def test_every_command_refuses_an_app_cut_at_any_place(size: int, files: Path) -> None:
    assert_every_command_refuses(APP[:size], files)


def test_every_command_refuses_an_empty_file(files: Path) -> None:
    assert_every_command_refuses(b"", files)
    assert "is empty" in run("show", files / "bad.bin").err


@pytest.mark.parametrize("seed", range(6))
def test_every_command_refuses_random_bytes(seed: int, files: Path) -> None:
    rng = random.Random(seed)
    data = rng.randbytes(rng.choice((1, 24, 300, 70_000)))
    for start in (b"", b"\xe9", b"\xe9\x03\x02\x20", b"\xaa\x50", b"\xff" * 0x1000, b"\0" * 0x1000):
        assert_every_command_refuses(start + data, files)


IN_BOOTLOADER = [*range(24), 24, 28, 32, 40, 2000, *range(BOOTLOADER_SIZE - 34, BOOTLOADER_SIZE)]
IN_TABLE = [*range(TABLE_AT, TABLE_AT + 0xB0, 3), TABLE_AT + 0xBFF, TABLE_AT + 0xC00]
IN_APP = [
    *range(APP_AT, APP_AT + 34),
    *(APP_AT + n for n in (60, 0x120, 0x5000)),
    *range(len(GOOD) - 49, len(GOOD)),
]


@pytest.mark.parametrize(
    "positions", [IN_BOOTLOADER, IN_TABLE, IN_APP], ids=["bootloader", "table", "app"]
)
def test_every_command_refuses_a_flipped_bit(positions: list[int], files: Path) -> None:
    rng = random.Random(5)
    for position in amount.some_of(positions, 3):
        data = bytearray(GOOD)
        data[position] ^= 1 << rng.randrange(8)
        assert_every_command_refuses(bytes(data), files)


@pytest.mark.parametrize("name", REAL)
def test_every_command_refuses_real_firmware_with_a_flipped_bit(name: str, files: Path) -> None:
    good = real_firmware(name).read_bytes()
    base = 0x1000 if name.startswith("esp32 ") or name == "esp32" else 0
    for position in (3, 23, 0x400, 0x8004 - base, 0x8030 - base, 0x10017 - base, len(good) - 40):
        data = bytearray(good)
        data[position] ^= 0x10
        assert_every_command_refuses(bytes(data), files)


def test_every_command_refuses_a_stale_md5(files: Path) -> None:
    data = bytearray(GOOD)
    end = TABLE_AT + 32 * len(TABLE)
    assert data[end + 16 : end + 32] == hashlib.md5(data[TABLE_AT:end]).digest()
    data[end - 32 + 9] ^= 0x20  # the size of vfs, and the MD5 left as it was
    assert_every_command_refuses(bytes(data), files)
    assert "MD5" in run("show", files / "bad.bin").err


@pytest.mark.parametrize("is_dump", [False, True])
def test_a_damaged_slot_is_named_and_the_intact_one_found(is_dump: bool, tmp_path: Path) -> None:
    broken = APP[:50_000] + b"?" + APP[50_001:]
    dump = tmp_path / "dump.bin"
    dump.write_bytes(
        sample.build_firmware(
            "esp32", table=OTA_TABLE, app=APP, contents={"ota_1": broken}, is_dump=is_dump
        )
    )
    shown, checked = run("show", dump), run("check", dump)
    if is_dump:  # as an interrupted update leaves it
        assert shown.code == 0
        assert "ota_1" in shown.out
        assert "checksum" in shown.out
    else:
        assert_refused(shown, 1)
        assert "ota_1: app: checksum is" in shown.err
    assert checked.code == 0
    assert "'ota_0' boots" in checked.out
    assert "ota_1 at 0x40000: not bootable" in checked.out


def assert_nothing_new(directory: Path, before: dict[str, bytes]) -> None:
    found = {p.name: p.read_bytes() for p in directory.iterdir() if p.is_file()}
    assert found == before


WRITERS: list[list[object]] = [
    ["resize", "good.bin", "-f", "8M", "-o"],
    ["extract", "good.bin", "-o"],
    ["write", "good.bin", "factory=app.bin", "-o"],
    ["table", "good.bin", "-o"],
]


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["plain", "force"])
@pytest.mark.parametrize("writer", WRITERS, ids=lambda w: str(w[0]))
def test_the_input_is_never_the_output(
    writer: list[object], force: list[object], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    os.symlink("good.bin", "symlink.bin")
    os.link("good.bin", "hardlink.bin")
    (files / "sub").mkdir()
    before = {p.name: p.read_bytes() for p in files.iterdir() if p.is_file()}
    for output in ("good.bin", "./sub/../good.bin", "symlink.bin", "hardlink.bin", "missing/o.bin"):
        result = run(*writer, output, *force)
        assert_refused(result, 2)
        assert_nothing_new(files, before)
    if writer[0] == "write":
        assert_refused(run(*writer, "app.bin", *force), 2)
        assert_nothing_new(files, before)


@pytest.mark.parametrize("writer", WRITERS, ids=lambda w: str(w[0]))
def test_outputs_that_cannot_be_written_are_wrong_usage(
    writer: list[object], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    (files / "directory.bin").mkdir()
    before = {p.name: p.read_bytes() for p in files.iterdir() if p.is_file()}
    for output in ("directory.bin", "good.bin/x.bin", "n" * 300 + ".bin", ""):
        for force in ([], ["--force"]):
            assert_refused(run(*writer, output, *force), 2)
            assert_nothing_new(files, before)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_or_device_is_no_output_and_stays(files: Path) -> None:
    fifo = files / "fifo"
    os.mkfifo(fifo)
    assert_refused(run("extract", files / "good.bin", "-o", fifo, "--force"), 2)
    assert fifo.is_fifo()


def test_an_unwritable_directory_is_wrong_usage(files: Path) -> None:
    locked = files / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write everywhere")
    assert_refused(run("extract", files / "good.bin", "-o", locked / "app.bin"), 2)
    assert list(locked.iterdir()) == []


def test_a_write_that_fails_half_way_leaves_the_old_file(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = files / "out.bin"
    target.write_bytes(b"precious")

    def fail(self: Path, data: bytes) -> int:
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    result = run("resize", files / "good.bin", "-f", "8M", "-o", target, "--force")
    assert_refused(result, 2)
    assert "No space left on device" in result.err
    assert target.read_bytes() == b"precious"
    assert sorted(p.name for p in files.iterdir()) == ["app.bin", "good.bin", "out.bin"]


def test_an_existing_file_is_not_overwritten_without_force(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    for writer in WRITERS:
        target = files / "out.bin"
        target.write_bytes(b"precious")
        result = run(*writer, "out.bin")
        assert_refused(result, 2)
        assert "--force" in result.err
        assert target.read_bytes() == b"precious"
        assert run(*writer, "out.bin", "--force").code == 0
        assert target.read_bytes() != b"precious"


INPUTS: list[list[object]] = [
    ["show"],
    ["check"],
    ["resize", "-f", "8M"],
    ["extract"],
    ["write", "--erase", "nvs"],
    ["table"],
]


@pytest.mark.parametrize("reader", INPUTS, ids=lambda r: str(r[0]))
def test_inputs_that_are_no_files_are_wrong_usage(
    reader: list[object], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    (files / "directory").mkdir()
    os.symlink("nowhere", "dangling.bin")
    os.symlink("loop.bin", "loop.bin")
    before = sorted(os.listdir())
    command, *options = reader
    for path in (
        "missing.bin",
        "directory",
        ".",
        "dangling.bin",
        "loop.bin",
        "",
        "n" * 300,
    ):
        assert_refused(run(command, path, *options), 2)
        assert sorted(os.listdir()) == before
    assert_refused(run(command), 2)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("reader", INPUTS, ids=lambda r: str(r[0]))
def test_pipes_and_devices_are_refused_at_once(reader: list[object], files: Path) -> None:
    fifo = files / "fifo"
    os.mkfifo(fifo)
    command, *options = reader
    assert_refused(run(command, fifo, *options), 2)
    # A device may be a board's port: then it is the content that is not acceptable.
    assert_refused(run(command, "/dev/zero", *options))


def test_a_file_larger_than_any_flash_is_refused(files: Path) -> None:
    huge = files / "huge.bin"
    with open(huge, "wb") as file:
        file.write(GOOD)
        file.truncate(1 << 40)  # sparse
    result = run("show", huge)
    assert_refused(result, 1)
    assert "larger than" in result.err


def mpota(*arguments: str | bytes | Path, **options: Any) -> Run:
    """The command in a process of its own, as a shell starts it."""
    done = subprocess.run(
        [sys.executable, "-m", "mpota", *arguments], capture_output=True, **options
    )
    return Run(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text here")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_file_name_need_not_be_text(encoding: str, files: Path) -> None:
    name = os.fsencode(files) + b"/firmw\xe4re \xff.bin"
    Path(os.fsdecode(name)).write_bytes(GOOD)
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    resized = mpota("resize", name, "-f", "8M", env=env)
    assert (resized.code, resized.err) == (0, "")
    assert Path(os.fsdecode(name[:-4] + b"-8MB.bin")).exists()
    assert mpota("show", name, env=env).code == 0
    Path(os.fsdecode(name)).write_bytes(GOOD[:-1])
    refused = mpota("show", name, env=env)
    assert_refused(refused, 1)


def test_a_closed_pipe_is_no_traceback(files: Path) -> None:
    command = f"{sys.executable} -m mpota show {files / 'good.bin'} | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("command", ["show", "check", "table"])
def test_a_full_disk_under_standard_output_is_no_traceback(command: str, files: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mpota", command, files / "good.bin"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert_refused(Run(done.returncode, "", done.stderr), 1)
    assert "No space left on device" in done.stderr


_KILLED_AT_RENAME = """
import os, pathlib, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # where it is ignored from the start
pathlib.Path.replace = lambda self, target: os.kill(os.getpid(), {signal})
from mpota.cli import main
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="no signals here")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_writing_leaves_the_old_file(name: str, files: Path) -> None:
    number = signal.Signals[name].value
    target = files / "out.bin"
    target.write_bytes(b"precious")
    code = _KILLED_AT_RENAME.format(signal=number)
    arguments = ["resize", files / "good.bin", "-f", "8M", "-o", target, "--force"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 128 + number
    assert "Traceback" not in done.stderr
    assert target.read_bytes() == b"precious"
    assert sorted(p.name for p in files.iterdir()) == ["app.bin", "good.bin", "out.bin"]


# Ctrl-C while modules are loaded. Dataclasses are made by exec().
_INTERRUPTED_IMPORTS = {
    "a text that is run": "exec('signal.raise_signal(signal.SIGINT)')",
    "a class that is made": """
class Descriptor:
    def __set_name__(self, owner, name):
        signal.raise_signal(signal.SIGINT)
class Owner:
    field = Descriptor()
""",
}


@pytest.mark.skipif(os.name == "nt", reason="no signals here")
@pytest.mark.parametrize("where", _INTERRUPTED_IMPORTS)
def test_ctrl_c_while_modules_are_loaded_is_one_line_and_130(where: str, tmp_path: Path) -> None:
    handler = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    (tmp_path / "esptool.py").write_text(handler + _INTERRUPTED_IMPORTS[where])
    done = subprocess.run(
        [sys.executable, "-m", "mpota", "slots", os.devnull],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.strip()) == (130, "mpota: interrupted")


@pytest.mark.skipif(os.name == "nt", reason="links need rights here")
def test_a_link_stays_and_what_it_points_to_is_replaced(files: Path) -> None:
    target, link = files / "target.bin", files / "link.bin"
    target.write_bytes(b"old")
    link.symlink_to("target.bin")
    assert run("extract", files / "good.bin", "-o", link, "--force").code == 0
    assert link.is_symlink()
    assert target.read_bytes() == APP


@pytest.mark.skipif(not os.path.exists("/dev/stdin"), reason="no /dev/stdin here")
def test_a_file_on_standard_input_is_no_port(files: Path) -> None:
    with open(files / "good.bin") as file:
        done = subprocess.run(
            [sys.executable, "-m", "mpota", "show", "/dev/stdin"],
            stdin=file,
            capture_output=True,
            text=True,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert "ESP32" in done.stdout


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"<!DOCTYPE html><title>404 Not Found</title>", "a web page"),
        (b"\n<html lang=en>", "a web page"),
        (b"\x7fELF\x01\x01\x01", "an ELF file"),
        (b"UF2\nWQ]\x9e", "a UF2 file"),
        (b"\x1f\x8b\x08\x00", "compressed by gzip"),
        (b"PK\x03\x04", "a zip archive"),
        (b"manifest.json\0", "a bundle"),
        (b"OTAF\x01\x02", "a compressed app or a delta"),
        (b'{"format": 1}', "JSON"),
    ],
)
def test_other_files_under_the_name_of_a_firmware_are_called_what_they_are(
    start: bytes, what: str, files: Path
) -> None:
    assert_every_command_refuses(start, files)
    for command in ("show", "check", "extract", "table"):
        assert f"is {what}" in run(command, files / "bad.bin").err


def test_a_csv_that_is_no_text_is_called_one(files: Path) -> None:
    bad = files / "table.csv"
    bad.write_bytes("f\xe4ctory,app,factory,0x10000,1M".encode("latin-1"))
    result = run("table", bad)
    assert_refused(result, 1)
    assert "table.csv is no CSV: 30 bytes that are not all printable UTF-8" in result.err


def test_a_segment_of_a_gigabyte_needs_no_gigabyte_of_memory() -> None:
    data = bytearray(GOOD)
    last = Image.from_bytes(APP).segments[-1]
    at = APP_AT + last.data_offset - 4
    data[at : at + 4] = (0x3EFA3DE8).to_bytes(4, "little")
    check = check_flash(FileImage(0x1000, bytes(data)))
    assert not check.is_ok
    assert check.slots
    assert all(len(slot.data) <= slot.partition.size for slot in check.slots)


@pytest.mark.parametrize(("offset", "size"), [(0x10000, 0xFFF00000), (0xFFF00000, 0x100000)])
def test_a_partition_of_gigabytes_is_refused(offset: int, size: int, files: Path) -> None:
    row = Partition("factory", 0, 0, offset, size)
    data = bytearray(GOOD)
    data[TABLE_AT : TABLE_AT + 0xC00] = PartitionTable((row,)).to_bytes()
    assert_every_command_refuses(bytes(data), files)
    (files / "bad.bin").write_bytes(data)
    result = run("show", files / "bad.bin")
    assert f"'factory' ends at {offset + size:#x}, the flash at 0x8000000" in result.err


def test_check_names_what_bytes_that_belong_to_nothing_follow(files: Path) -> None:
    bad = files / "bad.bin"
    bad.write_bytes(GOOD + b"more")
    result = run("check", bad)
    assert result.code == 1
    assert "\nfile: factory ends at " in result.out


def test_a_blank_partition_is_called_blank(files: Path) -> None:
    ota = files / "ota.bin"
    contents = {"ota_0": APP}
    data = sample.build_firmware("esp32", table=OTA_TABLE, contents=contents, is_dump=True)
    ota.write_bytes(data)
    result = run("extract", ota, "ota_1")
    assert_refused(result, 1)
    assert "ota_1: the partition is blank" in result.err


def test_a_name_out_of_a_damaged_table_cannot_break_the_line(tmp_path: Path) -> None:
    table = bytearray(TABLE.to_bytes())
    table[12:28] = b"nvs\nmpota: fine\n"
    table[128 + 16 : 128 + 32] = hashlib.md5(table[:128]).digest()
    data = bytearray(GOOD)
    data[TABLE_AT : TABLE_AT + 0xC00] = table
    bad = tmp_path / "bad.bin"
    bad.write_bytes(data)
    result = run("show", bad)
    assert (result.code, result.err) == (0, "")
    assert "\nmpota: fine" not in result.out
    result = run("resize", bad, "-f", "8M", "-o", tmp_path / "made.bin")
    assert_refused(result, 1)
    assert "nvs\\nmpota: fine\\n" in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["show", "--nothing"],
        ["show", "good.bin", "extra"],
        ["write", "good.bin"],
        ["write", "good.bin", "factory"],
        ["write", "good.bin", "factory="],
        ["write", "good.bin", "=app.bin"],
        ["write", "good.bin", "factory=missing.bin"],
        ["write", "good.bin", "factory=app.bin", "factory=app.bin"],
        ["write", "good.bin", "factory=app.bin", "--erase", "factory"],
        ["table", "good.bin", "-o", "out.txt"],
        ["table", "good.bin", "-f", "5x"],
        ["check", "app.bin", "--against", "missing.bin"],
        ["extract", "good.bin", "factory", "extra"],
        ["resize", "good.bin", "-f"],
        ["show", "good.bin", "--table-offset", "8000h"],
        ["show", "good.bin", "--table-offset", "0"],
        ["show", "good.bin", "--table-offset", "0x10000000"],
        ["keygen", "good.bin"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(
    arguments: list[str], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    assert_refused(run(*arguments), 2)
    assert sorted(os.listdir()) == ["app.bin", "good.bin"]


@pytest.mark.parametrize("command", ["resize", "extract", "write"])
def test_commands_that_need_a_firmware_say_so_of_other_files(command: str, files: Path) -> None:
    options = {"resize": ["-f", "8M"], "extract": [], "write": ["--erase", "nvs"]}[command]
    csv, table = files / "t.csv", files / "t.bin"
    csv.write_text(table_to_csv(TABLE))
    table.write_bytes(TABLE.to_bytes())
    for path in (csv, table, files / "app.bin"):
        assert_refused(run(command, path, *options), 1)
