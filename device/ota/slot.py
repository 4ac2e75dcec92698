"""Writes a partition, sector by sector, each read back and compared; and the switch to a slot.

Flash is erased by 64 KiB without a buffer of that size. ``writeblocks(block, buf)`` erases
``len(buf)`` bytes and then writes, and ESP-IDF refuses to write from address 0 before it touches
the flash (``esp_flash_api.c: esp_flash_write``, ESP_ERR_INVALID_ARG). So a bytearray at address 0
erases, and nothing is written. Where a chip's driver should not look at the address, it crashes:
it is first asked under a note in NVS, which gives up after two resets, and what it has done is
checked. The note holds the digest of the app that runs: another firmware is asked anew.
"""

import struct

from esp32 import Partition
from micropython import const
from uctypes import bytearray_at

from . import base
from .base import ROOM, SlotError, StateError
from .image import SECTOR

HEAD_SIZE = const(32)  # of an app: what is written last

_BLOCK = const(65536)
_PIECE = const(1024)  # what is read back at once
_NOT_WRITTEN = const(-258)  # ESP_ERR_INVALID_ARG
_NOTE = "erase"  # u8 tries that ended in a reset, or one of the next two; digest of the app
_TRIES = const(2)
_GOOD = const(0xFF)
_BAD = const(0xFE)
_NAMED = const(4)  # places of lost bytes that an error names
_VALIDATE_FAILED = const(-5379)  # ESP_ERR_OTA_VALIDATE_FAILED


class _Key:
    def __getitem__(self, key):
        return key


_BEHIND_HEAD = _Key()[HEAD_SIZE:]  # a slice that is allocated once


def acquire_slot(owner):
    """Make ``owner`` the one update that is under way. Raises StateError ("busy")."""
    if base.owner not in (None, owner):
        raise StateError("busy", "another update is under way: it has to end, or be aborted, first")
    base.owner = owner


def release_slot(owner):
    """The update of ``owner`` is over, however it ended."""
    if base.owner is owner:
        base.owner = None


