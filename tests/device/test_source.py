"""Getting a file over HTTP: redirects, encodings of the body, what is sent to whom."""

from __future__ import annotations

import hashlib

import pytest

from tests.support import boards, web
from tests.support.ota_board import answer, output, serving, slot_content, try_update

APP = boards.app("v1.27.0", 0x9000)


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


# --- sources by themselves ---------------------------------------------------------------------

SOURCE = """
from ota.base import OTAError
from ota.pump import make_source, open_source
def attempt(call, *args, **more):
    try:
        return call(*args, **more)
    except OTAError as error:
        print(error.code + ":", error)
def end(name, size=4096, **more):
    source = make_source(name, max_failures=3, pause=0.001, **more)
    buf = bytearray(size)
    for _ in source.reading_end(buf):
        pass
    return source, buf
def rest(source):
    import hashlib
    found = hashlib.sha256()
    buf = bytearray(1000)
    while True:
        count = source.readinto(buf)
        if not count:
            return found.digest().hex()
        found.update(buf[:count])
"""


@pytest.fixture
def files():
    """A server that knows ranges, the end of a file among them."""
    with web.serving({"/app.bin": web.File(APP, '"one"')}) as files:
        yield files


def save(name, data):
    return f"with open({name!r}, 'wb') as file:\n    file.write({data!r})\n"


@pytest.mark.parametrize("size", [1, 4096, 10000])
@pytest.mark.parametrize("is_url", [True, False])
def test_the_end_of_a_file_is_read_before_its_body(board, files, size, is_url):
    name = files.url("/app.bin") if is_url else "app.bin"
    script = (
        SOURCE
        + save("app.bin", APP)
        + f"""
import hashlib
source, buf = end({name!r}, {size})
print(hashlib.sha256(buf).digest().hex())
source.open()
print(source.size, rest(source))
source.close()
"""
    )
    found = output(board, script).split()
    assert found[0] == hashlib.sha256(APP[-size:]).hexdigest()
    assert found[1:] == [str(len(APP)), hashlib.sha256(APP).hexdigest()]
    if is_url:
        assert [request.headers.get("range") for request in files.requests] == [
            f"bytes=-{size}",
            None,
        ]
        assert len({request.peer for request in files.requests}) == 1


def test_the_end_survives_a_broken_connection(board, files):
    files.troubles = [web.drop(0), web.status("503 Busy")]
    script = SOURCE + f"print(bytes(end({files.url('/app.bin')!r}, 64)[1]) == {APP[-64:]!r})"
    assert output(board, script) == "True\n"
    assert len(files.requests) == 3


def test_an_end_that_cannot_be_had_is_said(board, files):
    files.files["/no-ranges"] = web.File(APP, ranges=False)
    files.files["/short"] = web.File(b"x" * 100)
    files.files["/short-no-ranges"] = web.File(b"x" * 100, ranges=False)
    files.files["/chunked"] = web.File(APP, ranges=False, chunked=True)
    names = ["/no-ranges", "/chunked", "/short", "/short-no-ranges", "/none"]
    script = SOURCE + save("short", b"x" * 100)
    script += "".join(f"attempt(end, {files.url(name)!r})\n" for name in names)
    script += "attempt(end, 'short')\nattempt(end, 'none')\n"
    root = files.root
    assert output(board, script).splitlines() == [
        f"no-range: the server sends no part of {root}/no-ranges",
        f"no-range: the server sends no part of {root}/chunked",
        f"too-short: {root}/short has 100 bytes, at least 4096 are due",
        f"too-short: {root}/short-no-ranges has 100 bytes, at least 4096 are due",
        f"http-status: HTTP Error: 404 Not Found: {root}/none",
        "too-short: short has 100 bytes, at least 4096 are due",
        "not-found: cannot open none: ENOENT",
    ]


def test_a_limit_holds_for_files_and_streams(board):
    script = (
        SOURCE
        + save("app.bin", APP)
        + f"""
from ota.local import StreamSource
attempt(open_source, "app.bin", limit={len(APP) - 1})
print(open_source("app.bin", limit={len(APP)}).size)
class Endless:
    def readinto(self, buf):
        return len(buf)
source = StreamSource(Endless(), limit=10000)
count = 0
def read():
    global count
    while True:
        count += source.readinto(bytearray(1000))
attempt(read)
print(count)
"""
    )
    assert output(board, script).splitlines() == [
        f"too-long: app.bin has more than {len(APP) - 1} bytes, the limit here",
        str(len(APP)),
        "too-long: the stream has more than 10000 bytes, the limit here",
        "10000",
    ]


