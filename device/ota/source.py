"""Where the bytes come from: a file, a stream, or a URL (download.py).

A source has ``readinto(buf)`` (the number of bytes, 0 at the end), ``size`` (in bytes, None if it
is not known), ``name``, ``is_joined`` (put together from parts that were fetched at several times)
and ``close()``. What goes wrong is a SourceError. A body that ends before its announced size is an
error here, not an end.

Only files and URLs have ``pass_over(count)``, to leave the next bytes out, ``try_readinto(buf)``,
which answers None where there is nothing yet, and ``give_room``: None, or a function that the
source calls before it needs heap, as for a new connection.
"""

import errno
import gc

from micropython import const

from .errors import SourceError
from .url import is_url

TIMEOUT_S = const(30)

_POLL_MS = const(10)


def open_source(name, **request_args):
    """A source for a file name or a URL, open; `HttpSource` takes the ``request_args``."""
    if is_url(name):
        from .download import HttpSource

        return HttpSource(name, **request_args).open()
    return FileSource(name).open()


class FileSource:
    """A file on the board."""

    is_joined = False
    give_room = None

    def __init__(self, name):
        self.name = name
        self.size = None
        self._file = None

    def open(self):
        from os import stat

        try:
            self.size = stat(self.name)[6]
            self._file = open(self.name, "rb")
        except OSError as error:
            raise SourceError("not-found", "cannot open %s: %s" % (self.name, _reason(error)))
        return self

    def opening(self):
        self.open()
        return ()

    def readinto(self, buf):
        try:
            return self._file.readinto(buf)
        except OSError as error:
            raise SourceError("read", "cannot read %s: %s" % (self.name, _reason(error)))

    try_readinto = readinto

    def pass_over(self, count):
        self._file.seek(count, 1)

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

    def __init__(self, stream, timeout=TIMEOUT_S):
        self._stream = stream
        self._timeout_ms = int(timeout * 1000)

    def readinto(self, buf):
        count = self._stream.readinto(buf)
        if count is None:
            count = self._wait(buf)
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


def _reason(error):
    number = error.errno
    name = errno.errorcode.get(number) if hasattr(errno, "errorcode") else None
    return name or str(number)


gc.collect()  # what loading left behind would divide a small heap
