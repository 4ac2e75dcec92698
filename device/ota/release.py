"""Installs releases: judges a manifest, takes its payloads, switches.

    ota.release.install("https://server/greenhouse-2.1.bundle")

takes a bundle or a manifest, from a URL or a file. Nothing is erased before the manifest has been
judged, and where keys are installed (keys.py), before a trusted key was found to have signed it.
"""

import gc
from hashlib import sha256

from esp32 import Partition
from micropython import const

from .bundle import Bundle, is_bundle
from .errors import OTAError, ReleaseError, SourceError
from .home import has_home
from .modules import unload

_SECTOR = const(4096)
_MAX_MANIFEST = const(8192)
_AT_THE_END = ("files", "boot", "confirm")  # modules that are of use then, and before


class Item:
    """Bytes that come: a form of a payload.

    ``name`` (member or URL), ``size`` and ``encoding`` are of these bytes; ``kind``, ``sha256``,
    ``content_size``, ``disk`` and ``partition`` of the payload that they give. ``is_taken``:
    whether this board wants them.
    """

    def __init__(self, payload, form, name, is_taken):
        self.name = name
        self.size = form.size
        self.encoding = form.encoding
        self.content_size = payload.size
        self.is_taken = is_taken
        self.kind = payload.kind
        self.sha256 = payload.sha256
        self.disk = payload.disk
        self.partition = payload.partition


class Release:
    """One release on its way in: `accept`, then `open` for each form, then `switch`.

    ``force``: install though something is unconfirmed, has failed before, or is another product.
    """

    items = None  # what is to come, once the manifest is accepted

    def __init__(self, force=False, verify=True, block_size=0):
        self._force = force
        self._options = {"verify": verify, "block_size": block_size, "force": force}
        self._app = None
        self._data = None  # the writer of a data partition
        self._staged = {}  # what files.py has taken: {"tree": name, "certs": name}
        self._entry = None

    def accept(self, data, signature_sector, place):
        """Judge a manifest. ``place``: where its payloads come from, "member" or "url".

        Raises OTAError if it is not for this board, or the signature is due and not good.
        """
        from .keys import load
        from .signature import check_manifest

        trust = load()
        check_manifest(data, signature_sector, trust)
        del check_manifest, load
        unload("signature")
        from .judge import judge

        self._entry, self.items = judge(data, trust, place, self._force)
        del judge, trust
        unload("judge", "manifest", "keys", "chips", "unconfirmed", *_AT_THE_END)

    # --- taking

    def open(self, item):
        """A sink (`write`, `close`) for the bytes of an item, or None if this board skips it."""
        if not item.is_taken:
            return None

        def done():
            item.is_taken = False

        unload(*_AT_THE_END)
        room = None
        if item.encoding:
            from .frames import Buffered, Frames, Room

            room = Room(item.encoding == "delta")
        if item.kind == "app":
            return self._open_app(item, room, done)
        sink = _Checked(self._open_content(item), item, done)
        if not room:
            return sink
        return Frames(Buffered(sink.write), item.content_size, sink.close, room=room)

    def _open_app(self, item, room, done):
        buf = bytearray(_SECTOR) if room else None  # the heap is in one piece still
        self._app = app = _make_app(item, self._options, buf)
        from .mark import Mark, Plain

        app.mark = mark = Mark(item, app)

        def close():
            _seal(app)
            done()

        if not room:
            return Plain(app, mark, close)
        from .frames import Frames

        return Frames(app, item.content_size, close, mark, room)

    def _open_content(self, item):
        if item.kind == "data":
            from .slot import SlotWriter

            part = Partition.find(Partition.TYPE_DATA, label=item.partition)[0]
            self._data = SlotWriter(part, _Nowhere(), self._options["verify"])
            return self._data
        from . import files

        if item.kind == "files":
            writer = files.TreeWriter(item.sha256, item.disk, self._staged.values())
            self._staged["tree"] = writer.name
        else:
            writer = files.CertsWriter(item.sha256, item.content_size)
            self._staged["certs"] = writer.name
        return writer

    def fetch(self, url, data, request_args, progress=None, buf=None):
        """Take the release of which ``data`` is the manifest, read from ``url``.

        ``buf``: a bytearray of 4096 bytes to read into, if there is one already.
        """
        buf = buf or bytearray(_SECTOR)
        sector = None
        if url.endswith(".json"):
            sector = _read_signature(url[:-5] + ".sig", request_args)
        self.accept(data, sector, "url")
        for item in self.items:
            place = resolve(url, item.name)
            if item.is_taken and item.kind == "app" and not item.encoding:
                self._fetch_app(place, item, request_args, progress)
            elif item.is_taken:
                self._fetch_item(place, item.size, self.open(item), request_args, progress, buf)

    def _fetch_app(self, url, item, request_args, progress):
        """As ota.update.from_file does: goes on where an earlier download broke off."""
        options = dict(self._options)
        options["progress"] = progress
        for is_last in (False, True):
            self._app = app = _make_app(item, options)
            try:
                app.from_firmware_file(url, **request_args)
                _seal(app)
                item.is_taken = False
                return
            except OTAError as error:
                if is_last or not app.is_stale(error):
                    raise

    def _fetch_item(self, url, size, sink, request_args, progress, buf):
        from .source import open_source

        source = open_source(url, **request_args)
        source.give_room = self.give_room
        try:
            view = memoryview(buf)
            left = size
            skip = getattr(sink, "skip", _none)
            count = _fill(source, view)
            while count:
                left -= count
                if left < 0:
                    break
                sink.write(view[:count])
                count = skip()
                if count:
                    source.pass_over(count)
                    left -= count
                if progress:
                    progress(size - left, size)
                count = _fill(source, view)
            if left:
                raise ReleaseError(
                    "member",
                    "%s is %s than the %d bytes that the manifest says"
                    % (url, "longer" if left < 0 else "shorter", size),
                )
            sink.close()
        finally:
            source.close()

    def give_room(self):
        """Give large buffers back for now: the heap is needed."""
        for taking in (self._app, self._data):
            if taking:
                taking.give_room()

    def abort(self):
        """Remove what was staged: it failed."""
        if has_home():
            from .confirm import sweep

            sweep()

    # --- switching

    def switch(self):
        """All has come: make it what the next boot takes. Raises OTAError."""
        if self.items is None or any(item.is_taken for item in self.items):
            raise ReleaseError("member", "the release is not complete")
        from . import files

        entry = self._entry
        kept = files.running() if has_home() else {}
        for key in ("tree", "disk", "certs"):
            if key in kept and key not in entry:
                entry[key] = kept[key]
        entry.update(self._staged)
        files.prepare()
        if self._app:
            files.attach(self._app.part, entry)
            self._app.switch()
        elif self._staged:
            files.try_next(entry)
        else:  # nothing that could be on trial
            from .confirm import apply_trust

            apply_trust(entry)
            for key in ("add", "retire"):
                entry.pop(key, None)
            files.settle(entry)

    @property
    def needs_reset(self):
        """Whether the board must restart for the release to come into force."""
        return bool(self._app or self._staged)


