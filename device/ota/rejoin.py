"""Goes on with a download of which a part is there already, from a byte in the middle."""

from .errors import SourceError
from .failures import refused


def rejoin(source):
    """A generator: ask for what ``source`` still lacks.

    If that cannot be had, it asks for the whole file. Bytes that have been handed out are skipped
    then; if none have been, ``source.at`` is 0, and the answer is the start of a new download.
    Raises SourceError ("changed") if those bytes are of another version of the file.
    """
    client = source.client
    headers = [("Range", "bytes=%d-" % source.at)]
    if source.validator and not source.validator.startswith("W/"):
        headers.append(("If-Range", source.validator))
    yield from client.get(source.name, headers)
    if client.status == 206 and fits(source, _parse_range(client)):
        source.is_joined = True
        return
    if client.status == 200:
        is_same = fits(source, (source.at, client.size))
    elif client.status in (206, 416):
        is_same = False
    else:
        raise refused(client, source.name)
    why = "server cannot send a part of it" if is_same else "file has changed on the server"
    if not source.given:
        source.log("the %s: starting over with %s" % (why, source.name))
        source.at = 0
        if client.status != 200:
            client.close()
            yield from client.get(source.name)
    elif is_same:
        source.log("the %s: fetching all of %s again" % (why, source.name))
        source.is_joined = True
        source.skip = source.at
    else:
        raise SourceError("changed", "the %s while it was fetched: %s" % (why, source.name))


def _parse_range(client):
    """(first byte, size of the whole) of an answer that is a part; None if it does not tell."""
    unit, _, rest = (client.header(b"content-range") or "").partition(" ")
    span, _, total = rest.partition("/")
    first = span.partition("-")[0]
    if unit.lower() != "bytes" or not first.isdigit() or not total.isdigit():
        return None
    return int(first), int(total)


def fits(source, span):
    """Whether an answer, (first byte, size of the whole), goes on with the file begun."""
    if not span or span[0] != source.at or source.size not in (None, span[1]):
        return False
    client = source.client
    validator = client.header(b"etag") or client.header(b"last-modified")
    return source.sha or not validator or source.validator in (None, validator)
