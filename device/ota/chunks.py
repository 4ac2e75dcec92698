"""A body that comes in chunks (RFC 9112, 7.1), its size not told beforehand."""

from micropython import const

from .errors import SourceError

_MAX_LINE = const(256)
_MAX_SIZE = const(0x3FFFFFFF)

# What comes next when no byte of a chunk is due.
_SIZE = const(0)
_END = const(1)
_TRAILERS = const(2)
_NOTHING = const(3)


class Chunks:
    """Reads such a body from a connection. ``is_over``: all of it has been read."""

    is_over = False

    def __init__(self, connection):
        self._connection = connection
        self._next = _SIZE
        self._left = 0  # bytes to come of the chunk at hand

    def read(self, buf):
        """The next bytes of the body: how many, 0 at its end, None if there are none yet."""
        if not self._left and not self._read_size():
            return 0 if self.is_over else None
        count = self._connection.readinto(buf, min(self._left, len(buf)))
        if count is None:
            return None
        if not count:
            raise SourceError("short", "the connection ended in a chunk")
        self._left -= count
        return count

    def _read_size(self):
        """Read up to the data of the next chunk; False if there is none, or none yet."""
        while self._next != _NOTHING:
            line = self._connection.take_line(_MAX_LINE)
            if line is None:
                return False
            line = line.strip()
            if self._next == _END:
                if line:
                    raise self._broken("a chunk that is longer than it says")
                self._next = _SIZE
            elif self._next == _SIZE:
                self._left = self._parse(line.split(b";")[0].strip())
                if self._left:
                    self._next = _END
                    return True
                self._next = _TRAILERS
            elif not line:
                self._next = _NOTHING
                self.is_over = True
        return False

    def _parse(self, digits):
        try:
            size = int(digits, 16) if digits and len(digits) < 9 else -1
        except ValueError:
            size = -1
        if digits[:1] in (b"+", b"-") or not 0 <= size <= _MAX_SIZE:
            raise self._broken("a chunk of size %r" % digits[:16])
        return size

    def _broken(self, what):
        return SourceError("protocol", "%s sent %s" % (self._connection.key[1], what))
