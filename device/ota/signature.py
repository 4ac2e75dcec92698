"""Verifies Secure Boot V2 signatures: RSA-3072-PSS with SHA-256, by three-argument pow().

What is signed is the content filled with 0xFF to a multiple of 4 KiB; a sector of 4096 bytes with
up to three blocks follows it, as ``espsecure sign-data --version 2`` writes it. Source of the
rules: ESP-IDF ``rom/secure_boot.h``, ``secure_boot_signatures_app.c``, RFC 8017 8.1.2 and 9.1.2.
"""

import struct
from binascii import crc32
from hashlib import sha256

from micropython import const

from .errors import ReleaseError

SECTOR = const(4096)

_BLOCK_SIZE = const(1216)
_MAX_BLOCKS = const(3)
_MAGIC = const(0xE7)
_VERSION_RSA = const(2)
_EXPONENT = const(65537)
_SIZE = const(384)  # bytes of a 3072-bit number
_DIGEST = const(4)  # offsets in a block
_KEY = const(36)
_KEY_EXPONENT = const(420)
_SIGNATURE = const(812)
_CRC = const(1196)
_MASKED = const(351)  # bytes of the encoded message before its hash
_PADDING = const(318)  # zeros that start the data block; then 0x01 and the salt
_TRAILER = const(0xBC)


def check(digest, sector, trusted, retired=()):
    """The digest of the key that signed content with this SHA-256 (of the padded content).

    ``trusted``: key digests that will do; None takes any key, which only shows that the content
    is whole. ``retired``: key digests that are named in the refusal. Raises ReleaseError.
    """
    if len(sector) != SECTOR:
        raise ReleaseError(
            "signature", "the signature is %d bytes, a sector of %d is due" % (len(sector), SECTOR)
        )
    key = None
    for index in range(_MAX_BLOCKS):
        block = memoryview(sector)[index * _BLOCK_SIZE : (index + 1) * _BLOCK_SIZE]
        if block[0] == 0xFF:
            continue
        _check_block(block, digest)
        key = sha256(block[_KEY:_SIGNATURE]).digest()
        if trusted is None or key in trusted:
            if not _is_signature(block, digest):
                raise ReleaseError(
                    "signature", "the signature of key %s is not valid" % key.hex()[:16]
                )
            return key
    if key is None:
        raise ReleaseError("signature", "the signature sector is blank")
    if key in retired:
        raise ReleaseError("retired-key", "signed by key %s, which was retired" % key.hex()[:16])
    raise ReleaseError(
        "untrusted", "signed by key %s, which this board does not trust" % key.hex()[:16]
    )


def _check_block(block, digest):
    if block[0] != _MAGIC:
        raise ReleaseError("signature", "a signature block starts with 0x%02x, not 0xe7" % block[0])
    if crc32(block[:_CRC]) != struct.unpack_from("<I", block, _CRC)[0]:
        raise ReleaseError("signature", "a signature block is damaged: its CRC-32 does not fit")
    if block[1] != _VERSION_RSA:
        raise ReleaseError(
            "signature", "a signature has version %d, RSA-3072 has %d" % (block[1], _VERSION_RSA)
        )
    if bytes(block[_DIGEST:_KEY]) != digest:
        raise ReleaseError("signature", "the signature belongs to other content")


def _is_signature(block, digest):
    n = int.from_bytes(block[_KEY:_KEY_EXPONENT], "little")
    exponent = struct.unpack_from("<I", block, _KEY_EXPONENT)[0]
    s = int.from_bytes(block[_SIGNATURE:_CRC], "little")
    # 3072 bits, odd: the top bit stands in the last of the little-endian bytes.
    if exponent != _EXPONENT or not block[_KEY] & 1 or not block[_KEY_EXPONENT - 1] & 0x80:
        return False
    if not 0 < s < n:
        return False
    return _is_pss(bytearray(pow(s, _EXPONENT, n).to_bytes(_SIZE, "big")), digest)


def _is_pss(message, digest):
    """EMSA-PSS-VERIFY with MGF1 and a salt of 32 bytes; unmasks ``message`` in place."""
    if message[-1] != _TRAILER or message[0] & 0x80:
        return False
    hashed = bytes(message[_MASKED:-1])
    for at in range(0, _MASKED, 32):
        mask = sha256(hashed + bytes((0, 0, 0, at // 32))).digest()
        for i in range(min(32, _MASKED - at)):
            message[at + i] ^= mask[i]
    message[0] &= 0x7F  # the encoded message has 3071 bits
    if any(memoryview(message)[:_PADDING]) or message[_PADDING] != 1:
        return False
    expected = sha256(bytes(8) + digest)
    expected.update(memoryview(message)[_PADDING + 1 : _MASKED])
    return expected.digest() == hashed


def digest_padded(data):
    """SHA-256 of ``data`` filled with 0xFF to a multiple of 4 KiB: what a signature covers."""
    sha = sha256(data)
    left = -len(data) % SECTOR
    while left:
        count = min(left, 64)
        sha.update(b"\xff" * count)
        left -= count
    return sha.digest()


def check_manifest(data, sector, trust):
    """Check a manifest by its signature, which may be None where ``trust`` holds no keys."""
    if sector is not None:
        check(digest_padded(data), sector, trust.trusted or None, trust.retired)
    elif trust.trusted:
        raise ReleaseError("unsigned", "the manifest is not signed, this board has keys")


def check_app(partition, size, trusted, retired=()):
    """Check the signature that follows an app image of ``size`` bytes in a partition.

    Returns the digest of the key. Raises ReleaseError, with the code "unsigned" if there is none.
    """
    buf = bytearray(SECTOR)
    count = (size + SECTOR - 1) // SECTOR
    if (count + 1) * SECTOR <= partition.info()[3]:
        partition.readblocks(count, buf)
    if buf[0] != _MAGIC:
        raise ReleaseError("unsigned", "the app image is not signed, this board takes signed ones")
    sha = sha256()
    for block in range(count):
        partition.readblocks(block, buf)
        sha.update(buf)
    partition.readblocks(count, buf)
    return check(sha.digest(), buf, trusted, retired)
