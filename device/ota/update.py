"""Updates the firmware: from a source, through the checks, into the next slot, then the switch.

    ota.update.from_file("http://server/firmware.bin")

takes an app image, a merged firmware, either of them encoded, or a bundle, from a URL or a file.
The slot that runs is never written, and otadata is switched last: whatever goes wrong, the running
app stays selected.
"""

import gc
import struct
from hashlib import sha256

from esp32 import Partition
from micropython import const

from . import base
from .base import ROOM, FrameError, ImageError, OTAError, StateError, check_sha, unload
from .image import DESC_MAGIC, SECTOR, Board
from .pump import NewApp, Progress, is_stale, is_url, make_source, pumping, run, translated
from .slot import HEAD_SIZE, acquire_slot, release_slot, take_head

_DESC_OFFSET = const(32)  # of app_desc, in an app image
_BUNDLE_MAGIC = b"manifest.json\0"  # the name of its first member
_FRAMES_MAGIC = b"OTAF"  # of a compressed image or a delta

KEY = "resume"
_KIND = const(1)
_STEP = const(65536)  # bytes between notes: what is fetched again at most
# kind; slot offset, start and end in the file of what the slot holds of it, size of the file; name
# of the file (SHA-256), first bytes of the app; then the validator.
_RECORD = "<BIIII32s32s"
_RECORD_SIZE = const(81)
_MAX_VALIDATOR = const(100)
# Of version 0.1, which wrote the first bytes with the others: the same without kind and first
# bytes, and a digest before the name.
_OLD_KEY = "download"
_OLD_RECORD = "<IIII32s32s"
_OLD_SIZE = const(80)


