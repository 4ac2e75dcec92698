"""Moves bytes from a source into stages.

A *source* has ``try_readinto(buf)``, ``pass_over(count)``, ``size``: source.py. A
*stage* takes bytes by ``write(view)``, of at most ``wanted()`` bytes: 0 where it wants no more.
What a write leaves to be done, ``work()`` does, step by step, none longer than one flash operation
and a sector; it answers whether there was anything, and comes before the next write. ``skip()``:
how many of the bytes that come next it does not want. ``finish()``: all bytes have come.
"""

from time import sleep_ms

from micropython import const

from .errors import OTAError, no_memory

_POLL_MS = const(2)


class Inlet:
    """Brings bytes into a stage: ``buf``, a memoryview, is where they are put first."""

    def __init__(self, stage, buf):
        self.stage = stage
        self._buf = buf
        self._rest = buf[:0]  # of what was put there: what the stage has not got yet

    def fill(self, count):
        """``count`` bytes stand in ``buf``."""
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
    # A stream or a line waits by itself, and leaves nothing out.
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
    """What comes out for ``error``: an OTAError where it is not the app's own, nor an interrupt."""
    if progress and error is progress.error:
        return error
    if isinstance(error, MemoryError):
        return no_memory(error, what)
    if isinstance(error, OSError):
        return OTAError("io", "%s: the flash or the file system fails: %s" % (what, error))
    if isinstance(error, ImportError):
        from .package import missing

        return missing(error)
    return error


def run(generator):
    """Run a generator that yields ms to wait, to its end; what it returns."""
    try:
        while True:
            pause_ms = next(generator)
            if pause_ms:
                sleep_ms(pause_ms)
    except StopIteration as end:
        return end.value
    finally:
        generator.close()  # a KeyboardInterrupt may come while it waits
