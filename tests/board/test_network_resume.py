"""Downloads that power cuts break off go on where they were: every byte is fetched about once."""

from __future__ import annotations

import boards
import encoded
import ota_board
import pytest
import releases
import web
from mpota.virtual.board import Board, End
from mpota.virtual.flash import Cut, CutMode, VirtualFlash
from ota_board import NEW, output, slot_content, states, try_update
from test_update import merged_firmware
from web import File

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
        board.flash.restart_count()
        board.flash.cut = Cut(operations, mode)
        run = board.run()
        if run.end is not End.POWER_CUT:
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
        board = Board(flash, heap_size=160 * 1024, frozen=ota_board.compiled())
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


@pytest.fixture
def board():
    with ota_board.updating_board() as board:
        yield board


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
        (0, [0]),  # of this sector there is a digest in NVS
        (0x3000, [KIB_64, 0]),  # this one is found by the image's own
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
from ota import certificate, download, failures, rejoin, resume, secure
ota.update.OTA
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
        board = Board(flash, frozen=ota_board.compiled())
        url = server.url("/a.bundle")
        flash.restart_count()
        flash.cut = Cut(100, CutMode.TORN)
        assert board.run(install.format(url)).end is End.POWER_CUT
        server.requests.clear()
        assert output(board, install.format(url)) == ""
        assert encoded.slot(board, len(encoded.NEW)) == encoded.NEW
        # The head, up to where the app begins, and then what the slot lacks.
        first, second = (request.start for request in server.requests)
        assert (first, second > KIB_64) == (0, True)
