"""The board's side of an update that somebody sends: docs/PROTOCOL.md, without what carries it.

`ota.ble` and `ota.listen` bring what has arrived and take what is to be sent. A link, one for each
connection, has ``send(message)``, ``close()``, ``peer`` (who it is, for a dict), ``packet_size``
(the largest packet) and ``credit`` (bytes that may be under way to the board).
"""

import gc
import struct
import sys
from binascii import crc32
from hashlib import sha256
from os import urandom
from time import ticks_diff, ticks_ms

from micropython import const

from .base import (
    ROOM,
    TRUST,
    ImageError,
    OTAError,
    ReleaseError,
    StateError,
    has_trust,
    recall,
    unload,
)

VERSION = const(2)
MAX_MESSAGE = const(256)
MAX_SESSIONS = const(4)

_WELCOME = const(0x81)
_NONCE_SIZE = const(16)
_ANY_CHIP = const(0xFFFF)
_HELLO = const(0x01)
_BEGIN = const(0x02)
_END = const(0x03)
_ABORT = const(0x04)
_LOOK = const(0x05)
_STATUS = const(0x82)
_AGAIN = const(0x83)
_DONE = const(0x84)
_ERROR = const(0x85)
_READY = const(0x86)

_NEEDS_SECRET = const(1)  # WELCOME
_SIGNED_ONLY = const(2)
_TAKES_IMAGES = const(4)
_IS_SEEN = const(8)
_RESUME = const(1)  # BEGIN
_END_FIRST = const(2)
_RESTART = const(1)  # END, DONE

_WINDOW = const(4096)
_CRC_SIZE = const(4)
_PROOF_SIZE = const(32)
_HELLO_SIZE = const(18)
_BEGIN_HEAD = "<BBI32sHB"
_BEGIN_HEAD_SIZE = const(41)
_MAX_VERSION = const(64)
_MIN_SECRET = const(16)
_USUAL_KEYS = const(256)  # bytes of keys.py's blob
_BEHIND = const(0x8000)  # a packet this far ahead, modulo 64 KiB, is an old one
_MAX_CREDIT = const(0x4000)

_STEP_MS = const(1000)  # without progress until the board asks again; the most that a poll counts
_GREETING_MS = const(10000)  # until an update has begun: nobody may keep the others out
_YOUNG_MS = const(500)  # a new session is given this long, whoever wants its place
_VOUCH_MS = const(4000)  # and a push that no signature vouches for yet
_GIVE_UP_MS = const(5000)  # without memory for the last words
_MAX_FAULTS = const(8)  # of one window
_MAX_PEERS = const(8)
_MAX_WRONG = const(5)
_CALM_MS = const(600000)  # without a wrong proof, after which all are forgotten

_NO_MEMORY = b"\x85\x06memorythe board has not enough memory"  # an ERROR that takes none to make

# What an update has loaded, or has begun to: without it there is room for the next client.
_OF_UPDATES = (
    "push_intake", "update", "ready", "begin", "finish", "otadata", "merged", "pump", "slot",
    "image", "chips", "release", "tar", "chain", "frames", "delta", "recovery",
    "keys", "manifest", "policy", "files", "confirm", "boot",
)  # fmt: skip

_OWN = OTAError, OSError, MemoryError, ImportError  # all else comes from the app's callbacks
_cleared = 0


def keys_cleared():
    """Shut the receivers that rely on keys: none is trusted any more. Called by keys.py."""
    global _cleared
    _cleared += 1


class PushError(OTAError):
    """What went wrong between the board and who sends.

    Codes: busy, secret, protocol, refused, window, timeout, aborted, board, memory.
    """


class Session:
    """One client, until it has gone or was sent away."""

    nonces = None  # of the client and of the board
    begun = None  # its BEGIN, without the proof, once that was taken
    reason = None  # why it is over: an ERROR that has to be sent

    def __init__(self, link):
        self.link = link
        self.left = _GREETING_MS  # ms until it is given up


