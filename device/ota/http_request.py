"""What a source and a client are made of, and the requests that are sent: see http_ask.py."""

import gc

from micropython import const

from .errors import SourceError
from .source import LIMIT, TIMEOUT_S, is_url

_MIN_RATE = const(256)  # bytes a second
# What may go to an origin that the user did not name. Anything else may be a secret.
_HARMLESS = ("accept", "accept-language", "user-agent")


def set_up_source(
    source,
    client=None,
    trail=None,
    sha=None,
    max_failures=5,
    pause=1,
    log=None,
    limit=None,
    stream=None,
    parse_headers=None,
    **options,
):
    """Set what an HttpSource needs.

    ``max_failures`` in a row end it, after a ``pause``, in seconds, that grows with each of them.
    ``log(text)`` is told of failures, and of a download that starts over. ``trail``: what a slot
    holds of it already (resume_download.py); ``sha``: hex SHA-256 of the file, if known. ``limit``:
    the most bytes that it may have. ``client``: a Client to use, and leave open, instead of one
    made from ``options``. ``stream`` and ``parse_headers`` of `requests.get` mean nothing here.
    """
    from .http import Client

    source.client = client or Client(**options)
    source.is_lent = client is not None
    source.trail = trail
    source.sha = sha
    source.limits = max_failures, pause
    source.log = log or bool  # which says nothing
    source.limit = limit or LIMIT


def set_up(
    client,
    headers=None,
    auth=None,
    timeout=TIMEOUT_S,
    min_rate=_MIN_RATE,
    origin=None,
    allow_downgrade_to_http=False,
    **tls,
):
    """Set what a Client needs.

    ``headers``: a dict, sent as they are; ``auth``: (user, password), or a bearer token as str.
    These go to one origin (scheme, host, port), that of the URL ``origin``, or else of the first
    one that is asked for; others get of them what is harmless. A fetch that began with https does
    not go on with http, wherever the URL comes from, but with ``allow_downgrade_to_http``.

    ``timeout``: seconds for connecting, and for every wait for the next bytes. ``min_rate``: bytes
    a second that have to come in a minute of waiting, 0 for none; with ``most``, the bytes to
    expect at most, it bounds all waiting as well. ``tls``: see Trust in tls_trust.py.
    """
    client.headers = dict(headers) if headers else {}
    if auth:
        from .http_more import authorization

        client.headers["Authorization"] = authorization(auth)
    client.origin = split_url(origin)[:3] if origin and is_url(origin) else None
    client.may_downgrade = allow_downgrade_to_http
    client.timeout = int(timeout * 1000)
    client.min_rate = min_rate
    client.options = tls
    client.most = LIMIT
    client.key = None  # (scheme, host, port), while there is a connection


def make_request(client, target, more):
    """The bytes to send for ``target`` (see split_url)."""
    scheme, host, port, path = target
    if ":" in host:
        host = "[%s]" % host
    if port != (443 if scheme == "https" else 80):
        host = "%s:%d" % (host, port)
    lines = ["GET %s HTTP/1.1" % path, "Host: " + host, "Accept-Encoding: identity"]
    agent = "User-Agent: ota (MicroPython)"
    for name, value in client.headers.items():
        if target[:3] == client.origin or name.lower() in _HARMLESS:
            lines.append("%s: %s" % (name, value))
            if name.lower() == "user-agent":
                agent = None
    if agent:
        lines.append(agent)
    lines += ["%s: %s" % item for item in more]
    request = "\r\n".join(lines)
    if request.count("\r") != request.count("\n") or request.count("\n") >= len(lines):
        raise SourceError("address", "a line break in the URL or a header: %r" % request)
    return request.encode() + b"\r\n\r\n"


def split_url(url):
    """(scheme, host, port, path with query) of an absolute URL. Raises SourceError."""
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    rest = rest.split("#", 1)[0]
    at = min([rest.find(mark) for mark in "/?" if mark in rest] or [len(rest)])
    authority, path = rest[:at], rest[at:]
    if not path.startswith("/"):
        path = "/" + path
    if "@" in authority:
        raise SourceError("address", "user and password do not belong in the URL: pass auth=")
    host, port = authority.lower(), ""
    if host.rfind(":") > host.rfind("]"):
        host, _, port = host.rpartition(":")
    is_ipv6 = host.startswith("[") and host.endswith("]")
    if is_ipv6:
        host = host[1:-1]
    # Of a host's characters these would change the meaning of what it is put into.
    if (
        scheme not in ("http", "https")
        or not host
        or not all("!" <= c <= "~" for c in url)
        or any(c in host for c in "[]\\\"'<>%,;")
        or (":" in host) != is_ipv6
    ):
        raise SourceError("address", "not an http:// or https:// URL: %s" % url)
    port = port or ("443" if scheme == "https" else "80")
    if not port.isdigit() or len(port) > 5 or not 0 < int(port) < 65536:
        raise SourceError("address", "not a port: %s in %s" % (port, url))
    return scheme, host, int(port), path


gc.collect()  # what loading left behind would divide a small heap
