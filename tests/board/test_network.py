"""Updates over bad networks: what the user reads, what is fetched, and which slot boots."""

from __future__ import annotations

import re
import ssl

import pytest
from mpota.release.build import Content

from tests.support import boards, ota_board, releases, web
from tests.support.ota_board import NEW, OLD, output, states, try_update
from tests.support.web import (
    DAY,
    HOST,
    NOW,
    File,
    drop,
    issue,
    reset,
    root,
    server_identity,
    stall,
    status,
)

PATIENT = ", max_failures=5, pause=0.01, timeout=0.3, log=print"


@pytest.fixture
def server():
    with web.serving({"/app.bin": File(NEW, '"one"')}) as server:
        yield server


def update(board, url, more=PATIENT):
    """The lines that an update prints, and the label of the app that boots after it."""
    lines = output(board, try_update(url, more)).splitlines()
    return lines, board.run().labels[-1]


def in_no_time(board):
    """PATIENT, on a board whose pauses take none."""
    board.skipped_sleep_ms = 1
    return PATIENT.replace("timeout=0.3", "timeout=600")


# --- TLS ---------------------------------------------------------------------------------------


def roots(*identities):
    return f", cadata={b''.join(one.pem for one in identities)!r}"


def intermediate():
    return issue("Test Intermediate", root(), is_ca=True)


# The server's certificate, options of the update -> what the user reads.
CERTIFICATES = {
    "no root": (server_identity, "", "there is no root certificate to check it with"),
    "wrong root": (
        server_identity,
        roots(issue("Other Root", is_ca=True)),
        "its issuer is not one of the given root certificates (issuer: CN=Test Root, O=Example)",
    ),
    "wrong root, with an intermediate": (
        lambda: issue(HOST, intermediate(), (HOST,)),
        roots(issue("Other Root", is_ca=True)),
        "its issuer is not one of the given root certificates (issuer: CN=Test Root, O=Example)",
    ),
    "self-signed": (
        lambda: issue(HOST, None, (HOST,)),
        roots(root()),
        f"it is self-signed, and not one of the given root certificates (issuer: CN={HOST}, ",
    ),
    "wrong host": (
        lambda: issue("a.example", root(), ("a.example", "b.example", "192.0.2.7")),
        roots(root()),
        f"it is for a.example, b.example, 192.0.2.7, not for {HOST} (issuer: CN=Test Root, ",
    ),
    "expired": (
        lambda: issue(HOST, root(), (HOST,), NOW - 30 * DAY, NOW - 2 * DAY),
        roots(root()),
        f"it expired on {NOW - 2 * DAY:%Y-%m-%d}, the clock says {NOW:%Y-%m-%d} (issuer: CN=Test R",
    ),
    "not yet valid": (
        lambda: issue(HOST, root(), (HOST,), NOW + 9 * DAY, NOW + 30 * DAY),
        roots(root()),
        f"it is not valid before {NOW + 9 * DAY:%Y-%m-%d}, the clock says {NOW:%Y-%m-%d} (issuer",
    ),
    "wrong host and expired": (
        lambda: issue("a.example", root(), ("a.example",), NOW - 30 * DAY, NOW - 2 * DAY),
        roots(root()),
        f"the clock says {NOW:%Y-%m-%d}; it is for a.example, not for {HOST} (issuer: CN=Test Root",
    ),
    "hostile words": (
        lambda: issue("\x1b[2J\nroot", root(), ("a.example",)),
        roots(issue("\x1b[2J\nroot", is_ca=True)),
        "it is for a.example, not for",
    ),
}