def _make_app(item, options, buf=None):
    """The update of a slot; the switch waits for the other payloads."""
    from .update import OTA

    app = OTA(verbose=False, sha=item.sha256, length=item.content_size, buf=buf, **options)
    app.is_vouched = True
    return app


def _seal(app):
    """The app is whole; if it is signed itself, that signature has to be good as well."""
    app.seal()
    from .signature import check_app

    try:
        check_app(app.part, app._image.size, None)
    except ReleaseError as error:
        if error.code != "unsigned":
            raise
    del check_app
    unload("signature")


def _none():
    return 0


class _Nowhere:
    """The last stage of a partition whose blocks have been compared one by one."""

    def write(self, buf):
        pass


class _Checked:
    """Lets the bytes of a payload pass and compares their SHA-256 with the manifest's."""

    def __init__(self, sink, item, done):
        self._sink = sink
        self._item = item
        self._sha = sha256()
        self._done = done

    def write(self, buf):
        self._sha.update(buf)
        self._sink.write(buf)

    def close(self):
        found = self._sha.digest().hex()
        if found != self._item.sha256:
            raise ReleaseError(
                "digest",
                "the %s payload has SHA-256 %s..., the manifest says %s..."
                % (self._item.kind, found[:16], self._item.sha256[:16]),
            )
        self._sink.close()
        self._done()


# --- from a source


def install(
    url, reboot=True, *, force=False, verify=True, block_size=0, progress=None, **request_args
):
    """Install a bundle or a manifest, from a URL or a file. Raises OTAError.

    With ``reboot`` the board restarts then, if the release needs it; the new firmware or files have
    to call ota.rollback.cancel(). ``progress(done, total)``: see ota.update.OTA. ``request_args``:
    see HttpSource.
    """
    gc.collect()
    buf = bytearray(_SECTOR)  # before the heap is divided
    from .source import open_source

    release = Release(force, verify, block_size)
    source = open_source(url, **request_args)
    source.give_room = release.give_room
    try:
        _take(release, source, buf, url, request_args, progress)
        release.switch()
    except Exception:
        release.abort()
        raise
    finally:
        source.close()
    if reboot and release.needs_reset:
        import machine

        machine.reset()


def _take(release, source, buf, url, request_args, progress):
    view = memoryview(buf)
    have = _fill(source, view)
    if buf[0] == 0x7B:  # {: a manifest
        data = bytearray(view[:have])
        while have == _SECTOR and len(data) <= _MAX_MANIFEST:
            have = _fill(source, view)
            data.extend(view[:have])
        source.close()
        release.fetch(url, data, request_args, progress, buf)
        return
    if not is_bundle(buf):
        raise ReleaseError(
            "member", "not a release: neither a bundle nor a manifest (ota.update takes images)"
        )
    stage = Bundle(release)
    done = 0
    while have:
        stage.write(view[:have])
        done += have
        done += _pass_over(stage, source)
        if progress:
            progress(done, source.size)
        have = _fill(source, view)
    stage.finish()


def _pass_over(stage, source):
    """Leave out what the stage does not want to see; returns how many bytes."""
    count = stage.skip()
    if count:
        source.pass_over(count)
    return count


def _read_signature(url, request_args):
    """The signature beside a manifest, None if there is none."""
    from .source import open_source

    try:
        source = open_source(url, **request_args)
    except SourceError as error:
        if error.code == "not-found" or error.status in (404, 410):
            return None
        raise
    try:
        sector = bytearray(_SECTOR)
        have = _fill(source, memoryview(sector))
        return sector if have == _SECTOR and not source.readinto(bytearray(1)) else sector[:have]
    finally:
        source.close()


def _fill(source, view):
    """Read until ``view`` is full or the source ends; the number of bytes."""
    have = 0
    while have < len(view):
        count = source.readinto(view[have:])
        if not count:
            break
        have += count
    return have


def resolve(base, reference):
    """A URL or path that is relative to that of the manifest."""
    from .redirect import join_url
    from .url import is_url

    if is_url(base):
        return join_url(base, reference)
    if is_url(reference) or reference.startswith("/"):
        return reference
    folder = base.rpartition("/")[0]
    return folder + "/" + reference if folder else reference
