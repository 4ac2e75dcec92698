"""Installs releases: judges a manifest, takes its payloads, switches.

    ota.release.install("https://server/greenhouse-2.1.bundle")

takes a bundle or a manifest, from a URL or a file. Nothing is erased before the manifest has been
judged, and where keys are installed (keys.py), before a trusted key was found to have signed it.
"""

import gc
import sys
from hashlib import sha256
from time import gmtime

from esp32 import Partition
from micropython import const

from . import boot, files, keys, otadata, signature
from .bundle import Bundle, is_bundle
from .confirm import apply_trust, sweep
from .errors import ReleaseError, SourceError, StateError
from .manifest import MAX_SIZE, Manifest, version_key
from .memory import chip_name
from .signature import SECTOR

_CLOCK_SET = const(2025)  # a year before which no clock of a board stands that was ever set

# Data partitions that hold more than content: otadata, phy_init, nvs, nvs_keys, efuse.
_RESERVED_SUBTYPES = (0x00, 0x01, 0x02, 0x04, 0x05)


class Release:
    """One release on its way in: `accept`, then `open` for each form, then `switch`.

    ``force``: install though something is unconfirmed, has failed before, or is another product.
    """

    manifest = None

    def __init__(self, force=False, verify=True, block_size=0):
        self._force = force
        self._options = {"verify": verify, "block_size": block_size, "force": force}
        self._app = None
        self._staged = {}  # kind -> name of what files.py has taken
        self._chosen = []  # the form of each payload that this board takes
        self._missing = []  # those of them that have not come
        self._places = ()

    # --- judging

    def accept(self, data, signature_sector, place):
        """Judge a manifest. ``place``: what its forms must have, "member" or "url".

        Raises OTAError if it is not for this board, or the signature is due and not good.
        """
        trust = keys.load()
        self._check_signature(data, signature_sector, trust)
        manifest = Manifest(data)
        if not self._force:
            check_confirmed()
            _check_product(manifest)
        _check_board(manifest)
        _check_time(manifest.expires)
        if manifest.counter < trust.counter:
            raise ReleaseError(
                "counter",
                "the release has counter %d, this board has had %d: it is older than what was "
                "confirmed here" % (manifest.counter, trust.counter),
            )
        self._check_keys(manifest, trust)
        self._choose(manifest, place)
        self._check_room(manifest)
        self.manifest = manifest

    def _check_signature(self, data, sector, trust):
        if sector is None:
            if trust.trusted:
                raise ReleaseError("unsigned", "the manifest is not signed, this board has keys")
            return
        digest = signature.digest_padded(data)
        signature.check(digest, sector, trust.trusted or None, trust.retired)

    def _check_keys(self, manifest, trust):
        if not manifest.add_keys and not manifest.retire_keys:
            return
        if not trust.trusted:
            raise ReleaseError(
                "keys", "the manifest changes keys, and this board has none that could allow it"
            )
        trust.change(manifest.add_keys, manifest.retire_keys)

    def _choose(self, manifest, place):
        """For each payload the smallest form that this board can use."""
        self._chosen = []
        for payload in manifest.payloads:
            usable = [
                form
                for form in payload.forms
                if form.encoding is None and getattr(form, place) is not None
            ]
            if not usable:
                raise ReleaseError(
                    "no-form", "the %s payload has no form that this board can use" % payload.kind
                )
            self._chosen.append(min(usable, key=lambda form: form.size))
        self._missing = list(self._chosen)

    def _check_room(self, manifest):
        """What does not fit is refused before anything is written."""
        gain = 0  # of the file system, by then
        for payload in manifest.payloads:
            if payload.kind == "app":
                from .update import find_next_slot

                part = find_next_slot()
                if payload.size > part.info()[3]:
                    raise ReleaseError(
                        "too-long",
                        "the app is %d bytes, %s holds %d: a table with larger slots is needed"
                        % (payload.size, part.info()[4], part.info()[3]),
                    )
                gain = (boot.read_record(part) or {"now": {}})["now"].get("disk", 0)
            elif payload.kind == "files":
                files.check_space(payload.disk, gain)
                if not self._force and files.has_failed(payload.sha256):
                    raise StateError(
                        "failed-version",
                        "these files have failed on this board before (they did not get "
                        "confirmed): not installed again without force=True",
                    )
            elif payload.kind == "certs":
                files.check_space(payload.size, gain)
            else:
                part = find_data(payload.partition)
                if payload.size > part.info()[3]:
                    raise ReleaseError(
                        "too-long",
                        "the data is %d bytes, partition %s holds %d"
                        % (payload.size, payload.partition, part.info()[3]),
                    )

    # --- taking

    def open(self, payload, form):
        """A sink (`write`, `close`) for the bytes of a form, or None if this board skips it."""
        if form not in self._chosen:
            return None

        def done():
            self._missing.remove(form)

        gc.collect()
        if payload.kind == "app":
            self._app = _open_app(payload, self._options)
            return _Sink(self._app.write, self._app.seal, done)
        return _Checked(self._open_content(payload), payload, done)

    def _open_content(self, payload):
        if payload.kind == "data":
            from .slot import SlotWriter

            part = find_data(payload.partition)
            return SlotWriter(part, _Nowhere(), self._options["verify"])
        if payload.kind == "files":
            writer = files.TreeWriter(payload.sha256, payload.disk, self._staged.values())
            self._staged["tree"] = writer.name
        else:
            writer = files.CertsWriter(payload.sha256, payload.size)
            self._staged["certs"] = writer.name
        return writer

    def fetch(self, url, data, request_args, progress=None, buf=None):
        """Take the release of which ``data`` is the manifest, read from ``url``.

        ``buf``: a bytearray of 4096 bytes to read into, if there is one already.
        """
        buf = buf or bytearray(SECTOR)
        sector = None
        if url.endswith(".json"):
            sector = _read_signature(url[:-5] + ".sig", request_args)
        self.accept(data, sector, "url")
        for payload, form in zip(self.manifest.payloads, self._chosen):  # noqa: B905
            sink = self.open(payload, form)
            self._fetch_form(resolve(url, form.url), form.size, sink, request_args, progress, buf)

    def _fetch_form(self, url, size, sink, request_args, progress, buf):
        from .source import open_source

        source = open_source(url, **request_args)
        try:
            view = memoryview(buf)
            left = size
            count = _fill(source, view)
            while count:
                left -= count
                if left < 0:
                    break
                sink.write(view[:count])
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

    def abort(self):
        """Remove what was staged: it failed."""
        if boot.has_home():
            sweep()

    # --- switching

    def switch(self):
        """All has come: make it what the next boot takes. Raises OTAError."""
        if self.manifest is None or self._missing:
            raise ReleaseError("member", "the release is not complete")
        manifest = self.manifest
        entry = {"name": manifest.name, "version": manifest.version, "counter": manifest.counter}
        if manifest.add_keys or manifest.retire_keys:
            entry["add"] = manifest.add_keys
            entry["retire"] = manifest.retire_keys
        for payload in manifest.payloads:
            if payload.kind == "files":
                entry["sha256"] = payload.sha256
                entry["disk"] = payload.disk
        kept = files.running() if boot.has_home() else {}
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
            apply_trust(entry)
            for key in ("add", "retire"):
                entry.pop(key, None)
            files.settle(entry)

    @property
    def needs_reset(self):
        """Whether the board must restart for the release to come into force."""
        return bool(self._app or self._staged)