@pytest.mark.parametrize("name", CERTIFICATES)
def test_a_certificate_that_is_refused_is_explained(board, name):
    identity, more, words = CERTIFICATES[name]
    with web.serving({"/app.bin": File(NEW)}, identity().context()) as server:
        lines, booted = update(board, server.url("/app.bin"), more + ", pause=0.01, log=print")
    assert len(lines) == 1  # no second attempt: it would end like the first
    assert lines[0].startswith(f"certificate: the certificate of {HOST} is refused: ")
    assert words in lines[0]
    assert all(" " <= letter < "\x7f" for letter in lines[0])
    assert booted == "ota_0"
    assert server.requests == []  # nothing is asked of a server that is not trusted


def test_an_unset_clock_is_named_as_the_cause(board):
    identity = issue(HOST, root(), (HOST,), NOW + 9 * DAY, NOW + 30 * DAY)
    unset = """
import sys, time
class Unset:
    gmtime = lambda *args: (2000, 1, 1, 0, 0, 5, 5, 1)
    sleep_ms, ticks_ms, ticks_diff = time.sleep_ms, time.ticks_ms, time.ticks_diff
sys.modules["time"] = Unset
"""
    with web.serving({"/app.bin": File(NEW)}, identity.context()) as server:
        printed = output(board, unset + try_update(server.url("/app.bin"), roots(root())))
    assert printed == (
        f"certificate: the certificate of {HOST} is valid from {NOW + 9 * DAY:%Y-%m-%d} on, and "
        "this board's clock is not set: it says 2000-01-01. Set it first, for instance by "
        "ntptime.settime()\n"
    )


GOOD = {
    "DER": (server_identity, f", cadata={root().der!r}"),
    "PEM": (server_identity, roots(root())),
    "PEM as text": (server_identity, f", cadata={root().pem.decode()!r}"),
    "one of several": (server_identity, roots(issue("Other Root", is_ca=True), root())),
    "intermediate": (lambda: issue(HOST, intermediate(), (HOST,)), roots(root())),
    "self-signed, given": (server_identity, roots(root())),
    "wildcard, other name": (
        lambda: issue("x", root(), ("*.example.org",)),
        roots(root()) + ', server_name="files.example.org"',
    ),
    "anything": (lambda: issue("x", None), ", insecure_tls=True"),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_trusted_server_is_fetched_from(board, name, version):
    identity, more = GOOD[name]
    with web.serving({"/app.bin": File(NEW)}, identity().context(version)) as server:
        lines, booted = update(board, server.url("/app.bin"), more)
    assert (lines, booted) == ([f"wrote {len(NEW)}"], "ota_1")


def test_roots_come_from_a_file_with_words_around_them(board):
    text = b"# the root\r\n" + root().pem.replace(b"\n", b"\r\n") + b"bye"
    save = f"with open('roots.pem', 'wb') as f: f.write({text!r})\n"
    with web.serving({"/app.bin": File(NEW)}, server_identity().context()) as server:
        script = save + try_update(server.url("/app.bin"), ', cafile="roots.pem"')
        assert output(board, script) == f"wrote {len(NEW)}\n"


def test_roots_that_came_with_the_release_are_the_default(tmp_path):
    main = "import ota\nota.rollback.cancel()"
    bundle = releases.make(
        releases.tree("2", main), Content("certs", "ca.pem", root().pem), version="2.0"
    )
    board = releases.board(tmp_path)
    with board.flash:
        (tmp_path / "x.bundle").write_bytes(bundle.to_bytes())
        output(board, "with open('/main.py', 'w') as f: f.write('import ota.boot')")
        board.run("import ota; ota.release.install('/frozen/x.bundle')")
        with web.serving({"/app.bin": File(NEW)}, server_identity().context()) as server:
            script = "import ota; ota.boot.activate(); ota.rollback.cancel()\n"
            script += try_update(server.url("/app.bin"))
            assert output(board, script).endswith(f"wrote {len(NEW)}\n")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("cadata=b''", "there is no root certificate to check it with"),
        ("cadata=b'nonsense'", "no certificate in cadata, neither DER nor PEM"),
        ("cadata=b'0nonsense'", "a certificate in cadata is damaged"),
        (
            "cadata='-----BEGIN CERTIFICATE-----\\n!\\n-----END CERTIFICATE-----'",
            "a certificate in cadata is damaged",
        ),
        ("cafile='roots.pem'", "cannot read roots.pem: ENOENT"),
    ],
)
def test_roots_that_are_none_are_named(board, option, words):
    with web.serving({"/app.bin": File(NEW)}, server_identity().context()) as server:
        lines, booted = update(board, server.url("/app.bin"), f", {option}")
    assert lines[0].startswith("certificate: ")
    assert words in lines[0]
    assert booted == "ota_0"


