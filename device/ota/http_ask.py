"""Reads the head of an answer, and begins with its body: see http.py.

Loaded for that, and let go of again; the lines of a chunked body keep it.
"""

import gc

from micropython import const

from .base import SourceError

_POLL_MS = const(5)  # how long to wait before looking again
_MAX_INTERIM = const(8)
_MAX_HEADERS = const(96)
_MAX_HEAD = const(32768)
_MAX_KEPT = const(2048)  # bytes of all headers that are of use
_MAX_REASON = const(64)
_REDIRECTS = (301, 302, 303, 307, 308)
# Names between spaces.
_WANTED = (
    b" accept-ranges connection content-encoding content-length content-range etag last-modified "
    b"location retry-after transfer-encoding "
)

_PIECE = const(128)
_MAX_LINE = const(8192)  # github.com sends headers of some 4 KiB
_MAX_LINE_KEPT = const(2048)
_MAX_FRAMING = const(16384)  # bytes of chunk sizes and extensions, beside eight for each byte sent
_MAX_TRAILERS = const(96)
_MAX_TRAILERS_SIZE = const(8192)
_MANY = const(0x8000000)
_HEX = b"0123456789abcdef"

# What comes next of a chunked body (RFC 9112, 7.1) when no byte of a chunk is due.
_SIZE = const(1)
_END = const(2)
_TRAILERS = const(3)


def read_head(client):
    """A generator: read the head of the answer. It sets of the client

    ``status``, ``reason``; ``size`` of the body, None if it is not known; ``location``, where a
    redirect leads, as the server says it, or None; of a part ``first``, its first byte, and
    ``total``, the size of the whole, None where it does not say; ``validator``: ETag or
    Last-Modified; ``has_ranges``; ``retry_after``.
    """
    lines = Lines()
    for _ in range(_MAX_INTERIM + 1):
        lines.bound(_MAX_HEADERS, _MAX_HEAD, "header")
        found = {}
        room = _MAX_KEPT
        parts = None
        while True:
            line = lines.take(client)
            if line is None:
                yield _POLL_MS
            elif not parts:
                parts = line.split(None, 2)
                if (
                    len(parts) < 2
                    or not parts[0].startswith(b"HTTP/1.")
                    or not parts[1].isdigit()
                    or len(parts[1]) != 3
                ):
                    raise broken(client, "no HTTP answer: %r" % line[:32])
            elif not line:
                break
            else:
                name, _, value = line.partition(b":")
                name = name.strip().lower()
                value = value.strip()
                if b" %s " % name in _WANTED:
                    room -= len(line)
                    if room < 0 or found.get(name, value) != value:
                        raise broken(client, "a header too long, or two: %s" % _text(name))
                    found[name] = value
        client.status = status = int(parts[1])
        client.reason = _text(parts[2][:_MAX_REASON]) if len(parts) > 2 else ""
        if not 100 <= status < 200:  # interim: the real answer follows
            _take_headers(client, lines, found, parts[0] == b"HTTP/1.1")
            return
    raise broken(client, "more than %d interim answers" % _MAX_INTERIM)


def _take_headers(client, lines, found, is_kept):
    """Take what the headers say, and how the body is delimited (RFC 9112, 6.3)."""

    def header(name):
        return _text(found.get(name, b""))

    client.is_kept = is_kept and header(b"connection").lower() != "close"
    client.chunks = client.left = client.size = None
    for name, good in ((b"content-encoding", "identity"), (b"transfer-encoding", "chunked")):
        if name in found and header(name).lower() != good:
            raise broken(client, "a body encoded as %s" % header(name))
    if b"transfer-encoding" in found:
        client.chunks = lines
        client.left = 0
        lines.begin()
    elif b"content-length" in found:
        client.left = client.size = _number(header(b"content-length"))
        if client.size is None:
            raise broken(client, "Content-Length: %s" % header(b"content-length"))
    if client.status in _REDIRECTS and b"location" in found:
        # As browsers take what is not ASCII, or a blank.
        place = ["%%%02X" % c if c < 33 or c > 126 else chr(c) for c in found[b"location"]]
        client.location = "".join(place)
    client.validator = header(b"etag") or header(b"last-modified") or None
    client.has_ranges = header(b"accept-ranges") == "bytes"
    client.retry_after = header(b"retry-after") or None
    unit, _, rest = header(b"content-range").partition(" ")
    span, _, total = rest.partition("/")
    is_part = unit.lower() == "bytes"
    client.first = _number(span.partition("-")[0]) if is_part else None
    client.total = _number(total) if is_part else None


