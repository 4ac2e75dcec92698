"""A new app on its way into the next slot: from its source, through the checks, into the flash.

A *source* is a file or a stream (local.py), or a URL (http.py). It has ``readinto(buf)`` (the
number of bytes, 0 at the end), ``size`` (in bytes, None if it is not known), ``limit`` (the most
bytes that it may have), ``name``, ``is_joined`` (what came may not be one whole file: see
`is_stale`) and ``close()``. What goes wrong is a SourceError. A body that ends before its announced
size is an error here, not an end.

Only files and URLs have ``opening()``, which does what ``open()`` does as a generator of the
milliseconds to wait, ``try_readinto(buf)``, which answers None where there is nothing yet,
``pass_over(count)``, to leave the next bytes out, and ``reading_end(buf)``, a generator like
``opening()`` that fills ``buf`` with the last bytes of the file, before that is opened.

A *stage* takes bytes by ``write(view)``, of at most ``wanted()`` bytes: 0 where it wants no more.
What a write leaves to be done, ``work()`` does, step by step, none longer than one flash operation
and a sector; it answers whether there was anything, and comes before the next write. ``skip()``:
how many of the bytes that come next it does not want. ``finish()``: all bytes have come.

AppImage checks an image by the bootloader's rules (``esp_image_format.c``) as its bytes arrive. The
XOR checksum is left to set_boot(), which verifies it in C before it switches. What makes it an
image, its first 32 bytes, is written when all else has been judged: a slot with a refused image, or
a part of one, holds nothing that could boot.

SlotWriter writes a partition, sector by sector, each read back and compared. It erases 64 KiB at
once without a buffer of that size. ``writeblocks(block, buf)`` erases ``len(buf)`` bytes and then
writes, and ESP-IDF refuses to write from address 0 before it touches the flash
(``esp_flash_api.c: esp_flash_write``, ESP_ERR_INVALID_ARG). So a bytearray at address 0 erases, and
nothing is written. Where a chip's driver should not look at the address, it crashes: it is first
asked under a note in NVS, which gives up after two resets, and what it has done is checked. The
note holds the digest of the app that runs: another firmware is asked anew.
"""

import errno
import gc
import struct
from hashlib import sha256
from time import sleep_ms

from esp32 import Partition
from micropython import const
from uctypes import bytearray_at

from . import base
from .base import (
    OTAError,
    SlotError,
    SourceError,
    StateError,
    check_sha,
    no_memory,
    unload,
)

# Of sources and stages.
TIMEOUT_S = const(30)
LIMIT = const(0x8000000)  # bytes, if the caller names no limit: the largest flash there is

_POLL_MS = const(2)

# Of images.
SECTOR = const(4096)
_HEADER_SIZE = const(24)
_DIGEST_SIZE = const(32)
_DESC_SIZE = const(256)

MAGIC = const(0xE9)
_SIGNATURE_MAGIC = const(0xE7)
DESC_MAGIC = b"\x32\x54\xcd\xab"
_MAX_SEGMENTS = const(16)
_MAX_SEGMENT_SIZE = const(0x1000000)
_MMU_PAGE_OFFSET = const(180)  # in esp_app_desc_t
_MMU_PAGE = const(0x10000)
_NOTHING = const(0x3FFFFFFF)  # an offset that no byte has

_FIRST_LOADED = const(0x10000000)  # below: padding, never loaded (should_load)

# Of the flash.
HEAD_SIZE = const(32)  # of an app: what is written last

_BLOCK = const(65536)
_PIECE = const(1024)  # what is read back at once
ROOM = const(5120)  # bytes: for a sector, and for a piece of it that is read back
_NOT_WRITTEN = const(-258)  # ESP_ERR_INVALID_ARG
_NOTE = "erase"  # u8 tries that ended in a reset, or one of the next two; digest of the app
_TRIES = const(2)
_GOOD = const(0xFF)
_BAD = const(0xFE)
_NAMED = const(4)  # places of lost bytes that an error names
_VALIDATE_FAILED = const(-5379)  # ESP_ERR_OTA_VALIDATE_FAILED


# --- sources


