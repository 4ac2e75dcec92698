"""Crafted files cost a bounded amount of memory: each is opened by the command, measured."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from mpota.filesystem.littlefs import build
from mpota.formats.frames import MAGIC, MAX_PACKED
from mpota.formats.tar import Member, write_tar
from mpota.units import MiB

from tests.support import littlefs_damage as damage

MEMORY_LIMIT = 200 * MiB  # what a command takes for files of a few MB, and more
_MEASURED = """
import resource, sys
from mpota.cli import main
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
try:
    main(sys.argv[1:])
except SystemExit as end:
    code = end.code or 0
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
try:  # Linux counts what the parent had when it forked; this is of the command alone
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
except OSError:
    pass
print("peak:", peak, "code:", code)
"""


def measured(*arguments: object) -> tuple[int, int, str]:
    """(peak of memory in bytes, exit code, all that a command prints)"""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *map(str, arguments)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    said, _, numbers = done.stdout.rpartition("peak:")
    peak, _, code = numbers.partition("code:")
    return int(peak), int(code), said + done.stderr


def squeezed(size: int) -> bytes:
    """Raw deflate of so many zeros, as a frame may hold it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    return packer.compress(bytes(size)) + packer.flush(zlib.Z_FULL_FLUSH)


def bomb(size: int, kind: int = 1) -> bytes:
    """An encoded payload that gives ``size`` bytes: a thousand times of what it has."""
    each = 1600 * 4096
    packed = squeezed(each)
    assert len(packed) <= MAX_PACKED
    frames = struct.pack("<HH", len(packed), 1600) + packed
    head = struct.pack("<4sBBBBI", MAGIC, 1, kind, 12, 0, size // each * each)
    return (
        head + (struct.pack("<I32s", 1, bytes(32)) if kind == 2 else b"") + frames * (size // each)
    )


def bundle_of(kind: str, data: bytes, size: int, encoding: str = "deflate") -> bytes:
    """A bundle whose manifest believes in its only payload."""
    sha256 = hashlib.sha256(data).hexdigest()
    form = {"encoding": encoding, "member": "x", "size": len(data), "sha256": sha256}
    payload = {"kind": kind, "size": size, "sha256": "0" * 64, "encoded": [form]}
    if kind == "files":
        payload["disk"] = 4096
    if kind == "data":
        payload["partition"] = "romfs"
    manifest = {"format": 1, "name": "x", "version": "1", "payloads": [payload]}
    return write_tar([Member("manifest.json", json.dumps(manifest).encode()), Member("x", data)])


SIZE = 320 * MiB
CRAFTED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "app that inflates": ("verify", lambda: bundle_of("app", bomb(SIZE), SIZE)),
    "files that inflate": ("verify", lambda: bundle_of("files", bomb(SIZE), SIZE)),
    "files of 30 MB": ("verify", lambda: bundle_of("files", bomb(30 * MiB), 30 * MiB)),
    "data that inflates": ("verify", lambda: bundle_of("data", bomb(SIZE), SIZE)),
    "manifest that nests": (
        "verify",
        lambda: write_tar([Member("manifest.json", b"[" * 900_000)]),
    ),
    "manifest alone that nests": ("verify", lambda: b'{"a":' * 300_000),
    "manifest with long numbers": ("verify", lambda: b'{"format":' + b"9" * 900_000 + b"}"),
    "many members": (
        "verify",
        lambda: write_tar([Member("manifest.json", b"{}"), *[Member("a", b"")] * 1800]),
    ),
    "member of terabytes": (
        "verify",
        lambda: write_tar([Member("manifest.json", b"{}")]).replace(b"00000000002", b"77777777777"),
    ),
    "delta that inflates": ("show", lambda: bomb(SIZE, 2)),
    "frames": ("show", lambda: bomb(SIZE)),
    "firmware that says gigabytes": (
        "show",
        lambda: b"\xe9\x10\x02\xff" + bytes(20) + struct.pack("<II", 0x3F400000, 0xFFFFFFF0) * 9,
    ),
}


@pytest.mark.parametrize(("command", "make"), CRAFTED.values(), ids=CRAFTED)
def test_crafted_releases_and_firmware(
    command: str, make: Callable[[], bytes], tmp_path: Path, hostile: Callable[..., None]
) -> None:
    hostile()
    path = tmp_path / "x.bundle"
    path.write_bytes(make())
    assert path.stat().st_size < 2 * MiB
    for words in ([command, path], ["show", path], ["push", "/dev/null", path]):
        peak, code, said = measured(*words)
        assert code in (1, 2), said
        assert peak < MEMORY_LIMIT, f"{words[0]}: {peak / MiB:.0f} MiB"


PLANS = {
    "nested lists": b"a = " + b"[" * 100_000,
    "nested tables": b"a = " + b"{a=" * 60_000,
    "a long key": b".".join([b"a"] * 100_000) + b" = 1\n",
    "a long header": b"[" + b".".join([b"a"] * 100_000) + b"]\n",
    "quoted keys": b'"a".' * 50_000 + b"a = 1\n",
    "many long keys": b"\n".join(
        b".".join([b"a%d" % line] + [b"a"] * 900) + b" = 1" for line in range(130)
    ),
    "a long number": b"parallel = " + b"9" * 200_000,
    "a long hexadecimal number": b"parallel = 0x" + b"f" * 200_000,
    "deep keys": b"[boards]\na = { x" + b".x" * 900 + b" = 1 }",
    "a deep value": b"files = { x" + b".x" * 900 + b" = 1 }\n[boards]\na = 'u0'",
    "many boards": b"firmware = 'big.bin'\n[boards]\n"
    + b"".join(b"b%d = 'u%d'\n" % (n, n) for n in range(5000)),
    "too large": b"# comment\n" * 100_000,
    "not text": bytes(range(256)) * 100,
}


@pytest.mark.parametrize("text", PLANS.values(), ids=PLANS)
def test_crafted_plans(text: bytes, tmp_path: Path, hostile: Callable[..., None]) -> None:
    hostile()
    path = tmp_path / "plan.toml"
    path.write_bytes(text)
    (tmp_path / "big.bin").write_bytes(bytes(16 * MiB))
    peak, code, said = measured("deploy", path)
    assert code in (1, 2), said
    assert len(said) < 4000
    assert peak < MEMORY_LIMIT, f"{peak / MiB:.0f} MiB"


def test_files_that_share_their_blocks_are_not_read_again_and_again(tmp_path: Path) -> None:
    """Hundreds of files, each said to be in the same 250 blocks."""
    size = MiB
    image = bytearray(build({"/big": bytes(200 * 4096)}, size))
    logs = [damage.log_of(bytes(image[at : at + 4096])) for at in (0, 4096)]
    tags = next(log for log in logs if any(kind == 0x202 for kind, *_ in log))
    content = next(c for kind, _, _, c in tags if kind == 0x202)
    made = [(k, n, s, c) for k, n, s, c in tags if n == 0x3FF or c in (b"littlefs",) or k == 0x201]
    for number in range(1, 100):
        name = b"f%d" % number
        made += [(0x401, number, 0, b""), (0x001, number, len(name), name)]
        made += [(0x202, number, 8, content)]
    for at in (0, 4096):
        block = damage.block_of(1, made)
        image[at : at + 4096] = block.ljust(4096, b"\xff")[:4096]
    path = tmp_path / "vfs.img"
    path.write_bytes(image)
    for words in (["check"], ["ls"], ["df"], ["get"]):
        where = [tmp_path / "out" / "x"] if words == ["get"] else []
        (tmp_path / "out").mkdir(exist_ok=True)
        paths = ["/*", *where] if where else []
        peak, _, said = measured("fs", *words, path, *paths)
        assert peak < MEMORY_LIMIT, f"{words}: {peak / MiB:.0f} MiB"
        assert len(said) < 200_000
    written = sum(p.stat().st_size for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert written <= size


def test_the_limit_is_no_matter_of_small_files(tmp_path: Path) -> None:
    """An honest release of some megabytes passes below the same limit."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "data.txt").write_text("words of some length\n" * 20_000)
    peak, code, said = measured(
        "bundle", "--files", tmp_path / "src", "--name", "x", "--version", "1", "--compress",
        "-o", tmp_path / "x.bundle",
    )  # fmt: skip
    assert code == 0, said
    peak, code, said = measured("verify", tmp_path / "x.bundle")
    assert (code, peak < MEMORY_LIMIT) == (0, True), said
