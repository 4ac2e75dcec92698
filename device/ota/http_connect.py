"""The way to a server: the request, and the connection over TCP.

Loaded for that, and let go of again: see http.py.
"""

import gc
from errno import ECONNRESET, EINPROGRESS
from select import poll
from socket import SOCK_STREAM, getaddrinfo, socket

from micropython import const

from .base import SourceError
from .pump import LIMIT, TIMEOUT_S, is_url, reason

_MIN_RATE = const(256)  # bytes a second
# Headers that may go to an origin that the user did not name. Others may hold a secret.
_HARMLESS = ("accept", "accept-language", "user-agent")
_POLL_MS = const(5)  # how long to wait before looking again
_MAX_ADDRESSES = const(4)  # of a host to try
_POLLOUT = const(4)  # select.POLLOUT
_MAX_REDIRECTS = const(8)


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
    holds of it already (update.py); ``sha``: hex SHA-256 of the file, if known. ``limit``:
    the most bytes that it may have. ``client``: a Client to use, and leave open, instead of one
    made from ``options``. ``stream`` and ``parse_headers`` of `requests.get` mean nothing here.
    """
    from .http import Client

    source.client = client or Client(**options)
    source.is_lent = client is not None
    source.trail = trail
    source.sha = sha
    source.limits = max_failures, pause
    source.log = log or bool  # bool(text) does nothing
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
        if not isinstance(auth, str):
            from binascii import b2a_base64

            auth = b2a_base64(("%s:%s" % tuple(auth)).encode())
            client.headers["Authorization"] = "Basic " + str(auth.strip(), "ascii")
        else:
            client.headers["Authorization"] = "Bearer " + auth
    client.origin = split_url(origin)[:3] if origin and is_url(origin) else None
    client.may_downgrade = allow_downgrade_to_http
    client.timeout = int(timeout * 1000)
    client.min_rate = min_rate
    client.options = tls
    client.most = LIMIT
    client.key = None  # (scheme, host, port), while there is a connection


def prepare(source, buf):
    """The headers to ask for what ``source`` still lacks, or for its end (``buf``)."""
    if buf:
        return [("Range", "bytes=-%d" % len(buf))]
    client = source.client
    if source.is_new:
        source.is_new = False
        trail = source.trail
        if trail and trail.size:
            source.kept = trail.start
            source.kept_end = trail.start + trail.size
            source.size, source.validator = trail.total, trail.validator
            if not source.kept:
                source.at = source.kept_end
        client.waited_s = 0
        client.most = source.size or source.limit
    source.skip = 0
    more = []
    if source.at:
        client.headers.pop("Range", None)  # of the whole file: ddi_more.py
        more.append(("Range", "bytes=%d-" % source.at))
        if source.validator and not source.validator.startswith("W/"):
            more.append(("If-Range", source.validator))
    return more


# --- a request


def request(client, url, more, hops):
    """A generator: connect, if that is due; the URL to ask for, and the request (bytes).

    The URL is ``url``, or where the answer for it leads, the ``hops``-th redirect.
    """
    target = split_url(url)
    before = client.origin = client.origin or target[:3]
    verb = "leads"
    if client.location:
        before = target
        verb = "redirects"
        url = join_url(url, client.location)
        target = split_url(url)
    if before[0] == "https" != target[0] and not client.may_downgrade:
        raise SourceError("redirect", "%s %s from https to http" % (before[1], verb))
    if hops > _MAX_REDIRECTS:
        text = "more than %d redirects from %s" % (_MAX_REDIRECTS, before[1])
        raise SourceError("redirect", text)
    data = _make_request(client, target, more)
    client.is_reused = client.is_over() and client.key == target[:3]
    if not client.is_reused:
        client.close()
        yield from _connect(client, target[1], target[2])
        client.key = target[:3]
    client.is_kept = False
    client.location = None
    return url, data


def _make_request(client, target, more):
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
    start, path = _split_path(url.partition("#")[0])
    scheme, _, host = start.lower().partition("://")
    if "@" in host:
        raise SourceError("address", "user and password do not belong in the URL: pass auth=")
    port = ""
    if host.rfind(":") > host.rfind("]"):
        host, _, port = host.rpartition(":")
    is_ipv6 = host.startswith("[") and host.endswith("]")
    if is_ipv6:
        host = host[1:-1]
    # These characters in a host would change the meaning of the request.
    if (
        scheme not in ("http", "https")
        or not host
        or not all("!" <= c <= "~" for c in host)
        or not all(c >= " " and c != "\x7f" for c in path)
        or any(c in host for c in "[]\\\"'<>%,;")
        or (":" in host) != is_ipv6
    ):
        raise SourceError("address", "not an http:// or https:// URL: %s" % url)
    port = port or ("443" if scheme == "https" else "80")
    if not port.isdigit() or len(port) > 5 or not 0 < int(port) < 65536:
        raise SourceError("address", "not a port: %s in %s" % (port, url))
    # A blank, an umlaut: as browsers send them.
    path = "".join([chr(c) if 32 < c < 127 else "%%%02X" % c for c in path.encode()])
    return scheme, host, int(port), path


# --- where one URL leads to another


def join_url(base, reference):
    """The absolute URL of ``reference``, relative to ``base``: RFC 3986, 5.2."""
    if is_url(reference):
        start, path = _split_path(reference)
        return start + remove_dots(path)
    scheme = reference.partition(":")[0]
    if scheme != reference and not any(mark in scheme for mark in "/?#"):
        raise SourceError("address", "not an http:// or https:// URL: %s" % reference)
    if reference.startswith("//"):
        return join_url(base, base.partition("://")[0] + ":" + reference)
    start, path = _split_path(base)
    path = path.partition("#")[0]
    if reference and reference[0] not in "#":
        path = path.partition("?")[0]
        if reference[0] == "/":
            path = ""
        elif reference[0] != "?":
            path = path.rpartition("/")[0] + "/"
    return start + remove_dots(path + reference)


def _split_path(url):
    """What is before the path of an absolute URL, and the path with what is behind it."""
    at = url.find("://") + 3
    while at < len(url) and url[at] not in "/?#":
        at += 1
    path = url[at:]
    return url[:at], path if path.startswith("/") else "/" + path


def remove_dots(path):
    """An absolute path, with what may be behind it, without "." and "..": RFC 3986, 5.2.4."""
    at = min([path.find(mark) for mark in "?#" if mark in path] or [len(path)])
    found = []
    parts = path[:at].split("/")[1:]
    for part in parts:
        if part == "..":
            found = found[:-1]
        elif part != ".":
            found.append(part)
    if parts[-1] in (".", ".."):
        found.append("")
    return "/" + "/".join(found) + path[at:]


def resolve(base, reference):
    """A URL or path that is relative to that of the file, or the URL, that names it."""
    if is_url(base):
        return join_url(base, reference)
    if is_url(reference) or reference.startswith("/"):
        return reference
    folder = base.rpartition("/")[0]
    return folder + "/" + reference if folder else reference


# --- the connection


def _connect(client, host, port):
    """A generator: connect, to the first of the host's addresses that answers."""
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
                yield from _connect_to(client, address)
                break
            except OSError as error:
                failure = error
                client.close()
    if not client.stream:
        why = reason(failure) if failure else "no address"
        if addresses:
            raise SourceError("connect", "cannot connect to %s port %d: %s" % (host, port, why))
        raise SourceError("dns", "cannot find host %s: %s" % (host, why))


def _connect_to(client, address):
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


gc.collect()  # what loading left behind would divide a small heap
