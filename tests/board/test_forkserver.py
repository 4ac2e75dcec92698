"""Boots are forks of one interpreter: each finds what a fresh one would find, and none stays."""

from __future__ import annotations

import os
import select
import shlex
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mpota.units import KiB
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
# One that runs for ever, and the server that it is a fork of.
ENDLESS = """
from mpota.virtual import forkserver
from tests.support import boards
SCRIPT = "import ffi; print(ffi.open('libc.so.6').func('i', 'getpid', '')())\\nwhile True: pass"
def tell(text):
    if text.strip().isdigit():  # else it is the bootloader that says something
        (server,) = forkserver._servers.values()
        print(server._process.pid, text, flush=True)
with boards.formatted().flash as flash:
    board = boards.Board(flash, on_output=tell)
    board.run(SCRIPT, timeout_s=None)
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


def test_boards_of_more_sizes_than_there_are_servers_for_run_at_once() -> None:
    """A server is no more only when none of its boards is."""
    sizes = [size * KiB for size in (100, 104, 108, 112, 116, 120)]
    power_fd, switch_fd = os.pipe()
    all_up = threading.Barrier(len(sizes), action=lambda: os.write(switch_fd, b"off"))

    def run(size: int) -> End:
        board = boards.formatted()
        board.heap_size = size
        board.on_output = lambda text: all_up.wait(60) if "up" in text else None
        return board.run("print('up')\nwhile True: pass", power_fd=power_fd).end

    try:
        with ThreadPoolExecutor(len(sizes)) as pool:
            assert set(pool.map(run, sizes)) == {End.POWER_CUT}
    finally:
        os.close(power_fd)
        os.close(switch_fd)


def test_boards_and_their_server_end_with_the_process_that_they_are_for() -> None:
    with subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        processes = [os.pidfd_open(int(pid)) for pid in started.stdout.readline().split()]
        assert len(processes) == 2
        started.kill()
    try:
        for one in processes:
            assert select.select([one], [], [], 20)[0] == [one]
    finally:
        for one in processes:
            os.close(one)
