"""Only OTAError comes out of a download, whatever a server, a captive portal or a URL holds."""

from __future__ import annotations

import json
import random

import pytest

from tests.support import web
from tests.support.ota_board import NEW, output, states
from tests.support.web import HOST, File, server_identity

BODY = bytes(range(256)) * 20


# Prints the code of what came out for each case, and the words where they hold what they must not.
READ_ALL = """
from ota.base import OTAError
from ota.pump import open_source
def read(url, **more):
    source = open_source(url, max_failures=2, pause=0.001, limit=100000, **more)
    try:
        count = 1
        buf = bytearray(4096)
        while count:
            count = source.readinto(buf)
    finally:
        source.close()
def attempt(name, call, *args, **more):
    try:
        call(*args, **more)
        code = "ok"
    except OTAError as error:
        code = error.code
        if not all(" " <= letter < "\\x7f" or letter > "\\x9f" for letter in str(error)):
            code = "control character: %r" % str(error)
    except Exception as error:
        code = "%s: %s" % (type(error).__name__, error)
    print(name, code)
"""
CODES = {
    "ok", "address", "dns", "connect", "timeout", "connection", "http-status", "redirect",
    "protocol", "short", "too-long", "changed", "json", "not-found", "read", "manifest", "memory",
    "sha",
}  # fmt: skip


def check(printed, count, hostile):
    """All of the ``count`` cases were answered, by known codes; how often each."""
    codes = [line.split(" ", 1)[1] for line in printed.splitlines()]
    assert len(codes) == count
    assert set(codes) <= CODES, set(codes) - CODES
    hostile(count)
    return {code: codes.count(code) for code in sorted(set(codes))}


# --- answers -----------------------------------------------------------------------------------

PLAIN = b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: %d\r\n\r\n' % len(BODY) + BODY
PART = (
    b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9/10\r\nContent-Length: 10\r\n\r\n"
    b"0123456789"
)
CHUNKED = (
    b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x="y"\r\n world\r\n'
    b"0\r\nX-Trailer: 1\r\n\r\n"
)
MOVED = b"HTTP/1.1 302 Found\r\nLocation: /plain\r\nContent-Length: 0\r\n\r\n"
PIECES = [
    b"", b"\0", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b":", b";", b"-1", b"+", b"9" * 30, b"0x",
    b"\xff\xfe", b"\x1b[2J", b"HTTP/1.1 ", b"HTTP/9.9", b"100", b"204", b"206", b"304", b"401",
    b"416", b"999", b"\xc3\xa9", b"bytes */5", b"bytes 5-1/*", b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"Connection: close\r\n",
    b"Content-Range: bytes */0\r\n", b"Location: \r\n", b"Location: http://[::1\r\n",
    b"Location: //\r\n", b"Location: http://h:x/\r\n", b"Location: javascript:1\r\n",
    b"Retry-After: 99999999999999999999999\r\n", b"Retry-After: -1\r\n", b"ETag: " + b"e" * 3000,
]  # fmt: skip


def mutations(seed, count):
    generator = random.Random(seed)
    for _ in range(count):
        data = bytearray(generator.choice([PLAIN[:400], PLAIN, CHUNKED, MOVED, PART]))
        head = data.find(b"\r\n\r\n") + 4
        for _ in range(generator.randint(1, 3)):
            end = len(data) if CHUNKED[:40] in data else head
            at = generator.randrange(min(end, len(data)))
            piece = generator.choice(PIECES)
            kind = generator.randrange(4)
            if kind == 0:
                data[at : at + len(piece)] = piece
            elif kind == 1:
                data[at:at] = piece
            elif kind == 2:
                del data[at : at + generator.randint(1, 20)]
            else:
                data[at] = generator.randrange(256)
        yield bytes(data)


