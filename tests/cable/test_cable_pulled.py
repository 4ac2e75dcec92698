"""The cable is pulled, and the power fails with it, in the middle of flash, ota and resize."""

from __future__ import annotations

import subprocess
import sys

import pytest
from mpota.bootloader.boot import boot
from mpota.filesystem.littlefs import build
from mpota.formats.otadata import OtaRecord, OtaState
from mpota.units import MiB
from mpota.virtual.cuts import power_cut, record_changes
from mpota.virtual.flash import CutMode, VirtualFlash

from tests.support import amount
from tests.support.cable_boards import CHIP, NEW_APP, NVS, NVS_DATA, OLD_APP, OTA, SINGLE, firmware

SELECTED = OtaRecord.selecting(2, OtaState.VALID).to_bytes()
OTA_CONTENTS = {"nvs": NVS_DATA, "vfs": b"files", "ota_1": OLD_APP, "otadata": SELECTED}


def flash_with(size: int, table, contents) -> VirtualFlash:
    data = firmware(table, OLD_APP, is_dump=True, contents=contents)
    return VirtualFlash.create(size, {0: data})


def boots(flash: VirtualFlash) -> str | None:
    """What boots, without leaving the bootloader's traces."""
    with VirtualFlash.create(flash.size, {0: flash.snapshot()}) as copy:
        starts = boot(copy).starts
    return starts.label if starts else None


