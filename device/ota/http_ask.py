"""Asks servers for files, up to where the body begins: see http.py.

Loaded for that, and let go of again: nothing that stays while a body comes may be made of what is
defined here. What makes a request and what connects is let go of before the answer is read.
"""

import gc
from errno import ETIMEDOUT

from micropython import const

from .errors import SourceError
from .unload import unload

_POLL_MS = const(5)  # how long to wait before looking again
_MAX_INTERIM = const(8)
_MAX_HEADERS = const(96)
_MAX_HEAD = const(32768)
_MAX_KEPT = const(2048)  # of all headers that are of use
_MAX_REASON = const(64)
_REDIRECTS = (301, 302, 303, 307, 308)
# Names between spaces.
_WANTED = (
    b" accept-ranges connection content-encoding content-length content-range etag last-modified "
    b"location retry-after transfer-encoding "
)


def ask(source, buf=None):
    """A generator: ask for what ``source`` still lacks, or fill ``buf`` with the file's end.

    It returns the OSError or ValueError that it fails with.
    """
    failure = None
    try:
        if buf:
            from .http_range import fill_end

            yield from fill_end(source, buf)
        else:
            yield from _begin(source)
    except (OSError, ValueError) as error:
        failure = error
    source.client.found = None
    if source.note:
        source.log(source.note)
        source.note = None
    return failure


def _begin(source):
    client = source.client
    if source.is_new:
        source.is_new = False
        trail = source.trail
        if trail:
            yield from trail.recall(source.sha or source.name)
            if trail.size:
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
        more.append(("Range", "bytes=%d-" % source.at))
        if source.validator and not source.validator.startswith("W/"):
            more.append(("If-Range", source.validator))
    yield from get(client, source.name, more)
    if source.at:
        unload("http_lines")
        from .http_range import go_on

        yield from go_on(source)
        if source.at:
            return
        source.kept_end = 0
    if client.status != 200:
        from .source_error import refused

        raise refused(client, source.name)
    is_kept = source.kept_end > 0
    if is_kept:
        from .http_range import is_same

        is_kept = is_same(source, client.size)
        if not is_kept:
            source.kept_end = 0
            source.note = "the file has changed on the server: starting over with " + source.name
    source.size = size = client.size
    if size is not None and size > source.limit:
        from .source_error import too_long

        raise too_long(source.name, source.limit)
    client.most = source.limit if size is None else size
    source.has_ranges = header(client, b"accept-ranges") == "bytes"
    source.validator = header(client, b"etag") or header(client, b"last-modified")
    if source.trail and not is_kept:
        source.trail.begin(size, source.validator)


# --- requests


def get(client, url, more=()):
    """A generator: ask for ``url``, with ``more`` headers (name, value), up to its body."""
    from .http_request import split_url as step

    target = step(url)
    step = None
    if not client.origin:
        client.origin = target[:3]
    check_step(client, client.origin, target, "leads")
    yield from get_one(client, target, more)
    if location(client):
        from .http_more import follow

        yield from follow(client, url, target, more)


def check_step(client, before, target, verb):
    """Raise SourceError if a fetch would leave https."""
    if before[0] == "https" != target[0] and not client.may_downgrade:
        raise SourceError("redirect", "%s %s from https to http" % (before[1], verb))


def get_one(client, target, more):
    """A generator: ask for ``target`` (see split_url), up to the body, wherever it is."""
    from .http_request import make_request as step

    request = step(client, target, more)
    step = None
    unload("http_request")
    key = target[:3]
    if client.is_over() and client.key == key:
        try:
            yield from _exchange(client, request)
            return
        except OSError as error:  # the server had closed it in the meantime, or else:
            if error.errno == ETIMEDOUT:
                raise
        except SourceError as error:
            if error.code != "connection":
                raise
    client.close()
    from .http_connect import connect as step

    trust = yield from step(client, key)
    step = None
    yield from _exchange(client, request, trust)


def _exchange(client, request, trust=None):
    """A generator: send a request and read the head of the answer."""
    from .http_connect import send as step

    client.is_kept = False
    yield from step(client, request, trust)
    step = trust = None
    unload("http_connect", "tls_trust")
    from .http_lines import Lines, broken

    lines = Lines()
    for _ in range(_MAX_INTERIM + 1):
        lines.bound(_MAX_HEADERS, _MAX_HEAD, "header")
        client.found = found = {}
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
                        raise broken(client, "a header too long, or two: %s" % text(name))
                    found[name] = value
        client.status = status = int(parts[1])
        client.reason = text(parts[2][:_MAX_REASON]) if len(parts) > 2 else ""
        if not 100 <= status < 200:  # interim: the real answer follows
            _take_headers(client, lines, parts[0] == b"HTTP/1.1")
            return
    raise broken(client, "more than %d interim answers" % _MAX_INTERIM)


def _take_headers(client, lines, is_kept):
    """How the body is delimited."""
    from .http_lines import broken

    found = client.found
    client.is_kept = is_kept and found.get(b"connection", b"").lower() != b"close"
    client.chunks = client.left = client.size = None
    for name, good in ((b"content-encoding", b"identity"), (b"transfer-encoding", b"chunked")):
        if found.get(name, good).lower() != good:
            raise broken(client, "a body encoded as %s" % header(client, name))
    if b"transfer-encoding" in found:
        client.chunks = lines
        client.left = 0
        lines.begin()
    elif b"content-length" in found:
        client.left = client.size = number(found[b"content-length"])
        if client.size is None:
            raise broken(client, "Content-Length: %s" % header(client, b"content-length"))


def header(client, name):
    """A header of the answer as text, None if it has none. ``name``: in lower case."""
    value = client.found.get(name)
    return None if value is None else text(value)


def location(client):
    """Where a redirect leads, None if the answer is none."""
    return client.found.get(b"location") if client.status in _REDIRECTS else None


def number(value):
    """A size in decimal digits, None if it is none or too large."""
    return int(value) if value.isdigit() and len(value) < 10 else None


def text(value):
    """Bytes that a server sent, as text that can be shown."""
    if all(32 <= byte < 127 for byte in value):
        return str(value, "ascii")
    return "".join([chr(byte) if 32 <= byte < 127 else "?" for byte in value])


gc.collect()  # what loading left behind would divide a small heap