class Intake:
    """One file on its way in, whatever it is: its first sector tells.

    Bytes come by `buffer` and `take`, or by `write`; `finishing` checks the whole and switches.
    ``sha`` (hex SHA-256) and ``length`` are those of the file, if known. ``force``, ``verify``: see
    OTA. ``end``: the last 4096 bytes of the file, where a board with keys is to take an image.

    Raises OTAError; then `abort` is due.
    """

    needs_reset = True
    source = None  # what it comes from, if that is known

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
    ):
        self.force = force
        self.by_sectors = by_sectors
        self.verify = verify
        self.end = end
        self._board = Board(Partition(Partition.RUNNING))  # first: it needs code for a moment
        # Now, before code and strings divide the heap.
        self.room = memoryview(room or bytearray(ROOM))
        self.buf = self.room[:SECTOR]
        self._have = 0  # bytes in it
        self.inlet = None  # to the stage for an encoded image, or a bundle
        self._stage = self.app = self.release = None  # of an image: its first stage; of a bundle
        self.received = 0
        self.total = None
        self._sha = self.due = None
        self._is_aborted = False
        self.expect(sha, length)

    def expect(self, sha="", length=None, size=None):
        """Raises ImageError if ``size``, which the source tells, is not ``length``."""
        if sha:
            try:
                self.due = bytes.fromhex(sha)
            except ValueError:
                self.due = b""
            if len(self.due) != 32:
                raise ImageError("sha", "sha is %d characters, 64 hex digits are due" % len(sha))
            self._sha = sha256()
        if length:
            self.total = self._length = length
        if size is not None:
            if self._length not in (None, size):
                raise ImageError(
                    "length", "the file has %d bytes (expect %d)." % (size, self._length)
                )
            self.total = size

    _length = None

    # --- bytes in

    def buffer(self, whole=False):
        """Where to put the next bytes; None if no more are wanted.

        ``whole``: place for 4096 bytes, though more may be there than are wanted at once.
        """
        self._check_alive()
        if not whole:
            while self.work():
                pass
        if self.inlet:
            place = self.inlet.whole() if whole else self.inlet.buffer()
        elif self._stage:
            if self._stage.is_complete and not self.due and not self._length:
                return None  # an app in a larger file is whole before that ends
            place = self.app.buffer()
        else:
            place = self.buf
        self._place = place
        return place[self._have :] if self._have else place

    def take(self, count):
        """``count`` bytes stand in `buffer`."""
        self.received += count
        have = self._have + count
        place = self._place
        if self._sha:
            self._sha.update(place[self._have : have])
        if self.inlet:
            self.inlet.take(count)
            return
        self._have = have
        if have == len(place):
            self._pass_on(place)

    def write(self, data):
        """Take bytes that stand anywhere."""
        view = memoryview(data)
        while view:
            place = self.buffer()
            if place is None:
                return
            count = min(len(view), len(place))
            place[:count] = view[:count]
            self.take(count)
            view = view[count:]

    def work(self):
        """One step of what is left to be done, none longer than a flash operation and a sector."""
        if self.inlet:
            return self.inlet.work()
        return self.app.work() if self.app else False

    def skip(self):
        """How many of the bytes that come next are not wanted."""
        if not self.inlet or ((self.due or self._length) and not self.is_vouched):
            return 0  # all of them count
        count = self.inlet.skip()
        if count:
            self._sha = None  # a trusted key vouches for each part
        self.received += count
        return count

    @property
    def is_vouched(self):
        """Whether a trusted key vouches for what is taken, so that the rest may be left out."""
        return self.release is not None and self.release.vouched

    def _check_alive(self):
        if self._is_aborted:
            raise StateError("aborted", "the update was aborted")

    def _pass_on(self, place):
        self._have = 0
        if self._stage:
            self._stage.write(place)
        else:
            self._begin(place)

    def _begin(self, head):
        """Choose the stages by the first bytes, which then go through them."""
        acquire_slot(self)
        if not len(head):
            raise ImageError("empty", "the file is empty")
        magic = bytes(head[: len(_BUNDLE_MAGIC)])
        if magic == _BUNDLE_MAGIC or magic[: len(_FRAMES_MAGIC)] == _FRAMES_MAGIC:
            from .update_more import begin

            begin(self, head, magic == _BUNDLE_MAGIC)
            del begin
            unload("update_more")
        else:
            self._begin_image(head)

    def _begin_image(self, head):
        board = self._board
        found_merged = head[_DESC_OFFSET : _DESC_OFFSET + 4] != DESC_MAGIC
        if found_merged:
            from .local import MergedFirmware, is_merged

            found_merged = is_merged(head, board)
        signed = self.check_trust(not found_merged)
        if base.has_home():  # its files go on with the new app: they have to be written then
            from .boot import settle

            settle()
        # The head stands where the writer wants it.
        self.app = app = self.make_app(
            self.room,
            embedded=found_merged,
            needs_digest=not self.due,
            total=self.total,
            signed=signed,
        )
        app.note = self.note and self.note(app)
        self._stage = app.image
        if found_merged:
            self._stage = MergedFirmware(app.image, board, app.note)
        self._stage.write(app.buffer() if len(head) == SECTOR else head)

    note = None  # NewApp -> what is remembered of it for an attempt after a reset

    def make_app(self, buf, **options):
        return NewApp(
            self._board,
            self.force,
            self.verify,
            buf=buf,
            by_sectors=self.by_sectors,
            **options,
        )

    def check_trust(self, may_be_signed):
        """The SHA-256 that a trusted key has signed; None where no keys are installed."""
        if not base.has_trust():
            return None
        from .keys import check_image

        signed = check_image(self.end, may_be_signed)
        del check_image
        unload("keys")
        self.end = None
        return signed

    # --- the end

    def sealing(self):
        """A generator: no more bytes come. Check the whole. Raises OTAError."""
        self._check_alive()
        if self._have or not (self._stage or self.inlet):
            place = self._place[: self._have] if self._have else self.buf[:0]
            self._pass_on(place)
        while self.work():
            yield 0
        if self._length not in (None, self.received):
            raise ImageError(
                "length", "Received %d bytes (expect %d)." % (self.received, self._length)
            )
        if self.inlet:
            self.inlet.finish()
        else:
            self._stage.finish()
        if self._sha:
            check_sha(self._sha, self.due)
        if self._stage:
            self.app.seal()
        self._stage = self.inlet = self.buf = self.room = self._place = None
        gc.collect()  # its buffers: what comes now needs the heap
        yield 0

    def committing(self):
        """A generator: make what has come the next to boot."""
        if self.release:
            yield from self.release.committing()
            self.needs_reset = self.release.needs_reset
        else:
            attach = None
            if base.has_home():
                from .files import carry_over as attach
            yield from self.app.committing(attach)
        release_slot(self)

    def abort(self, error=None):
        """It has failed, or is not wanted any more: the running app stays selected."""
        self._is_aborted = True
        release_slot(self)
        if isinstance(error, (ImageError, FrameError)):
            base.forget_attempt()
        if self.release:
            self.release.abort()
        self._stage = self.inlet = self.app = self.buf = self.room = self._place = None

    @property
    def image(self):
        """The AppImage, None of a bundle."""
        return self.app.image if self.app else None


