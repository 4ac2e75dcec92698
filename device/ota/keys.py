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

from esp32 import NVS
from micropython import const

from .errors import ReleaseError
from .otadata import NO_TRUST, TRUST

MAX_KEYS = const(3)

_FORMAT = const(2)
_HEAD = "<BIBB"
_HEAD_SIZE = const(7)
_MAX_RETIRED = const(32)
_MAX_SIZE = const(1265)  # with all keys, a name of 64 and a version of 72 characters
_USUAL_SIZE = const(256)
_TOO_LONG = const(-0x110C)  # ESP_ERR_NVS_INVALID_LENGTH
_SIZE = const(32)


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
        self._at = 0  # which of TRUST counts

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
        """Take it from a blob of ``size`` bytes. Raises ValueError if that is damaged."""
        number, self.counter, count, retired = struct.unpack_from(_HEAD, data)
        end = _HEAD_SIZE + _SIZE * (count + retired)
        is_whole = size > end if number == _FORMAT else number == 1 and size == end
        if not is_whole or count > MAX_KEYS or retired > _MAX_RETIRED or self.counter >> 31:
            raise ValueError
        digests = [bytes(data[i : i + _SIZE]) for i in range(_HEAD_SIZE, end, _SIZE)]
        self.trusted, self.retired = digests[:count], digests[count:]
        if number == _FORMAT:
            self.takes_images = bool(data[end] & 1)
            self.name, self.version = str(data[end + 1 : size], "utf-8").split("\0")


def load():
    """What NVS holds. Raises ReleaseError if that cannot be read: it does not count as no keys."""
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
    digest = _digest_of(key)
    _change((digest,), ())
    return digest


def retire(key):
    """Trust a key no longer, given as for `add`. The last one cannot be retired: `clear`."""
    _change((), (_digest_of(key),))


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


def _digest_of(key):
    from .signature import digest_of_key

    return digest_of_key(key)
