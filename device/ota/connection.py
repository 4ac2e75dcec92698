"""One connection to a server, plain or TLS, that never blocks unless it is told to.

Its generators yield the milliseconds until they want to be looked at again, so that a loop that
sleeps or an asyncio task can drive them. Only the look-up of a host name, for which MicroPython has
no other way, and the computations of a TLS handshake take their time at once.
"""

import errno
import gc
from time import ticks_diff, ticks_ms

from micropython import const

from .errors import SourceError

POLL_MS = const(5)  # how long to wait before looking again
_LINE_PIECE = const(128)
_MAX_LINE = const(8192)  # github.com sends headers of some 4 KiB
_POLLOUT = const(4)  # select.POLLOUT


class Connection:
    """A socket with what is around it.

    ``timeout_ms``: for connecting, and for every wait after that; ``tls``: options of Trust in
    secure.py. Errors are SourceErrors up to the first byte that was sent, from then on OSErrors as
    well.
    """

    def __init__(self, timeout_ms, tls):
        self.key = None  # (scheme, host, port), while there is a connection
        self._tls = tls
        self._trust = None
        self._timeout_ms = timeout_ms
        self._socket = self._stream = None  # the stream is the TLS socket around the socket
        self._since = None  # when the wait at hand began
        self._line = b""
        self._line_size = 0

    def open(self, scheme, host, port):
        """A generator: connect, to the first of the host's addresses that answers."""
        import socket

        try:
            addresses = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
        except OSError as error:
            raise SourceError("dns", "cannot find host %s: %s" % (host, reason(error)))
        failure = None
        for address in addresses:
            try:
                yield from self._connect(address)
                break
            except OSError as error:
                failure = error
                self.close()
        else:
            raise SourceError(
                "connect", "cannot connect to %s port %d: %s" % (host, port, reason(failure))
            )
        self.key = (scheme, host, port)
        if scheme == "https":
            if self._trust is None:
                from .secure import Trust

                self._trust = Trust(**self._tls)
            self._stream = self._trust.wrap(self._socket, host)

    def _connect(self, address):
        import socket
        from select import poll

        self._socket = self._stream = socket.socket(address[0], socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._begin_wait()
        try:
            self._socket.connect(address[-1])
        except OSError as error:
            if error.errno != errno.EINPROGRESS:
                raise
        poller = poll()
        poller.register(self._socket)
        while True:
            events = poller.poll(0)
            if events and events[0][1] & _POLLOUT:
                break
            self._wait()
            yield POLL_MS
        if events[0][1] & ~_POLLOUT:  # the server speaks second: this is a failure
            self._socket.recv(1)  # raises it
            raise OSError(errno.ECONNRESET)
        self._since = None

    def send(self, data):
        """A generator: send all of ``data``. On a new TLS connection the handshake comes first."""
        view = memoryview(data)
        is_handshake = self._stream is not self._socket
        self._begin_wait()
        while view:
            try:
                count = self._stream.write(view)
                if not count:
                    self._wait()
            except (OSError, ValueError) as error:
                if is_handshake:
                    raise self._trust.explain(error, self.key[1])
                raise
            if count:
                view = view[count:]
                is_handshake = False
                self._since = None
            else:
                yield POLL_MS

    def take_line(self, limit):
        """The next line with its end, None if it is not there yet.

        Of a line longer than ``limit`` no more than that is kept.
        """
        while True:
            self._begin_wait()
            piece = self._stream.readline(_LINE_PIECE)  # allocates as much as it may read
            if piece is None:
                self._wait()
                return None
            self._since = None
            if not piece:
                raise SourceError("connection", "%s closed the connection early" % self.key[1])
            if len(self._line) < limit:
                self._line += piece
            self._line_size += len(piece)
            if piece[-1] == 10:
                line = self._line
                self._line = b""
                self._line_size = 0
                return line
            if self._line_size > _MAX_LINE:
                raise SourceError(
                    "protocol", "%s sent a line of more than %d bytes" % (self.key[1], _MAX_LINE)
                )

    def readinto(self, buf, limit):
        """Up to ``limit`` bytes into ``buf``: how many, 0 at the end, None if none yet."""
        self._begin_wait()
        count = self._stream.readinto(buf, limit)
        if count is None:
            self._wait()
        else:
            self._since = None
        return count

    def block(self, is_blocking):
        """Whether reading waits: it then fills its buffer, and allocates nothing."""
        if self._socket:
            self._socket.settimeout(self._timeout_ms / 1000 if is_blocking else 0)

    def _begin_wait(self):
        if self._since is None:
            self._since = ticks_ms()

    def _wait(self):
        """Nothing has come: raise OSError if that has been so for too long."""
        if ticks_diff(ticks_ms(), self._since) >= self._timeout_ms:
            raise OSError(errno.ETIMEDOUT)

    def close(self):
        if self._stream is not self._socket:
            self._stream.close()
        if self._socket:
            self._socket.close()  # after a failed handshake the TLS socket has let go of it
        self._socket = self._stream = self.key = self._since = None
        self._line = b""
        self._line_size = 0


def reason(error):
    """An OSError in a word."""
    number = error.errno
    name = errno.errorcode.get(number) if hasattr(errno, "errorcode") else None
    if name is None and len(error.args) > 1:
        name = error.args[1]
    return name or str(number)


gc.collect()  # what loading left behind would divide a small heap
