"""The lines that a server sends: of the head of an answer, and between the chunks of a body.

And what is rare while a body comes: a server that is too slow.
"""

from micropython import const

from .errors import SourceError

_PIECE = const(128)
_MAX_LINE = const(8192)  # github.com sends headers of some 4 KiB
_MAX_KEPT = const(2048)
_MAX_FRAMING = const(16384)  # bytes of chunk sizes and extensions, beside eight for each byte sent
_MAX_TRAILERS = const(96)
_MAX_TRAILERS_SIZE = const(8192)
_MANY = const(0x8000000)
_HEX = b"0123456789abcdef"

# What comes next of a chunked body (RFC 9112, 7.1) when no byte of a chunk is due.
_SIZE = const(1)
_END = const(2)
_TRAILERS = const(3)


class Lines:
    """Lines from a client's connection, no more and no longer ones than `bound` allows."""

    def __init__(self):
        self.data = b""
        self.size = 0  # of the line, with what is not kept
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
            if len(self.data) < _MAX_KEPT:
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
        """A chunked body comes."""
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


def check_rate(client, window_ms):
    """Raise SourceError if what came in the last ``window_ms`` of waiting was too little."""
    rate = client.min_rate
    seconds = client.waited / 1000
    client.waited_s += seconds
    if client.came < rate * seconds:
        text = "%d bytes came in %.1f s of waiting" % (client.came, seconds)
    elif client.waited_s > client.most / rate + window_ms / 1000:
        text = "%d s of waiting are too long for %d bytes" % (client.waited_s, client.most)
    else:
        client.waited = client.came = 0
        return
    raise SourceError("slow", "%s, min_rate is %d bytes a second" % (text, rate))
