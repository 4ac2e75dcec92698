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

from .base import FrameError
from .pump import Inlet

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
_MAX_SIZE = const(0x3FFFFFFF)
_MAX_TAIL = const(16)  # bytes of a frame that are read with the next one

# The first byte of a stored deflate block that is not the last one.
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
    """A stage (pump.py) for an encoded payload. Raises FrameError for damage.

    ``sink`` takes the content: `buffer` gives place for up to a sector, `take(count)` moves it on,
    `work` does the rest. ``size``: of the content, None if it is not known beforehand; ``limit``:
    the most that it may be. ``close()`` is called when all of it has gone on. ``mark``
    (release.py): the content goes on where it broke off. ``room``: a Room, if there is one
    already.
    """

    def __init__(self, sink, size=None, close=None, mark=None, room=None, limit=_MAX_SIZE):
        self.at = 0  # bytes of the content that have gone on
        self.size = size
        self._limit = limit
        self._sink = sink
        self._close = close
        self._mark = mark
        self._place = 0  # bytes of whole frames that have come, and of the header
        self._left_out = 0  # bytes that come and are not wanted
        self._decoder = None  # what fills a sector
        self._task = None  # what the decoder has to do before
        self._wanted = _HEADER_SIZE
        self._parse = self._parse_header
        self._left = 0  # bytes of content that the frame at hand still gives
        self._tail = bytearray(_MAX_TAIL)
        self._room = room
        self._packed = room.packed if room else BytesIO(_BASE_SIZE)

    def wanted(self):
        return self._left_out or self._wanted

    def write(self, view):
        """Take the next encoded bytes."""
        if self._left_out:
            self._left_out -= len(view)
            return
        self._packed.write(view)
        self._wanted -= len(view)
        if not self._wanted:
            self._parse()

    def work(self):
        """The content of the frame at hand goes on, a sector at a time."""
        if self._sink.work():
            return True
        if self._task:
            try:
                next(self._task)
            except StopIteration:
                self._task = None
                self._begin(_HEADER_SIZE + _BASE_SIZE)
            return True
        if not self._left:
            return False
        buf = self._sink.buffer()
        count = min(len(buf), self._left, SECTOR - self.at % SECTOR)
        self._call(self._decoder.fill, buf if count == len(buf) else buf[:count])
        self.at += count
        self._left -= count
        self._sink.take(count)
        if not self._left:
            self._end_frame()
        return True

    def skip(self):
        """How many of the bytes that come next are not wanted."""
        count = self._left_out
        self._left_out = 0
        return count

    def finish(self):
        """Raises FrameError if bytes are missing: no more come."""
        if self.at != self.size:
            raise FrameError(
                "truncated",
                "the encoded payload is truncated: it gave %d bytes of %s"
                % (self.at, "the content" if self.size is None else self.size),
            )
        self._packed = self._room = self._decoder = None
        if self._close:
            self._close()

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
        if not 9 <= wbits <= 15 or not 0 < size <= _MAX_SIZE or self.size not in (None, size):
            raise _error("a header with window 2**%d, %d bytes" % (wbits, size))
        if size > self._limit:
            raise FrameError(
                "too-long",
                "the encoded payload gives %d bytes, there is room for %d" % (size, self._limit),
            )
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
        self._decoder = Delta(self._room.stream, self._room.code, size)
        self._task = self._decoder.checking(digest)

    def _begin(self, header_size):
        """The frames come, the first of which may be there already."""
        self._place = header_size
        mark = self._mark
        if mark and mark.at:
            if mark.at >= self.size or mark.place <= header_size:
                mark.forget()
                raise _error("a place in it that cannot be gone on from")
            self.at = mark.at
            self._place = mark.place
            self._left_out = mark.place - header_size
        self._await(_FRAME_SIZE, self._parse_frame)

    def _parse_frame(self):
        size, sectors = struct.unpack("<HH", self._field(_FRAME_SIZE))
        left = self.size - self.at
        if not 0 < size <= self._room.max_packed or not sectors or (sectors - 1) * SECTOR >= left:
            raise _error("a frame of %d bytes for %d sectors" % (size, sectors))
        self._frame_size = size
        self._sectors = sectors
        self._await(size, self._begin_frame)

    def _begin_frame(self):
        """A frame has come: its content goes on by `work`."""
        packed = self._packed
        self._end = packed.tell()
        packed.seek(0)
        self._call(self._decoder.begin, self.at)
        self._left = min(self._sectors * SECTOR, self.size - self.at)

    def _end_frame(self):
        packed = self._packed
        tail = self._end - packed.tell()
        if not 0 <= tail <= _MAX_TAIL:
            raise _error("a frame that is %d bytes longer than its content" % tail)
        tail = packed.readinto(memoryview(self._tail)[:tail])
        packed.seek(0)
        packed.write(memoryview(self._tail)[:tail])
        self._place += _FRAME_SIZE + self._frame_size
        if self._mark:
            self._mark.note(self.at, self._place)
        if self.at < self.size:
            self._await(_FRAME_SIZE, self._parse_frame)
        else:
            self._await(1, self._refuse)

    def _refuse(self):
        raise _error("bytes behind its end")

    def _call(self, step, argument):
        """One step of the decoder, whose own errors mean damage: they become a FrameError."""
        try:
            step(argument)
        except FrameError:
            raise
        except (EOFError, IndexError, OSError, ValueError):
            raise _error("a frame that cannot be decoded, at %d of its content" % self.at)


class Buffered:
    """Makes a sink for `Frames` out of a stage."""

    def __init__(self, stage, buf=None):
        self._inlet = Inlet(stage, memoryview(buf or bytearray(SECTOR))[:SECTOR])
        self.take = self._inlet.fill
        self.work = self._inlet.work

    def buffer(self):
        return self._inlet.whole()


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
