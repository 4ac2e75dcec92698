"""RSA-3072-PSS on the real MicroPython, against espsecure's and cryptography's signatures."""

from __future__ import annotations

import functools
import hashlib
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils
from mpota.errors import MpotaError
from mpota.formats.signature import (
    BLOCK_SIZE,
    PublicKey,
    SignatureBlock,
    compose_sector,
    padded,
    parse_sector,
)
from mpota.release.signing import PrivateKey, check_signature, sign
from mpota.resources import data_directory
from mpota.virtual import micropython

from tests.support import releases

CONTENT = b'{"format": 1}\n'
DIGEST = hashlib.sha256(padded(CONTENT)).digest()

SCRIPT = """
import sys
class esp32:  # nothing of it is used
    NVS = Partition = None
sys.modules["esp32"] = esp32
from hashlib import sha256
sys.path.insert(0, sys.argv[1])
from ota import keys
from ota.base import OTAError
content = open(sys.argv[2] + "/content", "rb").read()
digest = keys.pad(sha256(content), len(content))

class Trust:
    trusted = [bytes.fromhex(key) for key in sys.argv[3].split(",") if key]
    retired = [bytes.fromhex(key) for key in sys.argv[4].split(",") if key]

def signed(sector):
    return keys.check_signed(digest, sector, Trust if Trust.trusted else None).hex()

def end(sector):
    stated = keys.check_end(sector, Trust)
    keys.check_content(stated, digest)
    return "ok"

check = {"signed": signed, "end": end}[sys.argv[5]]
for name in sys.argv[6:]:
    sector = open(sys.argv[2] + "/" + name, "rb").read()
    try:
        print(name, check(sector))
    except OTAError as error:
        print(name, error.code, "-", error)
"""


