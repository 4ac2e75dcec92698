"""Lets a download go on after a reset or a power cut: the slot holds what has come of it.

Every 64 KiB a record is put into NVS: which file it is, how far it has come, and a digest. When the
same file is asked for again, the digest is computed anew over what the slot holds, so that only
what is in fact there counts. In the end the image's own digest decides, as always.
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

# slot offset, position, size of the file, digest up to the position, name of the file (SHA-256);
# then the validator.
_RECORD = "<III32s32s"
_RECORD_SIZE = const(76)
_MAX_VALIDATOR = const(100)


class Trail:
    """The bytes of a file that a slot holds, from the start of both.

    It is a stage: `write` gets the bytes of the slot as they were read back. ``buf``: 4096 bytes
    to read the slot with.

    ``size``: how many bytes there are from an earlier download, a multiple of 64 KiB, 0 if none;
    then ``total`` is the size of that file, ``validator`` its ETag or Last-Modified.
    """

    def __init__(self, part, buf):
        self.size = self.total = 0
        self.validator = None
        self._part = part
        self._buf = buf
        self._name = None
        self._pos = self._saved = 0
        self._sha = sha256()

    def recall(self, name):
        """A generator: find out what the slot holds of the file ``name``. It yields 0."""
        self._name = sha256(name.encode()).digest()
        buf, self._buf = self._buf, None  # it is the writer's, which may take a larger one
        data = bytearray(_RECORD_SIZE + _MAX_VALIDATOR)
        try:
            size = NVS(_NAMESPACE).get_blob(_KEY, data)
        except OSError:
            return
        offset, position, total, digest, name = struct.unpack(_RECORD, data)
        _, _, slot_offset, slot_size, _, _ = self._part.info()
        if (name, offset) != (self._name, slot_offset) or not position < total <= slot_size:
            return
        sha = sha256()
        at = 0
        while at < position:
            self._part.readblocks(at // _SECTOR, buf)
            sha.update(buf)
            at += _SECTOR
            if at % _STEP == 0:
                found = sha.digest()
                sha = sha256(found)
            yield 0
        if position and found == digest:
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
        self.size = self._saved = 0

    def write(self, buf):
        """Take the next bytes that are in the slot."""
        self._sha.update(buf)
        self._pos += len(buf)
        if self._pos % _STEP == 0:
            digest = self._sha.digest()
            self._sha = sha256(digest)
            if self._saved < self._pos < (self.total or 0):
                self._save(digest)

    def _save(self, digest):
        self._saved = self._pos
        offset = self._part.info()[2]
        data = struct.pack(_RECORD, offset, self._pos, self.total, digest, self._name)
        try:
            nvs = NVS(_NAMESPACE)
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


gc.collect()  # what loading left behind would divide a small heap
