"""One request, and the answer to it: what asks in an idle poll, and for little more than a status.

It stays in memory from one poll to the next, and makes room for an installation: see follow.py.
"""

from errno import ECONNRESET, EINPROGRESS, ETIMEDOUT
from select import POLLOUT, poll
from socket import SOCK_STREAM, getaddrinfo, socket
from time import ticks_add, ticks_diff, ticks_ms

from micropython import const

_TIMEOUT_MS = const(30000)
_POLL_MS = const(5)
_PIECE = const(512)
_MAX_LINE = const(96)
_MAX_LINES = const(64)


def exchanging(follower, ask, limit):
    """A generator: see `Follower._exchanging`."""
    is_tls, host, port, name, data = ask
    sock = stream = None
    deadline = ticks_add(ticks_ms(), _TIMEOUT_MS)
    what = "dns"
    try:
        address = getaddrinfo(host, port, 0, SOCK_STREAM)[0]
        what = "connection"
        sock = stream = socket(address[0], SOCK_STREAM)
        yield from _connecting(sock, address[-1], deadline)
        if is_tls:
            what = "tls"
            stream = follower.context.wrap_socket(
                sock, server_hostname=name, do_handshake_on_connect=False
            )
        view = memoryview(data)
        while view:
            count = stream.write(view)
            if count:
                view = view[count:]
            else:
                yield from _waiting(deadline)
        what = "connection"
        status = int((yield from _line(stream, deadline)).split(None, 2)[1])
        after, size = "", None
        for _ in range(_MAX_LINES):
            line = yield from _line(stream, deadline)
            key, _, value = line.partition(b":")
            key = key.lower()
            if key == b"retry-after":
                after = str(value.strip(), "ascii")
            elif key == b"content-length":
                size = int(value)
            elif key == b"transfer-encoding":
                size = -1
            if not line:
                break
        body = b""
        if limit and status == 200:
            body = yield from _body(stream, size, limit, deadline)
        return status, after, body
    except (OSError, ValueError, IndexError) as error:
        return what, None, error
    finally:
        for one in (stream, sock):
            if one:
                one.close()


def _connecting(sock, address, deadline):
    sock.setblocking(False)
    try:
        sock.connect(address)
    except OSError as error:
        if error.errno != EINPROGRESS:
            raise
    poller = poll()
    poller.register(sock, POLLOUT)
    while True:
        events = poller.poll(0)
        if events:
            if events[0][1] & ~POLLOUT:
                sock.recv(1)  # raises what went wrong
            return
        yield from _waiting(deadline)


def _waiting(deadline):
    if ticks_diff(deadline, ticks_ms()) <= 0:
        raise OSError(ETIMEDOUT)
    yield _POLL_MS


def _line(stream, deadline):
    """A line, stripped; no more of it than some 100 bytes."""
    data = b""
    while True:
        piece = stream.readline(64)
        if piece is None:
            yield from _waiting(deadline)
            continue
        if not piece:
            raise OSError(ECONNRESET)
        if len(data) < _MAX_LINE:
            data += piece
        if piece[-1] == 10:
            return data.strip()


def _body(stream, size, limit, deadline):
    """A body of ``size`` bytes; None: up to the end of the connection, -1: in chunks."""
    data = bytearray()
    while True:
        left = size
        if size == -1:
            left = int((yield from _line(stream, deadline)).split(b";")[0], 16)
            if not left:
                return data
        if left is not None and not 0 <= left <= limit - len(data):
            raise ValueError("a body of more than %d bytes" % limit)
        while left != 0:
            piece = stream.read(_PIECE if left is None else min(left, _PIECE))
            if piece is None:
                yield from _waiting(deadline)
                continue
            data += piece
            if len(data) > limit:
                raise ValueError("a body of more than %d bytes" % limit)
            if left is not None:
                if not piece:
                    raise OSError(ECONNRESET)
                left -= len(piece)
            elif not piece:
                break
        if size != -1:
            return data
        yield from _line(stream, deadline)  # the end of the chunk
