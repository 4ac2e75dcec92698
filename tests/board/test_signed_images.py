"""Signed app images without a release: taken only where the owner said so, judged by their end."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from mpota.formats.frames import compress
from mpota.formats.image import Image
from mpota.release.build import Content, sign_app
from mpota.virtual.board import Board, End

from tests.support import boards, releases, web
from tests.support.hostile import (
    FALLBACK,
    FOREIGN,
    HEAD,
    NEW,
    OTA_1,
    OTHER,
    RETIRED,
    SECTOR,
    TRUSTED,
    TRY,
    UPDATE,
    after_damage,
    noisy,
    put,
    said,
    slot,
    touched,
)
from tests.support.ota_board import merged_firmware
from tests.support.releases import key, make

COUNTER = 9
TRUST = "import ota; t = ota.keys.load(); print(t.counter, t.name, t.version, len(t.trusted))"


def image(secure_version: int, version: str = "v1.27.0") -> bytes:
    made = noisy(version, 0x19000)
    return sealed(made[:36] + struct.pack("<I", secure_version) + made[40:])


def sealed(made: bytes) -> bytes:
    return Image.from_bytes(made).sealed().data


def signed(data: bytes, *keys: int) -> bytes:
    return sign_app(data, "x", tuple(key(number) for number in keys or (TRUSTED,)))


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """Has confirmed release 1.0 of "demo", counter 9; secure_version of what runs is 3."""
    made = releases.board(tmp_path, apps={boards.OTA_0.offset: image(3, "v1.26.1")})
    trusted, retired = (key(n).public.digest.hex() for n in (TRUSTED, RETIRED))
    certs = Content("certs", "ca.pem", b"-----BEGIN CERTIFICATE-----\n")
    (tmp_path / "first.bundle").write_bytes(
        make(
            certs,
            keys=(key(RETIRED),),
            version="1.0",
            counter=COUNTER,
            add_keys=(trusted,),
            retire_keys=(retired,),
        ).to_bytes()
    )
    made.run(
        "with open('main.py', 'w') as f: f.write('import ota; ota.rollback.cancel()')\n"
        f"import ota; ota.keys.add({retired!r})\nota.release.install('/frozen/first.bundle')"
    )
    assert made.run(TRUST).output == "9 demo 1.0 1\n"
    made.flash.write(OTA_1.offset, FALLBACK)
    made.flash.restart_count()
    return made


@pytest.fixture
def allowing(board: Board) -> Board:
    run = board.run("import ota; ota.keys.allow_images(True)")
    assert (run.end, run.traceback) == (End.IDLE, ""), run.console
    return board


def give(server: web.WebServer, data: bytes, *, ranges: bool = True) -> str:
    def answer(handler: web.Handler) -> None:
        asked = handler.asked.headers.get("range", "")
        body, line, more = data, "200 OK", []
        if asked and ranges:
            first, last = asked[6:].split("-")
            start = int(first) if first else max(0, len(data) - int(last))
            body, line = data[start:], "206 Partial Content"
            more = [f"Content-Range: bytes {start}-{len(data) - 1}/{len(data)}"]
        handler.answer(line, [*more, "Accept-Ranges: bytes", f"Content-Length: {len(body)}"])
        handler.wfile.write(body)
        handler.asked.sent += len(body)

    server.files["/image"] = answer
    server.requests.clear()
    return server.url("/image")


def stream(path: str) -> str:
    return f"base\n    with ota.update.OTA(verbose=False) as u: u.from_stream(open({path!r}, 'rb'))"


def pieces(path: str) -> str:
    return (
        f"base\n    u = ota.update.OTA(verbose=False); f = open({path!r}, 'rb')\n"
        "    while True:\n        data = f.read(1000)\n        if not data: break\n"
        "        u.write(data)\n    u.close()"
    )


def test_an_old_signed_image_is_refused_unless_the_owner_says_so(
    board: Board, server: web.WebServer
) -> None:
    old = signed(image(3, "v1.20.0"))
    path = put(board, old)
    calls = [
        UPDATE.format(path, ""),
        UPDATE.format(give(server, old), ", max_failures=1"),
        stream(path),
        pieces(path),
    ]
    for call in calls:
        run = board.run(TRY.format(call=call))
        assert run.output.startswith("REFUSED unsigned "), run.console
        assert "make one by `mpota bundle --key`" in run.output
        assert "allow_images(True)" in run.output
        assert not touched(run.operations)
    assert board.run(TRUST).output == "9 demo 1.0 1\n"
    assert after_damage(board) == ("ota_1",)


@pytest.mark.parametrize("how", ["file", "http", "asyncio"])
def test_where_it_is_allowed_a_signed_image_is_taken_and_name_and_counter_stay(
    allowing: Board, server: web.WebServer, how: str
) -> None:
    data = signed(image(3))
    url = put(allowing, data) if how == "file" else give(server, data)
    call = UPDATE.format(url, "")
    if how == "asyncio":
        call = f"base\n    import asyncio\n    asyncio.run(ota.update.fetch({url!r}))"
    assert said(allowing, call) == "INSTALLED"
    assert slot(allowing) == data + b"\xff" * (OTA_1.size - len(data))
    run = allowing.run(f"import ota; ota.rollback.cancel()\n{TRUST}")
    assert run.labels == ("ota_1",)
    assert run.output == "9 demo 1.0 1\n"
    older = make(Content("app", "app.bin", OTHER), keys=(key(TRUSTED),), version="2", counter=8)
    call = f"release.install({put(allowing, older.to_bytes(), 'older')!r}, reboot=False)"
    assert said(allowing, call) == "counter"
    if how == "http":
        assert [r.headers.get("range") for r in server.requests] == [f"bytes=-{SECTOR}", None]


def broken(change: Callable[[bytearray], None]) -> bytes:
    data = bytearray(signed(image(3)))
    change(data)
    return bytes(data)


def flip(at: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[at] ^= 1

    return change


def forged_block(data: bytearray) -> None:
    """A block that is whole, its CRC-32 too, with a signature by nobody."""
    import zlib

    data[-SECTOR + 900] ^= 1
    block = bytes(data[-SECTOR : -SECTOR + 1196])
    data[-SECTOR + 1196 : -SECTOR + 1200] = struct.pack("<I", zlib.crc32(block))


# name -> (file, code): refused by the end of the file, before the first erase.
FORGED: dict[str, tuple[bytes, str]] = {
    "not signed": (image(3), "unsigned"),
    "padded and not signed": (image(3).ljust(0x1B000, b"\xff"), "unsigned"),
    "foreign key": (signed(image(3), FOREIGN), "untrusted"),
    "retired key": (signed(image(3), RETIRED), "retired-key"),
    "signature changed": (broken(flip(-SECTOR + 900)), "signature"),
    "signature forged": (broken(forged_block), "signature"),
    "digest in the block changed": (broken(flip(-SECTOR + 4)), "signature"),
    "signature cut": (signed(image(3))[:-100], "unsigned"),
    "zeros for a signature": (signed(image(3))[:-SECTOR] + bytes(SECTOR), "unsigned"),
    "0xE7 for a signature": (signed(image(3))[:-SECTOR] + b"\xe7" * SECTOR, "signature"),
    "bytes behind the signature": (signed(image(3)) + b"\0" * 16, "unsigned"),
    "secure_version falls": (signed(image(2)), "secure-version"),
    "secure_version 0": (signed(image(0)), "secure-version"),
    "merged firmware": (merged_firmware(signed(image(3))), "unsigned"),
    "compressed": (compress(signed(image(3))).to_bytes(), "unsigned"),
    "a signature alone": (signed(image(3))[-SECTOR:], "not-an-image"),
    "less than a sector": (signed(image(3))[-1216:], "unsigned"),
}
# Only the bytes show it: the signature is good, and of other content.
SWAPPED: dict[str, tuple[bytes, str]] = {
    "body changed": (broken(flip(0x8000)), "digest"),
    "body of another app": (
        sealed(image(3)[:0x3000] + b"evil" + image(3)[0x3004:]).ljust(
            len(signed(image(3))) - SECTOR, b"\xff"
        )
        + signed(image(3))[-SECTOR:],
        "digest",
    ),
    "older signature, newer body": (
        signed(image(4))[:-SECTOR] + signed(image(3))[-SECTOR:],
        "digest",
    ),
}


@pytest.mark.parametrize("how", ["file", "http"])
def test_what_no_trusted_key_has_signed_is_refused_before_the_first_erase(
    allowing: Board,
    server: web.WebServer,
    how: str,
    hostile: Callable[..., None],
) -> None:
    problems = []
    for name, (data, expected) in FORGED.items():
        url = put(allowing, data) if how == "file" else give(server, data)
        more = "" if how == "file" else ", max_failures=1"
        run = allowing.run(TRY.format(call=UPDATE.format(url, more)))
        assert (run.end, run.traceback) == (End.IDLE, ""), run.console
        if not run.output.startswith(f"REFUSED {expected} "):
            problems.append(f"{name}: {run.output}")
        if touched(run.operations):
            problems.append(f"{name}: {touched(run.operations)}")
    assert not problems, "\n".join(problems)
    assert slot(allowing).startswith(FALLBACK)
    assert after_damage(allowing) == ("ota_1",)
    hostile(len(FORGED))


@pytest.mark.parametrize("name", SWAPPED)
def test_a_good_signature_of_other_content_leaves_no_image(
    allowing: Board, server: web.WebServer, name: str
) -> None:
    data, expected = SWAPPED[name]
    for url in (put(allowing, data), give(server, data)):
        assert said(allowing, UPDATE.format(url, "")) == expected
        assert slot(allowing)[:HEAD] == b"\xff" * HEAD
        assert after_damage(allowing) == (None,)


def test_a_source_that_cannot_give_its_end_first_is_refused(
    allowing: Board, server: web.WebServer
) -> None:
    data = signed(image(3))
    path = put(allowing, data)
    for call in (
        UPDATE.format(give(server, data, ranges=False), ", max_failures=1"),
        stream(path),
        pieces(path),
    ):
        run = allowing.run(TRY.format(call=call))
        assert run.output.startswith("REFUSED unsigned "), run.console
        assert "which this source cannot give first" in run.output
        assert not touched(run.operations)
    assert after_damage(allowing) == ("ota_1",)


def test_what_an_old_signature_left_in_the_slot_does_not_vouch(allowing: Board) -> None:
    """The image that comes is not signed, and a good sector of another stands behind its place."""
    data = image(3)
    allowing.flash.erase(OTA_1.offset, OTA_1.size)
    allowing.flash.write(OTA_1.offset + 0x1A000, signed(image(3))[-SECTOR:])
    run = allowing.run(TRY.format(call=UPDATE.format(put(allowing, data), "")))
    assert run.output.startswith("REFUSED unsigned "), run.console
    assert not touched(run.operations)


def test_it_can_be_forbidden_again_and_ends_with_the_keys(allowing: Board) -> None:
    path = put(allowing, signed(image(3)))
    allowing.run("import ota; ota.keys.allow_images(False)")
    assert said(allowing, UPDATE.format(path, "")) == "unsigned"
    again = "import ota; k = ota.keys.trusted()[0]; ota.keys.allow_images(True); ota.keys.clear()"
    allowing.run(f"{again}; ota.keys.add(k)")
    assert said(allowing, UPDATE.format(path, "")) == "unsigned"


@pytest.mark.parametrize("kind", ["image", "merged", "compressed"])
def test_without_keys_name_version_and_counter_survive_what_is_installed(
    tmp_path: Path, kind: str
) -> None:
    board = releases.board(tmp_path)
    certs = Content("certs", "ca.pem", b"-----BEGIN CERTIFICATE-----\n")
    put(board, make(certs, version="1.5", counter=4).to_bytes(), "first.bundle")
    board.run(
        "with open('main.py', 'w') as f: f.write('import ota; ota.rollback.cancel()')\n"
        "import ota; ota.release.install('/frozen/first.bundle')"
    )
    assert board.run(TRUST).output == "4 demo 1.5 0\n"
    data = {"image": NEW, "merged": merged_firmware(NEW), "compressed": compress(NEW).to_bytes()}[
        kind
    ]
    assert said(board, UPDATE.format(put(board, data), "")) == "INSTALLED"
    assert board.run().labels == ("ota_1",)  # and is confirmed
    assert board.run(TRUST).output == "4 demo 1.5 0\n"
    for fields, code in (
        ({"version": "2", "counter": 3}, "counter"),
        ({"version": "1.4", "counter": 4}, "downgrade"),
        ({"version": "2", "counter": 4, "name": "other"}, "wrong-name"),
    ):
        made = make(Content("app", "app.bin", OTHER), **fields).to_bytes()  # type: ignore[arg-type]
        assert said(board, f"release.install({put(board, made)!r}, reboot=False)") == code
