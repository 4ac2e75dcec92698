"""ota.rollback where flash, NVS or the file system fail, and where there is nothing to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mpota.formats.partition_table import Partition
from mpota.virtual.board import Board, End, Run
from mpota.virtual.call_faults import CallFault

from tests.support import boards, ota_board, releases
from tests.support.releases import app, key, make, tree

INSTALL = "import ota; ota.release.install('/frozen/{}.bundle')"
COUNTER = "import ota; print(ota.keys.counter())"
NOT_ENOUGH_SPACE = -0x1105
FLASH_FAILS = 0x6001
# main.py that lets the watchdog loose until it has confirmed, as `mpota push` does.
GUARDED = """
import ota, time
ota.rollback.guard(0.4)
ota.rollback.cancel()
time.sleep(0.5)  # longer than the watchdog of guard() waits
print("alive")
"""


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """A board with a key, on which release 1 is confirmed."""
    board = releases.board(tmp_path)
    board.skipped_sleep_ms = 50
    put(board, "1", tree("1"), counter=1)
    run = board.run(
        f"import ota; ota.keys.add({key().public.digest.hex()!r}); " + INSTALL.format("1")
    )
    assert "runs v1.26.1 1" in run.output, run.console
    return board


def put(board: Board, name: str, *contents: releases.Content, **fields: object) -> None:
    assert board.frozen is not None
    bundle = make(*contents, keys=(key(),), **fields)
    (board.frozen / f"{name}.bundle").write_bytes(bundle.to_bytes())


def state(board: Board) -> str:
    return board.run(COUNTER).output.strip()


# --- NVS, otadata and the file system fail


@pytest.mark.parametrize("call", ["nvs_set", "nvs_commit", "nvs_erase", "nvs_get"])
def test_without_nvs_an_app_is_confirmed_and_the_rest_follows_later(
    board: Board, call: str
) -> None:
    put(board, "2", app(), tree("2", GUARDED), counter=2, version="2.0")
    board.run(INSTALL.format("2").replace(")", ", reboot=False)"))
    board.call_faults = [CallFault(call, NOT_ENOUGH_SPACE)]
    for _ in range(2):  # the first boot and a later one
        run = board.run()
        assert run.labels == ("ota_1",), run.console
        assert run.output.endswith("alive\n"), run.console
        if call in ("nvs_set", "nvs_commit"):
            assert "ota.rollback.cancel(): to be tried again: ReleaseError(" in run.output
    board.call_faults = []
    board.run()
    assert state(board) == "2"
    assert "tried again" not in board.run().output


def test_a_full_nvs_does_not_reset_a_confirmed_board(board: Board) -> None:
    put(board, "2", app(), tree("2", GUARDED), counter=2, version="2.0")
    fill = "\nfrom esp32 import NVS; n = NVS('app')\n"
    fill += "for i in range(999): n.set_i32(str(i), i)\nn.commit()"
    run = board.run(INSTALL.format("2").replace(")", ", reboot=False)") + fill)
    assert "NOT_ENOUGH_SPACE" in run.traceback
    for _ in range(2):
        run = board.run()
        assert (run.labels, run.output[-6:]) == (("ota_1",), "alive\n"), run.console


@pytest.mark.parametrize("error", [FLASH_FAILS, 0x103])
def test_what_otadata_does_not_take_is_not_confirmed_and_the_watchdog_bites(
    board: Board, error: int
) -> None:
    put(board, "2", app(), tree("2", GUARDED), counter=2, version="2.0")
    board.run(INSTALL.format("2").replace(")", ", reboot=False)"))
    board.call_faults = [CallFault("mark_valid", error)]
    run = board.run(wait_at_idle=True, timeout_s=20, max_boots=2)
    assert run.labels == ("ota_1", "ota_0"), run.console
    assert "StateError: the flash of otadata" in run.boots[0].output


@pytest.mark.parametrize("call", ["write", "erase"])
def test_a_file_system_that_fails_does_not_stop_cancel(board: Board, call: str) -> None:
    put(board, "2", app(), tree("2"), counter=2, version="2.0")
    board.run(INSTALL.format("2").replace(")", ", reboot=False)"))
    board.call_faults = [CallFault(call, FLASH_FAILS, "vfs")]
    run = board.run("import ota.rollback; ota.rollback.cancel(); print('alive')")
    assert (run.output[-6:], run.labels) == ("alive\n", ("ota_1",)), run.console
    board.call_faults = []
    assert board.run().labels == ("ota_1",)
    assert state(board) == "2"


def test_the_switch_that_fails_is_an_ota_error(board: Board) -> None:
    put(board, "2", app(), tree("2"), counter=2, version="2.0")
    board.run(INSTALL.format("2"))
    for call, action in (
        ("set_boot", "ota.rollback.force()"),
        ("erase", "ota.rollback.mark_invalid(False)"),
        ("write", "ota.rollback.mark_invalid(False)"),
        ("read", "ota.rollback.force()"),
        ("read", "ota.rollback.mark_invalid(False)"),
    ):
        where = "ota_0" if call == "set_boot" else "otadata"
        board.call_faults = [CallFault(call, FLASH_FAILS, where)]
        run = board.run(
            f"import ota\ntry:\n    {action}\nexcept ota.OTAError as error:\n    print(error.code)"
        )
        assert (run.output, run.traceback) == ("otadata\n", ""), (call, action, run.console)
    board.call_faults = [CallFault("read", FLASH_FAILS, "otadata")]
    run = board.run(
        "import ota\n"
        "try:\n    ota.status.info()\nexcept ota.OTAError as error:\n    print(error.code)"
    )
    assert run.output == "flash\n", run.console


# --- a file system that cannot hold a release


TRY = """
import ota
try:
    ota.release.install('/frozen/2.bundle', reboot=False)
    print("done")