def _open_app(payload, options):
    """The update of a slot; the switch waits for the other payloads."""
    from .update import OTA

    app = OTA(verbose=False, sha=payload.sha256, length=payload.size, **options)
    app.is_vouched = True
    return app


class _Sink:
    """`write`, and a `close` that tells when it has succeeded."""

    def __init__(self, write, close, done):
        self.write = write
        self._close = close
        self._done = done

    def close(self):
        self._close()
        self._done()


class _Nowhere:
    """The last stage of a partition whose blocks have been compared one by one."""

    def write(self, buf):
        pass


class _Checked:
    """Lets the bytes of a payload pass and compares their SHA-256 with the manifest's."""

    def __init__(self, sink, payload, done):
        self._sink = sink
        self._payload = payload
        self._sha = sha256()
        self._done = done

    def write(self, buf):
        self._sha.update(buf)
        self._sink.write(buf)

    def close(self):
        found = self._sha.digest().hex()
        if found != self._payload.sha256:
            raise ReleaseError(
                "digest",
                "the %s payload has SHA-256 %s..., the manifest says %s..."
                % (self._payload.kind, found[:16], self._payload.sha256[:16]),
            )
        self._sink.close()
        self._done()


def find_data(label):
    """The data partition that a payload may be written to. Raises ReleaseError if there is none."""
    found = Partition.find(Partition.TYPE_DATA, label=label)
    if not found:
        raise ReleaseError("no-partition", "this board has no data partition '%s'" % label)
    from flashbdev import bdev

    offset = found[0].info()[2]
    if found[0].info()[1] in _RESERVED_SUBTYPES or (bdev and bdev.info()[2] == offset):
        raise ReleaseError("no-partition", "partition '%s' is in use by the system" % label)
    return found[0]


