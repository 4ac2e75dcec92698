"""Before the first request: whether the board is ready, and what its slot holds already.

Loaded for that.
"""

import gc
import struct
from hashlib import sha256

from micropython import const

from . import base, otadata
from .base import ImageError, OTAError, ReleaseError, SourceError, unload
from .pump import LIMIT, is_url, open_source

_SECTOR = const(4096)
_HEAD_SIZE = const(32)  # of an app: slot.py

_MAX_JSON = const(4096)
_JSON_KEYS = ("firmware", "sha", "length")

_RECORD_SIZE = const(81)  # update.py: RECORD
# Of version 0.1, which wrote the first bytes with the others: the same without kind and first
# bytes, and a digest before the name.
_OLD_KEY = "download"
_OLD_RECORD = "<IIII32s32s"
_OLD_SIZE = const(80)


def check_ready(force):
    """The slot for the next update. Raises OTAError without one, or if what runs is unconfirmed."""
    part = otadata.find_next_slot()
    if not force:
        otadata.check_app_confirmed()
        if otadata.has_home():
            try:
                from .boot import check_confirmed
            except ImportError as error:
                from .status import missing

                raise missing(error)

            check_confirmed()
            del check_confirmed
            unload("boot")
    return part


# --- what is asked for


def expect(intake, sha, length, size):
    """What an Intake has to be: its `expect`."""
    if sha:
        try:
            intake.due = bytes.fromhex(sha)
        except ValueError:
            intake.due = b""
        if len(intake.due) != 32:
            raise ImageError("sha", "sha is %d characters, 64 hex digits are due" % len(sha))
        intake.sha = sha256()
    if length:
        intake.total = intake.length = length
    if size is not None and intake.length not in (None, size):
        raise ImageError("length", "the file has %d bytes (expect %d)." % (size, intake.length))


def preparing(intake, url, request_args, console, is_json):
    """A generator: URL and arguments of the source that `update.taking` is to bring."""
    args = {}
    if is_json:
        if not url.endswith(".json"):
            raise ValueError("Url does not end with '.json'")
        if console:
            console.say("Opening json file %s..." % url)
        args["origin"] = url  # wherever the firmware is
        url, sha, length = _read_json(url, **request_args)
        intake.expect(sha, length)
    if console:
        console.say("Opening firmware file %s..." % url)
    if is_url(url):
        args["sha"] = sha = (intake.due or b"").hex()
        args["trail"] = trail = make_trail()
        yield from recall(trail, sha or url)
        intake.note = trail.attach
        if console:
            args["log"] = console.say
    args.update(request_args)
    return url, args


def _read_json(url, **request_args):
    """(firmware, sha, length) of a JSON file as micropython-esp32-ota has them.

    A relative ``firmware`` is made relative to the file. Raises SourceError, and ReleaseError if it
    is the manifest of a release.
    """
    from json import loads

    request_args["limit"] = _MAX_JSON
    source = open_source(url, **request_args)
    try:
        data = memoryview(bytearray(_MAX_JSON + 1))
        data = bytes(data[: source.readinto(data)])
    finally:
        source.close()
    try:
        found = loads(data)
    except (ValueError, RuntimeError):  # RuntimeError: too deep for the interpreter's stack
        found = None
    what = None
    if not isinstance(found, dict):
        what = "it is no JSON object: it begins with %s" % str(data[:32])[1:]
    elif "payloads" in found:
        raise ReleaseError(
            "manifest", "%s is the manifest of a release: ota.release.install() takes it" % url
        )
    else:
        for key in _JSON_KEYS:
            if key not in found and not what:
                what = 'OTA json must include "firmware", "sha" and "length" keys, it has no "%s"'
                what = what % key
        firmware, sha, length = [found.get(key) for key in _JSON_KEYS]
        if not what and (
            not firmware
            or not isinstance(firmware, str)
            or not isinstance(sha or "", str)
            or type(length or 0) is not int
            or not 0 <= (length or 0) <= LIMIT
        ):
            what = "a value in it is of a wrong type, or out of range"
    if what:
        raise SourceError("json", "%s is not what updates are named by: %s" % (url, what))
    from .http_connect import resolve

    return resolve(url, firmware), sha or "", length or 0


def make_trail():
    """What the slot holds of an earlier attempt, and will hold of this one."""
    from .update import Trail

    return Trail(otadata.find_next_slot())


def recall(trail, name):
    """A generator: find out what the slot holds of the file ``name``. It yields 0."""
    from .update import KEY, KIND, MAX_VALIDATOR, RECORD

    trail.name = sha256(name.encode()).digest()
    data = base.recall(KEY, _RECORD_SIZE + MAX_VALIDATOR)
    if len(data) >= _RECORD_SIZE:
        kind, offset, start, end, total, name, head = struct.unpack(RECORD, data[:_RECORD_SIZE])
        validator = data[_RECORD_SIZE:]
        if kind != KIND:
            return
    else:
        data = base.recall(_OLD_KEY, _OLD_SIZE + MAX_VALIDATOR)
        if len(data) < _OLD_SIZE:
            return
        offset, start, end, total, _, name = struct.unpack(_OLD_RECORD, data[:_OLD_SIZE])
        validator = data[_OLD_SIZE:]
        head = None
    part = trail.part
    position = end - start
    if (name, offset) != (trail.name, part.info()[2]) or not 0 < position <= part.info()[3]:
        return
    if end >= total or position % _SECTOR:
        return
    try:
        trail.validator = str(validator, "ascii") or None
    except ValueError:
        return
    yield 0
    trail.head = head or take_head(part)
    trail.start = start
    trail.size = trail.saved = position
    trail.total = total


def take_head(part):
    """Take the first 32 bytes, as version 0.1 left them, out of the slot; they are returned."""
    sector = memoryview(bytearray(_SECTOR))
    part.readblocks(0, sector)
    part.ioctl(6, 0)
    part.writeblocks(0, sector[_HEAD_SIZE:], _HEAD_SIZE)
    return bytes(sector[:_HEAD_SIZE])


def reading_end(intake, source):
    """A generator: see `update.reading_end`."""
    from .keys import takes_images

    is_due = takes_images()
    del takes_images
    unload("keys")
    if is_due:
        end = bytearray(_SECTOR)
        try:
            yield from source.reading_end(end)
            intake.end = end
        except OTAError:  # it does not matter, if the file is a bundle
            pass


gc.collect()  # what loading left behind would divide a small heap
