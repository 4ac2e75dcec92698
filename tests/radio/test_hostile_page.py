"""Strangers on the network, against boards with an update page (ota.web).

Each case ends with an update by somebody who may, and what flash holds before it is looked at.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.support import amount, boards, ota_board, page_boards
from tests.support.page_boards import PageLink, raw, request, serving_page, state, talk, update
from tests.support.protocol_client import DONE, READY, Plain, code
from tests.support.radio import SECRET

NEW = boards.app("v1.27.0", 0x9000)
BOTH = ("ota_0", "ota_1")
WRONG = "another secret of 16"
HELLO = b"\x12\0\0\1\2" + bytes(16)
NAME = "0123456789abcdef" * 2


def post(body: bytes, path: str = f"/s/{NAME}", *headers: str, host: str = "192.168.4.1") -> bytes:
    """A request as a page of the board's own sends it, but for ``headers``."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Origin: http://{host}", *headers]
    if not any(line.lower().startswith("content-length") for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def get(path: str = "/state", *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", *headers, "", ""]).encode()


OWN = "Host: 192.168.4.1"
# Requests, and the status that answers them; None: silence, and the end of the connection.
ODD: dict[str, tuple[bytes, int | None]] = {
    "nothing": (b"", None),
    "noise": (random.Random(1).randbytes(300) + b"\r\n\r\n", 400),
    "line feeds": (b"\n" * 500, 400),
    "half a line": (b"GET /state HT", None),
    "no version": (b"GET /state\r\n\r\n", 400),
    "version 3": (b"GET /state HTTP/3\r\nHost: 1.1.1.1\r\n\r\n", 400),
    "four words": (b"GET /state HTTP/1.1 x\r\nHost: 1.1.1.1\r\n\r\n", 400),
    "PUT": (get("/", OWN, method="PUT"), 404),
    "a method of 5000 letters": (get("/", OWN, method="X" * 5000), 400),
    "HEAD": (get("/", OWN, method="HEAD"), 404),
    "CONNECT": (get("1.1.1.1:443", OWN, method="CONNECT"), 404),
    "TRACE": (get("/", OWN, method="TRACE"), 404),
    "another file": (get("/../../boot.py", OWN), 404),
    "a file by its path": (get("//main.py", OWN), 404),
    "no UTF-8": (b"GET /\xff\xfe HTTP/1.1\r\nHost: 1.1.1.1\r\n\r\n", 400),
    "no host": (get("/state"), 403),
    "another host": (get("/state", "Host: evil.example"), 403),
    "a host that looks like an address": (get("/state", "Host: 192.168.4.1.evil.example"), 403),
    "its own host name": (get("/state", "Host: greenhouse"), 200),
    "that of mDNS, and a port": (get("/state", "Host: GREENHOUSE.local:8080"), 200),
    "a name that the app has named": (get("/state", "Host: board.local"), 200),
    "an address of IPv6": (get("/state", "Host: [fe80::1]:80"), 200),
    "two hosts": (get("/state", OWN, "Host: evil.example"), None),
    "10,000 headers": (get("/state", OWN, *["X: y"] * 10_000), None),
    "a header of 9,000 bytes": (get("/state", OWN, "X: " + "y" * 9000), None),
    "a cookie of 3,000 bytes": (get("/state", OWN, "Cookie: " + "y" * 3000), 200),
    "a body of GET": (get("/state", OWN, "Content-Length: 5") + b"12345", 404),
    "no length": (post(b"", "/s/" + NAME), 404),
    "a negative length": (post(HELLO, "/s/" + NAME, "Content-Length: -21"), 400),
    "a length that is none": (post(HELLO, "/s/" + NAME, "Content-Length: 0x15"), 400),
    "a huge length": (post(HELLO, "/s/" + NAME, f"Content-Length: {1 << 62}"), 404),
    "two lengths": (post(HELLO, "/s/" + NAME, "Content-Length: 1", "Content-Length: 21"), None),
    "chunked": (post(b"15\r\n" + HELLO, "/s/" + NAME, "Transfer-Encoding: chunked"), 400),
    "another origin": (post(HELLO, host="192.168.4.1").replace(b"//192", b"//193"), 403),
    "no origin": (post(HELLO).replace(b"Origin", b"X"), 403),
    "origin null": (post(HELLO).replace(b"http://192.168.4.1", b"null"), 403),
    "a form": (post(b"a=b" * 7, "/s/" + NAME, "Content-Type: text/plain"), 410),
    "a short session": (post(HELLO, "/s/1"), 404),
    "no HELLO": (post(b"\x12\0\0\2" + bytes(17)), 410),
    "packets at once": (post(b"\x20\0\1" + bytes(32)), 410),
    "an order at once": (post(b"\x22\0\0\6\2" + bytes(32), "/o/" + NAME), 410),
    "a frame that is too long": (post(b"\xff\xff\0\1\2" + bytes(16)), 410),
    "a frame too few": (post(HELLO, "/s/" + NAME, "Content-Length: 20"), 410),
}


def status(answer: bytes) -> int | None:
    return int(answer.split(b" ", 2)[1]) if answer else None


def test_odd_requests_are_answered_or_dropped_and_the_next_client_is_served(
    hostile: Callable[..., None],
) -> None:
    hostile(len(ODD))
    with serving_page() as (powered, board, port):
        with ThreadPoolExecutor(4) as pool:
            answers = pool.map(
                lambda number, case: raw(port, case[0].replace(NAME.encode(), b"%032d" % number)),
                range(len(ODD)),
                ODD.values(),
            )
        found = dict(zip(ODD, map(status, answers), strict=True))
        assert found == {name: due for name, (_, due) in ODD.items()}
        assert board.flash.operations == []
        assert talk(port, lambda client: update(client, NEW))[0] == DONE
        page_boards.wait_for_restart(port)
    assert powered.wait().labels == BOTH


def test_noise_by_the_hundred_leaves_the_page_well_and_takes_no_memory(
    hostile: Callable[..., None],
) -> None:
    """Requests that were good, cut, changed or joined at random; sessions by the hundred."""
    rng = random.Random(18)
    good = [get("/state", OWN), get("/", OWN), post(HELLO), post(HELLO + HELLO[:9])]
    good += [sent for sent, _ in ODD.values() if len(sent) < 4000]
    seeds = amount.some(400)
    hostile(seeds)
    with serving_page(first=page_boards.TELLS_HEAP) as (powered, board, port):
        before = page_boards.free_heap(port)
        noise = []
        for _ in range(seeds):
            data = bytearray(rng.choice(good))
            for _ in range(rng.randrange(4)):
                at = rng.randrange(len(data) + 1)
                match rng.randrange(4):
                    case 0 if at < len(data):
                        data[at] = rng.randrange(256)
                    case 1:
                        del data[at : at + rng.randrange(1, 40)]
                    case 2:
                        data[at:at] = rng.randbytes(rng.randrange(1, 40))
                    case _:
                        data += rng.choice(good)
            name = rng.randbytes(16).hex().encode()
            noise.append(bytes(data).replace(NAME.encode(), name))
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda sent: raw(port, sent), noise))
        assert board.flash.operations == []
        page_boards.wait_for_heap(port, before - 2048)
        assert talk(port, lambda client: update(client, NEW))[0] == DONE
        page_boards.wait_for_restart(port)
    assert powered.wait().labels == BOTH