def is_url(name):
    """Whether ``name`` is a URL to fetch, not a file."""
    return name.split(":", 1)[0].lower() in ("http", "https") and "://" in name


def open_source(name, **request_args):
    """A source for a file name or a URL, open; `HttpSource` takes the ``request_args``."""
    return make_source(name, **request_args).open()


def make_source(name, **request_args):
    """As `open_source`, still to be opened."""
    if is_url(name):
        try:
            from .http import HttpSource

            return HttpSource(name, **request_args)
        except MemoryError as error:
            unload("http_connect")
            raise no_memory(error, name, SourceError)
    from .local import FileSource

    return FileSource(name, request_args.get("limit"))


def is_stale(source, error):
    """Whether an update from ``source`` may have failed for what it put together alone.

    That is, for parts of two versions of a file, or for an end that nothing but the end of the
    connection told. Then it is worth a new attempt.
    """
    return error.code == "changed" or (
        source is not None and source.is_joined and not isinstance(error, SourceError)
    )


# --- from a source into stages


class Inlet:
    """Brings bytes into a stage: ``buf``, a memoryview, is where they are put first."""

    def __init__(self, stage, buf):
        self.stage = stage
        self._buf = buf
        self._rest = buf[:0]  # of what was put there: what the stage has not got yet

    def fill(self, count):
        """``count`` bytes stand in ``buf``."""
        self._rest = self._buf[:count]

    def buffer(self):
        """Where to put the next bytes; None if no more are wanted."""
        while self.work():
            pass
        count = self.stage.wanted()
        return self._buf[:count] if count else None

    take = fill

    def whole(self):
        """All of ``buf``: for bytes that are decoded, not read."""
        return self._buf

    def work(self):
        """One step, if there is one to do."""
        stage = self.stage
        if stage.work():
            return True
        rest = self._rest
        if not rest:
            return False
        count = min(stage.wanted(), len(rest))
        if count:
            stage.write(rest[:count])
            self._rest = rest[count:]
        else:
            self._rest = rest[:0]  # behind all that was wanted
        return True

    def skip(self):
        return self.stage.skip()

    def finish(self):
        while self.work():
            pass
        self.stage.finish()


def pumping(source, inlet, progress=None, done=0):
    """A generator: bring all of ``source``, which is open, into ``inlet``; yields ms to wait.

    The number of bytes that have come, or were left out.

    ``progress(done, total)`` is called after each piece; ``done``: bytes that have come before.
    """
    # A stream or a line waits by itself, and leaves nothing out.
    read = getattr(source, "try_readinto", source.readinto)
    pass_over = getattr(source, "pass_over", None)
    while True:
        while inlet.work():
            yield 0
        count = inlet.skip() if pass_over else 0
        if count:
            pass_over(count)
            done += count
        buf = inlet.buffer()
        if buf is None:
            return done
        count = read(buf)
        if count is None:
            yield _POLL_MS
            continue
        if not count:
            return done
        inlet.take(count)
        done += count
        if progress:
            progress(done, source.size)
        yield 0


class Progress:
    """Tells of the bytes that have come: the console, and the app's own ``callback(done, total)``.

    What that raises is known to be so (`translated`).
    """

    error = None

    def __init__(self, callback, intake=None, console=None):
        self._callback = callback
        self._intake = intake
        self._console = console

    def __call__(self, done, total):
        if self._console:
            self._console.report(done)
        if self._callback:
            try:
                self._callback(done, self._intake.total if self._intake else total)
            except BaseException as error:
                self.error = error
                raise


def translated(error, progress, what):
    """What comes out for ``error``: an OTAError where it is not the app's own, nor an interrupt."""
    if progress and error is progress.error:
        return error
    if isinstance(error, MemoryError):
        return no_memory(error, what)
    if isinstance(error, OSError):
        return OTAError("io", "%s: the flash or the file system fails: %s" % (what, error))
    if isinstance(error, ImportError):
        from .status import missing

        return missing(error)
    return error


