"""Files from servers: `HttpSource`, and what an HTTP/1.1 client needs while a body comes.

All else is loaded for its step, and let go of before the next one: to connect and to send a
request (http_connect.py), to read the head of the answer (http_ask.py), to wait after a failure and
to go on where it broke off (http_resume.py). Nothing here blocks: generators yield the milliseconds
until they want to be looked at again, so that a loop that sleeps or an asyncio task can drive
them, and `read_body` answers None. Only the look-up of a host name, for which MicroPython has no
other way, and each step of a TLS handshake take their time at once. All that a server may send or
withhold is bounded, and the error says which bound it was. What goes wrong is a SourceError or an
OSError.
"""

from errno import ETIMEDOUT
from time import sleep_ms, ticks_diff, ticks_ms

from micropython import const

from .base import SourceError, no_memory, unload

_POLL_MS = const(1)  # between two looks at the socket
_FAR = const(49152)  # bytes that come in about the time that a new connection takes
_MOST_MS = const(1000)  # counted between two looks at most: beyond that the app was busy
# What is let go of when a body begins.
_PARTS = ("http_ask", "http_connect", "http_resume", "tls_trust")

window_ms = 60000  # of waiting, in which `min_rate` is due; tests have less time


class Client:
    """Asks servers for files, one after the other, over one connection while that is possible.

    ``options``: see set_up in http_connect.py. After a request: ``status``, ``reason``, and
    ``size`` of the body, None if it is not known.
    """

    stream = None  # the TLS socket around the socket, or the socket
    chunks = None  # of a chunked body: its Lines (http_ask.py)
    left = None  # bytes to come of the body or chunk; None: until the connection ends
    is_kept = False  # by the server, when the body is over
    is_reused = False  # for more than one request
    location = None  # where a redirect leads
    waited = came = idle = 0  # ms of waiting and bytes that came in it; ms of waiting by now
    waited_s = 0  # as far as it has been judged
    looked = None  # when there was nothing yet, and the time counts

    def __init__(self, **options):
        from .http_connect import set_up

        set_up(self, **options)

    def get(self, url, more=()):
        """A generator: ask for ``url``, with ``more`` headers (name, value), up to its body.

        Redirects are followed. Raises OSError or SourceError.
        """
        self.location = None
        hops = 0
        while True:
            try:
                from .http_connect import request as step

                url, data = yield from step(self, url, more, hops)
                step = None
                unload("http_connect")
                yield from self._send(data)
                data = None
                from .http_ask import read_head as step

                yield from step(self)
                step = None
            except (OSError, SourceError) as error:
                if not self.is_reused or not _is_closed(error):
                    raise
                self.close()  # the server had closed it in the meantime
                continue
            if not self.location:
                return
            hops += 1
            unload("http_ask")

    def _send(self, request):
        """A generator: send a request. On a new TLS connection the handshake comes first."""
        trust = None
        if self.key[0] == "https" and not self.is_reused:
            from .tls_trust import Trust

            trust = Trust(**self.options)
            del Trust
            self.stream = trust.wrap(self.socket, self.key[1])
        view = memoryview(request)
        while view:
            try:
                count = self.stream.write(view)
                self.note(count or None)
            except (OSError, ValueError) as error:
                if trust and not isinstance(error, SourceError):
                    error = trust.explain(error, self.key[1])
                raise error
            if count:
                view = view[count:]
                if trust:
                    trust.end()
                    trust = None
                    unload("tls_trust")
            else:
                yield _POLL_MS

    def is_over(self):
        """Whether the body has come to its end and the connection can be used again."""
        return self.is_kept and self.left == 0 and not self.chunks

    def read_body(self, buf):
        """The next bytes of the body: how many, 0 at its end, None if there are none yet.

        Raises SourceError ("short") if it ends before it should.
        """
        left = self.left
        if self.chunks and not left:
            left = self.chunks.next_chunk(self)
            if left is None:
                return None
        size = len(buf) if left is None else min(left, len(buf))
        if not size:
            return 0
        count = self.stream.readinto(buf, size)
        self.note(count)
        if left is not None and count is not None:
            if not count:
                raise SourceError("short", "")  # http_resume.py adds the words
            self.left = left - count
        self.came += count or 0
        return count

    def note(self, count):
        """Count the time since the last look if there was nothing; ``count``: None: still nothing.

        Raises OSError or SourceError if that has been so for too long.
        """
        if self.looked is None:
            if count is not None:
                return
            self.looked = ticks_ms()
        now = ticks_ms()
        passed = ticks_diff(now, self.looked)
        if not 0 <= passed < _MOST_MS:
            passed = _MOST_MS
        self.waited += passed
        if count is not None:
            self.looked = None
            self.idle = 0
            return
        self.looked = now
        self.idle += passed
        if self.idle >= self.timeout:
            raise OSError(ETIMEDOUT)
        if self.min_rate and self.waited >= window_ms:
            from .http_resume import check_rate

            check_rate(self, window_ms)

    def close(self):
        if self.stream:
            self.stream.close()
            self.socket.close()  # after a failed handshake the TLS socket has let go of it
        self.stream = self.socket = self.looked = self.chunks = None
        self.idle = 0
        self.is_kept = False


