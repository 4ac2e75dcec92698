"""Connects to a server, over TCP or TLS, and sends it a request: see http_ask.py."""

import gc
from errno import ECONNRESET, EINPROGRESS
from select import poll
from socket import SOCK_STREAM, getaddrinfo, socket

from micropython import const

from .errors import SourceError

_POLL_MS = const(5)  # how long to wait before looking again
_MAX_ADDRESSES = const(4)  # of a host to try
_POLLOUT = const(4)  # select.POLLOUT


def connect(client, key):
    """A generator: connect, to the first of the host's addresses that answers.

    It returns the Trust of a TLS connection, whose handshake comes with what is sent first.
    """
    scheme, host, port = key
    failure = None
    try:
        addresses = getaddrinfo(host, port, 0, SOCK_STREAM)
    except OSError as error:
        addresses = ()
        failure = error
    if addresses:
        client.waited = client.came = 0
        for address in addresses[:_MAX_ADDRESSES]:
            try:
                yield from _connect(client, address)
                break
            except OSError as error:
                failure = error
                client.close()
    if not client.stream:
        from .source_error import unreachable

        raise unreachable(addresses, host, port, failure)
    client.key = key
    if scheme == "https":
        from .tls_trust import Trust

        trust = Trust(**client.options)
        client.stream = trust.wrap(client.socket, host)
        return trust


def _connect(client, address):
    client.socket = client.stream = stream = socket(address[0], SOCK_STREAM)
    stream.setblocking(False)
    try:
        stream.connect(address[-1])
    except OSError as error:
        if error.errno != EINPROGRESS:
            raise
    poller = poll()
    poller.register(stream)
    while True:
        events = poller.poll(0)
        if events and events[0][1] & _POLLOUT:
            break
        client.note(None)
        yield _POLL_MS
    if events[0][1] & ~_POLLOUT:  # the server speaks second: this is a failure
        stream.recv(1)  # raises it
        raise OSError(ECONNRESET)
    client.note(1)


def send(client, request, trust):
    """A generator: send a request. On a new TLS connection the handshake comes first."""
    view = memoryview(request)
    while view:
        try:
            count = client.stream.write(view)
            client.note(count or None)
        except (OSError, ValueError) as error:
            if trust and not isinstance(error, SourceError):
                error = trust.explain(error, client.key[1])
            raise error
        if count:
            view = view[count:]
            if trust:
                trust.end()
                trust = None
        else:
            yield _POLL_MS


gc.collect()  # what loading left behind would divide a small heap
