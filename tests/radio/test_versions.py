"""Version 2 of the protocol and version 1, on both sides."""

from __future__ import annotations

import asyncio

import pytest
from mpota.errors import MpotaError
from mpota.push import ble, tcp

from tests.support import old_package, ota_board
from tests.support.network import BOTH, free_port, listener, listening, push_tcp, stop
from tests.support.protocol_client import WELCOME, Plain, code, text
from tests.support.radio import NAME, SECRET, Powered, backend, in_reach, peripheral, push, update


@pytest.mark.parametrize("secret", [SECRET, "eight by"])
def test_a_board_with_0_1_is_updated_over_the_network(secret: str) -> None:
    port = free_port()
    with ota_board.updating_board() as board:
        board.frozen = old_package.package()
        powered = Powered(board, listener(port, f", secret={secret!r}")).heard("listening")
        told: list[str] = []
        sent = push_tcp(
            port, update(), secret=secret.encode(), is_old_secret=True, tell=told.append
        )
        assert powered.wait().labels == BOTH
    assert sent.board.protocol == 1
    assert not any("protocol" in line for line in told)


def test_a_board_with_0_1_is_updated_over_ble() -> None:
    with in_reach() as (radio, board):
        board.frozen = old_package.package()
        powered = Powered(board, peripheral(""))
        sent = push(radio, update())
        assert powered.wait().labels == BOTH
    assert (sent.board.protocol, sent.connections) == (1, 2)


def test_a_wrong_secret_is_told_by_a_board_with_0_1_as_well() -> None:
    port = free_port()
    with ota_board.updating_board() as board:
        board.frozen = old_package.package()
        powered = Powered(board, listener(port, f", secret={SECRET!r}")).heard("listening")
        with pytest.raises(MpotaError, match="does not know this board's secret"):
            push_tcp(port, update(), secret=b"not the right secret")
        with pytest.raises(MpotaError, match="does not want version stop"):
            push_tcp(port, type(update())("stop", b"stop", version="stop"), pause_s=0.5)
        assert powered.wait().traceback == ""


async def _speak_old(client: Plain) -> None:
    client.version = 1
    answer = await client.greet()
    assert (code(answer), text(answer)) == (
        "protocol",
        "protocol version 1, this is 2: update mpota (pip install --upgrade mpota)",
    )


def test_a_client_that_speaks_version_1_is_told_to_update_mpota() -> None:
    async def over_tcp(port: int) -> None:
        async with tcp.connect("127.0.0.1", port) as link:
            await _speak_old(Plain(link))

    async def over_ble(radio: object) -> None:
        async with ble.connect(NAME, backend=backend(radio)) as link:  # type: ignore[arg-type]
            await _speak_old(Plain(link))

    with listening() as (_, board, port):
        asyncio.run(over_tcp(port))
        assert board.flash.operations == []
        stop(port)
    with in_reach() as (radio, board):
        powered = Powered(board, peripheral())
        asyncio.run(over_ble(radio))
        push(radio, update())
        assert powered.wait().labels == BOTH


def test_welcome_tells_the_largest_packet() -> None:
    """A browser does not know what the two ends have agreed to."""

    async def run(radio: object, mtu: int) -> None:
        async with ble.connect(NAME, backend=backend(radio)) as link:  # type: ignore[arg-type]
            plain = Plain(link)
            assert (await plain.greet())[0] == WELCOME
            assert plain.packet_size == mtu - 3

    for mtu in (23, 185):
        with in_reach(mtu=mtu) as (radio, board):
            powered = Powered(board, peripheral())
            asyncio.run(run(radio, mtu))
            push(radio, update(0x8000))
            assert powered.wait().labels == BOTH
