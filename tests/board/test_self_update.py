"""`mpota bundle --with-ota`: boards with an older package get the new one, whole or not at all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from mpota.cli import main
from mpota.formats.tar import read_tree, write_tar
from mpota.release.build import Content
from mpota.release.ota_package import MARK
from mpota.release.with_ota import with_ota
from mpota.virtual.board import Board, Run
from mpota.virtual.cuts import ALL_MODES, Scenario
from mpota.virtual.flash import VirtualFlash

from tests.support import boards, once, ota_files, releases
from tests.support.cuts import Cuts, some
from tests.support.releases import app, key, make

MAIN = """
import sys, ota, code
print("runs", sys.version.split()[2], code.VERSION, getattr(ota, "__version__", "0.1"))
ota.rollback.cancel()
"""
SILENT = MAIN.replace("ota.rollback.cancel()", "")
BROKEN = MAIN.replace("ota.rollback", "ota.no_such_module")
INSTALL = "import ota; ota.release.install('/frozen/{}.bundle', reboot={})"
OLD_PAIR = "runs v1.26.1 1 0.1"
NEW_PAIR = "runs v1.27.0 2 0.2.0"


def tree(version: str, main: str = MAIN, **files: str) -> Content:
    """A tree with the package of this version."""
    members = read_tree(releases.tree(version, main, **files).data)
    made = with_ota({member.name: member for member in members})
    names = sorted(made, key=lambda name: name.split("/"))
    return Content("files", "files.tar", write_tar(made[name] for name in names))


@functools.cache
def prepared() -> tuple[Path, bytes]:
    """/frozen with the bundles, and a board with 0.1 and a key that has confirmed release 1.0."""
    directory = once.directory("bundles-for-0.1", prepare)
    return directory, (directory / "flash.bin").read_bytes()


def prepare(directory: Path) -> None:
    second = {"keys": (key(),), "version": "2.0", "counter": 2}
    bundles = {
        "1": make(releases.tree("1", MAIN), keys=(key(),), version="1.0", counter=1),
        "2": make(app(), tree("2"), **second),
        "2-boot": make(app(), tree("2", **{"boot.py": "print('boots')\n"}), **second),
        "2-silent": make(app(), tree("2", SILENT), **second),
        "2-broken": make(app(), tree("2", BROKEN), **second),
        "3": make(tree("3"), keys=(key(),), version="3.0", counter=3, chip=None),
    }
    for name, bundle in bundles.items():
        (directory / f"{name}.bundle").write_bytes(bundle.to_bytes())
    board = ota_files.board_with(ota_files.old_files())
    board.frozen = directory
    digest = key().public.digest.hex()
    run = board.run(f"import ota; ota.keys.add({digest!r}); " + INSTALL.format("1", True))
    assert OLD_PAIR in run.output, run.console
    (directory / "flash.bin").write_bytes(board.flash.snapshot())


@pytest.fixture
def board() -> Board:
    return fresh()


def fresh() -> Board:
    directory, start = prepared()
    return Board(VirtualFlash.create(len(start), {0: start}), frozen=directory)


def package(board: Board, folder: str = "/lib/ota") -> dict[str, bytes] | None:
    return ota_files.tree(board.flash.snapshot(), folder)


def is_clean(board: Board) -> bool:
    """Nothing of an exchange is left."""
    names = ota_files.tree_names(board.flash.snapshot(), "/.ota")
    return package(board, "/ota") is None and not any("ota" in name for name in names)


@pytest.mark.parametrize(("name", "version"), [("2", "2"), ("3", "3")])
def test_a_board_with_0_1_has_this_version_once_the_release_is_confirmed(
    board: Board, name: str, version: str
) -> None:
    run = board.run(INSTALL.format(name, True))
    assert f"{version} 0.2.0" in run.output, run.console
    assert package(board) == ota_files.new_files()
    assert is_clean(board)
    assert f"{version} 0.2.0" in board.run().output
    again = board.run("import ota; print(ota.__file__, ota.keys.counter(), ota.keys.trusted())")
    digest = key().public.digest.hex()
    assert f"/lib/ota/__init__.mpy {version} ['{digest}']" in again.output, again.console


def test_the_boot_py_of_the_release_runs(board: Board) -> None:
    run = board.run(INSTALL.format("2-boot", True))
    assert "boots" in run.output
    assert NEW_PAIR in run.output, run.console


@pytest.mark.parametrize("name", ["2-silent", "2-broken"])
def test_what_is_not_confirmed_leaves_the_old_package(board: Board, name: str) -> None:
    board.run(INSTALL.format(name, True))
    run = board.run()
    assert OLD_PAIR in run.output, run.console
    assert package(board) == ota_files.old_files()


def test_an_app_that_is_gone_back_to_has_the_new_package(board: Board) -> None:
    board.run(INSTALL.format("2", True))
    run = board.run("import ota, machine; ota.rollback.force(); machine.reset()")
    assert "runs v1.26.1 1 0.2.0" in run.output, run.console


def test_the_next_release_replaces_it_again(board: Board) -> None:
    board.run(INSTALL.format("2", True))
    run = board.run(INSTALL.format("3", True))
    assert "runs v1.27.0 3 0.2.0" in run.output, run.console
    assert package(board) == ota_files.new_files()
    assert is_clean(board)


def test_the_command_makes_such_a_release(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.bin").write_bytes(boards.app(releases.NEW))
    (tmp_path / "src/lib").mkdir(parents=True)
    (tmp_path / "src/main.py").write_text(MAIN)
    (tmp_path / "src/lib/code.py").write_text("VERSION = 2")
    (tmp_path / "key.pem").write_bytes(key().to_pem())
    command = ["bundle", "app.bin", "--name", "demo", "--version", "2.0", "-o", "out.bundle"]
    command += ["--counter", "2", "--key", "key.pem", "--with-ota"]
    for options, exit_code in (([], 2), (["--files", "src", "--compress"], 0)):
        with pytest.raises(SystemExit) as exit_info:
            main([*command, *options])
        assert (exit_info.value.code or 0) == exit_code
    board.frozen = tmp_path
    run = board.run(INSTALL.format("out", True))
    assert NEW_PAIR in run.output, run.console
    assert package(board) == ota_files.new_files()


def confirm(board: Board) -> Run:
    return board.run()


def whole(board: Board) -> Run:
    return board.run(INSTALL.format("2", True))


@pytest.mark.parametrize("play", [confirm, whole])
def test_at_every_cut_a_whole_package_runs(play: Callable[[Board], Run], cuts: Cuts) -> None:
    """Of the confirmation, which exchanges it, and of all: 0.1 installs, the trial, the end."""
    board = fresh()
    if play is confirm:
        board.run(INSTALL.format("2", False))
    scenario = Scenario(f"self-update-{play.__name__}", board.flash.snapshot(), play)
    packages = {"0.1": ota_files.old_files(), "0.2.0": ota_files.new_files()}

    def judge(board: Board) -> str:
        run = board.run()
        assert run.output.strip() in (OLD_PAIR, NEW_PAIR), run.console
        running = run.output.split()[3]
        found = package(board) or {}
        found.pop(MARK, None)  # the cut was at its removal
        assert found == packages[running], f"{running} runs, {sorted(found)}"
        assert is_clean(board)
        return running

    seen = cuts.try_all(scenario, board, judge, some(48, modes=ALL_MODES))
    assert cuts.is_one or set(seen) == set(packages)
