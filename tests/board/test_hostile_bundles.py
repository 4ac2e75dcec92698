"""Bundles that a board must refuse: each with words of its own, nothing switched."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from mpota.errors import MpotaError
from mpota.formats.bundle import Bundle
from mpota.formats.tar import Member, write_tar
from mpota.release.build import Content, verify
from mpota.release.signing import sign
from mpota.virtual.board import Board, End
from mpota.virtual.flash import Operation

from tests.support import boards, releases
from tests.support.releases import app, key, make, tree

COUNTER = 5
TRUSTED, OTHER, RETIRED = 0, 1, 2

INSTALL = """
import ota
{before}
try:
    ota.release.install("/frozen/hostile.bundle", reboot=False)
    print("INSTALLED")
except ota.OTAError as error:
    print("REFUSED", error.code, error)
"""


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    """A board with keys, whose release 1.0 (files only, counter 5) is confirmed."""
    directory = tmp_path_factory.mktemp("frozen")
    made = releases.board(directory)
    first = make(
        tree("1"), keys=(key(RETIRED),), version="1.0", counter=COUNTER,
        add_keys=(key(TRUSTED).public.digest.hex(),),
        retire_keys=(key(RETIRED).public.digest.hex(),),
    )  # fmt: skip
    (directory / "first.bundle").write_bytes(first.to_bytes())
    run = made.run(
        f"import ota; ota.keys.add({key(RETIRED).public.digest.hex()!r})\n"
        "ota.release.install('/frozen/first.bundle')"
    )
    assert "runs v1.26.1 1" in run.output, run.console
    said = made.run("import ota; print(ota.keys.trusted(), ota.keys.counter())").output.split("\n")
    assert said[0] == f"{[key(TRUSTED).public.digest.hex()]} {COUNTER}"
    check_as_before(made)
    made.flash.restart_count()
    return made


def signed(*contents: Content, **fields: Any) -> bytes:
    """A bundle that is good but for what the arguments say."""
    given = {"counter": COUNTER} | fields
    return make(*contents, keys=(key(TRUSTED),), **given).to_bytes()


def members_of(*contents: Content) -> list[Member]:
    made = Bundle.from_bytes(signed(*(contents or (app(), tree("2")))))
    head = [Member("manifest.json", made.manifest_bytes)]
    head.append(Member("manifest.sig", made.signature or b""))
    return head + [Member(name, data) for name, data in made.members.items()]


def with_text(old: str, new: str, *contents: Content, **fields: Any) -> bytes:
    """A manifest with ``old`` exchanged and then signed, as mpota itself would never write it."""
    made = Bundle.from_bytes(signed(*(contents or (app(), tree("2"))), **fields))
    text = made.manifest_bytes.decode()
    assert old in text
    return with_manifest(text.replace(old, new, 1).encode(), dict(made.members))


def with_manifest(data: bytes, members: dict[str, bytes] | None = None) -> bytes:
    head = [Member("manifest.json", data), Member("manifest.sig", sign(data, (key(TRUSTED),)))]
    return write_tar(head + [Member(name, content) for name, content in (members or {}).items()])


def with_members(change: Callable[[list[Member]], list[Member]]) -> bytes:
    return write_tar(change(members_of()))


def with_files(archive: bytes) -> bytes:
    """A signed bundle whose files payload is this tar file."""
    sha256 = hashlib.sha256(archive).hexdigest()
    document = {
        "format": 1, "name": "demo", "version": "2.0", "counter": COUNTER,
        "payloads": [{"kind": "files", "size": len(archive), "sha256": sha256, "disk": 8192,
                      "member": "files.tar"}],
    }  # fmt: skip
    return with_manifest(json.dumps(document).encode(), {"files.tar": archive})


def patched(archive: bytes, offset: int, data: bytes, *, fix_checksum: bool = True) -> bytes:
    """``archive`` with a header field exchanged; offset counts from the start of the archive."""
    changed = bytearray(archive)
    changed[offset : offset + len(data)] = data
    if fix_checksum:
        start = offset // 512 * 512
        header = changed[start : start + 512]
        header[148:156] = b" " * 8
        changed[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    return bytes(changed)


def file_named(name: str, **header: bytes) -> bytes:
    """A tar file with one member of this name; ``kind`` and ``link`` exchange header fields."""
    archive = write_tar([Member("placeholder", b"x = 1\n")])
    archive = patched(archive, 0, name.encode().ljust(100, b"\0"))
    if "kind" in header:
        archive = patched(archive, 156, header["kind"])
    if "link" in header:
        archive = patched(archive, 157, header["link"].ljust(100, b"\0"))
    return archive


def flipped(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


def flip_signature(members: list[Member]) -> list[Member]:
    sector = members[1].data
    block = bytearray(flipped(sector[:1216], 900))
    block[1196:1200] = struct.pack("<I", zlib.crc32(bytes(block[:1196])))
    return [members[0], Member("manifest.sig", bytes(block) + sector[1216:]), *members[2:]]


def payload_changed(index: int, change: Callable[[bytes], bytes]) -> bytes:
    def exchange(members: list[Member]) -> list[Member]:
        found = members[index]
        return [*members[:index], Member(found.name, change(found.data)), *members[index + 1 :]]

    return with_members(exchange)


def one_payload(more: dict[str, Any] | None = None, **fields: Any) -> bytes:
    """A signed manifest with one payload as described, and no member; ``more``: of the manifest."""
    payload = {"size": 10, "sha256": "0" * 64, "member": "x.bin"} | fields
    payload = {name: value for name, value in payload.items() if value is not None}
    document = {"format": 1, "name": "demo", "version": "2.0", "chip": "esp32",
                "counter": COUNTER, "payloads": [payload]} | (more or {})  # fmt: skip
    return with_manifest(json.dumps(document).encode())


FORMAT_2 = {"format": 2, "ota": "0.2.0"}


def data_payload(
    partition: str = "romfs", *, kind: str = "data", more: dict[str, Any] = FORMAT_2, **fields: Any
) -> bytes:
    """A signed manifest of format 2 with 10 bytes of data in a chain, and no member."""
    form = {"encoding": "chained", "chain": "0" * 64, "size": 10, "sha256": "0" * 64,
            "member": "x.bin"} | fields  # fmt: skip
    form = {name: value for name, value in form.items() if value is not None}
    place = {"partition": partition} if kind == "data" else {}
    return one_payload(more, kind=kind, member=None, encoded=[form], **place)


def other_app() -> Content:
    """An image for another chip, in a release that claims to be for this one."""
    image = bytearray(boards.app("v1.27.0"))
    image[12] = 9
    image[-32:] = hashlib.sha256(image[:-32]).digest()
    return Content("app", "app.bin", bytes(image))


def broken_app() -> Content:
    image = boards.app("v1.27.0")
    return Content("app", "app.bin", flipped(image, 0x1000))


GOOD = signed(app(), tree("2"))
DIGESTS = [hex(number)[2:].rjust(64, "0") for number in range(4)]


def offset_of(name: str) -> int:
    """Where the header of a member stands in GOOD."""
    return GOOD.index(name.encode().ljust(100, b"\0"))


# name -> (bundle, code). The manifest is refused: nothing at all may be written.
BEFORE: dict[str, tuple[bytes, str]] = {
    "unsigned": (make(app(), tree("2"), counter=COUNTER).to_bytes(), "unsigned"),
    "bad signature": (with_members(flip_signature), "signature"),
    "damaged signature": (payload_changed(1, lambda data: flipped(data, 900)), "signature"),
    "blank signature": (payload_changed(1, lambda data: b"\xff" * 4096), "signature"),
    "short signature": (payload_changed(1, lambda data: data[:1216]), "signature"),
    "long signature": (payload_changed(1, lambda data: data + b"\xff"), "member"),
    "other key": (make(app(), keys=(key(OTHER),), counter=COUNTER).to_bytes(), "untrusted"),
    "retired key": (make(app(), keys=(key(RETIRED),), counter=COUNTER).to_bytes(), "retired-key"),
    "manifest changed after signing": (
        payload_changed(0, lambda data: data.replace(b'"2.0"', b'"2.1"')), "signature"),
    "older counter": (signed(app(), counter=COUNTER - 1), "counter"),
    "no counter": (signed(app(), counter=0), "counter"),
    "expired": (signed(app(), expires="2025-01-31T00:00:00Z"), "expired"),
    "expiry in no format": (with_text(
        "2025-01-31T", "2099-13-31 ", expires="2025-01-31T00:00:00Z"), "manifest"),
    "other chip": (signed(app(), chip="esp32s3"), "wrong-chip"),
    "other board": (signed(app(), board="Generic ESP32 module"), "wrong-board"),
    "other product": (signed(app(), name="doorbell"), "wrong-name"),
    "from a newer version": (signed(app(), from_version="1.1"), "from-version"),
    "modules for another MicroPython": (signed(tree("2"), chip=None, mpy=5), "mpy"),
    "native modules for another chip": (signed(tree("2"), chip=None, mpy=0x2F06), "mpy"),
    "modules for a text": (one_payload({"x-mpy": "6"}, kind="certs"), "manifest"),
    "newer format": (with_text('"format": 1', '"format": 2'), "manifest"),
    "duplicate key": (with_text('"version": "2.0"', '"version": "2.0", "counter": 9'), "manifest"),
    "duplicate key in payload": (with_text('"kind": "app"', '"kind": "app", "size": 1'),
                                 "manifest"),
    "duplicate key, escaped": (with_text('"version": "2.0"',
                                         '"version": "2.0", "versi\\u006fn": "3.0"'), "manifest"),
    "unknown field": (with_text('"chip"', '"chop"'), "manifest"),
    "unknown kind": (with_text('"kind": "app"', '"kind": "boot"'), "manifest"),
    "number with a point": (with_text('"counter": 5', '"counter": 5.0'), "manifest"),
    "number with an exponent": (with_text('"counter": 5', '"counter": 5e0'), "manifest"),
    "negative number": (with_text('"counter": 5', '"counter": -5'), "manifest"),
    "huge number": (with_text('"counter": 5', '"counter": 99999999999999999999'), "manifest"),
    "number over the limit": (with_text('"counter": 5', '"counter": 2147483648'), "manifest"),
    "missing comma": (with_text('"format": 1,', '"format": 1'), "manifest"),
    "more behind the manifest": (with_manifest(b'{"format": 1} {}'), "manifest"),
    "not UTF-8": (with_manifest(b'{"format": 1, "x-\xff": 1}'), "manifest"),
    "nested": (with_manifest(b'{"x-":' + b"[" * 500 + b"]" * 500 + b"}"), "manifest"),
    "manifest cut short": (with_manifest(b'{"format": 1, "name": "de'), "manifest"),
    "manifest too large": (with_manifest(b'{"format": 1, "x-": "' + b"x" * 8192 + b'"}'), "member"),
    "manifest is a list": (with_manifest(b"[1]"), "manifest"),
    "two app payloads": (with_text('"kind": "files"', '"kind": "app"'), "manifest"),
    "payload without digest": (one_payload(kind="certs", sha256=None), "manifest"),
    "payload without place": (one_payload(kind="certs", member=None), "manifest"),
    "payload with a digest too short": (one_payload(kind="certs", sha256="0" * 63), "manifest"),
    "member that climbs": (one_payload(kind="certs", member="../x"), "manifest"),
    "member that is the manifest": (one_payload(kind="certs", member="manifest.sig"), "manifest"),
    "app larger than the slot": (one_payload(kind="app", size=0x40001), "too-long"),
    "app of two GiB": (one_payload(kind="app", size=0x7FFFFFFF), "too-long"),
    "files larger than the disk": (one_payload(kind="files", disk=0x40000), "disk-full"),
    "certs larger than the disk": (one_payload(kind="certs", size=0x50000), "disk-full"),
    "only a delta": (one_payload(kind="app", member=None, encoded=[
        {"encoding": "delta", "from": "0" * 64, "size": 9, "sha256": "0" * 64, "member": "d"}]),
        "no-form"),
    "payload to be fetched": (one_payload(kind="certs", member=None, url="x.pem"), "no-form"),
    "data for no partition": (data_payload("romfs"), "no-partition"),
    "data over nvs": (data_payload("nvs"), "no-partition"),
    "data over otadata": (data_payload("otadata"), "no-partition"),
    "data over the file system": (data_payload("vfs"), "no-partition"),
    "data over an app": (data_payload("ota_1"), "no-partition"),
    "data without a chain": (one_payload(kind="data", partition="romfs"), "no-chain"),
    "data without a chain, compressed": (
        data_payload(encoding="deflate", chain=None), "no-chain"),
    "data in a chain of which the link is missing": (data_payload(chain=None), "manifest"),
    "data in a chain with half a link": (data_payload(chain="0" * 63), "manifest"),
    "data in a chain with a link that is a list": (data_payload(chain=["0" * 64]), "manifest"),
    "data in a chain that is longer": (data_payload(size=11), "manifest"),
    "data in a chain that ends in a link": (data_payload(size=4128), "manifest"),
    "data in a chain, format 1": (data_payload(more={}), "manifest"),
    "link of what is no chain": (data_payload(encoding="deflate"), "manifest"),
    "link of an app": (data_payload(kind="app"), "manifest"),
    "chain for an app": (data_payload(kind="app", chain=None), "no-form"),
    "delta for data": (data_payload(encoding="delta", chain=None), "no-chain"),
    "older version": (signed(app(), version="0.9"), "downgrade"),
    "older version of the same release": (signed(app(), version="1.0-rc1"), "downgrade"),
    "downgrade in format 1": (one_payload({"allow_downgrade": True}, kind="certs"), "manifest"),
    "downgrade that is a number": (
        one_payload(FORMAT_2 | {"allow_downgrade": 1}, kind="certs"), "manifest"),
    "downgrade that is a text": (
        one_payload(FORMAT_2 | {"allow_downgrade": "true"}, kind="certs"), "manifest"),
    "downgrade with an older counter": (
        signed(app(), version="0.9", allow_downgrade=True, counter=COUNTER - 1), "counter"),
    "format of a later ota": (one_payload({"format": 3, "ota": "0.3.1"}, kind="certs"), "format"),
    "format of who knows what": (one_payload({"format": 2147483647}, kind="certs"), "format"),
    "format of a later ota, all else unknown": (
        with_manifest(b'{"format": 7, "ota": "1.0", "payloads": 5, "more": [{}]}'), "format"),
    "format 2 of a later ota": (one_payload({"format": 2, "ota": "0.2.1"}, kind="certs"), "format"),
    "format 2 without ota": (one_payload({"format": 2}, kind="certs"), "manifest"),
    "format 2 for no version": (one_payload({"format": 2, "ota": "new"}, kind="certs"), "manifest"),
    "format 0": (one_payload({"format": 0}, kind="certs"), "manifest"),
    "format that is true": (one_payload({"format": True}, kind="certs"), "manifest"),
    "four keys": (signed(add_keys=tuple(DIGESTS[1:4]), counter=COUNTER + 1), "keys"),
    "no key left": (
        signed(retire_keys=(key(TRUSTED).public.digest.hex(),), counter=COUNTER + 1), "keys"),
    "key added at the same counter": (signed(add_keys=(DIGESTS[1],)), "counter"),
    "key retired at the same counter": (signed(retire_keys=(DIGESTS[1],)), "counter"),
    "key added without a counter": (signed(add_keys=(DIGESTS[1],), counter=0), "counter"),
    "retired key added again": (
        signed(add_keys=(key(RETIRED).public.digest.hex(),), counter=COUNTER + 1), "retired-key"),
    "no manifest": (write_tar(members_of()[1:]), "member"),
    "signature first": (with_members(lambda m: [m[1], m[0], *m[2:]]), "member"),
    "signature behind the payload": (with_members(lambda m: [m[0], m[2], m[1], m[3]]), "unsigned"),
    "manifest alone": (with_members(lambda m: m[:1]), "unsigned"),
    "neither bundle nor image": (b"<html>404 not found</html>".ljust(5000), "member"),
    "empty file": (b"\0" * 1024, "member"),
    "first header damaged": (flipped(GOOD, 20), "tar"),
    "other tar dialect": (patched(GOOD, 257, b"ustar  \0"), "tar"),
    "size is not octal": (patched(GOOD, 124, b"0000000089Z\0"), "tar"),
    "size in base 256": (patched(GOOD, 124, b"\x80" + bytes(10) + b"\xff"), "tar"),
    "manifest of two GiB": (patched(GOOD, 124, b"17777777777\0"), "member"),
    "manifest is a link": (patched(GOOD, 156, b"2"), "link"),
}  # fmt: skip

# A payload is refused: nothing may be switched, and nothing is left over.
AFTER: dict[str, tuple[bytes, str]] = {
    "app digest": (payload_changed(2, lambda data: flipped(data, 0x1800)), "sha"),
    "files digest": (payload_changed(3, lambda data: flipped(data, 0x403)), "digest"),
    "app of another chip": (signed(other_app()), "wrong-chip"),
    "app with a broken digest": (signed(broken_app()), "digest"),
    "app is none": (signed(Content("app", "app.bin", b"\x7fELF" * 2000)), "not-an-image"),
    "payload missing": (with_members(lambda m: m[:3]), "member"),
    "all payloads missing": (with_members(lambda m: m[:2]), "member"),
    "payload extra": (with_members(lambda m: [*m, Member("more", b"x")]), "member"),
    "payload twice": (with_members(lambda m: [*m[:3], m[2], m[3]]), "member"),
    "payloads reordered": (with_members(lambda m: [m[0], m[1], m[3], m[2]]), "member"),
    "payload longer": (payload_changed(2, lambda data: data + b"\0"), "member"),
    "payload shorter": (payload_changed(2, lambda data: data[:-1]), "member"),
    "payload empty": (payload_changed(3, lambda data: b""), "member"),
    "directory in the bundle": (
        with_members(lambda m: [*m[:2], Member("d", b"", is_directory=True), *m[2:]]), "member"),
    "cut in the app": (GOOD[: offset_of("app.bin") + 3000], "tar"),
    "cut in a header": (GOOD[: offset_of("files.tar") + 100], "tar"),
    "cut before the end": (GOOD[:-512], "tar"),
    "more behind the end": (GOOD + b"more".ljust(512), "tar"),
    "one zero block, then a member": (
        GOOD[: offset_of("files.tar")] + bytes(512) + GOOD[offset_of("files.tar") :], "tar"),
    "second header damaged": (flipped(GOOD, offset_of("app.bin") + 3), "tar"),
    "app is a device": (patched(GOOD, offset_of("app.bin") + 156, b"3"), "link"),
    "path that climbs": (with_files(file_named("../main.py")), "path"),
    "path that climbs inside": (with_files(file_named("lib/../../main.py")), "path"),
    "path that is absolute": (with_files(file_named("/main.py")), "path"),
    "path with a dot": (with_files(file_named("./main.py")), "path"),
    "path with an empty part": (with_files(file_named("lib//x.py")), "path"),
    "path that is two dots": (with_files(file_named("..")), "path"),
    "path with a backslash": (with_files(file_named("..\\x.py")), "path"),
    "path with a line break": (with_files(file_named("x\n.py")), "path"),
    "path without directory": (with_files(file_named("lib/x.py")), "path"),
    "path too deep": (with_files(file_named("/".join("x" * 17))), "path"),
    "path in a prefix": (with_files(patched(file_named("x.py"), 345, b"..")), "path"),
    "name that is not UTF-8": (with_files(patched(file_named("x"), 0, b"\xff\xfe")), "tar"),
    "file twice": (with_files(write_tar([Member("a", b"1"), Member("a", b"2")])), "path"),
    "file as directory": (with_files(write_tar([Member("a", b"1"), Member("a/b", b"2")])), "path"),
    "symbolic link": (with_files(file_named("a", kind=b"2", link=b"/boot.py")), "link"),
    "hard link": (with_files(file_named("b", kind=b"1", link=b"/boot.py")), "link"),
    "fifo": (with_files(file_named("c", kind=b"6")), "link"),
    "pax header": (with_files(file_named("d", kind=b"x")), "link"),
    "files are empty": (with_files(bytes(1024)), "tar"),
    "files are cut": (with_files(tree("2").data[:-1024]), "tar"),
    "files are no tar": (with_files(b"import os\n" * 100), "tar"),
    "more files than said": (
        with_files(write_tar([Member(f"f{n}", b"x" * 20000) for n in range(15)])), "disk-full"),
    "certs are none": (signed(Content("certs", "ca.pem", b"hello")), "certs"),
}  # fmt: skip


def refuse(board: Board, bundle: bytes, before: str = "") -> tuple[str, str, tuple[Operation, ...]]:
    """Offer a bundle; (code, words, flash operations), after the checks that hold for all."""
    assert board.frozen is not None
    (board.frozen / "hostile.bundle").write_bytes(bundle)
    start = board.flash.snapshot()
    try:
        run = board.run(INSTALL.format(before=before))
        verdict, code, words = run.output.strip().split(" ", 2)
        assert (run.end, run.traceback, verdict) == (End.IDLE, "", "REFUSED"), run.console
        otadata = slice(boards.OTADATA.offset, boards.OTADATA.offset + boards.OTADATA.size)
        assert board.flash.snapshot()[otadata] == start[otadata]
        if board.flash.snapshot() != start:
            check_as_before(board)
        return code, words, run.operations
    finally:
        board.flash.restore(start)


def check_as_before(board: Board) -> None:
    after = board.run()
    assert after.labels == ("ota_0",)
    assert "runs v1.26.1 1 " in after.output
    assert board.run(LEFT_OVER).output == "['10000', 'settled', 'trees'] 1 5\n"


LEFT_OVER = """
import os, ota
print(sorted(os.listdir("/.ota")), len(os.listdir("/.ota/trees")), ota.keys.counter())
"""

_said: dict[str, str] = {}


@pytest.mark.parametrize("name", BEFORE)
def test_a_manifest_that_is_refused_writes_nothing(
    board: Board, name: str, hostile: Callable[..., None]
) -> None:
    hostile()
    bundle, expected = BEFORE[name]
    code, words, operations = refuse(board, bundle)
    assert (code, operations) == (expected, ()), words
    _said[name] = words


@pytest.mark.parametrize("name", AFTER)
def test_a_payload_that_is_refused_switches_nothing(
    board: Board, name: str, hostile: Callable[..., None]
) -> None:
    hostile()
    bundle, expected = AFTER[name]
    code, words, _ = refuse(board, bundle)
    assert code == expected, words
    _said[name] = words


def test_an_unset_clock_is_told_from_an_expired_release(board: Board) -> None:
    bundle = signed(app(), expires="2099-01-31T00:00:00Z")
    unset = "import ota.policy; ota.policy.gmtime = lambda: (2000, 1, 1, 0, 0, 5, 5, 1)"
    code, words, operations = refuse(board, bundle, unset)
    assert (code, operations) == ("clock", ())
    assert "the clock is not set" in words


def test_the_words_differ() -> None:
    if len(_said) < len(BEFORE) + len(AFTER):
        pytest.skip("only with all the cases above, in one process")
    cases: dict[str, list[str]] = {}
    for name, words in _said.items():
        cases.setdefault(words, []).append(name)
    assert sorted(names for names in cases.values() if len(names) > 1) == [
        # One thing is wrong in each of these, however it came about.
        ["cut in a header", "cut before the end"],
        ["data in a chain, format 1", "link of what is no chain", "link of an app"],
        ["data without a chain", "data without a chain, compressed", "delta for data"],
        ["first header damaged", "second header damaged"],
        ["huge number", "number over the limit"],
        ["key added at the same counter", "key retired at the same counter"],
        ["more behind the end", "one zero block, then a member"],
        ["newer format", "format 2 without ota"],
        ["no counter", "key added without a counter"],
        ["no manifest", "signature first", "neither bundle nor image", "empty file"],
        ["number with a point", "number with an exponent"],
        ["older counter", "downgrade with an older counter"],
        ["only a delta", "chain for an app"],
        ["size is not octal", "size in base 256"],
        ["unsigned", "signature behind the payload", "manifest alone"],
    ]


@pytest.mark.parametrize("name", BEFORE | AFTER)
def test_the_desk_refuses_them_too(name: str) -> None:
    """Where the reason is in the file; chip, counter, clock and room are the board's own."""
    bundle, code = (BEFORE | AFTER)[name]
    if code in (
        "manifest",
        "format",
        "member",
        "tar",
        "link",
        "path",
        "signature",
        "unsigned",
        "untrusted",
    ):
        with pytest.raises(MpotaError):
            verify(Bundle.from_bytes(bundle), [key(TRUSTED).public])
