"""Whether a release may come in: judges its manifest for this board.

Loaded for that alone, and let go before the payloads come: code lives in the heap.
"""

import sys
from time import gmtime

from micropython import const

from . import __version__, base
from .base import OTAError, ReleaseError, is_older, unload
from .otadata import has_home

_MPY_MASK = const(0x3FFF)  # version, sub-version, architecture; flags follow
_CLOCK_SET = const(2025)  # a year before which no clock of a board stands that was ever set


class Item:
    """Bytes that come: a form of a payload.

    ``name`` (member or URL), ``size``, ``encoding`` and ``chain`` are of these bytes; ``kind``,
    ``sha256``, ``content_size``, ``disk`` and ``partition`` of the payload that they give.
    ``is_taken``: whether this board wants them; ``is_usable``: whether it could take them.
    """

    # No method: its globals, this whole module, would stay in memory as long as the Items.


def _make_item(payload, form, name, is_taken, is_usable):
    item = Item()
    item.name = name
    item.size = form.size
    item.encoding = form.encoding
    item.chain = form.chain
    item.content_size = payload.size
    item.is_taken = is_taken
    item.is_usable = is_usable
    item.kind = payload.kind
    item.sha256 = payload.sha256
    item.disk = payload.disk
    item.partition = payload.partition
    return item


def judge(manifest, known, place, bases, force):
    """(what to remember of the release, its Items). Raises OTAError if it must not come in.

    ``manifest``: see manifest.py; its signature was found good. ``known``: of this board's
    keys.Trust the trusted keys, the counter, name and version; ``place``: where this board gets
    payloads from, "member" or "url"; ``bases``: what deltas may
    start from, the SHA-256 (hex) of the app that runs. Nothing is written.
    """
    trusted, counter, name, version = known
    _check_counter(manifest, trusted, counter)
    _check_product(manifest, name, version, force)
    _check_board(manifest)
    _check_modules(manifest)
    _check_time(manifest.expires)
    items = [
        item for payload in manifest.payloads for item in _choose(payload, place, bases, trusted)
    ]
    return _entry(manifest), items


def _entry(manifest):
    """The entry for the release in the record of an app partition (files.py)."""
    entry = {"counter": manifest.counter}
    # No name has a manifest in the form of micropython-esp32-ota; one of keys alone changes none.
    if manifest.name and manifest.payloads:
        entry["name"] = manifest.name
        entry["version"] = manifest.version
    if manifest.changes_keys:
        entry["add"] = manifest.add_keys
        entry["retire"] = manifest.retire_keys
    for payload in manifest.payloads:
        if payload.kind == "files":
            entry["sha256"] = payload.sha256
            entry["disk"] = payload.disk
    return entry


def _check_counter(manifest, trusted, counter):
    """The counter may not go back; to change keys it has to go on."""
    if manifest.counter < counter:
        raise ReleaseError(
            "counter",
            "the release has counter %d, this board has had %d: it is older than what was "
            "confirmed here" % (manifest.counter, counter),
        )
    if not manifest.changes_keys:
        return
    if not trusted:
        raise ReleaseError(
            "keys", "the manifest changes keys, and this board has none that could allow it"
        )
    if manifest.counter == counter:
        raise ReleaseError(
            "counter",
            "the release changes keys with counter %d, which this board has had: a higher one is "
            "due" % counter,
        )
    from .keys import load

    load().change(manifest.add_keys, manifest.retire_keys)  # raises if that is not possible
    del load
    unload("keys")


def _choose(payload, place, bases, trusted):
    """Items for all of a payload's forms; the smallest that this board can use is taken."""
    needs_chain = payload.kind == "data" and trusted
    placed = [form for form in payload.forms if getattr(form, place) is not None]
    usable = [
        form
        for form in placed
        if (form.chain or not needs_chain) and _is_usable(form, payload.kind, bases)
    ]
    if not usable:
        if placed and not _decodes():
            raise OTAError(
                "part", "the part 'encoded' is not installed: mpota install PORT --with encoded"
            )
        if needs_chain and placed:
            raise ReleaseError(
                "no-chain",
                "the data for %s cannot be verified before it is written: make the release anew, "
                "with mpota %s" % (payload.partition, __version__),
            )
        raise ReleaseError(
            "no-form", "the %s payload has no form that this board can use" % payload.kind
        )
    best = min(usable, key=lambda form: form.size)
    return [
        _make_item(payload, form, getattr(form, place), form is best, form in usable)
        for form in placed
    ]