class Story:
    """One command on one board, cut short at will."""

    def __init__(self, plug_in, mpota, flash, args):
        self.plug_in, self.mpota, self.flash, self.args = plug_in, mpota, flash, args
        self.start = flash.snapshot()
        self.operations = record_changes("command", flash, self.run).operations
        self.end = flash.snapshot()

    def run(self, exit_code=0):
        cable = self.plug_in(self.flash, CHIP)
        self.flash.restart_count()
        output = self.mpota(*self.args(cable.path), exit_code=exit_code)
        cable.unplug()
        return output

    def cut(self, op: int, mode: CutMode) -> str:
        """Run into a power cut at operation ``op``: the output of the command that failed."""
        self.flash.restore(self.start)
        with power_cut(self.flash, op, mode):
            output = self.run(exit_code=1)
        assert "run the same command again" in output
        return output

    def points(self, places):
        """Operations to cut at: some, and all that touch ``places``; with ``--all-cuts`` all."""
        if amount.is_all:
            return range(len(self.operations))
        last = len(self.operations) - 1
        touching = [
            i
            for i, o in enumerate(self.operations)
            if any(p <= o.offset < p + 0x1000 for p in places)
        ]
        return sorted({0, 1, last // 2, last, *touching})


@pytest.fixture
def story(plug_in, mpota):
    flashes = []

    def story(size, table, contents, args):
        flash = flash_with(size, table, contents)
        flashes.append(flash)
        return Story(plug_in, mpota, flash, args)

    yield story
    for flash in flashes:
        flash.close()


def test_ota_cut_anywhere_leaves_a_board_that_boots_and_the_same_command_repairs_it(
    story, tmp_path
):
    (tmp_path / "new.bin").write_bytes(NEW_APP)
    update = story(2 * MiB, OTA, {}, lambda port: ["ota", "-y", port, "new.bin"])
    assert boots(update.flash) == "ota_1"
    for op in update.points([0xD000, 0xE000]):
        update.cut(op, CutMode.TORN)
        # The last write selects the new slot: it counts from its 32nd byte on.
        is_last = op == len(update.operations) - 1
        allowed = ("ota_0", "ota_1") if is_last else ("ota_0",)
        assert boots(update.flash) in allowed, f"cut at operation {op}"
        update.run()
        assert update.flash.snapshot() == update.end, f"cut at operation {op}"


def test_flash_over_the_same_table_cut_anywhere_boots_the_old_app_until_the_new_one_is_whole(
    story, tmp_path
):
    (tmp_path / "new.bin").write_bytes(firmware(OTA, NEW_APP))
    update = story(2 * MiB, OTA, OTA_CONTENTS, lambda port: ["flash", "-y", "new.bin", port])
    assert boots(update.flash) == "ota_0"
    for op in update.points([0xD000, 0xE000]):
        update.cut(op, CutMode.GARBLED)
        assert boots(update.flash) in ("ota_0", "ota_1"), f"cut at operation {op}"
        update.run()
        assert update.flash.snapshot() == update.end, f"cut at operation {op}"
    assert update.flash.read(0x9000, len(NVS_DATA)) == NVS_DATA
    assert update.flash.read(OTA["vfs"].offset, 5) == b"files"


def test_flash_with_another_table_is_repaired_by_the_same_command(story, tmp_path):
    (tmp_path / "new.bin").write_bytes(firmware(OTA, NEW_APP))
    contents = {"nvs": NVS_DATA, "vfs": b"files"}
    update = story(2 * MiB, SINGLE, contents, lambda port: ["flash", "-y", "new.bin", port])
    for op in update.points([0x8000]):
        update.cut(op, CutMode.TORN)
        update.run()
        assert boots(update.flash) == "ota_0", f"cut at operation {op}"


def test_resize_goes_on_where_it_was_cut_and_boots_meanwhile_unless_it_said_otherwise(
    story, tmp_path
):
    files = {"main.py": b"print('hello')", "data.bin": bytes(range(256)) * 64}
    contents = {"nvs": NVS_DATA, "vfs": build(files, SINGLE["vfs"].size)}
    resize = story(
        4 * MiB,
        SINGLE,
        contents,
        lambda port: ["resize", "-y", port, "-f", "4M", "--layout", "ota"],
    )
    for op in resize.points([0x0, 0x8000]):
        operation = resize.operations[op]
        resize.cut(op, CutMode.TORN)
        (journal,) = tmp_path.glob("*.unfinished")
        if operation.offset >= NVS.offset:  # bootloader and table in front: said to be unsafe
            assert boots(resize.flash) in ("factory", "ota_0"), f"cut at operation {op}"
        output = resize.run()
        assert "was interrupted, going on with" in output
        assert not journal.exists()
        assert resize.flash.snapshot() == resize.end, f"cut at operation {op}"


def test_restore_takes_back_a_resize_that_was_cut(story, plug_in, mpota, tmp_path):
    files = {"main.py": b"print('hello')", "data.bin": bytes(range(256)) * 64}
    contents = {"nvs": NVS_DATA, "vfs": build(files, SINGLE["vfs"].size)}
    resize = story(
        4 * MiB,
        SINGLE,
        contents,
        lambda port: ["resize", "-y", port, "-f", "4M", "--layout", "ota"],
    )
    table = next(i for i, o in enumerate(resize.operations) if o.offset == 0x8000)
    resize.cut(table, CutMode.AFTER)
    assert boots(resize.flash) is None
    (journal,) = tmp_path.glob("*.unfinished")
    cable = plug_in(resize.flash, CHIP)
    other = mpota("resize", cable.path, "-y", "--layout", "single", exit_code=1)
    assert "another change to this board was interrupted: resize 4MB ota" in other
    mpota("restore", journal, cable.path, "-y")
    assert resize.flash.snapshot() == resize.start
    assert boots(resize.flash) == "factory"


def test_a_client_that_is_killed_leaves_a_board_that_the_same_command_repairs(
    plug_in, mpota, tmp_path
):
    (tmp_path / "new.bin").write_bytes(firmware(SINGLE, NEW_APP))
    with flash_with(2 * MiB, SINGLE, {"vfs": b"files"}) as flash:
        cable = plug_in(flash, CHIP)
        command = [sys.executable, "-m", "mpota", "flash", "-y", "new.bin", cable.path]
        client = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path)
        while len(flash.operations) < 5 and client.poll() is None:
            pass
        client.kill()
        client.wait()
        mpota("flash", "-y", "new.bin", cable.path)
        cable.unplug()
        assert cable.port.failure is None
        assert boots(flash) == "factory"
        assert flash.read(0x10000, len(NEW_APP)) == NEW_APP
        assert flash.read(SINGLE["vfs"].offset, 5) == b"files"