def test_a_server_without_tls_is_told_from_a_bad_certificate(board, server):
    url = server.url("/app.bin").replace("http:", "https:")
    lines, booted = update(board, url, roots(root()) + ", max_failures=1")
    assert lines[0].startswith(f"tls: TLS handshake with {HOST} failed: ")
    assert booted == "ota_0"


def test_a_silent_server_ends_the_handshake(board):
    with web.serving({}) as server:
        lines, _ = update(
            board,
            server.url("/app.bin").replace("http:", "https:"),
            roots(root()) + ", max_failures=1, timeout=0.3",
        )
    assert "in the TLS handshake" in lines[0] or "TLS handshake with" in lines[0]


# --- connections that break --------------------------------------------------------------------


def test_a_drop_after_every_64_kib_costs_nothing_twice(board, server):
    server.troubles = [drop(0x10000)] * 2
    lines, booted = update(board, server.url("/app.bin"))
    assert booted == "ota_1"
    assert [request.start for request in server.requests] == [0, 0x10000, 0x20000]
    assert server.sent == len(NEW)
    assert server.requests[1].headers["if-range"] == '"one"'
    assert lines[0].startswith(
        f"the connection ended after 65536 of {len(NEW)} bytes: {len(NEW) - 65536} bytes are"
    )
    assert "(failure 1 of 5): trying again in 0." in lines[0]


@pytest.mark.parametrize("trouble", [stall, reset])
def test_stalls_and_resets_are_survived(board, server, trouble):
    server.troubles = [trouble(0x8000), trouble(0x5000), trouble(0)]
    lines, booted = update(board, server.url("/app.bin"))
    assert (lines[-1], booted) == (f"wrote {len(NEW)}", "ota_1")
    assert server.sent < len(NEW) + 4 * web.PIECE
    word = "no answer" if trouble is stall else "ECONNRESET"
    assert sum(word in line for line in lines) >= 3  # more on a busy machine, where it waits 0.3 s


def test_the_same_over_tls(board):
    with web.serving({"/app.bin": File(NEW, '"1"')}, server_identity().context()) as server:
        server.troubles = [drop(0x10000), reset(0x8000), stall(0x2000)]
        lines, booted = update(board, server.url("/app.bin"), roots(root()) + PATIENT)
    assert (lines[-1], booted, len(lines)) == (f"wrote {len(NEW)}", "ota_1", 4)
    assert lines[1].startswith("connection failed: ECONNRESET ")
    assert lines[2].startswith("no answer in time, ")


def test_what_fails_five_times_in_a_row_ends_and_tells_of_all(board, server):
    oops = status("500 Oops")
    server.troubles = [drop(0x4000), status("503 Service Unavailable"), stall(0), oops, oops]
    lines, booted = update(board, server.url("/app.bin"))
    assert booted == "ota_0"
    assert len(server.requests) == 5
    url = server.url("/app.bin")
    assert lines[-1] == (
        f"http-status: gave up after 5 failures in a row: the connection ended after 16384 of "
        f"{len(NEW)} bytes: {len(NEW) - 16384} bytes are missing; HTTP Error: 503 Service "
        "Unavailable; no answer in time, after 16384 bytes; HTTP Error: 500 Oops (2 times): " + url
    )


