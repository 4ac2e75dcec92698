"""Every reader on the board is fed with damage: only OTAError comes out, and the slot is free.

MPOTA_FUZZ_ROUNDS sets how many mutations there are of each input (it is the same ones each time).
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from mpota.formats.delta import make_delta
from mpota.formats.frames import compress
from mpota.formats.partition_table import Partition
from mpota.formats.tar import Member, write_tar
from mpota.release.build import Content, Encoded, sign_app
from mpota.release.signing import public_to_pem, sign
from mpota.virtual.board import Board, End

from tests.support import amount, boards, releases, web
from tests.support.boards import OTA_1
from tests.support.hostile import noisy
from tests.support.ota_board import merged_firmware
from tests.support.releases import key, make

ROUNDS = int(os.environ.get("MPOTA_FUZZ_ROUNDS", "0"))
ASSETS = Partition("assets", 1, 0x83, 0xD0000, 0x10000)

OLD = noisy("v1.26.1", 0x4000)
APP = noisy("v1.27.0", 0x3000)

# Calls read(data) for mutations of the files in /frozen/seeds; prints how many were taken and
# refused, and in full what came out and is no OTAError.
HARNESS = """
import gc, io, os, random, sys
import ota
from ota import base
from ota.base import OTAError
from ota.update import OTA

class Me: pass

def mutate(data, other):
    data = bytearray(data)
    for _ in range(random.randint(1, 3)):
        size = len(data)
        # What comes first decides most.
        at = random.randint(0, min(size, 300) if random.randint(0, 1) else size)
        kind = random.randint(0, 8)
        if kind < 2 and at < size:
            data[at] ^= 1 << random.randint(0, 7)
        elif kind == 2 and at < size:
            data[at] = (0, 0xFF, 0x7F, 0x80, 0x22, 0x7B)[random.randint(0, 5)]
        elif kind == 3:
            data = data[:at]
        elif kind == 4:
            data[at:at] = bytes([random.getrandbits(8) for _ in range(random.randint(1, 30))])
        elif kind == 5:
            data[at:at] = data[at : at + random.randint(1, 600)]
        elif kind == 6:
            data[at : at + random.randint(1, 40)] = b""
        elif kind == 7:
            data[at : at + 32] = other[at : at + 32]
        else:
            count = min(size - at, 4)
            data[at : at + count] = random.getrandbits(30).to_bytes(4, "little")[:count]
    return data

def fuzz(read, rounds, seed=1, fix=None):
    random.seed(seed)
    seeds = []
    for name in sorted(os.listdir("/frozen/seeds")):
        with open("/frozen/seeds/" + name, "rb") as file:
            seeds.append(file.read())
    taken = refused = raw = 0
    for number in range(rounds):
        data = mutate(seeds[number % len(seeds)], seeds[(number + 1) % len(seeds)])
        if fix and random.randint(0, 2):
            data = fix(data)
        try:
            read(data)
            taken += 1
        except OTAError as error:
            str(error)
            refused += 1
        except Exception as error:
            raw += 1
            if raw < 4:
                print("RAW", number)
                sys.print_exception(error)
        try:
            base.acquire_slot(Me)
            base.release_slot(Me)
        except OTAError:
            print("BUSY", number)
            base.owner = None
    print("DONE", taken, refused, raw)
"""


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return make_board(tmp_path)


def make_board(directory: Path) -> Board:
    made = releases.board(
        directory,
        table=(*boards.OTA_TABLE, ASSETS),
        apps={boards.OTA_0.offset: OLD},
        heap_size=700 * 1024,
    )
    (directory / "seeds").mkdir()
    return made


def rounds(count: int) -> int:
    return ROUNDS or amount.some(count)


def run(board: Board, seeds: list[bytes], script: str) -> int:
    """How many mutations were tried."""
    assert board.frozen is not None
    for number, data in enumerate(seeds):
        (board.frozen / "seeds" / str(number)).write_bytes(data)
    done = board.run(HARNESS + script, timeout_s=300)
    assert (done.end, done.traceback) == (End.IDLE, ""), done.console[-3000:]
    lines = done.output.splitlines()
    assert lines[-1].startswith("DONE "), done.console[-3000:]
    assert not [line for line in lines if line.startswith("BUSY")], done.output[-3000:]
    taken, refused, raw = (int(word) for word in lines[-1].split()[1:])
    assert not raw, done.output[:4000]
    return taken + refused


TAKE = """
def take(data):
    update = OTA(verbose=False, force=True)
    update.from_stream(io.BytesIO(data))
    update.close()
