"""A file from a server as a source: it goes on by itself when the connection breaks."""

import gc
from time import sleep_ms

from micropython import const

from .errors import SourceError
from .http import Client

_POLL_MS = const(1)  # nobody else waits
_PIECE = const(4096)  # bytes that a broken connection may take with it
_FAR = const(49152)  # bytes: about what comes in the time that a new connection takes


class HttpSource:
    """The body of an http:// or https:// URL, to be opened by `open` or `opening`.

    ``max_failures`` in a row end it, after a ``pause``, in seconds, that grows with each of them.
    ``log(text)`` is told of failures, and of a download that starts over. ``trail``: what a slot
    holds of it already (resume.py); ``sha``: hex SHA-256 of the file, if known. ``client``: a
    Client to use, and leave open, instead of one made from ``options``. ``stream`` and
    ``parse_headers`` of `requests.get` mean nothing here.

    ``size``: of the file, None if it is not known. ``is_joined``: it was put together from more
    than one answer. ``give_room``: called before a new connection is made, to free heap.
    """

    give_room = None

    # rejoin.py works with: client, validator, sha, log; at: the next byte to fetch; given: how many
    # have been handed out; skip: how many are to be fetched again and dropped.

    def __init__(
        self,
        url,
        client=None,
        trail=None,
        sha=None,
        max_failures=5,
        pause=1,
        log=None,
        stream=None,
        parse_headers=None,
        **options,
    ):
        self.name = url
        self.size = None
        self.is_joined = False
        self.client = client or Client(**options)
        self._is_lent = client is not None
        self._trail = trail
        self.sha = sha
        self._limits = (max_failures, pause)
        self.log = log or _ignore
        self._failures = None
        self.validator = None
        self.at = 0  # in the file: the next byte to fetch
        self._kept = self._kept_end = 0  # the part of the file that comes from the slot
        self.given = 0  # bytes handed out
        self.skip = 0  # bytes to fetch once more, and to drop
        self._task = None  # what has to end before the next bytes come
        self._is_blocking = False
        self._has_ranges = False

    def open(self):
        """Connect, and learn the size. Raises SourceError."""
        for _ in self.opening():
            sleep_ms(_POLL_MS)
        self._is_blocking = True
        self.client.block(True)
        return self

    def opening(self):
        """A generator that does what `open` does, and yields milliseconds to wait."""
        trail = self._trail
        if trail:
            yield from trail.recall(self.sha or self.name)
            if trail.size:
                self._kept = trail.start
                self._kept_end = trail.start + trail.size
                self.size, self.validator = trail.total, trail.validator
                if not self._kept:
                    self.at = self._kept_end
        yield from self._connect()

    def readinto(self, buf):
        """Fill ``buf``, a memoryview, as far as the file goes; the number of bytes, 0 at the end.

        Raises SourceError when it cannot go on.
        """
        while True:
            count = self.try_readinto(buf)
            if count is not None:
                return count
            sleep_ms(_POLL_MS)

    def try_readinto(self, buf):
        """As `readinto`, but what there is; None if there is nothing yet.

        After `open` that is so only while it connects anew.
        """
        if not self._is_blocking or len(buf) <= _PIECE:
            return self._try_piece(buf)
        # By pieces: what has come is not lost with the connection, the next call finds out.
        have = 0
        while have < len(buf):
            count = self._try_piece(buf[have : have + _PIECE])
            if not count:
                return have or count
            have += count
        return have

    def _try_piece(self, buf):
        if self._task and not self._has_connected():
            return None
        if self._kept <= self.given < self._kept_end:
            count = self._read_kept(buf)
        else:
            if self.given < self._kept:
                buf = memoryview(buf)[: self._kept - self.given]
            try:
                count = self._skip_body(buf) if self.skip else self._read_body(buf)
            except (OSError, SourceError) as error:
                self._task = self._connect(error)
                return None
        if count:
            self.given += count
        return count

    def _has_connected(self):
        try:
            next(self._task)
            return False
        except StopIteration:
            self._task = None
            self.client.block(self._is_blocking)
            return True

    def _read_kept(self, buf):
        if self.given == self._kept:
            if self.at < self._kept_end:
                self._leave_out(self._kept_end - self.at)
            self.is_joined = True
            self.log(
                "going on at byte %d of %d, what is before it is in flash"
                % (self._kept_end, self.size)
            )
        count = min(len(buf), self._kept_end - self.given)
        at = self.given - self._kept
        self._trail.read(at, buf if count == len(buf) else memoryview(buf)[:count])
        return count

    def pass_over(self, count):
        """Leave out the next ``count`` bytes: where that is less work, ask for what follows."""
        self.given += count
        self._leave_out(count)

    def _leave_out(self, count):
        self.at += count
        if count < _FAR or not self._has_ranges:
            self.skip += count
        else:
            self.skip = 0
            self._task = self._connect()

    def _read_body(self, buf):
        count = self.client.read_body(buf)
        if count:
            self.at += count
            if self._failures and self._failures.is_over(self.at):
                self._failures = None
        elif count == 0 and self.size is not None and self.at < self.size:
            raise SourceError("short", "the body is shorter than the file")
        return count

    def _skip_body(self, buf):
        count = self.client.read_body(memoryview(buf)[: self.skip])
        if count == 0:
            raise SourceError("short", "the body is shorter than before")
        self.skip -= count or 0

    # --- connecting

    def _connect(self, error=None):
        """A generator: connect, after a failure or not, and ask for what is still to come."""
        while True:
            if error:
                if self.give_room:
                    self.give_room()
                    yield 0  # the caller's buffer may be what is given back
                    gc.collect()  # from deeper down, stale places on the stack might keep it
                from .failures import Failures

                if not self.client.is_over():
                    self.client.close()
                if self._failures is None:
                    self._failures = Failures(*self._limits, self.log)
                yield from self._failures.wait(error, self.name, self.at - self.skip, self.size)
                gc.collect()  # so that what stays stands where the heap begins
            try:
                yield from self._ask()
                return
            except (OSError, SourceError) as failure:
                error = failure

    def _ask(self):
        client = self.client
        self.skip = 0
        if self.at:
            from .rejoin import rejoin

            yield from rejoin(self)
            if self.at:
                return
            self._kept_end = 0
        else:
            yield from client.get(self.name)
        if client.status != 200:
            from .failures import refused

            raise refused(client, self.name)
        is_kept = self._kept_end > 0
        if is_kept:
            from .rejoin import fits

            is_kept = fits(self, (0, client.size))
            if not is_kept:
                self._kept_end = 0
                self.log("the file has changed on the server: starting over with %s" % self.name)
        self.size = client.size
        self._has_ranges = client.header(b"accept-ranges") == "bytes"
        self.validator = client.header(b"etag") or client.header(b"last-modified")
        if self._trail and not is_kept:
            self._trail.begin(self.size, self.validator)

    def close(self):
        self._task = None
        if not self._is_lent:
            self.client.close()


def _ignore(text):
    pass


gc.collect()  # what loading left behind would divide a small heap
