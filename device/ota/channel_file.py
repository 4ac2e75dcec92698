"""Reads a channel file, and finds what it has for this board: docs/channel_file.md.

Loaded where there is a new one, and let go of again. Nothing of it counts before all of it is
found good; what has to last is stored then, in one write.
"""

import struct
import sys
from hashlib import sha256

from machine import unique_id
from micropython import const

from . import base, otadata
from .base import OTAError, ReleaseError, is_older, unload
from .channel_more import gmtime, seconds
from .channel_start import (
    DIGEST,
    FORMAT,
    FRESH_KEY,
    ISSUED,
    KEY,
    KEYS,
    NO_KEY,
    SEEN,
    SERIAL,
    STATE,
    STATE_SIZE,
    number,
    whose,
)
from .twin import save_twin

_MAX_LINE = const(8192)
_MAX_FRESH_LINE = const(1024)
_MAX_ENTRIES = const(16)
_MAX_MANIFEST = const(8192)
_MAX_SPREAD = const(2592000)
_SHARES = const(10000)
_DAYS = b"\x1f\x1d\x1f\x1e\x1f\x1e\x1f\x1f\x1e\x1f\x1e\x1f"  # of the months


class Offer:
    """A release that this board may take: see Channel."""


# --- reading


class _Facts:
    """What is known of this board's keys: of keys.Trust, without its module."""

    retired = ()


def _verify(data, limit, trusted=None):
    """(the line, its digest, the key that signed it, _Facts). Raises OTAError.

    ``trusted``: the keys that may have signed, those of the board if it is not given.
    """
    end = bytes(data).find(b"\n") + 1
    if not end or end > limit:
        raise _error("its line is longer than %d bytes" % limit)
    from .keys import check_blocks, load, pad

    trust = load()
    facts = _Facts()
    facts.trusted, facts.retired = trusted or trust.trusted, trust.retired
    facts.counter, facts.name, facts.version = trust.counter, trust.name, trust.version
    if not trust.trusted:
        raise OTAError("no-key", "this board trusts no key any more: mpota install PORT --key")
    view = memoryview(data)
    digest = pad(sha256(view[:end]), end)
    key = check_blocks(digest, view[end:], facts)
    trust = check_blocks = load = pad = None
    unload("keys")
    return view[:end], digest, key, facts


def _parse(line, kind):
    """The Fields of a file of this type. Raises ReleaseError."""
    from .manifest import Fields, parse

    try:
        fields = Fields(parse(line), kind + " file")
        found = fields.text("type")
        if found != kind:
            raise _error("it is a file of type '%s', not %s" % (found, kind))
        if fields.number("format", 1) != 1:
            raise _error("it has a format of a later ota: mpota install PORT")
    except ReleaseError as error:
        raise _renamed(error)
    return fields


def _error(text):
    return ReleaseError("channel", "the channel file is refused: " + text)


def _renamed(error):
    """An error of manifest.py about the JSON, renamed to one about the channel."""
    if error.code != "manifest":
        return error
    return _error(str(error))


def _take_time(fields, key, is_due=True):
    """Seconds since 2000."""
    if not is_due and key not in fields.found:
        return None
    text = fields.text(key, "0123456789-:TZ", 20)
    if "".join(["0" if c.isdigit() else c for c in text]) == "0000-00-00T00:00:00Z":
        time = [int(text[at : at + size]) for at, size in _PLACES]
        year, month, day, hour, minute, second = time
        if (
            2000 <= year < 2100
            and 1 <= month <= 12
            and 1 <= day <= _DAYS[month - 1]
            and (month, day, bool(year % 4)) != (2, 29, True)
            and hour < 24
            and minute < 60
            and second < 60
        ):
            return seconds(time)
    raise _error("%s is '%s', not 2027-01-31T00:00:00Z" % (key, text))


_PLACES = ((0, 4), (5, 2), (8, 2), (11, 2), (14, 2), (17, 2))


def _take_head(channel, fields):
    """(serial, issued, expires) of a file that is of this channel."""
    name = fields.text("name", _WORD + " ")
    if name != channel.name:
        raise ReleaseError(
            "wrong-name", "the channel is of '%s', this board follows '%s'" % (name, channel.name)
        )
    name = fields.text("channel", _WORD, 32)
    if name != channel.channel:
        raise ReleaseError(
            "wrong-channel",
            "the file is of channel '%s', this board follows '%s'" % (name, channel.channel),
        )
    serial = fields.number("serial", 1)
    issued = _take_time(fields, "issued")
    expires = _take_time(fields, "expires")
    if expires <= issued:
        raise _error("it expires before it was issued")
    return serial, issued, expires


