"""Follows a channel: a signed file on any web server that says which release which board takes.

    channel = ota.channel.Channel("https://files.example.org/pump", name="pump")
    asyncio.create_task(channel.run())

This module stays in memory, with follow.py, and is all that a poll needs whose answer is "not
modified". What begins (channel_start.py), reads what is published (channel_more.py,
channel_file.py) and keeps account of what is installed (follow_more.py) is loaded for that, and let
go of. The file's format: docs/channel_file.md.
"""

import gc
from hashlib import sha256
from time import ticks_diff, ticks_ms

from micropython import const

from .base import OTAError, ReleaseError
from .follow import Follower, driven, installing, random

_LOOK_AGAIN = const(600)  # seconds after which a file is asked for again before the switch


class Channel(Follower):
    """Follows the channel ``channel`` in the directory ``url``, for the product ``name``.

    ``may_install(offer)`` is the app's say before an update begins: True is yes, False no to this
    release, None later. ``busy``, an attribute: nothing begins while it is set. ``progress(done,
    total)``: bytes, as of ota.release.install. ``restart()`` is called when the release needs it,
    machine.reset() by default. ``needs_clock``: start nothing while the clock is not set.
    ``log(text)`` is told what changes. ``request``: see HttpSource.

    ``code`` (a word) and ``reason`` (in words) say why nothing is installed at present, ``error``
    is the OTAError of the last poll, None if that went well. ``offer``: what this board may take,
    or None: an object with ``version``, ``counter``, ``share``, and ``url``, ``size`` and
    ``sha256`` (bytes) of its manifest.

    Raises OTAError ("no-key") on a board that trusts no key.
    """

    # channel_start.py has what else there is.

    def __init__(self, url, name, channel="stable", **options):
        self._call("channel_start", "begin", url, name, channel, options)

    def check(self, by_hand=False):
        """Ask now: an offer that may be installed now, else None, and `reason` says why.

        ``by_hand``: a person asks: share and spread are not waited for. Raises OTAError.
        """
        driven(self._step("channel_more", "checking", by_hand, not self.is_known))
        return None if self.code else self.offer

    def update(self, by_hand=False):
        """Ask, and install what there is; whether there was anything. Raises OTAError.

        The app's `may_install` is asked unless it is ``by_hand``.
        """
        return driven(self._updating(by_hand, not self.is_known))

    def wake(self, memory=None, slept_s=None):
        """For boards that wake from deep sleep: one poll if it is time for it, with the update that
        comes of it. The seconds until the next one is due: sleep as long as you like.

        ``memory``: a bytearray of 10 bytes or more that lasts in sleep, from machine.RTC().memory()
        and back to it. Without it, ``slept_s`` is how long the board slept: whether it is time is
        drawn by lot then, so that it comes as often in the end; without both it always is.
        """
        is_full, pause = self._call("channel_more", "plan_wake", memory, slept_s)
        if pause:
            return pause
        pause = driven(self._turning(is_full))
        if memory:
            self._call("channel_more", "note_wake", memory, is_full, pause)
        return pause

    # --- one poll, and what comes of it

    def _turning(self, is_full=False, by_hand=False, accept=None):
        """A generator: one poll. The seconds until the next one.

        ``accept(offer)``: somebody else says whether one is to be installed (mqtt.py).
        """
        before = self.reason
        pause = 0
        try:
            is_full = is_full or ticks_diff(self.full_due, ticks_ms()) <= 0
            if is_full or not self.is_idle or not (yield from self._asking()):
                yield from self._updating(by_hand, is_full, accept)
            self.error = None
            self.failures = 0
        except OTAError as error:
            pause = self._call("follow_more", "back_off", error)
        if not pause:
            pause = self.poll_s * 3 // 4 + random(self.poll_s // 2 + 1)
            if self.offer:
                pause = self._call("channel_more", "until_offer", pause)
        if self.reason != before:
            self.log(self.reason)
        gc.collect()
        return pause

    def _updating(self, by_hand, is_full, accept=None):
        """A generator: read what is published, and install what there is; whether that was done.

        The app is asked unless it is ``by_hand``, without ``accept`` as `_turning` has it.
        """
        while True:
            yield from self._step("channel_more", "checking", by_hand, is_full)
            if self.code or not self.offer or self._call("channel_more", "is_taken"):
                return False
            if accept and not accept(self.offer):
                return False
            offer = self.offer
            if not self._call(
                "follow_more", "begin", "channel", offer.serial, by_hand and not accept
            ):
                return False
            try:
                is_restart_due = yield from self._installing(by_hand)
                break
            except OTAError as error:
                self._call("follow_more", "account", error)
                if error.code != "again":
                    raise
                is_full = False  # it has been asked for, before the switch: there is another one
        self._call("follow_more", "end", is_restart_due)
        if is_restart_due:
            self._call("follow_more", "restart")
        return True

    def _installing(self, by_hand):
        """A generator: `installing` of release.py, with nothing else in memory but this module."""
        return installing(
            "release",
            "installing",
            self.offer.url,
            dict(self.request, origin=self.url),  # which alone is told secrets
            self.progress,
            check=self._check,
            before_switch=lambda: self._looking_again(by_hand),
        )

    def _check(self, data, entry=None):
        """Raises ReleaseError ("pin") unless a manifest, or what was found in it, is the one that
        the channel names.
        """
        offer = self.offer
        if entry:
            is_good = (entry["counter"], entry.get("version", offer.version)) == (
                offer.counter,
                offer.version,
            )
        else:
            is_good = len(data) == offer.size and sha256(data).digest() == offer.sha256
        if not is_good:
            raise ReleaseError("pin", "%s is not what the channel says of it" % offer.url)

    def _looking_again(self, by_hand):
        """A generator: before the switch, if the channel file was read long ago. Raises OTAError.

        There is no memory to read another one now: it is asked for, and ends this, with the code
        "again". What has been loaded is gone on with then.
        """
        limit = max(self.poll_s, _LOOK_AGAIN) * 1000
        if not 0 <= ticks_diff(ticks_ms(), self.read_at) < limit:
            is_same = self.ask and (yield from self._asking())
            self._call("channel_more", "look_again", is_same, by_hand)
        self._call("follow_more", "switching")

    def _asking(self):
        """A generator: whether the server says that the file is still the one with our ETag.

        If not, `answer` is (status, Retry-After), or (what failed, the error), for channel_more.py
        to act on.
        """
        status, after, error = yield from self._exchanging(self.ask)
        self.answer = status, error or after
        return status == 304
