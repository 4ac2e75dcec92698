"""Data partitions in releases that are pushed: nothing of them is written before it is verified."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mpota.formats.bundle import Bundle
from mpota.push.update import RefusedError
from mpota.push.wire import Update
from mpota.release.build import data_content
from mpota.virtual.board import Board
from mpota.virtual.radio import Radio

from tests.support import ota_board, releases
from tests.support.data_payloads import DATA, ROMFS, content
from tests.support.network import listening, push_tcp, stop
from tests.support.radio import Powered, in_reach, peripheral, push

SECTOR = 4096
Send = Callable[[bytes], None]


@contextmanager
def by_tcp() -> Iterator[tuple[Powered, Board, Send]]:
    trusts = releases.key().public.digest.hex()
    with listening("", content(), trusts) as (powered, board, port):
        yield (
            powered,
            board,
            lambda data: push_tcp(port, Update("x.bundle", data), secret=None, attempts=1) and None,
        )
        stop(port, secret=None)


@contextmanager
def by_ble() -> Iterator[tuple[Powered, Board, Send]]:
    def send(radio: Radio, data: bytes) -> None:
        push(radio, Update("x.bundle", data), attempts=1)

    with in_reach(content=content()) as (radio, board):
        board.heap_size = 144 * 1024  # one push after the other divides the heap
        trusted = releases.key().public.digest.hex()
        ota_board.output(board, f"import ota; ota.keys.add({trusted!r})")
        script = peripheral("").replace("rest -= is_stopped", "rest -= p.receiver.is_done")
        powered = Powered(board, script)
        yield powered, board, functools.partial(send, radio)


@pytest.fixture
def genuine(tmp_path: Path) -> bytes:
    path = tmp_path / "romfs.bin"
    path.write_bytes(DATA)
    made = releases.make(
        data_content("romfs", path), keys=(releases.key(),), counter=5, chip=None, name="pump"
    )
    return bytes(made.to_bytes())


def swapped(bundle: bytes, at: int) -> bytes:
    """The genuine bundle with one byte of its data changed."""
    member = Bundle.from_bytes(bundle).members["romfs.bin.chained"]
    start = bundle.index(member[:64])
    changed = bytearray(bundle)
    changed[start + at] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("carrier", [by_tcp, by_ble])
def test_nothing_of_a_piece_that_is_not_signed_reaches_the_partition(
    carrier: Callable[[], Iterator[tuple[Powered, Board, Send]]],
    genuine: bytes,
    hostile: Callable[..., None],
) -> None:
    """What was there, what is erased, and pieces that were verified: there is nothing else."""
    with carrier() as (powered, board, send):  # type: ignore[attr-defined]
        for at in (5, 4100, 11 * 4128 + 9):
            with pytest.raises(RefusedError, match="not what its manifest says"):
                send(swapped(genuine, at))
            found = board.flash.read(ROMFS.offset, ROMFS.size)
            for place in range(0, ROMFS.size, SECTOR):
                sector = found[place : place + SECTOR]
                right = DATA[place : place + SECTOR].ljust(SECTOR, b"\xff")
                assert sector in (b"\x55" * SECTOR, b"\xff" * SECTOR, right), hex(place)
            if at > 4128:  # something was written: the first two sectors are not, yet
                assert set(found[: 2 * SECTOR]) == {0xFF}
            hostile()
        send(genuine)
        assert board.flash.read(ROMFS.offset, len(DATA)) == DATA
    run = powered.wait()
    assert run.traceback == "", run.console
