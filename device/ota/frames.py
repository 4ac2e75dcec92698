"""Takes encoded payloads apart as they stream by: frames of raw deflate.

The format is described in the desk's ``mpota/formats/frames.py``. One frame is collected, then it
is decoded straight into the buffers of the next stage. What the decoder needs is
allocated once, in a Room: a DeflateIO goes on from frame to frame, since none ends its stream.
"""

import gc
import struct
from io import BytesIO

from deflate import RAW, DeflateIO
from micropython import const

from .errors import FrameError

MAGIC = b"OTAF"
SECTOR = const(4096)
MAX_PACKED = const(6656)  # bytes of a frame as it comes

_MAX_DELTA = const(4640)  # of a delta
_MAX_UNPACKED = const(4608)  # what that unpacks to
_WBITS = const(12)  # unless the header says otherwise
_VERSION = const(1)
_DEFLATE = const(1)
_DELTA = const(2)
_HEADER_SIZE = const(12)
_BASE_SIZE = const(36)  # more of a header, of a delta
_FRAME_SIZE = const(4)
_MAX_TAIL = const(16)  # bytes of a frame that are read with the next one

# A byte in a deflate block that is stored and not the last one.
_STORED = b"\0\1\0\xfe\xff\0"


class Room:
    """The memory that frames take. It can be had before code and strings divide the heap."""

    def __init__(self, is_delta, wbits=_WBITS):
        self.kind = is_delta, wbits
        self.max_packed = _MAX_DELTA if is_delta else MAX_PACKED
        self.packed = BytesIO(self.max_packed + _MAX_TAIL)
        self.stream = DeflateIO(self.packed, RAW, wbits)  # inflates what stands in `packed`
        # It takes its window when it begins.
        self.packed.write(_STORED)
        self.packed.seek(0)
        self.stream.readinto(bytearray(1))
        self.packed.seek(0)
        self.code = memoryview(bytearray(_MAX_UNPACKED)) if is_delta else None


def make_room(head):
    """The Room for a payload that starts with these bytes, None if there is no such payload."""
    if len(head) < _HEADER_SIZE:
        return None
    _, version, kind, wbits = struct.unpack_from("<4sBBB", head)
    if version != _VERSION or kind not in (_DEFLATE, _DELTA) or not 9 <= wbits <= 15:
        return None
    return Room(kind == _DELTA, wbits)


