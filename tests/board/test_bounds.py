"""Files without an end, sizes beyond all measure: an update ends, and lets other tasks run."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from mpota.formats.bundle import Bundle
from mpota.formats.frames import compress
from mpota.formats.tar import Member, write_tar
from mpota.release.build import Content
from mpota.virtual.board import Board, End

from tests.support import boards, releases, web
from tests.support.boards import OTA_1, OTADATA
from tests.support.data_payloads import ASSETS, bundle_of, data
from tests.support.data_payloads import NEW as DATA
from tests.support.hostile import FALLBACK, NEW, TRY, put, slot
from tests.support.ota_board import merged_firmware
from tests.support.releases import make


@pytest.fixture
def board(tmp_path: Path) -> Board:
    made = releases.board(tmp_path, table=(*boards.OTA_TABLE, ASSETS))
    made.flash.write(OTA_1.offset, FALLBACK)
    made.flash.restart_count()
    return made


def endless(head: bytes, more: bytes, *, chunked: bool = False) -> Callable[[web.Handler], None]:
    """An answer that never ends: ``head``, then ``more`` again and again."""

    def answer(handler: web.Handler) -> None:
        handler.answer("200 OK", ["Transfer-Encoding: chunked"] if chunked else [])
        pieces = [head[at : at + 4096] for at in range(0, len(head), 4096)]
        while True:
            piece = pieces.pop(0) if pieces else more
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            handler.asked.sent += len(piece)

    return answer


def bundle() -> bytes:
    return make(Content("app", "app.bin", NEW)).to_bytes()


# name -> (what comes first, what comes for ever, outcome). A merged firmware may have more behind
# its app: the rest is not read.
ENDLESS: dict[str, tuple[bytes, bytes, str]] = {
    "zeros behind a bundle": (bundle(), bytes(4096), "tar"),
    "bytes behind a bundle": (bundle(), b"x" * 4096, "tar"),
    "members behind a bundle": (bundle()[:-1024], write_tar([Member("x", b"x")])[:1024], "member"),
    "zeros behind an image": (NEW, bytes(4096), "trailing"),
    "bytes behind an image": (NEW, b"x" * 4096, "trailing"),
    "0xff behind an image": (NEW, b"\xff" * 4096, "trailing"),
    "0xe7 behind an image": (NEW, b"\xe7" * 4096, "trailing"),
    "bytes behind a merged firmware": (merged_firmware(NEW), b"x" * 4096, "INSTALLED"),
    "bytes behind a compressed image": (compress(NEW).to_bytes(), b"x" * 4096, "frame"),
    "a bootloader and 0xff": (merged_firmware(NEW)[:0x7000], b"\xff" * 4096, "no-table"),
    "a bootloader and zeros": (merged_firmware(NEW)[:0x6000], bytes(4096), "no-table"),
    "0xff": (b"", b"\xff" * 4096, "no-table"),
    "zeros": (b"", bytes(4096), "not-an-image"),
    "manifests": (b"manifest.json\0", b"manifest.json\0".ljust(512, b"\0"), "tar"),
    "JSON": (b"{", b" " * 4096, "not-an-image"),
}


@pytest.mark.parametrize("chunked", [False, True], ids=["connection", "chunked"])
@pytest.mark.parametrize("how", ["from_file", "fetch"])
def test_what_never_ends_is_given_up(
    board: Board,
    server: web.WebServer,
    how: str,
    chunked: bool,
    hostile: Callable[..., None],
) -> None:
    problems = []
    start = board.flash.snapshot()
    for name, (head, more, expected) in ENDLESS.items():
        server.files["/x"] = endless(head, more, chunked=chunked)
        server.requests.clear()
        url = server.url("/x")
        call = f"update.from_file({url!r}, verbose=False, reboot=False, max_failures=1)"
        if how == "fetch":
            call = f"base\n    import asyncio\n    asyncio.run(ota.update.fetch({url!r}, max_failures=1))"  # fmt: skip # noqa: E501
        run = board.run(TRY.format(call=call), timeout_s=60)
        said = run.output.split()
        code = said[1] if said[:1] == ["REFUSED"] else "".join(said)
        if (run.end, code) != (End.IDLE, expected):
            problems.append(f"{name}: {run.end} {run.output} {run.traceback}")
        if expected != "INSTALLED" and slot(board)[:32] not in (b"\xff" * 32, FALLBACK[:32]):
            problems.append(f"{name}: {slot(board)[:32].hex()}")
        if server.sent > 0x800000:
            problems.append(f"{name}: {server.sent} bytes")
        board.flash.restore(start)
    assert not problems, "\n".join(problems)
    hostile(len(ENDLESS))


@pytest.mark.parametrize("kind", ["manifest", "signature", "payload", "json"])
def test_what_is_published_beside_each_other_has_an_end_too(
    board: Board, server: web.WebServer, kind: str
) -> None:
    content = Content("app", "app.bin", NEW)
    manifest = releases.manifest(content)
    text = make(content).manifest_bytes.replace(b'"member"', b'"url"')
    assert manifest
    server.files["/manifest.json"] = web.File(text)
    server.files["/manifest.sig"] = lambda handler: handler.answer(
        "404 Not Found", ["Content-Length: 0"]
    )
    server.files["/app.bin"] = web.File(NEW)
    url = server.url("/manifest.json")
    call = f"release.install({url!r}, reboot=False, max_failures=1)"
    expected = {"manifest": "manifest", "signature": "signature"}.get(kind)
    if kind == "manifest":
        server.files["/manifest.json"] = endless(text, b" " * 4096)
    elif kind == "signature":
        server.files["/manifest.sig"] = endless(b"\xe7", bytes(4096))
    elif kind == "payload":  # no more is read than belongs to it
        server.files["/app.bin"] = endless(NEW, bytes(4096))
    else:
        expected = "too-long"
        server.files["/x.json"] = endless(b"{", b" " * 4096)
        url = server.url("/x.json")
        call = f"update.from_json({url!r}, verbose=False, reboot=False, max_failures=1)"
    run = board.run(TRY.format(call=call), timeout_s=60)
    if kind == "payload":
        assert run.output == "INSTALLED\n", run.console
        return
    assert run.output.startswith(f"REFUSED {expected} "), run.console
    assert slot(board)[:32] in (b"\xff" * 32, FALLBACK[:32])


# --- sizes --------------------------------------------------------------------------------------


def tar_size(size: bytes, name: str = "app.bin") -> bytes:
    """A bundle in which the header of a member says another size."""
    made = bytearray(bundle())
    at = made.index(name.encode().ljust(100, b"\0"))
    made[at + 124 : at + 136] = size
    header = made[at : at + 512]
    header[148:156] = b" " * 8
    made[at + 148 : at + 156] = b"%06o\0 " % sum(header)
    return bytes(made)


def manifest_with(**fields: object) -> bytes:
    found = Bundle.from_bytes(bundle())
    document = json.loads(found.manifest_bytes)
    document["payloads"][0] |= fields
    return write_tar([Member("manifest.json", json.dumps(document).encode()),
                      Member("app.bin", NEW)])  # fmt: skip


def skipped(size: int) -> bytes:
    """A form that this board leaves out, of ``size`` bytes as manifest and tar header say."""
    found = Bundle.from_bytes(bundle())
    document = json.loads(found.manifest_bytes)
    document["payloads"][0]["encoded"] = [
        {"encoding": "delta", "from": "0" * 64, "size": size, "sha256": "0" * 64, "member": "d"}
    ]
    made = bytearray(
        write_tar(
            [
                Member("manifest.json", json.dumps(document).encode()),
                Member("d", b"x"),
                Member("app.bin", NEW),
            ]
        )
    )
    at = made.index(b"d".ljust(100, b"\0"))
    made[at + 124 : at + 136] = b"%011o\0" % size
    header = made[at : at + 512]
    header[148:156] = b" " * 8
    made[at + 148 : at + 156] = b"%06o\0 " % sum(header)
    return bytes(made)


def segment(size: int) -> bytes:
    return NEW[:28] + struct.pack("<I", size) + NEW[32:]


def frames(size: int) -> bytes:
    made = compress(NEW).to_bytes()
    return made[:8] + struct.pack("<I", size) + made[12:]


SIZES: dict[str, bytes] = {
    "member of 8 GiB": tar_size(b"77777777777\0"),
    "member of 64 GiB": tar_size(b"777777777777"),
    "member of 1 GiB": tar_size(b"10000000000\0"),
    "manifest of 8 GiB": tar_size(b"77777777777\0", "manifest.json"),
    "manifest of 64 GiB": tar_size(b"777777777777", "manifest.json"),
    "app of 2 GiB": manifest_with(size=0x7FFFFFFF),
    "app of 1 GiB": manifest_with(size=0x40000000),
    "app of 8 GiB": manifest_with(size=0x200000000),
    "app of many digits": manifest_with(size=int("9" * 400)),
    "app of a negative size": manifest_with(size=-1),
    "app of no bytes": manifest_with(size=0),
    "left out, 2 GiB": skipped(0x7FFFFFFF),
    "left out, 1 GiB": skipped(0x40000000),
    "left out, 1 GiB and a byte": skipped(0x40000001),
    "segment of 4 GiB": segment(0xFFFFFFFC),
    "segment of 2 GiB": segment(0x80000000),
    "segment of 16 MiB": segment(0xFFFFFC),
    "frames of 4 GiB": frames(0xFFFFFFFF),
    "frames of 2 GiB": frames(0x80000000),
    "frames of 1 GiB": frames(0x3FFFFFFF),
    "frames of no bytes": frames(0),
    "frames larger than the slot": frames(0x40001),
}


@pytest.mark.parametrize("how", ["file", "http", "fetch"])
def test_sizes_beyond_all_measure_are_refused(
    board: Board,
    server: web.WebServer,
    how: str,
    hostile: Callable[..., None],
) -> None:
    problems = []
    start = board.flash.snapshot()
    for name, content in SIZES.items():
        url = put(board, content)
        if how != "file":
            server.files["/x"] = web.File(content)
            url = server.url("/x")
        more = "" if how == "file" else ", max_failures=1"
        call = f"update.from_file({url!r}, verbose=False, reboot=False{more})"
        if how == "fetch":
            call = f"base\n    import asyncio\n    asyncio.run(ota.update.fetch({url!r}{more}))"
        run = board.run(TRY.format(call=call), timeout_s=60)
        if (run.end, run.traceback) != (End.IDLE, "") or not run.output.startswith("REFUSED "):
            problems.append(f"{name}: {run.end} {run.output} {run.traceback}")
        if slot(board)[:32] not in (b"\xff" * 32, FALLBACK[:32]):
            problems.append(f"{name}: {slot(board)[:32].hex()}")
        board.flash.restore(start)
    assert not problems, "\n".join(problems)
    hostile(len(SIZES))


@pytest.mark.parametrize(
    "length", ["99999999999999999999", "4294967296", "2147483648", "1073741824", "-1", "1e9", ""]
)
def test_a_content_length_beyond_all_measure_is_refused(
    board: Board, server: web.WebServer, length: str, hostile: Callable[..., None]
) -> None:
    def answer(handler: web.Handler) -> None:
        handler.answer("200 OK", [f"Content-Length: {length}"])
        handler.wfile.write(NEW)
        handler.rfile.read(1)

    server.files["/x"] = answer
    call = f"update.from_file({server.url('/x')!r}, verbose=False, reboot=False, max_failures=1)"
    run = board.run(TRY.format(call=call), timeout_s=60)
    assert run.output.startswith("REFUSED "), run.console
    assert slot(board)[:32] in (b"\xff" * 32, FALLBACK[:32])
    hostile()


# --- other tasks --------------------------------------------------------------------------------

TICKS = """
import asyncio, link, ota
calls = {{}}
worst = []
def counted(kind):
    calls[kind] = calls.get(kind, 0) + 1
