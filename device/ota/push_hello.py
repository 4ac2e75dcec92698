"""The beginning of a push: the greeting, and what is looked at before an update is taken.

Loaded for these two messages alone: code lives in the heap.
"""

import struct
from os import urandom

from micropython import const

from .errors import ImageError
from .push_receiver import VERSION, PushError

_WELCOME = const(0x81)
_NONCE_SIZE = const(16)
_MAX_VERSION = const(64)
_ANY_CHIP = const(0xFFFF)


def greet(session, data, flags, runs):
    """WELCOME, the answer to a HELLO. ``runs``: what does (bytes). Raises PushError."""
    if data[1] != VERSION:
        text = "protocol version %d, this is %d" % (data[1], VERSION)
        if data[1] < VERSION:
            text += ": update mpota (pip install --upgrade mpota)"
        raise PushError("protocol", text)
    nonce = bytes(data[2 : 2 + _NONCE_SIZE])
    nonces = session.nonces
    if not nonces or nonces[:_NONCE_SIZE] != nonce:  # else it has not heard the answer
        nonces = session.nonces = nonce + urandom(_NONCE_SIZE)
    runs = runs[:_MAX_VERSION]
    head = struct.pack(
        "<BBB16sHHB", _WELCOME, VERSION, flags, nonces[_NONCE_SIZE:], _chip_id(),
        session.link.packet_size, len(runs),
    )  # fmt: skip
    return head + runs


def check_wish(size, chip, version, accept):
    """Raises OTAError if this board cannot take such an update, or the app does not want it."""
    from esp import flash_size

    if not 0 < size <= flash_size():
        raise ImageError(
            "too-long" if size else "empty",
            "a file of %d bytes, the flash has %d" % (size, flash_size()),
        )
    own = _chip_id()
    if chip not in (_ANY_CHIP, own):
        from .chips import chip_name

        raise ImageError(
            "wrong-chip",
            "the update is for %s, this board is %s" % (chip_name(chip), chip_name(own)),
        )
    try:
        text = str(version, "utf-8")
    except UnicodeError:
        raise PushError("protocol", "a version that is no text")
    if accept and accept(size, None if chip == _ANY_CHIP else chip, text) is False:
        raise PushError("refused", "the app on the board does not want version %s" % text)


def _chip_id():
    from esp32 import Partition

    head = bytearray(14)
    Partition(Partition.RUNNING).readblocks(0, head, 0)
    return head[12] | head[13] << 8
