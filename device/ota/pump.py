"""Where bytes come from, how they are moved into stages, and the stages of a new app.

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

A new app is checked as it comes (image.py), written (slot.py), judged, and switched to. What makes
it an image, its first 32 bytes, is written when all else has been judged: a slot with a refused
image, or a part of one, holds nothing that could boot.
"""

import errno
import gc
from hashlib import sha256
from time import sleep_ms

from esp32 import Partition
from micropython import const

from . import base
from .base import OTAError, SourceError, StateError, check_sha, no_memory, unload
from .image import SECTOR, AppImage, refused
from .slot import HEAD_SIZE, SlotWriter, set_boot

TIMEOUT_S = const(30)
LIMIT = const(0x8000000)  # bytes, if the caller names no limit: the largest flash there is

_POLL_MS = const(2)


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


# --- from a source into stages


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
        from .status import missing

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


# --- the app


class NewApp:
    """A stage for the bytes of an app image, which may stand in a larger file (``embedded``).

    ``board``: see image.py. ``force``: though this image has failed before. ``total``: bytes of the
    file, if known; ``sha``: its SHA-256, if that is due. ``signed``: SHA-256 of the content that a
    signature covers, if one was judged before. ``note``: what is remembered for an attempt after a
    reset: update.py, release.py. ``buf``, ``by_sectors``: see SlotWriter.

    Bytes come by `write`, or by `buffer` and `take`. Then `seal` judges, `committing` switches.
    """

    def __init__(
        self,
        board,
        force=False,
        verify=True,
        *,
        embedded=False,
        needs_digest=True,
        total=None,
        sha=None,
        signed=None,
        buf=None,
        by_sectors=False,
    ):
        self.part = part = base.find_next_slot()
        self._board = board
        self._force = force
        self._total = None if embedded else total
        self.signed = signed
        self.note = None
        self._failed = None
        self._sha = sha256()  # over the image up to its own digest
        self._due = sha
        self._content_sha = sha256() if sha else None
        # Over all that a signature covers, where there may be one: it is a sector at the end.
        self._signed_sha = sha256() if signed or (total and not total % SECTOR) else None
        self.writer = SlotWriter(
            part,
            self._passed,
            verify,
            self._before_erase,
            HEAD_SIZE,
            buf=buf,
            by_sectors=by_sectors,
        )
        self.image = AppImage(self.writer, board, part, self._accept, embedded, needs_digest)
        self.write = self.image.write
        self.buffer = self.writer.buffer
        self.work = self.writer.work

    @property
    def written(self):
        """Bytes that the slot holds, but for the first 32."""
        return self.writer.at

    def take(self, count):
        """``count`` bytes stand in `buffer`."""
        buf = self.writer.buffer()
        self.write(buf if count == len(buf) else buf[:count])

    def keep(self, size, head):
        """Take the first ``size`` bytes, whole sectors, from the slot, where they are already.

        ``head``: the first 32 of them, which are not. A generator: it yields between sectors.
        """
        self.writer.kept = size
        for at in range(0, size, SECTOR):
            buf = self.buffer()
            self.part.readblocks(at // SECTOR, buf)
            if not at:
                buf[:HEAD_SIZE] = head
            self.take(SECTOR)
            yield 0

    def _accept(self, image):
        """The header has passed: the last word before the first erase."""
        if self._total and self._total > self.writer.limit:
            raise refused("too-long", self._total, "", self.writer.name, self.writer.limit)
        if self.signed:  # a bare image has no counter: it is not to be older than what runs
            desc = bytearray(4)
            Partition(Partition.RUNNING).readblocks(0, desc, 36)
            found, least = (int.from_bytes(data, "little") for data in (image.desc[4:8], desc))
            if found < least:
                raise refused("secure-version", found, least)
        if base.has_note("failed") or base.state(self.part) in (
            base.ABORTED,
            base.INVALID,
        ):
            from .recovery import Failed

            self._failed = Failed(self.part)
            if not self._force:
                self._failed.check_header(image)

    def _before_erase(self):
        """What speaks of the slot's content ends with it.

        Else a complete image that was then refused could be rolled back to as the former one
        (esp_ota_begin does the same: esp_ota_invalidate_inactive_ota_data_slot).
        """
        if self._failed:
            self._failed.save()
        if self.writer.kept:  # what is noted of that still holds
            base.forget("download", "payload")
        else:
            base.forget_attempt()
        found = base.find_record(self.part)
        if found:
            base.erase(found[0])

    def _passed(self, buf):
        """A sector is in the flash."""
        at = self.writer.at
        end = at + SECTOR
        stop = self.image.digest_offset
        if stop is None or end <= stop:
            self._sha.update(buf)
        elif at < stop:
            self._sha.update(buf[: stop - at])
        if self._content_sha:
            self._content_sha.update(buf if end <= self._total else buf[: self._total - at])
        if self._signed_sha and (self.image.size is None or at < self.image.size):
            self._signed_sha.update(buf)
        if self.note:
            self.note.passed(end)

    # --- the end

    def seal(self, is_payload=False):
        """No more bytes come: judge them. Raises OTAError.

        ``is_payload``: of a release. If it is signed itself, that only has to be whole.
        """
        image = self.image
        image.finish()
        self.writer.close()
        if self._due:
            check_sha(self._content_sha, self._due)
        if image.digest and self._sha.digest() != image.digest:
            raise refused("digest", image.digest.hex())
        if image.digest and self._failed and not self._force:
            self._failed.check_digest(image.digest)
        if self.signed:
            if self._signed_sha.digest() != self.signed:
                raise refused("digest 2")
        elif is_payload and image.is_signed:
            self._check_signature()

    def _check_signature(self):
        """The image is signed itself, for Secure Boot perhaps: then that has to be good as well."""
        from . import keys

        sector = bytearray(SECTOR)
        self.part.readblocks((self.image.size + SECTOR - 1) // SECTOR, sector)
        keys.check_signed(self._signed_sha.digest(), sector)
        unload("keys")

    def committing(self, attach=None):
        """A generator: make the slot the next to boot. ``attach(part, head)`` is called before."""
        writer = self.writer
        yield from writer.tidy()
        if attach:
            attach(self.part, writer.head)
        if writer.at:
            writer.write_head()
        self.writer = None
        yield 0
        try:
            set_boot(self.part, self.image.digest)
        except StateError:
            self.part.ioctl(6, 0)  # it is refused: no image any more
            base.forget_attempt()
            raise
        base.forget_attempt()


# --- what can go wrong, in words


def too_long(name, limit):
    return SourceError("too-long", "%s has more than %d bytes, the limit here" % (name, limit))


def too_short(name, size, buf):
    return SourceError("too-short", "%s has %d bytes, at least %d are due" % (name, size, len(buf)))


def reason(error):
    """An OSError in a word."""
    number = error.errno
    name = errno.errorcode.get(number) if hasattr(errno, "errorcode") else None
    if name is None and len(error.args) > 1:
        name = error.args[1]
    return name or str(number)


gc.collect()  # what loading left behind would divide a small heap
