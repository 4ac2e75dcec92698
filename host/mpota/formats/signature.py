"""Secure Boot V2 signatures: the sector that ``espsecure sign-data --version 2`` appends.

The signed content is padded with 0xFF to a multiple of 4 KiB; one sector follows it, with up to
three blocks of 1216 bytes and then 0xFF. A block (``ets_secure_boot_sig_block_t`` in ESP-IDF's
``rom/secure_boot.h``; all numbers little-endian)::

       0   1  magic, 0xE7
       1   1  version, 2: RSA-3072-PSS with SHA-256
       2   2  zero
       4  32  SHA-256 of the padded content
      36 384  modulus n                   }
     420   4  public exponent e           } the public key,
     424 384  2^6144 mod n                } ``ets_rsa_pubkey_t``
     808   4  -n^-1 mod 2^32              }
     812 384  signature s, RSASSA-PSS over the content with a salt of 32 bytes
    1196   4  CRC-32 of all before it
    1200  16  zero

A key is known by its digest, the SHA-256 of the four key fields as they stand in a block: the
value that ESP-IDF burns into eFuses and ``espsecure digest-sbv2-public-key`` computes.

A block of version 3 is ECDSA's (espsecure: generate_ecdsa_signature_block): at 2 the hash, 0
SHA-256 or 1 SHA-384; from 4 on its digest of the content, the curve's number (2 P-256, 3 P-384),
x and y of the public key, r and s of the signature, each number as long as the curve. A key is
known by the SHA-256 of the number of its curve, x and y, filled up with zeros to 65 or 97 bytes.

Not handled: ECDSA over P-192, and Secure Boot V1. Signatures are made (RSA only) and verified in
signing.py.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from mpota.errors import MpotaError
from mpota.units import SECTOR_SIZE, align_up

MAX_BLOCKS = 3
BLOCK_SIZE = 1216
KEY_BITS = 3072
EXPONENT = 65537

_MAGIC = 0xE7
_VERSION_RSA = 2
_VERSION_ECDSA = 3
_NUMBER_SIZE = KEY_BITS // 8
_BLOCK = struct.Struct("<BBxx32s384sI384sI384s")
_KEY = struct.Struct("<384sI384sI")
_CRC_OFFSET = 1196

# SubjectPublicKeyInfo of an RSA key with 3072 bits and the exponent 65537 (RFC 8017, A.1.1):
# the modulus stands between these two.
_SPKI_HEAD = bytes.fromhex("308201a2300d06092a864886f70d01010105000382018f003082018a0282018100")
_SPKI_TAIL = bytes.fromhex("0203010001")


@dataclass(frozen=True)
class PublicKey:
    """An RSA-3072 public key with the exponent 65537."""

    n: int

    def __post_init__(self) -> None:
        if self.n.bit_length() != KEY_BITS or self.n % 2 == 0:
            raise MpotaError(f"modulus has {self.n.bit_length()} bits, must be odd and {KEY_BITS}")

    @classmethod
    def from_der(cls, data: bytes) -> PublicKey:
        """From a SubjectPublicKeyInfo, the content of a ``PUBLIC KEY`` in PEM.

        Raises MpotaError for anything but an RSA key of 3072 bits with the exponent 65537.
        """
        size = len(_SPKI_HEAD) + _NUMBER_SIZE + len(_SPKI_TAIL)
        if len(data) != size or data[: len(_SPKI_HEAD)] != _SPKI_HEAD:
            raise MpotaError(f"public key is not RSA with {KEY_BITS} bits")
        if not data.endswith(_SPKI_TAIL):
            raise MpotaError(f"public key has another exponent than {EXPONENT}")
        return cls(int.from_bytes(data[len(_SPKI_HEAD) : -len(_SPKI_TAIL)], "big"))

    def to_der(self) -> bytes:
        return _SPKI_HEAD + self.n.to_bytes(_NUMBER_SIZE, "big") + _SPKI_TAIL

    @property
    def block_fields(self) -> bytes:
        """The four key fields of a signature block."""
        return _KEY.pack(
            self.n.to_bytes(_NUMBER_SIZE, "little"),
            EXPONENT,
            pow(2, 2 * KEY_BITS, self.n).to_bytes(_NUMBER_SIZE, "little"),
            -pow(self.n, -1, 1 << 32) % (1 << 32),
        )

    @property
    def digest(self) -> bytes:
        """What the key is known by, 32 bytes."""
        return hashlib.sha256(self.block_fields).digest()


@dataclass(frozen=True)
class SignatureBlock:
    """One signature over one content, with the key that made it."""

    content_digest: bytes
    key: PublicKey
    signature: int

    def to_bytes(self) -> bytes:
        """1216 bytes."""
        body = struct.pack("<BBxx", _MAGIC, _VERSION_RSA) + self.content_digest
        body += self.key.block_fields + self.signature.to_bytes(_NUMBER_SIZE, "little")
        return body + struct.pack("<I16x", zlib.crc32(body))

    @classmethod
    def from_bytes(cls, data: bytes) -> SignatureBlock:
        """Raises MpotaError if ``data`` is no intact RSA block, or its key is not what it says."""
        _check_block(data)
        if data[1] != _VERSION_RSA:
            raise MpotaError(f"signature block has version {data[1]}, RSA-3072 is {_VERSION_RSA}")
        _, _, digest, n, _, _, _, signature = _BLOCK.unpack_from(data)
        key = PublicKey(int.from_bytes(n, "little"))
        if data[36:812] != key.block_fields:
            raise MpotaError("signature block: the key fields do not belong to one key")
        return cls(digest, key, int.from_bytes(signature, "little"))


@dataclass(frozen=True)
class Curve:
    """An elliptic curve as a block names it; ``size`` is that of a number, in bytes."""

    number: int
    name: str
    hash_number: int
    hash_name: str
    size: int

    def digest(self, content: bytes) -> bytes:
        return hashlib.new(self.hash_name, content).digest()


P256 = Curve(2, "P-256", 0, "sha256", 32)
P384 = Curve(3, "P-384", 1, "sha384", 48)
CURVES = (P256, P384)


@dataclass(frozen=True)
class EcdsaKey:
    """A point on ``curve``."""

    curve: Curve
    x: int
    y: int

    @property
    def digest(self) -> bytes:
        """What the key is known by, 32 bytes."""
        numbers = (number.to_bytes(self.curve.size, "little") for number in (self.x, self.y))
        return hashlib.sha256(bytes([self.curve.number]) + b"".join(numbers)).digest()


@dataclass(frozen=True)
class EcdsaBlock:
    """One signature over one content by ECDSA; ``signature`` is r and s."""

    content_digest: bytes
    key: EcdsaKey
    signature: tuple[int, int]

    @classmethod
    def from_bytes(cls, data: bytes) -> EcdsaBlock:
        """Raises MpotaError if ``data`` is no intact ECDSA block over P-256 or P-384."""
        _check_block(data)
        if data[1] != _VERSION_ECDSA:
            raise MpotaError(f"signature block has version {data[1]}, ECDSA is {_VERSION_ECDSA}")
        curve = next((c for c in CURVES if c.hash_number == data[2]), None)
        at = 4 + (curve.size if curve else 0)  # digest and numbers are equally long
        if curve is None or data[at] != curve.number:
            raise MpotaError(
                f"signature block has hash {data[2]} and curve {data[at]}: "
                "known are P-256 with SHA-256 and P-384 with SHA-384"
            )
        x, y, r, s = (
            int.from_bytes(data[at + 1 + i * curve.size :][: curve.size], "little")
            for i in range(4)
        )
        return cls(data[4:at], EcdsaKey(curve, x, y), (r, s))


def _check_block(data: bytes) -> None:
    if len(data) != BLOCK_SIZE or data[0] != _MAGIC:
        raise MpotaError(f"signature block has no magic byte {_MAGIC:#x}")
    (crc,) = struct.unpack_from("<I", data, _CRC_OFFSET)
    if zlib.crc32(data[:_CRC_OFFSET]) != crc:
        raise MpotaError("signature block is damaged: its CRC-32 does not fit")


def parse_app_sector(data: bytes) -> tuple[SignatureBlock | EcdsaBlock, ...]:
    """The blocks behind an app, RSA's or ECDSA's; raises as `parse_sector`.

    Releases are signed by RSA alone: boards verify nothing else.
    """
    if data[1:2] != bytes([_VERSION_ECDSA]):
        return parse_sector(data)
    if len(data) != SECTOR_SIZE:
        raise MpotaError(f"signature is {len(data):,} bytes, must be one sector of {SECTOR_SIZE:,}")
    pieces = (data[i * BLOCK_SIZE : (i + 1) * BLOCK_SIZE] for i in range(MAX_BLOCKS))
    return tuple(EcdsaBlock.from_bytes(p) for p in pieces if p != b"\xff" * BLOCK_SIZE)


def parse_sector(data: bytes) -> tuple[SignatureBlock, ...]:
    """The blocks of a signature sector, in order.

    Raises MpotaError if it is not 4096 bytes, holds no block, or a damaged one.
    """
    if len(data) != SECTOR_SIZE:
        raise MpotaError(f"signature is {len(data):,} bytes, must be one sector of {SECTOR_SIZE:,}")
    pieces = (data[i * BLOCK_SIZE : (i + 1) * BLOCK_SIZE] for i in range(MAX_BLOCKS))
    blocks = tuple(SignatureBlock.from_bytes(p) for p in pieces if p != b"\xff" * BLOCK_SIZE)
    if not blocks:
        raise MpotaError("signature sector is blank")
    return blocks


def compose_sector(blocks: Iterable[SignatureBlock]) -> bytes:
    """4096 bytes. Raises MpotaError for none or for more than three blocks."""
    pieces = [block.to_bytes() for block in blocks]
    if not 1 <= len(pieces) <= MAX_BLOCKS:
        raise MpotaError(f"{len(pieces)} signatures, a sector holds 1 to {MAX_BLOCKS}")
    return b"".join(pieces).ljust(SECTOR_SIZE, b"\xff")


def padded(content: bytes) -> bytes:
    """``content`` as it is signed: filled with 0xFF to a multiple of 4 KiB."""
    return content.ljust(align_up(len(content), SECTOR_SIZE), b"\xff")