@pytest.mark.parametrize("seed", range(2))
def test_mutated_answers_end_in_words(board, server, seed, hostile):
    cases = list(mutations(seed, 200))

    def raw(data):
        def answer(handler):
            handler.wfile.write(data)
            raise web.Hangup

        return answer

    server.files = {f"/{number}": raw(data) for number, data in enumerate(cases)}
    server.files["/plain"] = File(b"plain")
    script = READ_ALL + (
        f"for number in range({len(cases)}):\n"
        f"    attempt(number, read, {server.url('/')!r} + str(number), timeout=0.2)\n"
    )
    codes = check(output(board, script), len(cases), hostile)
    print(codes)
    assert codes["protocol"] > 20
    assert codes["ok"] > 20


# --- captive portals ---------------------------------------------------------------------------

GOOD = {"firmware": "app.bin", "sha": "", "length": 0}
WRONG = [None, True, 1, -1, 1.5, [], {}, "", "x", [GOOD], "a" * 3000, 10**30]


def portal_bodies():
    html = b"<!DOCTYPE html><html><body>Please log in</body></html>"
    yield from [
        b"",
        b"\0",
        b" ",
        html,
        html * 40,
        b"\xff\xfe{}",
        b"{",
        b"[",
        b'"',
        b"{}",
        b"[]",
        b"0",
    ]
    yield from [b"null", b"true", b"-", b"1e999", b"nan", b"[" * 4000, b"{" * 4000, b'{"a":' * 700]
    yield from [b"[" * 1000 + b"]" * 1000, b'"\\u', b'"\\ud800"', b'{"a" 1}', b"{,}", b'{"a":1}x']
    yield from [b"\x1b[2J\x07", b'{"firmware"}', b"x" * 100_000, b'{"payloads": []}', b"9" * 4000]
    yield from [json.dumps(value).encode() for value in WRONG]
    for key in GOOD:
        yield json.dumps({k: v for k, v in GOOD.items() if k != key}).encode()
        yield from [json.dumps(GOOD | {key: value}).encode() for value in WRONG]
    for firmware in (
        "\x1b[2J",
        "http://",
        "http://h:99999/",
        "http://[::1/",
        "ftp://h/x",
        "//",
        "\0",
    ):
        yield json.dumps(GOOD | {"firmware": firmware}).encode()
    generator = random.Random(7)
    text = json.dumps(GOOD | {"length": 5}).encode()
    for _ in range(60):
        data = bytearray(text)
        data[generator.randrange(len(data))] = generator.randrange(256)
        yield bytes(data)


@pytest.mark.parametrize("is_file", [False, True])
def test_what_stands_where_the_json_should_be_is_said(board, server, is_file, hostile):
    bodies = list(portal_bodies())
    server.files = {f"/{number}.json": File(body) for number, body in enumerate(bodies)}
    script = (
        READ_ALL
        + f"""
import ota
def update(name):
    ota.update.from_json(name, verbose=False, reboot=False, max_failures=1)
for number in range({len(bodies)}):
    name = {server.url("/")!r} + str(number) + ".json"
    if {is_file}:
        from ota.pump import open_source
        source = open_source(name)
        buf = bytearray(4200)
        count = source.readinto(buf)
        source.close()
        name = "x.json"
        with open(name, "wb") as file:
            file.write(memoryview(buf)[:count])
    attempt(number, update, name)
"""
    )
    codes = check(output(board, script), len(bodies), hostile)
    print(codes)
    assert codes["json"] > 60
    assert "ok" not in codes
    assert states(board) == ["VALID", "-"]


def test_a_portal_that_answers_everything_is_named_for_what_it_is(board, server):
    server.files["/x.json"] = File(b"<html>\x1b[2J log in")
    script = (
        READ_ALL
        + f"""
import ota
try:
    ota.update.from_json({server.url("/x.json")!r}, verbose=False)
except ota.OTAError as error:
    print(error)
"""
    )
    assert output(board, script) == (
        f"{server.url('/x.json')} is not what updates are named by: it is no JSON object: "
        "it begins with '<html>\\x1b[2J log in'\n"
    )


# --- URLs --------------------------------------------------------------------------------------

