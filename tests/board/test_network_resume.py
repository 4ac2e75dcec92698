"""Downloads that power cuts break off go on where they were: every byte is fetched about once."""

from __future__ import annotations

import pytest
from mpota.virtual.board import Board, End
from mpota.virtual.cuts import CutNotReachedError, power_cut
from mpota.virtual.flash import CutMode, VirtualFlash

from tests.support import boards, encoded, ota_board, ota_package, releases, web
from tests.support.ota_board import NEW, merged_firmware, output, slot_content, states, try_update
from tests.support.web import File

KIB_64 = 0x10000
PATIENT = ", max_failures=5, pause=0.01, timeout=0.4"
SIZE = 1_670_000  # about that of MicroPython for an ESP32

SLOT = 0x1B0000
LARGE_TABLE = (
    boards.NVS,
    boards.OTADATA,
    boards.Partition("ota_0", 0, 0x10, 0x10000, SLOT),
    boards.Partition("ota_1", 0, 0x11, 0x10000 + SLOT, SLOT),
    boards.Partition("vfs", 1, 0x81, 0x10000 + 2 * SLOT, 0x40000),
)

# A board's TCP window is some 5 KiB (CONFIG_LWIP_TCP_WND_DEFAULT): what a server has sent beyond
# that when the power goes is not there to be lost.
MAIN = """
import socket, sys
class Socket:
    getaddrinfo, SOCK_STREAM = socket.getaddrinfo, socket.SOCK_STREAM
    def socket(*args):
        made = socket.socket(*args)
        made.setsockopt(1, 8, 2048)
        return made
sys.modules["socket"] = Socket
import machine, ota
from esp32 import Partition
if Partition(Partition.RUNNING).info()[4] == "ota_0":
    ota.update.from_file({url!r}, verbose=False, reboot=False, pause=0.01{options})
    machine.reset()
ota.rollback.cancel()
print("updated")
"""


def install_main(board, url, options=""):
    main = MAIN.format(url=url, options=options)
    output(board, f"with open('main.py', 'w') as f: f.write({main!r})")
    board.flash.restart_count()


@pytest.fixture(scope="module")
def image():
    return boards.app("v1.27.0", SIZE)


@pytest.fixture(scope="module")
def large_base():
    with boards.flash({0x10000: ota_board.OLD}, LARGE_TABLE, 4 << 20) as flash:
        board = Board(flash)
        assert board.run().end is End.IDLE
        return flash.snapshot()


def cut_until_updated(board, server, operations, mode):
    """Cut the power at every so many flash operations until the update is through; the cuts."""
    cuts = 0
    while True:
        try:
            with power_cut(board.flash, operations, mode):
                run = board.run()
        except CutNotReachedError:
            assert (run.output, run.labels[-1]) == ("updated\n", "ota_1"), run.console
            return cuts
        cuts += 1
        assert cuts < 100


# A sector takes an erase and a write, a 64 KiB block as well, the note in NVS some eleven
# operations; so the power goes about once in 64 KiB, each time at another place in it. Not where
# ESP-IDF loses the note (virtual/nvs_page.py: _lose_blob): then it starts over.
@pytest.mark.parametrize(
    ("block_size", "operations", "mode"),
    [(4096, 43, CutMode.TORN), (4096, 45, CutMode.BEFORE), (65536, 17, CutMode.AFTER)],
)
def test_power_cuts_at_each_64_kib_cost_64_kib_each_at_most(
    large_base, image, block_size, operations, mode
):
    with (
        web.serving({"/app.bin": File(image, '"one"')}) as server,
        VirtualFlash.create(len(large_base), {0: large_base}) as flash,
    ):
        board = Board(flash, heap_size=160 * 1024, frozen=ota_package.compiled())
        install_main(board, server.url("/app.bin"), f", block_size={block_size}")
        cuts = cut_until_updated(board, server, operations, mode)
        assert cuts >= 12
        print(f"{cuts} cuts, {server.sent:,} bytes fetched of {len(image):,}")
        # One more for what stood in the sockets: the server has sent that as well.
        assert server.sent <= len(image) + (cuts + 1) * KIB_64
        starts = [request.start for request in server.requests]
        assert starts == sorted(starts)
        assert board.flash.read(LARGE_TABLE[3].offset, len(image)) == image
        assert board.run("").labels == ("ota_1",)  # confirmed


def break_off(board, server, options="", after=0x18000):
    """Let the first update lose its connection for good after so many bytes."""
    server.troubles = [web.drop(after)]
    url = server.url("/app.bin")
    assert output(board, try_update(url, options)).startswith("short: ")
    assert states(board) == ["VALID", "-"]
    server.requests.clear()


