"""The keys that this board trusts, the counter that may not go back, and what was confirmed.

    ota.keys.add(open("key.pem").read())

Up to three public keys, known by their digests as in Secure Boot V2 (``espsecure
digest-sbv2-public-key``). Once there is one, nothing is installed that no trusted key has signed.
All of it is one blob in NVS, written as a whole: one byte format (2), u32 counter, bytes with the
numbers of trusted and retired keys, their digests; then one byte with bit 0 for signed images
without a release, name and version of the release confirmed last, each UTF-8 with a zero between.
Format 1, of ota 0.1, ends behind the digests: it is read, and the next change writes format 2.

It stands there twice, in the namespace "ota" as "trust" and "trust-copy": when a power cut meets
nvs_set_blob, ESP-IDF 5.1 to 6.0 at least can lose the old value with the new one (nvs_page.cpp:
mLoadEntryTable takes the new chunk for a duplicate of the old one). The first that is intact
counts. The other one is written before it, so that there always is one, with the old or new state.
"""

import struct
from binascii import crc32
from hashlib import sha256

from esp32 import NVS
from micropython import const

from .base import NO_TRUST, TRUST, ReleaseError

MAX_KEYS = const(3)

_FORMAT = const(2)
_HEAD = "<BIBB"
_HEAD_SIZE = const(7)
_MAX_RETIRED = const(32)
_MAX_SIZE = const(1265)  # with all keys, a name of 64 and a version of 72 characters
_USUAL_SIZE = const(256)
_TOO_LONG = const(-0x110C)  # ESP_ERR_NVS_INVALID_LENGTH
_DIGEST_SIZE = const(32)


class Trust:
    """``trusted`` and ``retired``: lists of digests (bytes); ``counter``: the highest confirmed.

    ``takes_images``: whether signed app images are taken without a release. ``name`` and
    ``version``: of the release that was confirmed last, "" if none was.
    """

    def __init__(self):
        self.counter = 0
        self.trusted = []
        self.retired = []
        self.takes_images = False
        self.name = self.version = ""
        self._at = 0  # index in TRUST of the copy that counts

    def change(self, add, retire, by_hand=False):
        """Add and retire keys by their digests in hex.

        Raises ReleaseError, and changes nothing, if none or more than three would be trusted, more
        than 32 retired, or if one comes back that was retired and it is not done ``by_hand``.
        """
        add = [bytes.fromhex(key) for key in add]
        retire = [bytes.fromhex(key) for key in retire]
        trusted = [key for key in self.trusted if key not in retire]
        trusted += [key for key in add if key not in trusted]
        retired = [key for key in self.retired if key not in trusted]
        if len(retired) < len(self.retired) and not by_hand:
            raise ReleaseError(
                "retired-key", "a key would come back that was retired: ota.keys.add() may do that"
            )
        retired += [key for key in retire if key not in retired and key not in trusted]
        for count, low, high, what in (
            (len(trusted), 1, MAX_KEYS, "trusted"),
            (len(retired), 0, _MAX_RETIRED, "retired"),
        ):
            if not low <= count <= high:
                raise ReleaseError(
                    "keys", "%d keys would be %s, %d to %d can be" % (count, what, low, high)
                )
        self.trusted, self.retired = trusted, retired

    def save(self):
        """Raises ReleaseError if NVS does not take it."""
        head = struct.pack(_HEAD, _FORMAT, self.counter, len(self.trusted), len(self.retired))
        tail = bytes((int(self.takes_images),)) + (self.name + "\0" + self.version).encode()
        data = head + b"".join(self.trusted + self.retired) + tail
        try:
            nvs = NVS("ota")
            for at in (1 - self._at, self._at):
                nvs.set_blob(TRUST[at], data)
                nvs.commit()
        except OSError as error:
            raise ReleaseError("key-store", "the keys cannot be stored: %s" % error)

    def _read(self, data, size):
        """Parse a blob of ``size`` bytes. Raises ValueError if it is damaged."""
        number, self.counter, count, retired = struct.unpack_from(_HEAD, data)
        end = _HEAD_SIZE + _DIGEST_SIZE * (count + retired)
        is_whole = size > end if number == _FORMAT else number == 1 and size == end
        if not is_whole or count > MAX_KEYS or retired > _MAX_RETIRED or self.counter >> 31:
            raise ValueError
        digests = [bytes(data[i : i + _DIGEST_SIZE]) for i in range(_HEAD_SIZE, end, _DIGEST_SIZE)]
        self.trusted, self.retired = digests[:count], digests[count:]
        if number == _FORMAT:
            self.takes_images = bool(data[end] & 1)
            self.name, self.version = str(data[end + 1 : size], "utf-8").split("\0")


