"""When a download breaks off: which failures may pass, how long to wait, and where it goes on.

Also the end of a file, which may be asked for first. See http.py: loaded after a failure, or where
a part of the file is there already.
"""

import gc
from errno import EAGAIN, ETIMEDOUT
from os import urandom
from time import ticks_diff, ticks_ms

from micropython import const

from .base import SlotError, SourceError, unload
from .pump import reason

_POLL_MS = const(5)
_MAX_PAUSE_MS = const(60000)
_PROGRESS = const(1024)  # new bytes that end a row of failures
# A connection that brings less than this is too short-lived to go on with: `wait` lets so many
# pass for each of the failures in a row that it would allow, and no more.
_LEAST = const(8192)
_SPARE = const(4)
_FIRST_EAI = const(200)  # errors of lwIP's getaddrinfo begin here, mbedTLS's lie far above
_TEMPORARY = ("dns", "connect", "timeout", "slow", "connection", "short", "tls")
_TEMPORARY_STATUS = (408, 425, 429)  # besides 500 to 599


def wait(source, error):
    """A generator: wait after a failure of ``source``, an HttpSource, until the next attempt.

    ``source.limits``: which failure in a row is the last; seconds before the first new attempt,
    twice as many before each further one. ``source.log(text)`` is told of each. Raises SourceError
    if there is to be none.
    """
    client = source.client
    name = source.name
    at = source.at - source.skip
    if not client.is_over():
        client.close()
    gc.collect()
    limit, pause = source.limits
    error = _describe(error, source, name, at)
    if not _is_temporary(error) or limit <= 1:
        raise error
    if source.failures is None:
        # Texts of those in a row, and where those began; how many there were; slow ones.
        source.failures = [[], 0, 0, 0]
    state = source.failures
    texts = state[0]
    if at >= state[1] + _PROGRESS:
        texts.clear()
    if not texts:
        state[1] = at
    text = _without(name, error)
    texts.append(text)
    count = len(texts)
    state[2] += 1
    if error.code == "slow":
        state[3] += 1
    _check_limit(error, name, at, state, limit)
    pause_ms = _pause(error, min(int(pause * 1000) << (count - 1), _MAX_PAUSE_MS))
    if state[2] > count:
        limit = "%d, %d in all" % (limit, state[2])
    text = "%s (failure %d of %s): trying again in " % (text, count, limit)
    source.log(text + "%d.%d s" % (pause_ms // 1000, pause_ms % 1000 // 100))
    start = ticks_ms()
    while ticks_diff(ticks_ms(), start) < pause_ms:
        yield _POLL_MS


def _without(name, error):
    text = str(error)
    for part in (name + ": ", ": " + name, " from " + name, " to " + name):
        text = text.replace(part, "")
    return text


def _check_limit(error, name, at, state, limit):
    texts, _, count, slow = state
    if len(texts) >= limit:
        why = "%d failures in a row" % len(texts)
    elif count > limit * _SPARE + at // _LEAST:
        why = "%d failures in %d bytes, the last" % (count, at)
    elif slow > 1:
        why = "two slow connections, the last"
    else:
        return
    text = "gave up after %s: %s: %s" % (why, "; ".join(_counted(texts)), name)
    found = SourceError(error.code, text)
    found.status = error.status
    raise found


def _pause(error, ms):
    ms = ms // 2 + ms * urandom(1)[0] // 510  # not all boards at once
    if (error.retry_after or "").isdigit():  # it may be a date as well
        ms = max(ms, min(int(error.retry_after) * 1000, _MAX_PAUSE_MS))
    return ms


def _describe(error, source, name, at):
    """The SourceError for what went wrong at byte ``at``."""
    size = source.size
    if isinstance(error, SourceError):
        if error.code != "short" or (size is None and str(error)):
            return error
        if size is None:
            left = source.client.left
            text = (
                "the connection ended, %d bytes are missing" % left
                if left
                else "the body is shorter than the file"
            )
        else:
            text = "%s: the connection ended after %d of %d bytes: %d bytes are missing"
            text = text % (name, at, size, size - at)
        return SourceError("short", text)
    if not isinstance(error, OSError):
        return SourceError("protocol", "%s cannot be read: %s" % (name, error))
    if -_FIRST_EAI < (error.errno or 0) < 0:  # from a TLS socket, before MicroPython 1.28
        error = OSError(-error.errno)
    if error.errno in (ETIMEDOUT, EAGAIN):
        return SourceError("timeout", "no answer from %s in time, after %d bytes" % (name, at))
    return SourceError("connection", "connection to %s failed: %s" % (name, reason(error)))


def _is_temporary(error):
    if error.code == "http-status":
        return error.status in _TEMPORARY_STATUS or 500 <= error.status < 600
    return error.code in _TEMPORARY


def _counted(texts):
    """The texts in order, with repeated ones in a row once and a count."""
    found = []
    for text in texts:
        if found and found[-1][0] == text:
            found[-1][1] += 1
        else:
            found.append([text, 1])
    return [text if count == 1 else "%s (%d times)" % (text, count) for text, count in found]


def check_rate(client, window_ms):
    """Raise SourceError if what came in the last ``window_ms`` of waiting was too little."""
    rate = client.min_rate
    seconds = client.waited / 1000
    client.waited_s += seconds
    if client.came < rate * seconds:
        text = "%d bytes came in %.1f s of waiting" % (client.came, seconds)
    elif client.waited_s > client.most / rate + window_ms / 1000:
        text = "%d s of waiting are too long for %d bytes" % (client.waited_s, client.most)
    else:
        client.waited = client.came = 0
        return
    raise SourceError("slow", "%s, min_rate is %d bytes a second" % (text, rate))


# --- parts of a file


def go_on(source, buf):
    """A generator: what follows ``source.at`` was asked for; take the answer. Whether that is it.

    If it is not, the answer is the whole file, asked for once more if need be: bytes that were
    handed out are skipped then; if none have been, ``source.at`` is 0, and a new download begins.
    Raises SourceError ("changed") if those bytes are of another version of the file.
    """
    client = source.client
    at = source.at
    status = client.status
    first, total = client.first, client.total
    if status == 200:
        total = client.size
    elif status not in (206, 416):
        raise _refused(source)
    elif status == 206 and first is None and client.size == (source.size or -1) - at:
        first = at  # it does not say so, but no other part has this size
    fits = source.is_same(total)
    if status == 206 and fits and first == at:
        source.is_joined = True
        return True
    if status == 416:
        if fits and total == at:  # all of it has come, and only its end was missing
            source.size = total
            return True
        fits = False
    why = "server cannot send a part of it" if fits else "file has changed on the server"
    if status != 200 and (fits or not source.given):
        client.close()
        yield from client.get(source.name)
        fits = fits and (client.status != 200 or source.is_same(client.size))
    if not source.given:
        source.note = "the %s: starting over with %s" % (why, source.name)
        source.at = source.kept_end = 0
        return False
    if not fits:
        raise SourceError("changed", "the %s while it was fetched: %s" % (why, source.name))
    if client.status != 200:
        raise _refused(source)
    source.note = "the %s: fetching all of %s again" % (why, source.name)
    source.is_joined = True
    source.skip = at
    return True


def _refused(source):
    from .http_ask import refused

    return refused(source.client, source.name)


def fill_end(source, buf):
    """A generator: the end of the file was asked for; fill ``buf`` with it. True."""
    client = source.client
    size = len(buf)
    if client.status not in (200, 206, 416):
        raise _refused(source)
    whole = client.size if client.status == 200 else client.total
    if whole is not None and whole < size:
        from .failure import too_short

        raise too_short(source.name, whole, size)
    if client.status != 206 or client.total is None or client.first != client.total - size:
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
    return True


def read_kept(source, buf):
    """As try_readinto() of the source, from what the slot holds of the file."""
    given = source.given
    end = source.kept_end
    if (source.size or source.at) > source.limit:
        from .failure import too_long

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
        unload("http_resume")
    return count


gc.collect()  # what loading left behind would divide a small heap
