"""Servers that send or withhold without end: every update ends, and says which bound it met."""

from __future__ import annotations

import time

import pytest

from tests.support import boards, releases, web
from tests.support.ota_board import NEW, output, states, try_update
from tests.support.web import HOST, File, root, server_identity

ONCE = ", max_failures=1"


# The ways to begin an update, each with a URL that a server answers.
ENTRIES = {
    "from_file": "ota.update.from_file({url!r}, verbose=False, reboot=False{more})",
    "fetch": "asyncio.run(ota.update.fetch({url!r}{more}))",
    "from_json": "ota.update.from_json({url!r}, verbose=False, reboot=False{more})",
    "install": "ota.release.install({url!r}, reboot=False{more})",
}
# Time is what the update waits for bytes: of that there is less in a test.
HURRY = "import ota.http\nota.http.window_ms = {window_ms}\n"


def attempt(entry, url, more=ONCE, window_ms=60000):
    """A script that updates by one of the entries and prints how that ended."""
    line = ENTRIES[entry].format(url=url, more=more)
    return f"""
import asyncio, ota
{HURRY.format(window_ms=window_ms)}
try:
    {line}
    print("done")
except ota.OTAError as error:
    print(error.code + ":", error)
"""


def endless(head, piece):
    """An answer that goes on until the board hangs up."""

    def answer(handler):
        handler.wfile.write(head)
        while True:
            handler.wfile.write(piece)

    return answer


def drip(head, pause_s=0.004):
    """An answer byte by byte, too slow for anybody, until the board hangs up."""

    def answer(handler):
        handler.wfile.write(head)
        while True:
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(pause_s)

    return answer


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