def begin(source):
    """The answer is the whole file: take what it says of it. Raises SourceError."""
    client = source.client
    if client.status == 206 and client.first == 0 and client.total:  # a range was asked for
        client.size = client.total
    elif client.status != 200:
        raise refused(client, source.name)
    if source.kept_end and not source.is_same(client.size):
        source.kept_end = 0
        source.note = "the file has changed on the server: starting over with " + source.name
    source.size = size = client.size
    if size is not None and size > source.limit:
        from .failure import too_long

        raise too_long(source.name, source.limit)
    client.most = source.limit if size is None else size
    source.has_ranges = client.has_ranges
    source.validator = client.validator
    if source.trail and not source.kept_end:
        source.trail.begin(size, source.validator)


def refused(client, name):
    """The SourceError for an answer that is no success."""
    error = SourceError(
        "http-status", "HTTP Error: %d %s: %s" % (client.status, client.reason, name)
    )
    error.status = client.status
    error.retry_after = client.retry_after
    return error


def _number(value):
    """A size in decimal digits, None if it is none or too large."""
    return int(value) if value.isdigit() and len(value) < 10 else None


def _text(value):
    """Bytes that a server sent, as text that can be shown."""
    if all(32 <= byte < 127 for byte in value):
        return str(value, "ascii")
    return "".join([chr(byte) if 32 <= byte < 127 else "?" for byte in value])


# --- lines


class Lines:
    """Lines from a client's connection, no more and no longer ones than `bound` allows."""

    def __init__(self):
        self.data = b""
        self.size = 0  # of the line, with the bytes that are not kept
        self.state = _SIZE

    def bound(self, most, limit, what):
        """From now on ``most`` lines may come, with ``limit`` bytes."""
        self.lines = most
        self.limit = self.left = limit
        self.kind = what
        self.count = 0

    def take(self, client):
        """The next line, stripped, None if it is not there yet.

        Of a long line no more than 2 KiB are kept.
        """
        while True:
            piece = client.stream.readline(_PIECE)  # allocates as much as it may read
            client.note(piece)
            if piece is None:
                return None
            if not piece:
                raise SourceError("connection", "%s closed the connection early" % client.key[1])
            size = len(piece)
            self.left -= size
            self.size += size
            if len(self.data) < _MAX_LINE_KEPT:
                self.data += piece
            what = None
            if self.size > _MAX_LINE:
                what = "a line of more than %d bytes" % _MAX_LINE
            if self.left < 0:
                what = "more than %d bytes of %s lines" % (self.limit, self.kind)
            if piece[-1] == 10:
                self.count += 1
                if self.count > self.lines + 2:  # besides the status and the empty line
                    what = "more than %d %s lines" % (self.lines, self.kind)
            if what:
                raise broken(client, what)
            if piece[-1] == 10:
                line = self.data.strip()
                self.data = b""
                self.size = 0
                return line

    def begin(self):
        """Begin a chunked body."""
        self.bound(_MANY, _MAX_FRAMING, "chunk")

    def next_chunk(self, client):
        """Read up to the data of the next chunk: its size, 0 if there is none, None if none yet."""
        while True:
            line = self.take(client)
            if line is None:
                return None
            if self.state == _END:
                if line:
                    raise broken(client, "a chunk that is longer than it says")
                self.state = _SIZE
            elif self.state == _SIZE:
                digits = line.split(b";")[0].strip()
                if not digits or len(digits) > 7 or digits.lower().strip(_HEX):
                    raise broken(client, "a chunk of size %r" % digits[:16])
                size = int(digits, 16)
                if size:
                    self.left += 8 * size
                    self.state = _END
                    return size
                self.state = _TRAILERS
                self.bound(_MAX_TRAILERS, _MAX_TRAILERS_SIZE, "trailer")
            elif not line:
                client.chunks = None
                return 0


def broken(client, what):
    return SourceError("protocol", "%s sent %s" % (client.key[1], what))


gc.collect()  # what loading left behind would divide a small heap