def load():
    """The Trust that NVS holds. Raises ReleaseError if it is unreadable, which is not "no keys"."""
    problem = None
    data = bytearray(_USUAL_SIZE)
    for at, name in enumerate(TRUST):
        trust = Trust()
        try:
            try:
                size = NVS("ota").get_blob(name, data)
            except OSError as error:
                if error.args[0] != _TOO_LONG:
                    raise
                data = bytearray(_MAX_SIZE)
                size = NVS("ota").get_blob(name, data)
            trust._read(data, size)
        except OSError as error:
            if error.errno not in NO_TRUST:
                problem = "cannot be read: %s" % error
        except ValueError:
            problem = "are damaged"
        else:
            trust._at = at
            return trust
    if problem:
        raise ReleaseError("key-store", "the trusted keys in NVS " + problem)
    return Trust()


def trusted():
    """The digests of the trusted keys, in hex."""
    return [key.hex() for key in load().trusted]


def counter():
    """The highest counter of a release that was confirmed."""
    return load().counter


def add(key):
    """Trust a public key: PEM, DER, or its digest in hex. Returns the digest.

    It may be one that was retired: no manifest can bring that back.
    """
    digest = digest_of_key(key)
    _change((digest,), ())
    return digest


def retire(key):
    """Trust a key no longer, given as for `add`. The last one cannot be retired: `clear`."""
    _change((), (digest_of_key(key),))


def clear():
    """Trust no key: from now on the board takes what is not signed. Counter and retired keys stay.

    Listeners for pushes that rely on keys alone are closed.
    """
    trust = load()
    trust.trusted, trust.takes_images = [], False
    trust.save()
    import sys

    receiver = sys.modules.get(__name__.rpartition(".")[0] + ".push_receiver")
    if receiver:
        receiver.keys_cleared()


def allow_images(allowed):
    """Whether this board takes app images without a release, signed themselves by a trusted key.

    They have neither counter nor name: whoever has an old one can install it.
    """
    trust = load()
    trust.takes_images = bool(allowed)
    trust.save()


def _change(add, retire):
    trust = load()
    before = trust.trusted, trust.retired
    trust.change(add, retire, True)
    if before != (trust.trusted, trust.retired):
        trust.save()


def takes_images():
    """Whether there are keys, and app images are taken that one of them has signed."""
    trust = load()
    return bool(trust.trusted) and trust.takes_images


def check_image(end, may_be_signed):
    """The SHA-256 of content that a trusted key has signed; None where there are no keys.

    ``end``: the last 4096 bytes of the file, None where these could not be had first. Raises
    ReleaseError where there are keys, unless their owner has allowed images and this is a signed
    one.
    """
    trust = load()
    if not trust.trusted:
        return None
    if not trust.takes_images or not may_be_signed:
        raise ReleaseError(
            "unsigned",
            "the file is no signed release, and this board has keys: make one by `mpota bundle "
            "--key`" + ("" if trust.takes_images else ", or ota.keys.allow_images(True)"),
        )
    if end is None:
        raise ReleaseError(
            "unsigned",
            "the signature stands at the end of the file, which this source cannot give first: a "
            "server with ranges can, or a release",
        )
    return check_end(end, trust)


# --- signatures
#
# Secure Boot V2: verifies RSA-3072-PSS with SHA-256, by three-argument pow(), and reads keys.
#
# What is signed is the content filled with 0xFF to a multiple of 4 KiB; a sector of 4096 bytes with
# up to three blocks follows it, as ``espsecure sign-data --version 2`` writes it. Source of the
# rules: ESP-IDF ``rom/secure_boot.h``, ``secure_boot_signatures_app.c``, RFC 8017 8.1.2 and 9.1.2.

SECTOR = const(4096)

_BLOCK_SIZE = const(1216)
_MAX_BLOCKS = const(3)
_MAGIC = const(0xE7)
_VERSION_RSA = const(2)
_EXPONENT = const(65537)
_KEY_SIZE = const(384)  # bytes of a 3072-bit number
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
    return check_blocks(digest, memoryview(sector)[: _MAX_BLOCKS * _BLOCK_SIZE], trust)


def check_blocks(digest, blocks, trust):
    """As `check_signed`, for a memoryview of one to three blocks and nothing behind them."""
    if not blocks or len(blocks) % _BLOCK_SIZE or len(blocks) > _MAX_BLOCKS * _BLOCK_SIZE:
        raise _error(
            "the signatures are %d bytes, one to three of %d are due" % (len(blocks), _BLOCK_SIZE)
        )
    key = None
    for at in range(0, len(blocks), _BLOCK_SIZE):
        block = blocks[at : at + _BLOCK_SIZE]
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
    return _is_pss(bytearray(pow(s, _EXPONENT, n).to_bytes(_KEY_SIZE, "big")), digest)


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
    sha = sha256(n.to_bytes(_KEY_SIZE, "little"))
    sha.update(struct.pack("<I", _EXPONENT))
    # Not 1 << 6144: the compiler would put that into the module, digit by digit.
    sha.update(pow(2, 16 * _KEY_SIZE, n).to_bytes(_KEY_SIZE, "little"))
    sha.update(struct.pack("<I", -inverse & 0xFFFFFFFF))
    return sha.digest().hex()
