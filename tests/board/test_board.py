"""The virtual board as a whole: resets, rollback, power cuts, time-outs, and what it leaves."""

from __future__ import annotations

import itertools
import os
import threading

import pytest
from mpota.errors import UsageError
from mpota.formats.otadata import OtaState, active_record, parse_otadata
from mpota.virtual.board import Board, End
from mpota.virtual.cuts import (
    ALL_MODES,
    CutNotReachedError,
    CutPoint,
    Recording,
    Scenario,
    Verdict,
    power_cut,
    record_changes,
    try_points,
)
from mpota.virtual.flash import CutMode, Effect, FlashError, Operation, VirtualFlash

from tests.support import boards
from tests.support.boards import NVS, OTA_0, OTA_1, OTADATA, VFS


@pytest.fixture(scope="module")
def base():
    """The content of a flash with one app, in ota_0, and a file system."""
    board = boards.formatted()
    with board.flash:
        return board.flash.snapshot()


@pytest.fixture
def board(base):
    with VirtualFlash.create(len(base), {0: base}) as flash:
        yield Board(flash)


def files(**contents):
    """A script that writes these files; ``__`` in a name stands for the dot."""
    return "".join(
        f"with open({name.replace('__', '.')!r}, 'w') as f: f.write({text!r})\n"
        for name, text in contents.items()
    )


# --- MicroPython's own on-board test -----------------------------------------------------------

# The steps of tests/ports/esp32/partition_ota.py, each a boot that finds out by itself which one
# it is. First the running app is copied into the other slot and that is selected.
COPY = """
from esp32 import Partition
import machine
running = Partition(Partition.RUNNING)
other = running.get_next_update()
block = bytearray(4096)
for n in range(running.info()[3] // 4096):
    running.readblocks(n, block)
    other.writeblocks(n, block)
other.set_boot()
machine.reset()
"""
STEPS = """
import machine
from esp32 import Partition
running = Partition(Partition.RUNNING)
name = running.info()[4]
try:
    with open("step") as f: step = int(f.read())
except OSError:
    step = 0
print("step", step, name)
with open("step", "w") as f: f.write(str(step + 1))
if step == 0:
    machine.reset()  # not confirmed
elif step == 1:
    running.get_next_update().set_boot()
    machine.reset()
elif step == 2:
    Partition.mark_app_valid_cancel_rollback()
    machine.reset()
elif step == 3:
    running.get_next_update().set_boot()
    machine.reset()
elif step == 4:
    Partition.mark_app_valid_cancel_rollback()
    print("done")
"""


def test_the_five_boots_of_micropythons_ota_test(board):
    run = board.run(files(main__py=STEPS) + COPY)
    assert run.end is End.IDLE
    assert run.output.splitlines() == [
        "step 0 ota_1",
        "step 1 ota_0",  # rolled back
        "step 2 ota_1",
        "step 3 ota_1",  # confirmed
        "step 4 ota_0",
        "done",
    ]
    records = parse_otadata(board.flash.read(OTADATA.offset, OTADATA.size))
    assert records[active_record(records)].ota_state == OtaState.VALID


# --- how runs end ------------------------------------------------------------------------------


def test_a_run_ends_at_the_prompt(board):
    run = board.run("print('hello')")
    assert (run.end, run.output, run.traceback) == (End.IDLE, "hello\n", "")
    assert run.labels == ("ota_0",)


def test_a_flash_without_an_app_starts_nothing():
    with boards.flash(apps={}) as flash:
        run = Board(flash).run("print('hello')")
    assert (run.end, run.output) == (End.NO_APP, "")
    assert "No bootable app partitions" in run.console


def test_a_reset_loop_ends(board):
    board.run(files(main__py="import machine\nprint('again')\nmachine.reset()"))
    run = board.run(max_boots=4)
    assert (run.end, run.output) == (End.TOO_MANY_BOOTS, "again\n" * 4)


def test_a_hanging_app_ends_by_the_time_out(board):
    run = board.run("print('on')\nwhile True: pass", timeout_s=1)
    assert (run.end, run.output) == (End.TIMEOUT, "on\n")


def test_a_dead_interpreter_is_noticed(board):
    run = board.run("import os\nprint('on')\nos.system('kill -9 $PPID')")
    assert (run.end, run.output) == (End.DIED, "on\n")


def test_a_script_that_fails_leaves_its_traceback(board):
    run = board.run("def f():\n    raise ValueError('x')\nf()")
    assert run.end is End.IDLE
    assert run.traceback == run.output
    assert run.traceback.splitlines() == [
        "Traceback (most recent call last):",
        '  File "<stdin>", line 3, in <module>',
        '  File "<stdin>", line 2, in f',
        "ValueError: x",
    ]


def test_a_script_can_exit(board):
    run = board.run("import sys\nprint('on')\nsys.exit()\nprint('never')")
    assert (run.end, run.output, len(run.boots)) == (End.IDLE, "on\n", 1)