def test_failures_are_in_a_row_only_while_nothing_comes(board, server):
    server.troubles = [drop(web.PIECE * 2)] * 12
    patient = PATIENT.replace("=5", "=2").replace("timeout=0.3", "timeout=10")
    lines, booted = update(board, server.url("/app.bin"), patient)
    assert (lines[-1], booted) == (f"wrote {len(NEW)}", "ota_1")
    assert server.sent == len(NEW)


def test_pauses_grow(board, server):
    server.troubles = [status("503 Busy")] * 4
    lines, _ = update(board, server.url("/app.bin"), in_no_time(board).replace("0.01", "0.2"))
    pauses = [float(re.search(r"again in ([0-9.]+) s", line)[1]) for line in lines[:4]]
    for pause, least in zip(pauses, (0.1, 0.2, 0.4, 0.8), strict=True):
        assert least <= pause <= 2 * least


def test_a_server_may_ask_for_a_longer_pause(board, server):
    server.troubles = [status("429 Too Many Requests", "Retry-After: 1")]
    lines, booted = update(board, server.url("/app.bin"), in_no_time(board))
    assert "trying again in 1.0 s" in lines[0]
    assert booted == "ota_1"


@pytest.mark.parametrize("line", ["404 Not Found", "410 Gone", "403 Forbidden", "401 Unauthorized"])
def test_what_is_not_there_is_not_asked_for_again(board, server, line):
    server.troubles = [status(line)]
    lines, booted = update(board, server.url("/app.bin"))
    assert lines == [f"http-status: HTTP Error: {line}: {server.url('/app.bin')}"]
    assert (booted, len(server.requests)) == ("ota_0", 1)


def test_a_host_that_does_not_exist_is_named(board):
    lines, booted = update(
        board, "http://no-such-host.invalid/app.bin", PATIENT.replace("=5", "=2")
    )
    assert lines[-1].startswith(
        "dns: gave up after 2 failures in a row: cannot find host no-such-host.invalid: "
    )
    assert booted == "ota_0"


def test_nobody_listens(board):
    lines, booted = update(board, f"http://{HOST}:1/app.bin")
    assert lines[-1] == (
        "connect: gave up after 5 failures in a row: "
        f"cannot connect to {HOST} port 1: ECONNREFUSED (5 times): http://{HOST}:1/app.bin"
    )
    assert booted == "ota_0"


# --- servers that cannot resume, and files that change -----------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
def test_without_ranges_the_file_is_fetched_again_and_what_is_known_dropped(board, server, chunked):
    server.files["/app.bin"] = File(NEW, '"one"', ranges=False, chunked=chunked)
    server.troubles = [drop(0x10000), None]
    lines, booted = update(board, server.url("/app.bin"))
    assert (lines[-1], booted) == (f"wrote {len(NEW)}", "ota_1")
    assert server.sent == len(NEW) + 0x10000
    assert "the server cannot send a part of it: fetching all of" in lines[1]


OTHER = boards.app("v1.28.0", 0x27000)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("tags", [('"one"', '"two"'), ('W/"one"', 'W/"two"'), (None, None)])
def test_a_file_that_changes_in_the_middle_starts_over(board, server, tags, ranges):
    assert len(OTHER) == len(NEW)
    server.files["/app.bin"] = File(NEW, tags[0], ranges=ranges)

    def change(handler, sent):
        if sent >= 0x10000:
            server.files["/app.bin"] = File(OTHER, tags[1], ranges=ranges)
            raise web.Hangup

    server.troubles = [change]
    more = PATIENT.replace("log=print", "verbose=True")
    script = try_update(server.url("/app.bin"), more).replace("verbose=False, ", "", 1)
    printed = output(board, script)
    assert "starting over" in printed
    assert board.run().labels == ("ota_1",)
    assert ota_board.slot_content(board, len(OTHER)) == OTHER


