"""The keys that this board trusts, and the counter that may not go back.

    ota.keys.add(open("key.pem").read())

Up to three public keys, known by their digests as in Secure Boot V2 (``espsecure
digest-sbv2-public-key``). Once there is one, nothing is installed that no trusted key has signed.
Keys and counter are one blob in NVS, written as a whole: one byte format (1), u32 counter, bytes
with the numbers of trusted and retired keys, their digests.

It stands there twice, in the namespace "ota" as "trust" and "trust-copy": when a power cut meets
nvs_set_blob, ESP-IDF 5.1 to 6.0 at least can lose the old value with the new one (nvs_page.cpp:
mLoadEntryTable takes the new chunk for a duplicate of the old one). The first that is intact
counts. The other one is written before it, so that there always is one, with the old or new state.
"""

import struct

from esp32 import NVS
from micropython import const

from .errors import ReleaseError
from .home import NO_TRUST, TRUST

MAX_KEYS = const(3)

_FORMAT = const(1)
_HEAD = "<BIBB"
_HEAD_SIZE = const(7)
_MAX_RETIRED = const(5)  # remembered, so that a refusal can tell
_SIZE = const(32)

# SubjectPublicKeyInfo of RSA-3072 with the exponent 65537: the modulus stands between these.
_DER_HEAD = (
    b"\x30\x82\x01\xa2\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00\x03"
    b"\x82\x01\x8f\x00\x30\x82\x01\x8a\x02\x82\x01\x81\x00"
)
_DER_TAIL = b"\x02\x03\x01\x00\x01"
_DER_SIZE = const(422)


class Trust:
    """``trusted`` and ``retired``: lists of digests (bytes); ``counter``: of the last release."""

    def __init__(self):
        self.counter = 0
        self.trusted = []
        self.retired = []
        self._at = 0  # which of TRUST counts

    def change(self, add, retire):
        """Add and retire keys by their digests in hex; True if that changed anything.

        Raises ReleaseError, and changes nothing, if none or more than three would be left.
        """
        add = [bytes.fromhex(key) for key in add]
        retire = [bytes.fromhex(key) for key in retire]
        trusted = [key for key in self.trusted if key not in retire]
        trusted += [key for key in add if key not in trusted]
        retired = [key for key in self.retired + retire if key not in trusted]
        retired = [key for i, key in enumerate(retired) if key not in retired[:i]]
        retired = retired[-_MAX_RETIRED:]
        if trusted == self.trusted and retired == self.retired:
            return False
        if not 1 <= len(trusted) <= MAX_KEYS:
            raise ReleaseError(
                "keys", "%d keys would be trusted, 1 to %d can be" % (len(trusted), MAX_KEYS)
            )
        self.trusted, self.retired = trusted, retired
        return True

    def save(self):
        head = struct.pack(_HEAD, _FORMAT, self.counter, len(self.trusted), len(self.retired))
        data = head + b"".join(self.trusted + self.retired)
        nvs = NVS("ota")
        for at in (1 - self._at, self._at):
            nvs.set_blob(TRUST[at], data)
            nvs.commit()


def load():
    """What NVS holds. Raises ReleaseError if that cannot be read: it does not count as no keys."""
    trust = Trust()
    problem = None
    data = bytearray(_HEAD_SIZE + _SIZE * (MAX_KEYS + _MAX_RETIRED))
    for at, name in enumerate(TRUST):
        try:
            size = NVS("ota").get_blob(name, data)
        except OSError as error:
            if error.errno not in NO_TRUST:
                problem = "the trusted keys cannot be read: %s" % error
            continue
        number, counter, count, retired = struct.unpack_from(_HEAD, data)
        if number != _FORMAT or size != _HEAD_SIZE + _SIZE * (count + retired) or count > MAX_KEYS:
            problem = "the trusted keys in NVS are damaged"
            continue
        digests = [bytes(data[i : i + _SIZE]) for i in range(_HEAD_SIZE, size, _SIZE)]
        trust.counter, trust.trusted, trust.retired = counter, digests[:count], digests[count:]
        trust._at = at
        return trust
    if problem:
        raise ReleaseError("key-store", problem)
    return trust


def trusted():
    """The digests of the trusted keys, in hex."""
    return [key.hex() for key in load().trusted]


def counter():
    """The counter of the last release that was confirmed."""
    return load().counter


def add(key):
    """Trust a public key: PEM, DER, or its digest in hex. Returns the digest."""
    digest = _digest_of(key)
    trust = load()
    if trust.change([digest], ()):
        trust.save()
    return digest


def retire(digest):
    """Trust a key no longer, by its digest in hex. The last one cannot be retired: `clear`."""
    trust = load()
    if trust.change((), [digest]):
        trust.save()


def clear():
    """Trust no key: from now on the board takes what is not signed. The counter stays."""
    trust = load()
    trust.trusted, trust.retired = [], []
    trust.save()


def _digest_of(key):
    if isinstance(key, str):
        if len(key) == 64:
            return bytes.fromhex(key).hex()
        key = key.encode()
    if b"-----BEGIN" in key:
        from binascii import a2b_base64

        body = key.partition(b"-----BEGIN PUBLIC KEY-----")[2]
        key = a2b_base64(body.partition(b"-----END PUBLIC KEY-----")[0])
    if (
        len(key) != _DER_SIZE
        or key[: len(_DER_HEAD)] != _DER_HEAD
        or key[-len(_DER_TAIL) :] != _DER_TAIL
    ):
        raise ReleaseError("keys", "not a public RSA key with 3072 bits and the exponent 65537")
    return _digest_of_modulus(int.from_bytes(key[len(_DER_HEAD) : -len(_DER_TAIL)], "big"))


def _digest_of_modulus(n):
    """SHA-256 of the key as it stands in a signature block: ets_rsa_pubkey_t."""
    from hashlib import sha256

    inverse = 1  # of n modulo 2^32, by Newton's iteration: the right bits double each time
    for _ in range(5):
        inverse = inverse * (2 - n * inverse) & 0xFFFFFFFF
    sha = sha256(n.to_bytes(384, "little"))
    sha.update(struct.pack("<I", 65537))
    sha.update(((1 << 6144) % n).to_bytes(384, "little"))
    sha.update(struct.pack("<I", -inverse & 0xFFFFFFFF))
    return sha.digest().hex()
