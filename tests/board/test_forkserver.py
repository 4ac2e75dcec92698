"""Boots are forks of one interpreter: each finds what a fresh one would find, and none stays."""

from __future__ import annotations

import os
import select
import shlex
import subprocess
import sys
from pathlib import Path

from mpota.virtual import micropython
from mpota.virtual.board import End
from mpota.virtual.micropython import Interpreter

from tests.support import boards

LARGEST = """
import gc
gc.collect()
free = size = gc.mem_free()
while True:
    try:
        bytearray(size)
        break
    except MemoryError:
        size -= 64
print(free, size)
"""
ONE_BOOT = """
from mpota.virtual import forkserver
from tests.support import boards
with boards.formatted().flash as flash:
    print(boards.Board(flash).run("print('up')").output)
(server,) = forkserver._servers.values()
print(server._process.pid, flush=True)
input()
"""


def test_every_boot_has_the_same_heap_in_one_piece() -> None:
    board = boards.formatted()
    found = {board.run(LARGEST).output for _ in range(40)}
    assert len(found) == 1
    free, size = map(int, found.pop().split())
    assert size > free - 4096


def test_an_interpreter_that_cannot_fork_boots_all_the_same(tmp_path: Path) -> None:
    real = micropython.find()
    script = tmp_path / "micropython"
    script.write_text(
        '#!/bin/sh\ncase "$*" in *forkserver*) exit 1;; esac\n'
        f'exec {shlex.join(real.command)} "$@"\n'
    )
    script.chmod(0o755)
    board = boards.formatted()
    board.interpreter = Interpreter((str(script),), real.version, real.word_size)
    fresh = map(int, board.run(LARGEST).output.split())
    forked = map(int, boards.formatted().run(LARGEST).output.split())
    assert all(abs(one - other) < 512 for one, other in zip(fresh, forked, strict=True))


def test_a_boot_that_dies_by_itself_is_told_and_the_next_one_runs() -> None:
    board = boards.formatted()
    dies = "import ffi\nffi.open('libc.so.6').func('v', 'abort', '')()"
    assert board.run(dies).end is End.DIED
    assert board.run("print('up')").output == "up\n"


def test_the_server_ends_with_the_process_that_it_is_for() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ONE_BOOT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdin is not None
        assert started.stdout is not None
        assert started.stdout.readline() == "up\n"
        started.stdout.readline()
        server = os.pidfd_open(int(started.stdout.readline()))
        started.kill()
    try:
        assert select.select([server], [], [], 20)[0] == [server]
    finally:
        os.close(server)