_WORD = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"


class _Entry:
    pass


def _read_entry(item, number):
    from .manifest import Fields

    fields = Fields(item, "release %d" % number)
    entry = _Entry()
    entry.version = fields.version("version")
    entry.counter = fields.number("counter", 1)
    entry.chip = fields.text("chip", _WORD + " ", 64, None)
    entry.board = fields.text("board", None, 100, None)
    entry.url = fields.text("manifest", None, 255)
    entry.size = fields.number("size", 1)
    entry.sha256 = fields.digest("sha256")
    entry.oldest = fields.version("from", None)
    entry.share = fields.number("share", 0, _SHARES)
    entry.salt = fields.text("salt", None, 64, None)
    entry.begins = _take_time(fields, "begins", False)
    entry.spread = fields.number("spread", 0, 0)
    entry.state = fields.text("state", _WORD, 16, None)
    fields.end()
    for what, is_good in (
        ("manifest", " " not in entry.url and entry.url[-5:] == ".json" and len(entry.url) > 5),
        ("size", entry.size <= _MAX_MANIFEST),
        ("share", entry.share <= _SHARES),
        ("spread", entry.spread <= _MAX_SPREAD),
        ("state", entry.state in (None, "paused", "withdrawn")),
    ):
        if not is_good:
            raise _error("release %d has another '%s' than there may be" % (number, what))
    return entry


def read_fresh(channel, data):
    """(until when, of which channel file, signed by which key). Raises ReleaseError."""
    line, _, key, _ = _verify(data, _MAX_FRESH_LINE, [channel.state[FRESH_KEY:SEEN]])
    fields = _parse(line, "fresh")
    try:
        serial, _, expires = _take_head(channel, fields)
        digest = bytes.fromhex(fields.digest("sha256"))
        fields.end()
    except ReleaseError as error:
        raise _renamed(error)
    if serial < number(channel.state, SERIAL):
        raise ReleaseError("serial", "the fresh file is of serial %d, which is over" % serial)
    return expires, digest, key


# --- taking


def take(channel, data, by_hand, tag):
    """Take a channel file: its offer goes into ``channel``. On OTAError nothing has changed."""
    line, digest, key, facts = _verify(data, _MAX_LINE)
    fields = _parse(line, "channel")
    line = data = None
    try:
        serial, issued, expires = _take_head(channel, fields)
        poll = fields.number("poll", 60, 3600)
        if poll > 86400:
            raise _error("poll is %d, at most 86400" % poll)
        fresh_key = fields.digest("fresh_key", None)
        items = fields.take("releases", list)
        fields.end()
        if len(items) > _MAX_ENTRIES:
            raise _error("it has %d releases, at most %d" % (len(items), _MAX_ENTRIES))
        entries = [_read_entry(item, number) for number, item in enumerate(items)]
    except ReleaseError as error:
        raise _renamed(error)
    fields = items = None
    unload("manifest")
    kinds = [(entry.counter, entry.chip, entry.board) for entry in entries]
    if len(set(kinds)) < len(kinds):
        raise _error("it has two releases with one counter for the same hardware")
    if facts.name not in ("", channel.name):
        raise ReleaseError(
            "wrong-name",
            "the channel is of '%s', this board has '%s'" % (channel.name, facts.name),
        )
    state = channel.state
    _check_serial(state, serial, digest, facts.trusted)
    before = channel.offer, channel.code, channel.reason
    channel.offer = None
    try:
        _decide(channel, entries, facts, serial, issued, by_hand)
        _store(channel, digest, key, (serial, issued, expires, poll), fresh_key, tag)
    except OTAError:
        channel.offer, channel.code, channel.reason = before
        raise
    channel.is_known = True


def _check_serial(state, serial, digest, trusted):
    """Raises ReleaseError for a file that is older than one that was accepted."""
    if not state or state[KEY:FRESH_KEY] not in trusted:
        return  # its key is no longer trusted: serials begin anew
    known = number(state, SERIAL)
    if serial < known:
        raise ReleaseError(
            "serial", "the channel file has serial %d, this board has seen %d" % (serial, known)
        )
    if serial == known and digest != state[DIGEST:ISSUED]:
        raise ReleaseError(
            "same-serial", "there are two channel files with serial %d: this is the other" % serial
        )