def run(generator):
    """Run a generator that yields ms to wait, to its end; what it returns."""
    try:
        while True:
            pause_ms = next(generator)
            if pause_ms:
                sleep_ms(pause_ms)
    except StopIteration as end:
        return end.value
    finally:
        generator.close()  # a KeyboardInterrupt may come while it waits


# --- what can go wrong, in words


def too_long(name, limit):
    return SourceError("too-long", "%s has more than %d bytes, the limit here" % (name, limit))


def too_short(name, size, buf):
    return SourceError("too-short", "%s has %d bytes, at least %d are due" % (name, size, len(buf)))


def reason(error):
    """An OSError in a word."""
    number = error.errno
    name = errno.errorcode.get(number) if hasattr(errno, "errorcode") else None
    if name is None and len(error.args) > 1:
        name = error.args[1]
    return name or str(number)


# --- what an image has to be


class Memory:
    """Where an app may be loaded: the chip's memory less what the bootloader in this flash uses.

    The bootloader refuses an app that would be loaded over itself (``esp_image_format.c:
    verify_load_addresses``), set_boot() does not look. Filled in by image_more.py; addresses in
    ``mapped``, ``ram`` and ``alias`` are in units of 16 bytes.
    """

    bootloader_offset = None  # in flash
    mapped = ram = ()
    alias = None

    def __init__(self):
        self.used = []  # (by what, start, end), on the data bus

    def on_data_bus(self, address):
        if self.alias:
            base = self.alias[0] << 4
            if base <= address <= self.ram[3] << 4:
                return address - base + (self.alias[1] << 4)
        return address

    def is_mapped(self, address):
        """Whether a segment for this address is mapped from flash, not loaded (should_map)."""
        return _is_in(self.mapped, address, address)

    def find_conflict(self, start, end):
        """Why the bootloader would not load a segment to start..end, None if it would."""
        if not self.ram or start == end or start < _FIRST_LOADED or self.is_mapped(start):
            return None
        if not _is_in(self.ram, start, end - 1):
            return "is not in memory that an app can be loaded to"
        start = self.on_data_bus(start)
        end = self.on_data_bus(end)
        for what, used_start, used_end in self.used:
            if start < used_end and end > used_start:
                return "overlaps %s (0x%08x-0x%08x)" % (what, used_start, used_end)
        return None


def _is_in(ranges, first, last):
    first >>= 4
    last >>= 4
    return any(ranges[i] <= first and last < ranges[i + 1] for i in range(0, len(ranges), 2))


class Board:
    """What an image must fit: this board's chip, and the memory of its bootloader.

    ``header``: the first 24 bytes of the running app.
    """

    def __init__(self, running):
        self.header = bytearray(_HEADER_SIZE)
        running.readblocks(0, self.header, 0)
        self.chip_id, self.min_rev, self.max_rev = _chip_limits(self.header)
        from .image_more import load_memory

        self.memory = load_memory(self.chip_id)
        del load_memory
        unload("image_more")

    def check_chip(self, header, what):
        """Raises ImageError unless ``header`` is of an image for this chip and its revision.

        The revision of the chip cannot be read on stock MicroPython. That the running app runs
        bounds it; what is inside the bounds is decided by set_boot().
        """
        chip_id, min_rev, max_rev = _chip_limits(header)
        if chip_id != self.chip_id:
            raise refused("wrong-chip", what, chip_id, self.chip_id)
        if self.max_rev and min_rev > self.max_rev:
            raise refused("chip-revision", what, *divmod(min_rev, 100), *divmod(self.max_rev, 100))
        if max_rev and max_rev < self.min_rev:
            raise refused(
                "chip-revision 2", what, *divmod(max_rev, 100), *divmod(self.min_rev, 100)
            )


def _chip_limits(header):
    """(chip id, lowest revision, highest revision or 0 for no limit) of an image header."""
    chip_id, _, min_rev, max_rev = struct.unpack_from("<HBHH", header, 12)
    return chip_id, min_rev, 0 if max_rev == 0xFFFF else max_rev


