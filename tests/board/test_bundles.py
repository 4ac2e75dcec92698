"""Firmware and code as one: bundles on the virtual board, and the power cut at every operation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from mpota.virtual.board import Board, End, Run
from mpota.virtual.cuts import Scenario
from mpota.virtual.flash import Operation, VirtualFlash

from tests.support import boards, once, releases
from tests.support.cuts import Cuts, some
from tests.support.releases import app, key, make, tree

# main.py that does not confirm: the next boot goes back.
SILENT = releases.MAIN.replace("ota.rollback.cancel()", "")

OLD_PAIR = "runs v1.26.1 1"
NEW_PAIR = "runs v1.27.0 2"
NEW_FILES = "runs v1.26.1 3"

INSTALL = "import ota; ota.release.install('/frozen/{}.bundle')"


@functools.cache
def prepared() -> tuple[Path, bytes]:
    """/frozen with the bundles, and the flash of a board on which release 1.0 is confirmed."""
    directory = once.directory("bundles", prepare)
    return directory, (directory / "flash.bin").read_bytes()


def prepare(directory: Path) -> None:
    board = releases.board(directory)
    bundles = {
        "1": make(tree("1"), keys=(key(),), version="1.0", counter=1),
        "2": make(app(), tree("2"), keys=(key(),), version="2.0", counter=2),
        "2-silent": make(app(), tree("2", SILENT), keys=(key(),), version="2.0", counter=2),
        "2-app": make(app(), keys=(key(),), version="2.0", counter=2),
        "3": make(tree("3"), keys=(key(),), version="3.0", counter=3, chip=None),
        "3-silent": make(tree("3", SILENT), keys=(key(),), version="3.0", counter=3),
    }
    for name, bundle in bundles.items():
        (directory / f"{name}.bundle").write_bytes(bundle.to_bytes())
    run = board.run(
        f"import ota; ota.keys.add({key().public.digest.hex()!r}); " + INSTALL.format("1")
    )
    assert lines(run) == [OLD_PAIR], run.console
    assert board.run("import ota; print(ota.keys.counter())").output == "1\n"
    (directory / "flash.bin").write_bytes(board.flash.snapshot())


@pytest.fixture
def board() -> Board:
    return fresh()


def fresh() -> Board:
    directory, start = prepared()
    return Board(VirtualFlash.create(len(start), {0: start}), frozen=directory)


def lines(run: Run) -> list[str]:
    """What the releases' main.py said: firmware and code, without the path."""
    return [
        " ".join(line.split()[:3]) for line in run.output.splitlines() if line.startswith("runs ")
    ]


def state(board: Board) -> str:
    """Counter, and how many trees there are."""
    run = board.run("import ota, os; print(ota.keys.counter(), len(os.listdir('/.ota/trees')))")
    return run.output.strip()


def test_firmware_and_code_change_together_and_back(board: Board) -> None:
    run = board.run(INSTALL.format("2"))
    assert (lines(run), run.labels) == ([NEW_PAIR], ("ota_0", "ota_1")), run.console
    assert state(board) == "2 2"
    back = board.run("import ota, machine; ota.rollback.force(); machine.reset()")
    assert (lines(back), back.labels) == ([OLD_PAIR], ("ota_1", "ota_0")), back.console
    forth = board.run("import ota, machine; ota.rollback.force(); machine.reset()")
    assert lines(forth) == [NEW_PAIR], forth.console


def test_what_is_not_confirmed_goes_back_with_its_code(board: Board) -> None:
    assert lines(board.run(INSTALL.format("2-silent"))) == [NEW_PAIR]
    run = board.run()
    assert (lines(run), run.labels) == ([OLD_PAIR], ("ota_0",)), run.console
    assert state(board) == "1 2"


def test_files_alone_are_tried_and_confirmed(board: Board) -> None:
    run = board.run(INSTALL.format("3"))
    assert (lines(run), run.labels) == ([NEW_FILES], ("ota_0", "ota_0")), run.console
    assert lines(board.run()) == [NEW_FILES]
    assert state(board) == "3 1"  # the former tree is gone: nothing leads to it


@pytest.mark.parametrize(("mpy", "with_app"), [(6, False), (5, True)])
def test_modules_that_the_board_loads_or_that_come_with_their_micropython_are_taken(
    board: Board, mpy: int, with_app: bool
) -> None:
    contents = (app(), tree("3")) if with_app else (tree("3"),)
    bundle = make(*contents, keys=(key(),), version="3.0", counter=3, mpy=mpy)
    (board.frozen / "mpy.bundle").write_bytes(bundle.to_bytes())
    run = board.run(INSTALL.format("mpy"))
    assert run.output.splitlines()[-1].split()[-2] == "3", run.console


def test_files_alone_that_are_not_confirmed_go_back(board: Board) -> None:
    for _ in range(2):  # the power may have gone in the first boot: once that is forgiven
        assert lines(board.run(INSTALL.format("3-silent"))) == [NEW_FILES]
        assert lines(board.run()) == [OLD_PAIR]
    refused = board.run(INSTALL.format("3-silent"))
    assert "have failed on this board before" in refused.traceback
    assert lines(board.run()) == [OLD_PAIR]


def test_files_on_trial_outlive_a_soft_reset(board: Board) -> None:
    board.run(INSTALL.format("3-silent").replace(")", ", reboot=False)"))
    run = board.run("import machine; machine.soft_reset()")
    assert lines(run) == [NEW_FILES], run.console
    assert lines(board.run()) == [OLD_PAIR]


