"""Strangers on the network and in reach of the radio, against boards that take updates there.

Each case ends with an update by somebody who may, and what flash holds before it is looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
from bleak.exc import BleakError
from mpota.errors import MpotaError
from mpota.push import ble, tcp
from mpota.push.update import LostLinkError
from mpota.push.wire import Update
from mpota.virtual.board import Board
from mpota.virtual.radio import Radio

from tests.support import amount, boards, ota_board, releases, side_by_side
from tests.support.network import BOTH, listening, push_tcp
from tests.support.protocol_client import (
    AGAIN,
    BEGIN,
    DONE,
    END,
    HELLO,
    READY,
    STATUS,
    WELCOME,
    Plain,
    code,
)
from tests.support.radio import NAME, SECRET, Powered, backend, in_reach, peripheral, push, update

NEW = update(0x12000).data
KEY = SECRET.encode()
WRONG = b"another secret of 16"
PATIENT = ", silence=100"  # with who waits for others, however busy the machine is

Stranger = Callable[[Plain], Awaitable[None]]


def good(size: int = 0x12000) -> Update:
    return update(size)


@pytest.fixture(autouse=True)
def counted(hostile: Callable[..., None]) -> None:
    hostile()


# --- what strangers do, by whatever carries it: each a connection of its own


async def _silent(client: Plain) -> None:
    pass


async def _only_greets(client: Plain) -> None:
    await client.greet()


async def _wrong_proof(client: Plain) -> None:
    client.secret = WRONG
    await client.greet()
    await client.link.send(client.begin_message(NEW))


async def _no_proof(client: Plain) -> None:
    client.secret = None
    await client.greet()
    assert code(await client.begin(NEW)) == "protocol"


async def _long_proof(client: Plain) -> None:
    await client.greet()
    await client.link.send(client.begin_message(NEW) + b"x")
    assert code(await client.hear()) == "protocol"


async def _end_of_nothing(client: Plain) -> None:
    await client.greet()
    assert code(await client.end(1)) == "protocol"


async def _abort_without_proof(client: Plain) -> None:
    client.secret = None
    await client.greet()
    await client.abort()
    assert code(await client.hear()) == "protocol"


async def _abort_with_a_wrong_proof(client: Plain) -> None:
    client.secret = WRONG
    await client.greet()
    await client.abort()


async def _board_s_own_messages(client: Plain) -> None:
    for kind in (WELCOME, STATUS, AGAIN, DONE, READY):
        await client.link.send(bytes((kind, 2)) + bytes(30))
        assert code(await client.hear()) == "protocol"
        break


async def _begin_at_once(client: Plain) -> None:
    client.nonces = bytes(32)
    assert code(await client.begin(NEW)) == "protocol"


async def _greets_for_ever(client: Plain) -> None:
    for _ in range(20):
        assert (await client.greet())[0] == WELCOME


STRANGERS = (
    _silent,
    _only_greets,
    _wrong_proof,
    _no_proof,
    _long_proof,
    _end_of_nothing,
    _abort_without_proof,
    _abort_with_a_wrong_proof,
    _board_s_own_messages,
    _begin_at_once,
    _greets_for_ever,
)


# --- the network


@contextmanager
def held_open(port: int, count: int, say: bytes = b"") -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            line = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            line.sendall(say)
        yield


def tcp_stranger(port: int, stranger: Stranger) -> None:
    async def run() -> None:
        async with tcp.connect("127.0.0.1", port) as link:
            await stranger(Plain(link, KEY))

    asyncio.run(run())


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_on_the_network_changes_nothing(stranger: Stranger) -> None:
    with listening() as (powered, board, port):
        tcp_stranger(port, stranger)
        assert board.flash.operations == []
        push_tcp(port, good())
        run = powered.wait()
    assert (run.labels, run.traceback) == (BOTH, "")


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_does_not_disturb_an_update_over_the_network(stranger: Stranger) -> None:
    async def both(port: int) -> None:
        async with tcp.connect("127.0.0.1", port) as link:
            mine = Plain(link, KEY)
            await mine.greet()
            assert (await mine.begin(NEW))[0] == READY
            await mine.send(NEW[:0x3000], follow=True, wait=False)
            async with tcp.connect("127.0.0.1", port) as other:
                await stranger(Plain(other, KEY))
                await mine.send(NEW[:0x8000], follow=True, wait=False)
            assert struct.unpack("<BIH", await mine.send(NEW, follow=True))[1] == len(NEW)
            assert (await mine.end(1))[0] == DONE

    with listening(f", secret={SECRET!r}{PATIENT}") as (powered, board, port):
        asyncio.run(both(port))
        run = powered.wait()
        assert (run.labels, run.traceback) == (BOTH, "")
        assert ota_board.slot_content(board, len(NEW)) == NEW


# What each says, and how many there are.
IDLE_CONNECTIONS = {
    "one": (b"", 1),
    "some": (b"", 4),  # as many as may wait to be taken
    "many": (b"", 12),
    "a byte": (b"\x12", 12),
    "hello": (b"\x12\0\0\1\2" + bytes(16), 12),
    "half a message": (b"\xff\0\0" + bytes(100), 12),
    "a huge packet": (b"\xff\xff\1", 12),
}


def test_connections_that_do_nothing_keep_nobody_out(hostile: Callable[..., None]) -> None:
    def try_one(case: tuple[bytes, int]) -> None:
        say, count = case
        with listening() as (powered, _, port), held_open(port, count, say):
            push_tcp(port, good(), pause_s=0.3)
            run = powered.wait()
        assert (run.labels, run.traceback) == (BOTH, "")

    hostile(len(IDLE_CONNECTIONS) - 1)
    side_by_side.run(IDLE_CONNECTIONS, try_one)


def test_a_flood_of_wrong_proofs_keeps_nobody_out() -> None:
    is_over = threading.Event()
    tries = []

    def flood(port: int) -> None:
        while not is_over.is_set():
            with contextlib.suppress(MpotaError, AssertionError, OSError):
                tcp_stranger(port, _wrong_proof)
                tries.append(1)

    with listening() as (powered, board, port):
        threads = [threading.Thread(target=flood, args=(port,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        while len(tries) < 10:
            time.sleep(0.05)
        assert board.flash.operations == []
        push_tcp(port, good(), pause_s=0.3)
        is_over.set()
        run = powered.wait()
        for thread in threads:
            thread.join()
    assert (run.labels, run.traceback) == (BOTH, "")


def first_answer(line: socket.socket) -> bytes:
    """What the board says first. (Then it waits for us to hang up.)"""
    with line.makefile("rb") as answers:
        size, channel = struct.unpack("<HB", answers.read(3))
        assert channel == 0
        return answers.read(size)


def test_a_session_that_was_heard_is_of_no_use_to_who_says_it_again() -> None:
    heard: list[bytes] = []

    class Ear:
        packet_size = 1024

        def __init__(self, link: tcp.TcpLink) -> None:
            self.link = link
            self.receive = link.receive

        async def send(self, message: bytes) -> None:
            heard.append(struct.pack("<HB", len(message), 0) + message)
            await self.link.send(message)

        async def send_data(self, packet: bytes) -> None:
            heard.append(struct.pack("<HB", len(packet), 1) + packet)
            await self.link.send_data(packet)

    async def session(port: int) -> None:
        async with tcp.connect("127.0.0.1", port) as link:
            client = Plain(Ear(link), KEY)
            await client.greet()
            await client.begin(NEW)
            await client.send(NEW[:0x4000], follow=True)
            await client.abort()
            while (answer := await client.hear())[0] != 0x85:
                pass
            assert code(answer) == "aborted"

    with listening() as (powered, board, port):
        asyncio.run(session(port))
        board.flash.restart_count()
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.sendall(heard[0] + heard[1])
            assert b"secret" in line.makefile("rb").read()
        for message in heard:
            with socket.create_connection(("127.0.0.1", port)) as line:
                line.sendall(message)
                if message[3] != HELLO or message[2]:
                    assert code(first_answer(line)) == "protocol"
        assert board.flash.operations == []
        push_tcp(port, good())
        assert powered.wait().labels == BOTH


@pytest.mark.parametrize("kind", [BEGIN, END])
def test_no_bit_of_what_is_proven_can_be_changed(kind: int) -> None:
    """Flags (the restart among them), size, SHA-256, chip, version, proof: one bit each."""

    async def run(port: int, change: int) -> bytes:
        async with tcp.connect("127.0.0.1", port) as link:
            client = Plain(link, KEY)
            await client.greet()
            message = client.begin_message(NEW)
            if kind == END:
                await client.begin(NEW)
                head = bytes((END, 0))
                message = head + client.proof("end", head + client.sha)
            changed = bytearray(message)
            changed[1 + change % (len(message) - 1)] ^= 1 << change % 8
            await link.send(bytes(changed))
            while (answer := await client.hear(20))[0] == AGAIN:
                pass
            return answer

    places = [0, 1, 3, 7, 20, 38, 40, 41, 60] if kind == BEGIN else [0, 1, 9, 20, 32]
    with listening() as (powered, board, port):
        asyncio.run(_forgive(port))
        for change in places:
            assert code(asyncio.run(run(port, change))) in ("secret", "protocol")
            asyncio.run(_forgive(port))
        assert ota_board.records(board)[1].ota_seq == 0xFFFFFFFF
        push_tcp(port, good())
        assert powered.wait().labels == BOTH


async def _forgive(port: int) -> None:
    """A right proof: the next wrong one is answered at once again."""
    async with tcp.connect("127.0.0.1", port) as link:
        client = Plain(link, KEY)
        await client.greet()
        await client.begin(NEW, resume=1)


def _line(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def test_noise_in_place_of_frames_leaves_the_listener_well() -> None:
    rng = random.Random(11)
    with listening() as (powered, board, port):
        for number in range(amount.some(60, 3)):
            frames = b""
            for _ in range(rng.randrange(1, 4)):
                size = rng.randrange(300)
                lie = size if number % 2 else rng.randrange(1 << 16)
                head = struct.pack("<HB", lie, rng.choice((0, 0, 1, 2, 255)))
                frames += head + rng.randbytes(size)
            with contextlib.suppress(OSError), _line(port) as line:
                line.sendall(frames)
                line.shutdown(socket.SHUT_WR)
                line.makefile("rb").read()
        assert board.flash.operations == []
        push_tcp(port, good())
        run = powered.wait()
    assert (run.labels, run.traceback) == (BOTH, "")


# --- keys and no secret: anybody may begin


@pytest.fixture(scope="module")
def signed() -> Update:
    made = releases.make(releases.app(size=0x12000), keys=(releases.key(),))
    return Update("demo.bundle", made.to_bytes())


def keyed(
    options: str = ", silence=4",
) -> contextlib.AbstractContextManager[tuple[Powered, Board, int]]:
    return listening(options, trusts=releases.key().public.digest.hex())


async def _hold_by_a_begin(client: Plain) -> None:
    client.secret = None
    await client.greet()
    await client.begin(bytes(50000))


def test_where_keys_are_installed_who_begins_and_does_nothing_holds_nobody(signed: Update) -> None:
    is_over = threading.Event()

    def hold(port: int) -> None:
        async def run() -> None:
            async with tcp.connect("127.0.0.1", port) as link:
                await _hold_by_a_begin(Plain(link))
                while not is_over.is_set():
                    await link.receive(0.2)

        while not is_over.is_set():
            with contextlib.suppress(MpotaError, AssertionError):
                asyncio.run(run())

    with keyed("") as (powered, _, port):
        threads = [threading.Thread(target=hold, args=(port,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        push_tcp(port, signed, secret=None, pause_s=0.5)
        is_over.set()
        run_ = powered.wait()
        for thread in threads:
            thread.join()
        assert (run_.labels, run_.traceback) == (BOTH, "")


def test_where_keys_are_installed_nothing_of_a_stranger_s_reaches_the_flash(signed: Update) -> None:
    other = releases.make(releases.app(size=0x12000), keys=(releases.key(3),)).to_bytes()
    unsigned = releases.make(releases.app(size=0x12000)).to_bytes()
    damaged = bytearray(signed.data)
    damaged[600] ^= 1
    with keyed() as (powered, board, port):
        before = board.flash.snapshot()
        for data in (NEW, other, unsigned, bytes(damaged), bytes(9000), random.randbytes(20000)):
            with pytest.raises(MpotaError):
                push_tcp(port, Update("x", data), secret=None, attempts=1)
            assert board.flash.operations == []
        assert board.flash.snapshot() == before
        push_tcp(port, signed, secret=None)
        assert powered.wait().labels == BOTH


def test_where_keys_are_installed_a_half_update_outlives_strangers(signed: Update) -> None:
    """The slot and a note in NVS have what came; the board then asks for what lies ahead of it."""
    made = releases.make(releases.app(size=0x3C000), keys=(releases.key(),))
    large = Update("demo.bundle", made.to_bytes())

    async def leave(port: int) -> None:
        async with tcp.connect("127.0.0.1", port) as link:
            client = Plain(link)
            await client.greet()
            await client.begin(large.data, resume=1)
            await client.send(large.data[:0x30000], follow=True)

    async def steal(port: int, data: bytes, end: bool) -> None:
        async with tcp.connect("127.0.0.1", port) as link:
            client = Plain(link)
            await client.greet()
            if (await client.begin(data, resume=end))[0] == READY:
                await (client.end(1) if end else client.abort())

    with keyed() as (powered, board, port):
        asyncio.run(leave(port))
        assert board.flash.operations != []
        for data, end in ((NEW, False), (bytes(9000), False), (random.randbytes(9000), True)):
            asyncio.run(steal(port, data, end))
        sent = push_tcp(port, large, secret=None, restart=True)
        run = powered.wait()
        assert (run.labels, run.traceback) == (BOTH, "")
        image = boards.app("v1.27.0", 0x3C000)
        assert ota_board.slot_content(board, len(image)) == image
    assert sent.sent_size < len(large.data) - 0x14000


def test_when_the_keys_are_cleared_a_listener_that_relied_on_them_ends(signed: Update) -> None:
    script = """
