"""Installs releases: a manifest is judged, its payloads are taken, then all is switched at once.

    ota.release.install("https://server/greenhouse-2.1.bundle")

takes a bundle or a manifest, from a URL or a file. Nothing is erased before the manifest has been
judged, and where keys are installed (keys.py), before a trusted key was found to have signed it.
"""

import gc
import struct
from hashlib import sha256

from esp32 import Partition
from micropython import const

from . import base
from .base import (
    ROOM,
    FrameError,
    ImageError,
    OTAError,
    ReleaseError,
    SourceError,
    acquire_slot,
    release_slot,
    unload,
)
from .pump import (
    Inlet,
    Progress,
    is_stale,
    is_url,
    make_source,
    pumping,
    read_full,
    run,
    translated,
)
from .tar import TarReader

_SECTOR = const(4096)
_MAX_MANIFEST = const(8192)
_MANIFEST = "manifest.json"
_SIGNATURE = "manifest.sig"
_THIN = ".thin"  # at the end of a member's name: chain.py
_NUMBERS = const(3072)  # bytes of heap for the numbers of a signature
_AT_THE_END = ("files", "boot", "confirm")  # modules that the end of an update needs as well


class Release:
    """One release on its way in: `accepting`, then `open` for each form, then `committing`.

    ``force``: install though something is unconfirmed, has failed before, or is another product.
    """

    items = None  # what is to come, once the manifest is accepted
    vouched = False  # a trusted key has signed the manifest
    check = None  # called with None and what is remembered of the release, once it is accepted
    _data_room = None

    def __init__(self, force=False, verify=True, room=None):
        self._force = force
        self._verify = verify
        self._app = None
        self._is_resumed = False  # what came before stood in the flash
        self._files = None  # the writer of the tree that comes
        self._staged = {}  # what files.py has taken: {"tree": name, "certs": name}
        self._entry = None
        self.room = memoryview(room or bytearray(ROOM))  # for one member after the other

    def accepting(self, data, signature_sector, place):
        """A generator: judge a manifest. ``place``: where payloads come from, "member" or "url".

        Raises OTAError if it is not for this board, or the signature is due and not good.
        """
        if b'"data"' in data:
            self._data_room = bytearray(ROOM)  # before code divides the heap
        known = _check_signature(data, signature_sector)
        self.vouched = bool(known[0])
        unload("keys")
        yield 0
        bases = ()
        if b'"delta"' in data:
            try:
                from .delta import finding

                bases = yield from finding(self.room[:_SECTOR])
                del finding
                unload("delta")
            except ImportError:  # this board decodes nothing: it takes what is plain
                pass
        from .manifest import read

        manifest = read(data)
        del read, data
        unload("manifest")
        from .policy import judge

        self._entry, items = judge(manifest, known, place, bases, self._force)
        del judge
        unload("policy", "chips")
        if self.check:
            self.check(None, self._entry)
        yield 0
        if not self._force:
            from .boot import check_confirmed

            check_confirmed()
            del check_confirmed
        from .confirm import check_room

        check_room(manifest.payloads, self._force)
        del check_room
        unload("recovery", *_AT_THE_END)
        self.items = items
        yield 0

    # --- taking

    def open(self, item, is_thin=False):
        """The stage for the bytes of an item, or None if this board leaves them out.

        ``is_thin``: files that this board has are not among them (chain.py).
        """
        if not item.is_taken:
            return None
        item.is_taken = False
        if item.kind in ("app", "data"):
            unload(*_AT_THE_END)
        if item.kind == "app":
            return self._open_app(item)
        if item.kind == "data":
            return self._open_data(item)
        room = None
        if item.encoding and not is_thin:
            from .frames import Buffered, Frames, Room

            room = Room(False)  # before code divides the heap
        sink = _Checked(self._open_files(item), item)
        if is_thin:
            from .chain import Thin

            return Thin(sink, self.room[:_SECTOR])
        if not room:
            return sink
        return Frames(Buffered(sink, self.room), item.content_size, sink.finish, room=room)

    def _open_app(self, item):
        from .image import Board

        board = Board(Partition(Partition.RUNNING))  # first: it needs code for a moment
        room = None
        if item.encoding:
            from .frames import Frames, Room

            room = Room(item.encoding == "delta")
        from .otadata import find_next_slot
        from .slot import NewApp

        app = NewApp(
            find_next_slot(),
            board,
            self._force,
            self._verify,
            total=item.content_size,
            sha=bytes.fromhex(item.sha256),
            needs_digest=False,
            buf=self.room,
        )
        self._app = app
        mark = Mark(item, app.part, app.writer.limit)
        mark.target = app
        self._is_resumed = mark.at > 0
        taking = _App(app, item, mark)
        if not room:
            return taking
        return Frames(taking, item.content_size, taking.finish, mark, room, app.writer.limit)

    def _open_data(self, item):
        part = Partition.find(Partition.TYPE_DATA, label=item.partition)[0]
        size = item.content_size
        room = None
        if item.encoding:
            from .frames import Frames, Room

            room = Room(False)  # all that is large, before code divides the heap
        buf = self._data_room or bytearray(ROOM)
        head = None if item.chain else bytearray(min(size, 2 * _SECTOR))
        from .chain import Chain, DataWriter, HeadLast

        if not item.chain:
            base.forget("resume-data")  # of what the partition holds no longer
            writer = DataWriter(part, size, self._verify, buf)
            sink = HeadLast(writer, size, bytes.fromhex(item.sha256), head)
            if not item.encoding:
                return sink
            from .frames import Buffered

            return Frames(Buffered(sink, self.room), size, sink.finish, room=room)

        mark = Mark(item, part, DataWriter.last_resume(size))
        mark.target = sink = DataWriter(part, size, self._verify, buf, mark.at)
        chain = Chain(sink, item.size, item.chain, mark, not item.encoding, self.room)
        if room:
            chain.sink = Frames(sink, size, sink.finish, chain, room)
        return chain

    def _open_files(self, item):
        from . import files

        if item.kind == "files":
            self._files = files.TreeWriter(item.sha256, item.disk, self._staged.values())
            self._staged["tree"] = self._files.name
        else:
            self._files = files.CertsWriter(item.sha256, item.content_size)
            self._staged["certs"] = self._files.name
        return self._files

    def fetching(self, url, data, request_args, progress, buf):
        """A generator: take the release of which ``data`` is the manifest, read from ``url``.

        ``buf``: a memoryview of a sector to read into.
        """
        request_args.setdefault("origin", url)  # wherever its payloads are
        sector = None
        if url.endswith(".json"):
            sector = yield from _reading_signature(url[:-5] + ".sig", request_args)
        yield from self.accepting(data, sector, "url")
        for item in self.items:
            while item.is_taken:
                try:
                    yield from self._fetching(item, url, request_args, progress, buf)
                except Exception as error:
                    unload("frames", "delta")
                    from .policy import find_larger

                    item = find_larger(self, item, error)
                    del find_larger
                    unload("policy")

    def _fetching(self, item, url, request_args, progress, buf):
        from .http_connect import resolve

        place = resolve(url, item.name)
        del resolve
        for is_last in (False, True):
            item.is_taken = True
            stage = self.open(item)
            source = make_source(place, limit=item.size, **request_args)
            try:
                inlet = Inlet(stage, buf)
                while inlet.work():
                    yield 0
                done = inlet.skip() if is_url(place) else 0
                if done:  # what the flash holds already is not even asked for
                    source.pass_over(done)
                yield from source.opening()
                done = yield from pumping(source, inlet, progress, done)
                if done < item.size:
                    raise ReleaseError(
                        "member",
                        "%s is shorter than the manifest says: %d bytes" % (place, item.size),
                    )
                inlet.finish()
                return
            except OTAError as error:
                self.doubt(error)
                if is_last or not self.is_stale(source, error):
                    raise
            finally:
                source.close()

    def doubt(self, error):
        """Forget what the flash holds of an earlier attempt, if ``error`` may come from it."""
        if isinstance(error, (ImageError, FrameError)):
            base.forget_attempt()

    def is_stale(self, source, error):
        """Whether to start over: what came, or what the flash held, may be of two files."""
        return is_stale(source, error) or (
            self._is_resumed and isinstance(error, (ImageError, FrameError))
        )

    def abort(self):
        """Remove what was staged: it failed."""
        release_slot(self)
        try:
            if self._files:
                self._files.abort()
        except OSError:  # it is the error that led here which counts
            pass
        unload("chain", "delta", "frames")
        if self._staged:
            try:
                from .confirm import sweep

                sweep()
            except (OSError, MemoryError):  # what is left is removed by the next confirmation
                pass

    # --- switching

    def committing(self):
        """A generator: all has come: make it what the next boot takes. Raises OTAError."""
        if self.items is None or any(item.is_taken for item in self.items):
            raise ReleaseError("member", "the release is not complete")
        self.room = self._data_room = None
        gc.collect()
        from . import files
        from .confirm import check_selected

        entry = self._entry
        kept = files.running()
        for key in ("tree", "disk", "certs", "name", "version"):
            if key in kept and key not in entry:
                entry[key] = kept[key]
        entry.update(self._staged)
        yield 0
        if self._app:
            from .finish import switching

            yield from switching(self._app, lambda part, head: files.attach(part, entry, head))
        elif self._staged:
            check_selected()  # once more: another update may have been selected meanwhile
            files.try_next(entry)
        else:  # nothing that could be on trial
            from .confirm import apply_trust

            apply_trust(entry)
            files.settle(entry)
        release_slot(self)

    @property
    def needs_reset(self):
        """Whether the board must restart for the release to come into force."""
        return bool(self._app or self._staged)