class Receiver:
    """Takes updates that are sent to this board, one at a time.

    ``secret`` (bytes or str, 16 bytes or more): a client must know it, and is shown that the board
    does. Without one the board must have keys, and takes what they have signed; ``open``: anyone
    may update it. ``accept(size, chip, version)`` may refuse an update, by returning False, before
    anything is written; ``progress(done, total)`` is called after each window of 4 KiB.
    ``version``: what clients are told that runs. ``silence``: seconds that a window may take (the
    default is 256 bytes/s); ``keep``: seconds that an unfinished update waits for its client.
    ``force``, ``verify``: see ota.update.OTA.

    ``is_done``: an update is complete, verified, and selected for the next boot. ``is_shut``:
    the keys that it relied on are gone, and nothing is taken any more. ``flags`` (of WELCOME) and
    ``runs`` (bytes) are what anybody is told.
    """

    is_done = is_shut = needs_restart = False
    wants_restart = False  # the client does, and it can be done now
    _keys = None  # what they looked like when they were read
    active = None  # the session whose update it is

    def __init__(
        self,
        secret=None,
        *,
        open=False,
        is_paired=False,
        accept=None,
        progress=None,
        version=None,
        silence=16,
        keep=300,
        **options,
    ):
        self._secret = secret.encode() if isinstance(secret, str) else secret
        if secret and len(self._secret) < _MIN_SECRET:
            raise PushError(
                "secret",
                "the secret has %d bytes, %d are the least: os.urandom(16)"
                % (len(self._secret), _MIN_SECRET),
            )
        self._needs_keys = not (secret or open or is_paired)
        self._accept = accept
        self._progress = progress
        from .chips import running_chip_id

        self._chip = running_chip_id()
        del running_chip_id
        unload("chips")
        self.runs = (version or "MicroPython %d.%d.%d" % sys.implementation[1][:3]).encode()
        self._silence_ms = int(silence * 1000)
        self._keep_ms = keep * 1000
        self._options = options
        self._sessions = []
        self._wrong = {}  # peer -> wrong proofs; peers beyond its size share the entry of None
        self._calm = self._keep = self._quiet = 0
        self._ticks = ticks_ms()
        self._update = self._window = self._last_words = None
        self._wanted = None  # (size, SHA-256) of the update that is under way
        self._finished = None  # the same of the last one that was completed
        self._finishing = None  # what is left to do of an update that has come whole
        self._has_work = False
        self.check_keys()

    def check_keys(self):
        """Raises StateError where anyone could update the board."""
        self._cleared = _cleared
        found = _look_at_keys()
        if not found or found != self._keys:
            self._keys = None
            self.is_shut = self._needs_keys
            # _NEEDS_SECRET; and without keys alone, which let anyone try out what its files hold
            self.flags = bool(self._secret) | (not self._needs_keys) * _IS_SEEN
            if has_trust():
                from .keys import load

                trust = load()
                del load
                unload("keys")
                if trust.trusted:
                    self.flags |= _SIGNED_ONLY
                    if trust.takes_images:
                        self.flags |= _TAKES_IMAGES
                    self.is_shut = False
            self._keys = found
        if self.is_shut:
            raise StateError(
                "open",
                "without a secret, and with no keys installed, anyone could update it: "
                "give a secret, or open=True",
            )

    # --- sessions

    def open(self, link):
        """The session of a new client; None if there is no place, which `busy` tells it."""
        if self.is_shut:
            return None
        if len(self._sessions) >= MAX_SESSIONS:
            waiting = [one for one in self._sessions if one is not self.active]
            # One that was wrong goes first, else the one that has had the most time.
            oldest = min(waiting, key=lambda one: one.left - (_GREETING_MS if one.reason else 0))
            if not oldest.reason and oldest.left > _GREETING_MS - _YOUNG_MS:
                return None
            oldest.reason = oldest.reason or _pack_error(busy())
            oldest.left = -_GIVE_UP_MS
            self._hang_up(oldest)
        session = Session(link)
        self._sessions.append(session)
        return session

    def lost(self, session):
        """The client has gone. Its update waits for it, for a while."""
        if session in self._sessions:
            self._sessions.remove(session)
        if session is self.active:
            self.active = None
            self._keep = self._keep_ms if self._is_safe() else 0

    def poll(self):
        """To be called several times a second: what is due after a time. Returns the ms passed.

        Time is counted down here, as ticks_ms() comes round; long pauses of the app count little.
        """
        now = ticks_ms()
        passed = min(max(ticks_diff(now, self._ticks), 0), _STEP_MS)
        self._ticks = now
        if self._cleared != _cleared:
            try:
                self.check_keys()
            except OTAError:
                pass
        if self.is_shut:
            self.close()
        self._calm -= passed
        if self._calm <= 0:
            self._wrong.clear()
        for session in tuple(self._sessions):
            if not (session is self.active and self._has_work):
                session.left -= passed
                if session.left <= 0:
                    self._expire(session)
        if self.active:
            self._quiet += passed
            if self._quiet > _STEP_MS:
                self._speak_up()
        elif self._wanted:
            self._keep -= passed
            if self._keep <= 0:
                self._drop()
        return passed

    def _expire(self, session):
        if session.reason or (session is self.active and self._last_words):
            self._hang_up(session)
        else:
            self._refuse(session, PushError("timeout", "nothing of use came for too long"))

    def _speak_up(self):
        """Ask again: nothing of what the board waits for has come for a second."""
        self._quiet = 0
        if self._is_receiving():
            self._tell(_AGAIN)
        elif self._last_words:  # the client would have gone if it had heard them
            self.active.link.send(self._last_words)

    def close(self):
        """Take no more; an update under way is given up."""
        self._drop()
        for session in tuple(self._sessions):
            self.lost(session)
            session.link.close()

    @property
    def is_held(self):
        """Whether the active session's update is one that nobody else may put an end to."""
        return self.active is not None and self._is_safe()

    def _is_safe(self):
        return not self._needs_keys or (self._update is not None and self._update.is_vouched)

    def _renew(self):
        self.active.left = self._silence_ms if self._is_safe() else _GREETING_MS
        self._quiet = 0

    def _is_receiving(self):
        return self.active and self._wanted and self._position < self._size and not self._has_work

    # --- messages

    def message(self, session, data):
        """One whole control message has come."""
        if session.reason or session not in self._sessions:
            return  # refused, and not gone yet
        try:
            self._handle(session, data)
        except Exception as error:
            self.fail(session, error)
            if not isinstance(error, _OWN):
                raise  # the app's own

    def _handle(self, session, data):
        kind = data[0] if data else 0
        size = len(data)
        proof = _PROOF_SIZE if self._secret else 0
        if kind == _HELLO and size >= _HELLO_SIZE and not session.begun:
            self._greet(session, data)
        elif kind == _BEGIN and size >= _BEGIN_HEAD_SIZE and session.nonces:
            self._begin(session, data)
        elif kind == _END and size == 2 + proof and session is self.active:
            if self._is_proven(session, b"end", data[:2], data[2:], session.begun[6:38]):
                self._end(data)
        elif kind == _LOOK and size > 2 and session.nonces and self.flags & _IS_SEEN:
            from .confirm import look

            look(self, session, data)
        elif kind == _ABORT and size == 1 + proof and session.nonces:
            if self._is_proven(session, b"abort", data[:1], data[1:]):
                if session is self.active:
                    self._drop()
                raise PushError("aborted", "the client gave it up")
        else:
            raise PushError("protocol", "message %d of %d bytes, out of place" % (kind, size))

    def _greet(self, session, data):
        self.check_keys()
        session.link.send(_greet(session, data, self.flags, self._chip, self.runs))

    def _prove(self, session, who, message):
        """What shows that whoever says ``message`` knows the secret; empty without one."""
        if not self._secret:
            return b""
        return hmac(self._secret, b"mpota2 " + who + session.nonces + message)

    def _is_proven(self, session, who, message, found, more=b""):
        due = self._prove(session, who, bytes(message) + more)
        difference = len(due) ^ len(found)
        for a, b in zip(due, found):  # noqa: B905  all of them: the time must not tell how many
            difference |= a ^ b
        peer = session.link.peer
        wrong = self._wrong
        if not difference:
            wrong.pop(peer, None)
            return True
        if peer not in wrong and len(wrong) >= _MAX_PEERS:
            peer = None
        count = wrong[peer] = min(wrong.get(peer, 0) + 1, _MAX_WRONG)
        self._calm = _CALM_MS
        error = PushError("secret", "the client does not know this board's secret")
        # Only the answer to a wrong proof is delayed.
        self._refuse(session, error, 500 << count if count > 1 else 0)
        return False

    def _begin(self, session, data):
        self.check_keys()
        _, flags, size, sha, chip, count = struct.unpack_from(_BEGIN_HEAD, data)
        end = _BEGIN_HEAD_SIZE + count
        if count > _MAX_VERSION or len(data) != end + (_PROOF_SIZE if self._secret else 0):
            raise PushError("protocol", "a BEGIN of %d bytes" % len(data))
        head = bytes(data[:end])
        if not self._is_proven(session, b"begin", head, data[end:]):
            return
        if session.begun:  # it has not heard the answer
            if head != session.begun or session is not self.active:
                raise PushError("protocol", "a second BEGIN")
        else:
            active = self.active
            # There is one update, and some have a right to be it; who has not makes room.
            if active and (self._is_safe() or active.left > _GREETING_MS - _VOUCH_MS):
                raise busy()
            _check_wish(size, self._chip, chip, head[_BEGIN_HEAD_SIZE:], self._accept)
            unload("chips")  # before the update comes
            if flags & _END_FIRST and not self.flags & _TAKES_IMAGES:
                raise PushError("protocol", "the end first, unasked")
            if active:
                self._refuse(active, busy())
            self._open((size, bytes(sha)), flags)
            session.begun = head
            self.active = session
        self._renew()
        self._asked = False
        self._tell(_READY)

    # --- the update

    def _open(self, wanted, flags):
        """Go on with the update that is here, or start anew: what can be said before is said."""
        if flags & _RESUME and wanted in (self._wanted, self._finished):
            return
        self._drop()
        # It begins with a heap in one piece, whatever the one before or the app has loaded.
        unload(*_OF_UPDATES)
        self._finished = self._last_words = None
        self.is_done = self.wants_restart = False
        self._size = wanted[0]
        self._position = self._from = self._faults = 0
        gc.collect()
        self._wanted = wanted
        if flags & _END_FIRST:
            self._size += _WINDOW
            self._window = memoryview(bytearray(_WINDOW))
            return
        try:
            self._open_intake(None)
            if flags & _RESUME:
                self._from = self._update.skip()
                self._position = self._from - self._from % _WINDOW
                self._has_work = True  # what the slot holds already is read again
        except Exception:
            self._drop()
            raise

    def _open_intake(self, end):
        room = bytearray(ROOM)  # before code divides the heap
        from .push_intake import Intake

        size, sha = self._wanted
        self._update = Intake(sha, size, end=end, room=room, **self._options)
        self._window = self._update.buffer()

    def _drop(self):
        update = self._update
        self._update = self._wanted = self._window = self._finishing = None
        self._has_work = False
        if update:
            try:
                update.abort()
            except _OWN:  # what it left goes with the next one
                pass

    def data(self, session, packet):
        """One data packet has come: a memoryview, good until this returns."""
        if session is not self.active or not self._is_receiving():
            return  # late, or nobody has asked for it
        ahead = ((packet[0] | packet[1] << 8) - self._position & 0xFFFF) if len(packet) > 2 else -1
        if ahead == 0:
            self._asked = False
            self._quiet = 0  # no need to tell: it knows
            self._take(packet, len(packet) - 2)
        elif 0 < ahead < _BEHIND:
            # Something before it was lost. Whatever was under way behind that will come as well,
            # farther and farther ahead: to ask once is enough until the client starts over.
            if not self._asked or ahead <= self._last_ahead:
                self._asked = True
                self._tell(_AGAIN)
            self._last_ahead = ahead

    def _take(self, packet, count):
        fill = self._position % _WINDOW
        start = self._position - fill
        end = min(_WINDOW, self._size - start)
        if fill + count < end:
            self._window[fill : fill + count] = packet[2:]
            self._position += count
            self._grant()
            return
        left = end - fill
        if count == left + _CRC_SIZE:
            self._window[fill:end] = packet[2 : 2 + left]
            (due,) = struct.unpack_from("<I", packet, 2 + left)
            if crc32(self._window[:end]) & 0xFFFFFFFF == due:
                self._position = start + end
                self._faults = 0
                self._grant()
                self._store(end)
                return
        self._faults += 1
        self._position = start
        if self._faults > _MAX_FAULTS:
            self._drop()
            text = "bytes %d to %d came damaged %d times" % (start, start + end, self._faults)
            self._refuse(self.active, PushError("window", text))
            return
        self._tell(_AGAIN)

    def _store(self, size):
        """Pass a good window on, but for the bytes that the update skips."""
        start = self._position - size
        left_out = min(max(self._from - start, 0), size)
        size -= left_out
        try:
            if not self._update:
                self._open_intake(self._window)
            elif size:
                if left_out:
                    self._window[:size] = self._window[left_out : left_out + size]
                self._update.take(size)
            self._has_work = True
            self.work()
        except BaseException as error:
            self._break(error)

    def work(self):
        """Do a piece of what is left to do; whether there is more: no packet is taken before."""
        if self._has_work:
            try:
                if self._finishing:
                    self._finish()
                else:
                    self._has_work = self._update.work()
                    if not self._has_work:
                        self._go_on()
            except BaseException as error:
                self._break(error)
        return self._has_work

    def _finish(self):
        """One step of the final checks and the switch."""
        for _ in self._finishing:
            return
        self._finished = self._wanted
        self.needs_restart = self._update.needs_reset
        self._update = self._wanted = self._window = self._finishing = None
        self._has_work = False
        self.is_done = True
        gc.collect()
        if self.active:
            self._tell_done()

    def _go_on(self):
        """The window is stored: the next one."""
        if self._progress:
            self._progress(self._position, self._size)
        if self._update.is_vouched:
            self._pass_over(self._update.skip())
        if self._position < self._size:
            self._window = self._update.buffer()
        if self.active:
            self._renew()

    def _pass_over(self, count):
        """Have the client leave out ``count`` bytes, as far as whole windows go."""
        at = self._position
        self._from = max(self._from, at) + count
        to = self._from - self._from % _WINDOW
        # What is under way must look old where it comes in, not as if it were due there.
        ahead = to - at & 0xFFFF
        if not _MAX_CREDIT < ahead <= _BEHIND:
            to -= ahead - _BEHIND & 0xFFFF
        if to > at:
            self._position = to
            self._tell(_AGAIN)

    def _break(self, error):
        """End an update that cannot go on."""
        self._drop()
        if self.active:
            self.fail(self.active, error)
        if not isinstance(error, _OWN):
            raise error

    def _grant(self):
        """Tell the client how far it may go, once that is worth a message."""
        credit = self.active.link.credit
        limit = min(self._position + credit, self._size)
        is_new = limit > self._granted
        if self._position == self._size or (
            is_new and (limit == self._size or (limit - self._granted) * 2 >= credit)
        ):
            self._tell(_STATUS)

    def _tell(self, kind):
        """STATUS; or AGAIN, READY: the client has to go on from the position, whatever it sent."""
        session = self.active
        if not session:
            return
        position, credit = self._size, 0
        if self._wanted:  # else it is complete, and the client has not heard of that
            position = self._position
            credit = min(session.link.credit, self._size - position)
        self._granted = position + credit
        self._quiet = 0
        message = struct.pack("<BIH", kind, position, credit)
        if kind == _READY:
            message += self._prove(session, b"ready", message)
        session.link.send(message)

    def _end(self, data):
        flags = self.flags
        self.check_keys()
        self._wants_restart = bool(data[1] & _RESTART)
        if not self._wanted:  # it is complete: the client has not heard of that
            self._tell_done()
        elif self._finishing:
            pass  # it will hear
        elif self._position < self._size or self._has_work:
            self._tell(_AGAIN)
        else:
            try:
                if self.flags != flags:
                    raise ReleaseError("unsigned", "the keys have changed")
                self._finishing = self._update.finishing()
            except BaseException:
                self._drop()
                raise
            self._has_work = True
            self._renew()

    def _tell_done(self):
        session = self.active
        self._renew()
        self.wants_restart = self._wants_restart and self.needs_restart
        message = bytes((_DONE, _RESTART if self.needs_restart else 0))
        self._last_words = message + self._prove(session, b"done", message + self._finished[1])
        session.link.send(self._last_words)

    def fail(self, session, error):
        """End a session because of an error on the board."""
        if isinstance(error, MemoryError):
            gc.collect()
            free = gc.mem_free()
            if session is self.active:
                self._drop()  # then there is some, to say it with
            if not self._update:
                unload(*_OF_UPDATES)
            session.reason = _NO_MEMORY
            try:
                text = str(error)
                if not text.endswith("bytes"):  # there was none to say how much
                    text = "allocating more than there is in one piece"
                text = "the board has not enough memory: %s, %d are free" % (text, free)
                session.reason = _pack_error(OTAError("memory", text))
            except MemoryError:
                pass
            self._hang_up(session)
            return
        if isinstance(error, ImportError):
            from .status import missing

            error = missing(error)
        if not isinstance(error, OTAError):
            error = PushError("board", "the board cannot take it: %r" % error)
        self._refuse(session, error)

    def _refuse(self, session, error, delay=0):
        """Say why not, and hang up. An update that the link failed stays for its client."""
        session.reason = _pack_error(error)
        session.left = delay
        if not delay:
            self._hang_up(session)

    def _hang_up(self, session):
        try:
            if session.reason:
                session.link.send(session.reason)
        except MemoryError:  # `poll` tries again
            if session.left > -_GIVE_UP_MS:
                return
        self.lost(session)
        session.link.close()


