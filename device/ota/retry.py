"""When a download breaks off: which failures may pass, how long to wait.

Loaded after a failure, and let go of before the next attempt (http.py).
"""

import gc
from errno import EAGAIN, ETIMEDOUT
from os import urandom
from time import ticks_diff, ticks_ms

from micropython import const

from .errors import SourceError
from .source_error import reason

_POLL_MS = const(5)
_MAX_PAUSE_MS = const(60000)
_PROGRESS = const(1024)  # new bytes after which a failure is not "in a row" with those before
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
    """The texts in order, those that follow each other unchanged only once."""
    found = []
    for text in texts:
        if found and found[-1][0] == text:
            found[-1][1] += 1
        else:
            found.append([text, 1])
    return [text if count == 1 else "%s (%d times)" % (text, count) for text, count in found]


gc.collect()  # what loading left behind would divide a small heap
