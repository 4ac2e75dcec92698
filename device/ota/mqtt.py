"""Offers updates over MQTT: Home Assistant shows an update entity, and a press on it installs.

    updates = ota.mqtt.Updates(client.publish, channel, name="Pump")

takes what publishes of any client and a channel (channel.py). The broker can say "look", not
"what": a press has the channel asked, and what that offers is judged as ever. docs/guides/mqtt.md
has the lines for each client, and the topics.

This module stays in memory. What makes the messages (mqtt_hello.py, mqtt_state.py) is loaded for
that.
"""

from time import ticks_add, ticks_diff, ticks_ms

from micropython import const

from .base import SourceError, has_note
from .follow import DAY, driven

INSTALL = b"install"
_MAX_COMMAND = const(72)  # bytes: a version
_LOOK_AGAIN_MS = const(60000)  # a press that can mean nothing has the channel asked no more often
_QUIET_MS = const(60000)  # after a failure of the client, unless it connects before
_LOOK_MS = const(1000)  # between two looks at the note in NVS, which a trial that ends removes
_LOOKS = const(30)  # after so many looks also at records in files, which take longer to read
_PROGRESS_MS = const(10000)
_PROGRESS_STEP = const(5)  # percent
_SEND_S = const(30)  # that a message may take; only `run` can tell
_LOOP_MS = const(100)
_SPIN = const(-1)  # percent not known
_WAITS = " later busy unconfirmed "
_PROGRESS = b'{"in_progress": true, "update_percentage": %s}'