def check_ready(force):
    """The slot for the next update. Raises OTAError without one, or if what runs is unconfirmed."""
    part = base.find_next_slot()
    if not force and (
        base.state(Partition(Partition.RUNNING)) == base.PENDING_VERIFY or base.has_home()
    ):
        try:
            from .confirm import check_confirmed
        except ImportError as error:
            from .status import missing

            raise missing(error)

        check_confirmed()
        del check_confirmed
        unload("confirm", "boot")
    return part


def taking(intake, url, sha, length, request_args, report, console=None, is_json=False):
    """A generator: bring what ``url`` names into ``intake``; the number of bytes.

    ``report(done, total)`` is called after each piece; ``console`` (update_more.py) tells people.
    """
    args = {}
    if is_json:
        if not url.endswith(".json"):
            raise ValueError("Url does not end with '.json'")
        if console:
            console.say("Opening json file %s..." % url)
        from .drop_in import read_json

        args["origin"] = url  # wherever the firmware is
        url, sha, length = read_json(url, **request_args)
    if console:
        console.say("Opening firmware file %s..." % url)
    if is_url(url):
        intake.expect(sha)
        args["sha"] = (sha or (intake.due or b"").hex()).lower()
        args["trail"] = make_trail(intake)
        if console:
            args["log"] = console.log
    args.update(request_args)
    intake.source = source = make_source(url, **args)
    try:
        yield from reading_end(intake, source)
        yield from source.opening()
        return (yield from filling(intake, source, sha, length, report, console))
    finally:
        source.close()


def reading_end(intake, source):
    """A generator: where keys are installed, the end of an image may have to be judged first."""
    if not base.has_trust() or not hasattr(source, "reading_end"):
        return
    from .keys import takes_images

    is_due = takes_images()
    del takes_images
    unload("keys")
    if is_due:
        end = bytearray(SECTOR)
        try:
            yield from source.reading_end(end)
            intake.end = end
        except OTAError:  # it does not matter, if the file is a bundle
            pass


def make_trail(intake):
    """What the slot holds of an earlier attempt, and will hold of this one."""
    trail = Trail(base.find_next_slot())
    intake.note = trail.attach
    return trail


def filling(intake, source, sha, length, report, console=None):
    """A generator: bring all of a source that is open into ``intake``; the number of bytes."""
    intake.expect(sha, length, source.size)
    if console:
        console.begin(intake.total)
    start = intake.received
    yield from pumping(source, intake, report, start)
    return intake.received - start


def closing(intake, console=None):
    """A generator: check the whole, then make the slot the next to boot."""
    yield from intake.sealing()
    image = intake.image
    if console and image:
        console.seal(image.digest)
    yield from intake.committing()
    if console and image:
        console.end()