"""

FIX_TAR = """
def fix(data):
    for at in range(0, len(data) - 511, 512):
        if data[at + 257 : at + 262] == b"ustar":
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\\0 " % sum(data[at : at + 512])
    return data
"""


def bundle(**options: object) -> bytes:
    data = bytes(range(256)) * 50
    form = Encoded.chained("chained", "assets.chained", data[8192:] + data[:8192])
    assets = Content("data", "assets.bin", data, "assets", (form,), is_plain=False)
    members = [Member("a", b"", is_directory=True), Member("a/b.py", b"x = 1\n" * 200)]
    files = Content("files", "files.tar", write_tar(members))
    certs = Content("certs", "ca.pem", b"-----BEGIN CERTIFICATE-----\n")
    return make(Content("app", "app.bin", APP), files, certs, assets, **options).to_bytes()  # type: ignore[arg-type]


def packed_bundle() -> bytes:
    app = Content("app", "app.bin", APP).compressed().with_delta(OLD)
    stream = compress(bytes(range(256)) * 50).to_bytes()
    form = Encoded.chained("chained-deflate", "assets.chained", stream)
    assets = Content(
        "data", "assets.bin", bytes(range(256)) * 50, "assets", (form,), is_plain=False
    )
    return make(app, assets).to_bytes()


READERS: dict[str, tuple[Callable[[], list[bytes]], str, int]] = {
    "app image": (lambda: [APP, OLD, sign_app(APP, "x", (key(),))], "fuzz(take, {})", 600),
    "merged firmware": (lambda: [merged_firmware(APP)[:0x13000]], "fuzz(take, {})", 60),
    "frames": (lambda: [compress(APP).to_bytes()], "fuzz(take, {})", 600),
    "delta": (
        lambda: [make_delta(OLD, APP).to_bytes(), make_delta(OLD, OLD).to_bytes()],
        "fuzz(take, {})", 600),
    "nested frames": (
        lambda: [compress(compress(APP).to_bytes()).to_bytes(), compress(bundle()).to_bytes(),
                 compress(merged_firmware(APP)).to_bytes()],
        "fuzz(take, {})", 60),
    "bundle": (lambda: [bundle(), packed_bundle()], FIX_TAR + "fuzz(take, {}, fix=fix)", 400),
    "signed bundle": (lambda: [bundle(keys=(key(),))], FIX_TAR + f"""
ota.keys.add({key().public.digest.hex()!r})
fuzz(take, {{}}, fix=fix)""", 60),
    "manifest": (lambda: manifests(), """
from ota.policy import judge
from ota.manifest import read
known = [], 0, "", ""
fuzz(lambda data: judge(read(data), known, "member", (), False), {}, 1)""", 700),
    "tar": (lambda: [releases.tree("2").data, bundle()], FIX_TAR + """
from ota.tar import TarReader
from ota.pump import Inlet
class Sink:
    def __init__(self, size): self.left = size
    def wanted(self): return self.left
    def write(self, view): self.left -= len(view)
    def work(self): return False
    def skip(self): return 0
    def finish(self): pass
def read(data):
    buf = memoryview(bytearray(4096))
    inlet = Inlet(TarReader(lambda n, size, d: None if size % 7 == 1 else Sink(size), "it"), buf)
    at = 0
    while at < len(data):
        at += inlet.skip()
        place = inlet.buffer()
        count = min(len(place), random.randint(1, 1500), max(0, len(data) - at))
        if not count: break
        place[:count] = memoryview(data)[at : at + count]
        inlet.take(count)
        at += count
    inlet.finish()
fuzz(read, {}, fix=fix)""", 400),
    "keys": (lambda: [public_to_pem(key().public), key().public.to_der(),
                      key().public.digest.hex().encode()], """
def read(data):
    for given in (bytes(data), data):
        ota.keys.add(given)
        ota.keys.clear()
    try:
        text = str(data, "utf-8")
    except UnicodeError:
        return
    ota.keys.add(text)
    ota.keys.retire(text)
