"""Updates that fail in the field, replayed: what is said, what boots, what became of the flash."""

from __future__ import annotations

import hashlib
import socket
import struct
from collections.abc import Callable

import pytest
from mpota.virtual.flash import FaultKind, FlashFault

from tests.support import boards, images, ota_board
from tests.support.boards import OTA_1
from tests.support.ota_board import (
    NEW,
    Connection,
    answer,
    output,
    serving,
    slot_content,
    slot_writes,
    states,
    try_update,
)

# Where the data of segment 0 ends in NEW.
DROM_END = 32 + struct.unpack_from("<I", NEW, 28)[0]


@pytest.fixture(scope="module")
def server():
    with serving({}) as server:
        yield server


def fail(board, server, reply, more="", path="/app.bin"):
    """Update from ``reply``, which must fail; (what is printed, what was done to the slots).

    Whatever it is, the old app boots afterwards, and the right image can then be installed.
    """
    server.answers[path] = reply
    run = board.run(try_update(server.url(path), more))
    assert run.traceback == "", run.console
    assert states(board) == ["VALID", "-"]
    assert board.run().labels == ("ota_0",)
    server.answers["/right.bin"] = answer(NEW)
    board.flash.heal()
    assert output(board, try_update(server.url("/right.bin"))) == f"wrote {len(NEW)}\n"
    assert board.run().labels == ("ota_1",)
    return run.output, slot_writes(run)


def patched(offset: int, data: bytes, image: bytes = NEW) -> bytes:
    return image[:offset] + data + image[offset + len(data) :]


def refused_by_header() -> dict[str, tuple[bytes, str]]:
    """Files that the first 288 bytes or the announced length give away -> what is said of them."""
    too_long = boards.app("v1.27.0", boards.SLOT_SIZE - 0x200)
    too_long = boards.app("v1.27.0", 2 * boards.SLOT_SIZE - 0x200 + 16 - len(too_long))
    assert len(too_long) == boards.SLOT_SIZE + 16
    return {
        "empty": (b"", "empty: the file is empty"),
        "web page": (b"<!DOCTYPE html>" * 9, "not-an-image: this is no firmware: it looks like a"),
        "zip": (b"PK\3\4" * 2000, "not-an-image: this is no firmware: it is a zip archive"),
        "other": (bytes(range(1, 256)), "not-an-image: this is no firmware: it starts with 0x01"),
        "other chip": (
            patched(12, struct.pack("<H", 9)),
            "wrong-chip: the image is for ESP32-S3, this board is ESP32\n",
        ),
        "unknown chip": (
            patched(12, struct.pack("<H", 77)),
            "wrong-chip: the image is for chip id 77, this board is ESP32\n",
        ),
        "17 segments": (patched(1, b"\x11"), "segment-count: the image has 17 segments, 1 to 16"),
        "no segment": (patched(1, b"\0"), "segment-count: the image has 0 segments, 1 to 16"),
        "huge segment": (
            patched(28, struct.pack("<I", 0x14F9FFF)),
            "segment-length: segment 0 (at 0x18) has length 0x14f9fff, which cannot be",
        ),
        "odd segment": (
            patched(28, struct.pack("<I", 0x1001)),
            "segment-length: segment 0 (at 0x18) has length 0x1001, which cannot be",
        ),
        "tiny segment": (patched(28, struct.pack("<I", 64)), "no-app-desc: segment 0 has 0x40"),
        "over the bootloader": (
            patched(24, struct.pack("<I", 0x3FFE8000)),
            "load-address: segment 0 (0x3ffe8000-0x4000ec00) is not in memory that an app",
        ),
        "off the page": (
            patched(24, struct.pack("<I", 0x3F400024)),
            "mapping: segment 0 is to be mapped to 0x3f400024, its data at flash 0x50020 does not",
        ),
        "no app_desc": (patched(32, b"\0\0\0\0"), "no-app-desc: the image has no app_desc"),
        "no digest": (patched(23, b"\0"), "no-digest: the image carries no SHA-256 digest"),
        "one row too long": (
            too_long,
            f"too-long: the app image is {len(too_long)} bytes, ota_1 holds {boards.SLOT_SIZE}",
        ),
        "bootloader": (
            boards.BOOTLOADER,
            f"no-table: the file is a bootloader, with no partition table in its first "
            f"{len(boards.BOOTLOADER)} bytes: pass the app image or the merged firmware",
        ),
        "blank": (b"\xff" * 9000, "no-table: the file is blank: its first 9000 bytes are 0xff"),
    }


