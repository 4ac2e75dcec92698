"""Finds the app in a merged firmware: bootloader, partition table and app in one file."""

import gc
import struct

from micropython import const

from .base import ImageError
from .image import DESC_MAGIC, MAGIC, is_blank, refused

_SECTOR = const(4096)
_IMAGE_HEADER_SIZE = const(24)
_DESC_OFFSET = const(32)
_BOOTLOADER_DESC_MAGIC = const(0x50)
_TABLE_MAGIC = b"\xaa\x50"
_TABLE_MD5_MAGIC = b"\xeb\xeb"
_TABLE_SIZE = const(0xC00)
_ENTRY_SIZE = const(32)
_FLASH_LIMIT = const(0x8000000)  # no flash is larger
_TABLE_LIMIT = const(0x100000)  # no table stands beyond this
_APP_SUBTYPES = (0, 0x10)  # factory, ota_0: what the bootloader starts where otadata is blank
_NOWHERE = const(0x3FFFFFFF)


class MergedFirmware:
    """A stage that finds the app in a merged firmware and lets that alone pass.

    The file starts with the bootloader, or is a dump of the flash from its start. Its partition
    table is read as it streams by; the app in it is `factory`, or else `ota_0`. ``trail``, if there
    is one, is told where in the file it begins.
    """

    def __init__(self, app, board, trail=None):
        self._app = app
        self._trail = trail
        self._board = board
        self._pos = 0
        self._is_blank = False  # at its start
        self._base = None  # flash address of the file's first byte
        self._start = self._end = _NOWHERE  # the app's place in the file
        self._block = None  # the start of a sector that comes in pieces

    @property
    def is_complete(self):
        return self._app.is_complete

    def write(self, buf):
        """Take the next bytes. Raises ImageError as soon as there cannot be an app in them."""
        pos = self._pos
        end = self._pos = pos + len(buf)
        if pos == 0:
            self._is_blank = buf[0] != MAGIC
        if self._end == _NOWHERE:
            self._scan(buf, pos, end)
        if pos >= self._start and end <= self._end:
            self._app.write(buf)
        elif end > self._start and pos < self._end:
            self._app.write(memoryview(buf)[max(self._start - pos, 0) : self._end - pos])

    def _scan(self, buf, pos, end):
        """Look at the start of each sector for the bootloader, then for the table."""
        view = memoryview(buf)
        at = pos
        while at < end and self._end == _NOWHERE:
            have = at % _SECTOR
            stop = at - have + _TABLE_SIZE  # of what is of interest in this sector
            if have == 0 and stop <= end:
                self._examine(view[at - pos : stop - pos], at)
            elif have < _TABLE_SIZE:  # comes in pieces
                count = min(stop, end) - at
                if self._block is None:
                    self._block = bytearray(_TABLE_SIZE)
                self._block[have : have + count] = view[at - pos : at - pos + count]
                if at + count == stop:
                    self._examine(memoryview(self._block), stop - _TABLE_SIZE)
            at = min(end, stop if at < stop else at - have + _SECTOR)

    def _examine(self, block, offset):
        if self._base is None:
            if block[0] == MAGIC:
                self._board.check_chip(block, "the firmware")
                # Of a chip that has no row: the file starts where its bootloader stands.
                base = (self._board.memory.bootloader_offset or 0) - offset
                self._base = max(base, 0)
            elif not is_blank(block):
                raise refused("not-an-image", block)
        else:
            app = find_app(block)
            if app:
                self._block = None
                self._start = app[0] - self._base
                self._end = self._start + app[1]
                if self._start <= offset:
                    raise ImageError(
                        "no-app", "the firmware's app at 0x%x is not in the file" % app[0]
                    )
                if self._trail:
                    self._trail.start = self._start
        if self._end == _NOWHERE and offset >= _TABLE_LIMIT:
            raise ImageError("no-table", self._no_table())

    def _no_table(self):
        if self._is_blank and self._base is None:
            return "the file is blank: its first %d bytes are 0xff" % self._pos
        return (
            "the file is a bootloader, with no partition table in its first %d bytes: "
            "pass the app image or the merged firmware" % self._pos
        )

    def finish(self):
        """No more bytes come. Raises ImageError unless a whole app has passed."""
        if self._end == _NOWHERE:
            raise ImageError("no-table", self._no_table())
        if self._pos <= self._start:
            raise ImageError(
                "truncated",
                "the firmware ends after %d bytes, its app starts at %d" % (self._pos, self._start),
            )
        self._app.finish()


def find_app(table):
    """(flash address, size) of the app to take from a partition table, None if it is no table.

    ``table``: a memoryview of 0xC00 bytes. Raises ImageError for a table without an app.
    """
    apps = {}
    at = 0
    while at < _TABLE_SIZE and bytes(table[at : at + 2]) == _TABLE_MAGIC:
        kind, subtype, offset, size = struct.unpack_from("<BBII", table, at + 2)
        if kind == 0:
            if offset >= _FLASH_LIMIT or not 0 < size <= _FLASH_LIMIT:
                raise ImageError(
                    "no-app",
                    "the firmware's partition table is damaged: an app of 0x%x bytes at 0x%x"
                    % (size, offset),
                )
            apps[subtype] = (offset, size)
        at += _ENTRY_SIZE
    if at == 0:
        return None
    end = table[at : at + _ENTRY_SIZE]
    if bytes(end[:2]) == _TABLE_MD5_MAGIC:
        from hashlib import md5

        if md5(table[:at]).digest() != bytes(end[16:]):
            return None
    elif not is_blank(end):
        return None
    for subtype in _APP_SUBTYPES:
        if subtype in apps:
            return apps[subtype]
    raise ImageError("no-app", "the firmware's partition table has no factory app and no ota_0")


def is_merged(head, board):
    """Whether a file that starts with these bytes is a merged firmware, not an app image."""
    if is_blank(memoryview(head)):
        return True  # a dump of a chip whose bootloader stands further back
    if head[0] != MAGIC or len(head) < _DESC_OFFSET + 4:
        return False
    if head[_DESC_OFFSET : _DESC_OFFSET + 4] == DESC_MAGIC:
        return False
    if head[_DESC_OFFSET] == _BOOTLOADER_DESC_MAGIC:
        return True
    # An app's first segment is mapped, a bootloader's is loaded.
    return not board.memory.is_mapped(struct.unpack_from("<I", head, _IMAGE_HEADER_SIZE)[0])


gc.collect()  # what loading left behind would divide a small heap