except ota.OTAError as error:
    print(error.code + ":", error)
"""


@pytest.mark.parametrize("what", ["read-only", "missing", "worn"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_file_system_that_takes_nothing_is_noticed_before_the_first_erase(
    board: Board, tmp_path: Path, what: str, is_first: bool
) -> None:
    if is_first:
        board = releases.board(tmp_path)
    put(board, "2", app(), tree("2"), counter=2, version="2.0")
    before = {
        "read-only": "import vfs, flashbdev; vfs.umount('/'); "
        "vfs.mount(flashbdev.bdev, '/', readonly=True)",
        "missing": "import vfs; vfs.umount('/')",
        "worn": "",
    }
    if what == "worn":
        board.call_faults = [
            CallFault("write", FLASH_FAILS, "vfs"), CallFault("erase", FLASH_FAILS, "vfs")
        ]  # fmt: skip
    board.flash.restart_count()
    run = board.run(before[what] + TRY)
    assert "disk: " in run.output, run.console
    assert ("no file system" in run.output) == (what == "missing")
    slots = [op for op in run.operations if boards.OTADATA.offset <= op.offset < boards.VFS.offset]
    assert slots == []


@pytest.mark.parametrize("left", ["trees", "home"])
def test_clean_up_hides_no_error(board: Board, left: str) -> None:
    """As after a power cut between two mkdir(), or where somebody has tidied up."""
    put(board, "2", app().compressed(), tree("2"), counter=2, version="2.0")
    damaged = bytearray((board.frozen / "2.bundle").read_bytes())
    damaged[-3000] ^= 1
    (board.frozen / "2.bundle").write_bytes(damaged)
    run = board.run(
        "import os\n"
        "def remove(path):\n"
        "    if os.stat(path)[0] & 0x4000:\n"
        "        for name in os.listdir(path): remove(path + '/' + name)\n"
        "        os.rmdir(path)\n"
        "    else: os.remove(path)\n"
        f"remove({'/.ota/trees' if left == 'home' else '/.ota'!r})\n"
        "os.chdir('/')\n" + TRY + "ota.rollback.cancel(); print('alive')"
    )
    assert run.output.splitlines()[-1] == "alive", run.console
    assert run.output.startswith(("digest: ", "tar: ", "path: ")), run.console


@pytest.mark.parametrize("form", ["plain", "compressed"])
def test_an_abort_leaves_no_file_open(board: Board, form: str) -> None:
    """What is open is written when the collector closes it: into a tree that is gone."""
    content = tree("2")
    put(board, "2", content.compressed() if form == "compressed" else content, counter=2)
    data = (board.frozen / "2.bundle").read_bytes()
    at = data.index(b"<p>2</p>\n" * 40) + 5000 if form == "plain" else len(data) - 1200
    (board.frozen / "2.bundle").write_bytes(data[:at])
    counts = []
    start = board.flash.snapshot()
    for collect in ("", "import gc; gc.collect(); gc.collect()"):
        board.flash.restore(start)
        run = board.run(TRY + collect)
        assert run.output.partition(":")[0] in ("tar", "member", "frame", "truncated"), run.console
        counts.append(len(run.operations))
    assert counts[0] == counts[1]
    assert board.run("import os; print(len(os.listdir('/.ota/trees')))").output == "1\n"


# --- force, and back


FACTORY = Partition("factory", 0, 0, 0x10000, 0x20000)
OTA_0 = Partition("ota_0", 0, 0x10, 0x30000, 0x20000)
OTA_1 = Partition("ota_1", 0, 0x11, 0x50000, 0x40000)
WITH_FACTORY = (boards.NVS, boards.OTADATA, FACTORY, OTA_0, OTA_1, boards.VFS)


@pytest.mark.parametrize("is_confirmed", [True, False])
def test_cancel_force_brings_an_app_back_from_factory_as_it_was(
    tmp_path: Path, is_confirmed: bool
) -> None:
    board = releases.board(tmp_path, table=WITH_FACTORY)
    (tmp_path / "app.bin").write_bytes(boards.app("v1.28.0"))
    confirm = "ota.rollback.cancel(); " if is_confirmed else ""
    back = "ota.rollback.force(); ota.rollback.cancel(); ota.rollback.cancel_force()"
    main = f"import ota, esp32\nif esp32.Partition(1).info()[4] == 'ota_0': {confirm}{back}"
    run = board.run(
        f"with open('main.py', 'w') as f: f.write({main!r})\n"
        "import ota; ota.update.from_file('/frozen/app.bin', reboot=False, verbose=False)\n"
        "import machine; machine.reset()\n"
    )
    assert (run.labels, run.traceback) == (("factory", "ota_0"), ""), run.console
    states = [record.state_name for record in ota_board.records(board)]
    assert states[0] == ("VALID" if is_confirmed else "NEW")


# --- files on trial


def on_trial(main: str) -> str:
    """A main.py that tells which code runs, and then does ``main``."""
    return f"import ota, code\nprint('runs', code.VERSION)\n{main}\n"


def try_files(board: Board, main: str, version: str = "2", wait_at_idle: bool = False) -> Run:
    """Install files without an app, whose main.py does ``main``, and boot until all is calm."""
    put(board, version, tree(version, on_trial(main)), counter=int(version), chip=None)
    return board.run(INSTALL.format(version), wait_at_idle=wait_at_idle)


def test_files_that_are_given_up_do_not_come_back_by_themselves(board: Board) -> None:
    run = try_files(board, "ota.rollback.mark_invalid()")
    assert "runs 2\nruns v1.26.1 1 " in run.output, run.console
    assert state(board) == "1"
    again = board.run(TRY)  # by no power cut: this is not forgiven
    assert again.output.startswith("failed-version: these files have failed"), again.console


def test_files_can_be_given_up_without_a_reset(board: Board) -> None:
    run = try_files(board, "ota.rollback.mark_invalid(reboot=False)\nota.rollback.cancel()")
    assert run.output.endswith("runs 2\n"), run.console
    assert "runs v1.26.1 1" in board.run().output
    assert state(board) == "1"


def test_with_an_app_on_trial_it_is_the_app_that_is_given_up(board: Board) -> None:
    put(board, "2", app(), tree("2", on_trial("ota.rollback.mark_invalid()")), counter=2)
    run = board.run(INSTALL.format("2"))
    assert run.labels == ("ota_0", "ota_1", "ota_0"), run.console
    assert "runs v1.26.1 1" in run.output


def test_a_guard_confirms_files_that_are_healthy(board: Board) -> None:
    run = try_files(board, "print(ota.rollback.guard(5, check=lambda: True))")
    assert run.output.endswith("runs 2\nTrue\n"), run.console
    assert state(board) == "2"
    assert board.run().output == "runs 2\nTrue\n"


@pytest.mark.parametrize("check", ["lambda: 1 / 0", "lambda: False"])
def test_a_guard_gives_files_up_that_are_not(board: Board, check: str) -> None:
    run = try_files(board, f"ota.rollback.guard(0.3, check={check})", wait_at_idle=True)
    second, third = run.boots[-2:]
    assert (second.output[:7], third.output[:15]) == ("runs 2\n", "runs v1.26.1 1 "), run.console
    assert state(board) == "1"


def test_the_watchdog_of_a_guard_is_let_loose_though_an_update_was_tried_meanwhile(
    board: Board,
) -> None:
    """What an update has loaded goes with it, and the module that has armed the watchdog too."""
    meanwhile = "import ota.base; ota.base.unload('recovery')\n"
    main = GUARDED.replace("ota.rollback.cancel()", meanwhile + "ota.rollback.cancel()")
    put(board, "2", app(), tree("2", main), counter=2, version="2.0")
    run = board.run(INSTALL.format("2"), max_boots=3)
    assert (run.labels, run.output[-6:]) == (("ota_0", "ota_1"), "alive\n"), run.console


def test_a_guard_goes_on_with_a_confirmation_that_was_cut_short(board: Board) -> None:
    main = "import ota\nota.rollback.guard(5, check=lambda: True)"
    put(board, "2", app(), tree("2", main), counter=2)
    board.call_faults = [CallFault("nvs_commit", NOT_ENOUGH_SPACE)]
    run = board.run(INSTALL.format("2"))
    assert "to be tried again" in run.output, run.console
    board.call_faults = []
    board.run()
    assert state(board) == "2"


# --- the boot path


LOADED = """
import sys, ota.rollback
ota.rollback.cancel()
print(sorted(name for name in sys.modules if name.startswith("ota")))
"""


def test_a_boot_with_nothing_to_do_loads_one_module(board: Board, tmp_path: Path) -> None:
    run = board.run(LOADED)
    assert run.output == "['ota', 'ota.boot', 'ota.otadata', 'ota.rollback']\n"  # by /boot.py
    assert run.operations == ()
    none = releases.board(tmp_path)
    none.run("import ota.rollback; ota.rollback.cancel()")
    run = none.run(LOADED)
    assert run.output == "['ota', 'ota.rollback']\n"
    assert run.operations == ()


def test_what_runs_is_known(board: Board) -> None:
    run = board.run(
        "import json, ota; i = ota.status.info(False); print(json.dumps([i['ota'], i['release']]))"
    )
    version, release = json.loads(run.output)
    assert version.startswith("0.")
    assert release == {"name": "demo", "version": "2.0"}
    assert "Release demo 2.0, ota " in board.run("import ota; ota.status.status()").output


def test_a_note_that_all_is_confirmed_does_not_outlive_what_it_is_about(board: Board) -> None:
    """A board may confirm as often as it likes, also while something waits."""
    put(board, "3", tree("3"), counter=3, version="3.0")
    run = board.run(
        INSTALL.format("3").replace(")", ", reboot=False)")
        + "\nota.rollback.cancel(); ota.rollback.cancel(); import machine; machine.reset()"
    )
    assert "runs v1.26.1 3" in run.output, run.console
    assert state(board) == "3"
    put(board, "4", app(), tree("4"), counter=4, version="4.0")
    board.run(
        INSTALL.format("4").replace(")", ", reboot=False)")
        + "\nota.rollback.cancel(); ota.rollback.cancel(); import machine; machine.reset()"
    )
    assert state(board) == "4"
    back: Run = board.run("import ota, machine; ota.rollback.force(); machine.reset()")
    assert back.end is End.IDLE
    name = "import ota.keys; t = ota.keys.load(); print(t.counter, t.version)"
    assert board.run(name).output == "4 3.0\n"


def test_to_confirm_in_an_update_takes_nothing_away_from_it(board: Board) -> None:
    put(board, "2", app(), tree("2"), counter=2, version="2.0")
    progress = "progress=lambda done, total: ota.rollback.cancel()"
    run = board.run(INSTALL.format("2").replace(")", f", {progress})"))
    assert "runs v1.27.0 2" in run.output, run.console
    assert "tried again" not in run.output