@pytest.mark.parametrize("name", refused_by_header())
def test_what_the_header_shows_is_refused_before_a_byte_is_erased(board, server, name):
    content, words = refused_by_header()[name]
    printed, operations = fail(board, server, answer(content))
    assert printed.startswith(words)
    assert operations == []


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (0x3FFF0100, "overlaps the bootloader's data (0x3fff0000-0x3fff0130)"),
        (0x3FFDE000, "overlaps the bootloader's stack (0x3ffdbb20-0x3ffe3f20)"),
        (0x40078000, "is not in memory that an app can be loaded to"),
        (0x3FFADFC0, "is not in memory that an app can be loaded to"),
    ],
)
def test_a_segment_is_checked_against_the_bootloader_in_this_flash(board, server, start, words):
    image = images.small_image([(0x3F400020, NEW[32 : 32 + 0x1000]), (start, bytes(0x80))])
    printed, _ = fail(board, server, answer(image))
    assert printed == f"load-address: segment 1 (0x{start:08x}-0x{start + 0x80:08x}) {words}\n"


def test_an_image_one_byte_too_long_without_a_length_stops_at_the_slot(board, server):
    content, _ = refused_by_header()["one row too long"]
    printed, _ = fail(board, server, answer(content, length=False))
    assert printed.startswith(
        f"too-long: the app image is {len(content)} bytes or more, ota_1 holds"
    )


def test_a_merged_firmware_written_raw_is_refused_by_the_bootloader(board):
    # What the field did before: hand the merged file to the slot, then set_boot().
    content = boards.BOOTLOADER.ljust(0xF000, b"\xff") + NEW
    with ota_board.updating_board() as raw:
        run = raw.run(
            f"""
from esp32 import Partition
p = Partition("ota_1")
data = {content[:0x1000]!r}
p.writeblocks(0, data)
p.set_boot()
import machine
machine.reset()
"""
        )
        words = run.boots[-1].bootloader_lines
        assert run.labels == ("ota_0", "ota_0")
        assert any(
            "Segment 0 0x3fff0030-0x3fff0130 invalid: overlaps bootloader" in w for w in words
        )


@pytest.mark.parametrize("block_size", [4096, 65536])
def test_a_truncated_body_says_how_many_bytes_are_missing(board, server, block_size):
    short = answer(NEW)[: -len(NEW) + 62_840]
    printed, _ = fail(board, server, short, f", block_size={block_size}")
    assert printed == (
        f"short: {server.url('/app.bin')}: the connection ended after 62840 of {len(NEW)} bytes: "
        f"{len(NEW) - 62_840} bytes are missing\n"
    )


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (10, "the file is 10 bytes, an image's header alone has 24"),
        (5000, f"in segment 0 of 2: {DROM_END + 8 - 5000} bytes or more are missing"),
        (len(NEW) - 1, f"ends after {len(NEW) - 1} bytes of {len(NEW)}: 1 bytes are missing"),
    ],
)
def test_a_truncated_file_says_how_many_bytes_are_missing(board, server, size, words):
    printed, _ = fail(board, server, answer(NEW[:size], length=False))
    assert printed.startswith("truncated: ")
    assert words in printed


def test_what_follows_the_image_is_no_part_of_it(board, server):
    printed, _ = fail(board, server, answer(NEW + b"more of it" * 1000))
    assert printed == (
        f"trailing: bytes that are no part of it follow the image of {len(NEW)} bytes\n"
    )


def test_a_corrupted_digest_is_found_before_the_switch(board, server):
    printed, _ = fail(board, server, answer(patched(len(NEW) - 1, b"?")))
    assert printed.startswith("digest: the image is damaged: its SHA-256 is ")


def test_a_corrupted_body_is_found_before_the_switch(board, server):
    printed, _ = fail(board, server, answer(patched(0x8000, b"?")))
    assert printed.startswith("digest: the image is damaged: its SHA-256 is ")


def test_a_wrong_checksum_is_found_by_set_boot(board, server):
    body = patched(len(NEW) - 33, b"?")[:-32]
    printed, _ = fail(board, server, answer(body + hashlib.sha256(body).digest()))
    assert printed.startswith("not-bootable: ESP-IDF does not accept the image in ota_1 (checksum")


def test_lost_bytes_are_noticed_at_the_next_segment(board, server):
    # Its header is read from the wrong place, and makes no sense there.
    image = images.small_image([(0x3F400020, NEW[32:DROM_END]), (0x40080400, bytes(range(1, 129)))])
    printed, _ = fail(board, server, answer(image[:0x9000] + image[0x9008:]))
    assert printed.startswith(
        f"segment-length: segment 1 (at 0x{DROM_END:x}) has length 0x8070605, which cannot be: "
        "the file is damaged or bytes are missing before it"
    )


def test_a_status_that_is_no_success(board, server):
    printed, operations = fail(board, server, answer(b"gone", status="404 Not Found"))
    assert printed == f"http-status: HTTP Error: 404 Not Found: {server.url('/app.bin')}\n"
    assert operations == []


