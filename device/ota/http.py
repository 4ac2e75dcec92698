"""An HTTP/1.1 client for downloads: GET, ranges, redirects, one connection that is kept.

Like connection.py it never blocks: `get` is a generator that yields the milliseconds until it wants
to be looked at again, and `read_body` answers None. What goes wrong is a SourceError or an OSError.
"""

import gc
from errno import ETIMEDOUT

from micropython import const

from .connection import POLL_MS, Connection
from .errors import SourceError
from .url import split_url

TIMEOUT_S = const(30)

_MAX_LINE = const(2048)
_MAX_HEADERS = const(96)
_REDIRECTS = (301, 302, 303, 307, 308)
_WANTED = (
    b"accept-ranges connection content-encoding content-length content-range etag last-modified "
    b"location retry-after transfer-encoding"
)


class Client:
    """Asks servers for files, one after the other, over one connection while that is possible.

    ``headers``: a dict, sent as they are; ``auth``: (user, password), or a bearer token as str.
    Of these, another host that a redirect leads to gets only what is harmless. ``timeout``:
    seconds for connecting, and for every wait for the next bytes. ``tls``: see Trust in secure.py.

    After `get`: ``status``, ``reason``, and ``size`` of the body, None if it is not known.
    """

    def __init__(self, headers=None, auth=None, timeout=TIMEOUT_S, **tls):
        self.headers = dict(headers) if headers else {}
        if auth:
            from .redirect import authorization

            self.headers["Authorization"] = authorization(auth)
        self._connection = Connection(int(timeout * 1000), tls)
        self._is_kept = False  # by the server, when the body is over
        self._chunks = self._left = None

    def get(self, url, more=()):
        """A generator: ask for ``url``, with ``more`` headers (name, value), up to its body."""
        target = split_url(url)
        yield from self.ask(target, list(self.headers.items()) + list(more))
        if self.location():
            from .redirect import follow

            yield from follow(self, url, target, more)

    def ask(self, target, headers):
        """A generator: ask for ``target`` (see split_url), up to the body, wherever it is."""
        scheme, host, port, path = target
        if ":" in host:
            host = "[%s]" % host
        if port != (443 if scheme == "https" else 80):
            host = "%s:%d" % (host, port)
        lines = ["GET %s HTTP/1.1" % path]
        names = [name.lower() for name, _ in headers]
        if "user-agent" not in names:
            lines.append("User-Agent: ota (MicroPython)")
        lines += ["Host: " + host, "Accept-Encoding: identity"]
        lines += ["%s: %s" % item for item in headers]
        request = "\r\n".join(lines)
        if request.count("\r") != request.count("\n") or request.count("\n") >= len(lines):
            raise SourceError("address", "a line break in the URL or a header: %r" % request)
        request = request.encode() + b"\r\n\r\n"
        connection = self._connection
        if self.is_over() and connection.key == target[:3]:
            try:
                yield from self._exchange(request)
                return
            except OSError as error:  # the server had closed it in the meantime, or else:
                if error.errno == ETIMEDOUT:
                    raise
            except SourceError as error:
                if error.code != "connection":
                    raise
        connection.close()
        yield from connection.open(*target[:3])
        yield from self._exchange(request)

    def is_over(self):
        """Whether the body has come to its end and the connection can be used again."""
        return self._is_kept and (self._chunks.is_over if self._chunks else self._left == 0)

    def _exchange(self, request):
        """Send a request and read the head of the answer."""
        self._is_kept = False
        self._connection.block(False)
        yield from self._connection.send(request)
        self.status = 100
        while 100 <= self.status < 200:  # interim: the real answer follows
            line = yield from self._read_line()
            parts = line.split(None, 2)
            if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
                raise self._broken("no HTTP answer: %r" % line[:32])
            self.status = int(parts[1])
            self.reason = _text(parts[2]) if len(parts) > 2 else ""
            yield from self._read_headers()
        self._take_headers(parts[0] == b"HTTP/1.1")

    def _read_line(self):
        line = None
        while line is None:
            line = self._connection.take_line(_MAX_LINE)
            if line is None:
                yield POLL_MS
        return line.strip()

    def _read_headers(self):
        self._found = found = {}
        for _ in range(_MAX_HEADERS):
            line = yield from self._read_line()
            if not line:
                return
            name, _, value = line.partition(b":")
            name = name.strip().lower()
            value = value.strip()
            if name in _WANTED:
                if len(line) > _MAX_LINE - 2 or found.get(name, value) != value:
                    raise self._broken("a header too long, or two: %s" % _text(name))
                found[name] = value
        raise self._broken("more than %d headers" % _MAX_HEADERS)

    def _take_headers(self, is_kept):
        """How the body is delimited."""
        found = self._found
        self._is_kept = is_kept and found.get(b"connection", b"").lower() != b"close"
        self._chunks = self.size = None
        if found.get(b"content-encoding", b"identity").lower() != b"identity":
            raise self._broken("a body encoded as %s" % self.header(b"content-encoding"))
        if b"transfer-encoding" in found:
            if found[b"transfer-encoding"].lower() != b"chunked":
                raise self._broken("a body encoded as %s" % self.header(b"transfer-encoding"))
            from .chunks import Chunks

            self._chunks = Chunks(self._connection)
        elif b"content-length" in found:
            self.size = number(found[b"content-length"])
            if self.size is None:
                raise self._broken("Content-Length: %s" % self.header(b"content-length"))
        self._left = self.size  # bytes to come of the body; None: until the connection is closed

    def header(self, name):
        """A header of the answer as text, None if it has none. ``name``: in lower case."""
        value = self._found.get(name)
        return None if value is None else _text(value)

    def location(self):
        """Where a redirect leads, None if the answer is none."""
        return self.header(b"location") if self.status in _REDIRECTS else None

    def _broken(self, what):
        return SourceError("protocol", "%s sent %s" % (self._connection.key[1], what))

    # --- the body

    def block(self, is_blocking):
        """Whether `read_body` waits (up to the time-out) until its buffer is full."""
        self._connection.block(is_blocking)

    def read_body(self, buf):
        """The next bytes of the body: how many, 0 at its end, None if there are none yet.

        Raises SourceError ("short") if it ends before it should.
        """
        if self._chunks:
            return self._chunks.read(buf)
        limit = len(buf) if self._left is None else min(self._left, len(buf))
        if not limit:
            return 0
        count = self._connection.readinto(buf, limit)
        if count is None or self._left is None:
            return count
        if not count:
            raise SourceError("short", "the connection ended, %d bytes are missing" % self._left)
        self._left -= count
        return count

    def close(self):
        self._connection.close()
        self._is_kept = False


def number(value):
    """A size in decimal digits, None if it is none or too large."""
    return int(value) if value.isdigit() and len(value) < 10 else None


def _text(value):
    return "".join([chr(byte) if 32 <= byte < 127 else "?" for byte in value])


gc.collect()  # what loading left behind would divide a small heap