URLS = [
    "http://", "http:///", "https://", "http://:80/", "http://h:/", "http://h:0/", "http://h:65536/",
    "http://h:-1/", "http://h:1e3/", "http://h:\u0661/", "http://h:99999999999999999999/",
    "http://[", "http://]", "http://[]", "http://[::1", "http://::1/", "http://[::1]x/",
    "http://[::1]:x/", "http://[g]/", "http://a b/", "http://a\tb/", "http://a\r\nb/", "http://\0/",
    "http://h/\0", "http://h/\x1b[2J", "http://h/\x7f", "http://h/\x9b", "http://\u00e9/",
    "http://h/\u00e9", "http://h/\U0001f600", "http://u:p@h/", "http://@/", "http://a,b/",
    "http://a<b>/", "http://%00/", "http://h\\x/", "http://" + "h" * 300 + ".invalid/",
    "http://.invalid/", "http://..invalid/", "http://?/", "http://#", "http://?", "HTTP://h:0/",
    "http:// /", "http://'/", 'http://"/', "hTTp://a;b/", "https://h:0/",
]  # fmt: skip


def test_what_is_no_url_is_refused(board, hostile):
    script = READ_ALL + (
        f"for number, url in enumerate({URLS!r}):\n    attempt(number, read, url, timeout=0.2)\n"
    )
    print(check(output(board, script), len(URLS), hostile))


@pytest.mark.parametrize("host", ["127.0.0.1", HOST, HOST.upper()])
def test_hosts_are_names_and_addresses(board, server, host):
    server.files["/a?b=c"] = File(NEW)
    url = server.url("/a?b=c#d").replace(HOST, host)
    script = READ_ALL + f"attempt(0, lambda: open_source({url!r}).close())\n"
    assert output(board, script) == "0 ok\n"
    assert server.requests[0].headers["host"] == url.split("/")[2].lower()


# --- certificates ------------------------------------------------------------------------------

DAMAGED = [
    None,
    b"",
    b"0",
    b"0\0",
    b"0\2\x30\0",
    b"0\4\x30\2\xa0\0",
    b"0\xff",
    b"0\x84" + b"\xff" * 9,
]


def test_mutated_certificates_are_explained(board, hostile):
    der = server_identity().der
    count = 600
    printed = output(
        board,
        f"""
import random
from ota.tls_trust import explain_certificate
good = {der!r}
random.seed(5)
bad = 0
for number in range({count}):
    data = bytearray(good)
    for _ in range(random.randint(1, 3)):
        data[random.randrange(len(data))] = random.getrandbits(8)
    if number % 3 == 0:
        data = data[: random.randrange(len(data))]
    text = explain_certificate(data, good if number % 2 else data, "expired CN", "h", "h", True)
    if not text.startswith("the certificate of h is refused: "):
        print(text)
    bad += text.endswith("refused: expired CN")
for data in {DAMAGED!r}:
    explain_certificate(data, data, "", "h", "h", False)
print(bad)
""",
    )
    hostile(count + len(DAMAGED))
    assert 0 < int(printed) < count


# --- memory ------------------------------------------------------------------------------------


def test_too_little_memory_is_said_with_what_was_wanted_and_what_is_free(board, server):
    """From 3 KiB up to enough: an OTAError comes out, or the file."""
    server.files["/app.bin"] = File(NEW, chunked=True)
    printed = output(
        board,
        f"""
import gc, ota
from ota.base import OTAError
from ota.pump import open_source
from ota.base import unload
def hold(spare):
    gc.collect()
    held = [None] * 400
    count = 0
    try:
        while True:
            held[count] = bytearray(512)
            count += 1
    except MemoryError:
        for _ in range(2 * spare):
            count -= 1
            held[count] = None
    return held
buf = bytearray(512)
for spare in range(3, 28):
    held = hold(spare)
    try:
        source = open_source({server.url("/app.bin")!r})
        source.readinto(buf)
        source.close()
        code = "ok"
    except OTAError as error:
        held = None
        code = error.code + " " + str(error)
    source = held = None
    unload("http", "http_ask", "http_connect", "http_resume")
    print(code)
""",
    )
    lines = printed.splitlines()
    assert lines[-1] == "ok"
    assert lines[0].startswith("memory not enough memory for ")
    for line in lines:
        if line != "ok":
            assert ": memory allocation" in line  # cut off where the heap has no room for more
            assert line.endswith(" bytes are free, not all in one piece")
