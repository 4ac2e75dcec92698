"""Lets a download go on after a reset or a power cut: the slot holds what has come of it.

Every 64 KiB it is noted in NVS which file it is, how far it has come, and the first 32 bytes of the
app, which the slot does not hold yet. All of it goes through the checks once more then: in the end
the image's own digest decides, as always. If it does not fit, the next attempt starts over.
"""

import struct
from hashlib import sha256

from micropython import const

from . import otadata
from .slot import HEAD_SIZE, SECTOR

KEY = "resume"
_KIND = const(1)
_STEP = const(65536)  # bytes between notes: what is fetched again at most
# kind; slot offset, start and end in the file of what the slot holds of it, size of the file; name
# of the file (SHA-256), first bytes of the app; then the validator.
_RECORD = "<BIIII32s32s"
_RECORD_SIZE = const(81)
_MAX_VALIDATOR = const(100)
# Of version 0.1, which wrote the first bytes with the others: the same without kind and first
# bytes, and a digest before the name.
_OLD_KEY = "download"
_OLD_RECORD = "<IIII32s32s"
_OLD_SIZE = const(80)


class Trail:
    """The bytes of a file that the slot ``part`` holds, from its start on.

    ``size``: how many bytes there are from an earlier download, a multiple of 64 KiB, 0 if none;
    then ``total`` is the size of that file, ``validator`` its ETag or Last-Modified. ``start``:
    their place in the file, which whoever finds an app in it sets.
    """

    def __init__(self, part):
        self._part = part
        self._writer = None
        self.start = self.size = self.total = 0
        self.validator = None
        self._name = None
        self._head = None
        self._saved = 0

    def recall(self, name):
        """A generator: find out what the slot holds of the file ``name``. It yields 0."""
        self._name = sha256(name.encode()).digest()
        data = otadata.recall(KEY, _RECORD_SIZE + _MAX_VALIDATOR)
        if len(data) >= _RECORD_SIZE:
            kind, offset, start, end, total, name, head = struct.unpack(
                _RECORD, data[:_RECORD_SIZE]
            )
            validator = data[_RECORD_SIZE:]
            if kind != _KIND:
                return
        else:
            data = otadata.recall(_OLD_KEY, _OLD_SIZE + _MAX_VALIDATOR)
            if len(data) < _OLD_SIZE:
                return
            offset, start, end, total, _, name = struct.unpack(_OLD_RECORD, data[:_OLD_SIZE])
            validator = data[_OLD_SIZE:]
            head = None
        part = self._part
        position = end - start
        if (name, offset) != (self._name, part.info()[2]) or not 0 < position <= part.info()[3]:
            return
        if end >= total or position % SECTOR:
            return
        try:
            self.validator = str(validator, "ascii") or None
        except ValueError:
            return
        yield 0
        self._head = head or take_head(part)
        self.start = start
        self.size = self._saved = position
        self.total = total

    def read(self, offset, buf):
        """Fill ``buf`` with the slot's bytes from ``offset`` on."""
        self._part.readblocks(offset // SECTOR, buf, offset % SECTOR)
        if offset < HEAD_SIZE:
            count = min(HEAD_SIZE - offset, len(buf))
            buf[:count] = self._head[offset : offset + count]

    def begin(self, total, validator):
        """The file is fetched from its start."""
        self.total = total
        self.validator = validator if validator and len(validator) <= _MAX_VALIDATOR else None
        self.start = self.size = self._saved = 0

    def attach(self, app):
        """The app that comes is ``app``, a NewApp, whose note this is."""
        self._writer = app.writer
        app.writer.kept = self.size
        return self

    def passed(self, position):
        """The slot holds the first ``position`` bytes."""
        end = self.start + position
        if position % _STEP == 0 and self._saved < position and end < (self.total or 0):
            self._saved = position
            place = _KIND, self._part.info()[2], self.start, end, self.total
            data = struct.pack(_RECORD, *place, self._name, self._writer.head)
            # A power cut may lose it (keys.py), a full NVS has no room: the download starts over.
            otadata.note(KEY, data + (self.validator or "").encode())


def take_head(part):
    """Take the first 32 bytes, as version 0.1 left them, out of the slot; they are returned."""
    sector = memoryview(bytearray(SECTOR))
    part.readblocks(0, sector)
    part.ioctl(6, 0)
    part.writeblocks(0, sector[HEAD_SIZE:], HEAD_SIZE)
    return bytes(sector[:HEAD_SIZE])
