"""Updates by push on the local network: real MicroPython, TCP on loopback."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from mpota import cli
from mpota.errors import MpotaError, UsageError
from mpota.formats.signature import padded
from mpota.push import tcp
from mpota.push.update import LostLinkError, RefusedError
from mpota.push.wire import Update
from mpota.release import signing
from mpota.virtual.board import End

from tests.support import boards, ota_board, releases
from tests.support.network import BOTH, free_port, listener, listening, push_tcp, stop
from tests.support.protocol_client import BEGIN, DONE, HELLO, READY, WELCOME, Plain, code
from tests.support.radio import LARGE_SIZE, LATER, SECRET, Powered, large_flash, update, with_clock

NEW = update().data
KEY = SECRET.encode()


def test_a_real_firmware_arrives_and_boots() -> None:
    new = update(LARGE_SIZE)
    with listening(content=large_flash()) as (powered, board, port):
        sent = push_tcp(port, new)
        run = powered.wait()
        assert (run.labels, run.traceback) == (BOTH, "")
        assert board.flash.read(0x1E0000, len(new.data)) == new.data
    assert (sent.sent_size, sent.connections) == (len(new.data), 1)


def test_of_a_merged_firmware_the_app_alone_is_written() -> None:
    end = 0x10000 + len(NEW)
    merged = bytearray(b"\xff" * end)
    for offset, content in ota_board.contents(NEW).items():
        merged[offset : offset + len(content)] = content
    with listening() as (powered, board, port):
        push_tcp(port, Update("merged.bin", bytes(merged[boards.BOOTLOADER_OFFSET :])))
        assert powered.wait().labels == BOTH
        assert ota_board.slot_content(board, len(NEW)) == NEW


def test_without_a_secret_and_without_keys_nothing_listens() -> None:
    with ota_board.updating_board() as board:
        run = board.run("import ota.listen\nota.listen.Listener()")
    assert "anyone could update it" in run.traceback


def test_signed_bundles_need_no_secret() -> None:
    key = releases.key()
    signed = releases.make(releases.app(size=0x10000), keys=(key,)).to_bytes()
    with listening("", trusts=key.public.digest.hex()) as (powered, _, port):
        for what in (NEW, releases.make(releases.app(size=0x10000)).to_bytes()):
            with pytest.raises(RefusedError) as refused:
                push_tcp(port, Update("x", what), secret=None)
            assert refused.value.code == "unsigned"
        push_tcp(port, Update("demo.bundle", signed), secret=None)
        assert powered.wait().labels == BOTH


def test_of_a_signed_image_the_end_comes_first_where_the_owner_takes_images() -> None:
    image = padded(NEW)
    image += signing.sign(image, (releases.key(),))
    port = free_port()
    with ota_board.updating_board() as board:
        ota_board.output(board, f"import ota; ota.keys.add({releases.key().public.digest.hex()!r})")
        script = "import ota.keys\nota.keys.allow_images(True)\n" + listener(port, "")
        powered = Powered(board, script).heard("listening")
        what = Update("new.bin", image, 0, "v1.27.0", is_signed_image=True)
        sent = push_tcp(port, what, secret=None)
        assert powered.wait().labels == BOTH
        assert ota_board.slot_content(board, len(image)) == image
    assert sent.sent_size == len(image) + 4096


# --- the secret


def test_who_does_not_know_the_secret_is_refused_and_a_right_one_never_waits() -> None:
    with listening() as (powered, board, port):
        for _ in range(2):  # the second one hears it later
            with pytest.raises(RefusedError) as refused:
                push_tcp(port, update(), secret=b"not the right secret")
            assert refused.value.code == "secret"
        assert board.flash.operations == []
        sent = push_tcp(port, update(), attempts=1)
        assert powered.wait().labels == BOTH
    assert sent.connections == 1


@pytest.mark.parametrize("secret", ["short", "fifteen bytes.."])
def test_a_secret_that_can_be_guessed_is_refused_on_both_sides(secret: str) -> None:
    with ota_board.updating_board() as board:
        run = board.run(f"import ota.listen\nota.listen.Listener({secret!r})")
        assert f"the secret has {len(secret)} bytes, 16 are the least" in run.traceback
    with pytest.raises(UsageError, match=f"the secret has {len(secret)} bytes, 16 are the least"):
        push_tcp(1, update(), secret=secret.encode())


def test_a_board_that_does_not_know_the_secret_gets_nothing() -> None:
    heard = []

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        welcome = struct.pack("<BBB16sHHB", WELCOME, 2, 1, os.urandom(16), 0, 1024, 0)
        ready = struct.pack("<BIH", READY, 0, 16384) + os.urandom(32)
        for answer in (welcome, ready):
            size, _ = struct.unpack("<HB", await reader.readexactly(3))
            heard.append((await reader.readexactly(size))[0])
            writer.write(struct.pack("<HB", len(answer), 0) + answer)
        heard.extend(await reader.read())
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(pretend, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(MpotaError, match="another one, or a fake"):
            await asyncio.to_thread(push_tcp, port, update())
        server.close()
        await server.wait_closed()

    asyncio.run(run())
    assert heard == [HELLO, BEGIN]


def test_what_a_board_says_is_visible(hostile: Callable[..., None]) -> None:
    evil = "1\x1b[2J\x07\r\n\u202e\x9b2J".encode()
    welcome = struct.pack("<BBB16sHHB", WELCOME, 2, 0, bytes(16), 0, 1024, len(evil)) + evil
    refusal = b"\x85\4n\x1bo\x7f" + evil
    good = struct.pack("<BIH", READY, len(NEW), 0), bytes((DONE, 0))

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers.pop():
            size, _ = struct.unpack("<HB", await reader.readexactly(3))
            await reader.readexactly(size)
            writer.write(struct.pack("<HB", len(answer), 0) + answer)
        await reader.read()
        writer.close()

    answers = [(welcome, *good), (welcome, refusal)]

    async def run() -> None:
        server = await asyncio.start_server(pretend, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(RefusedError) as error:
            await asyncio.to_thread(push_tcp, port, update(), secret=None)
        sent = await asyncio.to_thread(push_tcp, port, update(), secret=None)
        server.close()
        await server.wait_closed()
        said = r"1\x1b[2J\x07\r\n\u202e\x9b2J"
        assert (error.value.code, str(error.value)) == (r"n\x1bo\x7f", said)
        assert sent.board.version == said

    asyncio.run(run())
    hostile(2)


def test_a_board_that_asks_for_no_secret_is_not_taken_for_one_that_knows_it() -> None:
    with listening("", trusts=releases.key().public.digest.hex()) as (_, board, port):
        with pytest.raises(MpotaError, match="asks for no secret"):
            push_tcp(port, update())
        assert board.flash.operations == []
        with pytest.raises(RefusedError, match="does not want version stop"):
            push_tcp(port, Update("stop", b"stop", version="stop"), secret=None)


def test_who_changes_what_goes_over_the_line_gets_nowhere() -> None:
    """The proof covers BEGIN, and BEGIN the SHA-256 of the file."""

    def change_begin(frame: bytes) -> bytes:
        return frame[:10] + bytes((frame[10] ^ 1,)) + frame[11:]

    with listening() as (powered, board, port):
        with between(port, 2, change_begin) as altered, pytest.raises(RefusedError) as refused:
            push_tcp(altered, update(), attempts=3)
        assert refused.value.code == "secret"
        assert board.flash.operations == []
        push_tcp(port, update(), pause_s=0.5)
        assert powered.wait().labels == BOTH


# --- clients that come and go


def test_an_update_goes_on_where_a_lost_client_left_it() -> None:
    async def leave(client: Plain) -> None:
        await client.greet()
        await client.begin(NEW)
        assert await client.send(NEW[:0x8000])

    with listening() as (powered, _, port):
        talk(port, leave)
        told: list[str] = []
        sent = push_tcp(port, update(), tell=told.append)
        assert [line.split(" has ")[0] for line in told] == ["going on: the board"]
        assert powered.wait().labels == BOTH
    assert sent.sent_size <= len(NEW) - 0x7000


def test_one_client_is_served_at_a_time() -> None:
    async def both(port: int) -> None:
        async with tcp.connect("127.0.0.1", port) as first:
            one = Plain(first, KEY)
            assert (await one.greet())[0] == WELCOME
            async with tcp.connect("127.0.0.1", port) as second:
                two = Plain(second, KEY)
                assert (await two.greet())[0] == WELCOME
                assert (await one.begin(NEW))[0] == READY
                assert code(await two.begin(NEW)) == "busy"
            assert struct.unpack("<BIH", await one.send(NEW[:8192]))[1] == 8192

    with listening() as (powered, _, port):
        asyncio.run(both(port))
        push_tcp(port, update())
        assert powered.wait().labels == BOTH


Raw = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _answer(reader: asyncio.StreamReader) -> bytes:
    """One message. (Whoever waits for the end of the connection waits for a second.)"""
    size, _ = struct.unpack("<HB", await reader.readexactly(3))
    return await reader.readexactly(size)


async def _send_noise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(random.Random(6).randbytes(5000))
    assert b"protocol" in await _answer(reader)


async def _send_a_huge_frame(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\xff\xff\0" + bytes(70000))
    await reader.read()


async def _send_an_empty_frame(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes(3))
    assert b"protocol" in await _answer(reader)


async def _send_half_a_frame(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x12\0\0\x01\x02")


async def _break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x12\0\0\x01\x02" + bytes(16))
    writer.transport.abort()


async def _fall_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x12\0\0\x01\x02" + bytes(16))
    await _answer(reader)
    with pytest.raises(RefusedError, match="does not want version later"):
        await asyncio.to_thread(push_tcp, writer.get_extra_info("peername")[1], LATER)
    assert b"timeout" in await reader.read()


def test_after_every_hostile_client_the_board_takes_a_good_update(
    hostile: Callable[..., None],
) -> None:
    async def run(client: Raw, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with suppress(ConnectionError):
            await client(reader, writer)
        writer.close()

    with listening(script=lambda script: with_clock(script, 11)) as (powered, board, port):
        clients = (
            _send_noise,
            _send_a_huge_frame,
            _send_an_empty_frame,
            _send_half_a_frame,
            _break_off,
            _fall_silent,
        )
        hostile(len(clients))
        for client in clients:
            asyncio.run(run(client, port))
            assert board.flash.operations == [], client
        push_tcp(port, update())
        run_ = powered.wait()
    assert (run_.labels, run_.traceback) == (BOTH, "")


def test_who_sends_on_meanwhile_still_hears_why_it_is_refused() -> None:
    async def run(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(bytes(3) + bytes(8000))
        writer.write_eof()
        answer = await reader.read()  # to the end: the board must not reset the connection
        writer.close()
        return answer

    with listening() as (_, _, port):
        assert b"protocol" in asyncio.run(run(port))
        stop(port)


def test_the_listener_goes_on_after_a_client_for_whom_there_was_no_memory() -> None:
    script = """