def send_error(link, error):
    link.send(_pack_error(error))


def _pack_error(error):
    code = error.code.encode()
    text = str(error).encode()[: MAX_MESSAGE - 2 - len(code)]
    return bytes((_ERROR, len(code))) + code + text


def busy():
    return PushError("busy", "the board is talking to another client")


def hmac(key, message):
    """HMAC-SHA256: RFC 2104."""
    if len(key) > 64:
        key = sha256(key).digest()
    key = key + bytes(64 - len(key))
    for pad in (0x36, 0x5C):
        message = sha256(bytes([byte ^ pad for byte in key]) + message).digest()
    return message


def _look_at_keys():
    """What changes with the keys of this board, by which it is known without the code for them.

    None where that cannot be told: there are none, or more than usual.
    """
    sha = sha256()
    for name in TRUST:
        found = recall(name, _USUAL_KEYS)
        if not len(found):
            return None
        sha.update(found)
    return sha.digest()


# --- the greeting


def _greet(session, data, flags, chip, runs):
    """WELCOME, the answer to a HELLO. ``runs``: what does (bytes). Raises PushError."""
    if data[1] != VERSION:
        text = "protocol version %d, this is %d" % (data[1], VERSION)
        if data[1] < VERSION:
            text += ": update mpota (pip install --upgrade mpota)"
        raise PushError("protocol", text)
    nonce = bytes(data[2 : 2 + _NONCE_SIZE])
    nonces = session.nonces
    if not nonces or nonces[:_NONCE_SIZE] != nonce:  # else it has not heard the answer
        nonces = session.nonces = nonce + urandom(_NONCE_SIZE)
    runs = runs[:_MAX_VERSION]
    head = struct.pack(
        "<BBB16sHHB", _WELCOME, VERSION, flags, nonces[_NONCE_SIZE:], chip,
        session.link.packet_size, len(runs),
    )  # fmt: skip
    return head + runs


def _check_wish(size, own, chip, version, accept):
    """Raises OTAError if the board cannot take such an update, or the app refuses it."""
    from esp import flash_size

    if not 0 < size <= flash_size():
        raise ImageError(
            "too-long" if size else "empty",
            "a file of %d bytes, the flash has %d" % (size, flash_size()),
        )
    if chip not in (_ANY_CHIP, own):
        from .chips import chip_name

        raise ImageError(
            "wrong-chip",
            "the update is for %s, this board is %s" % (chip_name(chip), chip_name(own)),
        )
    try:
        text = str(version, "utf-8")
    except UnicodeError:
        raise PushError("protocol", "a version that is no text")
    if accept and accept(size, None if chip == _ANY_CHIP else chip, text) is False:
        raise PushError("refused", "the app on the board does not want version %s" % text)
