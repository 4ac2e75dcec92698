"""Ctrl-C reaches the virtual board's interpreter where it waits, and not amid its work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mpota.virtual.terminal import interrupt, process_state

HEAD = """
import signal, sys, threading
signal.signal(signal.SIGINT, lambda *_: sys.exit(7))
lock = threading.Lock()
lock.acquire()
print("up", flush=True)
"""
WAITS = "sys.stdin.read()"
BLOCKS = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]); sys.stdin.read()"
LOCKED = "lock.acquire()"
RUNS = "while True: pass"

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/syscall").exists(), reason="the system does not tell where a process waits"
)


@contextmanager
def running(code: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has come to ``code``."""
    command = [sys.executable, "-c", HEAD + code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            yield process
        finally:
            process.kill()


def wait_until_it_waits(process: subprocess.Popen[str]) -> None:
    while not process_state(process.pid)[0]:
        pass


def test_one_that_waits_is_interrupted() -> None:
    with running(WAITS) as process:
        wait_until_it_waits(process)
        assert interrupt(process.pid)
        assert process.wait() == 7


@pytest.mark.parametrize("code", [BLOCKS, LOCKED, RUNS])
def test_one_at_work_is_not_and_goes_on(code: str) -> None:
    with running(code) as process:
        if code is not RUNS:
            wait_until_it_waits(process)
        for _ in range(100):
            assert not interrupt(process.pid)
        assert process.poll() is None
        if code is RUNS:
            before = process_state(process.pid)[1]
            while process_state(process.pid)[1] == before:
                pass
            assert interrupt(process.pid, even_if_it_runs=True)
            assert process.wait() == 7


def test_one_that_has_ended_is_none() -> None:
    with running("") as process:
        process.wait()
        assert not interrupt(process.pid)