def verify(
    directory: Path,
    sectors: dict[str, bytes],
    trusted: list[PublicKey | str],
    *,
    retired: list[PublicKey] | tuple[()] = (),
    check: str = "signed",
) -> dict[str, str]:
    """What MicroPython says of each sector: the key's digest, or the error's code and text.

    ``trusted``: keys, or digests in hex. ``check`` "end": "ok", where the sector is judged first.
    """
    (directory / "content").write_bytes(CONTENT)
    for name, sector in sectors.items():
        (directory / name).write_bytes(sector)
    (directory / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [
            *micropython.find().with_heap(200 * 1024),
            str(directory / "script.py"),
            str(data_directory("device")),
            str(directory),
            ",".join(key if isinstance(key, str) else key.digest.hex() for key in trusted),
            ",".join(key.digest.hex() for key in retired),
            check,
            *sectors,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert [name for name, _ in lines] == list(sectors)
    return dict(lines)


@functools.cache
def numbers(key: PrivateKey) -> rsa.RSAPrivateNumbers:
    loaded = serialization.load_pem_private_key(key.to_pem(), None)
    assert isinstance(loaded, rsa.RSAPrivateKey)
    return loaded.private_numbers()


def encode(digest: bytes = DIGEST, salt: bytes = b"s" * 32) -> bytearray:
    """EMSA-PSS with SHA-256: the 384 bytes before the private key is applied."""
    hashed = hashlib.sha256(bytes(8) + digest + salt).digest()
    block = bytes(384 - 32 - 2 - len(salt)) + b"\x01" + salt
    return mask(block, hashed) + hashed + b"\xbc"


def mask(block: bytes, hashed: bytes) -> bytearray:
    stream = b"".join(
        hashlib.sha256(hashed + counter.to_bytes(4, "big")).digest() for counter in range(11)
    )
    masked = bytearray(a ^ b for a, b in zip(block, stream, strict=False))
    masked[0] &= 0x7F
    return masked


def raw_sign(key: PrivateKey, message: bytes) -> int:
    """By the Chinese remainder theorem (RFC 8017, 5.1.2), a quarter of the time of one power."""
    private, m = numbers(key), int.from_bytes(message, "big")
    first, second = pow(m, private.dmp1, private.p), pow(m, private.dmq1, private.q)
    return second + private.q * ((first - second) * private.iqmp % private.p)


def block_of(key: PrivateKey, signature: int, digest: bytes = DIGEST) -> bytes:
    return SignatureBlock(digest, key.public, signature).to_bytes()


def sector_of(*blocks: bytes) -> bytes:
    return b"".join(blocks).ljust(4096, b"\xff")


def with_crc(block: bytes) -> bytes:
    return block[:1196] + struct.pack("<I", zlib.crc32(block[:1196])) + block[1200:]


def test_signatures_of_espsecure_and_cryptography_are_accepted(tmp_path: Path) -> None:
    key, other = releases.key(), releases.key(1)
    made_by_espsecure = tmp_path / "signed"
    for number, k in enumerate((key, other)):
        (tmp_path / f"key{number}.pem").write_bytes(k.to_pem())
    (tmp_path / "plain").write_bytes(CONTENT)
    espsecure = [sys.executable, "-m", "espsecure"]
    subprocess.run(
        [*espsecure, "sign-data", "--version", "2", "--keyfile", tmp_path / "key0.pem",
         "--output", made_by_espsecure, tmp_path / "plain"],
        check=True, capture_output=True,
    )  # fmt: skip
    public = serialization.load_pem_private_key(key.to_pem(), None)
    assert isinstance(public, rsa.RSAPrivateKey)
    made_by_cryptography = public.sign(
        padded(CONTENT), padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256()
    )
    sectors = {
        "espsecure": made_by_espsecure.read_bytes()[-4096:],
        "cryptography": sector_of(block_of(key, int.from_bytes(made_by_cryptography, "big"))),
        "own-encoding": sector_of(block_of(key, raw_sign(key, encode()))),
        "second-of-two": sign(CONTENT, (other, key)),
        "third-of-three": sign(CONTENT, (other, other, key)),
    }
    found = verify(tmp_path, sectors, [key.public])
    assert found == dict.fromkeys(sectors, key.public.digest.hex())
    for sector in sectors.values():
        assert check_signature(CONTENT, sector, [key.public]) == key.public


def test_espsecure_accepts_our_signature(tmp_path: Path) -> None:
    key = releases.key()
    (tmp_path / "key.pem").write_bytes(key.to_pem())
    (tmp_path / "signed").write_bytes(padded(CONTENT) + sign(CONTENT, (releases.key(1), key)))
    done = subprocess.run(
        [sys.executable, "-m", "espsecure", "verify-signature", "--version", "2",
         "--keyfile", tmp_path / "key.pem", tmp_path / "signed"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@functools.cache
def forged() -> dict[str, bytes]:
    """Signature sectors that have to be refused, each for one reason."""
    key = releases.key()
    good = block_of(key, raw_sign(key, encode()))
    loaded = serialization.load_pem_private_key(key.to_pem(), None)
    assert isinstance(loaded, rsa.RSAPrivateKey)
    n = key.public.n

    def signed(message: bytes) -> bytes:
        return sector_of(block_of(key, raw_sign(key, message)))

    def salted(size: int) -> bytes:
        value = loaded.sign(
            DIGEST,
            padding.PSS(padding.MGF1(hashes.SHA256()), size),
            utils.Prehashed(hashes.SHA256()),
        )
        return sector_of(block_of(key, int.from_bytes(value, "big")))

    def variant(block: bytes) -> bytearray:
        hashed = hashlib.sha256(bytes(8) + DIGEST + b"s" * 32).digest()
        return mask(block, hashed) + hashed + b"\xbc"

    zeros = bytes(318)
    trailer = encode()
    trailer[-1] = 0xCC
    pkcs1 = loaded.sign(DIGEST, padding.PKCS1v15(), utils.Prehashed(hashes.SHA256()))
    sha1_mask = loaded.sign(
        DIGEST, padding.PSS(padding.MGF1(hashes.SHA1()), 32), utils.Prehashed(hashes.SHA256())
    )
    cases = {
        "trailer": signed(trailer),
        "first-padding-byte": signed(variant(b"\x01" + zeros[1:] + b"\x01" + b"s" * 32)),
        "last-padding-byte": signed(variant(zeros[:-1] + b"\x80" + b"\x01" + b"s" * 32)),
        "separator-0": signed(variant(zeros + b"\x00" + b"s" * 32)),
        "separator-2": signed(variant(zeros + b"\x02" + b"s" * 32)),
        "separator-early": signed(variant(zeros[:-1] + b"\x01" + b"\x01" + b"s" * 32)),
        "salt-0": salted(0),
        "salt-20": salted(20),
        "salt-31": salted(31),
        "salt-33": salted(33),
        "salt-longest": salted(350),
        "pkcs1": sector_of(block_of(key, int.from_bytes(pkcs1, "big"))),
        "mgf1-with-sha1": sector_of(block_of(key, int.from_bytes(sha1_mask, "big"))),
        "s-0": sector_of(block_of(key, 0)),
        "s-1": sector_of(block_of(key, 1)),
        "s-n": sector_of(block_of(key, n)),
        "s-n-1": sector_of(block_of(key, n - 1)),
        "bit-of-s": sector_of(with_crc(good[:900] + bytes([good[900] ^ 1]) + good[901:])),
        "other-content": sign(CONTENT + b" ", (key,)),
        "crc": sector_of(good[:1196] + bytes([good[1196] ^ 1]) + good[1197:]),
        "magic": sector_of(with_crc(b"\xe8" + good[1:])),
        "ecdsa-version": sector_of(with_crc(b"\xe7\x03" + good[2:])),
        "bit-of-n": sector_of(with_crc(good[:40] + bytes([good[40] ^ 2]) + good[41:])),
        "exponent-3": sector_of(with_crc(good[:420] + struct.pack("<I", 3) + good[424:])),
        "r-squared": sector_of(with_crc(good[:500] + bytes([good[500] ^ 1]) + good[501:])),
        "m-prime": sector_of(with_crc(good[:808] + bytes([good[808] ^ 1]) + good[809:])),
        "blank": b"\xff" * 4096,
        "zeros": bytes(4096),
        "short": good,
        "long": sector_of(good) + b"\xff",
        "other-key": sign(CONTENT, (releases.key(1),)),
        "key-of-another": sector_of(block_of(key, raw_sign(releases.key(1), encode()) % n)),
    }
    # s + n is the same residue: it must not pass where it fits in 384 bytes at all.
    for attempt in range(200):
        s = raw_sign(key, encode(salt=attempt.to_bytes(32, "big")))
        if s + n < 1 << 3072:
            cases["s-plus-n"] = sector_of(block_of(key, s + n))
            break
    # The top bit of the encoded message is above the 3071 bits that PSS has.
    for attempt in range(200):
        message = encode(salt=attempt.to_bytes(32, "little"))
        message[0] |= 0x80
        if int.from_bytes(message, "big") < n:
            cases["top-bit"] = signed(message)
            break
    return cases


def test_anything_but_a_strict_signature_is_refused(
    tmp_path: Path, hostile: Callable[..., None]
) -> None:
    cases = forged()
    assert {"s-plus-n", "top-bit"} <= cases.keys()
    found = verify(tmp_path, cases, [releases.key().public])
    codes = {name: said.split(" ")[0] for name, said in found.items()}
    hostile(len(found))
    foreign = {"other-key", "bit-of-n", "exponent-3", "r-squared", "m-prime"}
    assert codes == {name: "untrusted" if name in foreign else "signature" for name in cases}
    for sector in cases.values():
        with pytest.raises(MpotaError):
            check_signature(CONTENT, sector, [releases.key().public])


def test_a_weak_key_is_refused_even_if_its_digest_is_trusted(
    tmp_path: Path, hostile: Callable[..., None]
) -> None:
    """Whoever installs a digest may be tricked: exponent and size are checked all the same."""
    key = releases.key()
    good = block_of(key, raw_sign(key, encode()))
    weak = {
        "exponent-1": good[:420] + struct.pack("<I", 1) + good[424:812]
        + int.from_bytes(encode(), "big").to_bytes(384, "little") + good[1196:],
        "even-modulus": good[:36] + bytes([good[36] & 0xFE]) + good[37:],
        "short-modulus": good[:419] + bytes(1) + good[420:],
    }  # fmt: skip
    sectors = {name: sector_of(with_crc(block)) for name, block in weak.items()}
    hostile(len(sectors))
    digests = [hashlib.sha256(block[36:812]).hexdigest() for block in weak.values()]
    for check in ("signed", "end"):
        found = verify(tmp_path, sectors, digests, check=check)
        assert [said.split()[0] for said in found.values()] == ["signature"] * 3, found


def test_a_signature_is_judged_before_its_content(
    tmp_path: Path, hostile: Callable[..., None]
) -> None:
    """What a sector alone says is what it says with its content, but for content of another."""
    key = releases.key()
    cases = forged()
    found = verify(tmp_path, cases, [key.public], check="end")
    codes = {name: said.split(" ")[0] for name, said in found.items()}
    foreign = {"other-key", "bit-of-n", "exponent-3", "r-squared", "m-prime"}
    none = {"magic", "zeros", "blank"}
    assert codes == {
        name: "untrusted" if name in foreign else "unsigned" if name in none else "signature"
        for name in cases
    }
    assert found["other-content"] == "signature - the signature belongs to other content"
    hostile(len(cases))
    good = {"one": sign(CONTENT, (key,)), "second": sign(CONTENT, (releases.key(1), key))}
    assert verify(tmp_path, good, [key.public], check="end") == dict.fromkeys(good, "ok")
    assert verify(tmp_path, good, [], check="end")["one"].startswith("untrusted")
    said = verify(
        tmp_path, {"one": good["one"]}, [releases.key(1).public],
        retired=[key.public], check="end",
    )  # fmt: skip
    assert said["one"].startswith("retired-key - signed by key")


def test_two_blocks_that_state_different_digests_are_no_signature(tmp_path: Path) -> None:
    key, other = releases.key(), releases.key(1)
    foreign = hashlib.sha256(b"other").digest()
    own = block_of(key, raw_sign(key, encode()))
    theirs = block_of(other, raw_sign(other, encode(foreign)), foreign)
    sectors = {"first": sector_of(theirs, own), "last": sector_of(own, theirs)}
    # The first block of a trusted key decides; one before it has to fit as well.
    for check, first in (("signed", "signature"), ("end", "signature")):
        found = verify(tmp_path, sectors, [key.public], check=check)
        assert found["first"].startswith(first), found
        found = verify(tmp_path, sectors, [other.public], check=check)
        assert found["last"].startswith("signature"), found


def test_a_sector_round_trips() -> None:
    sector = sign(CONTENT, (releases.key(), releases.key(1)))
    blocks = parse_sector(sector)
    assert [block.key for block in blocks] == [releases.key().public, releases.key(1).public]
    assert compose_sector(blocks) == sector
    assert len(blocks[0].to_bytes()) == BLOCK_SIZE


def test_verification_needs_less_than_12_kib_of_heap(tmp_path: Path) -> None:
    """With all of the heap but 12 KiB taken, the sector included, a signature still verifies."""
    interpreter = micropython.find()
    limit = 12 * 1024 * interpreter.word_size // 4
    (tmp_path / "sector").write_bytes(sign(CONTENT, (releases.key(),)))
    script = f"""
import gc, time
import sys
class esp32:  # nothing of it is used
    NVS = Partition = None
sys.modules["esp32"] = esp32
sys.path.insert(0, {str(data_directory("device"))!r})
from ota import keys
class Trust:
    trusted = [bytes.fromhex({releases.key().public.digest.hex()!r})]
    retired = []
digest = bytes.fromhex({DIGEST.hex()!r})
gc.collect()
hold = bytearray({limit})
ballast = [None] * 4000
count = 0
for size in (4096, 512, 64):
    try:
        while True:
            ballast[count] = bytearray(size)
            count += 1
    except MemoryError:
        pass
del hold
gc.collect()
print(gc.mem_free(), "bytes free,")
sector = bytearray(4096)
with open({str(tmp_path / "sector")!r}, "rb") as file:
    file.readinto(sector)
start = time.ticks_us()
assert keys.check_signed(digest, sector, Trust) == Trust.trusted[0]
print(time.ticks_diff(time.ticks_us(), start), "us")
try:
    bytearray({limit})
except MemoryError:
    print("full")
"""
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [*interpreter.with_heap(120 * 1024), str(tmp_path / "script.py")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split()[-2:] == ["us", "full"], done.stdout + done.stderr
    print("verified with", done.stdout)


def test_what_is_trusted_is_what_espsecure_calls_the_key(tmp_path: Path) -> None:
    key = releases.key()
    (tmp_path / "key.pem").write_bytes(key.to_pem())
    subprocess.run(
        [sys.executable, "-m", "espsecure", "digest-sbv2-public-key", "--keyfile",
         tmp_path / "key.pem", "--output", tmp_path / "digest"],
        check=True, capture_output=True,
    )  # fmt: skip
    assert (tmp_path / "digest").read_bytes() == key.public.digest