import asyncio, sys, ota, ota.listen
async def main():
    listener = ota.listen.Listener(host="127.0.0.1", port=%d)
    task = asyncio.create_task(listener.serve())
    await asyncio.sleep_ms(1)
    ota.keys.clear()
    sys.modules["ota.push_receiver"].keys_cleared()
    try:
        await task
    except ota.OTAError as error:
        print("ended", error.code)
    try:
        ota.listen.Listener()
    except ota.OTAError as error:
        print("refused", error.code)
    secret = ota.listen.Listener("correct horse battery staple", host="127.0.0.1", port=%d)
    task = asyncio.create_task(secret.serve())
    await asyncio.sleep_ms(1)
    sys.modules["ota.push_receiver"].keys_cleared()
    await asyncio.sleep_ms(100)
    print("goes on", not task.done())
    task.cancel()
asyncio.run(main())
"""
    from tests.support.network import free_port

    with ota_board.updating_board() as board:
        ota_board.output(board, f"import ota; ota.keys.add({releases.key().public.digest.hex()!r})")
        said = ota_board.output(board, script % (free_port(), free_port()))
    assert said.splitlines() == ["ended open", "refused open", "goes on True"]


# --- the radio


def ble_stranger(radio: Radio, stranger: Stranger) -> None:
    client, scanner = radio.stranger()

    async def run() -> None:
        async with ble.connect(NAME, backend=ble.Backend(client, scanner)) as link:
            await stranger(Plain(link, KEY))

    asyncio.run(run())


def secret_peripheral(more: str = "") -> str:
    return peripheral(f", secret={SECRET!r}{more}")


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_in_reach_changes_nothing(stranger: Stranger) -> None:
    with in_reach() as (radio, board):
        powered = Powered(board, secret_peripheral())
        before = len(board.flash.operations)
        ble_stranger(radio, stranger)
        assert len(board.flash.operations) == before
        push(radio, good(), secret=KEY)
        run = powered.wait()
    assert (run.labels, run.traceback) == (BOTH, "")


class Lingering:
    """Strangers that connect, do something, and stay."""

    def __init__(self, radio: Radio, count: int, stranger: Stranger) -> None:
        self._is_over = threading.Event()
        self.lost = 0
        self._ready = threading.Semaphore(0)
        self._threads = []
        for _ in range(count):
            made = radio.stranger()
            thread = threading.Thread(target=self._run, args=(ble.Backend(*made), stranger))
            thread.start()
            self._threads.append(thread)
            self._ready.acquire(timeout=20)

    def _run(self, own: ble.Backend, stranger: Stranger) -> None:
        async def run() -> None:
            async with ble.connect(NAME, timeout_s=15, backend=own) as link:
                try:
                    await stranger(Plain(link, KEY))
                finally:
                    self._ready.release()
                while not self._is_over.is_set():
                    await link.receive(0.2)

        try:
            asyncio.run(run())
        except (MpotaError, AssertionError):
            self.lost += 1

    def end(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()


async def _flood(client: Plain) -> None:
    with contextlib.suppress(MpotaError):
        for number in range(100):
            await client.link.send_data(bytes(200))
            await client.link.send(bytes((number & 3,)) + bytes(100))


def test_four_strangers_that_stay_keep_nobody_out(hostile: Callable[..., None]) -> None:
    """NimBLE has four connections: while all are taken it does not advertise."""

    def try_one(stranger: Stranger) -> None:
        with in_reach() as (radio, board):
            powered = Powered(board, secret_peripheral())
            lingering = Lingering(radio, 4, stranger)
            push(radio, good(), secret=KEY, attempts=20, pause_s=0.3)
            run = powered.wait()
            lingering.end()
        assert (run.labels, run.traceback) == (BOTH, "")
        assert "Unhandled" not in run.output

    strangers = (_silent, _only_greets, _flood, _wrong_proof)
    hostile(len(strangers) - 1)
    side_by_side.run({stranger.__name__: stranger for stranger in strangers}, try_one)


def test_who_says_nothing_is_disconnected_and_the_board_advertises_on() -> None:
    with in_reach() as (radio, board):
        powered = Powered(board, secret_peripheral())
        lingering = Lingering(radio, 1, _silent)
        assert radio.connections == 1
        deadline = time.monotonic() + 40
        while radio.connections and time.monotonic() < deadline:
            time.sleep(0.1)
        assert radio.connections == 0
        push(radio, good(), secret=KEY)
        assert powered.wait().labels == BOTH
        lingering.end()
        assert lingering.lost == 1


def test_a_client_in_the_middle_of_its_update_is_not_disturbed_over_ble() -> None:
    async def run(radio: Radio) -> None:
        async with ble.connect(NAME, backend=backend(radio)) as link:
            mine = Plain(link, KEY)
            await mine.greet()
            ready = await mine.begin(NEW)
            assert ready[0] == READY
            await mine.send(NEW[:0x3000], follow=True, wait=False)
            for number, stranger in enumerate((_flood, _abort_with_a_wrong_proof, _wrong_proof)):
                own = ble.Backend(*radio.stranger())
                with contextlib.suppress(LostLinkError, AssertionError):
                    async with ble.connect(NAME, timeout_s=0.3, backend=own) as other:
                        await stranger(Plain(other, KEY))
                await mine.send(NEW[: 0x4000 + number * 0x1000], follow=True, wait=False)
            last = await mine.send(NEW, follow=True)
            assert last[0] == STATUS, last
            assert mine.done(last) == len(NEW)
            assert (await mine.end(1))[0] == DONE

    with in_reach() as (radio, board):
        powered = Powered(board, secret_peripheral(PATIENT))
        asyncio.run(run(radio))
        run_ = powered.wait()
        assert (run_.labels, run_.traceback) == (BOTH, "")
        assert ota_board.slot_content(board, len(NEW)) == NEW


def test_fragments_in_any_order_end_in_an_answer() -> None:
    rng = random.Random(5)

    async def noise(client: Plain) -> None:
        link = client.link
        assert isinstance(link, ble.BleLink)
        with contextlib.suppress(BleakError):
            for _ in range(12):
                piece = bytes((rng.choice((0, 0x80, 1, 0x81, 2, 0xFF, 0x7F)),))
                piece += rng.randbytes(rng.randrange(100))
                await link.client.write_gatt_char(ble.CONTROL, piece, response=True)

    with in_reach() as (radio, board):
        powered = Powered(board, secret_peripheral())
        for _ in range(15):
            ble_stranger(radio, noise)
        push(radio, good(), secret=KEY)
        run = powered.wait()
    assert (run.labels, run.traceback) == (BOTH, "")
