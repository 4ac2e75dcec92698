"""Updates the firmware: from a source, through the checks, into the next slot, then the switch.

    ota.update.from_file("http://server/firmware.bin")

takes an app image, a merged firmware, either of them encoded, or a bundle, from a URL or a file.
The slot that runs is never written, and otadata is switched last: whatever goes wrong, the running
app stays selected.
"""

import gc
import struct

from esp32 import Partition
from micropython import const

from . import base
from .base import (
    ROOM,
    FrameError,
    ImageError,
    OTAError,
    StateError,
    has_trust,
    release_slot,
    unload,
)
from .pump import Progress, is_stale, is_url, make_source, pumping, run, translated

_SECTOR = const(4096)
_HEAD_SIZE = const(32)  # of an app: slot.py

KEY = "resume"
KIND = const(1)
# kind; slot offset, start and end in the file of what the slot holds of it, size of the file; name
# of the file (SHA-256), first bytes of the app; then the validator.
RECORD = "<BIIII32s32s"
MAX_VALIDATOR = const(100)
_STEP = const(65536)  # bytes between notes: what is fetched again at most

# What one update has loaded.
_PARTS = ("ready", "begin", "finish", "otadata", "chips", "image", "slot", "http", "merged")


class Intake:
    """One file on its way in, whatever it is: its first sector tells.

    Bytes come by `buffer` and `take`; `closing` checks the whole and switches.
    ``sha`` (hex SHA-256) and ``length`` are those of the file, if known. ``force``, ``verify``: see
    OTA. ``end``: the last 4096 bytes of the file, where a board with keys is to take an image.

    Raises OTAError; then `abort` is due.
    """

    needs_reset = True
    source = None  # what it comes from, if that is known
    note = None  # NewApp -> what is remembered of it for an attempt after a reset
    # The first stage of an image, the NewApp; where an encoded image or a bundle goes; the latter.
    stage = app = inlet = release = None
    total = length = None  # bytes of the file, where they are known; where that is a condition
    due = sha = None  # SHA-256 of the file, if that is due; what is computed
    received = 0
    have = 0  # bytes in `buf`, or in the place that `buffer` gave
    _is_aborted = False

    def __init__(
        self,
        sha="",
        length=None,
        *,
        force=False,
        verify=True,
        end=None,
        by_sectors=False,
        room=None,
        board=None,
    ):
        self.force = force
        self.by_sectors = by_sectors
        self.verify = verify
        self.end = end
        self.room = memoryview(room or bytearray(ROOM))
        self.buf = self.room[:_SECTOR]
        self.board = board or load_resident("")
        self.expect(sha, length)

    def expect(self, sha="", length=None, size=None):
        """Raises ImageError if ``size``, which the source tells, is not ``length``."""
        if sha or length or (self.length and size not in (None, self.length)):
            from .ready import expect

            expect(self, sha, length, size)
        if size is not None:
            self.total = size

    # --- bytes in

    def buffer(self, whole=False):
        """Where to put the next bytes; None if no more are wanted.

        ``whole``: place for 4096 bytes, though more may be there than are wanted at once.
        """
        self.check_alive()
        if not whole:
            while self.work():
                pass
        if self.inlet:
            place = self.inlet.whole() if whole else self.inlet.buffer()
        elif self.stage:
            if self.stage.is_complete and not self.due and not self.length:
                return None  # an app in a larger file is whole before that ends
            place = self.app.buffer()
        else:
            place = self.buf
        self.place = place
        return place[self.have :] if self.have else place

    def take(self, count):
        """``count`` bytes stand in `buffer`."""
        self.received += count
        have = self.have + count
        place = self.place
        if self.sha:
            self.sha.update(place[self.have : have])
        if self.inlet:
            self.inlet.take(count)
            return
        self.have = have
        if have == len(place):
            self.pass_on(place)

    def work(self):
        """One step of what is left to be done, none longer than a flash operation and a sector."""
        if self.inlet:
            return self.inlet.work()
        return self.app.work() if self.app else False

    def skip(self):
        """How many of the bytes that come next are not wanted."""
        if not self.inlet or ((self.due or self.length) and not self.is_vouched):
            return 0  # all of them count
        count = self.inlet.skip()
        if count:
            self.sha = None  # a trusted key vouches for each part
        self.received += count
        return count

    @property
    def is_vouched(self):
        """Whether a trusted key vouches for what is taken, so that the rest may be left out."""
        return self.release is not None and self.release.vouched

    def check_alive(self):
        """Raises StateError once the update was aborted."""
        if self._is_aborted:
            raise StateError("aborted", "the update was aborted")

    def pass_on(self, place):
        """Pass on the bytes in `place`: the first ones of a file, or those of an image."""
        self.have = 0
        if self.stage:
            self.stage.write(place)
        else:
            from .begin import choose

            choose(self, place)

    def abort(self, error=None):
        """It has failed, or is not wanted any more: the running app stays selected."""
        self._is_aborted = True
        release_slot(self)
        if isinstance(error, (ImageError, FrameError)):
            base.forget_attempt()
        if self.release:
            self.release.abort()
        self.stage = self.inlet = self.app = self.buf = self.room = self.place = None

    @property
    def image(self):
        """The AppImage, None of a bundle."""
        return self.app.image if self.app else None


