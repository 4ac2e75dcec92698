"""Power cuts at every flash operation of updates and rollbacks: some app always boots, whole.

``--all-cuts`` tries all of them, ``--cut update-4k:17:torn`` one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from mpota.virtual.board import Board, End, Run
from mpota.virtual.cuts import ALL_MODES, Scenario
from mpota.virtual.flash import Operation, VirtualFlash

from tests.support import boards, ota_board, ota_package
from tests.support.boards import OTA_0, OTA_1, OTADATA
from tests.support.cuts import some
from tests.support.ota_board import NEW, OLD, answer, serving, try_update

THIRD = boards.app("v1.28.0", 0x1B000)
APPS = {OTA_0.label: OTA_0, OTA_1.label: OTA_1}
CHOSEN = 48  # of each scenario, besides all at otadata

RESET = "import machine\nmachine.reset()"
CONFIRM = "import ota.rollback\nota.rollback.cancel()"


@pytest.fixture(scope="module")
def server():
    answers = {f"/{name}": answer(app) for name, app in (("new", NEW), ("third", THIRD))}
    with serving(answers) as server:
        yield server


def write_main(text: str) -> str:
    return f"with open('main.py', 'w') as f:\n    f.write({text!r})\n"


def play_script(script: str) -> Callable[[Board], Run]:
    return lambda board: board.run(script)


def after(start: bytes, *scripts: str) -> bytes:
    """The flash of a board with the content ``start`` on which these scripts have run."""
    with ota_board.updating_board(start) as board:
        for script in scripts:
            run = board.run(script)
            assert (run.end, run.traceback) == (End.IDLE, ""), run.console
        return board.flash.snapshot()


class Scenarios:
    """What a board goes through, each from a flash content that an earlier step has left."""

    def __init__(self, root: str) -> None:
        self.new = f"{root}/new"
        self.third = f"{root}/third"

    @functools.cached_property
    def fresh(self) -> bytes:
        """OLD in ota_0 runs; whatever boots confirms itself."""
        return after(ota_board.base(), write_main(CONFIRM))

    @functools.cached_property
    def written(self) -> bytes:
        """NEW is in ota_1 and is to boot for the first time."""
        return after(self.fresh, try_update(self.new))

    @functools.cached_property
    def confirmed(self) -> bytes:
        """NEW in ota_1 runs, OLD in ota_0 ran before it."""
        return after(self.written, "")

    @functools.cached_property
    def careless(self) -> bytes:
        """As ``written``, but nothing is confirmed by itself."""
        return after(ota_board.base(), write_main(""), try_update(self.new))

    @functools.cached_property
    def unconfirmed(self) -> bytes:
        """NEW has had its first boot and has not confirmed it."""
        return after(self.careless, "")

    def find(self, name: str) -> Scenario:
        start, play = {
            "update-4k": (self.fresh, play_script(try_update(self.new, ", block_size=4096"))),
            "update-64k": (self.fresh, play_script(try_update(self.new, ", block_size=65536"))),
            "update-reset": (self.fresh, play_script(try_update(self.new, then=RESET))),
            "second-update": (self.confirmed, play_script(try_update(self.third, then=RESET))),
            "first-boot": (self.careless, Board.run),
            "confirm": (self.written, Board.run),
            "rollback": (self.unconfirmed, Board.run),
            "mark-invalid": (
                self.confirmed,
                play_script("import ota\nota.rollback.mark_invalid()"),
            ),
            "force": (self.confirmed, play_script("import ota\nota.rollback.force()\n" + RESET)),
            "cancel-force": (
                self.confirmed,
                play_script(
                    "import ota\nota.rollback.force()\nota.rollback.cancel_force()\n" + RESET
                ),
            ),
            "update-of-failed": (self.unconfirmed, play_script(try_update(self.new, then=RESET))),
        }[name]
        return Scenario(name, start, play)


NAMES = (
    "update-4k",
    "update-64k",
    "update-reset",
    "second-update",
    "first-boot",
    "confirm",
    "rollback",
    "mark-invalid",
    "force",
    "cancel-force",
    "update-of-failed",
)


@pytest.fixture(scope="module")
def scenarios(server):
    return Scenarios(server.root)


def booted_app(board: Board) -> str:
    """Power on; the label of the slot that boots, which must hold one of the apps, whole."""
    run = board.run()
    assert run.end is End.IDLE, run.console
    label = run.labels[0]
    assert label in APPS, run.console
    slot = APPS[label]
    assert any(board.flash.read(slot.offset, len(app)) == app for app in (OLD, NEW, THIRD)), (
        f"{label} boots, but holds none of the apps\n{run.console}"
    )
    return label


def check_recovery(board: Board, url: str, more: str) -> str:
    """After a cut an app boots, the update succeeds at the next attempt, and stays."""
    booted = booted_app(board)
    main = write_main(CONFIRM) + CONFIRM + "\n"
    run = board.run(main + try_update(url, more, then=RESET))
    assert f"wrote {len(NEW)}" in run.output, run.console
    assert len(run.labels) == 2, run.console
    target = "ota_1" if run.labels[0] == "ota_0" else "ota_0"
    assert run.labels[1] == target, run.console
    slot = APPS[target]
    assert board.flash.read(slot.offset, len(NEW)) == NEW
    assert booted_app(board) == target
    return booted


def is_in_otadata(operation: Operation) -> bool:
    return OTADATA.offset <= operation.offset < OTADATA.end


@pytest.mark.parametrize("name", NAMES)
def test_at_every_cut_an_app_boots_and_the_next_update_succeeds(scenarios, name, cuts):
    # There the second, and last, chance of an image that failed is what the cut has taken.
    more = ", force=True" if name == "update-of-failed" else ""
    with VirtualFlash.create(boards.FLASH_SIZE) as flash:
        board = Board(flash, frozen=ota_package.compiled())
        cuts.skip_unless_named(name)
        cuts.try_all(
            scenarios.find(name),
            board,
            lambda board: check_recovery(board, scenarios.new, more),
            some(CHOSEN, is_in_otadata, ALL_MODES),
        )