def test_a_length_that_is_wrong_is_named(board, server):
    def liar(handler):
        handler.answer("200 OK", [f"Content-Length: {len(NEW) + 100}"])
        handler.wfile.write(NEW)
        raise web.Hangup

    server.files["/app.bin"] = liar
    lines, booted = update(board, server.url("/app.bin"), in_no_time(board))
    assert (
        f"the connection ended after {len(NEW)} of {len(NEW) + 100} bytes: 100 bytes are missing"
        in lines[-1]
    )
    assert booted == "ota_0"


def test_a_chunked_body_is_taken(board, server):
    server.files["/app.bin"] = File(NEW, chunked=True)
    lines, booted = update(board, server.url("/app.bin"))
    assert (lines, booted) == ([f"wrote {len(NEW)}"], "ota_1")


# --- redirects and secrets ---------------------------------------------------------------------


def redirect(line, where):
    def answer(handler):
        handler.answer(line, [f"Location: {where}", "Content-Length: 0"])

    return answer


SECRETS = (
    ', auth=("user", "secret"), headers={"X-Api-Key": "k", "Accept": "*/*", "User-Agent": "mine"}'
)


@pytest.mark.parametrize(
    "line",
    ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"],
)
def test_redirects_lead_to_another_host_which_learns_no_secret(board, server, line):
    with web.serving({"/there.bin": File(NEW)}) as other:
        server.files["/app.bin"] = redirect(line, "/next.bin?x=1#f")
        server.files["/next.bin?x=1"] = redirect(line, other.url("/there.bin"))
        lines, booted = update(board, server.url("/app.bin"), SECRETS)
    assert (lines, booted) == ([f"wrote {len(NEW)}"], "ota_1")
    for request in server.requests:
        assert request.headers["authorization"] == "Basic dXNlcjpzZWNyZXQ="
        assert request.headers["x-api-key"] == "k"
        assert request.headers["user-agent"] == "mine"
    assert len({request.peer for request in server.requests}) == 1  # one connection
    (request,) = other.requests
    assert set(request.headers) == {"host", "accept", "accept-encoding", "user-agent"}


def test_a_download_that_was_redirected_goes_on_where_it_was(board, server):
    server.files["/latest"] = redirect("302 Found", "/app.bin")
    server.troubles = [None, drop(0x10000)]
    lines, booted = update(board, server.url("/latest"))
    assert (lines[-1], booted) == (f"wrote {len(NEW)}", "ota_1")
    assert [(r.path, r.start) for r in server.requests[2:]] == [
        ("/latest", 0x10000),
        ("/app.bin", 0x10000),
    ]


def test_a_redirect_loop_ends(board, server):
    server.files["/app.bin"] = redirect("302 Found", "/app.bin")
    lines, booted = update(board, server.url("/app.bin"))
    assert lines == [f"redirect: more than 8 redirects from {HOST}"]
    assert (booted, len(server.requests)) == ("ota_0", 9)


def test_https_does_not_lead_to_http(board, server):
    files = {"/app.bin": redirect("302 Found", server.url("/app.bin"))}
    with web.serving(files, server_identity().context()) as secure:
        lines, booted = update(board, secure.url("/app.bin"), roots(root()))
    assert lines == [f"redirect: {HOST} redirects from https to http"]
    assert (booted, server.requests) == ("ota_0", [])


def test_a_bearer_token_and_a_line_break_in_a_header(board, server):
    update(board, server.url("/app.bin"), ', auth="t0ken"')
    assert server.requests[0].headers["authorization"] == "Bearer t0ken"
    lines, _ = update(board, server.url("/app.bin"), ', force=True, auth="t0ken\\r\\nX-Evil: 1"')
    assert lines[0].startswith("address: a line break in the URL or a header: ")
    assert len(server.requests) == 1


# --- several files, and the interface ----------------------------------------------------------