def _is_closed(error):
    if isinstance(error, OSError):
        return error.errno != ETIMEDOUT
    return error.code == "connection"


class HttpSource:
    """The body of an http:// or https:// URL, to be opened by `open` or `opening`.

    ``options``: see set_up_source in http_connect.py. ``size``: of the file, None if it is not
    known. ``is_joined``: it was put together from more than one answer, or only the end of the
    connection told its end.
    """

    # http_ask.py, http_resume.py work with: client, is_lent, trail, sha, log, limit,
    # limits, validator, failures, has_ranges; note, which `log` is told once no failure of that
    # could be taken for one of the network; at: the next byte to fetch; given: how many have been
    # handed out; skip: how many are to be fetched again and dropped; kept, kept_end: the part of
    # the file that comes from the slot.

    size = validator = note = failures = None
    is_joined = False
    is_new = True  # nothing has been asked for
    at = given = skip = kept = kept_end = 0
    _task = None  # what has to end before the next bytes come

    def __init__(self, name, **options):
        from .http_connect import set_up_source

        self.name = name
        set_up_source(self, **options)

    def open(self):
        """Connect, and learn the size. Raises SourceError."""
        for _ in self.opening():
            sleep_ms(_POLL_MS)
        return self

    def opening(self):
        """A generator that does what `open` does, and yields milliseconds to wait."""
        return self._connect()

    def reading_end(self, buf):
        """A generator: fill ``buf`` with the last bytes of the file, asked for by themselves.

        Raises SourceError, with the code ``no-range`` if the server does not send a part.
        """
        return self._connect(buf)

    def _connect(self, buf=None, error=None):
        """A generator: connect, after a failure or not, and ask for what is still to come."""
        try:
            while True:
                if error:
                    from .http_resume import wait as step

                    yield from step(self, error)
                    step = None
                    unload(*_PARTS)
                try:
                    yield from self._asking(buf)
                    error = None
                except (OSError, ValueError) as failure:
                    error = failure
                unload(*_PARTS)
                if self.note:
                    self.log(self.note)
                    self.note = None
                if not error:
                    return
        except MemoryError as failure:
            unload(*_PARTS)  # room to say so
            raise no_memory(failure, self.name, SourceError)

    def _asking(self, buf):
        client = self.client
        from .http_connect import prepare as step

        more = step(self, buf)
        step = None
        yield from client.get(self.name, more)
        if buf or self.at:
            unload("http_ask")
            if buf:
                from .http_resume import fill_end as step
            else:
                from .http_resume import go_on as step
            is_begun = yield from step(self, buf)
            step = None
            if is_begun:
                return
            unload("http_resume")
        from .http_ask import begin

        begin(self)

    def is_same(self, total):
        """Whether the answer, of a file of ``total`` bytes, may be of the one that was begun."""
        if total is not None and self.size not in (None, total):
            return False
        found = self.client.validator
        return bool(self.sha or not found or self.validator in (None, found))

    def readinto(self, buf):
        """Fill ``buf`` as far as the file goes; the number of bytes, 0 at the end.

        Raises SourceError when it cannot go on.
        """
        have = 0
        while have < len(buf):
            count = self.try_readinto(memoryview(buf)[have:] if have else buf)
            if count is None:
                sleep_ms(_POLL_MS)
            elif count:
                have += count
            else:
                break
        return have

    def try_readinto(self, buf):
        """As `readinto`, but what there is; None if there is nothing yet."""
        try:
            if self._task:
                for _ in self._task:
                    return None
                self._task = None
            given = self.given
            if given < self.kept_end:
                if given >= self.kept:
                    from .http_resume import read_kept

                    return read_kept(self, buf)
                buf = memoryview(buf)[: self.kept - given]
            try:
                count = self._read_body(buf)
            except (OSError, ValueError) as error:
                self._task = self._connect(None, error)
                return None
        except MemoryError as error:
            raise no_memory(error, self.name, SourceError)
        if count:
            self.given += count
            if (self.size or self.at) > self.limit:
                from .failure import too_long

                raise too_long(self.name, self.limit)
        return count

    def _read_body(self, buf):
        """Some bytes of the body; those to skip are dropped, so that there are None yet."""
        skip = self.skip
        size = self.size
        if skip:
            buf = memoryview(buf)[:skip]
        elif size is not None and self.at >= size:
            return 0
        count = self.client.read_body(buf)
        if count == 0:
            if skip or size is not None:
                raise SourceError("short", "")
            if self.client.left is None:
                self.is_joined = True
        elif count and skip:
            self.skip = skip - count
            return None
        self.at += count or 0
        return count

    def pass_over(self, count):
        """Leave out the next ``count`` bytes: where that is less work, ask for what follows."""
        self.given += count
        self.leave_out(count)

    def leave_out(self, count):
        self.at += count
        if self.is_new:  # it is asked for from there on
            return
        if count < _FAR or not self.has_ranges or self.at == self.size:
            self.skip += count
        else:
            self.skip = 0
            self._task = self._connect()

    def close(self):
        self._task = None
        if not self.is_lent:
            self.client.close()