class SlotWriter:
    """A stage that writes a partition, a sector at a time.

    Bytes come by `buffer`, which says where to put them, and `take`. A full sector goes to the
    flash by `work`, or with the next call, unless it stands there already: no step takes longer
    than one flash operation and a sector.

    ``passed(buf)`` is called with each sector that is in the flash, read back and found right (with
    ``verify`` off nothing is read back). ``before_erase()``: once, before the first erase.
    ``head_size``: the first bytes of the partition, which stay blank until `write_head`. ``at``:
    the offset to begin at, a multiple of 4096. ``buf``: ROOM bytes, if there are. ``by_sectors``:
    nothing is erased by 64 KiB, so that what stands there already is left alone.

    Raises SlotError.
    """

    def __init__(
        self,
        partition,
        passed,
        verify=True,
        before_erase=None,
        head_size=0,
        at=0,
        buf=None,
        by_sectors=False,
    ):
        self._part = partition
        self._passed = passed
        self._verify = verify
        self._before_erase = before_erase
        _, _, self._offset, self.limit, self.name, self._is_encrypted = partition.info()
        self._head_size = head_size
        self.head = None
        self.at = at  # where the sector at hand begins: all before it is in the flash
        self.kept = 0  # up to here it was there before, and is only read again
        self._fill = 0
        self._blank_end = 0  # up to here what follows `at` is erased
        self._is_due = False  # the sector at hand is full, and waits to be written
        self._erases_blocks = False if by_sectors else None  # unknown
        room = memoryview(buf or bytearray(ROOM))
        self._buf = room[:SECTOR]
        self._check = check = room[SECTOR:]
        self._shifted = check[:-1], check[1:]  # equal if all bytes are
        self._pieces = [self._buf[i : i + _PIECE] for i in range(0, SECTOR, _PIECE)]

    def buffer(self):
        """Where the next bytes belong, up to the end of the sector."""
        while self._is_due:
            self.work()
        return self._buf[self._fill :] if self._fill else self._buf

    def take(self, count):
        """``count`` bytes stand in `buffer`."""
        self._fill += count
        if self.at + self._fill > self.limit:
            raise SlotError("flash", "%s holds %d bytes, there are more" % (self.name, self.limit))
        if self._fill == SECTOR:
            self._flush()

    def write(self, buf):
        """Take bytes that stand anywhere, also in `buffer`."""
        if buf is self._buf:
            self.take(SECTOR)
            return
        view = memoryview(buf)
        while view:
            place = self.buffer()
            count = min(len(view), len(place))
            place[:count] = view[:count]
            self.take(count)
            view = view[count:]

    def work(self):
        """Do what `take` has left over; whether there was anything."""
        if not self._is_due:
            return False
        if self.at >= self._blank_end:
            if self._before_erase:
                self._announce()
                return True
            if self._make_blank():
                return True
        self._is_due = False
        self._program()
        self._pass_on()
        return True

    def close(self):
        """Write the last, partial sector, filled up with 0xFF."""
        while self.work():
            pass
        if self._fill:
            size = self._fill
            for at in range(size, SECTOR):
                self._buf[at] = 0xFF
            self._fill = SECTOR
            self._flush()
            while self.work():
                pass

    def tidy(self):
        """A generator: erase what stands behind the bytes written, a block at a time."""
        at = self.at
        while at < self.limit:
            size = min(_BLOCK - (self._offset + at) % _BLOCK, self.limit - at)
            is_blank = self._is_blank(at, size)
            if not is_blank and (size < _BLOCK or not self._erase_block(at)):
                size = SECTOR
                self._erase_sector(at)
            at += size
            yield 0
        self._blank_end = 0

    def write_head(self):
        """Write the first bytes, which were left blank: now the image is one."""
        self._write_flash(0, self.head, 0)
        place = self._check[: self._head_size]
        self._read_flash(0, place, 0)
        if place != self.head:
            raise SlotError("flash", "flash lost bytes of the image's header in %s" % self.name)

    def go_to(self, at, blank_end=0):
        """What comes next belongs to offset ``at``; up to ``blank_end`` the flash is erased."""
        self.at = at
        self._blank_end = blank_end

    def clear(self, at):
        """Erase the sector at offset ``at``."""
        if not self._is_blank(at, SECTOR):
            self._erase_sector(at)

    # --- a sector

    def _flush(self):
        is_head = self._head_size and not self.at
        if is_head:
            self.head = bytes(self._buf[: self._head_size])
        if self.at < self.kept:
            self._pass_on()
            return
        if not is_head and self._verify and self.at >= self._blank_end and self._is_right():
            self._pass_on()
            return
        self._is_due = True

    def _pass_on(self):
        self._passed(self._buf)
        self.at += SECTOR
        self._fill = 0

    def _make_blank(self):
        """See that the sector at hand is erased; whether it had to be. The first one always is."""
        at = self.at
        always = self._head_size and not at
        is_block = (self._offset + at) % _BLOCK == 0 and at + _BLOCK <= self.limit
        size = _BLOCK if is_block else SECTOR
        if not always and self._is_blank(at, size):
            self._blank_end = at + size
            return False
        if is_block and self._erase_block(at):
            self._blank_end = at + _BLOCK
            return True
        self._blank_end = at + SECTOR
        if not always and is_block and self._is_blank(at, SECTOR):
            return False
        self._erase_sector(at)
        return True

    def _program(self):
        self._put()
        if self._verify and not self._is_right():
            self._erase_sector(self.at)  # once more
            self._put()
            if not self._is_right():
                raise SlotError("flash", self._name_lost())

    def _put(self):
        if self._head_size and not self.at:
            self._write_flash(0, self._buf[_BEHIND_HEAD], HEAD_SIZE)
        else:
            self._write_flash(self.at // SECTOR, self._buf, 0)

    def _read(self, piece):
        """Read a piece of the sector at hand back from the flash."""
        at = self.at + piece * _PIECE
        if at or not self._head_size:
            self._read_flash(at // SECTOR, self._check, at % SECTOR)
        else:
            self._read_flash(0, self._check[_BEHIND_HEAD], HEAD_SIZE)
            self._check[:HEAD_SIZE] = self.head

    def _is_right(self):
        """Whether the flash holds the sector at hand."""
        for piece in range(len(self._pieces)):
            self._read(piece)
            if self._check != self._pieces[piece]:
                return False
        return True

    def _is_blank(self, at, size):
        check = self._check
        for piece in range(at, at + size, _PIECE):
            self._read_flash(piece // SECTOR, check, piece % SECTOR)
            if check[0] != 0xFF or self._shifted[0] != self._shifted[1]:
                return False
        return True

    def _name_lost(self):
        """What is missing in a sector, in words."""
        lost = 0
        places = ""
        for piece in range(len(self._pieces)):
            self._read(piece)
            for at in range(_PIECE):
                if self._check[at] != self._pieces[piece][at]:
                    if lost < _NAMED:
                        place = self.at + piece * _PIECE + at
                        places += "%s0x%x" % (", " if places else "", place)
                    lost += 1
        return "flash lost %d bytes of %s, twice, at offset %s%s" % (
            lost,
            self.name,
            places,
            ", ..." if lost > _NAMED else "",
        )

    # --- the flash

    def _erase_sector(self, at):
        self._announce()
        try:
            self._part.ioctl(6, at // SECTOR)
        except OSError as error:
            raise self._failure(error)

    def _announce(self):
        if self._before_erase:
            self._before_erase()
            self._before_erase = None

    def _erase_block(self, at):
        """Erase 64 KiB at once; False where this firmware cannot."""
        if self._erases_blocks is None:
            self._erases_blocks = False
            if not self._is_encrypted:
                self._announce()
                self._erases_blocks = self._try_block(at)
                return self._erases_blocks
        if self._erases_blocks:
            self._announce()
            self._erases_blocks = self._ask(at)
        return self._erases_blocks

    def _ask(self, at):
        try:
            self._part.writeblocks(at // SECTOR, bytearray_at(0, _BLOCK))
        except OSError as error:
            return error.args[0] == _NOT_WRITTEN
        return False

    def _try_block(self, at):
        """As `_ask`; where that is not known to do what it should, under a note, and checked."""
        app = base.app_id(Partition(Partition.RUNNING)) or b""
        found = base.recall(_NOTE, 1 + HEAD_SIZE)
        tries = found[0] if len(found) and found[1:] == app else 0
        if tries == _GOOD:
            return self._ask(at)
        if tries >= _TRIES or not base.note(_NOTE, bytes((tries + 1,)) + app):
            return False
        is_good = self._ask(at) and self._is_blank(at, _BLOCK)
        base.note(_NOTE, bytes((_GOOD if is_good else _BAD,)) + app)
        return is_good

    def _read_flash(self, block, buf, offset):
        try:
            self._part.readblocks(block, buf, offset)
        except OSError as error:
            raise self._failure(error)

    def _write_flash(self, block, buf, offset):
        try:
            self._part.writeblocks(block, buf, offset)
        except OSError as error:
            raise self._failure(error)

    def _failure(self, error):
        return SlotError("flash", "the flash of %s fails: %s" % (self.name, error))


def erases_blocks():
    """Whether updates erase 64 KiB at once: True, False, or None where none has tried yet."""
    found = base.recall(_NOTE, 1 + HEAD_SIZE)
    if not len(found) or found[1:] != (base.app_id(Partition(Partition.RUNNING)) or b""):
        return None
    return True if found[0] == _GOOD else False if found[0] >= _TRIES else None


def take_head(part):
    """Take the first 32 bytes, as version 0.1 left them, out of the slot; they are returned."""
    sector = memoryview(bytearray(SECTOR))
    part.readblocks(0, sector)
    part.ioctl(6, 0)
    part.writeblocks(0, sector[HEAD_SIZE:], HEAD_SIZE)
    return bytes(sector[:HEAD_SIZE])


# --- the switch


def set_boot(part, digest):
    """Make ``part`` the next to boot. Raises StateError if ESP-IDF does not accept its image.

    Before that is noted in NVS what is to boot next: the u32 flash offset of its slot, and its
    digest. rollback.cancel() looks at it in the boots that follow (recovery.py: settle). A
    power cut can lose it, and that of an earlier update: then one that failed may be tried again.
    """
    if digest:
        base.note("trial", struct.pack("<I", part.info()[2]) + digest)
    try:
        part.set_boot()
    except OSError as error:
        if error.args[0] != _VALIDATE_FAILED:
            raise StateError("otadata", "otadata cannot be written: %s" % error)
        raise StateError(
            "not-bootable",
            "ESP-IDF does not accept the image in %s (checksum, or a chip revision that it is "
            "not made for)" % part.info()[4],
        )
