"""Getting a file over HTTP: redirects, encodings of the body, what is sent to whom."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "board"))

import boards
import ota_board
from ota_board import answer, output, serving, slot_content, try_update

APP = boards.app("v1.27.0", 0x9000)


@pytest.fixture
def board():
    with ota_board.updating_board() as board:
        yield board


@pytest.fixture
def server():
    with serving({"/fw/app.bin": answer(APP)}) as server:
        yield server


def chunked(body: bytes, size: int, *extras: str) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    data = b"".join(b"%x;name=value\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    data += b"0\r\n" + "".join(f"{extra}\r\n" for extra in extras).encode() + b"\r\n"
    return answer(data, "Transfer-Encoding: chunked", length=False)


@pytest.mark.parametrize("size", [1000, 4096, 0x9000])
def test_a_chunked_body(board, server, size):
    server.answers["/app.bin"] = chunked(APP, size, "Trailer: is ignored")
    assert output(board, try_update(server.url("/app.bin"))) == f"wrote {len(APP)}\n"
    assert slot_content(board, len(APP)) == APP


def test_a_body_that_the_end_of_the_connection_ends(board, server):
    server.answers["/app.bin"] = answer(APP, length=False)
    assert output(board, try_update(server.url("/app.bin"))) == f"wrote {len(APP)}\n"


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 Other", "307 T", "308 P"])
@pytest.mark.parametrize(
    "location", ["{root}/fw/app.bin", "/fw/app.bin", "app.bin", "//{host}/fw/app.bin"]
)
def test_redirects_absolute_and_relative(board, server, status, location):
    root = server.root
    where = location.format(root=root, host=root.partition("//")[2])
    server.answers["/fw/latest"] = answer(b"", f"Location: {where}", status=status)
    assert output(board, try_update(server.url("/fw/latest"))) == f"wrote {len(APP)}\n"


def test_own_headers_and_basic_auth_are_sent(board, server):
    more = ", headers={'X-Board': 'seven', 'user-agent': 'mine'}, auth=('me', 'secret')"
    assert output(board, try_update(server.url("/fw/app.bin"), more)) == f"wrote {len(APP)}\n"
    (request,) = server.requests
    assert request[0] == "GET /fw/app.bin HTTP/1.1"
    assert f"Host: {server.root.partition('//')[2]}" in request
    assert "Authorization: Basic bWU6c2VjcmV0" in request
    assert "X-Board: seven" in request
    assert [line for line in request if line.lower().startswith("user-agent:")] == [
        "user-agent: mine"
    ]


def test_the_authorization_stays_with_its_host(board, server):
    with serving({"/app.bin": answer(APP)}) as other:
        server.answers["/latest"] = answer(
            b"", f"Location: {other.url('/app.bin')}", status="302 F"
        )
        more = ", auth=('me', 'secret')"
        assert output(board, try_update(server.url("/latest"), more)) == f"wrote {len(APP)}\n"
        assert "Authorization: Basic bWU6c2VjcmV0" in server.requests[0]
        assert not [line for line in other.requests[0] if line.startswith("Authorization")]


@pytest.mark.parametrize("header", ["'X': 'a\\r\\nY: b'", "'X\\nY': 'b'"])
def test_a_line_break_in_a_header_is_refused(board, server, header):
    printed = output(board, try_update(server.url("/fw/app.bin"), f", headers={{{header}}}"))
    assert printed.startswith("address: a line break in the URL or a header")
    assert not any("Y: b" in line for request in server.requests for line in request)


@pytest.mark.parametrize(
    "url",
    ["http://", "http:///app.bin", "http://host:0/x", "http://host:99999/x", "http://a b/x"],
)
def test_what_is_no_url_is_said(board, url):
    assert output(board, try_update(url)).startswith("address: ")