def test_no_update_starts_while_files_are_on_trial(board: Board) -> None:
    main = f"import ota, sys\nprint(sys.path[0][:12])\n{INSTALL.format('2')}"
    trial = make(tree("3", main), keys=(key(),), version="3.0", counter=3)
    assert board.frozen is not None
    (board.frozen / "trial.bundle").write_bytes(trial.to_bytes())
    run = board.run(INSTALL.format("trial"))
    assert "the files in use are not confirmed" in run.traceback, run.console
    assert lines(board.run()) == [OLD_PAIR]


def test_an_app_without_files_goes_on_with_those_in_use(board: Board) -> None:
    run = board.run(INSTALL.format("2-app"))
    assert lines(run) == ["runs v1.27.0 1"], run.console
    back = board.run("import ota, machine; ota.rollback.force(); machine.reset()")
    assert lines(back) == [OLD_PAIR]


def test_a_bundle_goes_where_an_image_goes(board: Board) -> None:
    run = board.run(
        "import ota, machine; ota.update.from_file('/frozen/2.bundle', reboot=False)\n"
        "machine.reset()"
    )
    assert (lines(run), run.labels) == ([NEW_PAIR], ("ota_0", "ota_1")), run.console


def test_the_path_leads_to_the_matching_tree_and_only_to_it(board: Board) -> None:
    board.run("open('/old.py', 'w').close()")
    board.run(INSTALL.format("2"))
    run = board.run(
        "import sys, os; print(sys.path, os.getcwd())\n"
        "try:\n    import old\nexcept ImportError:\n    print('no old.py')"
    )
    path, last = run.output.strip().splitlines()
    name = path.partition("/.ota/trees/")[2].partition("'")[0]
    tree_path = f"/.ota/trees/{name}"
    assert path == f"['{tree_path}', '.frozen', '/frozen', '{tree_path}/lib', '/lib'] {tree_path}"
    assert last == "no old.py"


# --- power cuts


@dataclass(frozen=True)
class Story:
    """Something that a board does, and what may run after a power cut in it."""

    play: Callable[[Board], Run]
    allowed: tuple[str, ...]
    again: str | None  # the bundle that must go in afterwards where the old release runs
    prepare: Callable[[Board], Run] | None = None


def update(name: str) -> Callable[[Board], Run]:
    """Install, switch, first boot, and what its main.py does."""
    return lambda board: board.run(INSTALL.format(name))


def update_and_lapse(name: str) -> Callable[[Board], Run]:
    """The same, and the boot after it, which finds nothing confirmed."""

    def play(board: Board) -> Run:
        run = board.run(INSTALL.format(name))
        return run if run.end is End.POWER_CUT else board.run()

    return play


def force(board: Board) -> Run:
    return board.run("import ota, machine; ota.rollback.force(); machine.reset()")


STORIES = {
    "bundle": Story(update("2"), (OLD_PAIR, NEW_PAIR), "2"),
    "bundle-lapse": Story(update_and_lapse("2-silent"), (OLD_PAIR, NEW_PAIR), "2"),
    "bundle-rollback": Story(force, (OLD_PAIR, NEW_PAIR), None, update("2")),
    "files": Story(update("3"), (OLD_PAIR, NEW_FILES), "3"),
    "files-lapse": Story(update_and_lapse("3-silent"), (OLD_PAIR, NEW_FILES), None),
    "bundle-app": Story(update("2-app"), (OLD_PAIR, "runs v1.27.0 1"), "2"),
}


def is_commit(operation: Operation) -> bool:
    """Does it write to otadata, where the slot is switched?"""
    return boards.OTADATA.offset <= operation.offset < boards.OTADATA.end


@pytest.mark.parametrize("name", STORIES)
def test_a_power_cut_leaves_old_with_old_or_new_with_new(name: str, cuts: Cuts) -> None:
    """``--all-cuts`` takes every operation, ``--cut bundle:17:torn`` one."""
    cuts.skip_unless_named(name)
    story = STORIES[name]
    board = fresh()
    if story.prepare is not None:
        story.prepare(board)
    scenario = Scenario(name, board.flash.snapshot(), story.play)
    judge = functools.partial(check_pair, story=story)
    seen = cuts.try_all(scenario, board, judge, some(60, is_commit))
    assert cuts.is_one or set(seen) == set(story.allowed), seen


def check_pair(board: Board, story: Story) -> str:
    """Which firmware and code run after a cut."""
    run = board.run()
    assert (run.end, run.traceback) == (End.IDLE, ""), run.console
    found = lines(run)
    assert len(found) == 1, run.console
    assert found[0] in story.allowed, run.console
    check_goes_on(board, story, found[0])
    return found[0]


def check_goes_on(board: Board, story: Story, found: str) -> None:
    """The next attempt succeeds; nothing is left over that belongs to no app."""
    if story.again is None or found != OLD_PAIR:
        return
    run = board.run(INSTALL.format(story.again))
    if "have failed on this board before" in run.traceback or "has failed" in run.traceback:
        # The cut hit the one boot in which it could have been confirmed.
        run = board.run(INSTALL.format(story.again).replace(")", ", force=True)"))
    expected = NEW_FILES if story.again == "3" else NEW_PAIR
    assert lines(run) == [expected], run.console
    trees = 1 if story.again == "3" else 2
    assert state(board) == f"{story.again} {trees}"