import asyncio
stream = asyncio.StreamReader
def starved(*args):
    asyncio.StreamReader = stream
    print("starved")
    raise MemoryError
class Starving:
    def accept(size, chip, version):
        if version == "starve":
            asyncio.StreamReader = starved
        return version == "go"
"""
    port = free_port()
    with ota_board.updating_board() as board:
        options = f", secret={SECRET!r}"
        script += listener(port, options).replace("accept=accept", "accept=Starving.accept")
        powered = Powered(board, script).heard("listening")
        with pytest.raises(RefusedError, match="does not want version starve"):
            push_tcp(port, Update("x", b"x", version="starve"))
        push_tcp(port, Update("new.bin", NEW, version="go"))
        run = powered.wait()
    assert "starved" in run.output
    assert run.labels == BOTH


def test_the_app_goes_on_after_a_refused_update() -> None:
    with listening() as (powered, board, port):
        with pytest.raises(RefusedError) as refused:
            push_tcp(port, Update("x", NEW[:-1] + b"x"))
        assert refused.value.code == "digest"
        stop(port)
        assert powered.wait().end is End.IDLE
        assert board.run().labels == ("ota_0",)


# --- the command


def test_push_takes_a_tcp_target(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = tmp_path / "new.bin"  # type: ignore[operator]
    app.write_bytes(NEW)
    with listening() as (powered, _, port):
        target = f"tcp://127.0.0.1:{port}"
        monkeypatch.delenv("MPOTA_SECRET", raising=False)
        assert mpota("push", target, str(app)) == 1
        assert "asks for a secret" in capsys.readouterr().err
        monkeypatch.setenv("MPOTA_SECRET", SECRET)
        assert mpota("push", target, str(app)) == 0
        assert "restarts into v1.27.0" in capsys.readouterr().out
        assert powered.wait().labels == BOTH


@pytest.mark.parametrize(
    "target", ["tcp://", "tcp://host:x", "tcp://host:99999", "tcp://host/path", "tcp://a@b"]
)
def test_a_target_that_is_none_is_refused(target: str) -> None:
    with pytest.raises(UsageError, match="tcp"):
        tcp.split_target(target)


def test_a_board_that_is_not_there_is_said_to_be_unreachable() -> None:
    with pytest.raises(LostLinkError, match=r"cannot reach 127\.0\.0\.1 port"):
        push_tcp(free_port(), update(), attempts=2)


def mpota(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    return int(end.value.code or 0)


def talk(port: int, client: Callable[[Plain], Awaitable[None]]) -> None:
    async def run() -> None:
        async with tcp.connect("127.0.0.1", port) as link:
            await client(Plain(link, KEY))

    asyncio.run(run())


@contextmanager
def between(port: int, number: int, change: Callable[[bytes], bytes]) -> Iterator[int]:
    """A port behind which somebody changes the client's frame ``number``, counted from 1."""
    import threading

    with socket.create_server(("127.0.0.1", 0)) as server:

        def relay(source: socket.socket, target: socket.socket, is_client: bool) -> None:
            count = 0
            with source.makefile("rb") as frames:
                while head := frames.read(3):
                    frame = head + frames.read(head[0] | head[1] << 8)
                    count += 1
                    target.sendall(change(frame) if is_client and count == number else frame)
            target.shutdown(socket.SHUT_WR)

        def serve() -> None:
            client, _ = server.accept()
            with client, socket.create_connection(("127.0.0.1", port)) as board:
                back = threading.Thread(target=relay, args=(board, client, False))
                back.start()
                relay(client, board, True)
                back.join()

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()