def _store(channel, digest, key, numbers, fresh_key, tag):
    """Store the state in NVS, in one write, if it changed."""
    serial, issued, expires, poll = numbers
    state = channel.state
    offer = channel.offer
    seen, seen_at = bytes(8), 0
    if state:
        seen, seen_at = state[SEEN : SEEN + 8], number(state, SEEN + 8)
    if offer and offer.sha256[:8] != seen:
        seen, seen_at = offer.sha256[:8], seconds(gmtime())
    if offer:
        offer.seen = seen_at

    def make(generation):
        head = struct.pack(
            STATE, FORMAT, generation, 1 if offer else 0, whose(channel.name, channel.channel),
            serial, digest, issued, expires, poll, key,
            bytes.fromhex(fresh_key) if fresh_key else NO_KEY, seen, seen_at,
        )  # fmt: skip
        return head + (tag or "").encode()

    new = make(0)
    # Beside its generation, and an ETag, of which the newest is remembered until the next start.
    if not state or new[5:STATE_SIZE] != state[5:STATE_SIZE]:
        save_twin(KEYS, make)
        channel.state = new


# --- the decision


def _decide(channel, entries, facts, serial, issued, by_hand):
    """Set ``offer``, or ``code`` and ``reason``, of ``channel``."""
    from .trial import REFUSED, STARTED, load

    trial = load()
    from .chips import running_chip

    chip, board = running_chip(), sys.implementation._machine
    version = facts.version
    if otadata.has_home() and not facts.name:  # as ota 0.1 stored it: policy.py
        from .boot import running

        version = running().get("version", "")
    best = None
    why = (0, "current", "%s is the newest for this board" % (version or "what runs"))
    boards = None, board, board.split(" with ")[0]
    for entry in entries:
        if entry.chip not in (None, chip) or entry.board not in boards:
            continue
        if entry.counter <= facts.counter:
            if entry.state == "withdrawn" and entry.counter == facts.counter:
                why = max(why, (1, "withdrawn", "%s, which runs, was withdrawn" % entry.version))
            continue
        digest = bytes.fromhex(entry.sha256)
        bucket, delay = _place(entry)
        code = text = None
        if entry.state == "withdrawn":
            code, text = "withdrawn", "was withdrawn"
            if trial.digest == digest and trial.stage == STARTED:
                base.forget_attempt()  # the slot holds a part of it, which is of no use now
        elif trial.has_failed(digest):
            code, text = "failed", "has failed on this board"
        elif trial.stage == REFUSED and trial.digest == digest and trial.tag == serial:
            code, text = "refused", "cannot be installed: " + trial.why
        elif digest == channel.refused:
            code, text = "declined", "is not wanted by the app"
        elif entry.oldest and (not version or is_older(version, entry.oldest)):
            code, text = "stepping-stone", "updates %s or newer" % entry.oldest
        elif entry.state == "paused":
            code, text = "paused", "is paused"
        elif bucket >= entry.share and not by_hand:
            text = "is not for this board yet (part %d, share %d)" % (bucket, entry.share)
            code = "share"
        if code:
            why = max(why, (1 + entry.counter, code, "%s %s" % (entry.version, text)))
        elif best is None or entry.counter > best.counter:
            best = entry
            best.delay = delay
    if best:
        channel.offer = _make_offer(channel, best, issued, serial)
    channel.code, channel.reason = ("", "") if best else why[1:]


def _place(entry):
    """(bucket, seconds of delay) of this board."""
    sha = sha256((entry.salt or entry.sha256).encode())
    sha.update(b"\0")
    sha.update(unique_id())
    bucket, delay = struct.unpack_from(">II", sha.digest())
    return bucket % _SHARES, delay % entry.spread if entry.spread else 0


def _make_offer(channel, entry, issued, serial):
    from .http_connect import resolve

    offer = Offer()
    offer.version = entry.version
    offer.counter = entry.counter
    offer.share = entry.share
    offer.url = resolve(channel.url, entry.url)
    offer.size = entry.size
    offer.sha256 = bytes.fromhex(entry.sha256)
    offer.begins = issued if entry.begins is None else entry.begins
    offer.delay = entry.delay
    offer.seen = 0
    offer.serial = serial
    return offer
