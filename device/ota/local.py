"""Sources of bytes that are here: files and streams. What a source is: source.py."""

import gc

from micropython import const

from .errors import SourceError, no_memory
from .source import LIMIT, TIMEOUT_S

_POLL_MS = const(10)


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
            from .source_error import too_long

            raise too_long(self.name, self.limit)
        return self

    def _failed(self, code, what, error):
        from .source_error import reason

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
            from .source_error import too_short

            raise too_short(self.name, self.size, buf)
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
            from .source_error import too_long

            raise too_long(self.name, self.limit)
        return count

    def _wait(self, buf):
        from time import sleep_ms

        for _ in range(0, self._timeout_ms, _POLL_MS):
            sleep_ms(_POLL_MS)
            count = self._stream.readinto(buf)
            if count is not None:
                return count
        raise SourceError("timeout", "no data from the stream for %d ms" % self._timeout_ms)

    def close(self):
        pass


gc.collect()  # what loading left behind would divide a small heap