def test_what_is_typed_at_the_prompt_runs_there(board):
    keys, typed = os.pipe()
    os.write(typed, b"print(6 * 7, greeting)\nfrom esp32 import Partition\nPartition('vfs')\n")
    os.close(typed)
    try:
        run = board.run("greeting = 'hi'", stdin=keys)
    finally:
        os.close(keys)
    assert run.end is End.IDLE
    assert "\n42 hi\n" in run.output
    assert "label=vfs" in run.output


def test_the_console_is_told_as_it_is_written(board):
    told = {0: "", 1: ""}  # by how many flash operations there were then

    def listen(text):
        told[len(board.flash.operations)] += text

    board.on_output = listen
    board.run("import esp\nprint('hello')\nesp.flash_erase(0x60)\nprint('bye')")
    assert told[0].endswith("hello\n")
    assert told[1] == "bye\n"


def test_boards_do_not_share_anything(base):
    with (
        VirtualFlash.create(len(base), {0: base}) as one,
        VirtualFlash.create(len(base), {0: base}) as two,
    ):
        boards_ = [Board(one), Board(two)]
        script = "with open('x', 'w') as f: f.write(NAME)\nprint(open('x').read())"
        runs = {}
        threads = [
            threading.Thread(
                target=lambda b=b, name=name: runs.update(
                    {name: b.run(f"NAME={name!r}\n{script}").output}
                )
            )
            for b, name in zip(boards_, ("a", "b"), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert runs == {"a": "a\n", "b": "b\n"}


# --- power cuts --------------------------------------------------------------------------------

CONFIRM = "from esp32 import Partition\nPartition.mark_app_valid_cancel_rollback()\n"
SWITCH = (
    "from esp32 import Partition\nPartition('ota_1').set_boot()\nimport machine\nmachine.reset()"
)


def test_a_cut_is_the_end_of_the_process_at_that_operation(board):
    script = """
from esp32 import Partition
p = Partition("ota_1")
try:
    for n in range(4):
        print(n)
        p.writeblocks(n, bytes(4096))
finally:
    print("never")
"""
    with power_cut(board.flash, 5, CutMode.BEFORE):
        run = board.run(script)
    assert (run.output, run.end) == ("0\n1\n2\n", End.POWER_CUT)
    start = OTA_1.offset
    assert board.flash.read(start, 0x3000) == bytes(0x2000) + b"\xff" * 0x1000
    assert board.run("print('back')").output == "back\n"


def test_a_cut_hits_the_bootloader_as_well(board):
    board.flash.write(OTA_1.offset, boards.app("v1.27.0"))
    with power_cut(board.flash, 3, CutMode.BEFORE):
        run = board.run(SWITCH)
    # set_boot() in the app, NEW -> PENDING_VERIFY in the bootloader: each an erase and a write.
    assert [operation.kind for operation in run.operations] == ["erase", "write", "erase"]
    assert run.labels == ("ota_0", None)
    assert board.run("").labels == ("ota_0",)


def test_switching_and_confirming_boots_an_app_whatever_is_cut(board, cuts):
    """All cuts of set_boot(), the first boot and the confirmation, without any code of ours."""
    board.flash.write(OTA_1.offset, boards.app("v1.27.0"))
    board.run(files(main__py=CONFIRM))
    scenario = Scenario("switch", board.flash.snapshot(), lambda board: board.run(SWITCH))

    def judge(board):
        run = board.run("")
        assert run.end is End.IDLE, run.console
        return run.labels[0]

    seen = cuts.try_all(scenario, board, judge, all_of)
    assert cuts.is_one or (sum(seen.values()), set(seen)) == (24, {"ota_0", "ota_1"})


def test_files_and_flash_rules_survive_every_cut(board, cuts):
    """littlefs on this flash: the old content or the new, and never a bit set without an erase."""
    board.run(files(data="old" * 100))
    script = files(fresh="new" * 1500) + "import os\nos.rename('fresh', 'data')"
    scenario = Scenario("rename", board.flash.snapshot(), lambda board: board.run(script))
    check = "print(open('data').read()[-3:])\nwith open('more', 'w') as f: f.write('x' * 5000)"

    def judge(board):
        run = board.run(check)
        assert (run.end, run.traceback) == (End.IDLE, ""), run.console
        return run.output

    seen = cuts.try_all(scenario, board, judge, all_of)
    assert cuts.is_one or set(seen) == {"old\n", "new\n"}


def test_each_key_of_nvs_has_the_old_or_the_new_value_whatever_is_cut(board, cuts):
    board.run(
        "from esp32 import NVS\nn = NVS('a')\nn.set_i32('x', 1)\nn.set_i32('y', 1)\nn.commit()"
    )
    script = "from esp32 import NVS\nn = NVS('a')\nn.set_i32('x', 2)\nn.set_i32('y', 2)\nn.commit()"
    scenario = Scenario("nvs", board.flash.snapshot(), lambda board: board.run(script))

    def judge(board):
        check = "from esp32 import NVS\nn = NVS('a')\nprint(n.get_i32('x'), n.get_i32('y'))"
        return board.run(check).output

    seen = cuts.try_all(scenario, board, judge, all_of)
    assert all(NVS.offset <= operation.offset < NVS.end for operation in board.flash.operations)
    assert set(seen) <= {"1 1\n", "2 1\n", "2 2\n"}
    assert cuts.is_one or len(seen) == 3


def test_a_broken_flash_rule_ends_the_run_and_the_process(board):
    with pytest.raises(FlashError):
        board.run("import esp\nesp.flash_write(0xd000, bytes(32))\nesp.flash_write(0xd000, b'1')")
    assert board.run("print('back')").output.endswith("back\n")


# --- cut points --------------------------------------------------------------------------------


def all_of(recording, is_all):
    return recording.all_points(ALL_MODES)


def test_what_a_cut_leaves_is_what_the_recording_says(board):
    """NVS, a partition, otadata and the bootloader: each operation, in each way.

    No files: littlefs notes the time of day with them.
    """
    board.flash.write(OTA_1.offset, boards.app("v1.27.0"))
    script = (
        "from esp32 import NVS, Partition\nn = NVS('a')\nn.set_blob('x', bytes(90))\nn.commit()\n"
        f"Partition('ota_1').writeblocks(20, b'new' * 2000 + bytes(2192))\n{SWITCH}"
    )
    scenario = Scenario("all", board.flash.snapshot(), lambda board: board.run(script))
    recording = scenario.record(board)
    assert board.flash.snapshot() == recording.content(
        CutPoint("all", len(recording.effects) - 1, CutMode.AFTER)
    )
    for point in recording.all_points(ALL_MODES):
        board.flash.restore(scenario.start)
        with power_cut(board.flash, point.op, point.mode):
            assert scenario.play(board).end is End.POWER_CUT
        assert board.flash.snapshot() == recording.content(point), str(point)


def test_what_two_cuts_leave_is_judged_once(board):
    """What is there after an operation is there before the next one."""
    recording = record_changes(
        "two",
        board.flash,
        lambda: (board.flash.write(VFS.end - 9, b"1"), board.flash.write(VFS.end - 8, b"2")),
    )
    judged = []

    def judge(board):
        judged.append(board.flash.read(VFS.end - 9, 2))
        return Verdict(len(judged))

    modes = (CutMode.BEFORE, CutMode.AFTER)
    outcomes = list(try_points(recording, recording.all_points(modes), board, judge))
    assert judged == [b"\xff\xff", b"1\xff", b"12"]
    assert [(one.point.op, one.verdict.seen) for one in outcomes] == [
        (0, 1),
        (0, 2),
        (1, 2),
        (1, 3),
    ]


@pytest.mark.parametrize("point", ["other:0:torn", "one:1:torn"])
def test_a_point_that_a_scenario_does_not_have_is_refused(board, point):
    recording = record_changes("one", board.flash, lambda: board.flash.write(VFS.end - 9, b"1"))
    with pytest.raises(UsageError, match=f"no power cut {point}: scenario one has 1 flash"):
        recording.content(CutPoint.parse(point))


def test_a_cut_that_does_not_come_is_an_error(board):
    with (
        pytest.raises(CutNotReachedError, match="no power cut at operation 0: it ended after 0"),
        power_cut(board.flash, 0, CutMode.TORN),
    ):
        board.run("")
    assert board.flash.cut is None


def test_a_points_name_replays_it():
    point = CutPoint("update-4k", 217, CutMode.TORN)
    assert str(point) == "update-4k:217:torn"
    assert CutPoint.parse(str(point)) == point


@pytest.mark.parametrize("text", ["", "update", "update:1", "update:x:torn", "update:1:burnt"])
def test_what_names_no_point_is_refused(text):
    with pytest.raises(UsageError, match="is not a cut point"):
        CutPoint.parse(text)


def test_chosen_points_hold_all_that_is_vital_and_a_spread_of_the_rest():
    operations = [Operation("write", OTA_1.offset + n * 4096, 4096) for n in range(100)]
    operations += [Operation("erase", OTADATA.offset, 4096), Operation("write", OTADATA.offset, 32)]
    operations += [Operation("write", VFS.offset, 16)]
    recording = Recording("update", b"", tuple(Effect(op, b"") for op in operations))

    def is_vital(operation):
        return operation.offset < OTA_0.offset

    points = recording.chosen_points(30, is_vital)
    assert points == recording.chosen_points(30, is_vital)
    assert len(set(points)) == 30
    for op in (0, 100, 101, 102):
        assert {p.mode for p in points if p.op == op} == {
            CutMode.BEFORE,
            CutMode.TORN,
            CutMode.AFTER,
        }
    spread = [p.op for p in points if 0 < p.op < 100]
    assert max(b - a for a, b in itertools.pairwise(spread)) <= 7
    assert {p.mode for p in points if 0 < p.op < 100} == {p.mode for p in points}