HALVES = (b"", b"GET / HT", get("/", OWN)[:-2], post(HELLO)[:-9], post(b"\xff\1\0" + HELLO)[:-18])


def test_connections_that_stay_keep_nobody_out(hostile: Callable[..., None]) -> None:
    hostile(len(HALVES) * 3)
    with serving_page() as (powered, _, port), contextlib.ExitStack() as stack:
        for number in range(len(HALVES) * 3):
            line = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            line.sendall(HALVES[number % len(HALVES)].replace(NAME.encode(), b"%032d" % number))
        assert talk(port, lambda client: update(client, NEW))[0] == DONE
        stack.close()
        page_boards.wait_for_restart(port)
    assert powered.wait().labels == BOTH


def test_nothing_that_was_heard_is_of_use_again(hostile: Callable[..., None]) -> None:
    """What of a session goes over the line: said again, in another session, and by another name."""
    heard: list[tuple[str, bytes]] = []

    class Ear(PageLink):
        def post(self, frames: bytes, kind: str = "s") -> None:
            heard.append((f"/{kind}/{self.name}", frames))
            super().post(frames, kind)

    async def session(client: Plain) -> None:
        await client.greet()
        assert (await client.begin(NEW))[0] == READY
        await client.send(NEW[:0x4000], follow=True)
        await client.abort()

    with serving_page() as (powered, board, port):
        link = Ear(port)
        with contextlib.suppress(ConnectionError):
            page_boards.by(link, session)
        board.flash.restart_count()
        hostile(2 * len(heard))
        for path, frames in heard:
            for where in (path, path[:3] + "f" * 32):
                found, _ = request(port, "POST", where, frames, Origin=f"http://127.0.0.1:{port}")
                # A HELLO begins a session, of which nothing else is known.
                assert found == (200 if frames[3] == 1 and where != path else 410), frames[:4]
        assert board.flash.operations == []
        assert talk(port, lambda client: update(client, NEW))[0] == DONE
        page_boards.wait_for_restart(port)
    assert powered.wait().labels == BOTH


def test_orders_need_the_secret_and_what_the_app_allows(hostile: Callable[..., None]) -> None:
    orders = [(1, b"http://127.0.0.1/"), (2, b""), (3, b""), (9, b"")]

    def order(what: int, text: bytes, secret: str | None) -> Callable[[Plain], object]:
        async def run(client: Plain) -> str:
            await client.greet()
            head = bytes((6, what)) + text
            message = head + client.proof("order", head)
            client.link.post(struct.pack("<HB", len(message), 0) + message, "o")  # type: ignore
            return code(await client.hear())

        return run

    hostile(2 * len(orders) - 1)
    with serving_page() as (powered, board, port):
        for what, text in orders:
            assert talk(port, order(what, text, WRONG), WRONG) == "secret"
            if what != 1:
                assert talk(port, order(what, text, SECRET)) == "refused"
        assert state(port)["fetched"] is None
        assert board.flash.operations == []
    assert powered.wait().labels == ("ota_0",)


def test_without_a_secret_and_without_keys_no_page_is_served() -> None:
    with ota_board.updating_board() as board:
        said = ota_board.output(
            board,
            "import ota, ota.web\ntry:\n    ota.web.Page(port=0).run()\n"
            "except ota.OTAError as error:\n    print(error.code, error)",
        )
    assert said.startswith("open without a secret, and with no keys installed, anyone could")


def test_answers_that_nobody_takes_keep_nobody_out(hostile: Callable[..., None]) -> None:
    hostile()
    with serving_page() as (_, _board, port), contextlib.ExitStack() as stack:
        for _ in range(8):
            line = stack.enter_context(socket.socket())
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            line.connect(("127.0.0.1", port))
            line.sendall(get("/", OWN) * 20)
        assert state(port)["state"] == "confirmed"
