"""Boards with an update page (ota.web), and clients of it that are no browsers."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from mpota.virtual.board import Board

from tests.support import ota_board
from tests.support.network import free_port
from tests.support.protocol_client import ERROR, Plain, code
from tests.support.radio import SECRET, Powered

Result = TypeVar("Result")

# What a program does about an update before its page is there.
CONFIRMS = "ota.rollback.cancel()"
WAITS = "pass"
FAILS = """
from esp32 import Partition
import ota.otadata
if ota.otadata.state(Partition(Partition.RUNNING)) == ota.otadata.PENDING_VERIFY:
    import machine
    machine.reset()
"""
# Counts, for `free_heap`, what is free once all has been let go of.
TELLS_HEAP = """
import gc, json
ota.rollback.cancel()
dumps = json.dumps
def telling(found):
    import sys
    sys.modules.pop("ota.web_more", None)
    gc.collect()
    found["free"] = gc.mem_free()
    return dumps(found)
class Json:
    dumps = telling
import sys
sys.modules["json"] = Json
"""
NAME = "greenhouse"
_PATIENCE_S = 100


def program(port: int, options: str, first: str, more: str = "") -> str:
    """A main.py with the page, which ends when an update of version "stop" is offered.

    ``more``: a line of its main task, before the page is served.
    """
    return f"""
import asyncio, network, ota, ota.web
network.hostname({NAME!r})
{first}
def accept(size, chip, version):
    if version == "stop":
        task.cancel()
        return False
async def main():
    global task
    page = ota.web.Page(host="127.0.0.1", port={port}, accept=accept,
                        hosts=("board.local",){options})
    {more}
    task = asyncio.create_task(page.serve())
    try:
        await task
    except asyncio.CancelledError:
        while page._tasks:  # until its client has heard why
            await asyncio.sleep_ms(1)
asyncio.run(main())
"""


@contextmanager
def serving_page(
    options: str = f", secret={SECRET!r}",
    *,
    first: str = CONFIRMS,
    more: str = "",
    content: bytes | None = None,
    trusts: str = "",
    heap_size: int = 120 * 1024,
    port: int | None = None,
) -> Iterator[tuple[Powered, Board, int]]:
    """A board whose program has the page, in this boot and in those that follow."""
    port = port or free_port()
    with ota_board.updating_board(content, heap_size) as board:
        prepare(board, program(port, options, first, more), trusts)
        powered = Powered(board, None, timeout_s=200)
        try:
            wait_for(port)
            yield powered, board, port
        finally:
            stop(
                port, None if trusts else SECRET
            )  # first of all: what fails is not to wait for the board's time to be over
            run = powered.wait()
        assert run.traceback == ""


def prepare(board: Board, main: str, trusts: str = "") -> None:
    """Put ``main`` on the board as its program, and a key that it trusts."""
    script = f"with open('/main.py', 'w') as f: f.write({main!r})\n"
    if trusts:
        script += f"import ota; ota.keys.add({trusts!r})\n"
    ota_board.output(board, script)
    board.flash.restart_count()


def state(port: int) -> dict[str, Any]:
    """What the board says of itself."""
    status, body = request(port, "GET", "/state")
    assert status == 200, body
    found: dict[str, Any] = json.loads(body)
    return found


def request(
    port: int, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    """One request on a connection of its own: status and body."""
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    try:
        line.request(method, path, body, headers)
        answer = line.getresponse()
        return answer.status, answer.read()
    finally:
        line.close()


def free_heap(port: int) -> int:
    """Bytes, of a board that `TELLS_HEAP`."""
    return int(state(port)["free"])


def wait_for_heap(port: int, least: int) -> None:
    """Until so many bytes are free again: sessions and connections end by themselves."""
    deadline = time.monotonic() + _PATIENCE_S
    while (free := free_heap(port)) < least:
        assert time.monotonic() < deadline, f"{free} bytes are free, {least} were"
        time.sleep(0.2)


def wait_for_restart(port: int) -> None:
    """Until the board has restarted into what it has taken."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        with suppress(OSError, http.client.HTTPException):
            if state(port).get("slot") == "ota_1":
                return
        time.sleep(0.1)
    raise AssertionError("the board does not restart")


def wait_for(port: int, patience_s: float = _PATIENCE_S) -> None:
    """Until the board's page is there."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            state(port)
        except (OSError, http.client.HTTPException):
            assert time.monotonic() < deadline, "the page does not come"
            time.sleep(0.05)
        else:
            return


def stop(port: int, secret: str | None = SECRET) -> None:
    """Have the board's program end."""

    async def offer(client: Plain) -> bytes:
        await client.greet()
        return await client.begin(b"stop", version=b"stop")

    for _ in range(100):
        with suppress(OSError, http.client.HTTPException):  # it restarts
            if code(talk(port, offer, secret)) == "refused":
                return
        time.sleep(0.2)  # or another one's update is not over
    raise AssertionError("the board does not end")


