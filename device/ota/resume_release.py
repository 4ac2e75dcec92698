"""Lets a release go on after a reset or a power cut: its app in the slot, its data in a partition.

Every 64 KiB it is noted in NVS which payload it is, how far it has come, and which of the bytes
that give it come next. When it comes again, what the flash holds is not fetched again. An app goes
through all the checks once more: if the slot holds something else, that update fails, and the next
one starts over. Data was verified before it was written; the note holds the digest of what comes
next (chain.py).
"""

import struct

from micropython import const

from . import otadata
from .slot import SECTOR

_KEYS = {"app": "resume", "data": "resume-data"}  # in NVS
_KIND = const(2)
_STEP = const(65536)  # bytes between notes: what is fetched again at most
# kind; offset of the partition, size of the bytes that give the payload, how many of them were
# used, bytes of content made of them; SHA-256 of the content; of an app its first bytes, of data
# the link.
_RECORD = "<BIIII32s32s"
_RECORD_SIZE = const(81)
_OLD_KEY = "payload"  # of version 0.1: without kind and first bytes
_OLD_RECORD = "<IIII32s"
_OLD_SIZE = const(48)


class Mark:
    """How far the payload ``item`` has come in the partition ``part``.

    ``target`` writes it (app.py, chain.py); it is set before `note` is called. ``last``: where it
    can be gone on from at most. ``at`` and ``place``: bytes of content, and of the bytes that gave
    them, of an earlier attempt, 0 if there is none; ``more``: what the note holds beside that.
    """

    target = None

    def __init__(self, item, part, last):
        self._key = _KEYS[item.kind]
        self._last = last
        offset = part.info()[2]
        self._what = offset, item.size, bytes.fromhex(item.sha256)
        self._next = None  # to be noted once the flash holds it
        self.at = self.place = 0
        self.more = None
        data = otadata.recall(self._key, _RECORD_SIZE)
        if len(data) == _RECORD_SIZE and data[0] == _KIND:
            _, offset, size, place, at, sha256, more = struct.unpack(_RECORD, data)
        else:
            data = otadata.recall(_OLD_KEY, _OLD_SIZE)
            if len(data) < _OLD_SIZE or item.kind != "app":
                return
            offset, size, place, at, sha256 = struct.unpack(_OLD_RECORD, data)
            more = None
        if (offset, size, sha256) != self._what or at % SECTOR or not 0 < at <= self._last:
            return
        if more is None:
            from .resume_download import take_head

            more = take_head(part)
        self.at, self.place, self.more = at, place, more
        self._saved = at

    _saved = 0

    def note(self, at, place, more=None):
        """``at`` bytes of content are made of ``place`` bytes, and can be gone on from."""
        if self._next and self.target.written >= self._next[0]:
            at_saved, place_saved, more_saved = self._next
            self._next = None
            self._saved = at_saved
            offset, size, sha256 = self._what
            more_saved = more_saved or self.target.writer.head
            otadata.note(
                self._key,
                struct.pack(
                    _RECORD, _KIND, offset, size, place_saved, at_saved, sha256, more_saved
                ),
            )  # a power cut may lose it: then the payload starts over
        if self._next is None and self._saved + _STEP <= at <= self._last:
            self._next = at, place, more

    def forget(self):
        """What the flash holds is of no use."""
        otadata.forget(self._key, _OLD_KEY)
