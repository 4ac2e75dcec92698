"""Writes one slot: whole blocks, each read back and compared.

Nothing is allocated per block after the first write.
"""

import gc

from micropython import const

from .errors import SlotError

SECTOR = const(4096)
_ERASE_BLOCK = const(65536)
_SMALL_PIECE = const(512)
_MIDDLE_PIECE = const(1024)
# Heap to leave alone then: for what is read, and for the objects of a failure.
_RESERVE = const(3072)
# The same of ESP-IDF's heap, out of which MicroPython's grows: for Wi-Fi and TCP buffers (an
# estimate: TCP's window is 6 KiB, a frame takes 1.6 KiB).
_SYSTEM_RESERVE = const(20480)
# Erasing 64 KiB at once takes 150 ms, a sector 45 ms, programming a sector 6 ms (typical SPI NOR):
# from five sectors on the whole block is faster, though all of it is programmed again.
_FEW = const(4)
_NAMED = const(4)  # places of lost bytes that an error names


class _Key:
    def __getitem__(self, key):
        return key


_ALL = _Key()[:]  # view[_ALL] = data: an assignment that allocates no slice


class SlotWriter:
    """A stage that writes what it is given into a partition, from its start on.

    ``sink``: the next stage; its ``write(buf)`` gets a block once that was read back from the flash
    and found right. With ``verify`` off nothing is read back.
    ``block_size``: bytes to erase and write at once, 4096, or 65536 if the heap has them; 0: as
    the heap allows. ``before_erase()`` is called once, before the first erase. ``buf``: a bytearray
    of 4096 bytes to begin with. Sectors that already hold the right bytes are left alone.
    """

    def __init__(self, partition, sink, verify=True, block_size=0, before_erase=None, buf=None):
        self._partition = partition
        self._sink = sink
        self._verify = verify
        self._block_size = block_size
        self._has_grown = False
        self._before_erase = before_erase
        _, _, _, self._limit, self._name, _ = partition.info()
        self._at = 0  # where in the slot the block at hand begins
        self._fill = 0
        self._small = None  # the buffers from before a block of 64 KiB was taken
        # Now, before a connection and its strings divide the heap: so 56 KiB are enough.
        self._use(buf or bytearray(SECTOR), bytearray(_SMALL_PIECE))

    def _use(self, block, check):
        """Take ``block`` for what is written, and ``check`` to read it back, piece by piece."""
        block = memoryview(block)
        count = len(check)
        self._pieces = [block[at : at + count] for at in range(0, len(block), count)]
        self._buf, self._check = block, memoryview(check)
        self._size = len(block)

    def _grow(self):
        """Take larger buffers if they are to be had: 64 KiB for a block, one sector to read back.

        Not before the first write: by then the connection has what it needs. A new connection is
        made without them: see `give_room`.
        """
        self._has_grown = True
        gc.collect()
        free = gc.mem_free() - _RESERVE
        small = self._buf, self._check, self._pieces
        try:
            if self._block_size == _ERASE_BLOCK or (self._block_size == 0 and free >= _ERASE_BLOCK):
                self._use(bytearray(_ERASE_BLOCK), self._buf)  # a piece is a sector
                if self._block_size or not _is_system_short():
                    self._small = small
                    return
                self._use_again(small)
                gc.collect()
            if free >= SECTOR:
                self._use(self._buf, bytearray(_MIDDLE_PIECE))
        except MemoryError:  # there is enough, but not in one piece
            self._use_again(small)

    def _use_again(self, small):
        self._buf, self._check, self._pieces = small
        self._size = SECTOR

    def give_room(self):
        """Give a block of 64 KiB back, until the slot comes to the next one: the heap is needed."""
        if not self._small:
            return
        block, count = self._buf, self._fill
        self._use_again(self._small)
        self._small = None
        self._fill = 0
        self._has_grown = False
        self._write_part(block[:count])

    def write(self, buf):
        """Take the next bytes. Raises SlotError if they do not fit or the flash loses any."""
        if not self._has_grown and not self._fill and not self._at % _ERASE_BLOCK:
            self._grow()
        size = len(buf)
        if self._at + self._fill + size > self._limit:
            raise SlotError(
                "flash", "%s holds %d bytes, there are more" % (self._name, self._limit)
            )
        if buf is self._buf:
            self._add(size)
        else:
            self._write_part(memoryview(buf))

    def _write_part(self, view):
        """Take bytes that stand elsewhere, or are not a whole block."""
        while view:
            count = min(len(view), self._size - self._fill)
            self._buf[self._fill : self._fill + count] = view[:count]
            view = view[count:]
            self._add(count)

    def _add(self, count):
        self._fill += count
        if self._fill == self._size:
            self._flush()

    @property
    def written(self):
        """Bytes up to the end of what the flash holds."""
        return self._at

    def buffer(self):
        """Where the next bytes will stand, up to the end of the block: fill it, then write it."""
        return self._buf[self._fill :] if self._fill else self._buf

    def close(self):
        """Write the last, partial block, filled up with 0xFF, and give the buffers back."""
        if self._fill:
            for at in range(self._fill, (self._fill + SECTOR - 1) // SECTOR * SECTOR):
                self._buf[at] = 0xFF
            self._flush()
        self.drop()

    def drop(self):
        """Give the buffers back: nothing more is written."""
        self._buf = self._check = self._pieces = self._small = None

    def _flush(self):
        """Bring the block at hand into the flash, and then to the next stage."""
        size = self._fill
        count = (size + SECTOR - 1) // SECTOR
        first = 0  # sectors before this one are right already
        if self._verify:
            while first < count and self._is_right(first):
                first += 1
        if first < count:
            self._write_from(first, count)
            if self._verify:
                for index in range(first, count):
                    if not self._is_right(index):
                        self._retry(index)
        self._sink.write(self._buf if size == self._size else self._buf[:size])
        self._at += size
        self._fill = 0

    def _read(self, piece):
        """Read a piece of the block at hand back from the flash."""
        at = self._at + piece * len(self._check)
        self._partition.readblocks(at // SECTOR, self._check, at % SECTOR)

    def _is_right(self, index):
        """Whether the flash holds what sector ``index`` of the block should be."""
        count = SECTOR // len(self._check)
        for piece in range(index * count, index * count + count):
            self._read(piece)
            if self._check != self._pieces[piece]:
                return False
        return True

    def _write_from(self, first, count):
        """Write the sectors from ``first`` on, of which that one at least is not right."""
        if self._before_erase:
            self._before_erase()
            self._before_erase = None
        if self._is_whole_faster(first, count):
            self._blank(count)
            self._partition.writeblocks(self._at // SECTOR, self._buf)
            if self._verify:
                for index in range(first):
                    if not self._is_right(index):
                        self._retry(index)
            return
        for index in range(first, count):
            if index == first or not self._verify or not self._is_right(index):
                self._write_sector(index)

    def _write_sector(self, index):
        buf = self._buf if self._size == SECTOR else self._pieces[index]
        self._partition.writeblocks(self._at // SECTOR + index, buf)

    def _is_whole_faster(self, first, count):
        """Whether to erase and write the whole 64 KiB block: more than a few sectors differ."""
        if self._size == SECTOR or self._at + self._size > self._limit:
            return False
        differing = 1
        index = first + 1
        while index < count and differing <= _FEW:
            if not self._verify or not self._is_right(index):
                differing += 1
            index += 1
        return differing > _FEW

    def _blank(self, count):
        """Fill the sectors of the 64 KiB block from ``count`` on with 0xFF."""
        size = len(self._check)
        if count * SECTOR < self._size:
            for at in range(size):
                self._check[at] = 0xFF
            for index in range(count * SECTOR // size, self._size // size):
                self._pieces[index][_ALL] = self._check

    def _retry(self, index):
        """Write a sector that lost bytes once more."""
        self._write_sector(index)
        if not self._is_right(index):
            raise SlotError("flash", self._name_lost(index))

    def _name_lost(self, index):
        """What is missing in a sector, in words."""
        size = len(self._check)
        lost = 0
        places = ""
        for piece in range(index * SECTOR // size, (index + 1) * SECTOR // size):
            self._read(piece)
            for at in range(size):
                if self._check[at] != self._pieces[piece][at]:
                    if lost < _NAMED:
                        places += "%s0x%x" % (", " if places else "", self._at + piece * size + at)
                    lost += 1
        return "flash lost %d bytes of %s, twice, at offset %s%s" % (
            lost,
            self._name,
            places,
            ", ..." if lost > _NAMED else "",
        )


def _is_system_short():
    """Whether ESP-IDF's heap has got too small for the network: gc.mem_free() counts it as free."""
    try:
        from esp32 import HEAP_DATA, idf_heap_info
    except ImportError:  # a port without it has one heap
        return False
    return sum([region[1] for region in idf_heap_info(HEAP_DATA)]) < _SYSTEM_RESERVE


gc.collect()  # what loading left behind would divide a small heap