ENDLESS = {
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", "more than 8 interim answers"),
    "103 with links": (b"", b"HTTP/1.1 103 Early\r\nLink: </a>\r\n\r\n", "more than 8 interim ans"),
    "headers": (OK, b"X: y\r\n", "more than 96 header lines"),
    "long headers": (OK, b"X: " + b"y" * 2000 + b"\r\n", "more than 32768 bytes of header lines"),
    "one header": (OK, b"y" * 2000, "a line of more than 8192 bytes"),
    "a status line": (b"HTTP/1.1 200 ", b"OK " * 500, "a line of more than 8192 bytes"),
    "a chunk extension": (CHUNKED + b"5;", b"name=value;" * 99, "a line of more than 8192 bytes"),
    "chunk extensions": (
        CHUNKED,
        b"1;" + b"x" * 2000 + b"\r\nX\r\n",
        "more than 16384 bytes of chunk lines",
    ),
    "trailers": (CHUNKED + b"0\r\n", b"X: y\r\n", "more than 96 trailer lines"),
    "long trailers": (
        CHUNKED + b"0\r\n",
        b"X: " + b"y" * 2000 + b"\r\n",
        "more than 8192 bytes of trailer lines",
    ),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_has_no_end_is_refused_with_the_bound_that_it_met(board, server, name, hostile):
    head, piece, words = ENDLESS[name]
    server.files["/x.json"] = endless(head, piece)
    script = "".join(attempt(entry, server.url("/x.json")) for entry in ENTRIES)
    lines = output(board, script).splitlines()
    assert len(lines) == 4
    assert all(line.startswith(f"protocol: {HOST} sent {words}") for line in lines)
    assert states(board) == ["VALID", "-"]
    hostile(len(ENTRIES))


def test_as_many_lines_as_are_allowed_pass(board, server):
    def answer(handler):
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 8 + OK + b"X: y\r\n" * 95)
        handler.wfile.write(b"Transfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(NEW), 0x8000):
            piece = NEW[at : at + 0x8000]
            handler.wfile.write(b"%x;ext\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n" + b"X: y\r\n" * 96 + b"\r\n")

    server.files["/app.bin"] = answer
    assert output(board, try_update(server.url("/app.bin"))) == f"wrote {len(NEW)}\n"


@pytest.mark.parametrize(
    "size", ["", " ", "+5", "-5", "0x5", "5_0", "fffffff1", "ffffffffffffffffff", "g", "5 5", "\0"]
)
def test_a_chunk_size_that_is_none_is_shown(board, server, size, hostile):
    hostile()
    server.files["/app.bin"] = endless(CHUNKED + size.encode() + b"\r\n", b"12345\r\n")
    assert f"protocol: {HOST} sent a chunk of size " in output(
        board, try_update(server.url("/app.bin"))
    )


# --- the size ----------------------------------------------------------------------------------

SIZES = {
    "Content-Length": (OK + b"Content-Length: 999999999\r\n\r\n", b"x" * 4096),
    "chunked": (CHUNKED, b"1000\r\n" + b"x" * 4096 + b"\r\n"),
    "to the end of the connection": (OK + b"Connection: close\r\n\r\n", b"x" * 4096),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_file_that_is_larger_than_its_limit_ends_there(board, server, name):
    server.files["/app.bin"] = endless(*SIZES[name])
    printed = output(
        board,
        f"""
from ota.pump import open_source
count = 0
try:
    source = open_source({server.url("/app.bin")!r}, limit=20000, max_failures=1)
    while True:
        count += source.readinto(bytearray(4096))
except ValueError as error:
    print(error.code + ":", error, count)
""",
    )
    known = name == "Content-Length"
    assert printed == (
        f"too-long: {server.url('/app.bin')} has more than 20000 bytes, the limit here "
        f"{0 if known else 16384}\n"
    )


@pytest.mark.parametrize("chunked", [False, True])
def test_a_file_of_just_its_limit_is_taken(board, server, chunked):
    server.files["/app.bin"] = File(NEW, chunked=chunked)
    script = try_update(server.url("/app.bin"), f", limit={len(NEW)}")
    assert output(board, script) == f"wrote {len(NEW)}\n"


# --- the rate ----------------------------------------------------------------------------------

DRIPS = {
    "body": (OK + b"Content-Length: 4000\r\n\r\n", False),
    "body without length": (OK + b"\r\n", False),
    "chunk": (CHUNKED + b"5000\r\n", False),
    "chunk extension": (CHUNKED + b"5;", False),
    "header": (OK + b"X: ", False),
    "status": (b"HTTP/1.1 200 O", False),
    "body over TLS": (OK + b"Content-Length: 4000\r\n\r\n", True),
}


@pytest.mark.parametrize("name", DRIPS)
def test_bytes_that_drip_end_an_update_however_it_began(board, name, hostile):
    hostile(len(ENTRIES))
    head, is_tls = DRIPS[name]
    more = ", min_rate=5000" + ONCE + (f", cadata={root().der!r}" if is_tls else "")
    with web.serving({"/x.json": drip(head)}, server_identity().context() if is_tls else None) as s:
        script = "".join(attempt(entry, s.url("/x.json"), more, 200) for entry in ENTRIES)
        lines = output(board, script).splitlines()
    assert len(lines) == 4
    for line in lines:
        assert line.startswith("slow: ")
        assert " bytes came in 0." in line or " bytes came in 1." in line
        assert line.endswith(" s of waiting, min_rate is 5000 bytes a second")
    assert states(board) == ["VALID", "-"]


def test_other_tasks_run_while_bytes_drip(board, server):
    server.files["/app.bin"] = drip(OK + b"Content-Length: 100000\r\n\r\n")
    printed = output(
        board,
        f"""
import asyncio, ota, time
{HURRY.format(window_ms=400)}
beats = longest = 0
async def beat():
    global beats, longest
    while True:
        before = time.ticks_ms()
        await asyncio.sleep_ms(1)
        longest = max(longest, time.ticks_diff(time.ticks_ms(), before))
        beats += 1
async def main():
    task = asyncio.create_task(beat())
    try:
        await ota.update.fetch({server.url("/app.bin")!r}, min_rate=5000, max_failures=1)
    except ota.OTAError as error:
        print(error.code, beats, longest)
asyncio.run(main())
""",
    ).split()
    assert printed[0] == "slow"
    assert int(printed[1]) > 40


def test_a_slow_connection_is_tried_once_more(board, server):
    server.files["/app.bin"] = drip(OK + b"Content-Length: 100000\r\n\r\n")
    more = ", min_rate=5000, pause=0.01, log=print"
    lines = output(board, attempt("from_file", server.url("/app.bin"), more, 200)).splitlines()
    assert len(server.requests) == 2
    assert "min_rate is 5000 bytes a second (failure 1 of 5): trying again" in lines[0]
    assert lines[-1].startswith("slow: gave up after two slow connections, the last: ")


def test_a_rate_of_0_waits_as_long_as_anything_comes(board, server):
    def answer(handler):
        handler.wfile.write(OK + b"Content-Length: 60\r\n\r\n")
        for _ in range(60):
            handler.wfile.write(b"{")
            time.sleep(0.004)

    server.files["/x.json"] = answer
    printed = output(board, attempt("from_json", server.url("/x.json"), ", min_rate=0" + ONCE, 50))
    assert printed.startswith("json: ")


def test_pauses_and_the_apps_own_waits_are_no_waiting(board, server):
    server.files["/app.bin"] = File(NEW, '"one"')
    server.troubles = [web.status("503 Busy", "Retry-After: 1"), web.drop(0x8000)]
    more = ", min_rate=20000, pause=0.4, progress=lambda *_: time.sleep_ms(20), max_failures=5"
    script = "import time\n" + attempt("from_file", server.url("/app.bin"), more, 250)
    assert output(board, script) == "done\n"


def test_all_waiting_together_is_bounded_by_the_size(board, server):
    """A server without ranges sends all of it again and again: the rate is good, and yet."""
    server.files["/app.bin"] = File(NEW, '"one"', ranges=False)

    def slow_and_short(handler, sent):
        time.sleep(0.02)
        handler.limit(0x10000 - sent)

    server.troubles = [slow_and_short] * 50
    more = ", min_rate=50000, pause=0.0001, max_failures=40"
    printed = output(board, attempt("from_file", server.url("/app.bin"), more, 250))
    assert printed.startswith("slow: ")
    assert f" s of waiting are too long for {len(NEW)} bytes, min_rate is 50000" in printed


def test_connections_that_bring_4_kib_each_are_counted_over_the_whole_download(board, server):
    body = boards.app("v1.27.0", 0x3F000)
    server.files["/app.bin"] = File(body, '"one"')
    server.troubles = [web.drop(web.PIECE)] * 99
    more = ", pause=0.001, max_failures=3, log=print"
    lines = output(board, attempt("from_file", server.url("/app.bin"), more)).splitlines()
    assert "(failure 1 of 3): trying again in" in lines[0]
    assert "(failure 1 of 3, 2 in all): trying again in" in lines[1]
    assert lines[-1].startswith("short: gave up after 25 failures in 102400 bytes, the last: ")
    assert states(board) == ["VALID", "-"]


# --- silence -----------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1, 20, 5000])
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_server_that_says_no_more_ends_by_the_timeout(board, server, entry, after):
    answer = OK + b"Content-Length: 100000\r\n\r\n" + b"x" * 5000

    def silent(handler):
        handler.wfile.write(answer[: after or 0])
        handler.rfile.read(1)

    server.files["/x.json"] = silent
    printed = output(board, attempt(entry, server.url("/x.json"), ONCE + ", timeout=0.2"))
    too_long = entry == "from_json" and after == 5000
    assert printed.startswith("too-long: " if too_long else "timeout: ") or after == 5000


def test_a_release_with_zeros_behind_its_manifest_ends(board, server):
    data = releases.manifest(releases.app()).to_bytes()
    server.files["/m.json"] = endless(OK + b"\r\n", data.ljust(8192, b"\0"))
    printed = output(board, attempt("install", server.url("/m.json")))
    assert printed.startswith("manifest: ")