class Updates:
    """Shows the releases of ``channel``, and installs what is pressed.

    ``channel``: an ota.channel.Channel, or an ota.mqtt_manifest.Manifest.

    ``publish(topic, msg, retain, qos)``: a function of the client's, or a coroutine function.
    ``id``: of the board in topics, its unique id in hex by default; other characters than letters,
    digits, ``_`` and ``-`` are replaced. ``name``: what people call it. ``base``: where its topics
    are: base/id/status, base/id/update and base/id/install. ``discovery``: Home Assistant's
    prefix, None to leave that out. ``device``: further keys of its ``dev``, abbreviated.
    ``release_url``: of a page about releases. ``is_available``: False for boards that sleep.
    ``auto``: what the channel offers is installed as if its `run` did it, without a press.

    The channel is followed by this: call `run` or `poll` here, not there. Its ``may_install`` is
    asked before each installation, pressed or not.

    ``will``: (topic, msg, retain, qos), for the client, before it connects. Raises ValueError for
    topics that cannot be.
    """

    auto = False
    _subscribe = None  # of the client, while it is connected
    _is_new = False  # the greeting of a new connection is due
    _quiet = None  # ticks_ms() until which nothing is said, after a failure
    _is_stale = True  # the state may have changed
    _told = None  # CRC-32 of the state told last
    _percent = None  # of an installation, while there is one
    _told_percent = _told_at = 0
    _press = _word = b""  # the last command; the one that the poll under way serves
    _kept = b""  # a press that waits: for the app, or a server
    _is_trial = False  # one is under way
    _is_noted = False  # in NVS, which only those of apps are
    _look_at = _looks = 0  # ticks_ms() when it is looked whether it has ended; how often that was
    _is_async = _is_working = _is_restart_due = False

    def __init__(self, publish, channel, **options):
        self.publish = publish
        self.channel = channel
        channel._call("mqtt_start", "begin", self, options)

    # --- told by the client

    def connected(self, subscribe):
        """Each time that the client has connected; ``subscribe(topic, qos)`` is the client's.

        Nothing happens in it: `run` or `poll` subscribes, and says what is due.
        """
        self._subscribe = subscribe
        self._is_new = True
        self._quiet = None

    def message(self, topic, msg, *_):
        """For each message of the client. Notes a press, and publishes nothing.

        ``install`` means what the channel offers, a version that one and no other. All else is
        passed over.
        """
        if len(msg) > _MAX_COMMAND or len(topic) != len(self.topic) + 7:
            return
        topic, msg = [bytes(s.encode() if isinstance(s, str) else s) for s in (topic, msg)]
        channel = self.channel
        if topic != self.topic + INSTALL or not self._wants_word(msg):
            return
        if channel.is_known and not channel.offer:
            age = ticks_diff(ticks_ms(), channel.read_at)
            if 0 <= age < _LOOK_AGAIN_MS:
                return
        self._press = msg

    # --- the work

    def poll(self):
        """For apps with a loop of their own: call it often. Whether something was done.

        It says what is due, and asks the channel when it is time; an installation takes as long
        as it takes, and ends with the restart.
        """
        self._send()
        if not self._is_due():
            return False
        driven(self._turning())
        self._send()
        if self._is_restart_due:
            self._send(self._goodbye())
            self._restart()
        return True

    async def run(self):
        """For the life of the app: one task, with a client that is plain or asynchronous."""
        from asyncio import create_task, sleep_ms

        self._is_async = True
        while True:
            await self._sending()
            if not self._is_due():
                await sleep_ms(_LOOP_MS)
                continue
            self._is_working = True
            teller = create_task(self._telling())
            steps = self._turning()
            try:
                while True:
                    await sleep_ms(next(steps))
            except StopIteration:
                pass
            finally:
                steps.close()
                self._is_working = False
            await teller
            if self._is_restart_due:
                await self._sending()
                await self._sending(self._goodbye())
                self._restart()

    async def _telling(self):
        """Publish what changes while something is installed."""
        from asyncio import sleep_ms

        while self._is_working:
            await self._sending()
            await sleep_ms(_LOOP_MS)

    def _is_due(self):
        return self._press or ticks_diff(self.channel.due, ticks_ms()) <= 0

    def _turning(self):
        """A generator: ask the channel, and install what is wanted and may be."""
        channel = self.channel
        before = self._seen()
        word = self._word = self._press or self._kept
        self._press = self._kept = b""
        if word:
            self._percent = _SPIN
            self._send_now()
        try:
            pause = yield from channel._turning(bool(word), bool(word), self._wants)
        finally:
            if self._percent is not None or before != self._seen():
                self._is_stale = True
            self._percent = None
        if word and (
            " %s " % channel.code in _WAITS
            if not channel.error
            else isinstance(channel.error, SourceError)
        ):
            self._kept = word
        channel.due = ticks_add(ticks_ms(), min(pause, 2 * DAY) * 1000)

    def _seen(self):
        """The parts of the channel that a state shows; an idle poll changes none of them."""
        channel = self.channel
        reason = "" if channel.code == "spread" else channel.reason  # it has a number of seconds
        return channel.code, reason, channel.offer, str(channel.error)

    def _wants(self, offer):
        """Whether this offer is to be installed now, if the app says so as well."""
        return self.auto or (self._word and self._wants_word(self._word))

    def _wants_word(self, word):
        channel = self.channel
        offer = channel.offer
        return word == INSTALL or (offer and word == offer.version.encode())

    def _note_restart(self):
        """Replaces the channel's ``restart``, to publish something before."""
        self._is_restart_due = True

    def _restart(self):
        self._is_restart_due = False
        if self.restart:
            self.restart()
        else:
            from machine import reset

            reset()

    def _progress(self, done, total):
        if self.progress:
            self.progress(done, total)
        percent = min(done * 100 // total, 100) if total else _SPIN
        now = ticks_ms()
        if (
            self._percent is None
            or abs(percent - self._told_percent) >= _PROGRESS_STEP
            or not 0 <= ticks_diff(now, self._told_at) < _PROGRESS_MS
        ):
            self._percent = self._told_percent = percent
            self._told_at = now
            self._send_now()

    # --- what is said

    def _send_now(self):
        self._is_stale = True
        if not self._is_async:
            self._send()

    def _send(self, steps=None):
        """Publish by a client whose functions wait."""
        got = None
        try:
            for got in steps or self._due():
                if hasattr(got, "throw"):
                    break
        except Exception as error:  # whatever the app's client raises
            self._lost(error)
        if hasattr(got, "throw"):
            raise TypeError("publish is a coroutine function: `run` takes it, `poll` does not")

    async def _sending(self, steps=None):
        """Publish by a client of either kind."""
        try:
            for got in steps or self._due():
                if hasattr(got, "throw"):
                    from asyncio import wait_for

                    await wait_for(got, _SEND_S)
        except Exception as error:
            self._lost(error)

    def _lost(self, error):
        """The client has failed: all is published anew when it connects, or after a while."""
        self._is_new = True
        self._quiet = ticks_add(ticks_ms(), _QUIET_MS)
        self.channel.log("MQTT: %r" % error)

    def _due(self):
        """A generator: publish what is due. It yields what the client's functions return."""
        now = ticks_ms()
        if self._is_trial and ticks_diff(now, self._look_at) >= 0:
            self._look_at = ticks_add(now, _LOOK_MS)
            self._looks += 1
            if has_note("trial") != self._is_noted or self._looks >= _LOOKS:
                self._is_stale = True
        if not self._subscribe or not (self._is_new or self._is_stale):
            return
        if self._quiet is not None:
            if ticks_diff(now, self._quiet) < 0:
                return
            self._quiet = None
        make = self.channel._call
        if self._is_new:
            self._told = None
            yield self._subscribe(self.topic + INSTALL, 1)
            for message in make("mqtt_hello", "greeting", self):
                yield self.publish(*message)
            self._is_new, self._is_stale = False, True
        if self._is_stale:
            self._is_stale = False
            percent = self._percent
            if percent is None:
                self._is_noted, self._looks = has_note("trial"), 0
                message = make("mqtt_state", "state", self, make("mqtt_facts", "facts"))
            else:  # not retained: a board that dies in it would seem to be at it for ever
                self._told = None
                text = b"null" if percent < 0 else b"%d" % percent
                message = self.topic + b"update", _PROGRESS % text, False, 0
            if message:
                yield self.publish(*message)

    def _goodbye(self):
        """A generator: say that the board is away for a moment."""
        if self._subscribe and self.will and not self._is_new:
            yield self.publish(*self.will)