def taking(intake, url, request_args, report, console=None, is_json=False):
    """A generator: bring what ``url`` names into ``intake``; the number of bytes.

    ``report(done, total)`` is called after each piece; ``console`` (console.py) tells people.
    """
    from .ready import preparing

    url, args = yield from preparing(intake, url, request_args, console, is_json)
    del preparing
    unload("ready", "otadata")
    intake.source = source = make_source(url, **args)
    try:
        yield from reading_end(intake, source)
        yield from source.opening()
        return (yield from filling(intake, source, report, console))
    finally:
        source.close()


def reading_end(intake, source):
    """A generator: where keys are installed, the end of an image may have to be judged first."""
    if has_trust() and hasattr(source, "reading_end"):
        from .ready import reading_end

        yield from reading_end(intake, source)
        del reading_end
        unload("ready")


def filling(intake, source, report, console=None):
    """A generator: bring all of a source that is open into ``intake``; the number of bytes."""
    intake.expect(size=source.size)
    if console:
        console.begin(intake.total)
    start = intake.received
    yield from pumping(source, intake, report, start)
    return intake.received - start


def closing(intake, console=None, before_switch=None):
    """A generator: check the whole, then make the slot the next to boot."""
    unload("http", "merged")  # what comes now needs the heap
    from .finish import closing

    return closing(intake, console, before_switch)


def load_resident(url):
    """Load what an update from ``url`` needs all the time, before what goes again.

    Else it would lie between that, and the heap be divided: then MicroPython takes more of the heap
    of ESP-IDF, which the network needs. What an image must fit here: a Board, which needs code for
    a moment.
    """
    from . import slot  # noqa: F401 - to be there is all

    if is_url(url):
        from . import http  # noqa: F401 - as above
    from .image import Board

    return Board(Partition(Partition.RUNNING))


def _updating(url, sha, length, verify, verbose, more, is_json=False):
    """A generator: a whole update; the number of bytes.

    Once more if parts of two versions of a file were joined.
    """
    report = None
    try:
        gc.collect()
        room = bytearray(ROOM)  # before code and strings divide the heap
        board = load_resident(url)
        force, progress = more.pop("force", False), more.pop("progress", None)
        before_switch = more.pop("before_switch", None)  # a generator: as of release.installing
        by_sectors = more.pop("block_size", 0) == _SECTOR
        console = None
        for is_last in (False, True):
            from .ready import check_ready

            part = check_ready(force)
            del check_ready
            if verbose:
                from .console import Console

                console = Console(part)
            intake = Intake(
                sha,
                length,
                force=force,
                verify=verify,
                by_sectors=by_sectors,
                room=room,
                board=board,
            )
            report = Progress(progress, intake, console)
            try:
                count = yield from taking(intake, url, more, report, console, is_json)
                yield from closing(intake, console, before_switch)
                return count
            except BaseException as error:
                intake.abort(error)
                if console:
                    console.stop()
                if is_last or not isinstance(error, OTAError) or not is_stale(intake.source, error):
                    raise translated(error, report, url)
                if console:
                    console.say("%s: starting over" % error)
    except (MemoryError, OSError) as error:
        raise translated(error, report, url)
    finally:
        room = board = intake = report = None
        unload(*_PARTS)


