"""Boards in reach of a radio or of the network, and clients that talk to them."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from mpota.formats.partition_table import Partition, PartitionTable
from mpota.push import ble
from mpota.push.update import Options, Pushed, RefusedError
from mpota.push.wire import Update
from mpota.virtual.board import Board, Run
from mpota.virtual.flash import VirtualFlash
from mpota.virtual.radio import Noise, Radio

from tests.support import boards, ota_board

NAME = "greenhouse"
SECRET = "correct horse battery staple"

# Slots for a real firmware: those of the usual 4 MiB table with OTA.
_SLOT_SIZE = 0x1D0000
LARGE_TABLE = (
    Partition("nvs", 1, 2, 0x9000, 0x4000),
    Partition("otadata", 1, 0, 0xD000, 0x2000),
    Partition("ota_0", 0, 0x10, 0x10000, _SLOT_SIZE),
    Partition("ota_1", 0, 0x11, 0x10000 + _SLOT_SIZE, _SLOT_SIZE),
    Partition("vfs", 1, 0x81, 0x3B0000, 0x50000),
)
LARGE_SIZE = 1_751_000  # 1.67 MiB, the size of MicroPython for an ESP32


@functools.cache
def update(size: int = 0x27000, version: str = "v1.27.0") -> Update:
    return Update("new.bin", boards.app(version, size), 0, version)


@functools.cache
def large_flash() -> bytes:
    contents = {
        boards.BOOTLOADER_OFFSET: boards.BOOTLOADER,
        0x8000: PartitionTable(LARGE_TABLE).to_bytes(),
        0x10000: ota_board.OLD,
    }
    with VirtualFlash.create(4 << 20, contents) as flash:
        Board(flash).run(boards.FIRST_LOOK)
        return flash.snapshot()


class Powered:
    """A board that runs in a thread of its own: ``script``, or what is on it."""

    def __init__(self, board: Board, script: str | None, **limits: Any) -> None:
        self.board = board
        self._runs: list[Run | BaseException] = []
        self._said = ""
        self._news = threading.Condition()
        limits.setdefault("timeout_s", 60)
        board.on_output = self._hear

        def power_on() -> None:
            try:
                self._runs.append(board.run(script, **limits))
            except BaseException as error:
                self._runs.append(error)
            with self._news:
                self._news.notify_all()

        self._thread = threading.Thread(target=power_on)
        self._thread.start()

    def _hear(self, text: str) -> None:
        with self._news:
            self._said += text
            self._news.notify_all()

    @property
    def said(self) -> str:
        """What is on its console by now."""
        with self._news:
            return self._said

    def heard(self, text: str) -> Powered:
        """The same, once it has said that."""
        with self._news:
            self._news.wait_for(lambda: text in self._said or self._runs)
            assert text in self._said, self._said
        return self

    def wait(self) -> Run:
        """What has happened until it came to rest."""
        self._thread.join()
        (run,) = self._runs
        if isinstance(run, BaseException):
            raise run
        return run


def peripheral(options: str = ", open=True") -> str:
    """A script that takes updates until one is complete, or until `stop`."""
    return f"""
import ota.ble, time
is_stopped = False
def accept(size, chip, version):
    global is_stopped
    is_stopped = version == "stop"
    return not is_stopped
p = ota.ble.Peripheral({NAME!r}, accept=accept{options})
def is_alone():  # its client has heard why
    return all(client.conn is None for client in p._clients)
p.start()
rest = 20
while rest:
    p.poll()
    time.sleep_ms(1)
    rest -= is_stopped and is_alone()
"""


_ACCEPT = "def accept(size, chip, version):\n"
_LATER = """
import time, ota.push_receiver
ahead = due = 0
def ticks():  # the receiver's; of one look it counts a second at most
    global ahead, due
    step = min(due, 1000)
    due -= step
    ahead += step
    return time.ticks_add(time.ticks_ms(), ahead)
ota.push_receiver.ticks_ms = ticks
"""


def with_clock(script: str, passing_s: int) -> str:
    """A script that takes updates, where ``passing_s`` pass when one of version "later" comes."""
    later = f"""    if version == "later":
        global due
        due = {passing_s * 1000}
        return False
"""
    return _LATER + script.replace(_ACCEPT, _ACCEPT + later)


LATER = Update("later", b"later", version="later")


def stop(radio: Radio, **changes: Any) -> None:
    """Have the script of `peripheral` end."""
    for is_last in (False, True):
        with pytest.raises(RefusedError) as refused:
            push(radio, Update("stop", b"stop", version="stop"), **changes)
        if refused.value.code != "memory" or is_last:  # else it has let go of what it could
            break
    assert (refused.value.code, "does not want version stop" in str(refused.value)) == (
        "refused",
        True,
    )


@contextmanager
def in_reach(
    noise: Noise | None = None,
    mtu: int = 247,
    passkey: int | None = 0,
    content: bytes | None = None,
) -> Iterator[tuple[Radio, Board]]:
    """A radio, and a board that has it."""
    with Radio(noise, mtu, passkey) as radio, ota_board.updating_board(content) as board:
        board.radio_port = radio.port
        yield radio, board


def options(**changes: Any) -> Options:
    return Options(**({"pause_s": 0.05} | changes))


def backend(radio: Radio) -> ble.Backend:
    return ble.Backend(radio.client, radio.scanner)


def push(radio: Radio, what: Update, *, pair: bool = False, **changes: Any) -> Pushed:
    sending = ble.push(
        NAME, what, options(**changes), pair=pair, timeout_s=2, backend=backend(radio)
    )
    return asyncio.run(sending)
