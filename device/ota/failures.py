"""What to do when a download fails: which failures may pass, how long to wait, when to give up."""

from errno import EAGAIN, ETIMEDOUT
from os import urandom
from time import ticks_diff, ticks_ms

from micropython import const

from .connection import POLL_MS, reason
from .errors import SourceError

_MAX_PAUSE_MS = const(60000)
_PROGRESS = const(1024)  # new bytes after which a failure is not "in a row" with those before
_FIRST_EAI = const(200)  # errors of lwIP's getaddrinfo begin here, mbedTLS's lie far above
_TEMPORARY = ("dns", "connect", "timeout", "connection", "short", "tls")
_TEMPORARY_STATUS = (408, 425, 429)  # besides 500 to 599


class Failures:
    """The failures in a row of one download.

    ``limit``: which of them is the last; ``pause``: seconds before the first new attempt, twice as
    many before each further one; ``log(text)`` is told of each. ``is_over(at)``: whether the
    download has come on since.
    """

    def __init__(self, limit, pause, log):
        self._limit = limit
        self._pause_ms = int(pause * 1000)
        self._log = log
        self._texts = []
        self._start = 0

    def is_over(self, at):
        return at >= self._start + _PROGRESS

    def wait(self, error, name, at, size):
        """A generator: wait after a failure at byte ``at`` of ``size``, until the next attempt.

        Raises SourceError if there is to be none.
        """
        error = _describe(error, name, at, size)
        if not _is_temporary(error) or self._limit <= 1:
            raise error
        if not self._texts:
            self._start = at
        text = str(error)
        for part in (name + ": ", ": " + name, " from " + name, " to " + name):
            text = text.replace(part, "")
        self._texts.append(text)
        count = len(self._texts)
        if count >= self._limit:
            raise self._final(error, name)
        pause_ms = min(self._pause_ms << (count - 1), _MAX_PAUSE_MS)
        pause_ms = pause_ms // 2 + pause_ms * urandom(1)[0] // 510  # not all boards at once
        if (error.retry_after or "").isdigit():  # it may be a date as well
            pause_ms = max(pause_ms, min(int(error.retry_after) * 1000, _MAX_PAUSE_MS))
        self._log(
            "%s (failure %d of %d): trying again in %d.%d s"
            % (text, count, self._limit, pause_ms // 1000, pause_ms % 1000 // 100)
        )
        start = ticks_ms()
        while ticks_diff(ticks_ms(), start) < pause_ms:
            yield POLL_MS

    def _final(self, error, name):
        try:
            found = SourceError(
                error.code,
                "gave up after %d failures in a row: %s: %s"
                % (len(self._texts), "; ".join(_counted(self._texts)), name),
            )
        except MemoryError:  # what the update holds of the heap is given back only after this
            return error
        found.status = error.status
        return found


def refused(client, name):
    """The SourceError for an answer that is no success."""
    error = SourceError(
        "http-status", "HTTP Error: %d %s: %s" % (client.status, client.reason, name)
    )
    error.status = client.status
    error.retry_after = client.header(b"retry-after")
    return error


def _describe(error, name, at, size):
    """The SourceError for what went wrong."""
    if isinstance(error, SourceError):
        if error.code != "short" or size is None:
            return error
        return SourceError(
            "short",
            "%s: the connection ended after %d of %d bytes: %d bytes are missing"
            % (name, at, size, size - at),
        )
    if -_FIRST_EAI < error.errno < 0:  # from a TLS socket, before MicroPython 1.28
        error = OSError(-error.errno)
    if error.errno in (ETIMEDOUT, EAGAIN):
        return SourceError("timeout", "no answer from %s in time, after %d bytes" % (name, at))
    return SourceError("connection", "connection to %s failed: %s" % (name, reason(error)))


def _is_temporary(error):
    if error.code == "http-status":
        return error.status in _TEMPORARY_STATUS or error.status >= 500
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