fuzz(read, {})""", 300),
    "signature": (lambda: [sign(b"x" * 4096, (key(), key(1))), sign(b"y", (key(1),))], """
from ota import keys
from binascii import crc32
from ota.keys import load
trust = load()
trust.trusted = [bytes.fromhex("KEY")]
def fix(data):
    for at in range(0, len(data) - 1215, 1216):
        data[at + 1196 : at + 1200] = crc32(data[at : at + 1196]).to_bytes(4, "little")
    return data
def read(data):
    keys.check_end(data, trust)
    keys.check_manifest(b"{{}}", data, trust)
fuzz(read, {}, fix=fix)""".replace("KEY", key().public.digest.hex()), 200),
    "update JSON": (lambda: [json.dumps({"firmware": "app.bin", "sha": "0" * 64,
                                         "length": 5}).encode(), b"<html>", b"[" * 2000], """
open("/app.bin", "wb").close()
def read(data):
    with open("/u.json", "wb") as file:
        file.write(data)
    ota.update.from_json("/u.json", verbose=False, reboot=False)
fuzz(read, {})""", 150),
    "certificates": (lambda: [web.root().der, web.server_identity().der], """
from ota import tls_trust
class Context:
    def load_verify_locations(self, data): pass
def read(data):
    tls_trust.explain_certificate(bytes(data), bytes(data), "words", "localhost", "x", True)
    tls_trust.explain_certificate(bytes(data), bytes(data), "words", "localhost", "x", False)
fuzz(read, {})""", 300),
    "certificate files": (lambda: [web.root().pem, web.root().der], """
import io
from ota import tls_trust
import tls
def read(data):
    context = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
    tls_trust.load_roots(context, io.BytesIO(data), "ca.pem")
fuzz(read, {})""", 150),
    "records of /.ota": (lambda: records(), """
import machine
from esp32 import Partition
from ota import boot, files, otadata
part = Partition(Partition.RUNNING)
app = otadata.app_id(part).hex()
boot.TREES  # is loaded
for path in ("/.ota", "/.ota/trees", "/.ota/trees/t"):
    try: os.mkdir(path)
    except OSError: pass
def read(data):
    path = list(sys.path)
    with open(boot.record_path(part), "wb") as file:
        file.write(bytes(data).replace(b"APP", app.encode()))
    try:
        boot.activate()
        boot.is_on_trial()
        boot.running(), files.certs(), files.check_failed("0" * 64)
        ota.rollback.cancel()
        ota.status.info(False)
        from ota.boot import check_confirmed
        check_confirmed()
    finally:
        sys.path[:] = path
        os.chdir("/")
        for folder in ("/.ota", "/.ota/trees", "/.ota/trees/t"):
            try: os.mkdir(folder)
            except OSError: pass
fuzz(read, {})""", 150),
    "notes in NVS": (lambda: notes(), """
from esp32 import NVS, Partition
from ota import otadata
part = otadata.find_next_slot()
whole = open("/frozen/app", "rb").read()
names = ("trust", "trust-copy", "failed", "resume", "resume-data", "erase", "trial", "payload",
         "download", "retried")
turn = 0
def read(data):
    global turn
    turn += 1
    name = names[turn % len(names)]
    nvs = NVS("ota")
    if data:
        nvs.set_blob(name, data)
    try:
        ota.keys.counter()
        ota.status.info(False)
        ota.rollback.cancel()
        from ota.ready import make_trail, recall
        trail = make_trail()
        for _ in recall(trail, "http://x/y"): pass
        if trail.size: trail.read(0, bytearray(4096))
        OTA(verbose=False).write(whole[:8192])
        take(open("/frozen/bundle", "rb").read())
    finally:
        if base.owner: base.owner.abort()
        try: nvs.erase_key(name)
        except OSError: pass
