"""What waits for a restart, and what it is worth when something else comes first.

An app waits, or files do, and then another update, a roll-back or a power cut comes. In the end the
app and the files that run belong together, and whoever was told "done" has what was promised.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from mpota.release.build import Content
from mpota.virtual.board import Board, Run

from tests.support import boards, releases
from tests.support.releases import app, make, tree

WITHOUT_RESTART = "import ota\nota.release.install('/frozen/{}.bundle', reboot=False)\n"
RESTART = "import machine; machine.reset()\n"
# What must be refused, and how that ended.
TRY = """
import ota
try:
    ota.release.install('/frozen/{}.bundle', reboot=False{})
    print("done")
except ota.OTAError as error:
    print(error.code + ":", error)
"""
SILENT = releases.MAIN.replace("ota.rollback.cancel()", "")


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """Release 1 (files alone) is confirmed on it."""
    board = releases.board(tmp_path)
    bundles = {
        "1": make(tree("1"), version="1.0", counter=1),
        "app": make(app(), version="2.0", counter=2),
        "app-files": make(app(), tree("2"), version="2.0", counter=2),
        "files": make(tree("3"), version="3.0", counter=3),
        "silent": make(tree("3", SILENT), version="3.0", counter=3),
        "certs": make(Content("certs", "ca.pem", b"-----BEGIN"), version="3.0", counter=3),
    }
    for name, bundle in bundles.items():
        (tmp_path / f"{name}.bundle").write_bytes(bundle.to_bytes())
    (tmp_path / "app.bin").write_bytes(boards.app("v1.28.0"))
    run = board.run(WITHOUT_RESTART.format("1") + RESTART)
    assert says(run) == ["runs v1.26.1 1"], run.console
    return board


def says(run: Run) -> list[str]:
    """What main.py of the releases said: firmware and code."""
    return [
        " ".join(line.split()[:3]) for line in run.output.splitlines() if line.startswith("runs ")
    ]


# --- another app waits


@pytest.mark.parametrize("waits", ["app", "app-files", "image", "forced"])
@pytest.mark.parametrize("then", ["files", "certs"])
def test_what_belongs_to_the_running_app_is_refused_while_another_waits(
    board: Board, waits: str, then: str
) -> None:
    before = {
        "image": "import ota; ota.update.from_file('/frozen/app.bin', reboot=False, verbose=0)\n",
        "forced": "import ota; ota.rollback.force()\n",
    }
    if waits == "forced":
        assert says(board.run(WITHOUT_RESTART.format("app-files") + RESTART))
    look = "import os; print(os.listdir('/.ota'), os.listdir('/.ota/trees'))\n"
    script = before.get(waits) or WITHOUT_RESTART.format(waits)
    script += "print('=')\n" + look + TRY.format(then, "") + TRY.format(then, ", force=True") + look
    # The remedy that is named.
    script += "ota.rollback.cancel_force()" + TRY.format(then, "") + RESTART
    run = board.run(script)
    assert run.traceback == "", run.console
    former, *refused, later, last = run.boots[0].output.partition("=\n")[2].splitlines()
    assert [line.partition(" in ota_")[0] for line in refused] == ["waiting: the app"] * 2
    assert "cancel_force()" in refused[0]
    assert (former, last) == (later, "done")
    assert len(set(run.labels)) == 1


def test_files_that_wait_are_given_up_for_an_app_without_files(tmp_path: Path) -> None:
    """On a board that never had a release, too: a roll-back leads to what ran before."""
    board = releases.board(tmp_path)
    (tmp_path / "files.bundle").write_bytes(make(tree("3"), version="3.0").to_bytes())
    (tmp_path / "app.bin").write_bytes(boards.app("v1.28.0"))
    board.run("with open('main.py', 'w') as f: f.write('import sys; print(sys.path[0][:6])')")
    run = board.run(
        WITHOUT_RESTART.format("files")
        + "ota.update.from_file('/frozen/app.bin', reboot=False, verbose=False)\n"
        + RESTART
    )
    assert (run.labels, run.traceback) == (("ota_0", "ota_1"), ""), run.console
    run = board.run()  # nothing has confirmed it
    assert run.labels == ("ota_0",)
    assert says(run) == [], run.console


@pytest.mark.parametrize("then", ["image", "app", "app-files"])
def test_files_that_wait_are_given_up_for_an_app(board: Board, then: str) -> None:
    image = "ota.update.from_file('/frozen/app.bin', reboot=False, verbose=False)\n"
    script = WITHOUT_RESTART.format("files")
    script += image if then == "image" else WITHOUT_RESTART.format(then)
    board.run(script + "ota.rollback.cancel_force()\n" + RESTART)
    run = board.run(RESTART)
    assert says(run) == ["runs v1.26.1 1"], run.console


def test_force_gives_files_up_that_wait(board: Board) -> None:
    board.run(WITHOUT_RESTART.format("app-files") + RESTART)
    run = board.run(WITHOUT_RESTART.format("files") + "ota.rollback.force()\n" + RESTART)
    assert says(run) == ["runs v1.26.1 1"], run.console
    run = board.run("import ota; ota.rollback.force()\n" + RESTART)
    assert says(run) == ["runs v1.27.0 2"], run.console


# --- files and a power cut


def test_files_are_forgiven_once_if_the_power_may_have_gone(board: Board) -> None:
    for outcome in ("done", "done", "failed-version"):
        run = board.run(TRY.format("silent", "") + RESTART)
        assert run.output.startswith(outcome), run.console
        assert says(board.run()) == ["runs v1.26.1 1"]  # a power-on: they are not confirmed
    failed = "import ota; print(len(ota.status.info(False)['failed']))"
    assert board.run(failed).output == "1\n"
    # Forced, they may be confirmed at last: then they are no failed ones any more.
    run = board.run(TRY.format("silent", ", force=True") + RESTART)
    assert says(run) == ["runs v1.26.1 3"], run.console


def test_failed_files_that_are_confirmed_at_last_are_forgotten(board: Board) -> None:
    main = "import machine, ota\nif 'good' not in __import__('os').listdir('/'): machine.reset()\n"
    assert board.frozen is not None
    bundle = make(tree("3", main + releases.MAIN), version="3.0", counter=3)
    (board.frozen / "x.bundle").write_bytes(bundle.to_bytes())
    assert says(board.run(TRY.format("x", "") + RESTART)) == ["runs v1.26.1 1"]
    assert board.run(TRY.format("x", "")).output.startswith("failed-version: these files have")
    board.run("open('/good', 'w').close()\n" + TRY.format("x", ", force=True") + RESTART)
    run = board.run("import ota; print(ota.status.info(False)['failed'])")
    assert run.output == "[]\n"
    assert says(board.run()) == ["runs v1.26.1 3"]


def test_an_app_forgets_nothing_of_the_files_that_failed(board: Board) -> None:
    """What is remembered is the board's, not the slot's."""
    crash = tree("3", SILENT + "import machine; machine.reset()\n")
    assert board.frozen is not None
    for name, contents in (("x", (crash,)), ("y", (app("v1.28.0"), crash))):
        bundle = make(*contents, version="3.0", counter=3)
        (board.frozen / f"{name}.bundle").write_bytes(bundle.to_bytes())
    run = board.run(TRY.format("x", "") + RESTART)
    assert says(run) == ["runs v1.26.1 3", "runs v1.26.1 1"], run.console
    board.run(WITHOUT_RESTART.format("app-files") + RESTART)
    assert board.run(TRY.format("x", "")).output.startswith("failed-version: these files have")