def find_larger(release, item, error):
    """The next larger form of the payload of ``item``, which does not fit the heap: it is taken.

    Raises ``error`` if it says something else, if there is no such form, and if some of the app is
    written.
    """
    app = release._app
    is_lack = isinstance(error, MemoryError) or getattr(error, "code", "") == "memory"
    if not is_lack or (app and app.written):
        raise error
    payload = item.kind, item.sha256, item.partition
    larger = [
        other
        for other in release.items
        if other.is_usable
        and other.size > item.size
        and (other.kind, other.sha256, other.partition) == payload
    ]
    if not larger:
        raise error
    found = min(larger, key=lambda other: other.size)
    item.is_taken, found.is_taken = False, True
    return found


def _is_usable(form, kind, bases):
    if form.encoding is None:
        return True
    if form.encoding == "delta":
        return kind == "app" and form.base in bases
    return form.encoding == "deflate" and _decodes()


def _decodes():
    """Whether the part `encoded` of this package is installed."""
    found = base.installed()
    return found is None or "frames" in found or "encoded.pack" in found


def _check_product(manifest, name, version, force):
    """Name and version against those confirmed last, whatever was installed since."""
    if has_home() and not name:  # as ota 0.1 stored it
        from .boot import running

        found = running()
        name = found.get("name")
        version = version or found.get("version")
    name = name or None
    if not manifest.name or (force and name != manifest.name):
        return
    if name not in (None, manifest.name):
        raise ReleaseError(
            "wrong-name", "the release is '%s', this board has '%s'" % (manifest.name, name)
        )
    if version and not manifest.allow_downgrade and is_older(manifest.version, version):
        raise ReleaseError(
            "downgrade",
            "the release is %s, this board has confirmed %s: make it with --allow-downgrade"
            % (manifest.version, version),
        )
    oldest = manifest.from_version
    if oldest and not force and (not version or is_older(version, oldest)):
        raise ReleaseError(
            "from-version",
            "the release updates %s or newer, this board has %s"
            % (oldest, version or "no release that is known"),
        )


def _check_board(manifest):
    from .chips import running_chip

    chip = running_chip()
    if manifest.chip not in (None, chip):
        raise ReleaseError(
            "wrong-chip", "the release is for %s, this board is %s" % (manifest.chip, chip)
        )
    board = sys.implementation._machine
    if manifest.board not in (None, board, board.split(" with ")[0]):
        raise ReleaseError(
            "wrong-board", "the release is for '%s', this board is '%s'" % (manifest.board, board)
        )


def _check_modules(manifest):
    """Compiled modules come for the MicroPython that runs, if the release brings none."""
    needs = manifest.mpy
    if not needs or any(payload.kind == "app" for payload in manifest.payloads):
        return
    loads = getattr(sys.implementation, "_mpy", 0) & _MPY_MASK
    if needs != loads and needs != loads & 0xFF:
        raise ReleaseError(
            "mpy",
            "the modules are compiled for .mpy %#x, this board loads %#x: mpota bundle --mpy-for "
            "PORT" % (needs, loads),
        )


def _check_time(expires):
    if expires is None:
        return
    # With all of its digits, so that it compares as text.
    if "".join(["0" if c.isdigit() else c for c in expires]) != "0000-00-00T00:00:00Z":
        raise ReleaseError(
            "manifest", "manifest has expires '%s', not 2027-01-31T00:00:00Z" % expires
        )
    now = gmtime()
    if now[0] < _CLOCK_SET:
        raise ReleaseError(
            "clock",
            "the release expires on %s and the clock is not set (it says %d): set it first, "
            "for instance by ntptime.settime()" % (expires, now[0]),
        )
    if "%04d-%02d-%02dT%02d:%02d:%02dZ" % now[:6] >= expires:
        raise ReleaseError("expired", "the release expired on %s" % expires)
