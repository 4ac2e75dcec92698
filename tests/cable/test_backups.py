"""Backups and journals: their owner's alone, of bounded size, believed if they are one's own."""

from __future__ import annotations

import io
import json
import os
import stat
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from mpota.filesystem.littlefs import build
from mpota.flashing import backup as backups
from mpota.storage.file import replacing
from mpota.units import MiB
from mpota.virtual.flash import VirtualFlash

from tests.support.cable_boards import CHIP, NVS_DATA, OLD_APP, SINGLE, firmware


@pytest.fixture
def board(plug_in):
    files = build({"main.py": b"1\n" * 9000}, SINGLE["vfs"].size)
    data = firmware(SINGLE, OLD_APP, is_dump=True, contents={"nvs": NVS_DATA, "vfs": files})
    return plug_in(VirtualFlash.create(2 * MiB, {0: data}), CHIP)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def interrupted(board, mpota, tmp_path, monkeypatch) -> tuple[object, Path]:
    """A board whose `resize --layout ota` was interrupted before its first write; the journal."""

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(backups, "carry_out", stop)
        mpota("resize", board.path, "--layout", "ota", "-y", exit_code=130)
    (journal,) = tmp_path.glob("*.unfinished")
    assert mode(journal) == 0o600
    board.flash.restart_count()
    return board, journal


def test_a_backup_is_for_its_owner_whatever_the_umask_and_whatever_stood_there(
    board, mpota, tmp_path
):
    before = os.umask(0)
    try:
        mpota("resize", board.path, "-y", "--layout", "ota", "--backup", "b.zip")
        assert mode(tmp_path / "b.zip") == 0o600
        (tmp_path / "there").write_bytes(b"old")
        (tmp_path / "there").chmod(0o666)
        seen = []
        with replacing(tmp_path / "there", private=True) as temporary:
            seen.append(mode(temporary))
            temporary.write_bytes(b"new")
        assert (seen, mode(tmp_path / "there")) == ([0o600], 0o600)
    finally:
        os.umask(before)


def test_a_link_in_the_place_of_a_backup_leads_nowhere(board, mpota, tmp_path):
    mpota("resize", board.path, "-y", "--layout", "ota")
    (made,) = tmp_path.glob("mpota-backup-*.zip")
    mpota("restore", made, board.path, "-y")
    made.unlink()
    target = tmp_path / "elsewhere"
    made.symlink_to(target)
    made.with_name(made.name + backups.UNFINISHED).symlink_to(target)
    mpota("resize", board.path, "-y", "--layout", "ota")
    assert not target.exists()
    assert [p.is_symlink() for p in tmp_path.glob("mpota-backup-*-2.zip")] == [False]


def others(journal: Path) -> dict[str, Callable[[], object]]:
    """Ways in which a journal is not this user's own."""

    def link() -> None:
        journal.rename(journal.with_name("real"))
        journal.symlink_to("real")

    return {
        "writable by all": lambda: journal.chmod(0o666),
        "writable by the group": lambda: journal.chmod(0o660),
        "a link": link,
        "another owner": lambda: os.chown(journal, 12345, -1),
    }


@pytest.mark.parametrize("way", others(Path()))
def test_a_journal_that_this_user_did_not_write_is_left_alone(interrupted, mpota, way, hostile):
    hostile()
    board, journal = interrupted
    if way == "another owner" and os.geteuid():
        pytest.skip("only root gives files away")
    others(journal)[way]()
    planted = journal.read_bytes()
    shown = mpota("resize", board.path, "--layout", "ota", "--dry-run")
    assert f"note: {journal.name} is left alone: " in shown
    assert "going on with" not in shown
    named = journal.name.removesuffix(backups.UNFINISHED)
    code = 2 if way == "a link" else 1
    shown = mpota("resize", board.path, "-y", "--layout", "ota", "--backup", named, exit_code=code)
    assert "is not yours" in shown or "cannot read" in shown
    assert board.flash.operations == []
    assert journal.read_bytes() == planted


def test_a_journal_for_another_board_or_change_is_not_taken_up(interrupted, mpota):
    board, journal = interrupted
    shown = mpota("resize", board.path, "-y", "--layout", "single", exit_code=1)
    assert "another change to this board was interrupted" in shown
    rewrite(journal, mac="aa" * 6)
    shown = mpota("resize", board.path, "-y", "--layout", "ota", exit_code=1)
    assert "the backup is of another board" in shown
    assert board.flash.operations == []