fuzz(read, {})""", 300),
}  # fmt: skip


def manifests() -> list[bytes]:
    full = releases.manifest(
        releases.app(), releases.tree("2"), board="A board", from_version="1.0-rc1", counter=7,
        expires="2030-01-31T00:00:00Z", add_keys=("a" * 64,), retire_keys=("b" * 64,),
        extra={"x-note": ["\u00e9", {"deep": None}]},
    )  # fmt: skip
    simple = b'{"firmware": "a.bin", "sha": "' + b"0" * 64 + b'", "length": 100}'
    end = bundle().index(b"\0", 512)
    return [full.to_bytes(), bundle()[512:end], simple, full.to_bytes().replace(b"app", b"data")]


def records() -> list[bytes]:
    now = {"name": "demo", "version": "1.0", "counter": 1, "tree": "t", "disk": 4096, "certs": "c"}
    more = {"add": ["a" * 64], "retire": [], "sha256": "0" * 64}
    return [
        json.dumps({"app": "APP", "now": now}).encode(),
        json.dumps({"app": "APP", "now": now, "next": now | more}).encode(),
        json.dumps({"app": "APP", "now": now | more, "next": now, "tried": True}).encode(),
        json.dumps({"app": "APP", "now": {}, "next": 5, "tried": True}).encode(),
        json.dumps({"app": "APP", "now": {"tree": 5, "counter": "x", "name": []}}).encode(),
        b'{"app": "APP", "now": ' + b"[" * 300,
        base64.b64decode("/////w=="),
    ]


def notes() -> list[bytes]:
    import hashlib
    import struct

    digest = key().public.digest
    name = hashlib.sha256(b"http://x/y").digest()
    offset = OTA_1.offset
    download = struct.pack("<BIIII32s32s", 1, offset, 0, 65536, 100000, name, APP[:32])
    sha256 = hashlib.sha256(APP).digest()
    payload = struct.pack("<BIIII32s32s", 2, offset, len(APP), 8192, 8192, sha256, APP[:32])
    return [
        struct.pack("<BIBB", 2, 5, 1, 1) + digest + bytes(32) + b"\0demo\x001.0",
        struct.pack("<BIBB", 1, 5, 1, 0) + digest,
        bytes([0]) + APP[-32:] + bytes(8),
        download + b'"etag"',
        struct.pack("<IIII32s32s", offset, 0, 65536, 100000, bytes(32), name),
        payload,
        struct.pack("<IIII32s", offset, len(APP), 8192, 8192, sha256),
        struct.pack("<I", offset) + APP[-32:],
        b"\xff" + OLD[-32:],
        b"\2" + OLD[-32:],
    ]


@pytest.mark.parametrize("reader", READERS)
def test_of_damage_comes_an_ota_error_or_nothing(
    board: Board, reader: str, hostile: Callable[..., None]
) -> None:
    seeds, script, count = READERS[reader]
    assert board.frozen is not None
    (board.frozen / "app").write_bytes(APP)
    (board.frozen / "bundle").write_bytes(bundle())
    hostile(run(board, seeds(), TAKE + script.format(rounds(count))))


@pytest.mark.parametrize("inner", ["compressed", "bundle", "merged", "delta"])
def test_nested_frames_are_refused(board: Board, inner: str) -> None:
    data = {
        "compressed": compress(APP).to_bytes(),
        "bundle": bundle(),
        "merged": merged_firmware(APP),
        "delta": make_delta(OLD, APP).to_bytes(),
    }[inner]
    assert board.frozen is not None
    (board.frozen / "file").write_bytes(compress(data).to_bytes())
    board.heap_size = 120 * 1024
    done = board.run(
        "import ota\ntry: ota.update.from_file('/frozen/file', verbose=False, reboot=False)\n"
        "except ota.OTAError as error: print(error.code)"
    )
    assert done.output in ("not-an-image\n", "no-app-desc\n", "load-address\n"), done.console


@pytest.mark.parametrize("kib", range(24, 112, 8))
def test_lack_of_memory_is_an_ota_error_and_the_slot_is_free(tmp_path: Path, kib: int) -> None:
    board = make_board(tmp_path)
    (tmp_path / "file").write_bytes(bundle())
    script = """
import sys
try:
    import ota.base
    try:
        import ota
        ota.update.from_file("/frozen/file", verbose=False, reboot=False)
        print("INSTALLED")
    except ota.base.OTAError as error:
        print(error.code, error)
    if "ota.slot" in sys.modules:
        print("owner", sys.modules["ota.base"].owner)
except MemoryError:
    print("the import of ota.update itself")
"""
    board.heap_size = kib * 1024
    done = board.run(script)
    assert done.end is End.IDLE, done.console
    first, *rest = done.output.splitlines()
    assert first.split()[0] in ("memory", "INSTALLED", "the"), done.console
    assert rest in ([], ["owner None"]), done.console
