"""Where bytes come from, and how they are moved into stages.

A *source* is a file or a stream (local.py), or a URL (http.py). It has ``readinto(buf)`` (the
number of bytes, 0 at the end), ``size`` (in bytes, None if it is not known), ``limit`` (the most
bytes that it may have), ``name``, ``is_joined`` (what came may not be one whole file: see
`is_stale`) and ``close()``. What goes wrong is a SourceError. A body that ends before its announced
size is an error here, not an end.

Only files and URLs have ``opening()``, which does what ``open()`` does as a generator of the
milliseconds to wait, ``try_readinto(buf)``, which answers None where there is nothing yet,
``pass_over(count)``, to leave the next bytes out, and ``reading_end(buf)``, a generator like
``opening()`` that fills ``buf`` with the last bytes of the file, before that is opened.

A *stage* takes bytes by ``write(view)``, of at most ``wanted()`` bytes: 0 where it wants no more.
What a write leaves to be done, ``work()`` does, step by step, none longer than one flash operation
and a sector; it answers whether there was anything, and comes before the next write. ``skip()``:
how many of the bytes that come next it does not want. ``finish()``: all bytes have come.
"""

import errno
import gc
from time import sleep_ms

from micropython import const

from .base import SourceError, no_memory, unload

TIMEOUT_S = const(30)
LIMIT = const(0x8000000)  # bytes, if the caller names no limit: the largest flash there is

_POLL_MS = const(2)
_FEED_MS = const(500)


# --- sources


def is_url(name):
    """Whether ``name`` is a URL to fetch, not a file."""
    return name.split(":", 1)[0].lower() in ("http", "https") and "://" in name


def open_source(name, **request_args):
    """A source for a file name or a URL, open; `HttpSource` takes the ``request_args``."""
    return make_source(name, **request_args).open()


def make_source(name, **request_args):
    """As `open_source`, still to be opened."""
    if is_url(name):
        try:
            from .http import HttpSource

            return HttpSource(name, **request_args)
        except MemoryError as error:
            unload("http_connect")
            raise no_memory(error, name, SourceError)
    from .local import FileSource

    return FileSource(name, request_args.get("limit"))


def is_stale(source, error):
    """Whether an update from ``source`` may have failed for what it put together alone.

    That is, for parts of two versions of a file, or for an end that nothing but the end of the
    connection told. Then it is worth a new attempt.
    """
    return error.code == "changed" or (
        source is not None and source.is_joined and not isinstance(error, SourceError)
    )


def reason(error):
    """An OSError in a word."""
    number = error.errno
    name = errno.errorcode.get(number) if hasattr(errno, "errorcode") else None
    if name is None and len(error.args) > 1:
        name = error.args[1]
    return name or str(number)


# --- from a source into stages


class Inlet:
    """Brings bytes into a stage: ``buf``, a memoryview, is where they are put first."""

    def __init__(self, stage, buf):
        self.stage = stage
        self._buf = buf
        self._rest = buf[:0]  # bytes that the stage has not got yet

    def fill(self, count):
        """Pass on the ``count`` bytes that now stand in ``buf``."""
        self._rest = self._buf[:count]

    def buffer(self):
        """Where to put the next bytes; None if no more are wanted."""
        while self.work():
            pass
        count = self.stage.wanted()
        return self._buf[:count] if count else None

    take = fill

    def whole(self):
        """All of ``buf``: for bytes that are decoded, not read."""
        return self._buf

    def work(self):
        """One step, if there is one to do."""
        stage = self.stage
        if stage.work():
            return True
        rest = self._rest
        if not rest:
            return False
        count = min(stage.wanted(), len(rest))
        if count:
            stage.write(rest[:count])
            self._rest = rest[count:]
        else:
            self._rest = rest[:0]  # behind all that was wanted
        return True

    def skip(self):
        return self.stage.skip()

    def finish(self):
        while self.work():
            pass
        self.stage.finish()


def pumping(source, inlet, progress=None, done=0):
    """A generator: bring all of ``source``, which is open, into ``inlet``; yields ms to wait.

    The number of bytes that have come, or were left out.

    ``progress(done, total)`` is called after each piece; ``done``: bytes that have come before.
    """
    # A stream or a line waits by itself, and cannot skip.
    read = getattr(source, "try_readinto", source.readinto)
    pass_over = getattr(source, "pass_over", None)
    while True:
        while inlet.work():
            yield 0
        count = inlet.skip() if pass_over else 0
        if count:
            pass_over(count)
            done += count
        buf = inlet.buffer()
        if buf is None:
            return done
        count = read(buf)
        if count is None:
            yield _POLL_MS
            continue
        if not count:
            return done
        inlet.take(count)
        done += count
        if progress:
            progress(done, source.size)
        yield 0


def read_full(source, view):
    """A generator: read until ``view`` is full or a file or URL ends; the number of bytes."""
    have = 0
    while have < len(view):
        count = source.try_readinto(view[have:])
        if count is None:
            yield _POLL_MS
        elif count:
            have += count
        else:
            break
    return have


class Progress:
    """Tells of the bytes that have come: the console, and the app's own ``callback(done, total)``.

    What that raises is known to be so (`translated`).
    """

    error = None

    def __init__(self, callback, intake=None, console=None):
        self._callback = callback
        self._intake = intake
        self._console = console

    def __call__(self, done, total):
        if self._console:
            self._console.report(done)
        if self._callback:
            try:
                self._callback(done, self._intake.total if self._intake else total)
            except BaseException as error:
                self.error = error
                raise


def translated(error, progress, what):
    """``error`` as an OTAError, but for an error of the app's own callback and for interrupts."""
    if progress and error is progress.error:
        return error
    try:
        if isinstance(error, (OSError, ImportError)):
            from .failure import explained

            return explained(error, what)
    except MemoryError as lack:
        error = lack
    if isinstance(error, MemoryError):
        return no_memory(error, what)
    return error


def run(generator, feed=None):
    """Run a generator that yields ms to wait, to its end; what it returns.

    ``feed()``, of a watchdog, is called between its steps, and twice a second while it waits.
    """
    try:
        while True:
            pause_ms = next(generator)
            while feed:
                feed()
                if pause_ms <= _FEED_MS:
                    break
                sleep_ms(_FEED_MS)
                pause_ms -= _FEED_MS
            if pause_ms:
                sleep_ms(pause_ms)
    except StopIteration as end:
        return end.value
    finally:
        generator.close()  # a KeyboardInterrupt may come while it waits


gc.collect()  # what loading left behind would divide a small heap
