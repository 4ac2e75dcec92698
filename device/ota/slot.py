"""A new app on its way into a slot: checked as it comes, written sector by sector, read back.

Flash is erased by 64 KiB without a buffer of that size. ``writeblocks(block, buf)`` erases
``len(buf)`` bytes and then writes, and ESP-IDF refuses to write from address 0 before it touches
the flash (``esp_flash_api.c: esp_flash_write``, ESP_ERR_INVALID_ARG). So a bytearray at address 0
erases, and nothing is written. Where a chip's driver should not look at the address, it crashes:
before it is relied on, it is tried under a note (begin.py: try_block).

What makes an image, its first 32 bytes, is written when all else has been judged (finish.py): a
slot with a refused image, or a part of one, holds nothing that could boot.
"""

from hashlib import sha256

from micropython import const
from uctypes import bytearray_at

from .base import ROOM, SlotError, unload
from .image import AppImage

HEAD_SIZE = const(32)  # of an app: what is written last

_SECTOR = const(4096)
_BLOCK = const(65536)
_PIECE = const(1024)  # what is read back at once
_NOT_WRITTEN = const(-258)  # ESP_ERR_INVALID_ARG


class _Key:
    def __getitem__(self, key):
        return key


_BEHIND_HEAD = _Key()[HEAD_SIZE:]  # a slice that is allocated once


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
        _, _, self.offset, self.limit, self.name, self._is_encrypted = partition.info()
        self._head_size = head_size
        self.head = None
        self.at = at  # where the sector at hand begins: all before it is in the flash
        self.kept = 0  # end of the bytes of an earlier attempt, which are only read again
        self._fill = 0
        self.blank_end = 0  # flash from `at` to here is erased
        self._is_due = False  # the sector at hand is full, and waits to be written
        self._erases_blocks = False if by_sectors else None  # unknown
        room = memoryview(buf or bytearray(ROOM))
        self._buf = room[:_SECTOR]
        self.check = check = room[_SECTOR:]
        self._shifted = check[:-1], check[1:]  # equal if all bytes are
        self.pieces = [self._buf[i : i + _PIECE] for i in range(0, _SECTOR, _PIECE)]

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
        if self._fill == _SECTOR:
            self._flush()

    def write(self, buf):
        """Take bytes that stand anywhere, also in `buffer`."""
        if buf is self._buf:
            self.take(_SECTOR)
            return
        view = memoryview(buf)
        while view:
            place = self.buffer()
            count = min(len(view), len(place))
            place[:count] = view[:count]
            self.take(count)
            view = view[count:]

    def work(self):
        """Write the sector that `take` has filled; whether there was one."""
        if not self._is_due:
            return False
        if self.at >= self.blank_end:
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
            for at in range(size, _SECTOR):
                self._buf[at] = 0xFF
            self._fill = _SECTOR
            self._flush()
            while self.work():
                pass

    # --- a sector

    def _flush(self):
        is_head = self._head_size and not self.at
        if is_head:
            self.head = bytes(self._buf[: self._head_size])
        if self.at < self.kept:
            self._pass_on()
            return
        if not is_head and self._verify and self.at >= self.blank_end and self._is_right():
            self._pass_on()
            return
        self._is_due = True

    def _pass_on(self):
        self._passed(self._buf)
        self.at += _SECTOR
        self._fill = 0

    def _make_blank(self):
        """Erase the sector at hand if it is not blank, or is the first; whether it was erased."""
        at = self.at
        always = self._head_size and not at
        is_block = (self.offset + at) % _BLOCK == 0 and at + _BLOCK <= self.limit
        size = _BLOCK if is_block else _SECTOR
        if not always and self.is_blank(at, size):
            self.blank_end = at + size
            return False
        if is_block and self.erase_block(at):
            self.blank_end = at + _BLOCK
            return True
        self.blank_end = at + _SECTOR
        if not always and is_block and self.is_blank(at, _SECTOR):
            return False
        self.erase_sector(at)
        return True

    def _program(self):
        self._put()
        if self._verify and not self._is_right():
            self.erase_sector(self.at)  # once more
            self._put()
            if not self._is_right():
                from .failure import lost

                raise lost(self)

    def _put(self):
        if self._head_size and not self.at:
            self.write_flash(0, self._buf[_BEHIND_HEAD], HEAD_SIZE)
        else:
            self.write_flash(self.at // _SECTOR, self._buf, 0)

    def read(self, piece):
        """Read a piece of the sector at hand back from the flash."""
        at = self.at + piece * _PIECE
        if at or not self._head_size:
            self.read_flash(at // _SECTOR, self.check, at % _SECTOR)
        else:
            self.read_flash(0, self.check[_BEHIND_HEAD], HEAD_SIZE)
            self.check[:HEAD_SIZE] = self.head

    def _is_right(self):
        """Whether the flash holds the sector at hand."""
        for piece in range(len(self.pieces)):
            self.read(piece)
            if self.check != self.pieces[piece]:
                return False
        return True

    def is_blank(self, at, size):
        """Whether the ``size`` bytes at offset ``at`` are erased."""
        check = self.check
        for piece in range(at, at + size, _PIECE):
            self.read_flash(piece // _SECTOR, check, piece % _SECTOR)
            if check[0] != 0xFF or self._shifted[0] != self._shifted[1]:
                return False
        return True

    # --- the flash

    def erase_sector(self, at):
        """Erase the sector at offset ``at``."""
        self._announce()
        try:
            self._part.ioctl(6, at // _SECTOR)
        except OSError as error:
            raise self._failure(error)

    def _announce(self):
        if self._before_erase:
            self._before_erase()
            self._before_erase = None

    def erase_block(self, at):
        """Erase 64 KiB at once; False where this firmware cannot."""
        if self._erases_blocks is None:
            self._erases_blocks = False
            if not self._is_encrypted:
                self._announce()
                from .begin import try_block

                self._erases_blocks = try_block(self, at)
                return self._erases_blocks
        if self._erases_blocks:
            self._announce()
            self._erases_blocks = self.ask(at)
        return self._erases_blocks

    def ask(self, at):
        """Erase the 64 KiB at offset ``at`` without a buffer; whether ESP-IDF says that it did."""
        try:
            self._part.writeblocks(at // _SECTOR, bytearray_at(0, _BLOCK))
        except OSError as error:
            return error.args[0] == _NOT_WRITTEN
        return False

    def read_flash(self, block, buf, offset):
        """As readblocks() of the partition. Raises SlotError."""
        try:
            self._part.readblocks(block, buf, offset)
        except OSError as error:
            raise self._failure(error)

    def write_flash(self, block, buf, offset):
        """As writeblocks() of the partition. Raises SlotError."""
        try:
            self._part.writeblocks(block, buf, offset)
        except OSError as error:
            raise self._failure(error)

    def _failure(self, error):
        return SlotError("flash", "the flash of %s fails: %s" % (self.name, error))


class NewApp:
    """A stage for the bytes of an app image, which may stand in a larger file (``embedded``).

    ``board``: see image.py. ``force``: though this image has failed before. ``total``: bytes of the
    file, if known; ``sha``: its SHA-256, if that is due. ``signed``: SHA-256 of the content that a
    signature covers, if one was judged before. ``note``: what is remembered for an attempt after a
    reset: update.py, release.py. ``buf``, ``by_sectors``: see SlotWriter.

    Bytes come by `write`, or by `buffer` and `take`. Then finish.py judges and switches.
    """

    note = None
    failed = None  # what has failed on this board (recovery.py: Failed), if anything has

    def __init__(
        self,
        part,
        board,
        force=False,
        verify=True,
        *,
        embedded=False,
        needs_digest=True,
        total=None,
        sha=None,
        signed=None,
        buf=None,
        by_sectors=False,
    ):
        self.part = part
        self.force = force
        self.total = None if embedded else total
        self.signed = signed
        self.sha = sha256()  # over the image up to its own digest
        self.due = sha
        self.content_sha = sha256() if sha else None
        # Over all that a signature covers, where there may be one: it is a sector at the end.
        self.signed_sha = sha256() if signed or (total and not total % _SECTOR) else None
        self.writer = SlotWriter(
            part,
            self._passed,
            verify,
            self._before_erase,
            HEAD_SIZE,
            buf=buf,
            by_sectors=by_sectors,
        )
        self.image = AppImage(self.writer, board, part, self._accept, embedded, needs_digest)
        self.write = self.image.write
        self.buffer = self.writer.buffer
        self.work = self.writer.work

    @property
    def written(self):
        """Bytes that the slot holds, but for the first 32."""
        return self.writer.at

    def take(self, count):
        """``count`` bytes stand in `buffer`."""
        buf = self.writer.buffer()
        self.write(buf if count == len(buf) else buf[:count])

    def _accept(self, image):
        from .begin import accept

        accept(self, image)

    def _before_erase(self):
        from .begin import before_erase

        before_erase(self)

    def _passed(self, buf):
        """A sector is in the flash."""
        at = self.writer.at
        end = at + _SECTOR
        stop = self.image.digest_offset
        if stop is None or end <= stop:
            self.sha.update(buf)
        elif at < stop:
            self.sha.update(buf[: stop - at])
        if self.content_sha:
            self.content_sha.update(buf if end <= self.total else buf[: self.total - at])
        if self.signed_sha and (self.image.size is None or at < self.image.size):
            self.signed_sha.update(buf)
        if self.note:
            self.note.passed(end)
        if not at:
            unload("begin", "otadata", "chips")  # it is begun

    def seal(self, is_payload=False):
        """No more bytes come: judge them (finish.py: seal)."""
        from .finish import seal

        seal(self, is_payload)
