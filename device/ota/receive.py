"""The board's side of an update that somebody sends: docs/PROTOCOL.md, without what carries it.

`ota.ble` and `ota.listen` bring what has arrived and take what is to be sent. A link has
``send(message)``, ``close()`` and ``credit`` (bytes that may be under way to the board).
"""

import gc
import struct
import sys
from binascii import crc32
from hashlib import sha256
from os import urandom
from time import ticks_add, ticks_diff, ticks_ms

from micropython import const

from .errors import ImageError, OTAError, ReleaseError

VERSION = const(1)
MAX_MESSAGE = const(256)

_HELLO = const(0x01)
_BEGIN = const(0x02)
_END = const(0x03)
_ABORT = const(0x04)
_WELCOME = const(0x81)
_STATUS = const(0x82)
_AGAIN = const(0x83)
_DONE = const(0x84)
_ERROR = const(0x85)
_READY = const(0x86)

_NEEDS_SECRET = const(1)  # WELCOME
_SIGNED_ONLY = const(2)
_RESUME = const(1)  # BEGIN
_RESTART = const(1)  # END, DONE

_WINDOW = const(4096)
_CRC_SIZE = const(4)
_NONCE_SIZE = const(16)
_PROOF_SIZE = const(32)
_HELLO_SIZE = const(18)
_BEGIN_HEAD = "<BBI32sHB"
_BEGIN_HEAD_SIZE = const(41)
_MAX_VERSION = const(64)
_ANY_CHIP = const(0xFFFF)
_MAX_SIZE = const(0x3FFFFFFF)
_BEHIND = const(0x8000)  # a packet this far ahead of what is due, modulo 64 KiB, is an old one

_QUIET_MS = const(1000)  # without progress: ask for what is missing
_GREETING_MS = const(10000)  # until an update has begun: nobody may keep the others out
_MAX_FAULTS = const(8)  # of one window
_MAX_LOCK_S = const(64)

_BUNDLE_MAGIC = b"manifest.json\0"  # see bundle.py, which takes memory
_NO_MEMORY = b"\x85\x05boardthe board has not enough memory"  # an ERROR that takes none to make


class PushError(OTAError):
    """What went wrong between the board and who sends.

    Codes: busy, secret, locked, protocol, refused, window, timeout, aborted, board.
    """