def _check_signature(data, sector):
    """(trusted keys, counter, name and version) of this board, by which ``data`` is signed.

    Not the Trust itself, which is of a class of keys.py: that would stay in memory with it. Raises
    ReleaseError.
    """
    keys = _load_keys()
    trust = keys.load()
    keys.check_manifest(data, sector, trust)
    return trust.trusted, trust.counter, trust.name, trust.version


def _load_keys():
    """keys.py, with a place for the numbers of a signature, which its code does not divide."""
    place = bytearray(_NUMBERS)
    from . import keys

    del place
    return keys


class _App:
    """The stage for an app's bytes, as they are or decoded: goes on where they broke off."""

    def __init__(self, app, item, mark):
        self._app = app
        self._mark = mark
        self._size = item.content_size
        self._keeping = _keeping(app, mark.at, mark.more) if mark.at else None
        self._have = 0
        self._left_out = mark.at
        self.buffer = app.buffer

    def wanted(self):
        return self._left_out or self._size - self._have

    def write(self, view):
        count = len(view)
        if self._left_out:
            self._left_out -= count
            return
        self._have += count
        self._app.write(view)
        at = self._have - self._have % _SECTOR  # a push brings pieces that begin anywhere
        self._mark.note(at, at)

    def take(self, count):
        """Take the ``count`` decoded bytes that stand in `buffer`."""
        self._have += count
        self._app.take(count)

    def work(self):
        if self._keeping:
            try:
                next(self._keeping)
            except StopIteration:
                self._keeping = None
                self._have = self._mark.at
            return True
        return self._app.work()

    def skip(self):
        count = self._left_out
        self._left_out = 0
        return count

    def finish(self):
        if self._have < self._size:
            raise ReleaseError(
                "member", "the app payload gave %d bytes of %d" % (self._have, self._size)
            )
        self._app.seal(True)


