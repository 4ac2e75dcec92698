"""Takes an update over the serial line of the REPL: `mpota push` is at the other end.

The board asks for the file piece by piece, and nothing is under way while the flash is busy:

    board   RS "GET <offset> <size> <SHA-256 of what the slot holds there, or ->" LF
    desk    "=" <SHA-256>        the slot holds it already: a former attempt, or the same code
            "+" <SHA-256> units  of up to 127 bytes; the board answers ACK to the head and to each

from the start to the end, or the last 4096 bytes first, where an image is judged by its signature.

A unit starts with a byte value that does not occur in it, which stands for 3 there: Ctrl-C always
interrupts. A desk keeps at most 256 bytes on their way, the input buffer of a board holds 259. A
piece that arrives damaged is asked for again. In the end the board says RS "DONE <slot>" LF, or
RS "FAIL <code> <text>" LF if it refuses. RS is 0x1E, ACK 0x06; whatever else comes is not ours.
A desk that is silent for a minute is given up.
"""

import sys
from gc import mem_free
from hashlib import sha256
from select import POLLIN, poll

from micropython import const

from .errors import OTAError, SourceError

_PIECE_SIZE = const(4096)
_UNIT_SIZE = const(127)
_HEAD_SIZE = const(65)
_SECTOR = const(4096)
_ATTEMPTS = const(4)
_STRIDE = const(65536)
_QUIET_MS = const(100)
_SILENCE_MS = const(60000)


def receive(size, sha, app_offset=0, app_size=0, force=False):
    """Take a file of ``size`` bytes with that SHA-256 (hex), switch to it, and say how it went.

    ``app_offset``, ``app_size``: where in the file the app image stands, if it is there as it will
    stand in the slot.
    """
    line = Line()

    def take(update):
        source = LineSource(line, size, update.part, app_offset, app_size)
        update.from_source(source, sha, size)

    # A piece that the slot holds is not sent: by sectors it stays there.
    _update(line, take, force=force, block_size=_SECTOR)


def fetch(url, force=False, **request_args):
    """Update from a URL (see update.py), and say how it goes: RS "AT <bytes>" LF as well."""
    line = Line()

    def progress(done, total):
        if done % _STRIDE < _PIECE_SIZE:
            line.say("AT %d" % done)

    def take(update):
        if url.endswith(".json"):
            update.from_json(url, **request_args)
        else:
            update.from_firmware_file(url, **request_args)

    _update(line, take, force=force, progress=progress)


def _update(line, take, **options):
    try:
        from .update import OTA

        with OTA(verbose=False, **options) as update:
            take(update)
    except OTAError as error:
        text = "FAIL %s %s" % (error.code, error)
    except MemoryError as error:
        said = str(error)
        if not said.endswith("bytes"):  # there was none to say how much
            said = "memory allocation failed, allocating more than there is in one piece"
        text = "FAIL memory the board has not enough memory: %s, %d bytes are free" % (
            said,
            mem_free(),
        )
    else:
        text = "DONE %s" % update.part.info()[4]
    line.say(text)


class Line:
    """The serial line that the REPL is on."""

    def __init__(self):
        self._in = sys.stdin.buffer
        self._out = sys.stdout.buffer
        self._poll = poll()
        self._poll.register(self._in, POLLIN)

    def say(self, text):
        self._out.write("\x1e" + text + "\n")

    def acknowledge(self):
        self._out.write(b"\x06")

    def read(self, buf):
        """Fill ``buf``. Raises SourceError if nothing comes."""
        if not self._poll.poll(_SILENCE_MS):
            raise SourceError("timeout", "the desk is silent")
        count = self._in.readinto(buf)
        while count < len(buf):
            count += self._in.readinto(memoryview(buf)[count:])

    def drain(self):
        """Drop what still comes."""
        byte = bytearray(1)
        while self._poll.poll(_QUIET_MS):
            self._in.readinto(byte)


class LineSource:
    """The source at the desk: see the top of this file. ``slot`` is where the app image will go."""

    name = "the serial line"
    is_joined = False

    def __init__(self, line, size, slot, app_offset=0, app_size=0):
        self.size = size
        self._line = line
        self._at = 0
        self._slot = slot
        self._app_offset = app_offset
        self._app_end = app_offset + app_size
        self._head = bytearray(_HEAD_SIZE)
        self._unit = bytearray(1 + _UNIT_SIZE)

    def readinto(self, buf):
        """Fill ``buf``, up to one piece; the number of bytes, 0 at the end. Raises SourceError."""
        count = min(len(buf), _PIECE_SIZE, self.size - self._at)
        if not count:
            return 0
        self._fill(memoryview(buf)[:count])
        return count

    def reading_end(self, buf):
        """A generator: fill ``buf`` with the end of the file; the body comes then."""
        at, self._at = self._at, self.size - len(buf)
        self._fill(buf)
        self._at = at
        yield 0

    def pass_over(self, count):
        """Leave bytes out."""
        self._at += count

    def _fill(self, view):
        count = len(view)
        for _ in range(_ATTEMPTS):
            if self._get(view):
                self._at += count
                return
            self._line.drain()
        raise SourceError(
            "connection",
            "%d bytes at %d arrived damaged %d times" % (count, self._at, _ATTEMPTS),
        )

    def close(self):
        pass

    def _get(self, view):
        """Ask for a piece; whether it has come undamaged."""
        size = len(view)
        held = "-"
        start = self._at - self._app_offset
        if start >= 0 and self._at + size <= self._app_end:
            self._slot.readblocks(start // _SECTOR, view, start % _SECTOR)
            held = sha256(view).digest().hex()
        self._line.say("GET %d %d %s" % (self._at, size, held))
        self._line.read(self._head)
        if self._head[:1] != b"=":
            self._line.acknowledge()
            at = 0
            while at < size:
                end = min(at + _UNIT_SIZE, size)
                self._take_unit(view[at:end])
                at = end
            held = sha256(view).digest().hex()
        return self._head[1:] == held.encode()

    def _take_unit(self, place):
        unit = self._unit
        size = len(place)
        whole = memoryview(unit)[: 1 + size]
        self._line.read(whole)
        self._line.acknowledge()
        place[:] = whole[1:]
        stand_in = bytes(unit[:1])
        at = unit.find(stand_in, 1, 1 + size)
        while at >= 0:
            place[at - 1] = 3
            at = unit.find(stand_in, at + 1, 1 + size)
