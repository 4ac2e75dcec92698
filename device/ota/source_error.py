"""What can go wrong with a source, in words: loaded when it has."""

import errno

from .errors import SourceError


def refused(client, name):
    """The SourceError for an answer that is no success."""
    from .http_ask import header

    error = SourceError(
        "http-status", "HTTP Error: %d %s: %s" % (client.status, client.reason, name)
    )
    error.status = client.status
    error.retry_after = header(client, b"retry-after")
    return error


def unreachable(addresses, host, port, error):
    """The SourceError for a server that none of the ``addresses`` of leads to."""
    why = reason(error) if error else "no address"
    if addresses:
        return SourceError("connect", "cannot connect to %s port %d: %s" % (host, port, why))
    return SourceError("dns", "cannot find host %s: %s" % (host, why))


def too_long(name, limit):
    return SourceError("too-long", "%s has more than %d bytes, the limit here" % (name, limit))


def too_short(name, size, buf):
    return SourceError("too-short", "%s has %d bytes, at least %d are due" % (name, size, len(buf)))


def reason(error):
    """An OSError in a word."""
    number = error.errno
    name = errno.errorcode.get(number) if hasattr(errno, "errorcode") else None
    if name is None and len(error.args) > 1:
        name = error.args[1]
    return name or str(number)
