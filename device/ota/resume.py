"""Lets a download go on after a reset or a power cut: the slot holds what has come of it.

Every 64 KiB a record is put into NVS: which file it is, how far it has come, and a digest over the
first sector of each 64 KiB, by which it is seen later whether the slot still holds this file. All
of it goes through the checks once more then: in the end the image's own digest decides, as always.
"""

import gc
import struct
from hashlib import sha256

from esp32 import NVS
from micropython import const

_NAMESPACE = "ota"
_KEY = "download"
_STEP = const(65536)  # bytes between records: what is fetched again at most
_SECTOR = const(4096)

# slot offset, start and end in the file of what the slot holds of it, size of the file, digest,
# name of the file (SHA-256); then the validator.
_RECORD = "<IIII32s32s"
_RECORD_SIZE = const(80)
_DIGEST_SIZE = const(32)
_MAX_VALIDATOR = const(100)


class Trail:
    """The bytes of a file that a slot holds, from its start on.

    It is a stage: `write` gets the blocks of the slot. ``buf``: 4096 bytes to read it with.

    ``size``: how many bytes there are from an earlier download, a multiple of 64 KiB, 0 if none;
    then ``total`` is the size of that file, ``validator`` its ETag or Last-Modified. ``start``:
    their place in the file, which whoever finds an app in it sets.
    """

    def __init__(self, part, buf):
        self.start = self.size = self.total = 0
        self.validator = None
        self._part = part
        self._buf = buf
        self._name = None
        self._pos = self._saved = 0
        self._digest = bytearray(_DIGEST_SIZE)

    def recall(self, name):
        """A generator: find out what the slot holds of the file ``name``. It yields 0."""
        self._name = sha256(name.encode()).digest()
        buf, self._buf = self._buf, None  # it is the writer's, which may take a larger one
        data = bytearray(_RECORD_SIZE + _MAX_VALIDATOR)
        try:
            size = NVS(_NAMESPACE).get_blob(_KEY, data)
        except OSError:
            return
        offset, start, end, total, digest, name = struct.unpack(_RECORD, data)
        _, _, slot_offset, slot_size, _, _ = self._part.info()
        position = end - start
        if (name, offset) != (self._name, slot_offset) or not 0 < position <= slot_size:
            return
        if end >= total:
            return
        found = bytearray(_DIGEST_SIZE)
        for at in range(0, position, _STEP):
            self._part.readblocks(at // _SECTOR, buf)
            _add(found, buf)
            yield 0
        if found == digest:
            self.start = start
            self.size = self._saved = position
            self.total = total
            self.validator = str(data[_RECORD_SIZE:size], "ascii") or None

    def read(self, offset, buf):
        """Fill ``buf`` with the slot's bytes from ``offset`` on."""
        self._part.readblocks(offset // _SECTOR, buf, offset % _SECTOR)

    def begin(self, total, validator):
        """The file is fetched from its start."""
        self.total = total
        self.validator = validator if validator and len(validator) <= _MAX_VALIDATOR else None
        self.start = self.size = self._saved = 0

    def write(self, buf):
        """Take the next block that is in the slot: sectors of one 64 KiB."""
        if self._pos % _STEP == 0:
            _add(self._digest, buf[:_SECTOR])
        self._pos += len(buf)
        end = self.start + self._pos
        if self._pos % _STEP == 0 and self._saved < self._pos and end < (self.total or 0):
            self._save(end)

    def _save(self, end):
        self._saved = self._pos
        offset = self._part.info()[2]
        place = offset, self.start, end, self.total
        data = struct.pack(_RECORD, *place, self._digest, self._name)
        try:
            nvs = NVS(_NAMESPACE)
            # A power cut may lose it (keys.py): then the download starts over.
            nvs.set_blob(_KEY, data + (self.validator or "").encode())
            nvs.commit()
        except OSError:  # NVS is full, or there is none: then there is no resuming
            pass

    def forget(self):
        """What the slot holds is not to be used for another download."""
        try:
            nvs = NVS(_NAMESPACE)
            nvs.erase_key(_KEY)
            nvs.commit()
        except OSError:  # there was none
            pass


def _add(digest, sector):
    """Make ``digest`` that over one sector more. It stays where it is in the heap."""
    sha = sha256(digest)
    sha.update(sector)
    digest[:] = sha.digest()


gc.collect()  # what loading left behind would divide a small heap
