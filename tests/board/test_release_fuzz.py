"""Manifests and tar files with random damage, read on the real MicroPython."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import releases
from mpota.carried import data_directory
from mpota.errors import MpotaError
from mpota.formats.bundle import Bundle, read_tar, read_tree
from mpota.formats.manifest import Form, Manifest, Payload
from mpota.virtual import micropython

ROUNDS = int(os.environ.get("MPOTA_FUZZ_ROUNDS", "3000"))

# Mutates ``seeds`` and gives the result to ``read``; prints how many were taken, and refused.
SCRIPT = """
import os, random, sys
sys.path.insert(0, sys.argv[1])
import ota.manifest, ota.tar
from ota.errors import OTAError

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
    def write(self, buf):
        pass
    def close(self):
        pass

def read_manifest(data):
    manifest = ota.manifest.Manifest(data)
    manifest.forms()
    if manifest.from_version:
        ota.manifest.version_key(manifest.from_version)

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
        count = random.randint(1, 1500)
        reader.write(memoryview(data)[at : at + count])
        at += count
    reader.finish()

random.seed(int(sys.argv[4]))
read = globals()[sys.argv[2]]
seeds = [open(sys.argv[5] + "/" + name, "rb").read() for name in sorted(os.listdir(sys.argv[5]))]
taken = refused = 0
for number in range(int(sys.argv[3])):
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


def fuzz(directory: Path, read: str, seeds: list[bytes], seed: int = 1) -> tuple[int, int]:
    """(taken, refused); fails if anything but an OTAError came of one."""
    shutil.rmtree(directory / "seeds", ignore_errors=True)
    (directory / "seeds").mkdir()
    for number, data in enumerate(seeds):
        (directory / "seeds" / str(number)).write_bytes(data)
    (directory / "fuzz.py").write_text(SCRIPT)
    done = subprocess.run(
        [
            *micropython.find().with_heap(512 * 1024),
            str(directory / "fuzz.py"),
            str(data_directory("device")),
            read,
            str(ROUNDS),
            str(seed),
            str(directory / "seeds"),
        ],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    taken, refused = done.stdout.split()
    return int(taken), int(refused)


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
    return [full.to_bytes(), variants.to_bytes(), simple]


def test_a_damaged_manifest_is_an_ota_error_or_nothing(tmp_path: Path) -> None:
    taken, refused = fuzz(tmp_path, "read_manifest", manifests())
    assert taken + refused == ROUNDS
    assert refused > ROUNDS // 2


def test_a_damaged_tar_is_an_ota_error_or_nothing(tmp_path: Path) -> None:
    archives = [releases.tree("2").data, releases.make(releases.tree("2")).to_bytes()]
    taken, refused = fuzz(tmp_path, "read_tar", archives)
    assert taken + refused == ROUNDS
    assert taken
    assert refused > ROUNDS // 4


def test_the_desk_reads_damage_the_same_way() -> None:
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


def test_what_the_desk_takes_the_board_takes(tmp_path: Path) -> None:
    """The same manifests are good on both sides: none that mpota writes is refused by a board."""
    (tmp_path / "m").mkdir()
    for number, data in enumerate(manifests()):
        Manifest.from_bytes(data)
        (tmp_path / "m" / f"{number}.json").write_bytes(data)
    script = (
        f"import sys, os; sys.path.insert(0, {str(data_directory('device'))!r})\n"
        "from ota.manifest import Manifest\n"
        f"for name in sorted(os.listdir({str(tmp_path / 'm')!r})):\n"
        f"    m = Manifest(open({str(tmp_path / 'm')!r} + '/' + name, 'rb').read())\n"
        "    print(m.name or 'firmware', m.version or 0, m.counter, [p.kind for p in m.payloads],\n"
        "          [(f.size, f.encoding, f.member, f.url) for f in m.forms()])\n"
    )
    done = subprocess.run(
        [*micropython.find().command, "-c", script], capture_output=True, text=True, check=False
    )
    expected = []
    for data in manifests():
        m = Manifest.from_bytes(data)
        forms = [(f.size, f.encoding, f.member, f.url) for f in m.forms]
        kinds = [payload.kind for payload in m.payloads]
        expected.append(f"{m.name} {m.version} {m.counter} {kinds} {forms}")
    assert done.stdout.splitlines() == expected, done.stderr


@pytest.mark.parametrize(
    ("older", "newer"),
    [("1.9", "1.10"), ("2.1-rc1", "2.1"), ("2.1", "2.1.0.1"), ("1", "2"), ("1.0-a", "1.0-b")],
)
def test_versions_sort_the_same_on_both_sides(older: str, newer: str) -> None:
    from mpota.formats.manifest import version_key

    script = (
        f"import sys; sys.path.insert(0, {str(data_directory('device'))!r})\n"
        "from ota.manifest import version_key as key\n"
        f"print(key({older!r}) < key({newer!r}), key({newer!r}) < key({older!r}))\n"
        f"print(key('2.1') == key('2.1.0'))"
    )
    done = subprocess.run(
        [*micropython.find().command, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["True", "False", "True"], done.stderr
    assert version_key(older) < version_key(newer)
    assert version_key("2.1") == version_key("2.1.0")