def from_file(url, sha="", length=0, verify=True, verbose=True, reboot=True, **more):
    """Update from a URL or a file; returns the number of bytes.

    ``more``: ``force``, ``progress``, ``block_size`` and ``feed`` of OTA, and what HttpSource
    takes.
    """
    feed = more.pop("feed", None)
    return _rebooted(run(_updating(url, sha, length, verify, verbose, more), feed), reboot, feed)


def from_json(url, verify=True, verbose=True, reboot=True, **more):
    """Update from what a JSON file names; returns the number of bytes. ``more``: see from_file."""
    feed = more.pop("feed", None)
    return _rebooted(run(_updating(url, "", 0, verify, verbose, more, True), feed), reboot, feed)


def _rebooted(count, reboot, feed):
    if reboot:
        from .console import ota_reboot

        ota_reboot(feed=feed)
    return count


async def fetch(url, sha="", length=0, *, verify=True, **more):
    """As `from_file`, for an asyncio program: ``await ota.update.fetch(url)``.

    Other tasks wait for one flash operation at most: to erase 64 KiB takes some 150 ms. What
    MicroPython does in one go takes longer: the look-up of a host name, each step of a TLS
    handshake, checking a signature, and, at the very end, the check of the whole image in
    set_boot(). Nothing is printed (``log=print`` tells of failures that are survived), and the
    board is not restarted. A task that is cancelled leaves the running app selected, and the next
    download goes on where it was.
    """
    from asyncio import sleep_ms

    steps = _updating(url, sha, length, verify, False, more)
    try:
        while True:
            await sleep_ms(next(steps))
    except StopIteration as end:
        return end.value
    finally:
        steps.close()


def __getattr__(name):
    if name != "OTA":
        raise AttributeError(name)
    from .drop_in import OTA

    return OTA


# --- what the slot holds of an earlier download


class Trail:
    """The bytes of a file that the slot ``part`` holds, from its start on.

    ``size``: how many bytes there are from an earlier download, a multiple of 64 KiB, 0 if none;
    then ``total`` is the size of that file, ``validator`` its ETag or Last-Modified. ``start``:
    their place in the file, which whoever finds an app in it sets.
    """

    def __init__(self, part):
        self.part = part
        self.writer = None
        self.start = self.size = self.total = 0
        self.validator = None
        self.name = None
        self.head = None
        self.saved = 0

    def read(self, offset, buf):
        """Fill ``buf`` with the slot's bytes from ``offset`` on."""
        self.part.readblocks(offset // _SECTOR, buf, offset % _SECTOR)
        if offset < _HEAD_SIZE:
            count = min(_HEAD_SIZE - offset, len(buf))
            buf[:count] = self.head[offset : offset + count]

    def begin(self, total, validator):
        """The file is fetched from its start."""
        self.total = total
        self.validator = validator if validator and len(validator) <= MAX_VALIDATOR else None
        self.start = self.size = self.saved = 0

    def attach(self, app):
        """The app that comes is ``app``, a NewApp, whose note this is."""
        self.writer = app.writer
        app.writer.kept = self.size
        return self

    def passed(self, position):
        """The slot holds the first ``position`` bytes."""
        end = self.start + position
        if position % _STEP == 0 and self.saved < position and end < (self.total or 0):
            self.saved = position
            place = KIND, self.part.info()[2], self.start, end, self.total
            data = struct.pack(RECORD, *place, self.name, self.writer.head)
            # A power cut may lose it (keys.py), a full NVS has no room: the download starts over.
            base.note(KEY, data + (self.validator or "").encode())
