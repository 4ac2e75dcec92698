"""Follows an Eclipse hawkBit server, or another one that speaks its Direct Device Integration API.

    client = ota.ddi.Client("https://hawkbit.example.org", "DEFAULT", "pump-7", token="...")
    asyncio.create_task(client.run())

This module stays in memory, with follow.py, and is all that a poll needs whose answer has nothing
new. What begins (ddi_start.py), asks (ddi_ask.py), acts on it (ddi_more.py), reads a deployment
(ddi_offer.py), installs it (ddi_take.py) and keeps account of that (follow_more.py) is loaded for
that, and let go of.
"""

import gc

from micropython import const

from .base import OTAError, no_memory
from .follow import DAY, Follower, driven, installing

MAX_POLL = const(2048)  # bytes of the answer to a poll
_MAX_STEPS = const(8)  # requests to act on in one poll: a cancel, a report, a deployment, ...
_SOON = const(60)  # seconds until what waits here is looked at again
_LEAST = const(5)
_WAITING = " busy later waiting unconfirmed "
_FAILURES = " refused failed "
# Links of a poll's answer that ask for something.
_LINKS = (b"deploymentBase", b"cancelAction", b"confirmationBase", b"configData")


class Client(Follower):
    """The device ``id`` of ``tenant`` at the server ``url``: without one, as `mpota fleet add` has
    told the board, with the token.

    ``token`` is the device's own, ``gateway_token`` one for all devices: with neither the server
    must know the board by something else. ``may_install(offer)`` is the app's say before an
    update begins: True is yes, False no to this one, which is reported, None later; where the
    server wants consent (``offer.needs_consent``), True gives it, and False denies it. ``busy``,
    an attribute: nothing begins while it is set. ``attributes``: more of them for the server, a
    dict, or a function that makes it. ``progress(done, total)``, ``restart()``, ``log(text)``: as
    of a Channel. ``request``: see HttpSource.

    ``code`` (a word) and ``reason`` (in words) say what it does at present, ``error`` is the
    OTAError of the last poll, None if that went well. ``offer``: what the server wants installed,
    or None: an object with ``action``, ``version``, ``filename``, ``size``, ``is_forced``,
    ``needs_consent``.

    Raises SourceError ("address"), or what certificates that cannot be had raise.
    """

    # ddi_start.py has what else there is.

    def __init__(self, url="", tenant="", id="", token=None, gateway_token=None, **options):
        self._call("ddi_start", "begin", url, tenant, id, token, gateway_token, options)

    def update(self):
        """Ask now, and do what the server wants; whether something was installed.

        Raises OTAError.
        """
        return driven(self._updating())

    def _turning(self):
        """A generator: one poll, and what comes of it. The seconds until the next one."""
        before = self.reason
        pause = 0
        try:
            yield from self._updating()
            self.error = None
            self.failures = 0
        except OTAError as error:
            pause = self._call("follow_more", "back_off", error)
        if not pause:
            pause = self.poll_s
            if " %s " % self.code in _WAITING:
                pause = min(pause, _SOON)
        if self.reason != before:
            self.log(self.reason)
        gc.collect()
        return pause

    def _updating(self):
        """A generator: ask, and act; whether something was installed."""
        is_installed = False
        try:
            for _ in range(_MAX_STEPS):
                answer = yield from self._exchanging(self.ask, MAX_POLL)
                if answer[0] == 200 and self.is_idle and self._is_quiet(bytes(answer[2])):
                    break
                word = yield from self._step("ddi_more", "answering", *answer)
                answer = None
                if word == "install":
                    is_installed = yield from self._installing()
                elif word != "again":
                    break
        except MemoryError as error:
            raise no_memory(error, self.url)
        return is_installed

    def _installing(self):
        """A generator: install the offer; whether that was done."""
        try:
            module, function, args, more = self._call("ddi_take", "plan")
            is_restart_due = yield from installing(module, function, *args, **more)
        except OTAError as error:
            self._call("follow_more", "account", error)
            if error.code == "window":
                yield from self._step("ddi_more", "downloaded")
            elif error.code != "again" and self.code not in ("failed", "refused"):
                raise
            return False
        yield from self._step("ddi_more", "installed", is_restart_due)
        return True

    def _looking_again(self):
        return self._step("ddi_take", "looking_again")

    def _check(self, data, entry=None):
        if data is not None:
            self._call("ddi_take", "check", data)

    def _is_quiet(self, body):
        """Whether the answer to a poll asks for nothing."""
        if any(link in body for link in _LINKS):
            return False
        parts = body.partition(b'"sleep"')[2].split(b'"')
        if len(parts) < 2:
            return False
        self._set_sleep(parts[1])
        self._rest()
        return True

    def _rest(self):
        """Note that the server asks for nothing; the code of the last failure stays."""
        self.offer = None
        if " %s " % self.code not in _FAILURES:
            self.code, self.reason = "current", "there is nothing to do"

    def _set_sleep(self, text):
        """Set the pause between polls from HH:MM:SS; another text changes nothing."""
        parts = text.split(b":" if isinstance(text, bytes) else ":")
        if len(parts) == 3 and all(part.isdigit() and len(part) < 4 for part in parts):
            seconds = (int(parts[0]) * 60 + int(parts[1])) * 60 + int(parts[2])
            self.poll_s = max(_LEAST, min(seconds, DAY))