def test_a_limit_that_is_set_later_holds(board, files):
    script = (
        SOURCE
        + f"""
source = open_source({files.url("/app.bin")!r})
source.readinto(bytearray(512))
source.limit = 20000
attempt(rest, source)
"""
    )
    assert output(board, script).startswith("too-long: ")


def test_the_secrets_of_a_source_are_for_its_origin(board, files):
    script = SOURCE
    for origin in ("http://other.example/", files.url("/x"), "/a/file.json"):
        script += f"open_source({files.url('/app.bin')!r}, auth='t', origin={origin!r}).close()\n"
    output(board, script)
    assert ["authorization" in request.headers for request in files.requests] == [
        False,
        True,
        True,
    ]


# RFC 3986, 5.4, as far as it leads to http; the base is /b/c/d;p?q.
REFERENCES = {
    "g": "/b/c/g", "./g": "/b/c/g", "g/": "/b/c/g/", "/g": "/g", "?y": "/b/c/d;p?y",
    "g?y": "/b/c/g?y", "#s": "/b/c/d;p?q", "g#s": "/b/c/g", "g?y#s": "/b/c/g?y", ";x": "/b/c/;x",
    "g;x": "/b/c/g;x", "g;x?y#s": "/b/c/g;x?y", ".": "/b/c/", "./": "/b/c/", "..": "/b/",
    "../": "/b/", "../g": "/b/g", "../..": "/", "../../": "/", "../../g": "/g",
    "../../../g": "/g", "../../../../g": "/g", "/./g": "/g", "/../g": "/g", "g.": "/b/c/g.",
    ".g": "/b/c/.g", "g..": "/b/c/g..", "..g": "/b/c/..g", "./../g": "/b/g", "./g/.": "/b/c/g/",
    "g/./h": "/b/c/g/h", "g/../h": "/b/c/h", "g;x=1/./y": "/b/c/g;x=1/y",
    "g;x=1/../y": "/b/c/y", "g?y/./x": "/b/c/g?y/./x", "g?y/../x": "/b/c/g?y/../x",
    "g#s/../x": "/b/c/g", "a//../b": "/b/c/a/b", "/a/b/%2e%2e/c": "/a/b/%2e%2e/c",
    "\u00fc b": "/b/c/%C3%BC%20b",
}  # fmt: skip


def test_redirects_go_where_rfc_3986_says(board, files):
    found = []

    def redirect(reference):
        def answer(handler):
            line = f"HTTP/1.1 302 F\r\nContent-Length: 0\r\nLocation: {reference}\r\n\r\n"
            handler.wfile.write(line.encode())

        return answer

    class Everything(dict):
        def get(self, path):
            found.append(path)
            return super().get(path) or web.File(b"here")

    files.files = Everything()
    script = SOURCE
    for number, reference in enumerate(REFERENCES):
        if reference.startswith(("?", "#")):
            continue  # they lead to their base: below
        files.files[f"/b/c/d{number};p?q"] = redirect(reference)
        script += f"open_source({files.url(f'/b/c/d{number};p?q')!r}).close()\n"
    output(board, script)
    assert found[1::2] == [
        path for name, path in REFERENCES.items() if not name.startswith(("?", "#"))
    ]


@pytest.mark.parametrize("root", ["http://a", "https://a:8443"])
def test_references_are_resolved_as_rfc_3986_says(board, root):
    names = [name for name in REFERENCES if name.isascii()]
    script = f"""
from ota.http_connect import resolve
for name in {names!r}:
    print(resolve({root + "/b/c/d;p?q"!r}, name).split("#")[0])
for name in ("//g", "//g/../x", "http://g/./x", "HTTP://g/a/../x#f"):
    print(resolve({root + "/b/c/d;p?q"!r}, name))
for base in ("/fw/x.json", "x.json", "fw/x.json"):
    print(resolve(base, "app.bin"), resolve(base, "/app.bin"), resolve(base, "http://h/a"))
"""
    scheme = root.partition(":")[0]
    assert output(board, script).splitlines() == [
        *(root + REFERENCES[name] for name in names),
        f"{scheme}://g/",
        f"{scheme}://g/x",
        "http://g/x",
        "HTTP://g/x#f",
        "/fw/app.bin /app.bin http://h/a",
        "app.bin /app.bin http://h/a",
        "fw/app.bin /app.bin http://h/a",
    ]


@pytest.mark.parametrize("reference", ["ftp://h/x", "mailto:x", "file:///x", "data:,x", "a:b"])
def test_another_scheme_is_no_path(board, files, reference):
    files.files["/x"] = lambda handler: handler.answer(
        "302 F", [f"Location: {reference}", "Content-Length: 0"]
    )
    script = SOURCE + f"attempt(open_source, {files.url('/x')!r})"
    assert output(board, script) == (f"address: not an http:// or https:// URL: {reference}\n")
