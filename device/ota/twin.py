"""Records in NVS that a power cut leaves whole: two blobs, written by turns.

Byte 0 of a record is its format, a u32 at 1 its generation. The older of the two is written: the
other one stands, whenever the power goes (keys.py has why one blob is not enough).
"""

import struct

from esp32 import NVS
from micropython import const

from . import base
from .base import OTAError

TRIAL = ("trial-a", "trial-b")  # the keys of trial.py

_MAX_SIZE = const(512)


def recall_twin(keys):
    """The newer of two blobs, at most 512 bytes; b"" if there is none."""
    found = b""
    for key in keys:
        data = base.recall(key, _MAX_SIZE)
        if len(data) > 4 and (not found or _generation(data) > _generation(found)):
            found = data
    return bytes(found)


def save_twin(keys, make):
    """Write ``make(generation)`` over the older of two blobs. Raises OTAError ("nvs")."""
    newest, target = 0, keys[0]
    for key, other in (keys, (keys[1], keys[0])):
        data = base.recall(key, _MAX_SIZE)
        if len(data) > 4 and _generation(data) > newest:
            newest, target = _generation(data), other
    try:
        nvs = NVS("ota")
        nvs.set_blob(target, make(newest + 1))
        nvs.commit()
    except OSError as error:
        raise OTAError("nvs", "NVS does not take the state of updates: %s" % error)


def _generation(data):
    return struct.unpack_from("<I", data, 1)[0]