def rewrite(path: Path, **changes: object) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(members["manifest.json"]) | changes
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
        for name, data in members.items():
            if name != "manifest.json":
                archive.writestr(name, data)


def test_a_journal_is_not_taken_up_on_a_board_that_was_changed_since(interrupted, mpota):
    board, journal = interrupted
    for offset in range(0x8000, 2 * MiB, 0x1000):
        board.flash.erase(offset, 0x1000)
        board.flash.write(offset, bytes(range(256)) * 16)
    before = board.flash.snapshot()
    shown = mpota("resize", board.path, "--layout", "ota", "-y", exit_code=1)
    assert "the board was changed since" in shown
    assert board.flash.snapshot() == before
    assert journal.exists()


def test_before_a_journal_is_taken_up_it_is_asked_for(interrupted, mpota, monkeypatch):
    board, journal = interrupted
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    shown = mpota("resize", board.path, "--layout", "ota", exit_code=1)
    assert "going on with" in shown
    assert "Go on with it?" in shown
    assert "nothing was written" in shown
    assert board.flash.operations == []
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert "done: " in mpota("resize", board.path, "--layout", "ota")
    assert board.flash.operations
    assert not journal.exists()


def test_the_option_yes_answers_the_question(interrupted, mpota, monkeypatch):
    board, _ = interrupted
    monkeypatch.setattr("sys.stdin", Terminal(""))
    assert "done: " in mpota("resize", board.path, "--layout", "ota", "-y")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


MAC = "240ac4000102"  # of the virtual board


def crafted_backup(count: int, size: int, flash_size: int, **changes: object) -> bytes:
    """A backup of the board, as far as it says."""
    rows = [{"what": "vfs", "offset": 0, "size": size} for _ in range(count)]
    manifest: dict[str, object] = {
        "format": "mpota-backup-1", "chip": "esp32c3", "mac": MAC, "flash_size": flash_size,
        "table_offset": 0x8000, "change": "resize", "areas": rows, "writes": rows,
    }  # fmt: skip
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", json.dumps(manifest | changes))
        for index in range(count):
            for kind in ("before", "after"):
                archive.writestr(f"{kind}/{index:02}-0x00000000.bin", bytes(size))
    return made.getvalue()


def with_directory(data: bytes, size: int) -> bytes:
    """The zip file with so large a directory announced."""
    end = bytearray(data[-22:])
    struct.pack_into("<I", end, 12, size)
    return data[:-22] + bytes(end)


def lzma_bomb() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("manifest.json", b" " * (1 << 20))
    return made.getvalue()


NESTED = json.loads("[" * 90 + "]" * 90)
CRAFTED: dict[str, Callable[[], bytes]] = {
    "areas beyond the flash": lambda: crafted_backup(1, 64 * MiB, 2 * MiB),
    "areas again and again": lambda: crafted_backup(40, 2 * MiB, 2 * MiB),
    "another flash": lambda: crafted_backup(1, 128 * MiB, 128 * MiB),
    "writes again and again": lambda: crafted_backup(
        1, MiB, 2 * MiB, writes=[{"offset": 0, "size": MiB}] * 20_000
    ),
    "negative": lambda: crafted_backup(1, MiB, 2 * MiB, writes=[{"offset": -4096, "size": 4096}]),
    "infinite": lambda: crafted_backup(0, 0, 2 * MiB, areas=[{"offset": float("inf"), "size": 1}]),
    "a manifest that nests": lambda: crafted_backup(0, 0, 0, change=NESTED),
    "no rows": lambda: crafted_backup(0, 0, 2 * MiB, areas=7),
    "a huge directory": lambda: with_directory(crafted_backup(0, 0, 2 * MiB), 1 << 31),
    "another compression": lzma_bomb,
    "no zip": lambda: b"PK" * 1000,
    "nearly empty": lambda: b"P",
}


@pytest.mark.parametrize("make", CRAFTED.values(), ids=CRAFTED)
def test_crafted_backups_take_bounded_memory_and_touch_nothing(
    board, mpota, tmp_path, make, hostile
):
    hostile()
    path = tmp_path / "b.zip"
    path.write_bytes(make())
    assert path.stat().st_size < 2 * MiB
    board.flash.restart_count()
    tracemalloc.start()
    try:
        shown = mpota("restore", path, board.path, "-y", exit_code=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "damaged" in shown or "another board" in shown
    assert peak < 40 * MiB, f"{peak / MiB:.0f} MiB"
    assert board.flash.operations == []
