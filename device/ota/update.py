"""Updates the firmware: from a source, through the checks, into the next slot, then the switch.

    ota.update.from_file("http://server/firmware.bin")

takes an app image or a merged firmware, from a URL or a file. The slot that runs is never written,
and otadata is switched last: whatever goes wrong, the running app stays selected.
"""

import gc
from hashlib import sha256
from time import sleep_ms

from esp32 import Partition
from micropython import const

from . import otadata
from .errors import ImageError, OTAError, StateError
from .home import has_home, has_trust
from .image import DESC_MAGIC, SECTOR, AppImage, Board
from .modules import unload
from .slot import SlotWriter
from .url import is_url

_BUNDLE_MAGIC = b"manifest.json\0"  # the name of its first member
_FRAMES_MAGIC = b"OTAF"  # of a compressed image or a delta
_DESC_OFFSET = const(32)  # of app_desc, in an app image
_POLL_MS = const(1)  # nobody else waits
_OPTIONS = ("force", "progress", "block_size")  # of OTA, where others may come with them


class OTA:
    """One update of the next slot, as a context manager: leaving it without an exception switches.

    Give it bytes by `write`, `from_stream`, `from_firmware_file` or `from_json`; then `close`
    checks the whole and makes the slot the next to boot. With ``reboot`` it restarts the board
    10 s later. ``sha`` (hex SHA-256) and ``length`` are those of the file, if known.
    ``verify=False`` does not read back what is written.

    ``force``: update though the running app is not confirmed, and install again what has failed
    before. ``progress(done, total)`` is called after every block, ``total`` is None while the size
    of the file is not known. ``block_size`` and ``buf``: see SlotWriter.

    Raises OTAError; nothing has been written then if ``error.code`` tells of the header.
    """

    is_vouched = False  # by a signed manifest
    mark = None  # of a release: mark.py

    def __init__(
        self,
        verify=True,
        verbose=True,
        reboot=False,
        sha="",
        length=0,
        *,
        force=False,
        progress=None,
        block_size=0,
        buf=None,
    ):
        self.verbose = verbose
        self.reboot = reboot
        self.part = otadata.find_next_slot()
        self._force = force
        self._progress = progress
        self._total = None  # size of the file, once known
        self._received = 0
        self._head = 0  # bytes that came before the first stage was chosen
        self._first = self._image = self._sha = None
        self._failed = None
        self._source = self._buf = None
        self._release = None  # of a bundle; of an encoded image, the update with its content
        self._trust = None  # the keys of which one must have signed the image, if there are any
        self._options = {"force": force, "verify": verify, "block_size": block_size}
        self._is_over = False
        self._is_aborted = False
        self._expect_sha = self._expect_length = None
        self._expect(sha, length)
        self._board = Board(Partition(Partition.RUNNING))
        if not force:
            from .unconfirmed import check_confirmed

            check_confirmed()
            del check_confirmed
            unload("unconfirmed", "boot")
        gc.collect()
        self._digest = _Digest()
        self._writer = SlotWriter(
            self.part, self._digest, verify, block_size, before_erase=self._forget_slot, buf=buf
        )
        if verbose:
            _, _, _, size, name, _ = self.part.info()
            print("Writing new micropython image to OTA partition '%s'..." % name)
            print("Device capacity: %d x %d byte blocks." % (size // SECTOR, SECTOR))

    def _expect(self, sha, length):
        if sha:
            self._expect_sha = sha.lower()
            if len(sha) != 64:
                raise ImageError("sha", "sha is %d characters, 64 hex digits are due" % len(sha))
        if length:
            self._expect_length = self._total = length

    # --- bytes in

    def write(self, data):
        """Take the next bytes of the file; returns how many. Raises OTAError."""
        if self._is_aborted:
            raise StateError("aborted", "the update was aborted")
        if self._is_over:
            raise StateError("closed", "the update is over")
        size = len(data)
        self._received += size
        if self._first:
            self._pass(data)
        elif size >= SECTOR and not self._head:
            self._start(data)
        else:
            self._collect(memoryview(data))
        if self._progress:
            self._progress(self._received, self._total)
        return size

    def _collect(self, data):
        """Bring the first sector together, where the writer would put it: that takes no heap."""
        place = self._writer.buffer()
        count = min(SECTOR - self._head, len(data))
        place[self._head : self._head + count] = data[:count]
        self._head += count
        if self._head == SECTOR:
            self._start(place)
            if count < len(data):
                self._pass(data[count:])

    def _pass(self, data):
        if self._sha:
            self._sha.update(data)
        self._first.write(data)

    def _start(self, head):
        """Choose the stages by the first bytes, which then go through them."""
        self._head = None
        if not len(head):
            raise ImageError("empty", "the file is empty")
        if self._expect_sha:
            self._sha = sha256()
        if bytes(head[: len(_BUNDLE_MAGIC)]) == _BUNDLE_MAGIC:
            self._start_bundle()
        elif bytes(head[: len(_FRAMES_MAGIC)]) == _FRAMES_MAGIC:
            self._start_encoded(head)
        else:
            self._start_image(head)
        self._pass(head)

    def _start_bundle(self):
        from .bundle import Bundle
        from .release import Release

        # The app in it is an update of its own: of this one's writer only the buffer is used.
        self._release = Release(**self._options)
        self._first = Bundle(self._release)

    def _start_encoded(self, head):
        from .frames import Frames, make_room

        room = make_room(head)
        buf = bytearray(SECTOR)  # all that is large, before code divides the heap
        # What it gives is an update of its own.
        self._release = content = OTA(verbose=False, buf=buf, **self._options)
        self._first = Frames(content, close=content.seal, room=room)

    def _start_image(self, head):
        merged = head[_DESC_OFFSET : _DESC_OFFSET + 4] != DESC_MAGIC
        if merged:
            from .merged import MergedFirmware, is_merged

            merged = is_merged(head, self._board)
        if not self.is_vouched and has_trust():
            from .keys import load

            self._trust = load()
            self._check_signed_size(merged)
        self._image = AppImage(
            self._writer,
            self._board,
            self.part,
            self._accept,
            embedded=merged,
            needs_digest=not self._expect_sha,
        )
        self._digest.image = self._image
        self._first = self._image
        if merged:
            self._first = MergedFirmware(self._image, self._board, self._digest.trail)

    def _check_signed_size(self, merged):
        """Where keys are installed an image has to be signed itself: its size may tell.

        A signed image ends with a sector of signatures, a merged firmware has no place for one.
        """
        if self._trust.trusted and (merged or (self._total or 0) % SECTOR):
            from .errors import ReleaseError

            raise ReleaseError("unsigned", "the file is not signed, and this board has keys")

    def _accept(self, image):
        """The header has passed: the last word before the first erase."""
        size = self.part.info()[3]
        if self._first is image and self._total and self._total > size:
            raise ImageError(
                "too-long",
                "the app image is %d bytes, %s holds %d: it needs a larger slot"
                % (self._total, self.part.info()[4], size),
            )
        if not self._force and otadata.state(self.part) in (otadata.INVALID, otadata.ABORTED):
            from .failed import Failed

            self._failed = Failed(self.part, self._board)
            self._failed.check_header(image)

    def _forget(self):
        """What stands in the slot is of no use to a later download."""
        if self._digest.trail:
            self._digest.trail.forget()
        if self.mark:
            from .mark import forget

            forget()

    def _forget_slot(self):
        """A record in otadata ends with the content it speaks of.

        Else a complete image that was then refused could be rolled back to as the former one
        (esp_ota_begin does the same: esp_ota_invalidate_inactive_ota_data_slot).
        """
        if not self.mark:
            from .mark import forget

            forget()
        found = otadata.find_record(self.part)
        if found:
            otadata.erase(found[0])

    # --- the end

    def close(self):
        """Check the whole, then make the slot the next to boot. Raises OTAError."""
        if self._is_over:
            return
        if self._is_aborted:
            raise StateError("aborted", "the update was aborted")
        self.seal()
        self.switch()
        if self.reboot:
            from .reboot import ota_reboot

            ota_reboot()

    def seal(self):
        """No more bytes come: check the whole, and do not switch yet. Raises OTAError."""
        if self._head is not None:
            self._start(self._writer.buffer()[: self._head])
        try:
            self._first.finish()
            self._writer.close()
            self._writer = self._buf = None
            gc.collect()  # its buffers: what comes now needs the heap
            self._check_whole()
        except ImageError:
            self._forget()
            raise
        self._is_over = True

    def _check_whole(self):
        from .finish import check_file, check_image

        sha = self._sha.digest() if self._sha else None
        check_file(self._received, self._expect_length, sha, self._expect_sha)
        if self._image:  # a bundle has checked its own
            check_image(self.part, self._image, self._digest.sha, self._failed, self._trust)
            if self.verbose:
                print("\nSHA-256 of the image in flash: %s" % (self._image.digest or b"").hex())

    def switch(self):
        """Make the slot, whole and checked, the next to boot."""
        if self._release:
            self._release.switch()
            return
        if not self.is_vouched and has_home():
            from .files import carry_over

            carry_over(self.part)
        from .finish import set_boot

        set_boot(self.part, self._image.digest)
        self._forget()
        if self.verbose:
            from .finish import tell

            tell(self.part)

    def abort(self):
        """Stop: `write` and `close` raise StateError, and the running app stays selected."""
        self._is_aborted = True
        if self._release:
            self._release.abort()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is None:
            self.close()
        else:
            self.abort()

    # --- sources

    def from_stream(self, f, sha="", length=0):
        """Take a file from a stream (`readinto`), to its end; returns the number of bytes."""
        from .source import StreamSource

        return self.from_source(StreamSource(f), sha, length)

    def from_firmware_file(self, url, sha="", length=0, **request_args):
        """Take a file by its name or URL; returns the number of bytes."""
        if self.verbose:
            print("Opening firmware file %s..." % url)
        source = self.make_source(url, sha, **request_args)
        try:
            return self.from_source(source.open(), sha, length)
        finally:
            source.close()

    def make_source(self, url, sha="", **request_args):
        """The source, still to be opened, for a file name or a URL.

        A download goes on where an earlier one of the same file broke off in this slot.
        """
        if not is_url(url):
            from .source import FileSource

            self._source = FileSource(url)
            return self._source
        from .download import HttpSource

        args = {"sha": (sha or self._expect_sha or "").lower(), "trail": self.make_trail()}
        if self.verbose:
            args["log"] = _print_line
        args.update(request_args)
        self._source = HttpSource(url, **args)
        self._source.give_room = self.give_room
        return self._source

    def make_trail(self):
        """What the slot holds of an earlier attempt, and will hold of this one: see resume.py."""
        from .resume import Trail

        self._digest.trail = Trail(self.part, self._writer.buffer())
        return self._digest.trail

    def is_stale(self, error):
        """Whether an update failed because parts of two versions of a file have come together.

        Then it is worth a new attempt.
        """
        return self._source is not None and (
            error.code == "changed" or (self._source.is_joined and isinstance(error, ImageError))
        )

    def from_json(self, url, **request_args):
        """Take the file that a JSON file (`firmware`, `sha`, `length`) names."""
        if not url.endswith(".json"):
            raise ValueError("Url does not end with '.json'")
        if self.verbose:
            print("Opening json file %s..." % url)
        from .pointer import read_pointer

        firmware, sha, length = read_pointer(url, **request_args)
        return self.from_firmware_file(firmware, sha, length, **request_args)

    def from_source(self, source, sha="", length=0):
        """Take a file from a source (see source.py), to its end; returns the number of bytes."""
        self.begin(source.size, sha, length)
        start = self._received
        read = getattr(source, "try_readinto", source.readinto)
        while True:
            count = read(self.buffer())
            if count is None:
                sleep_ms(_POLL_MS)
            elif not self.take(count):
                return self._received - start

    def give_room(self):
        """Give a large buffer back for now: the heap is needed."""
        self._buf = None
        if self._writer:
            self._writer.give_room()
        if self._release:
            self._release.give_room()

    def drop(self):
        """Give the buffers of an update that has failed back, for the next one."""
        if self._writer:
            self._writer.drop()
        self._buf = None

    def begin(self, size=None, sha="", length=0):
        """A file comes: its size, SHA-256 and length are these, as far as they are known."""
        self._expect(sha, length)
        self.expect_size(size)
        if self.verbose and self._total:
            print("Writing %d blocks + %d bytes." % (self._total // SECTOR, self._total % SECTOR))
        gc.collect()

    def expect_size(self, size):
        """The source says how long the file is. Raises ImageError if ``length`` says otherwise."""
        if size is None:
            return
        if self._expect_length not in (None, size):
            raise ImageError(
                "length", "the file has %d bytes (expect %d)." % (size, self._expect_length)
            )
        self._total = size

    @property
    def written(self):
        """Bytes that the slot holds, read back and found right."""
        return self._writer.written

    def keep(self, size):
        """Take the first ``size`` bytes, whole sectors, from the slot, where they are already."""
        at = 0
        while at < size:
            buf = self.buffer()
            count = min(len(buf), size - at)
            self.part.readblocks(at // SECTOR, buf[:count], at % SECTOR)
            self.take(count)
            at += count

    def _pass_over(self):
        """Leave out what of a bundle this board does not want."""
        if not self._expect_sha and not self._expect_length:
            count = self._first.skip()
            if count:
                self._source.pass_over(count)
                self._received += count

    def buffer(self):
        """Where to put the next bytes of the file, to `take` them then."""
        buf = self._writer.buffer()
        self._buf = buf[self._head :] if self._head else buf
        return self._buf

    def take(self, count):
        """Move ``count`` bytes on from `buffer` into the stages; whether any more are wanted."""
        if not count:
            return False
        self._take(count)
        if self._release and self._source:
            self._pass_over()
        if self.verbose and not self._received % 65536:
            print("\rBLOCK", self._received // SECTOR, end="")
        # An app inside a larger file is whole before the file ends: the rest is of interest only
        # where it is part of what was promised.
        is_whole = self._first and self._first.is_complete
        return not is_whole or self._expect_sha or self._expect_length

    def _take(self, count):
        buf = self._buf
        if count < len(buf):
            buf = buf[:count]
        try:
            self.write(buf)
        except ImageError:
            self._forget()
            raise


class _Digest:
    """The last stage, of what the flash holds: SHA-256 over an image up to its own digest."""

    def __init__(self):
        self.sha = sha256()
        self.image = None
        self.trail = None  # of a download: resume.py
        self._pos = 0

    def write(self, buf):
        if self.trail:
            self.trail.write(buf)
        end = self._pos + len(buf)
        stop = self.image.digest_offset
        if stop is None or end <= stop:
            self.sha.update(buf)
        elif self._pos < stop:
            self.sha.update(memoryview(buf)[: stop - self._pos])
        self._pos = end


def from_file(url, sha="", length=0, verify=True, verbose=True, reboot=True, **more):
    """Update from a URL or a file; returns the number of bytes.

    ``more``: ``force``, ``progress`` and ``block_size`` of OTA, and what HttpSource takes.
    """
    return _run(
        url,
        lambda update: update.from_firmware_file(url, sha, length, **more),
        (verify, verbose, reboot),
        more,
    )


def from_json(url, verify=True, verbose=True, reboot=True, **more):
    """Update from what a JSON file names; returns the number of bytes. ``more``: see from_file."""
    return _run(url, lambda update: update.from_json(url, **more), (verify, verbose, reboot), more)


def _run(url, take, args, more):
    """Update by ``take(update)``, and once more if parts of two versions of a file were joined."""
    options = {name: more.pop(name) for name in _OPTIONS if name in more}
    update = OTA(*args, **options)
    try:
        with update:
            return take(update)
    except OTAError as error:
        if not update.is_stale(error):
            raise
        if update.verbose:
            _print_line("%s: starting over" % error)
    update.drop()
    with OTA(*args, **options) as update:
        return take(update)


def fetch(url, sha="", length=0, **options):
    """As `from_file`, for an asyncio program: ``await fetch(url)``. See fetch.py."""
    from .fetch import fetch

    return fetch(url, sha, length, **options)


def _print_line(text):
    print("\n" + text)
