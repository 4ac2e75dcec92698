"""Makes a new app out of the one that runs: the decoder of deltas, in constant memory.

The format is described in the desk's ``mpota/formats/delta.py``. The base is read from the slot
that runs, a sector at most at a time, and only after its digest has been found to be the one that
the delta starts from.
"""

from array import array
from hashlib import sha256
from struct import unpack_from

from esp32 import Partition
from micropython import const

from .base import FrameError

SECTOR = const(4096)

_HEAD_SIZE = const(8)
_FAR = const(255)

# What `_edit` keeps between sectors: places in the code of the next gap and value, the place of
# the next edit, counted from the sector at hand, and how many edits are left.
_GAP = const(0)
_VALUE = const(1)
_AT = const(2)
_LEFT = const(3)

_SIGNATURE_MAGIC = const(0xE7)

_known = {}  # size of what runs -> its SHA-256, which does not change


class Delta:
    """Fills sector by sector, from the frames that ``stream`` inflates. ``code``: room for one.

    ``size``: of the base. Raises ValueError or IndexError for damage.
    """

    def __init__(self, stream, code, size):
        self._stream = stream
        self._code = code
        self._part = Partition(Partition.RUNNING)
        self._size = size
        self._edits = array("i", (0, 0, 0, 0))

    def checking(self, expected):
        """A generator: raises FrameError ("base") unless what runs starts with such bytes."""
        found = yield from digesting(self._size, self._code[:SECTOR])
        if found != expected:
            raise FrameError(
                "base", "the delta starts from another app than the one that runs here"
            )

    def begin(self, at):
        """A frame comes, which gives the content from ``at`` on."""
        code = self._code
        self._read(code[:_HEAD_SIZE])
        copies, gaps, edits, literals = unpack_from("<HHHH", code)
        end = copies + gaps + 2 * edits + literals
        if end > len(code):
            raise ValueError
        self._read(code[:end])
        self._copy = 0  # place in the code of the next copy
        self._copies_end = copies
        self._literal = copies + gaps + 2 * edits  # of the next literal
        self._end = end
        self._left = 0  # bytes left of the current piece
        self._place = at
        state = self._edits
        state[_GAP] = copies
        state[_VALUE] = copies + gaps
        state[_LEFT] = edits
        state[_AT] = 0
        if edits:
            state[_AT], state[_GAP] = self._first_gap(copies)

    def _read(self, view):
        if self._stream.readinto(view) != len(view):
            raise ValueError

    def _first_gap(self, at):
        code = self._code
        if code[at] < _FAR:
            return code[at], at + 1
        return code[at + 1] | code[at + 2] << 8 | code[at + 3] << 16, at + 4

    def fill(self, buf):
        """Put the next bytes of the content into ``buf``: a sector, or what is left."""
        size = len(buf)
        at = 0
        while at < size:
            if not self._left:
                self._next_piece()
            count = min(self._left, size - at)
            view = buf if count == size else buf[at : at + count]
            if self._is_literal:
                view[:] = self._code[self._literal : self._literal + count]
                self._literal += count
            else:
                place = self._place
                if place < 0 or place + count > self._size:
                    raise ValueError
                self._part.readblocks(place // SECTOR, view, place % SECTOR)
            self._place += count
            self._left -= count
            at += count
        if self._edits[_LEFT] and not edit(buf, size, self._code, self._end, self._edits):
            raise ValueError

    def _next_piece(self):
        number = self._varint()
        self._left = number >> 1
        self._is_literal = number & 1
        if not self._left:
            raise ValueError
        if self._is_literal:
            if self._literal + self._left > self._end:
                raise ValueError
        else:
            distance = self._varint()
            self._place += -((distance + 1) >> 1) if distance & 1 else distance >> 1

    def _varint(self):
        number = shift = 0
        while True:
            if self._copy >= self._copies_end or shift > 28:
                raise ValueError
            byte = self._code[self._copy]
            self._copy += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7


def _edit(buf, size, code, end, state):
    """Edit the ``size`` bytes of a sector; False for a code that ends too early."""
    gap = state[_GAP]
    value = state[_VALUE]
    at = state[_AT]
    left = state[_LEFT]
    while left and at < size:
        if value + 2 > end:
            return False
        if at + 1 < size:
            total = buf[at] + code[value] + ((buf[at + 1] + code[value + 1]) << 8)
            buf[at] = total & 255
            buf[at + 1] = total >> 8 & 255
            at += 2
        else:
            buf[at] = (buf[at] + code[value]) & 255
            at += 1
        value += 2
        left -= 1
        if left:
            if gap + 4 > end:
                return False
            step = code[gap]
            gap += 1
            if step == _FAR:
                step = code[gap] | code[gap + 1] << 8 | code[gap + 2] << 16
                gap += 3
            at += step
    state[_GAP] = gap
    state[_VALUE] = value
    state[_AT] = at - size
    state[_LEFT] = left
    return True


# The same as machine code, where the interpreter has a compiler for it. As text, since compiled
# modules (.mpy) hold machine code for one kind of processor only.
_VIPER = """
@micropython.viper
def edit(buf: ptr8, size: int, code: ptr8, end: int, state: ptr32) -> bool:
    gap = state[0]
    value = state[1]
    at = state[2]
    left = state[3]
    while left and at < size:
        if value + 2 > end:
            return False
        if at + 1 < size:
            total = buf[at] + code[value] + ((buf[at + 1] + code[value + 1]) << 8)
            buf[at] = total
            buf[at + 1] = total >> 8
            at += 2
        else:
            buf[at] = buf[at] + code[value]
            at += 1
        value += 2
        left -= 1
        if left:
            if gap + 4 > end:
                return False
            step = code[gap]
            gap += 1
            if step == 255:
                step = code[gap] | code[gap + 1] << 8 | code[gap + 2] << 16
                gap += 3
            at += step
    state[0] = gap
    state[1] = value
    state[2] = at - size
    state[3] = left
    return True
"""


def _compile():
    found = {}
    try:
        exec(_VIPER, found)
        return found["edit"]
    except (SyntaxError, NotImplementedError, MemoryError):  # no such compiler, or no room
        return _edit


edit = _compile()


# --- the app that runs, as a file


def finding(buf):
    """A generator: the SHA-256 (hex) of the image that runs, and of it with its signature, if any.

    ``buf``: a memoryview of up to a sector to read with.
    """
    part = Partition(Partition.RUNNING)
    from .otadata import image_size

    size = image_size(part)
    sizes = [size]
    end = (size + SECTOR - 1) // SECTOR * SECTOR
    if end + SECTOR <= part.info()[3]:
        part.readblocks(end // SECTOR, buf[:1], 0)
        if buf[0] == _SIGNATURE_MAGIC:
            sizes.append(end + SECTOR)
    found = []
    for size in sizes:
        digest = yield from digesting(size, buf)
        found.append(digest.hex())
    return found


def digesting(size, buf):
    """A generator: the SHA-256 of the first ``size`` bytes, None if the partition is smaller."""
    part = Partition(Partition.RUNNING)
    if size > part.info()[3]:
        return None
    if size not in _known:
        sha = sha256()
        piece = len(buf)
        for at in range(0, size, piece):
            part.readblocks(at // SECTOR, buf, at % SECTOR)
            sha.update(buf if size - at >= piece else buf[: size - at])
            yield 0
        _known[size] = sha.digest()
    return _known[size]
