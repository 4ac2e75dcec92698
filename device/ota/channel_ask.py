"""The poll of a channel: one request, of whose answer little more than the status is read.

It stays in memory from one poll to the next, and makes room for an installation: channel.py.
"""

from errno import ECONNRESET, EINPROGRESS, ETIMEDOUT
from select import POLLOUT, poll
from socket import SOCK_STREAM, getaddrinfo, socket
from time import ticks_add, ticks_diff, ticks_ms

from micropython import const

_TIMEOUT_MS = const(30000)
_POLL_MS = const(5)
_MAX_LINE = const(96)
_MAX_LINES = const(64)


def asking(channel):
    """A generator: whether the server says that the file is still the one with our ETag.

    If not, `answer` of the channel is (status, Retry-After or None), or (what failed, the error),
    for channel_more.py to act on.
    """
    is_tls, host, port, name, data = channel.ask
    sock = stream = None
    deadline = ticks_add(ticks_ms(), _TIMEOUT_MS)
    what = "dns"
    channel.answer = None
    try:
        address = getaddrinfo(host, port, 0, SOCK_STREAM)[0]
        what = "connection"
        sock = stream = socket(address[0], SOCK_STREAM)
        yield from _connecting(sock, address[-1], deadline)
        if is_tls:
            what = "tls"
            stream = channel.context.wrap_socket(
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
        parts = (yield from _line(stream, deadline)).split(None, 2)
        status = int(parts[1])
        if status < 500 and status != 429:
            channel.answer = status, None
            return status == 304
        after = ""
        for _ in range(_MAX_LINES):
            line = yield from _line(stream, deadline)
            if line[:12].lower() == b"retry-after:":
                after = str(line[12:].strip(), "ascii")
            if not line:
                break
        channel.answer = status, after
    except (OSError, ValueError, IndexError) as error:
        channel.answer = what, error
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
