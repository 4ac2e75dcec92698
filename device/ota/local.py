"""Files and streams as sources: see pump.py. And MicroPython's version in an app."""

import gc
from time import sleep_ms

from micropython import const

from .base import SourceError, no_memory
from .pump import LIMIT, TIMEOUT_S, reason

_POLL_MS = const(10)
_SEARCH_SIZE = const(0x80000)  # MicroPython's version stands in the first segment
_BUF_SIZE = const(4096)
_OVERLAP = const(64)


def _too_long(source):
    from .failure import too_long

    return too_long(source.name, source.limit)


class FileSource:
    """A file on the board."""

    is_joined = False
    size = None
    _file = None

    def __init__(self, name, limit=None):
        self.name = name
        self.limit = limit or LIMIT

    def open(self):
        from os import stat

        try:
            self.size = stat(self.name)[6]
            self._file = open(self.name, "rb")
        except OSError as error:
            raise self._failed("not-found", "open", error)
        except MemoryError as error:
            raise no_memory(error, self.name, SourceError)
        if self.size > self.limit:
            raise _too_long(self)
        return self

    def _failed(self, code, what, error):
        return SourceError(code, "cannot %s %s: %s" % (what, self.name, reason(error)))

    def opening(self):
        self.open()
        return ()

    def readinto(self, buf):
        try:
            return self._file.readinto(buf)
        except OSError as error:
            raise self._failed("read", "read", error)

    try_readinto = readinto

    def pass_over(self, count):
        self._seek(count, 1)

    def _seek(self, *where):
        try:
            self._file.seek(*where)
        except OSError as error:
            raise self._failed("read", "read", error)

    def reading_end(self, buf):
        if not self._file:
            self.open()
        if self.size < len(buf):
            from .failure import too_short

            raise too_short(self.name, self.size, len(buf))
        at = self._file.tell()
        self._seek(self.size - len(buf))
        self.readinto(buf)
        self._seek(at)
        return ()

    def close(self):
        if self._file:
            self._file.close()


class StreamSource:
    """Any object with ``readinto(buf)``; it stays open.

    A stream that has nothing yet (None, as a UART answers) is asked again for ``timeout`` seconds.
    """

    name = "the stream"
    size = None
    is_joined = False

    def __init__(self, stream, timeout=TIMEOUT_S, limit=None):
        self._stream = stream
        self._timeout_ms = int(timeout * 1000)
        self._came = 0
        self.limit = limit or LIMIT

    def readinto(self, buf):
        count = self._stream.readinto(buf)
        if count is None:
            count = self._wait(buf)
        self._came += count
        if self._came > self.limit:
            raise _too_long(self)
        return count

    def _wait(self, buf):
        for _ in range(0, self._timeout_ms, _POLL_MS):
            sleep_ms(_POLL_MS)
            count = self._stream.readinto(buf)
            if count is not None:
                return count
        raise SourceError("timeout", "no data from the stream for %d ms" % self._timeout_ms)

    def close(self):
        pass


def find_version(partition, size):
    """MicroPython's version text in an app ("v1.26.1 on 2025-09-11"), or None."""
    buf = bytearray(_BUF_SIZE + _OVERLAP)
    view = memoryview(buf)
    for at in range(0, min(size, _SEARCH_SIZE), _BUF_SIZE):
        view[:_OVERLAP] = view[_BUF_SIZE:]
        count = min(_BUF_SIZE, size - at)
        partition.readblocks(at // _BUF_SIZE, view[_OVERLAP : _OVERLAP + count], 0)
        found = buf.find(b"MicroPython v")
        while found >= 0:
            end = found
            while end < len(buf) and 32 <= buf[end] < 127:
                end += 1
            if end < len(buf) and b" on " in buf[found:end]:
                return str(buf[found + 12 : end], "ascii")
            found = buf.find(b"MicroPython v", found + 1)
    return None


gc.collect()  # what loading left behind would divide a small heap