def check_confirmed():
    """Raises StateError while the app or the files that run are unconfirmed."""
    part = Partition(Partition.RUNNING)
    what = None
    if otadata.state(part) == otadata.PENDING_VERIFY:
        what = "the running app (%s) is" % part.info()[4]
    elif boot.is_on_trial():
        what = "the files in use are"
    if what:
        raise StateError(
            "unconfirmed",
            "%s not confirmed: call ota.rollback.cancel() first, or a failed update would leave "
            "nothing to roll back to" % what,
        )


def _check_product(manifest):
    installed = files.running() if boot.has_home() else {}
    name = installed.get("name")
    if name and name != manifest.name:
        raise ReleaseError(
            "wrong-name", "the release is '%s', this board has '%s'" % (manifest.name, name)
        )
    if manifest.from_version:
        version = installed.get("version")
        if not version or version_key(version) < version_key(manifest.from_version):
            raise ReleaseError(
                "from-version",
                "the release updates %s or newer, this board has %s"
                % (manifest.from_version, version or "no release that is known"),
            )


def _check_board(manifest):
    head = bytearray(14)
    Partition(Partition.RUNNING).readblocks(0, head, 0)
    chip = chip_name(head[12] | head[13] << 8).lower().replace("-", "")
    if manifest.chip not in (None, chip):
        raise ReleaseError(
            "wrong-chip", "the release is for %s, this board is %s" % (manifest.chip, chip)
        )
    board = sys.implementation._machine
    if manifest.board not in (None, board, board.split(" with ")[0]):
        raise ReleaseError(
            "wrong-board", "the release is for '%s', this board is '%s'" % (manifest.board, board)
        )


def _check_time(expires):
    if expires is None:
        return
    now = gmtime()
    if now[0] < _CLOCK_SET:
        raise ReleaseError(
            "clock",
            "the release expires on %s and the clock is not set (it says %d): set it first, "
            "for instance by ntptime.settime()" % (expires, now[0]),
        )
    if "%04d-%02d-%02dT%02d:%02d:%02dZ" % now[:6] >= expires:
        raise ReleaseError("expired", "the release expired on %s" % expires)


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
    buf = bytearray(SECTOR)  # before the heap is divided
    from .source import open_source

    release = Release(force, verify, block_size)
    source = open_source(url, **request_args)
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
        while have == SECTOR and len(data) <= MAX_SIZE:
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
        if progress:
            progress(done, source.size)
        have = _fill(source, view)
    stage.finish()


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
        sector = bytearray(SECTOR)
        have = _fill(source, memoryview(sector))
        return sector if have == SECTOR and not source.readinto(bytearray(1)) else sector[:have]
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
    from .source import is_url, join_url

    if is_url(base):
        return join_url(base, reference)
    if is_url(reference) or reference.startswith("/"):
        return reference
    folder = base.rpartition("/")[0]
    return folder + "/" + reference if folder else reference
