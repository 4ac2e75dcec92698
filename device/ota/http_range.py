"""Parts of a file: where a download goes on, and the end of a file, which is asked for first.

See http.py. Loaded for a download of which a part is there already.
"""

from micropython import const

from .errors import SlotError, SourceError
from .unload import unload

_POLL_MS = const(5)


def go_on(source):
    """A generator: ``source.at`` and what follows was asked for; take the answer.

    If that is not what comes, it asks for the whole file. Bytes that were handed out are skipped
    then; if none have been, ``source.at`` is 0, and the answer is the start of a new download.
    Raises SourceError ("changed") if those bytes are of another version of the file.
    """
    from .http_ask import get

    client = source.client
    at = source.at
    first, total = _range(client)
    status = client.status
    if status == 200:
        total = client.size
    elif status not in (206, 416):
        from .source_error import refused

        raise refused(client, source.name)
    elif status == 206 and first is None and client.size == (source.size or -1) - at:
        first = at  # it does not say so, but nothing else has this size
    fits = is_same(source, total)
    if status == 206 and fits and first == at:
        source.is_joined = True
        return
    if status == 416:
        if fits and total == at:  # all of it is here, only its end had not been told
            source.size = total
            return
        fits = False
    why = "server cannot send a part of it" if fits else "file has changed on the server"
    if status != 200 and (fits or not source.given):
        client.close()
        yield from get(client, source.name)
        fits = fits and (client.status != 200 or is_same(source, client.size))
    if not source.given:
        source.note = "the %s: starting over with %s" % (why, source.name)
        source.at = 0
    elif not fits:
        raise SourceError("changed", "the %s while it was fetched: %s" % (why, source.name))
    elif client.status != 200:
        from .source_error import refused

        raise refused(client, source.name)
    else:
        source.note = "the %s: fetching all of %s again" % (why, source.name)
        source.is_joined = True
        source.skip = at


def _range(client):
    """(first byte, size of the whole) of an answer that is a part, None where it does not say."""
    from .http_ask import header, number

    unit, _, rest = (header(client, b"content-range") or "").partition(" ")
    span, _, total = rest.partition("/")
    first = span.partition("-")[0]
    if unit.lower() != "bytes":
        first = total = ""
    return number(first), number(total)


def is_same(source, total):
    """Whether the answer, of a file of ``total`` bytes, is of the file begun, as far as it says."""
    if total is not None and source.size not in (None, total):
        return False
    from .http_ask import header

    client = source.client
    validator = header(client, b"etag") or header(client, b"last-modified")
    return bool(source.sha or not validator or source.validator in (None, validator))


def fill_end(source, buf):
    """A generator: fill ``buf`` with the last bytes of the file."""
    from .http_ask import get

    client = source.client
    size = len(buf)
    yield from get(client, source.name, [("Range", "bytes=-%d" % size)])
    if client.status not in (200, 206, 416):
        from .source_error import refused

        raise refused(client, source.name)
    first, total = _range(client)
    whole = client.size if client.status == 200 else total
    if whole is not None and whole < size:
        from .source_error import too_short

        raise too_short(source.name, whole, buf)
    if client.status != 206 or total is None or first != total - size:
        client.close()
        raise SourceError("no-range", "the server sends no part of %s" % source.name)
    view = memoryview(buf)
    while view:
        count = client.read_body(view)
        if count is None:
            yield _POLL_MS
        elif not count:
            raise SourceError("short", "the end of %s is missing" % source.name)
        else:
            view = view[count:]


def read_kept(source, buf):
    """As try_readinto() of the source, from what the slot holds of the file."""
    given = source.given
    end = source.kept_end
    if (source.size or source.at) > source.limit:
        from .source_error import too_long

        raise too_long(source.name, source.limit)
    if given == source.kept:
        if source.at < end:
            source.leave_out(end - source.at)
        source.is_joined = True
        source.log("going on at byte %d of %d, what is before it is in flash" % (end, source.size))
    count = min(len(buf), end - given)
    at = given - source.kept
    try:
        source.trail.read(at, buf if count == len(buf) else memoryview(buf)[:count])
    except OSError as error:
        raise SlotError("flash", "cannot read what the slot holds of the file: %s" % error)
    source.given = given + count
    if given + count == end:
        unload("http_range")
    return count
