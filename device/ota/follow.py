"""What all followers have in common, which poll a channel or a server for the life of an app.

This module stays in memory with the one that uses it (channel.py, ddi.py), and follow_ask.py
between polls: all that asks the network in an idle one, a single request, without a file being
read. What else there is to do is loaded for its step, and let go of.
"""

from os import urandom
from sys import modules
from time import sleep_ms, ticks_add, ticks_diff, ticks_ms

from micropython import const

from .base import unload

DAY = const(86400)
# Modules that are let go of when a step is over, but for those that were there before.
_PASSING = (
    "follow_ask channel_start channel_more channel_file mqtt_start mqtt_hello mqtt_facts "
    "mqtt_state ddi_start ddi_ask ddi_more ddi_offer ddi_take follow_more trial twin keys "
    "manifest chips confirm boot otadata http pump image slot begin ready finish failure local "
    "merged release tar policy files frames delta chain recovery http_ask http_connect "
    "http_resume tls_trust update"
)
_PACKAGE = __name__[:-6]  # with its dot


class Follower:
    """Polls, and installs what comes of it: `_turning`, of each kind, is one poll.

    The modules of its part use all of it, the methods that begin with "_" as well.
    """

    busy = False
    offer = error = None
    code = "new"
    reason = "not asked yet"

    def poll(self):
        """For apps with a loop of their own: call it often. Whether it was time, and a poll was
        made, with the update that came of it. What fails is in `error`.
        """
        if ticks_diff(self.due, ticks_ms()) > 0:
            return False
        pause = driven(self._turning())
        self.due = ticks_add(ticks_ms(), min(pause, 2 * DAY) * 1000)
        return True

    async def run(self):
        """Follow for the life of the app: one task. What fails is in `error`."""
        from asyncio import sleep_ms

        await sleep_ms(max(0, ticks_diff(self.due, ticks_ms())))
        while True:
            steps = self._turning()
            try:
                while True:
                    await sleep_ms(next(steps))
            except StopIteration as end:
                pause = end.value
            finally:
                steps.close()
            while pause > 0:
                await sleep_ms(min(pause, DAY) * 1000)
                pause -= DAY

    def _step(self, module, function, *args):
        """A generator: that of a module that is loaded for it."""
        return stepping(module, function, self, *args)

    def _call(self, module, function, *args):
        """Call a function of a module that is loaded for it."""
        before = _loaded()
        try:
            return _find(module, function)(self, *args)
        finally:
            unload(*[name for name in _loaded() if name not in before])

    def _exchanging(self, ask, limit=0):
        """A generator: send a request; (status, Retry-After or None, body).

        ``ask``: whether by TLS, host, port, name in the certificate, the request. ``limit``: bytes
        that the body may have, 0 where none is wanted. Where there is no answer, the status is what
        failed (dns, connection, tls), and the body the error: an OSError, or a ValueError.
        """
        from .follow_ask import exchanging

        return exchanging(self, ask, limit)


def stepping(module, function, *args, **more):
    """A generator: that of a module that is loaded for it."""
    before = _loaded()
    try:
        return (yield from _find(module, function)(*args, **more))
    finally:
        unload(*[name for name in _loaded() if name not in before])


def installing(module, function, *args, **more):
    """A generator: as `stepping`, with nothing in memory that it could do without."""
    unload("follow_ask")
    return stepping(module, function, *args, **more)


def driven(steps):
    """Run a generator that yields ms to wait, to its end; what it returns."""
    try:
        while True:
            sleep_ms(next(steps))
    except StopIteration as end:
        return end.value
    finally:
        steps.close()


def _find(module, function):
    name = _PACKAGE + module
    __import__(name)
    return getattr(modules[name], function)


def _loaded():
    """Those of `_PASSING` that are loaded."""
    return [name for name in _PASSING.split() if _PACKAGE + name in modules]


def random(count):
    """0 to ``count`` - 1."""
    return int.from_bytes(urandom(4), "little") % count if count > 0 else 0