real = link.call
def call(kind, argument=0, payload=b""):
    if 0x90000 <= argument < 0xD0000:
        pass  # the file system: what littlefs does for a call is its own business, as NVS is
    elif kind == link.ERASE or (kind == link.WRITE and len(payload) > 1000):
        counted("erase" if kind == link.ERASE else "write")
    elif kind == link.SET_BOOT:
        counted("set_boot")
    return real(kind, argument, payload)
link.call = call
done = False
turns = 0
async def other():
    global turns
    while not done:
        turns += 1
        if calls:
            worst.append((calls.get("erase", 0), calls.get("write", 0)))
            calls.clear()
        await asyncio.sleep_ms(0)
async def main():
    global done
    task = asyncio.create_task(other())
    await asyncio.sleep_ms(0)
    try:
        await ota.update.fetch({url!r})
        print("INSTALLED", end=" ")
    except ota.OTAError as error:
        print(error.code, end=" ")
    done = True
    await task
asyncio.run(main())
print(max(erases for erases, _ in worst), max(writes for _, writes in worst), len(worst), turns)
"""


def released(content: bytes = NEW) -> bytes:
    return make(Content("app", "app.bin", content)).to_bytes()


TASKS: dict[str, Callable[[], bytes]] = {
    "image": lambda: NEW,
    "merged": lambda: merged_firmware(NEW),
    "compressed": lambda: compress(NEW).to_bytes(),
    "bundle": released,
    "data": lambda: bundle_of(data(DATA)),
    "compressed data": lambda: bundle_of(data(DATA, is_packed=True)),
}


@pytest.mark.parametrize("null_erase", ["erases", "accepted"])
@pytest.mark.parametrize("kind", TASKS)
def test_another_task_waits_for_one_flash_call_at_most(
    board: Board, kind: str, null_erase: str
) -> None:
    board.heap_size = 200 * 1024
    # All of the flash that is written has other content, so everything is erased.
    for part in (OTA_1, ASSETS):
        board.flash.erase(part.offset, part.size)
        board.flash.write(part.offset, b"\x5a" * part.size)
    assert board.run("").labels == ("ota_0",)
    # That 64 KiB are erased at once is known, or known not to be: the first try costs two erases.
    board.null_erase = null_erase  # type: ignore[assignment]
    first = put(board, NEW)
    board.run(f"import ota; ota.update.from_file({first!r}, verbose=False, reboot=False)")
    board.flash.erase(OTADATA.offset, OTADATA.size)
    for part in (OTA_1, ASSETS):
        board.flash.erase(part.offset, part.size)
        board.flash.write(part.offset, b"\x5a" * part.size)
    run = board.run(TICKS.format(url=put(board, TASKS[kind]())))
    assert (run.end, run.traceback) == (End.IDLE, ""), run.console
    said, erases, writes, busy, turns = run.output.split()
    assert said == "INSTALLED", run.console
    assert (int(erases), int(writes)) in ((1, 1), (1, 0), (0, 1)), run.output
    assert int(turns) >= int(busy) > 24
