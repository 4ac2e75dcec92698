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

import gc
import sys
from hashlib import sha256
from select import POLLIN, poll

from micropython import const

from .base import ROOM, OTAError, SourceError, StateError, no_memory
from .pump import Progress, run, translated
from .update import Intake, closing, filling, load_resident, reading_end, taking

_SECTOR = const(4096)
_ACK = b"\x06"
_PIECE_SIZE = const(4096)
_UNIT_SIZE = const(127)
_HEAD_SIZE = const(65)
_ATTEMPTS = const(4)
_STRIDE = const(65536)
_QUIET_MS = const(100)
_SILENCE_MS = const(60000)


class OTA:
    """One update of the next slot, as a context manager: leaving it without an exception switches.

    Give it bytes by `write`, `from_stream`, `from_firmware_file` or `from_json`; then `close`
    checks the whole and makes the slot the next to boot. With ``reboot`` it restarts the board
    10 s later. ``sha`` (hex SHA-256) and ``length`` are those of the file, if known.
    ``verify=False`` does not read back what is written.

    ``force``: update though the running app is not confirmed, and install again what has failed
    before. ``progress(done, total)`` is called after every piece, ``total`` is None while the size
    of the file is not known. ``block_size=4096``: erase by sectors, not by 64 KiB: that is slower,
    and leaves alone what the slot holds already. ``feed()``, as of a machine.WDT, is called between
    two steps, and twice a second in waits.

    One that is dropped without an end keeps the slot, and others are refused as busy:
    ``ota.base.owner.abort()`` ends it.

    Raises OTAError; nothing has been written then if ``error.code`` tells of the header.
    """

    def __init__(
        self,
        verify=True,
        verbose=True,
        reboot=False,
        sha="",
        length=0,
        *,
        force=False,
        progress=None,
        block_size=0,
        feed=None,
    ):
        self.verbose = verbose
        self._feed = feed
        self.reboot = reboot
        gc.collect()
        try:
            room = bytearray(ROOM)  # before code and strings divide the heap
            board = load_resident("")
            from .ready import check_ready

            self.part = check_ready(force)
            self._intake = Intake(
                sha,
                length,
                force=force,
                verify=verify,
                by_sectors=block_size == _SECTOR,
                room=room,
                board=board,
            )
        except (MemoryError, OSError) as error:
            raise translated(error, None, "the update")
        self._console = None
        if verbose:
            from .console import Console

            self._console = Console(self.part)
        self._report = Progress(progress, self._intake, self._console)
        self._is_over = False

    def _run(self, generator, what="the update"):
        """Run a generator to its end; what it fails with ends the update."""
        try:
            return run(generator, self._feed)
        except BaseException as error:
            self.abort(error)
            raise translated(error, self._report, what)

    def write(self, data):
        """Take the next bytes of the file; returns how many. Raises OTAError."""
        if self._is_over:
            raise StateError("closed", "the update is over")
        self._run(self._writing(data))
        return len(data)

    def _writing(self, data):
        intake = self._intake
        view = memoryview(data)
        while view:
            place = intake.buffer()
            if place is None:  # the app is whole before the file ends
                break
            count = min(len(view), len(place))
            place[:count] = view[:count]
            intake.take(count)
            view = view[count:]
        self._report(intake.received, None)
        yield 0

    def close(self):
        """Check the whole, then make the slot the next to boot. Raises OTAError."""
        if self._is_over:
            return
        self._run(closing(self._intake, self._console))
        self._is_over = True
        if self.reboot:
            from .console import ota_reboot

            ota_reboot(feed=self._feed)

    def abort(self, error=None):
        """Stop: `write` and `close` raise StateError, and the running app stays selected."""
        if not self._is_over:
            self._intake.abort(error)
            if self._console:
                self._console.stop()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is None:
            self.close()
        else:
            self.abort(error)

    def from_stream(self, f, sha="", length=0):
        """Take a file from a stream (`readinto`), to its end; returns the number of bytes."""
        from .local import StreamSource

        return self.from_source(StreamSource(f), sha, length)

    def from_firmware_file(self, url, sha="", length=0, **request_args):
        """Take a file by its name or URL; returns the number of bytes."""
        return self._take(url, sha, length, request_args)

    def from_json(self, url, **request_args):
        """Take the file that a JSON file (`firmware`, `sha`, `length`) names."""
        return self._take(url, "", 0, request_args, True)

    def _take(self, url, sha, length, request_args, is_json=False):
        steps = taking(self._intake, url, request_args, self._report, self._console, is_json)
        return self._run(self._expecting(steps, sha, length), url)

    def _expecting(self, steps, sha, length):
        self._intake.expect(sha, length)
        return (yield from steps)

    def from_source(self, source, sha="", length=0):
        """Take a file from a source (pump.py), to its end; returns the number of bytes."""
        return self._run(self._expecting(self._filling(source), sha, length), source.name)

    def _filling(self, source):
        yield from reading_end(self._intake, source)
        return (yield from filling(self._intake, source, self._report, self._console))


