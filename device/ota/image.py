"""Checks an app image as its bytes arrive, by the bootloader's rules (``esp_image_format.c``).

AppImage is a stage: bytes come in by ``write(buf)`` in pieces of any size, and what passes goes on
to the next stage's ``write(buf)``. The XOR checksum is left to set_boot(), which verifies it in C
before it switches.
"""

import struct

from micropython import const

from .base import unload

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

_FIRST_LOADED = const(0x10000000)  # lower addresses are padding, never loaded (should_load)


class Memory:
    """Where an app may be loaded: the chip's memory less what the bootloader in this flash uses.

    The bootloader refuses an app that would be loaded over itself (``esp_image_format.c:
    verify_load_addresses``), set_boot() does not look. Filled in by chips.py; addresses in
    ``mapped``, ``ram`` and ``alias`` are in units of 16 bytes.
    """

    bootloader_offset = None  # in flash
    mapped = ram = ()
    alias = None
    mmu_pages = least_page = 0  # how many there are, and bytes of one, where that can be chosen

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
        from .chips import load_memory

        self.memory = load_memory(self.chip_id)
        del load_memory
        unload("chips")

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
        self._field = self.desc  # until that has come
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
        """Judge the field that `next_field` gave, now filled. Raises ImageError as `write`."""
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
        self._field = bytearray(_DIGEST_SIZE)  # what comes now is smaller, and desc stays
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
        memory = self._board.memory
        page = self._page
        if memory.is_mapped(load):
            if (flash - load) % page:
                raise refused("mapping", self._index, load, flash)
            # mmu_hal.c: mmu_hal_map_region asserts it, and the chip resets for ever.
            pages = memory.mmu_pages
            if pages and (page < memory.least_page or flash + size > page * pages):
                raise refused("mmu-pages", page, self._slot_name)
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
        """No more bytes come: raises ImageError if the image is not whole, or bytes follow it."""
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
    """The ImageError for a key of failure.py, with what belongs in its text."""
    from .failure import refused

    return refused(*args)
