"""`mpota serve` and whoever is in the network: odd requests, held connections, curious readers."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mpota.release import serve
from mpota.release.local_ca import LocalCa
from mpota.release.serve import FileServer

from tests.support import releases, side_by_side
from tests.support.desk_server import DATA, connect, get, running

pytest.importorskip("aiohttp")

HOST = b"Host: x\r\nConnection: close\r\n"
SECRET = b"nobody may see this"
KEY = releases.key()


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """A directory with app.bin, and all around it what must not come out."""
    made = tmp_path / "public"
    (made / "sub").mkdir(parents=True)
    (made / "app.bin").write_bytes(DATA)
    (made / "sub" / "app.bin").write_bytes(DATA)
    (tmp_path / "secret").write_bytes(SECRET)
    return made


@contextmanager
def raw(server: FileServer) -> Iterator[socket.socket]:
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        yield connection


def ask(server: FileServer, head: bytes, *, waits: bool = True) -> bytes:
    """All that comes for what is sent; not ``waits``: and the other direction is closed."""
    answer = b""
    with raw(server) as connection, suppress(ConnectionResetError):
        connection.sendall(head)
        if not waits:
            connection.shutdown(socket.SHUT_WR)
        while data := connection.recv(65536):
            answer += data
    return answer


PATHS = {
    "NUL": ("/app.bin%00", 400),
    "NUL before": ("/%00/app.bin", 400),
    "overlong name": ("/" + "a" * 5000, 404),
    "overlong path": ("/" + "a/" * 2500, 404),
    "too long for a line": ("/" + "a" * 20_000, 400),
    "traversal": ("/../secret", 404),
    "traversal below": ("/sub/../../secret", 404),
    "encoded dots": ("/%2e%2e/secret", 404),
    "encoded slash": ("/..%2fsecret", 404),
    "encoded twice": ("/%252e%252e/secret", 404),
    "back and forth": ("/sub/../app.bin", 404),
    "backslash": ("/..%5csecret", 404),
    "absolute": ("//etc/passwd", 404),
    "absolute, encoded": ("/%2fetc%2fpasswd", 404),
    "other scheme": ("file:///etc/passwd", 400),
    "not UTF-8": ("/%ff%fe", 404),
    "surrogate": ("/%ed%a0%80", 404),
    "controls": ("/%1b%5b2J%0d%0aX:1", 404),
    "directory": ("/sub", 404),
    "directory with a slash": ("/sub/", 404),
    "root": ("/", 404),
    "file as a directory": ("/app.bin/x", 404),
    "loop of links": ("/loop", 404),
    "loop below": ("/loop/a", 404),
    "link to itself": ("/self", 404),
    "link out": ("/out", 404),
    "link to a directory out": ("/outside/secret", 404),
    "link into nothing": ("/nothing", 404),
    "dotfile": ("/.env", 404),
    "dotfile by a link": ("/env", 404),
    "in a hidden directory": ("/.git/config", 404),
    "in a hidden directory by a link": ("/git/config", 404),
    "pipe": ("/pipe", 404),
}


@pytest.fixture(autouse=True)
def counted(hostile: Callable[..., None]) -> None:
    hostile()


@pytest.mark.parametrize(("path", "status"), PATHS.values(), ids=PATHS)
def test_odd_paths_are_answered_by_400_or_404_and_give_nothing_away(
    public: Path, path: str, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    (public / "loop").symlink_to(public / "pool")
    (public / "pool").symlink_to(public / "loop")
    (public / "self").symlink_to("self")
    (public / "out").symlink_to("../secret")
    (public / "outside").symlink_to("..")
    (public / "nothing").symlink_to("gone")
    (public / ".env").write_bytes(SECRET)
    (public / "env").symlink_to(".env")
    (public / ".git").mkdir()
    (public / ".git" / "config").write_bytes(SECRET)
    (public / "git").symlink_to(".git")
    os.mkfifo(public / "pipe")
    with running(public) as (server, served):
        for method in (b"GET", b"HEAD"):
            request = b"%s %s HTTP/1.1\r\n" % (
                method,
                path.encode(),
            )
            answer = ask(server, request + HOST + b"\r\n")
            assert answer.split(b" ", 2)[1] == str(status).encode(), answer
            assert SECRET not in answer
            assert b"Traceback" not in answer
            assert os.fsencode(public) not in answer
        assert get(connect(server), "/app.bin")[:2] == (200, DATA)
        assert served[-1].status == 200
    assert capfd.readouterr() == ("", "")


NONSENSE = {
    "no HTTP": b"\x16\x03\x01 hello\r\n\r\n",
    "binary": bytes(range(256)) + b"\r\n\r\n",
    "another version": b"GET /app.bin HTTP/9.9\r\n\r\n",
    "no path": b"GET\r\n\r\n",
    "two lengths": b"GET /app.bin HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"
    b"Content-Length: 2\r\n\r\n",
    "negative length": b"GET /app.bin HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "long header": b"GET /app.bin HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    "odd range": b"GET /app.bin HTTP/1.1\r\nHost: x\r\nRange: bytes=9-1,x\r\n\r\n",
    "odd date": b"GET /app.bin HTTP/1.1\r\nHost: x\r\nIf-Modified-Since: \xff\r\n\r\n",
    "other method": b"DELETE /app.bin HTTP/1.1\r\nHost: x\r\n\r\n",
    "post": b"POST /app.bin HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    "proxy": b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "endless chunks": b"GET /none HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
}


def test_nonsense_is_answered_and_harms_nobody_else(
    public: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    hostile: Callable[..., None],
) -> None:
    def try_one(head: bytes) -> None:
        assert b"Traceback" not in ask(server, head, waits=False)
        answer = ask(server, head)
        assert b"Traceback" not in answer
        if answer:
            assert answer.split(b" ", 2)[1] in (b"200", b"400", b"404", b"405", b"416", b"505")
        assert get(connect(server), "/app.bin")[:2] == (200, DATA)

    hostile(len(NONSENSE) - 1)
    monkeypatch.setattr(serve, "_HEAD_TIMEOUT_S", 1.0)
    monkeypatch.setattr(serve, "_IDLE_TIMEOUT_S", 1.0)
    with running(public) as (server, _):
        side_by_side.run(NONSENSE, try_one)
    assert capfd.readouterr() == ("", "")


def keys() -> dict[str, bytes]:
    pem = KEY.to_pem()
    return {
        "release.pem": pem,
        "app.txt": b"notes\n" * 1000 + pem,
        "firmware.bin": KEY.to_pem(b"secret"),
        "data": b"\r\n".join(pem.split(b"\n")),
    }


@pytest.mark.parametrize("name", keys())
def test_private_keys_are_not_served_whatever_they_are_called(public: Path, name: str) -> None:
    (public / name).write_bytes(keys()[name])
    (public / "link").symlink_to(name)
    with running(public) as (server, served):
        for path in (name, "link"):
            for headers in ({}, {"Range": "bytes=100-"}, {"If_Range": '"x"', "Range": "bytes=9-"}):
                status, body, _ = get(connect(server), f"/{path}", **headers)
                assert (status, body) == (404, b"there is no such file\n")
        assert {one.note for one in served} == {"it holds a private key"}
        (public / name).write_bytes(b"no longer a key")
        assert get(connect(server), f"/{name}")[:2] == (200, b"no longer a key")


def test_requests_that_do_not_come_to_their_end_are_dropped(
    public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_HEAD_TIMEOUT_S", 0.3)
    good = b"GET /app.bin HTTP/1.1\r\nHost: x\r\n\r\n"
    starts = (b"", b"G", good[:-2], good[:-1], good + b"GET /app", b"\r\n")
    with running(public) as (server, _):
        side_by_side.run({str(start): start for start in starts}, lambda start: ask(server, start))
        assert get(connect(server), "/app.bin")[:2] == (200, DATA)


def test_a_byte_now_and_then_does_not_hold_a_connection(
    public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_HEAD_TIMEOUT_S", 0.3)
    with running(public) as (server, _), raw(server) as connection:
        connection.settimeout(0.05)
        connection.sendall(b"GET /")
        sent = 0
        with suppress(ConnectionResetError, BrokenPipeError):
            while sent < 1000:
                connection.sendall(b"a")
                sent += 1
                with suppress(TimeoutError):
                    if not connection.recv(1):
                        break
        assert 0 < sent < 100


def test_a_handshake_that_does_not_come_to_its_end_is_dropped(
    public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_HEAD_TIMEOUT_S", 0.3)
    ca = LocalCa.make()
    with running(public, ca) as (server, _):
        for start in (b"", b"\x16\x03\x01\x02\x00"):
            with raw(server) as connection:
                connection.sendall(start)
                with suppress(ConnectionResetError):
                    assert connection.recv(100) == b""
        assert get(connect(server, ca), "/app.bin")[:2] == (200, DATA)


def test_silent_connections_do_not_keep_boards_out(
    public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_MAX_CONNECTIONS", 20)
    with running(public) as (server, _), ExitStack() as stack:
        held = [stack.enter_context(raw(server)) for _ in range(100)]
        for connection in held[::2]:
            connection.sendall(b"GET /app.bin HTT")
        assert get(connect(server), "/app.bin")[:2] == (200, DATA)


def test_connections_that_are_kept_between_requests_are_bounded_too(
    public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_MAX_CONNECTIONS", 5)
    monkeypatch.setattr(serve, "_IDLE_TIMEOUT_S", 0.3)
    with running(public) as (server, _):
        kept = []
        for _ in range(5):
            kept.append(connect(server))
            assert get(kept[-1], "/app.bin")[0] == 200
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            get(connect(server), "/app.bin")
        for connection in kept:
            assert connection.sock.recv(1) == b""  # they were idle for too long
        assert get(connect(server), "/app.bin")[0] == 200


def test_the_log_of_the_command_is_one_visible_line_a_request(public: Path) -> None:
    (public / "a\x1b[2J\u202e.bundle").write_bytes(b"manifest.json\0")
    (public / "b.pem").write_bytes(KEY.to_pem())
    process = subprocess.Popen(
        [sys.executable, "-m", "mpota", "serve", public, "--host", "127.0.0.1", "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split(b" at ")[1].split()[0].decode()
        server = FileServer(url, None)
        for start in (
            b"GET /%1b%5b2J%0a%e2%80%ae%c2%9b HTTP/1.1\r\n",
            b"GET /b.pem HTTP/1.1\r\nRange: bytes=0-\r\n",
            b"GET /x HTTP/1.1\r\nRange: \xc2\x9b\xe2\x80\xae\r\n",
        ):
            ask(server, start + HOST + b"\r\n")
        lines = [process.stdout.readline().decode().rstrip("\n") for _ in range(4)]
    finally:
        process.terminate()
        process.communicate()
    assert all(line.isprintable() for line in lines), lines
    assert lines[0].startswith("on the board: import ota; ota.release.install('")
    assert r"GET /\x1b[2J\n\u202e\x9b 404" in lines[1]
    assert "GET /b.pem 404 bytes=0- (it holds a private key)" in lines[2]