# --- the line


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
        update._take(url, "", 0, request_args, url.endswith(".json"))

    _update(line, take, force=force, progress=progress)


def _update(line, take, **options):
    try:
        with OTA(verbose=False, **options) as update:
            take(update)
        text = "DONE " + update.part.info()[4]
    except (OTAError, MemoryError) as error:
        if isinstance(error, MemoryError):
            error = no_memory(error, "the update")
        text = "FAIL %s %s" % (error.code, error)
    line.say(text)


class Line:
    """The serial line that the REPL is on."""

    def __init__(self):
        self._in = sys.stdin.buffer
        self.write = sys.stdout.buffer.write
        self._poll = poll()
        self._poll.register(self._in, POLLIN)

    def say(self, text):
        self.write("\x1e" + text + "\n")

    def read(self, buf):
        """Fill ``buf``. Raises SourceError if nothing comes."""
        if not self._poll.poll(_SILENCE_MS):
            raise SourceError("timeout", "the desk is silent")
        count = 0
        while count < len(buf):
            count += self._in.readinto(memoryview(buf)[count:])

    def drain(self):
        """Read and drop bytes until the line is silent."""
        byte = bytearray(1)
        while self._poll.poll(_QUIET_MS):
            self._in.readinto(byte)


class LineSource:
    """The source at the desk: see the top of this file. ``slot`` is where the app image will go."""

    name = "line"
    is_joined = False

    def __init__(self, line, size, slot, app_offset, app_size):
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
        """Skip ``count`` bytes of the file."""
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
            "%d bytes at %d came damaged %d times" % (count, self._at, _ATTEMPTS),
        )

    def close(self):
        pass

    def _get(self, view):
        """Ask for a piece; whether it came undamaged."""
        size = len(view)
        held = "-"
        start = self._at - self._app_offset
        if start >= 0 and self._at + size <= self._app_end:
            self._slot.readblocks(start // _SECTOR, view, start % _SECTOR)
            held = sha256(view).digest().hex()
        self._line.say("GET %d %d %s" % (self._at, size, held))
        self._line.read(self._head)
        if self._head[:1] != b"=":
            self._line.write(_ACK)
            unit = self._unit
            for at in range(0, size, _UNIT_SIZE):
                place = view[at : at + _UNIT_SIZE]
                end = 1 + len(place)
                self._line.read(memoryview(unit)[:end])
                self._line.write(_ACK)
                place[:] = memoryview(unit)[1:end]
                stand_in = bytes(unit[:1])
                at = unit.find(stand_in, 1, end)
                while at >= 0:
                    place[at - 1] = 3
                    at = unit.find(stand_in, at + 1, end)
            held = sha256(view).digest().hex()
        return self._head[1:] == held.encode()