def go_on(board, url, options=""):
    """What the next update prints, verbose."""
    return output(board, try_update(url, options).replace("verbose=False, ", ""))


OTHER = boards.app("v1.28.0", 0x27000)


def test_the_next_attempt_fetches_only_what_the_slot_lacks(board):
    with web.serving({"/app.bin": File(NEW, '"one"')}) as server:
        break_off(board, server)
        printed = go_on(board, server.url("/app.bin"))
        assert f"going on at byte 65536 of {len(NEW)}, what is before it is in flash" in printed
        assert f"wrote {len(NEW)}" in printed
        assert [request.start for request in server.requests] == [KIB_64]
        assert server.requests[0].headers["if-range"] == '"one"'
        assert board.run().labels == ("ota_1",)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (File(NEW, '"one"'), File(OTHER, '"two"'), "the file has changed on the server"),
        (File(NEW, 'W/"one"'), File(OTHER, 'W/"two"'), "the file has changed on the server"),
        (File(NEW, '"1"'), File(boards.app("v1.28.0", 0x20000), '"2"'), "the file has changed on"),
        (File(NEW, '"1"'), File(boards.app("v1.28.0", 0x8000), '"2"'), "the file has changed on"),
        (File(NEW, None, "Sat, 01"), File(OTHER, None, "Sun, 02"), "the file has changed on the"),
        (File(NEW, '"one"'), File(NEW, '"one"', ranges=False), "the server cannot send a part"),
        (File(NEW), File(OTHER), "the image is damaged"),  # found only at its end
    ],
)
def test_what_cannot_go_on_starts_over_and_says_so(board, before, after, words):
    with web.serving({"/app.bin": before}) as server:
        break_off(board, server)
        server.files["/app.bin"] = after
        printed = go_on(board, server.url("/app.bin"))
        assert words in printed
        assert "starting over" in printed
        assert f"wrote {len(after.body)}" in printed
        assert slot_content(board, len(after.body)) == after.body
        assert board.run().labels == ("ota_1",)


@pytest.mark.parametrize(
    ("erased", "fetched_from"),
    [
        (0, [KIB_64, 0]),  # the image's own digest finds it, and it is fetched from its start
        (0x3000, [KIB_64, 0]),
    ],
)
def test_what_the_slot_holds_counts_not_what_nvs_says(board, erased, fetched_from):
    with web.serving({"/app.bin": File(NEW, '"one"')}) as server:
        break_off(board, server)
        board.flash.erase(boards.OTA_1.offset + erased, 0x1000)
        assert f"wrote {len(NEW)}" in go_on(board, server.url("/app.bin"))
        assert [request.start for request in server.requests] == fetched_from
        assert slot_content(board, len(NEW)) == NEW


def test_another_url_with_the_same_sha_goes_on(board):
    import hashlib

    sha = f", sha={hashlib.sha256(NEW).hexdigest()!r}"
    files = {"/app.bin": File(NEW, '"one"'), "/mirror.bin": File(NEW, '"other"')}
    with web.serving(files) as server:
        break_off(board, server, sha)
        assert f"wrote {len(NEW)}" in go_on(board, server.url("/mirror.bin"), sha)
        assert [request.start for request in server.requests] == [KIB_64]


def test_another_url_starts_from_its_first_byte(board):
    with web.serving({"/app.bin": File(NEW, '"1"'), "/b.bin": File(OTHER, '"1"')}) as server:
        break_off(board, server)
        assert f"wrote {len(OTHER)}" in go_on(board, server.url("/b.bin"))
        assert [request.start for request in server.requests] == [0]


def test_what_has_been_installed_is_not_remembered(board):
    with web.serving({"/app.bin": File(NEW, '"one"')}) as server:
        script = try_update(server.url("/app.bin"))
        output(board, script + script)
        assert [request.start for request in server.requests] == [0, 0]


@pytest.mark.parametrize("ranges", [True, False])
def test_of_a_merged_firmware_what_is_before_the_app_is_fetched_again(board, ranges):
    merged = merged_firmware(NEW)
    start = len(merged) - len(NEW)
    with web.serving({"/app.bin": File(merged, '"one"', ranges=ranges)}) as server:
        break_off(board, server, after=0x28000)
        printed = go_on(board, server.url("/app.bin"))
        there = start + KIB_64
        assert f"going on at byte {there} of {len(merged)}, what is before it is in" in printed
        assert f"wrote {len(merged)}" in printed
        assert [request.start for request in server.requests] == ([0, there] if ranges else [0])
        assert slot_content(board, len(NEW)) == NEW
        assert board.run().labels == ("ota_1",)


