"""Pushes to boards of any heap: they go through, or the sender is told that there is no memory."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import pytest
from mpota.formats.delta import make_delta
from mpota.formats.frames import compress
from mpota.push.update import Pushed, RefusedError
from mpota.push.wire import Update
from mpota.virtual.board import Board, End

from tests.support import encoded, ota_board, releases
from tests.support.network import free_port, listener, push_tcp
from tests.support.radio import SECRET, Powered, in_reach, peripheral, push

SMALLEST, LARGEST = 44, 116  # KiB
Push = Callable[[Update], Pushed]
FORMS: dict[str, Callable[[], bytes]] = {
    "plain": lambda: encoded.NEW,
    "compressed": lambda: compress(encoded.NEW).to_bytes(),
    "delta": lambda: make_delta(encoded.OLD, encoded.NEW).to_bytes(),
    "signed": lambda: releases.make(encoded.content(), keys=(releases.key(),)).to_bytes(),
}
# From which size of heap on it has to go through, in KiB: over BLE, over TCP. Some 8 less may do,
# as the heap happens to be divided: when which packet comes is not the same twice.
ENOUGH = {"plain": (80, 72), "compressed": (108, 98), "delta": (110, 102), "signed": (128, 112)}
# By default: sizes at which boards once fell silent, and their neighbours; --all-cuts takes all.
FEW = {
    "plain": (44, 57, 60, 64, 68),
    "compressed": (64, 80),
    "delta": (73, 86),
    "signed": (44, 90),
}


@functools.cache
def form(name: str) -> Update:
    return Update(name, FORMS[name]())


@functools.cache
def content(name: str) -> bytes:
    """The flash of a board that takes that form."""
    with ota_board.updating_board(encoded.base()) as board:
        if name == "signed":
            ota_board.output(
                board, f"import ota; ota.keys.add({releases.key().public.digest.hex()!r})"
            )
        return board.flash.snapshot()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    all_sizes = tuple(range(SMALLEST, LARGEST + 1))
    is_all = metafunc.config.getoption("--all-cuts")
    column = 0 if "ble" in metafunc.function.__name__ else 1
    rows = [
        (name, size)
        for name in FORMS
        for size in (all_sizes if is_all else (*FEW[name], ENOUGH[name][column]))
    ]
    metafunc.parametrize(("name", "size"), rows)


def check(board: Board, script: str, name: str, size: int, enough: int, send: Push) -> None:
    """Push, and then, if the board has refused, have it do something else."""
    board.heap_size = size * 1024
    before = ota_board.slot_content(board, len(encoded.OLD), encoded.boards.OTA_0)
    powered = Powered(board, script)
    refused = None
    try:
        send(form(name))
    except RefusedError as error:
        refused = error
    labels: tuple[str, ...] = ("ota_0", "ota_1")
    if refused:
        assert refused.code == "memory"
        told = r"the board has not enough memory: .*allocating .*, [0-9]+ are free"
        assert re.fullmatch(told, str(refused))
        assert size < enough
        for _ in range(4):  # as long as it has no memory to hear even this
            with pytest.raises(RefusedError) as again:
                send(Update("stop", b"stop", version="stop"))
            if again.value.code != "memory":
                break
        assert "does not want version stop" in str(again.value)
        labels = ("ota_0",)
    run = powered.wait()
    assert (run.end, run.labels, run.traceback) == (End.IDLE, labels, "")
    assert ota_board.slot_content(board, len(encoded.OLD), encoded.boards.OTA_0) == before


def test_over_ble_it_goes_through_or_the_sender_is_told(name: str, size: int) -> None:
    with in_reach(content=content(name)) as (radio, board):
        script = peripheral(", silence=5, open=True")
        enough = ENOUGH[name][0]
        check(board, script, name, size, enough, lambda what: push(radio, what, attempts=1))


def test_over_tcp_it_goes_through_or_the_sender_is_told(name: str, size: int) -> None:
    port = free_port()
    is_open = name == "signed"
    secret = None if is_open else SECRET.encode()
    with ota_board.updating_board(content(name)) as board:
        script = listener(port, ", silence=5" + ("" if is_open else f", secret={SECRET!r}"))

        def send(what: Update) -> Pushed:
            return push_tcp(port, what, secret=secret, attempts=6)

        check(board, script, name, size, ENOUGH[name][1], send)