def _updating(url, sha, length, verify, verbose, more, is_json=False):
    """A generator: a whole update; the number of bytes.

    Once more if parts of two versions of a file were joined.
    """
    force, progress = more.pop("force", False), more.pop("progress", None)
    by_sectors = more.pop("block_size", 0) == SECTOR
    console = None
    for is_last in (False, True):
        part = check_ready(force)
        if verbose:
            from .update_more import Console

            console = Console(part)
        intake = Intake(sha, length, force=force, verify=verify, by_sectors=by_sectors)
        report = Progress(progress, intake, console)
        try:
            count = yield from taking(intake, url, sha, length, more, report, console, is_json)
            yield from closing(intake, console)
            return count
        except BaseException as error:
            intake.abort(error)
            if is_last or not isinstance(error, OTAError) or not is_stale(intake.source, error):
                raise translated(error, report, url)
            if console:
                console.log("%s: starting over" % error)


def from_file(url, sha="", length=0, verify=True, verbose=True, reboot=True, **more):
    """Update from a URL or a file; returns the number of bytes.

    ``more``: ``force``, ``progress`` and ``block_size`` of OTA, and what HttpSource takes.
    """
    return _rebooted(run(_updating(url, sha, length, verify, verbose, more)), reboot)


def from_json(url, verify=True, verbose=True, reboot=True, **more):
    """Update from what a JSON file names; returns the number of bytes. ``more``: see from_file."""
    return _rebooted(run(_updating(url, "", 0, verify, verbose, more, True)), reboot)


def _rebooted(count, reboot):
    if reboot:
        from .update_more import ota_reboot

        ota_reboot()
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
        self._part = part
        self._writer = None
        self.start = self.size = self.total = 0
        self.validator = None
        self._name = None
        self._head = None
        self._saved = 0

    def recall(self, name):
        """A generator: find out what the slot holds of the file ``name``. It yields 0."""
        self._name = sha256(name.encode()).digest()
        data = base.recall(KEY, _RECORD_SIZE + _MAX_VALIDATOR)
        if len(data) >= _RECORD_SIZE:
            kind, offset, start, end, total, name, head = struct.unpack(
                _RECORD, data[:_RECORD_SIZE]
            )
            validator = data[_RECORD_SIZE:]
            if kind != _KIND:
                return
        else:
            data = base.recall(_OLD_KEY, _OLD_SIZE + _MAX_VALIDATOR)
            if len(data) < _OLD_SIZE:
                return
            offset, start, end, total, _, name = struct.unpack(_OLD_RECORD, data[:_OLD_SIZE])
            validator = data[_OLD_SIZE:]
            head = None
        part = self._part
        position = end - start
        if (name, offset) != (self._name, part.info()[2]) or not 0 < position <= part.info()[3]:
            return
        if end >= total or position % SECTOR:
            return
        try:
            self.validator = str(validator, "ascii") or None
        except ValueError:
            return
        yield 0
        self._head = head or take_head(part)
        self.start = start
        self.size = self._saved = position
        self.total = total

    def read(self, offset, buf):
        """Fill ``buf`` with the slot's bytes from ``offset`` on."""
        self._part.readblocks(offset // SECTOR, buf, offset % SECTOR)
        if offset < HEAD_SIZE:
            count = min(HEAD_SIZE - offset, len(buf))
            buf[:count] = self._head[offset : offset + count]

    def begin(self, total, validator):
        """The file is fetched from its start."""
        self.total = total
        self.validator = validator if validator and len(validator) <= _MAX_VALIDATOR else None
        self.start = self.size = self._saved = 0

    def attach(self, app):
        """The app that comes is ``app``, a NewApp, whose note this is."""
        self._writer = app.writer
        app.writer.kept = self.size
        return self

    def passed(self, position):
        """The slot holds the first ``position`` bytes."""
        end = self.start + position
        if position % _STEP == 0 and self._saved < position and end < (self.total or 0):
            self._saved = position
            place = _KIND, self._part.info()[2], self.start, end, self.total
            data = struct.pack(_RECORD, *place, self._name, self._writer.head)
            # A power cut may lose it (keys.py), a full NVS has no room: the download starts over.
            base.note(KEY, data + (self.validator or "").encode())