def test_a_merged_firmware_goes_on_over_a_connection_that_breaks_before_the_app(board):
    merged = merged_firmware(NEW)
    there = len(merged) - len(NEW) + KIB_64
    with web.serving({"/app.bin": File(merged, '"one"')}) as server:
        break_off(board, server, after=0x28000)
        server.troubles = [web.drop(0x4000), None, web.drop(0x2000), None]
        assert f"wrote {len(merged)}" in go_on(board, server.url("/app.bin"), PATIENT)
        starts = [request.start for request in server.requests]
        assert starts == [0, 0x4000, there, there + 0x2000]
        assert slot_content(board, len(NEW)) == NEW


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (('"one"', '"two"'), "the file has changed on the server: starting over"),
        ((None, None), "the image is damaged"),  # found only at its end
    ],
)
def test_a_merged_firmware_that_has_changed_starts_over(board, tags, words):
    before, after = merged_firmware(NEW), merged_firmware(OTHER)
    assert len(before) == len(after)
    with web.serving({"/app.bin": File(before, tags[0])}) as server:
        break_off(board, server, after=0x28000)
        server.files["/app.bin"] = File(after, tags[1])
        printed = go_on(board, server.url("/app.bin"))
        assert words in printed
        assert "starting over" in printed
        assert f"wrote {len(after)}" in printed
        assert slot_content(board, len(OTHER)) == OTHER


def test_heap_stays_within_24_kib_besides_the_package(board):
    with web.serving({"/app.bin": File(NEW, '"one"')}, web.server_identity().context()) as server:
        server.troubles = [web.drop(0x8000), web.reset(0x9000)]
        printed = output(
            board,
            f"""
import gc, ota
from ota import http, http_ask, http_connect, http_resume, image, pump, slot, tls_trust
from ota import update
gc.collect()
free = least = gc.mem_free()
def progress(done, total):
    global least
    gc.collect()
    least = min(least, gc.mem_free())
ota.update.from_file({server.url("/app.bin")!r}, verbose=False, reboot=False, progress=progress,
    block_size=4096, pause=0.01, cadata={web.root().der!r})
print(free - least)
""",
        )
    assert int(printed) < 24 * 1024
    print(printed)


@pytest.mark.parametrize(
    "content",
    [encoded.content(), encoded.content().compressed()],
    ids=["plain", "compressed"],
)
def test_a_bundle_goes_on_after_a_power_cut(content):
    data = releases.make(content).to_bytes()
    install = "import ota; ota.release.install({!r}, reboot=False, block_size=4096)"
    with (
        web.serving({"/a.bundle": File(data, '"one"')}) as server,
        VirtualFlash.create(boards.FLASH_SIZE, {0: encoded.base()}) as flash,
    ):
        board = Board(flash, frozen=ota_package.compiled())
        url = server.url("/a.bundle")
        with power_cut(flash, 100, CutMode.TORN):
            board.run(install.format(url))
        server.requests.clear()
        assert output(board, install.format(url)) == ""
        assert encoded.slot(board, len(encoded.NEW)) == encoded.NEW
        # The head, up to where the app begins, and then what the slot lacks.
        first, second = (request.start for request in server.requests)
        assert (first, second > KIB_64) == (0, True)


# --- ends that are not told, and ranges that are told otherwise ---------------------------------


def test_a_chunked_body_without_its_last_chunk_is_whole_if_the_server_says_so(board):
    """Asked for what follows the last byte, it answers 416 with the size."""

    def answer(handler):
        if "range" in handler.asked.headers:
            handler.answer(
                "416 Range Not Satisfiable",
                [f"Content-Range: bytes */{len(NEW)}", "Content-Length: 0"],
            )
            return
        handler.answer("200 OK", ['ETag: "1"', "Transfer-Encoding: chunked"])
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(NEW), NEW))
        raise web.Hangup

    with web.serving({"/app.bin": answer}) as server:
        assert output(board, try_update(server.url("/app.bin"), PATIENT)) == f"wrote {len(NEW)}\n"
        assert [request.start for request in server.requests] == [0, len(NEW)]
        assert board.run().labels == ("ota_1",)


def ranges(content_range, limit=None, validator='ETag: "1"'):
    """A file whose first connection breaks; how its parts are told is up to ``content_range``."""

    def answer(handler):
        start = handler.asked.start
        headers = [validator]
        if start:
            if content_range:
                told = content_range.format(start=start, end=len(NEW) - 1, size=len(NEW))
                headers.append("Content-Range: " + told)
            body = NEW[start:][:limit]
            handler.answer("206 Partial Content", [*headers, f"Content-Length: {len(body)}"])
            handler.wfile.write(body)
            handler.asked.sent = len(body)
            return
        handler.answer("200 OK", [*headers, f"Content-Length: {len(NEW)}"])
        before = sum(request.start == 0 for request in handler.server.requests) > 1
        handler.wfile.write(NEW if before else NEW[:0x10000])
        if not before:
            raise web.Hangup

    return answer