class AppImage:
    """A stage that lets a bootable app image pass and raises ImageError for anything else.

    ``slot`` is the esp32.Partition for it, ``accept(image)`` is called once header and app_desc
    have passed and before any byte goes on; it may raise. With ``embedded`` the image stands in a
    larger file: what follows it is not looked at, and ``is_complete`` says when it is whole.
    ``needs_digest``: refuse an image that carries no SHA-256.

    ``size`` (bytes, digest included), ``digest_offset`` and ``digest`` are None until known.
    """

    def __init__(self, sink, board, slot, accept=None, embedded=False, needs_digest=True):
        self.header = bytearray(_HEADER_SIZE)
        self.desc = bytearray(_DESC_SIZE)
        self.size = self.digest_offset = self.digest = None
        self.is_complete = False
        self._sink = sink
        self._board = board
        _, _, self._slot_offset, self._slot_size, self._slot_name, _ = slot.info()
        self._accept = accept
        self._embedded = embedded
        self._needs_digest = needs_digest
        self._pos = 0  # bytes seen
        self._end = _NOTHING  # of what belongs to the image: digest, or signature sector
        self._index = 0
        self._segment = (0, 0, 0)
        self._page = _MMU_PAGE
        # The next field to look at: its offset, its size, what has arrived of it, and its parser.
        self._at, self._size, self._have = 0, _HEADER_SIZE, 0
        self._field = bytearray(_DESC_SIZE)
        self._parse = self._parse_header

    def write(self, buf):
        """Take the next bytes. Raises ImageError as soon as they cannot become an image."""
        if self.is_complete:
            return
        end = self._pos + len(buf)
        while self._at < end and self._collect(buf):
            pass
        if end > self._end:
            self._write_end(memoryview(buf), end)
        else:
            self._pos = end
            self._sink.write(buf)

    def _collect(self, buf):
        """Take from buf what it holds of the next field; parse that and return True if whole."""
        start = self._at + self._have - self._pos
        count = min(self._size - self._have, len(buf) - start)
        self._field[self._have : self._have + count] = memoryview(buf)[start : start + count]
        self._have += count
        if self._have < self._size:
            return False
        self._have = 0
        self._parse()
        return True

    def next_field(self):
        """(offset, memoryview to fill) of the next field of the image to look at, None at its end.

        For an image that can be read anywhere: fill it and call `parse_field`, instead of `write`.
        """
        return None if self._at == _NOTHING else (self._at, memoryview(self._field)[: self._size])

    def parse_field(self):
        """The field that `next_field` gave is filled. Raises ImageError as `write` does."""
        self._parse()

    def _await(self, offset, size, parse):
        self._at, self._size, self._parse = offset, size, parse

    def _parse_header(self):
        header = self.header
        header[:] = self._field[:_HEADER_SIZE]
        if header[0] != MAGIC:
            raise refused("not-an-image", header)
        self._board.check_chip(header, "the image")
        if not 1 <= header[1] <= _MAX_SEGMENTS:
            raise refused("segment-count", header[1], _MAX_SEGMENTS)
        if header[23] != 1 and self._needs_digest:
            raise refused("no-digest")
        self._await(_HEADER_SIZE, 8, self._parse_segment)

    def _parse_segment(self):
        load, size = struct.unpack_from("<II", self._field)
        index, start = self._index, self._at + 8
        if size >= _MAX_SEGMENT_SIZE or size % 4:
            raise refused("segment-length", index, self._at, size)
        left = self.header[1] - index - 1  # segments to come, of 8 bytes at least
        self._check_fits(_image_size(start + size + 8 * left, self.header))
        conflict = self._board.memory.find_conflict(load, load + size)
        if conflict:
            raise refused("load-address", index, load, load + size, conflict)
        self._segment = (load, size, start)
        if index == 0:
            if size < _DESC_SIZE:
                raise refused("no-app-desc 2", size)
            self._await(start, _DESC_SIZE, self._parse_desc)
        else:
            self._next_segment()

    def _parse_desc(self):
        self.desc[:] = self._field
        if self.desc[:4] != DESC_MAGIC:
            raise refused("no-app-desc")
        page = self.desc[_MMU_PAGE_OFFSET]  # log2, 0 in older images
        if 13 <= page <= 16:
            self._page = 1 << page
        self._next_segment()
        if self._accept:
            self._accept(self)

    def _next_segment(self):
        """The segment at hand has passed; now for its mapping, and what follows it."""
        load, size, start = self._segment
        flash = self._slot_offset + start
        if self._board.memory.is_mapped(load) and (flash - load) % self._page:
            raise refused("mapping", self._index, load, flash)
        self._index += 1
        end = start + size
        if self._index < self.header[1]:
            self._await(end, 8, self._parse_segment)
            return
        self.size = self._end = _image_size(end, self.header)
        self._check_fits(self.size)
        if self.header[23] == 1:
            self.digest_offset = self.size - _DIGEST_SIZE
            self._await(self.digest_offset, _DIGEST_SIZE, self._parse_digest)
        else:
            self._await(_NOTHING, 0, None)

    def _check_fits(self, size):
        if size > self._slot_size:
            raise refused("too-long", size, " or more", self._slot_name, self._slot_size)

    def _parse_digest(self):
        self.digest = bytes(self._field[:_DIGEST_SIZE])
        self._await(_NOTHING, 0, None)

    def _write_end(self, view, end):
        """Pass on the image's last bytes; see what follows them.

        A signed app (Secure Boot V2) is padded to a sector and followed by one that starts with
        0xE7. 0xFF is padding. Anything else does not belong to it.
        """
        pos = self._pos
        sector = (self.size + SECTOR - 1) & ~(SECTOR - 1)
        while pos < end and not self.is_complete:
            if pos == sector and self._end == self.size and view[0] == _SIGNATURE_MAGIC:
                self._end = sector + SECTOR
                self._check_fits(self._end)
            if pos < self._end:
                stop = min(end, self._end)
            else:
                stop = min(end, sector) if pos < sector else end
            piece, view = view[: stop - pos], view[stop - pos :]
            if pos < self._end or (is_blank(piece) and stop <= self._slot_size):
                if not self._embedded or pos < max(self._end, sector):
                    self._sink.write(piece)
                else:
                    self.is_complete = True
            elif self._embedded:
                self.is_complete = True
            else:
                raise refused("trailing", self._end)
            pos = stop
        self._pos = end

    @property
    def is_signed(self):
        """Whether a sector of signatures belongs to it."""
        return self.size is not None and self._end != self.size

    def finish(self):
        """No more bytes come. Raises ImageError if the image is not whole, or is not all."""
        if self.is_complete:
            return
        if self._pos < _HEADER_SIZE:
            raise refused("truncated", self._pos)
        if self.size is None:
            missing = self._at + self._size - self._pos
            raise refused(
                "truncated 2", self._pos, max(self._index - 1, 0), self.header[1], missing
            )
        end = self._end
        if self._pos < end:
            raise refused("truncated 3", self._pos, end, end - self._pos)
        self.is_complete = True