class Frames:
    """A stage for an encoded payload. Raises FrameError for damage.

    ``sink`` takes the content: `buffer` gives whole sectors to fill, `take(count)` moves them on.
    ``size``: of the content, None if it is not known beforehand. ``close()`` is called when all of
    it has gone on. ``mark`` (mark.py): the content goes on where it broke off. ``room``: a Room, if
    there is one already.
    """

    is_complete = False

    def __init__(self, sink, size=None, close=None, mark=None, room=None):
        self.at = 0  # bytes of the content that have gone on
        self.size = size
        self._sink = sink
        self._close = close
        self._mark = mark
        self._place = 0  # bytes of whole frames that have come, and of the header
        self._left_out = 0  # bytes that come and are not wanted
        self._decoder = None  # what fills a sector
        self._wanted = _HEADER_SIZE
        self._parse = self._parse_header
        self._sectors = 0  # of the frame at hand
        self._tail = bytearray(_MAX_TAIL)
        self._room = room
        self._packed = room.packed if room else BytesIO(_BASE_SIZE)

    def write(self, buf):
        """Take the next encoded bytes."""
        try:
            self._take_in(memoryview(buf))
        except FrameError:
            if self._mark:
                self._mark.forget()
            raise

    def _take_in(self, view):
        while view:
            if self._left_out:
                count = min(self._left_out, len(view))
                self._left_out -= count
                view = view[count:]
                continue
            if not self._wanted:
                raise _error("bytes behind its last frame")
            count = min(self._wanted, len(view))
            self._packed.write(view[:count])
            self._wanted -= count
            view = view[count:]
            if not self._wanted:
                self._parse()

    def skip(self):
        """How many of the bytes that come next are not wanted."""
        count = self._left_out
        self._left_out = 0
        return count

    def finish(self):
        """No more bytes come."""
        if self._wanted:
            raise FrameError(
                "truncated",
                "the encoded payload is truncated: it gave %d bytes of %s"
                % (self.at, "the content" if self.size is None else self.size),
            )
        self._packed = self._room = self._decoder = None
        if self._close:
            self._close()

    close = finish

    def _await(self, size, parse):
        self._wanted = size
        self._parse = parse

    def _field(self, size):
        """The field of ``size`` bytes that has just come."""
        self._packed.seek(-size, 1)
        field = self._packed.read(size)
        self._packed.seek(-size, 1)
        return field

    def _parse_header(self):
        magic, version, kind, wbits, _, size = struct.unpack("<4sBBBBI", self._field(_HEADER_SIZE))
        if (magic, version) != (MAGIC, _VERSION) or kind not in (_DEFLATE, _DELTA):
            raise _error("an unknown header")
        if not 9 <= wbits <= 15 or not 0 < size < 1 << 30 or self.size not in (None, size):
            raise _error("a header with window 2**%d, %d bytes" % (wbits, size))
        self.size = size
        kind = kind == _DELTA, wbits
        if not self._room or self._room.kind != kind:
            self._packed = self._room = None
            gc.collect()
            self._room = Room(*kind)
            self._packed = self._room.packed
        if kind[0]:
            self._await(_BASE_SIZE, self._parse_base)
        else:
            self._decoder = _Inflate(self._room.stream)
            self._begin(_HEADER_SIZE)

    def _parse_base(self):
        from .delta import Delta

        size, digest = struct.unpack("<I32s", self._field(_BASE_SIZE))
        self._decoder = Delta(self._room.stream, self._room.code, size, digest)
        self._begin(_HEADER_SIZE + _BASE_SIZE)

    def _begin(self, header_size):
        """The frames come, the first of which may be there already."""
        self._place = header_size
        if self._mark:
            at, place = self._mark.recall()
            if at:
                if at >= self.size or at % SECTOR or place <= header_size:
                    raise _error("a place in it that cannot be gone on from")
                self.at = at
                self._place = place
                self._left_out = place - header_size
        self._await(_FRAME_SIZE, self._parse_frame)

    def _parse_frame(self):
        size, self._sectors = struct.unpack("<HH", self._field(_FRAME_SIZE))
        left = (self.size - self.at + SECTOR - 1) // SECTOR
        if not 0 < size <= self._room.max_packed or not 0 < self._sectors <= left:
            raise _error("a frame of %d bytes for %d sectors" % (size, self._sectors))
        self._frame_size = size
        self._await(size, self._decode)

    def _decode(self):
        """A frame has come: pass its content on."""
        packed = self._packed
        end = packed.tell()
        packed.seek(0)
        self._call(self._decoder.begin, self.at)
        left = min(self._sectors * SECTOR, self.size - self.at)
        while left:
            buf = self._sink.buffer()
            count = min(len(buf), left)
            self._call(self._decoder.fill, buf if count == len(buf) else buf[:count])
            self.at += count
            left -= count
            self._sink.take(count)
        tail = end - packed.tell()
        if not 0 <= tail <= _MAX_TAIL:
            raise _error("a frame that is %d bytes longer than its content" % tail)
        tail = packed.readinto(memoryview(self._tail)[:tail])
        packed.seek(0)
        packed.write(memoryview(self._tail)[:tail])
        self._place += _FRAME_SIZE + self._frame_size
        if self._mark:
            self._mark.note(self.at, self._place)
        self._await(_FRAME_SIZE if self.at < self.size else 0, self._parse_frame)

    def _call(self, step, argument):
        """One step of the decoder; what it stumbles over is damage."""
        try:
            step(argument)
        except FrameError:
            raise
        except (EOFError, IndexError, OSError, ValueError):
            raise _error("a frame that cannot be decoded, at %d of its content" % self.at)


class Buffered:
    """What `Frames` needs of a sink, for one that has ``write(buf)`` only."""

    def __init__(self, write):
        self._write = write
        self._buf = memoryview(bytearray(SECTOR))

    def buffer(self):
        return self._buf

    def take(self, count):
        self._write(self._buf[:count])


class _Inflate:
    """The decoder of a compressed payload."""

    def __init__(self, stream):
        self._stream = stream

    def begin(self, at):
        pass

    def fill(self, buf):
        if self._stream.readinto(buf) != len(buf):
            raise ValueError


def _error(what):
    return FrameError("frame", "the encoded payload is damaged: it has %s" % what)