def test_several_files_come_over_one_connection(board, server):
    server.files |= {
        "/a": File(b"a" * 5000),
        "/b": File(b"b" * 3000, chunked=True),
        "/c": File(b""),
    }
    printed = output(
        board,
        f"""
from ota.http import Client
from ota.pump import open_source
client = Client()
buf = bytearray(4096)
for path in ("/a", "/b", "/c", "/missing", "/a"):
    try:
        source = open_source({server.root!r} + path, client=client)
        total = 0
        while True:
            count = source.readinto(buf)
            if not count:
                break
            total += count
        print(path, source.size, total)
        source.close()
    except ValueError as error:
        print(error.status)
""",
    )
    assert printed.splitlines() == ["/a 5000 5000", "/b None 3000", "/c 0 0", "404", "/a 5000 5000"]
    assert len({request.peer for request in server.requests}) == 1


def test_a_connection_that_the_server_has_closed_meanwhile_is_opened_anew(board, server):
    server.files["/a"] = File(b"a" * 5000)

    def close(handler, sent):
        if sent:
            handler.server.keep_alive = False

    server.troubles = [close]
    printed = output(
        board,
        f"""
from ota.http import Client
from ota.pump import open_source
client = Client()
for _ in range(2):
    source = open_source({server.url("/a")!r}, client=client, max_failures=1)
    print(source.readinto(bytearray(8192)))
""",
    )
    assert printed.split() == ["5000", "5000"]
    assert len({request.peer for request in server.requests}) == 2


ASYNC = """
import asyncio, time, ota
longest = beats = 0
async def beat():
    global longest, beats
    before = time.ticks_ms()
    while True:
        await asyncio.sleep_ms(1)
        now = time.ticks_ms()
        longest = max(longest, time.ticks_diff(now, before))
        beats += 1
        before = now
async def main():
    task = asyncio.create_task(beat())
    try:
        print("wrote", await ota.update.fetch({url!r}{more}))
    except ota.OTAError as error:
        print(error.code)
    task.cancel()
    print(beats)
asyncio.run(main())
"""


def test_an_asyncio_program_goes_on_while_a_server_stalls(board, server):
    server.troubles = [stall(0x4000), drop(0x10000), stall(0)]
    more = ", pause=0.01, timeout=0.3"
    printed = output(board, ASYNC.format(url=server.url("/app.bin"), more=more)).split()
    assert printed[:2] == ["wrote", str(len(NEW))]
    assert (
        int(printed[2]) > 2 * 2 * len(NEW) // 4096
    )  # it had its turn at every block, and in pauses
    assert states(board) == ["VALID", "NEW"]
    assert board.run().labels == ("ota_1",)


def test_fetch_reports_what_fails_and_switches_nothing(board, server):
    server.troubles = [status("404 Not Found")]
    printed = output(board, ASYNC.format(url=server.url("/app.bin"), more=""))
    assert printed.split()[0] == "http-status"
    assert states(board) == ["VALID", "-"]


def test_a_fetch_over_tls_that_is_cancelled_leaves_the_old_app(board):
    with web.serving({"/app.bin": File(NEW, '"1"')}, server_identity().context()) as server:
        url = server.url("/app.bin")
        printed = output(
            board,
            f"""
import asyncio, ota
async def main():
    enough = asyncio.Event()
    def progress(done, total):
        if done > 100_000:
            enough.set()
    task = asyncio.create_task(ota.update.fetch({url!r}{roots(root())}, progress=progress))
    await enough.wait()
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        print("cancelled")
asyncio.run(main())
""",
        )
        assert printed == "cancelled\n"
        assert states(board) == ["VALID", "-"]
        lines, booted = update(board, url, roots(root()))
        assert (lines, booted) == ([f"wrote {len(NEW)}"], "ota_1")
        assert [request.start for request in server.requests] == [0, 0x10000]


def test_the_old_app_is_untouched_by_all_this(board, server):
    server.troubles = [drop(0x8000)]
    _, booted = update(board, server.url("/app.bin"), ", max_failures=1")
    assert booted == "ota_0"
    assert board.flash.read(boards.OTA_0.offset, len(OLD)) == OLD
