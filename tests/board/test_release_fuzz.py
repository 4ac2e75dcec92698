"""Manifests, tar files, signatures and keys with random damage, read on a board."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from mpota.errors import MpotaError
from mpota.formats.bundle import Bundle
from mpota.formats.manifest import Form, Manifest, Payload
from mpota.formats.tar import read_tar, read_tree
from mpota.release.signing import public_to_pem, sign

from tests.support import amount, releases

ROUNDS = int(os.environ.get("MPOTA_FUZZ_ROUNDS", "0")) or amount.some(3000)

# Mutates ``seeds`` and gives the result to ``read``; prints how many were taken, and refused.
SCRIPT = """
import os, random, sys
import ota.manifest, ota.policy, ota.confirm, ota.tar, ota.keys
from esp32 import NVS
from ota.base import OTAError

TOKENS = (
    b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\\\", b"\\\\u12", b"0", b"-1", b"1e9", b"null",
    b"true", b"\\xff", b"\\0", b" ", b'"size"', b"9" * 30, b"[" * 40, b"../", b"ustar", b"5", b"7",
)

def mutate(data, other):
    data = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randint(0, len(data))
        kind = random.randint(0, 5)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << random.randint(0, 7)
        elif kind == 1:
            data[at:at] = TOKENS[random.randint(0, len(TOKENS) - 1)]
        elif kind == 2:
            data[at : at + random.randint(1, 40)] = b""
        elif kind == 3:
            data = data[:at]
        elif kind == 4:
            data[at : at + 20] = other[at : at + 20]
        else:
            data[at:at] = data[at : at + random.randint(1, 600)]
    return data

class Sink:
    def wanted(self):
        return 4096
    def write(self, buf):
        pass
    def work(self):
        return False
    def skip(self):
        return 0
    def finish(self):
        pass

def read_manifest(data):
    manifest = ota.manifest.read(data)
    if manifest.from_version:
        ota.base.version_key(manifest.from_version)
    try:
        ota.policy.judge(manifest, ([], 0, "", ""), "member", (), False)
        ota.policy.check_room(manifest.payloads, False)
    except OTAError:
        pass

def read_tar(data):
    # Headers mostly get a fitting checksum, so that the fields behind it are reached.
    if random.randint(0, 3):
        for at in range(0, len(data) - 511, 512):
            if data[at + 257 : at + 262] == b"ustar":
                data[at + 148 : at + 156] = b" " * 8
                data[at + 148 : at + 156] = b"%06o\\0 " % sum(data[at : at + 512])
    reader = ota.tar.TarReader(lambda name, size, is_directory: Sink(), "the bundle")
    at = 0
    while at < len(data):
        while reader.work():
            pass
        count = min(random.randint(1, 1500), reader.wanted(), len(data) - at)
        reader.write(memoryview(data)[at : at + count])
        at += count
    while reader.work():
        pass
    reader.finish()

def fix_crc(data):
    from binascii import crc32

    if len(data) > 1200 and random.randint(0, 3):
        data[1196:1200] = crc32(data[:1196]).to_bytes(4, "little")

class Trust:
    trusted = [b"t" * 32]
    retired = [b"r" * 32]

def read_signature(data):
    fix_crc(data)
    size = 4096 if random.randint(0, 7) else len(data)
    data = data[:size] + bytes(max(0, size - len(data)))
    Trust.trusted[0] = ota.keys.sha256(data[36:812]).digest()
    ota.keys.check_signed(bytes(data[4:36]), data, random.choice((None, Trust)))
    ota.keys.check_end(data, Trust)

def read_keys(data):
    try:
        nvs.set_blob("trust", data[:1900])
        nvs.set_blob("trust-copy", data[:1900] if random.randint(0, 1) else b"")
    except OSError:
        return
    trust = ota.keys.load()
    ota.base.version_key(trust.version)
    trust.name.encode()
    trust.change(("aa" * 32,), ())

def read_key(data):
    ways = [bytes(data), data]
    try:
        ways += [str(data, "utf-8"), str(data, "utf-8")[:64]]
    except UnicodeError:
        pass
    ota.keys.digest_of_key(random.choice(ways))