class PageLink:
    """Frames over HTTP: what a `Plain` client sends and hears by."""

    packet_size = 1024
    prefix = ""  # where the page is mounted

    def __init__(self, port: int) -> None:
        self.line = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
        self.name = struct.pack("<QQ", time.time_ns(), id(self)).hex()
        self.origin = f"http://127.0.0.1:{port}"
        self._heard: list[bytes] = []
        self._packets = b""

    async def send(self, message: bytes) -> None:
        self.post(struct.pack("<HB", len(message), 0) + message)

    async def send_data(self, packet: bytes) -> None:
        """Packets go together, when an answer is waited for: there is one for each request."""
        self._packets += struct.pack("<HB", len(packet), 1) + packet

    def post(self, frames: bytes, kind: str = "s") -> None:
        headers = {"Origin": self.origin}
        self.line.request("POST", f"{self.prefix}/{kind}/{self.name}", frames, headers)
        answer = self.line.getresponse()
        body = answer.read()
        if answer.getheader("Content-Type") == "text/plain":
            raise ConnectionError(f"{answer.status} {body.decode()}")
        while body:
            size = struct.unpack("<H", body[:2])[0]
            self._heard.append(body[3 : 3 + size])
            body = body[3 + size :]

    async def receive(self, timeout_s: float) -> bytes | None:
        if timeout_s and self._packets:
            frames, self._packets = self._packets, b""
            self.post(frames)
        return self._heard.pop(0) if self._heard else None


def talk(
    port: int, client: Callable[[Plain], Awaitable[Result]], secret: str | None = SECRET
) -> Result:
    """What ``client`` returns, in a session of its own."""
    return by(PageLink(port), client, secret)


def by(
    link: PageLink,
    client: Callable[[Plain], Awaitable[Result]],
    secret: str | None = SECRET,
) -> Result:
    """As `talk`, by ``link``."""

    async def run() -> Result:
        try:
            return await client(Plain(link, secret.encode() if secret else None))
        finally:
            link.line.close()

    return asyncio.run(run())


async def update(client: Plain, data: bytes, restart: int = 1) -> bytes:
    """All of an update; the last answer."""
    await client.greet()
    answer = await client.begin(data, resume=1)
    if answer[0] == ERROR:
        return answer
    answer = await client.send(data, follow=True)
    return answer if answer[0] == ERROR else await client.end(restart)


class Relay:
    """A port that leads to the board's, until the line is cut: what a bad Wi-Fi is."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._lines: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._left: int | None = None  # bytes until the cut
        self.is_cut = threading.Event()
        self._start(self._accept)

    def cut_after(self, count: int) -> None:
        """Cut all connections once ``count`` more bytes have gone to the board."""
        self.is_cut.clear()
        self._left = count

    def mend(self) -> None:
        """New connections get through again."""
        self._left = None
        self.is_cut.clear()

    def close(self) -> None:
        self._hang_up(self._server)
        self._cut()
        for thread in self._threads:
            thread.join()

    def _start(self, run: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=run, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                if self.is_cut.is_set():
                    raise OSError
                board = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            self._lines += [client, board]
            self._start(self._pass_on, client, board, True)
            self._start(self._pass_on, board, client, False)

    def _pass_on(self, source: socket.socket, target: socket.socket, is_counted: bool) -> None:
        try:
            while data := source.recv(2048):
                if is_counted and self._left is not None:
                    self._left -= len(data)
                    if self._left < 0:
                        self._cut()
                target.sendall(data)
        except OSError:
            pass
        self._hang_up(source)
        self._hang_up(target)

    def _cut(self) -> None:
        self.is_cut.set()
        for line in self._lines:
            self._hang_up(line)
        self._lines.clear()

    @staticmethod
    def _hang_up(line: socket.socket) -> None:
        with suppress(OSError):
            line.shutdown(socket.SHUT_RDWR)
        line.close()


@contextmanager
def relayed(target: int) -> Iterator[Relay]:
    relay = Relay(target)
    try:
        yield relay
    finally:
        relay.close()


def raw(port: int, sent: bytes, wait_s: float = 20) -> bytes:
    """What the board answers to these bytes, until it hangs up or says nothing for long."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as line:
        heard = b""
        try:
            line.sendall(sent)
            line.shutdown(socket.SHUT_WR)
            while part := line.recv(4096):
                heard += part
        except OSError:  # it has had enough
            pass
        return heard