def _image_size(end, header):
    """The size of an image whose last segment ends at ``end`` (process_checksum), with digest."""
    return ((end + 16) & ~15) + (_DIGEST_SIZE if header[23] == 1 else 0)


def is_blank(view):
    """Whether all bytes are 0xFF."""
    return len(view) > 0 and view[0] == 0xFF and view[:-1] == view[1:]


def refused(*args):
    """The ImageError for a key of image_more.py, with what belongs in its text."""
    from .image_more import refused

    return refused(*args)


# --- the flash


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


# --- the app, all together


class NewApp:
    """A stage for the bytes of an app image, which may stand in a larger file (``embedded``).

    ``board``: see image.py. ``force``: though this image has failed before. ``total``: bytes of the
    file, if known; ``sha``: its SHA-256, if that is due. ``signed``: SHA-256 of the content that a
    signature covers, if one was judged before. ``note``: what is remembered for an attempt after a
    reset: update.py, release.py. ``buf``, ``by_sectors``: see SlotWriter.

    Bytes come by `write`, or by `buffer` and `take`. Then `seal` judges, `committing` switches.
    """

    def __init__(
        self,
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
        self.part = part = base.find_next_slot()
        self._board = board
        self._force = force
        self._total = None if embedded else total
        self.signed = signed
        self.note = None
        self._failed = None
        self._sha = sha256()  # over the image up to its own digest
        self._due = sha
        self._content_sha = sha256() if sha else None
        # Over all that a signature covers, where there may be one: it is a sector at the end.
        self._signed_sha = sha256() if signed or (total and not total % SECTOR) else None
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

    def keep(self, size, head):
        """Take the first ``size`` bytes, whole sectors, from the slot, where they are already.

        ``head``: the first 32 of them, which are not. A generator: it yields between sectors.
        """
        self.writer.kept = size
        for at in range(0, size, SECTOR):
            buf = self.buffer()
            self.part.readblocks(at // SECTOR, buf)
            if not at:
                buf[:HEAD_SIZE] = head
            self.take(SECTOR)
            yield 0

    def _accept(self, image):
        """The header has passed: the last word before the first erase."""
        if self._total and self._total > self.writer.limit:
            raise refused("too-long", self._total, "", self.writer.name, self.writer.limit)
        if self.signed:  # a bare image has no counter: it is not to be older than what runs
            desc = bytearray(4)
            Partition(Partition.RUNNING).readblocks(0, desc, 36)
            found, least = (int.from_bytes(data, "little") for data in (image.desc[4:8], desc))
            if found < least:
                raise refused("secure-version", found, least)
        if base.has_note("failed") or base.state(self.part) in (
            base.ABORTED,
            base.INVALID,
        ):
            from .recovery import Failed

            self._failed = Failed(self.part)
            if not self._force:
                self._failed.check_header(image)

    def _before_erase(self):
        """What speaks of the slot's content ends with it.

        Else a complete image that was then refused could be rolled back to as the former one
        (esp_ota_begin does the same: esp_ota_invalidate_inactive_ota_data_slot).
        """
        if self._failed:
            self._failed.save()
        if self.writer.kept:  # what is noted of that still holds
            base.forget("download", "payload")
        else:
            base.forget_attempt()
        found = base.find_record(self.part)
        if found:
            base.erase(found[0])

    def _passed(self, buf):
        """A sector is in the flash."""
        at = self.writer.at
        end = at + SECTOR
        stop = self.image.digest_offset
        if stop is None or end <= stop:
            self._sha.update(buf)
        elif at < stop:
            self._sha.update(buf[: stop - at])
        if self._content_sha:
            self._content_sha.update(buf if end <= self._total else buf[: self._total - at])
        if self._signed_sha and (self.image.size is None or at < self.image.size):
            self._signed_sha.update(buf)
        if self.note:
            self.note.passed(end)

    # --- the end

    def seal(self, is_payload=False):
        """No more bytes come: judge them. Raises OTAError.

        ``is_payload``: of a release. If it is signed itself, that only has to be whole.
        """
        image = self.image
        image.finish()
        self.writer.close()
        if self._due:
            check_sha(self._content_sha, self._due)
        if image.digest and self._sha.digest() != image.digest:
            raise refused("digest", image.digest.hex())
        if image.digest and self._failed and not self._force:
            self._failed.check_digest(image.digest)
        if self.signed:
            if self._signed_sha.digest() != self.signed:
                raise refused("digest 2")
        elif is_payload and image.is_signed:
            self._check_signature()

    def _check_signature(self):
        """The image is signed itself, for Secure Boot perhaps: then that has to be good as well."""
        from . import keys

        sector = bytearray(SECTOR)
        self.part.readblocks((self.image.size + SECTOR - 1) // SECTOR, sector)
        keys.check_signed(self._signed_sha.digest(), sector)
        unload("keys")

    def committing(self, attach=None):
        """A generator: make the slot the next to boot. ``attach(part, head)`` is called before."""
        writer = self.writer
        yield from writer.tidy()
        if attach:
            attach(self.part, writer.head)
        if writer.at:
            writer.write_head()
        self.writer = None
        yield 0
        try:
            set_boot(self.part, self.image.digest)
        except StateError:
            self.part.ioctl(6, 0)  # it is refused: no image any more
            base.forget_attempt()
            raise
        base.forget_attempt()


gc.collect()  # what loading left behind would divide a small heap