def test_nobody_listens(board):
    printed = output(board, try_update("http://127.0.0.1:1/app.bin"))
    assert printed == "connect: cannot connect to 127.0.0.1 port 1: ECONNREFUSED\n"
    printed = output(board, try_update("no/such/file.bin"))
    assert printed == "not-found: cannot open no/such/file.bin: ENOENT\n"


def test_wrong_sha_and_length(board, server):
    printed, _ = fail(board, server, answer(NEW), f", sha={'0' * 64!r}")
    assert printed.startswith("sha: SHA mismatch recv=")


def test_a_length_that_the_server_contradicts_is_refused_at_once(board, server):
    printed, operations = fail(board, server, answer(NEW), ", length=1000")
    assert printed == f"length: the file has {len(NEW)} bytes (expect 1000).\n"
    assert operations == []


# --- flash that loses bytes --------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [4096, 65536])
def test_a_sector_that_loses_bytes_once_is_written_again(board, server, block_size):
    server.answers["/app.bin"] = answer(NEW)
    at = OTA_1.offset + 0x12345
    board.flash.inject(FlashFault(FaultKind.LOST, at, 3, times=1))
    more = f", block_size={block_size}"
    assert output(board, try_update(server.url("/app.bin"), more)) == f"wrote {len(NEW)}\n"
    assert slot_content(board, len(NEW)) == NEW
    assert board.run().labels == ("ota_1",)


@pytest.mark.parametrize("block_size", [4096, 65536])
def test_flash_that_goes_on_losing_bytes_is_named(board, server, block_size):
    at = OTA_1.offset + 0x12345
    board.flash.inject(FlashFault(FaultKind.ZEROED, at, 3))
    printed, _ = fail(board, server, answer(NEW), f", block_size={block_size}")
    assert printed == (
        "flash: flash lost 3 bytes of ota_1, twice, at offset 0x12345, 0x12346, 0x12347\n"
    )


def test_without_verify_set_boot_still_refuses_what_flash_lost(board, server):
    board.flash.inject(FlashFault(FaultKind.ZEROED, OTA_1.offset + 0x12345, 3))
    printed, _ = fail(board, server, answer(NEW), ", verify=False")
    assert printed.startswith("not-bootable: ")


# --- servers -----------------------------------------------------------------------------------


def stall(connection: Connection) -> None:
    """Send half, then nothing until the board hangs up."""
    connection.wfile.write(answer(NEW)[: len(NEW) // 2])
    connection.rfile.read(1)


def reset(connection: Connection) -> None:
    """Send half, then a TCP reset."""
    connection.wfile.write(answer(NEW)[: len(NEW) // 2])
    connection.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.request.close()


BAD_SERVERS: dict[str, tuple[bytes | Callable[[Connection], None], str]] = {
    "stalls": (stall, "timeout: no answer from "),
    "resets": (reset, "connection: "),
    "no answer": (b"", "connection: "),
    "not HTTP": (b"220 ftp ready\r\n", "protocol: "),
    "no end of a header": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 9000, "protocol: "),
    "no end of headers": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000, "protocol: "),
    "negative length": (answer(NEW, "Content-Length: -5", length=False), "protocol: "),
    "two lengths": (answer(NEW, "Content-Length: 5"), "protocol: "),
    "silly length": (answer(NEW, "Content-Length: 99999999999", length=False), "protocol: "),
    "gzip": (answer(NEW, "Content-Encoding: gzip"), "protocol: "),
    "bad chunk": (answer(b"zz\r\n", "Transfer-Encoding: chunked", length=False), "protocol: "),
    "negative chunk": (answer(b"-1\r\n", "Transfer-Encoding: chunked", length=False), "protocol: "),
    "overlong chunk": (
        answer(b"8\r\n" + NEW[:9000], "Transfer-Encoding: chunked", length=False),
        "protocol: ",
    ),
    "chunk cut off": (
        answer(b"ffff\r\n" + NEW[:9000], "Transfer-Encoding: chunked", length=False),
        "short: ",
    ),
    "redirect loop": (
        answer(b"", "Location: /app.bin", status="302 Found"),
        "redirect: more than 8",
    ),
    "redirect to nowhere": (answer(b"", status="301 Moved"), "http-status: HTTP Error: 301"),
    "redirect to another scheme": (
        answer(b"", "Location: ftp://127.0.0.1/x", status="302 Found"),
        "address: not an http:// or https:// URL: ftp://127.0.0.1/x",
    ),
}


@pytest.mark.parametrize("name", BAD_SERVERS)
def test_a_bad_server_is_told_from_a_bad_image(board, server, name):
    reply, words = BAD_SERVERS[name]
    printed, _ = fail(board, server, reply, ", timeout=0.3")
    assert printed.startswith(words)
