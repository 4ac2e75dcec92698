"""A poll that may find something: asks, has read what is new (channel_file.py), and judges whether
the time has come. Loaded for that; see channel.py.
"""

import struct
from time import gmtime, ticks_add, ticks_ms

from micropython import const

from . import base
from .base import ReleaseError, SourceError, StateError
from .channel_start import (
    DIGEST,
    EXPIRES,
    FRESH_KEY,
    ISSUED,
    NO_KEY,
    POLL,
    SEEN,
    file_url,
    number,
    set_ask,
)
from .follow import DAY, random

_MAX_SIZE = const(11840)  # of a channel file
_MAX_FRESH = const(4672)  # of a fresh file
_MAX_TAG = const(96)
_MEMORY = "<IIBB"  # of `wake`: when the next poll is due, when all was read; failures; a mark
_MEMORY_SIZE = const(10)
_MARK = const(0xC5)
_SOON = const(60)  # seconds until an app that said "later" is asked again
_CLOCK_SET = const(2025)  # an earlier year means that the clock was never set


def checking(channel, by_hand, is_full):
    """A generator: ask, read what is new, and judge. Raises OTAError; else see `Channel.code`."""
    state = channel.state
    answer = channel.answer
    channel.answer = None
    if not state or by_hand or (state[5] & 1 and not channel.is_known):
        is_full = True
    is_same = False
    if not is_full and channel.ask and not answer:
        is_same = yield from channel._asking()
        answer = channel.answer
        channel.answer = None
    if answer and not is_same:
        channel._call("follow_more", "check_answer", file_url(channel), *answer)
    if not is_same:
        try:
            yield from _reading(channel, by_hand)
        except MemoryError as error:
            raise base.no_memory(error, channel.url)
        channel.poll_s = number(channel.state, POLL)
        channel.full_due = ticks_add(ticks_ms(), (DAY - random(DAY // 4)) * 1000)
    elif not channel.is_known:
        channel.code, channel.reason = "current", "nothing has changed"
    channel.read_at = ticks_ms()
    judge(channel, by_hand)
    channel.is_idle = bool(channel.ask and not channel.offer)


def _reading(channel, by_hand):
    """A generator: fetch what is published, and take it. Raises OTAError.

    Where there is a fresh file, it alone is asked for, if it names the channel file that is known.
    """
    tag = None
    if file_url(channel) == channel.url:
        tag = yield from _taking(channel, by_hand)
    if file_url(channel) != channel.url:
        tag = yield from _refreshing(channel, by_hand)
    set_ask(channel, tag)


def _taking(channel, by_hand):
    """A generator: fetch and take the channel file; returns its ETag."""
    data, tag = yield from channel._step("channel_more", "fetching", channel.url, _MAX_SIZE)
    channel._call("channel_file", "take", data, by_hand, tag)
    return tag


def _refreshing(channel, by_hand):
    """A generator: the ETag of the fresh file, None if there is no good one."""
    tag = fresh = problem = None
    try:
        data, tag = yield from channel._step(
            "channel_more", "fetching", file_url(channel), _MAX_FRESH
        )
        fresh = channel._call("channel_file", "read_fresh", data)
    except ReleaseError as error:
        problem = error
    except SourceError as error:
        if error.status not in (403, 404, 410):
            raise
        problem = error  # the channel file may no longer ask for a fresh file
    data = None
    if not channel.is_known or by_hand or not fresh or fresh[1] != channel.state[DIGEST:ISSUED]:
        tag_of_channel = yield from _taking(channel, by_hand)
        if file_url(channel) == channel.url:
            return tag_of_channel
    channel.fresh = 0
    if fresh and fresh[1:] == (channel.state[DIGEST:ISSUED], channel.state[FRESH_KEY:SEEN]):
        channel.fresh = fresh[0]
        return tag
    channel.log("fresh file: %s" % (problem or "it is of another channel file"))
    return None


def fetching(channel, url, limit):
    """A generator: (all bytes, ETag or None) of a small file. Raises SourceError."""
    from .pump import make_source, read_full

    options = dict(channel.request)
    options.update({"limit": limit, "max_failures": 1})
    source = make_source(url, **options)
    try:
        yield from source.opening()
        data = bytearray(limit if source.size is None else source.size)
        have = yield from read_full(source, memoryview(data))
        tag = source.validator
    finally:
        source.close()
    if have < len(data):
        data = data[:have]
    if not data or data[0] != 0x7B:  # {
        raise SourceError("protocol", "%s is no file of ours: it does not begin with {" % url)
    is_tag = tag and tag[0] in '"W' and len(tag) <= _MAX_TAG
    return data, tag if is_tag else None


def judge(channel, by_hand):
    """Set `code` and `reason`: whether the time has come for the offer."""
    time = now(channel)
    state = channel.state
    offer = channel.offer
    if offer:
        channel.code, channel.reason = "", "%s may be installed" % offer.version
    if time is None:
        if offer and channel.needs_clock:
            channel.code, channel.reason = "clock", "the clock is not set"
    elif time >= number(state, EXPIRES):
        channel.code, channel.reason = "expired", "the channel file has expired"
    elif state[FRESH_KEY:SEEN] != NO_KEY and time >= channel.fresh:
        channel.code, channel.reason = "fresh", "nothing fresh says that the channel is current"
    if offer and not channel.code and not by_hand:
        seconds_left = left(channel)
        if seconds_left:
            channel.code = "spread"
            channel.reason = "%s: its turn comes in %d s" % (offer.version, seconds_left)


def is_taken(channel):
    """Whether the offer has been taken since it was found."""
    offer = channel.offer
    from .keys import load

    counter = load().counter
    del load
    base.unload("keys")
    if counter < offer.counter:
        return False
    channel.offer = None
    channel.is_known = False  # so that the next poll looks for the release after it
    channel.code, channel.reason = "current", "%s is installed" % offer.version
    return True


def look_again(channel, is_same, by_hand):
    """Before the switch. Raises StateError ("again") if another channel file may be there."""
    offer = channel.offer
    if not is_same:
        raise StateError("again", "%s waits: the channel may have changed" % offer.version)
    channel.read_at = ticks_ms()
    judge(channel, by_hand)
    if channel.code:
        raise StateError("again", "%s waits: %s" % (offer.version, channel.reason))


def left(channel):
    """Seconds until the offer may start; 0: it may."""
    offer = channel.offer
    time = now(channel)
    if time is not None:
        return max(0, offer.begins + offer.delay - time)
    return max(0, offer.delay - max(0, seconds(gmtime()) - offer.seen))


def now(channel):
    """Seconds since 2000; None where the clock is not set, as one that is before `issued`."""
    time = gmtime()
    found = seconds(time)
    if time[0] < _CLOCK_SET or found < number(channel.state, ISSUED):
        return None
    return found


def until_offer(channel, pause):
    """Seconds until an offer that waits is looked at again; ``pause``: until the next poll."""
    if channel.code in ("later", "busy", "unconfirmed"):
        return min(pause, _SOON)
    if channel.code == "spread":
        return min(pause, max(left(channel), 1))
    return pause


# --- time, also of boards that sleep


def seconds(time):
    """Seconds since 2000 of (year, month, day, hour, minute, second, ...), from 2000 to 2099."""
    year, month, day, hour, minute, second = time[:6]
    days = (year - 2000) * 365 + (year - 1997) // 4 + (367 * month - 362) // 12 + day - 1
    if month > 2:
        days -= 2 if year % 4 else 1
    return ((days * 24 + hour) * 60 + minute) * 60 + second


def plan_wake(channel, memory, slept_s):
    """(whether to ask for all, seconds to wait before asking at all): see `Channel.wake`."""
    if not memory:
        if slept_s and random(channel.poll_s) >= slept_s:
            return False, channel.poll_s
        return random(DAY) < channel.poll_s, 0
    now = seconds(gmtime())
    due, full, failures = _read_memory(memory)
    channel.failures = failures
    return not 0 <= now - full < DAY, due - now if 0 < due - now <= 2 * DAY else 0


def note_wake(channel, memory, is_full, pause):
    now = seconds(gmtime())
    full = now if is_full and not channel.error else _read_memory(memory)[1]
    struct.pack_into(_MEMORY, memory, 0, now + pause, full, channel.failures, _MARK)


def _read_memory(memory):
    if len(memory) < _MEMORY_SIZE:
        raise ValueError("memory is %d bytes, %d are due" % (len(memory), _MEMORY_SIZE))
    if memory[_MEMORY_SIZE - 1] != _MARK:
        return 0, 0, 0
    return struct.unpack_from(_MEMORY, memory)[:3]
