"""Judges a release: is it for this board, is there room for it?

Loaded for that alone, and let go before the payloads come: code lives in the heap.
"""

import sys
from time import gmtime

from esp32 import Partition
from micropython import const

from . import boot, files, otadata
from .chips import chip_name
from .errors import ReleaseError, StateError
from .manifest import Manifest, version_key
from .release import Item
from .unconfirmed import check_confirmed

_CLOCK_SET = const(2025)  # a year before which no clock of a board stands that was ever set

# Data partitions that hold more than content: otadata, phy_init, nvs, nvs_keys, efuse.
_RESERVED_SUBTYPES = (0x00, 0x01, 0x02, 0x04, 0x05)


def judge(data, trust, place, force):
    """(what to remember of the release, its Items). Raises OTAError if it must not come in.

    ``data``: the manifest, whose signature was found good; ``trust``: this board's keys.Trust;
    ``place``: where this board gets payloads from, "member" or "url". Nothing is written.
    """
    manifest = Manifest(data)
    if not force:
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
    _check_keys(manifest, trust)
    bases = _bases(manifest)
    items = [item for payload in manifest.payloads for item in _choose(payload, place, bases)]
    _check_room(manifest.payloads, force)
    return _entry(manifest), items


def _entry(manifest):
    """What the record of an app partition says of the release (files.py)."""
    entry = {"counter": manifest.counter}
    if manifest.name:  # not of a manifest in the form of micropython-esp32-ota
        entry["name"] = manifest.name
        entry["version"] = manifest.version
    if manifest.add_keys or manifest.retire_keys:
        entry["add"] = list(manifest.add_keys)
        entry["retire"] = list(manifest.retire_keys)
    for payload in manifest.payloads:
        if payload.kind == "files":
            entry["sha256"] = payload.sha256
            entry["disk"] = payload.disk
    return entry


def _check_keys(manifest, trust):
    if not manifest.add_keys and not manifest.retire_keys:
        return
    if not trust.trusted:
        raise ReleaseError(
            "keys", "the manifest changes keys, and this board has none that could allow it"
        )
    trust.change(manifest.add_keys, manifest.retire_keys)


def _bases(manifest):
    """What deltas may start from: the digests (hex) of the app that runs, if it matters."""
    if any(form.encoding == "delta" for form in manifest.forms()):
        from .running import digests

        return digests()
    return ()


def _choose(payload, place, bases):
    """Items for all of a payload's forms; the smallest that this board can use is taken."""
    placed = [form for form in payload.forms if getattr(form, place) is not None]
    usable = [form for form in placed if _is_usable(form, payload.kind, bases)]
    if not usable:
        raise ReleaseError(
            "no-form", "the %s payload has no form that this board can use" % payload.kind
        )
    best = min(usable, key=lambda form: form.size)
    return [Item(payload, form, getattr(form, place), form is best) for form in placed]


def _is_usable(form, kind, bases):
    if form.encoding == "delta":
        return kind == "app" and form.base in bases
    return form.encoding in (None, "deflate")


def _check_room(payloads, force):
    """What does not fit is refused before anything is written."""
    files.check_space(0)
    gain = 0  # of the file system, by then
    for payload in payloads:
        if payload.kind == "app":
            part = otadata.find_next_slot()
            _check_size(payload.size, part, "app")
            gain = (boot.read_record(part) or {"now": {}})["now"].get("disk", 0)
        elif payload.kind == "files":
            files.check_space(payload.disk, gain)
            if not force and files.has_failed(payload.sha256):
                raise StateError(
                    "failed-version",
                    "these files have failed on this board before (they did not get "
                    "confirmed): not installed again without force=True",
                )
        elif payload.kind == "certs":
            files.check_space(payload.size, gain)
        else:
            _check_size(payload.size, _find_data(payload.partition), "data")


def _check_size(size, part, what):
    _, _, _, room, name, _ = part.info()
    if size > room:
        raise ReleaseError("too-long", "the %s is %d bytes, %s holds %d" % (what, size, name, room))


def _find_data(label):
    """The data partition that a payload may be written to. Raises ReleaseError if there is none."""
    found = Partition.find(Partition.TYPE_DATA, label=label)
    if not found:
        raise ReleaseError("no-partition", "this board has no data partition '%s'" % label)
    from flashbdev import bdev

    offset = found[0].info()[2]
    if found[0].info()[1] in _RESERVED_SUBTYPES or (bdev and bdev.info()[2] == offset):
        raise ReleaseError("no-partition", "partition '%s' is in use by the system" % label)
    return found[0]


def _check_product(manifest):
    installed = files.running() if boot.has_home() else {}
    name = installed.get("name")
    if name and manifest.name and name != manifest.name:
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
