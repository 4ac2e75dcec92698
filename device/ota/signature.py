"""Secure Boot V2: verifies RSA-3072-PSS with SHA-256, by three-argument pow(), and reads keys.

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

# SubjectPublicKeyInfo of RSA-3072 with the exponent 65537: the modulus stands between these.
_DER_HEAD = (
    b"\x30\x82\x01\xa2\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00\x03"
    b"\x82\x01\x8f\x00\x30\x82\x01\x8a\x02\x82\x01\x81\x00"
)
_DER_TAIL = b"\x02\x03\x01\x00\x01"
_DER_SIZE = const(422)


def check_signed(digest, sector, trust=None):
    """The digest of the key that signed content with this SHA-256 (of the padded content).

    ``sector``: the bytes that came behind the content. ``trust``: keys.Trust, of whose keys one
    must have signed; None takes any key, which only shows that the content is whole. Raises
    ReleaseError.
    """
    if len(sector) != SECTOR:
        raise _error("the signature is %d bytes, a sector of %d is due" % (len(sector), SECTOR))
    key = None
    for at in range(0, _MAX_BLOCKS * _BLOCK_SIZE, _BLOCK_SIZE):
        block = memoryview(sector)[at : at + _BLOCK_SIZE]
        if block[0] == 0xFF:
            continue
        _check_block(block, digest)
        key = sha256(block[_KEY:_SIGNATURE]).digest()
        if not trust or key in trust.trusted:
            if not _is_signature(block, digest):
                raise _error("the signature of key %s is not valid" % key.hex()[:16])
            return key
    if key is None:
        raise _error("the signature sector is blank")
    is_retired = key in trust.retired
    raise ReleaseError(
        "retired-key" if is_retired else "untrusted",
        "signed by key %s, which %s"
        % (key.hex()[:16], "was retired" if is_retired else "this board does not trust"),
    )


def check_end(sector, trust):
    """Judge the last sector of an app image before the rest is known.

    Returns the SHA-256 (bytes) that a key in ``trust`` has signed: that of all bytes before the
    sector has to be the same (`check_content`). Raises ReleaseError, "unsigned" where there is no
    signature.
    """
    if not sector or sector[0] != _MAGIC:
        raise ReleaseError("unsigned", "the app image is not signed, this board takes signed ones")
    digest = bytes(sector[_DIGEST:_KEY])
    check_signed(digest, sector, trust)
    return digest


def check_content(found, signed):
    """Raises ReleaseError if the SHA-256 ``found`` over content is not the one that was signed."""
    if found != signed:
        raise _error("the signature belongs to other content")


def _check_block(block, digest):
    if block[0] != _MAGIC:
        raise _error("a signature block starts with 0x%02x, not 0xe7" % block[0])
    if crc32(block[:_CRC]) != struct.unpack_from("<I", block, _CRC)[0]:
        raise _error("a signature block is damaged: its CRC-32 does not fit")
    if block[1] != _VERSION_RSA:
        raise _error("a signature has version %d, RSA-3072 has %d" % (block[1], _VERSION_RSA))
    check_content(bytes(block[_DIGEST:_KEY]), digest)


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


def pad(sha, size):
    """Bring the SHA-256 of ``size`` bytes to what a signature covers: 0xFF up to whole sectors."""
    left = -size % SECTOR
    while left:
        count = min(left, 64)
        sha.update(b"\xff" * count)
        left -= count
    return sha.digest()


def check_manifest(data, sector, trust):
    """Check a manifest by its signature, which may be None where ``trust`` holds no keys."""
    if sector is not None:
        check_signed(pad(sha256(data), len(data)), sector, trust if trust.trusted else None)
    elif trust.trusted:
        raise ReleaseError("unsigned", "the manifest is not signed, this board has keys")


def _error(text):
    return ReleaseError("signature", text)


def digest_of_key(key):
    """The digest in hex of a key in PEM or DER, or given as such. Raises ReleaseError."""
    try:
        if isinstance(key, str):
            if len(key) == 64 and len(bytes.fromhex(key)) == 32:
                return key.lower()
            key = key.encode()
        if b"-----BEGIN" in key:
            from binascii import a2b_base64

            body = key.partition(b"-----BEGIN PUBLIC KEY-----")[2]
            key = a2b_base64(body.partition(b"-----END PUBLIC KEY-----")[0])
        n = key[len(_DER_HEAD) : -len(_DER_TAIL)]
        if len(key) == _DER_SIZE and _DER_HEAD + n + _DER_TAIL == key and n[0] >> 7 and n[-1] & 1:
            return _digest_of_modulus(int.from_bytes(n, "big"))
    except (ValueError, TypeError, AttributeError):
        pass
    raise ReleaseError(
        "keys", "neither 64 hex digits nor a public RSA key with 3072 bits and the exponent 65537"
    )


def _digest_of_modulus(n):
    """SHA-256 of the key as it stands in a signature block: ets_rsa_pubkey_t."""
    inverse = 1  # of n modulo 2^32, by Newton's iteration: the right bits double each time
    for _ in range(5):
        inverse = inverse * (2 - n * inverse) & 0xFFFFFFFF
    sha = sha256(n.to_bytes(_SIZE, "little"))
    sha.update(struct.pack("<I", _EXPONENT))
    sha.update(((1 << 6144) % n).to_bytes(_SIZE, "little"))
    sha.update(struct.pack("<I", -inverse & 0xFFFFFFFF))
    return sha.digest().hex()