nvs = NVS("ota")
random.seed({seed})
read = {read}
seeds = [open("/frozen/seeds/" + name, "rb").read() for name in sorted(os.listdir("/frozen/seeds"))]
taken = refused = 0
for number in range({rounds}):
    data = mutate(seeds[number % len(seeds)], seeds[(number + 1) % len(seeds)])
    try:
        read(data)
        taken += 1
    except OTAError as error:
        str(error)
        refused += 1
    except BaseException as error:
        print("ROUND", number, repr(bytes(data)))
        raise
print(taken, refused)
"""


def fuzz(
    directory: Path, read: str, seeds: list[bytes], rounds: int = ROUNDS, seed: int = 1
) -> tuple[int, int]:
    """(taken, refused); fails if anything but an OTAError came of one."""
    board = releases.board(directory)
    board.heap_size = 512 * 1024
    (directory / "seeds").mkdir()
    for number, data in enumerate(seeds):
        (directory / "seeds" / str(number)).write_bytes(data)
    script = SCRIPT
    for name, value in {"seed": seed, "read": read, "rounds": rounds}.items():
        script = script.replace(f"{{{name}}}", str(value))
    run = board.run(script, timeout_s=600)
    assert not run.traceback, run.output[-3000:] + run.traceback
    taken, refused = (int(word) for word in run.output.split())
    assert taken + refused == rounds
    return taken, refused


def manifests() -> list[bytes]:
    full = releases.manifest(
        releases.app(), releases.tree("2"), board="A board", from_version="1.0-rc1", counter=7,
        expires="2030-01-31T00:00:00Z", add_keys=("a" * 64,), retire_keys=("b" * 64,),
        extra={"x-note": ["\u00e9", {"deep": None}]},
    )  # fmt: skip
    digest = hashlib.sha256(b"").hexdigest()
    delta = Payload(
        "app", 100, digest,
        (Form(50, digest, "d", encoding="delta", base=digest), Form(100, digest, url="a.bin")),
    )  # fmt: skip
    simple = b'{"firmware": "a.bin", "sha": "' + digest.encode() + b'", "length": 100}'
    variants = Manifest("demo", "1.2.3-rc1", (delta,), chip="esp32")
    chained = Payload(
        "data", 9000, digest,
        (Form(9064, digest, "r", encoding="chained", chain=digest),
         Form(999, digest, "s", encoding="chained-deflate", chain=digest)),
        "romfs",
    )  # fmt: skip
    new = Manifest("demo", "1.2.3", (chained,), counter=9, allow_downgrade=True)
    return [full.to_bytes(), variants.to_bytes(), new.to_bytes(), simple]


def test_a_damaged_manifest_is_an_ota_error_or_nothing(
    tmp_path: Path, hostile: Callable[..., None]
) -> None:
    _, refused = fuzz(tmp_path, "read_manifest", manifests())
    hostile(ROUNDS)
    assert refused > ROUNDS // 2


def test_a_damaged_tar_is_an_ota_error_or_nothing(
    tmp_path: Path, hostile: Callable[..., None]
) -> None:
    archives = [releases.tree("2").data, releases.make(releases.tree("2")).to_bytes()]
    taken, refused = fuzz(tmp_path, "read_tar", archives)
    hostile(ROUNDS)
    assert taken
    assert refused > ROUNDS // 4


def test_a_damaged_signature_is_an_ota_error_or_nothing(
    tmp_path: Path, hostile: Callable[..., None]
) -> None:
    sectors = [sign(b"x", (releases.key(),)), sign(b"x", (releases.key(1), releases.key()))]
    _, refused = fuzz(tmp_path, "read_signature", sectors)
    hostile(ROUNDS)
    assert refused > ROUNDS // 4


def test_damaged_keys_in_nvs_are_an_ota_error_or_nothing(
    tmp_path: Path, hostile: Callable[..., None]
) -> None:
    digests = bytes(range(256)) * 5
    blobs = [
        b"",
        struct.pack("<BIBB", 1, 5, 1, 2) + digests[:96],
        struct.pack("<BIBB", 2, 5, 2, 1) + digests[:96] + b"\1demo\0" + b"2.1.0-rc1",
        struct.pack("<BIBB", 2, 5, 3, 32) + digests[:1120] + b"\0" + b"n" * 64 + b"\0" + b"1" * 72,
        struct.pack("<BIBB", 2, 0, 0, 0) + b"\0\0",
    ]
    taken, refused = fuzz(tmp_path, "read_keys", blobs, ROUNDS // 10)
    hostile(ROUNDS // 10)
    assert taken
    assert refused


def test_a_damaged_key_is_an_ota_error_or_nothing(
    tmp_path: Path, hostile: Callable[..., None]
) -> None:
    public = releases.key().public
    seeds = [public_to_pem(public), public.to_der(), public.digest.hex().encode()]
    taken, refused = fuzz(tmp_path, "read_key", seeds)
    hostile(ROUNDS)
    assert taken
    assert refused > ROUNDS // 4


def test_the_desk_reads_damage_the_same_way(hostile: Callable[..., None]) -> None:
    """Formats raise MpotaError for random damage, and nothing else."""
    import random

    rng = random.Random(1)
    sources = [*manifests(), releases.make(releases.tree("2"), keys=(releases.key(),)).to_bytes()]
    refused = 0
    for number in range(ROUNDS):
        data = bytearray(sources[number % len(sources)])
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data) + 1)
            if rng.random() < 0.5 and at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            elif rng.random() < 0.5:
                del data[at : at + rng.randint(1, 40)]
            else:
                data[at:at] = rng.choice([b'"', b"{", b"[", b"\\", b"9" * 30, b"\0", b"../"])
        for read in (Manifest.from_bytes, Bundle.from_bytes, read_tree, lambda d: [*read_tar(d)]):
            try:
                read(bytes(data))
            except MpotaError:
                refused += 1
    assert refused > ROUNDS
    hostile(ROUNDS)


def test_what_the_desk_takes_the_board_takes(tmp_path: Path) -> None:
    """The same manifests are good on both sides: none that mpota writes is refused by a board."""
    (tmp_path / "m").mkdir()
    for number, data in enumerate(manifests()):
        Manifest.from_bytes(data)
        (tmp_path / "m" / f"{number}.json").write_bytes(data)
    script = (
        "import os\nfrom ota.manifest import read\n"
        "for name in sorted(os.listdir('/frozen/m')):\n"
        "    m = read(open('/frozen/m/' + name, 'rb').read())\n"
        "    print(m.name or 'firmware', m.version or 0, m.counter, [p.kind for p in m.payloads],\n"
        "          [(f.size, f.encoding, f.chain and f.chain.hex(), f.member, f.url)\n"
        "           for f in m.forms])\n"
    )
    run = releases.board(tmp_path).run(script)
    expected = []
    for data in manifests():
        m = Manifest.from_bytes(data)
        inside = {"chained": None, "chained-deflate": "deflate"}
        forms = [
            (f.size, inside.get(f.encoding or "", f.encoding), f.chain, f.member, f.url)
            for f in m.forms
        ]
        kinds = [payload.kind for payload in m.payloads]
        expected.append(f"{m.name} {m.version} {m.counter} {kinds} {forms}")
    assert run.output.splitlines() == expected, run.traceback


@pytest.mark.parametrize(
    ("older", "newer"),
    [("1.9", "1.10"), ("2.1-rc1", "2.1"), ("2.1", "2.1.0.1"), ("1", "2"), ("1.0-a", "1.0-b")],
)
def test_versions_sort_the_same_on_both_sides(tmp_path: Path, older: str, newer: str) -> None:
    from mpota.formats.manifest import version_key

    run = releases.board(tmp_path).run(
        "from ota.base import version_key as key\n"
        f"print(key({older!r}) < key({newer!r}), key({newer!r}) < key({older!r}))\n"
        f"print(key('2.1') == key('2.1.0'))"
    )
    assert run.output.split() == ["True", "False", "True"], run.traceback
    assert version_key(older) < version_key(newer)
    assert version_key("2.1") == version_key("2.1.0")