class Receiver:
    """Takes updates that are sent to this board, one at a time.

    ``secret`` (bytes or str): a client must know it, and is shown that the board does.
    ``accept(size, chip, version)`` may refuse an update, by returning False, before anything is
    written; ``progress(done, total)`` is called after each window of 4 KiB. ``version``: what
    clients are told that runs. ``silence``: seconds without progress after which a client is given
    up; ``keep``: seconds that an unfinished update then waits for it to come back. ``force``,
    ``verify``: see ota.update.OTA.

    ``is_done``: an update is complete, verified, and selected for the next boot.
    """

    is_done = False
    needs_restart = False
    wants_restart = False  # the client does, and it can be done now

    _holder = None  # the receiver whose update is open: there is one slot

    def __init__(
        self,
        secret=None,
        *,
        accept=None,
        progress=None,
        version=None,
        silence=30,
        keep=300,
        **options,
    ):
        self._secret = secret.encode() if isinstance(secret, str) else secret
        self._accept = accept
        self._progress = progress
        self._version = version or "MicroPython %d.%d.%d" % sys.implementation[1][:3]
        self._silence_ms = int(silence * 1000)
        self._keep_ms = keep * 1000
        self._options = options
        self.link = None
        self._nonces = None  # of the client and of the board, until they are used
        self._update = None
        self._reason = None  # why the session is over: an ERROR that has to be sent
        self._wanted = None  # (size, SHA-256) of it
        self._finished = None  # the same of the last one that was completed
        self._locked_until = self._lock_s = 0
        self._touch()

    # --- the link

    def open(self, link):
        """A client is there. False if another one is being served: tell it by `busy`."""
        if self.link:
            return False
        self.link = link
        self._nonces = self._last_words = self._reason = None
        self._is_begun = False
        self._touch()
        return True

    def lost(self):
        """The client has gone. Its update waits for it, for a while."""
        self.link = None
        self._touch()

    def poll(self):
        """To be called several times a second: what is due after a time without news."""
        quiet = ticks_diff(ticks_ms(), self._heard)
        if self.link is not None and self._reason:
            self._hang_up()
        elif self.link is None:
            if self._update and quiet > self._keep_ms:
                self._drop()
        elif quiet > self._silence_ms or (quiet > _GREETING_MS and not self._is_begun):
            self._refuse(PushError("timeout", "nothing of use came for %d s" % (quiet // 1000)))
        elif ticks_diff(ticks_ms(), self._told) > _QUIET_MS:
            if self._is_receiving():
                self._tell(_AGAIN)
            elif self._last_words:  # the client would have gone if it had heard them
                self._told = ticks_ms()
                self.link.send(self._last_words)

    def close(self):
        """Take no more; an update under way is given up."""
        link = self.link
        self._drop()
        self.lost()
        if link:
            link.close()

    def _touch(self):
        self._heard = self._told = ticks_ms()

    def _is_receiving(self):
        return self._update and self._is_begun and self._position < self._size

    # --- messages

    def message(self, data):
        """One whole control message has come."""
        if self.link is None or self._reason:
            return  # refused, and not gone yet
        try:
            self._handle(data)
        except (OTAError, OSError, MemoryError) as error:
            self.fail(error)

    def _handle(self, data):
        kind = data[0] if data else 0
        if kind == _HELLO and len(data) >= _HELLO_SIZE:
            self._greet(data)
        elif kind == _BEGIN and len(data) >= _BEGIN_HEAD_SIZE and self._nonces:
            self._begin(data)
        elif kind == _END and len(data) == 2 and self._is_begun:
            self._end(data[1] & _RESTART)
        elif kind == _ABORT:
            self._drop()
            raise PushError("aborted", "the client has given up the update")
        else:
            raise PushError("protocol", "message %d of %d bytes, out of place" % (kind, len(data)))

    def _greet(self, data):
        left = ticks_diff(self._locked_until, ticks_ms())
        if self._lock_s and left > 0:
            raise PushError("locked", "wrong secret before: try again in %d s" % (left // 1000 + 1))
        if data[1] != VERSION:
            raise PushError("protocol", "protocol version %d, this is %d" % (data[1], VERSION))
        self._needs_signature = _has_keys()
        nonce = bytes(data[2:_HELLO_SIZE])
        own = urandom(_NONCE_SIZE)
        flags = (_NEEDS_SECRET if self._secret else 0) | (
            _SIGNED_ONLY if self._needs_signature else 0
        )
        text = self._version.encode()[:_MAX_VERSION]
        head = struct.pack("<BBB16sHB", _WELCOME, VERSION, flags, own, _chip_id(), len(text))
        self._nonces = nonce + own
        self._is_begun = False
        self.link.send(head + text)

    def _prove(self, who, message):
        """What shows that whoever says ``message`` knows the secret; empty without one."""
        if not self._secret:
            return b""
        return hmac(self._secret, b"mpota " + who + self._nonces + message)

    def _begin(self, data):
        _, flags, size, sha, chip, count = struct.unpack_from(_BEGIN_HEAD, data)
        end = _BEGIN_HEAD_SIZE + count
        if count > _MAX_VERSION or len(data) != end + (_PROOF_SIZE if self._secret else 0):
            raise PushError("protocol", "a BEGIN of %d bytes" % len(data))
        self._check_proof(self._prove(b"client", data[:end]), data[end:])
        self._check_wish(size, chip, data[_BEGIN_HEAD_SIZE:end])
        wanted = size, bytes(sha)
        is_known = wanted in (self._wanted, self._finished)
        if not (flags & _RESUME and is_known):
            self._open(wanted, flags & _RESUME)
        self._is_begun = True
        self._asked = False
        self._tell(_READY)

    def _check_proof(self, due, found):
        difference = len(due) ^ len(found)
        for a, b in zip(due, found):  # noqa: B905  all of them: the time must not tell how many
            difference |= a ^ b
        if difference:
            self._nonces = None
            self._lock_s = min(2 * self._lock_s or 1, _MAX_LOCK_S)
            self._locked_until = ticks_add(ticks_ms(), self._lock_s * 1000)
            raise PushError("secret", "the client does not know this board's secret")
        self._lock_s = 0

    def _check_wish(self, size, chip, version):
        if not 0 < size <= _MAX_SIZE:
            raise ImageError("empty" if not size else "too-long", "a file of %d bytes" % size)
        if chip not in (_ANY_CHIP, _chip_id()):
            from .chips import chip_name

            raise ImageError(
                "wrong-chip",
                "the update is for %s, this board is %s" % (chip_name(chip), chip_name(_chip_id())),
            )
        try:
            text = str(version, "utf-8")
        except UnicodeError:
            raise PushError("protocol", "a version that is no text")
        if self._accept and self._accept(size, None if chip == _ANY_CHIP else chip, text) is False:
            raise PushError("refused", "the app on the board does not want version %s" % text)

    # --- the update

    def _open(self, wanted, is_resumed):
        """Start anew. What can be said before the first byte is said here."""
        if Receiver._holder:
            Receiver._holder._drop()
        self._finished = None
        self.is_done = False
        self._size, sha = self._wanted = wanted
        self._position = self._faults = 0
        gc.collect()
        if self._needs_signature:  # it has to be one, and there is no memory to give away
            self._update = _Bundle(sha, None, self._options)
        else:
            self._open_image(sha, is_resumed)
        self._window = self._update.buffer()
        Receiver._holder = self

    def _open_image(self, sha, is_resumed):
        from . import resume  # noqa: F401  before the buffers divide the heap
        from .update import OTA

        options = {"verbose": False, "block_size": _WINDOW}
        options.update(self._options)
        self._update = _Image(OTA(sha=sha.hex(), length=self._size, **options))
        trail = self._update.make_trail()
        for _ in trail.recall(sha.hex()):
            pass
        if not is_resumed or trail.total != self._size:
            trail.begin(self._size, None)
            return
        try:
            for at in range(0, trail.size, _WINDOW):
                window = self._update.buffer()
                trail.read(at, window)
                self._update.take(window)
        except OTAError:  # what the slot holds is no good after all
            trail.forget()
            self._open_image(sha, False)
            return
        self._position = trail.size

    def _drop(self):
        update = self._update
        self._is_begun = False
        if update:
            self._update = self._wanted = self._window = Receiver._holder = None
            try:
                update.abort()
            except MemoryError:  # then the next release, or a confirmation, removes what it left
                pass

    def data(self, packet):
        """One data packet has come: a memoryview, good until this returns."""
        if not self._is_receiving():
            return  # late, or nobody has asked for it
        ahead = ((packet[0] | packet[1] << 8) - self._position & 0xFFFF) if len(packet) > 2 else -1
        if ahead == 0:
            self._asked = False
            self._told = ticks_ms()  # no need to: it knows
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
                self._heard = ticks_ms()
                self._grant()
                self._store(end)
                return
        self._faults += 1
        if self._faults > _MAX_FAULTS:
            self._drop()
            text = "bytes %d to %d came damaged %d times" % (start, start + end, self._faults)
            self._refuse(PushError("window", text))
            return
        self._position = start
        self._tell(_AGAIN)

    def _store(self, size):
        window = self._window if size == len(self._window) else self._window[:size]
        try:
            if self._position == size:
                self._start(window)
            self._update.take(window)
            if self._position < self._size:
                self._window = self._update.buffer()
            if self._progress:
                self._progress(self._position, self._size)
        except (OTAError, OSError, MemoryError) as error:
            self._drop()
            self.fail(error)

    def _start(self, head):
        """The first window tells what it is."""
        if bytes(head[: len(_BUNDLE_MAGIC)]) != _BUNDLE_MAGIC:
            if self._needs_signature:
                raise ReleaseError(
                    "unsigned", "this board has keys: it takes signed bundles only, no images"
                )
        elif not self._needs_signature:
            self._update.abort()
            self._update = None
            gc.collect()  # all of it but the window
            self._update = _Bundle(self._wanted[1], self._window, self._options)

    def _grant(self):
        """Tell the client how far it may go, once that is worth a message."""
        credit = self.link.credit
        limit = min(self._position + credit, self._size)
        is_new = limit > self._granted
        if self._position == self._size or (
            is_new and (limit == self._size or (limit - self._granted) * 2 >= credit)
        ):
            self._tell(_STATUS)

    def _tell(self, kind):
        """STATUS; or AGAIN, READY: the client has to go on from the position, whatever it sent."""
        position, credit = self._size, 0
        if self._update:  # else it is complete, and the client has not heard of that
            position = self._position
            credit = min(self.link.credit, self._size - position)
        self._granted = position + credit
        self._told = ticks_ms()
        message = struct.pack("<BIH", kind, position, credit)
        if kind == _READY:
            message += self._prove(b"board", message)
        self.link.send(message)

    def _end(self, restart):
        if self._update:
            if self._position < self._size:
                self._tell(_AGAIN)
                return
            update = self._update
            try:
                update.finish()
            except Exception:
                self._drop()
                raise
            self._finished = self._wanted
            self.needs_restart = update.needs_restart
            self._update = self._wanted = self._window = Receiver._holder = None
            self.is_done = True
            gc.collect()
        self._touch()
        self.wants_restart = bool(restart)
        message = bytes((_DONE, _RESTART if self.needs_restart else 0))
        self._last_words = message + self._prove(b"done", message + self._finished[1])
        self.link.send(self._last_words)

    def fail(self, error):
        """End the session because of an error on the board: OTAError, OSError, MemoryError."""
        if isinstance(error, MemoryError):
            self._drop()  # then there is some, to say it with
            gc.collect()
            self._reason = _NO_MEMORY
            self._hang_up()
            return
        if isinstance(error, OSError):
            error = PushError("board", "the board cannot take it: %r" % error)
        self._refuse(error)

    def _refuse(self, error):
        """Say why not, and hang up. An update that the link failed stays for its client."""
        self._reason = _pack_error(error)
        self._hang_up()

    def _hang_up(self):
        link = self.link
        if link is None:
            return
        self._is_begun = False
        try:
            link.send(self._reason)
        except MemoryError:  # `poll` tries again
            return
        self.lost()
        link.close()


def send_error(link, error):
    link.send(_pack_error(error))


def _pack_error(error):
    code = error.code.encode()
    text = str(error).encode()[: MAX_MESSAGE - 2 - len(code)]
    return bytes((_ERROR, len(code))) + code + text


def busy():
    return PushError("busy", "the board is talking to another client")


class _Image:
    """An app image or a merged firmware."""

    needs_restart = True

    def __init__(self, update):
        self._update = update
        self._own = None
        self.make_trail = update.make_trail
        self.finish = update.close
        self.abort = update.abort

    def buffer(self):
        """Room for a window: the writer's own, where the file stands there as it comes."""
        place = self._update.buffer()
        if len(place) == _WINDOW:
            return place
        self._own = self._own or memoryview(bytearray(_WINDOW))
        return self._own

    def take(self, window):
        if self._own:
            self._update.write(window)
        else:
            self._update.take(len(window))


class _Bundle:
    """A release in one file."""

    def __init__(self, sha, buf, options):
        from .bundle import Bundle
        from .release import Release

        self._release = Release(
            options.get("force", False),
            options.get("verify", True),
            options.get("block_size", _WINDOW),
        )
        self._stage = Bundle(self._release)
        self._sha = sha256()
        self._due = sha
        self._buf = buf or memoryview(bytearray(_WINDOW))  # last: code divides the heap
        self.abort = self._release.abort

    def buffer(self):
        return self._buf

    def take(self, window):
        self._sha.update(window)
        self._stage.write(window)

    def finish(self):
        found = self._sha.digest()
        if found != self._due:
            raise ReleaseError(
                "digest",
                "the file has SHA-256 %s, %s was announced" % (found.hex(), self._due.hex()),
            )
        self._stage.finish()
        self._release.switch()
        self.needs_restart = self._release.needs_reset


def hmac(key, message):
    """HMAC-SHA256: RFC 2104."""
    if len(key) > 64:
        key = sha256(key).digest()
    key = key + bytes(64 - len(key))
    inner = sha256(bytes([byte ^ 0x36 for byte in key]))
    inner.update(message)
    outer = sha256(bytes([byte ^ 0x5C for byte in key]))
    outer.update(inner.digest())
    return outer.digest()


def _has_keys():
    from .home import has_trust

    if not has_trust():
        return False
    from .keys import load

    return bool(load().trusted)


def _chip_id():
    from esp32 import Partition

    head = bytearray(14)
    Partition(Partition.RUNNING).readblocks(0, head, 0)
    return head[12] | head[13] << 8