@pytest.mark.parametrize(
    ("told", "limit", "starts"),
    [
        ("bytes {start}-{end}/{size}", None, [0, 0x10000]),
        ("bytes {start}-{end}/*", None, [0, 0x10000]),  # legal: the size is not known
        ("BYTES {start}-{end}/{size}", None, [0, 0x10000]),
        (None, None, [0, 0x10000]),  # its size says which part it is
        (None, 1000, [0, 0x10000, 0]),  # it does not: all of it once more, and nothing twice
        ("bytes 0-{end}/{size}", None, [0, 0x10000, 0]),  # another part than was asked for
        ("items 1-2/3", None, [0, 0x10000]),
        ("bytes {start}-{end}/{size}", 0x8000, [0, 0x10000, 0x18000, 0x20000]),  # less is legal
    ],
)
def test_a_part_is_taken_however_it_is_told(board, told, limit, starts):
    with web.serving({"/app.bin": ranges(told, limit)}) as server:
        more = PATIENT + ", log=print"
        printed = output(board, try_update(server.url("/app.bin"), more))
        assert printed.endswith(f"wrote {len(NEW)}\n")
        assert "changed" not in printed
        assert [request.start for request in server.requests] == starts
        assert slot_content(board, len(NEW)) == NEW
        assert board.run().labels == ("ota_1",)


@pytest.mark.parametrize("told", ["bytes {start}-{end}/{size}1", "bytes */1"])
def test_a_part_of_a_file_of_another_size_is_of_a_changed_file(board, told):
    with web.serving({"/app.bin": ranges(told)}) as server:
        printed = go_on(board, server.url("/app.bin"), PATIENT)
        assert "changed on the server while it was fetched" in printed
        assert "starting over" in printed
        assert f"wrote {len(NEW)}" in printed


def cut_off_once(body, at):
    """A body whose end only the end of the connection tells: too early, the first time."""
    done = []

    def answer(handler):
        handler.answer("200 OK", ["Connection: close"])
        handler.wfile.write(body if done else body[:at])
        done.append(True)
        raise web.Hangup

    return answer


@pytest.mark.parametrize("at", [0x1000, 0x12345])
@pytest.mark.parametrize("entry", ["from_file", "fetch"])
def test_a_body_without_length_that_ends_early_gets_another_attempt(board, entry, at):
    with web.serving({"/app.bin": cut_off_once(NEW, at)}) as server:
        call = {
            "from_file": "ota.update.from_file({0!r}, verbose=False, reboot=False, {1})",
            "fetch": "asyncio.run(ota.update.fetch({0!r}, {1}))",
        }[entry].format(server.url("/app.bin"), "block_size=4096, max_failures=1")
        assert output(board, f"import asyncio, ota\nprint({call})") == f"{len(NEW)}\n"
        assert len(server.requests) == 2
        assert slot_content(board, len(NEW)) == NEW


def test_a_body_without_length_that_always_ends_early_is_refused(board):
    def answer(handler):
        handler.answer("200 OK", ["Connection: close"])
        handler.wfile.write(NEW[:0x8000])
        raise web.Hangup

    with web.serving({"/app.bin": answer}) as server:
        printed = output(board, try_update(server.url("/app.bin"), ", block_size=4096"))
        assert printed.startswith("truncated: ")
        assert len(server.requests) == 2
        assert states(board) == ["VALID", "-"]


def test_a_release_starts_over_where_an_update_does(board):
    """The bundle changes while it is fetched."""
    old = releases.make(releases.Content("app", "app.bin", NEW), version="2.0").to_bytes()
    new = releases.make(releases.Content("app", "app.bin", OTHER), version="2.1").to_bytes()

    with web.serving({"/a.bundle": File(old, '"1"')}) as server:

        def change(handler, sent):
            if sent >= 0x10000:
                server.files["/a.bundle"] = File(new, '"2"')
                raise web.Hangup

        server.troubles = [change]
        url = server.url("/a.bundle")
        call = f"ota.release.install({url!r}, reboot=False, pause=0.01, block_size=4096)"
        assert output(board, f"import ota\n{call}") == ""
        assert slot_content(board, len(OTHER)) == OTHER
        assert board.run().labels == ("ota_1",)