def _keeping(app, size, head):
    """A generator: take the first ``size`` bytes, whole sectors, from the slot of a NewApp.

    ``head``: the first 32 of them, which are not there. It yields between sectors.
    """
    app.writer.kept = size
    for at in range(0, size, _SECTOR):
        buf = app.buffer()
        app.part.readblocks(at // _SECTOR, buf)
        if not at:
            buf[: len(head)] = head
        app.take(_SECTOR)
        yield 0


class _Checked:
    """Lets the bytes of a payload pass and compares their SHA-256 with the manifest's."""

    def __init__(self, sink, item):
        self._sink = sink
        self._item = item
        self._sha = sha256()
        self.wanted = sink.wanted
        self.work = sink.work
        self.skip = sink.skip

    def write(self, view):
        self._sha.update(view)
        self._sink.write(view)

    def finish(self):
        found = self._sha.digest().hex()
        if found != self._item.sha256:
            raise ReleaseError(
                "digest",
                "the %s payload has SHA-256 %s..., the manifest says %s..."
                % (self._item.kind, found[:16], self._item.sha256[:16]),
            )
        self._sink.finish()


# --- a bundle


class Bundle:
    """A stage (pump.py) for a bundle: manifest, signature and payloads in one tar file.

    Raises ReleaseError for members that are missing, too many, in another order or of another
    size than the manifest says, and what the release raises.
    """

    def __init__(self, release):
        self._release = release
        self._tar = TarReader(self._open_member, "the bundle")
        self._manifest = None
        self._signature = None
        self._items = None  # those that have not come yet, once the manifest is accepted
        self._task = None
        self.wanted = self._tar.wanted
        self.write = self._tar.write

    def work(self):
        if self._task:
            try:
                next(self._task)
            except StopIteration:
                self._task = None
                self._items = list(self._release.items)
            return True
        if self._tar.next and self._is_judged(self._tar.next[0]):
            self._task = self._accepting()
            return True
        return self._tar.work()

    def skip(self):
        """Pass over what comes next and is not wanted; returns how many bytes."""
        return self._tar.skip()

    def finish(self):
        """Raises ReleaseError unless all payloads have come."""
        self._tar.finish()
        if self._items is None:
            run(self._accepting())
            self._items = list(self._release.items)
        if self._items:
            raise ReleaseError("member", "the bundle lacks '%s'" % self._items[0].name)

    def _is_judged(self, name):
        is_signature = self._signature is None and name == _SIGNATURE
        return self._items is None and self._manifest is not None and not is_signature

    def _open_member(self, name, size, is_directory):
        if is_directory:
            raise ReleaseError("member", "the bundle has a directory, '%s'" % name)
        if self._manifest is None:
            self._manifest = _Collector(name, size, _MANIFEST, _MAX_MANIFEST)
            return self._manifest
        if self._items is None:
            self._signature = _Collector(name, size, _SIGNATURE, _SECTOR, self._release.room)
            return self._signature
        if not self._items:
            raise ReleaseError("member", "the bundle has a member too many, '%s'" % name)
        item = self._items.pop(0)
        if item.kind == "files" and item.is_taken and name == item.name + _THIN:
            return self._release.open(item, True)
        if name != item.name:
            raise ReleaseError(
                "member", "the bundle has '%s' where '%s' is due" % (name, item.name)
            )
        if size != item.size:
            raise ReleaseError(
                "member",
                "member '%s' is %d bytes, the manifest says %d" % (name, size, item.size),
            )
        return self._release.open(item)

    def _accepting(self):
        if self._manifest is None:
            raise ReleaseError("member", "the bundle is empty")
        signature = self._signature.data if self._signature else None
        manifest = self._manifest.data
        self._manifest.data = self._signature = None
        return self._release.accepting(manifest, signature, "member")


class _Collector:
    """A stage that keeps a small member whole, in ``room`` if that is given."""

    def __init__(self, name, size, expected, limit, room=None):
        if name != expected:
            raise ReleaseError("member", "the bundle starts with '%s', not %s" % (name, expected))
        if size > limit:
            raise ReleaseError(
                "member", "member '%s' is %d bytes, at most %d" % (name, size, limit)
            )
        self.data = room[:size] if room else bytearray(size)
        self._have = 0

    def wanted(self):
        return len(self.data) - self._have

    def write(self, view):
        self.data[self._have : self._have + len(view)] = view
        self._have += len(view)

    def work(self):
        return False

    def skip(self):
        return 0

    def finish(self):
        pass


# --- from a source


def install(
    url,
    reboot=True,
    *,
    force=False,
    verify=True,
    block_size=0,
    verbose=False,
    progress=None,
    feed=None,
    **request_args,
):
    """Install a bundle or a manifest, from a URL or a file. Raises OTAError.

    With ``reboot`` the board restarts then, if the release needs it; the new firmware or files have
    to call ota.rollback.cancel(). ``progress(done, total)``, ``feed()``: see ota.update.OTA.
    ``verbose``: print how it goes, as `from_file` does. ``request_args``: see HttpSource.
    ``block_size`` has no meaning any more.
    """
    if verbose:
        from .console import ReleaseConsole

        progress = ReleaseConsole(url, progress, request_args)
    steps = installing(url, request_args, progress, force=force, verify=verify)
    if (progress.run(steps, feed) if verbose else run(steps, feed)) and reboot:
        import machine

        machine.reset()


def installing(
    url, request_args, progress=None, *, force=False, verify=True, check=None, before_switch=None
):
    """A generator that does what `install` does, but for the restart; whether that is due.

    It yields milliseconds to wait. ``check(data)`` is called with the bytes of the manifest, which
    has to be one then, no bundle, and ``check(None, entry)`` with its counter, name and version;
    ``before_switch()`` is a generator, when all has come. What they raise ends it.
    """
    gc.collect()
    buf = memoryview(bytearray(_SECTOR))  # before the heap is divided
    progress = progress and Progress(progress)
    for is_last in (False, True):
        source = make_source(url, **request_args)
        release = Release(force, verify)
        acquire_slot(release)
        try:
            yield from _taking(release, source, url, request_args, progress, buf, check)
            if before_switch:
                yield from before_switch()
            yield from release.committing()
            return release.needs_reset
        except BaseException as error:
            release.doubt(error)
            release.abort()
            if is_last or not (isinstance(error, OTAError) and release.is_stale(source, error)):
                raise translated(error, progress, url)
        finally:
            source.close()


def _taking(release, source, url, request_args, progress, buf, check):
    yield from source.opening()
    have = yield from read_full(source, buf)
    if have and buf[0] == 0x7B:  # {: a manifest
        data = bytearray(buf[:have])
        while have == _SECTOR and len(data) <= _MAX_MANIFEST:
            have = yield from read_full(source, buf)
            data.extend(buf[:have])
        source.close()
        if check:
            check(data)
            release.check = check
        yield from release.fetching(url, data, request_args, progress, buf)
    elif check or bytes(buf[:14]) != b"manifest.json\0":  # the first member of a bundle
        raise ReleaseError(
            "member",
            "not a release: %s (ota.update takes images)"
            % ("no manifest" if check else "neither a bundle nor a manifest"),
        )
    else:
        inlet = Inlet(Bundle(release), buf)
        inlet.fill(have)
        yield from pumping(source, inlet, progress, have)
        inlet.finish()


def _reading_signature(url, request_args):
    """A generator: the signature beside a manifest, None if there is none."""
    source = make_source(url, **request_args)
    try:
        yield from source.opening()
        sector = bytearray(_SECTOR + 1)
        have = yield from read_full(source, memoryview(sector))
        return sector[:have]
    except SourceError as error:
        if error.code == "not-found" or error.status in (404, 410):
            return None
        raise
    finally:
        source.close()


# --- going on after a reset
#
# Every 64 KiB it is noted in NVS which payload it is, how far it has come, and which of the bytes
# that give it come next. When it comes again, what the flash holds is not fetched again. An app
# goes through all the checks once more: if the slot holds something else, that update fails, and
# the next one starts over. Data was verified before it was written; the note holds the digest of
# what comes next (chain.py).

_KEYS = {"app": "resume", "data": "resume-data"}  # in NVS
_KIND = const(2)
_STEP = const(65536)  # bytes between notes: what is fetched again at most
# kind; offset of the partition, size of the bytes that give the payload, how many of them were
# used, bytes of content made of them; SHA-256 of the content; of an app its first bytes, of data
# the link.
_RECORD = "<BIIII32s32s"
_RECORD_SIZE = const(81)
_OLD_KEY = "payload"  # of version 0.1: without kind and first bytes
_OLD_RECORD = "<IIII32s"
_OLD_SIZE = const(48)


class Mark:
    """How far the payload ``item`` has come in the partition ``part``.

    ``target`` writes it (pump.py, chain.py); it is set before `note` is called. ``last``: where it
    can be gone on from at most. ``at`` and ``place``: bytes of content, and of the bytes that gave
    them, of an earlier attempt, 0 if there is none; ``more``: what the note holds beside that.
    """

    target = None

    def __init__(self, item, part, last):
        self._key = _KEYS[item.kind]
        self._last = last
        offset = part.info()[2]
        self._what = offset, item.size, bytes.fromhex(item.sha256)
        self._next = None  # to be noted once the flash holds it
        self.at = self.place = 0
        self.more = None
        data = base.recall(self._key, _RECORD_SIZE)
        if len(data) == _RECORD_SIZE and data[0] == _KIND:
            _, offset, size, place, at, sha256, more = struct.unpack(_RECORD, data)
        else:
            data = base.recall(_OLD_KEY, _OLD_SIZE)
            if len(data) < _OLD_SIZE or item.kind != "app":
                return
            offset, size, place, at, sha256 = struct.unpack(_OLD_RECORD, data)
            more = None
        if (offset, size, sha256) != self._what or at % _SECTOR or not 0 < at <= self._last:
            return
        if more is None:
            from .ready import take_head

            more = take_head(part)
        self.at, self.place, self.more = at, place, more
        self._saved = at

    _saved = 0

    def note(self, at, place, more=None):
        """``at`` bytes of content are made of ``place`` bytes, and can be gone on from."""
        if self._next and self.target.written >= self._next[0]:
            at_saved, place_saved, more_saved = self._next
            self._next = None
            self._saved = at_saved
            offset, size, sha256 = self._what
            more_saved = more_saved or self.target.writer.head
            base.note(
                self._key,
                struct.pack(
                    _RECORD, _KIND, offset, size, place_saved, at_saved, sha256, more_saved
                ),
            )  # a power cut may lose the note: then the payload starts over
        if self._next is None and self._saved + _STEP <= at <= self._last:
            self._next = at, place, more

    def forget(self):
        """Forget the note: what the flash holds is of no use."""
        base.forget(self._key, _OLD_KEY)
