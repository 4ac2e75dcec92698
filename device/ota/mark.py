"""Lets a release go on after a reset or a power cut: the slot holds what has come of its app.

Every 64 KiB it is noted in NVS which app it is, how far it has come, and which of the bytes that
give it come next. When it comes again, what the slot holds is not fetched again. It goes through
all the checks: if the slot holds something else, that update fails, and the next one starts over.
"""

import struct

from esp32 import NVS
from micropython import const

from .errors import OTAError

_NAMESPACE = "ota"
_KEY = "payload"
_STEP = const(65536)  # bytes between notes: what is fetched again at most
# slot offset, size of the bytes that give it, how many of them were used, bytes of content made of
# them, SHA-256 of the content
_RECORD = "<IIII32s"
_RECORD_SIZE = const(48)


class Mark:
    """How far the app ``item`` has come in the slot of the update ``target``."""

    def __init__(self, item, target):
        self._target = target
        offset = target.part.info()[2]
        self._what = offset, item.size, bytes.fromhex(item.sha256)
        self._saved = 0
        self._next = None  # to be noted once the slot holds it

    def recall(self):
        """(bytes of content, bytes that gave them) of an earlier attempt, taken from the slot."""
        data = bytearray(_RECORD_SIZE)
        try:
            NVS(_NAMESPACE).get_blob(_KEY, data)
        except OSError:
            return 0, 0
        offset, size, place, at, sha256 = struct.unpack(_RECORD, data)
        if (offset, size, sha256) != self._what:
            return 0, 0
        try:
            self._target.keep(at)
        except OTAError:
            forget()
            raise
        self._saved = at
        return at, place

    def forget(self):
        """The bytes are of no use."""
        forget()

    def note(self, at, place):
        """``at`` bytes of content are made of ``place`` bytes, and can be gone on from."""
        if self._next and self._target.written >= self._next[0]:
            self._saved, place_saved = self._next
            self._next = None
            offset, size, sha256 = self._what
            data = struct.pack(_RECORD, offset, size, place_saved, self._saved, sha256)
            try:
                nvs = NVS(_NAMESPACE)
                nvs.set_blob(_KEY, data)  # a power cut may lose it: then the app starts over
                nvs.commit()
            except OSError:  # NVS is full, or there is none: then there is no going on
                pass
        if self._next is None and at >= self._saved + _STEP:
            self._next = at, place


class Plain:
    """A stage for the bytes of an app as they are: they go on where they broke off."""

    def __init__(self, target, mark, close):
        self._target = target
        self._mark = mark
        self.close = close
        self._left_out = mark.recall()[0]

    def write(self, buf):
        if self._left_out:
            count = min(self._left_out, len(buf))
            self._left_out -= count
            if count == len(buf):
                return
            buf = memoryview(buf)[count:]
        self._target.write(buf)
        at = self._target.written
        self._mark.note(at, at)

    def skip(self):
        """How many of the bytes that come next are not wanted."""
        count = self._left_out
        self._left_out = 0
        return count


def forget():
    """What the slot holds is not to be gone on with."""
    try:
        nvs = NVS(_NAMESPACE)
        nvs.erase_key(_KEY)
        nvs.commit()
    except OSError:  # there was none
        pass
