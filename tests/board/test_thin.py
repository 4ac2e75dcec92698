"""Bundles that leave out what the board has: it takes that from the files in use, and verifies."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from mpota.formats.bundle import decode
from mpota.formats.tar import read_tree
from mpota.formats.thin import SUFFIX, make_thin
from mpota.virtual.board import Board, Run

from tests.support import boards
from tests.support.releases import app, key, make
from tests.support.thin import NEW, OLD, archive, expand, files, fresh, ids, prepared, release

SHARED = {"lib/deep/empty.py", "lib/deep/ünder.bin", "main.py", "page.html"}
INSTALL = "import ota\nota.release.install('/frozen/new.bundle')"
TELL = """
import os, sys, json
def walk(folder):
    for name, kind, *_ in os.ilistdir(folder):
        path = folder + "/" + name
        if kind == 0x4000:
            walk(path)
        else:
            found[path[len(sys.path[0]) + 1:]] = open(path, "rb").read().hex()
found = {}
walk(sys.path[0])
print(json.dumps(found))
"""


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return fresh(tmp_path)


def install(board: Board, data: bytes | None) -> Run:
    assert data is not None
    assert board.frozen is not None
    (board.frozen / "new.bundle").write_bytes(data)
    return board.run(INSTALL)


def tree_of(board: Board) -> dict[str, bytes]:
    """The files that are in use."""
    found = json.loads(board.run(TELL).output.splitlines()[-1])
    return {name: bytes.fromhex(data) for name, data in found.items()}


def test_the_board_tells_its_files_as_the_desk_does(board: Board) -> None:
    run = board.run("import ota.confirm\nprint([one.hex() for one in ota.confirm.ids() if one])")
    assert sorted(eval(run.output)) == sorted(one.hex() for one in ids(OLD))
    later = board.run("import ota.confirm\nprint([one.hex() for one in ota.confirm.ids(2) if one])")
    assert eval(later.output) == eval(run.output)[2:]


def test_what_is_left_out_comes_from_the_files_in_use(board: Board) -> None:
    thin = release(2, NEW).thinned(ids(OLD))
    assert thin is not None
    assert not any(OLD[name] in thin for name in SHARED if OLD[name])
    run = install(board, thin)
    assert "runs v1.26.1 2" in run.output, run.console
    assert tree_of(board) == NEW


def test_an_app_comes_with_files_that_are_there(board: Board) -> None:
    run = install(board, release(2, NEW, app()).thinned(ids(OLD)))
    assert "runs v1.27.0 2" in run.output, run.console
    assert tree_of(board) == NEW


def test_compressed_files_may_be_left_out_as_well(board: Board) -> None:
    content = files(NEW).compressed()
    assert content.encoded
    bundle = make(content, keys=(key(),), version="2.0", counter=2)
    run = install(board, bundle.thinned(ids(OLD)))
    assert "runs v1.26.1 2" in run.output, run.console
    assert tree_of(board) == NEW


def test_a_file_that_was_changed_since_is_not_taken(board: Board) -> None:
    board.run("import sys\nwith open(sys.path[0] + '/page.html', 'w') as f: f.write('changed')")
    run = install(board, release(2, NEW).thinned(ids(OLD)))
    assert "takes files from those in use that this board does not have so" in run.traceback
    assert "runs v1.26.1 1" in board.run().output


def test_a_file_that_is_gone_is_missed(board: Board) -> None:
    board.run("import os, sys\nos.remove(sys.path[0] + '/page.html')")
    run = install(board, release(2, NEW).thinned(ids(OLD)))
    assert "that this board does not have so" in run.traceback
    assert "runs v1.26.1 1" in board.run().output


def forged(thin: bytes) -> bytes:
    """A bundle whose signature is good, and its thin payload is ``thin``."""
    made = release(2, NEW)
    return replace(made, members={"files.tar" + SUFFIX: thin}).to_bytes()


WHOLE = make_thin(archive(NEW), ids(OLD))
assert WHOLE is not None


@pytest.mark.parametrize(
    ("thin", "words"),
    [
        (WHOLE[:-1], "truncated"),
        (b"+", "truncated"),
        (b"?\x01a", "damaged record"),
        (b"+\x00\x00\x00\x00\x00", "damaged record"),
        (b"=\x65" + b"a" * 101, "damaged record"),
        (b"=\x0a../../boot", "leaves the tree"),
        (b"=\x08/boot.py", "leaves the tree"),
        (b"=\x02\xff\xff", "does not have so"),
        (b"=\x03lib", "does not have so"),
        (WHOLE.replace(b"VERSION = 2", b"VERSION = 3"), "does not have so"),
        (b"+\x01a\xff\xff\xff\x7f" + b"x" * 600, "damaged header|truncated|member of"),
    ],
)
def test_a_thin_payload_that_lies_changes_nothing(board: Board, thin: bytes, words: str) -> None:
    run = install(board, forged(thin))
    assert any(word in run.traceback for word in words.split("|")), run.traceback
    assert "runs v1.26.1 1" in board.run().output
    assert tree_of(board) == OLD


def test_without_files_in_use_nothing_can_be_left_out(tmp_path: Path) -> None:
    blank = boards.formatted()
    blank.frozen = shutil.copytree(prepared()[0], tmp_path / "frozen")
    assert blank.run("import ota.confirm\nprint(list(ota.confirm.ids()))").output == "[]\n"
    run = install(blank, release(2, NEW).thinned(ids(OLD)))
    assert "that this board does not have so" in run.traceback


# --- on the desk


def test_the_desk_makes_the_whole_again() -> None:
    assert expand(WHOLE, OLD) == archive(NEW)
    bundle = release(2, NEW)
    payload = bundle.manifest.payloads[0]
    found = decode(payload.forms[0], payload, expand(WHOLE, OLD), "it")
    assert {m.name: m.data for m in read_tree(found or b"") if not m.is_directory} == NEW


def test_paths_that_do_not_fit_and_other_tar_files_are_sent_whole() -> None:
    long = archive({"a" * 60 + "/" + "b" * 60: b"x"})
    assert make_thin(long, ()) is None
    other = archive(NEW).replace(b"0000644", b"0000640")
    other = other.replace(b"0000640", b"0000644", 1)
    with pytest.raises(Exception, match="checksum"):
        make_thin(other, ())
