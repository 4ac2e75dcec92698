"""A board at its REPL, through mpremote's transport: run code, put files, follow a reset.

The only place that imports mpremote, when a board is connected. The program on the board is
interrupted when a `Session` begins, and started again (boot.py and main.py, by a soft reset, which
does not count as a boot to the bootloader) when it ends.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from mpota.errors import MpotaError
from mpota.storage.ports import BUSY_S, OPEN_AGAIN_S, REPL_END, check_end, find_port
from mpota.units import SECTOR_SIZE, align_up

BAUD = 115200  # of MicroPython's REPL; on USB ports it means nothing

_ENTER_TIMEOUT_S = 15.0
_ATTEMPT_S = 1.0
_READ_TIMEOUT_S = 5.0
_SLICE_S = 0.1  # of the time that `receive` waits
_RUN_TIMEOUT_S = 60.0
_RETURN_TIMEOUT_S = 30.0
_BUSY_HINT = "a terminal, mpremote or an IDE may have it open: close that"
_MAX_OPERATION_S = 600.0  # of one thing that is asked of a board, however much it sends
_MAX_OUTPUT_SIZE = 1 << 20  # bytes that a script prints
_MAX_RECEIVED_SIZE = 4 << 20  # bytes that a board sends in one thing, noise among it
_MAX_SHOWN = 200  # characters of an answer in an error
_WRITE_CHUNK_SIZE = 1024  # bytes of a file in one line of code
_RAW_REPL = b"raw REPL; CTRL-B to exit\r\n"
_PROMPT = b"\r\n>>> "
_EOT = b"\x04"

# What a board prints when it starts, and a script never: the ROM's first line, the prompt.
_START_SIGNS = (
    b"\nRebooting...",  # ESP-IDF's panic handler, where a watchdog bites
    b"\nrst:0x",
    b'Type "help()" for more information.\r\n>>> ',
)
_LONGEST_SIGN = max(map(len, _START_SIGNS))
# What tells why an app was left: the bootloader's and ESP-IDF's error lines, a panic.
_FAILURE_LINE = re.compile(r"^(?:[EW] \(\d+\) .*|Guru Meditation Error.*|abort\(\) was called.*)$")


class LostBoardError(MpotaError):
    """The board does not answer (any more)."""


class ScriptError(MpotaError):
    """A script on the board ended with an exception; ``traceback`` is all of it."""

    def __init__(self, traceback: str, hint: str | None = None) -> None:
        lines = traceback.strip().splitlines()
        super().__init__(_short(lines[-1]) if lines else "the script failed", hint)
        self.traceback = traceback


class Session:
    """A board whose raw REPL is ours, as a context manager.

    ``patience_s``: for its program to let itself be stopped. Raises LostBoardError in all of its
    methods when the port or the board goes away.
    """

    def __init__(
        self, port: str, *, keeps_app_stopped: bool = False, patience_s: float | None = None
    ) -> None:
        self.port = find_port(port)
        check_end(self.port, REPL_END)
        self._patience_s = patience_s or _ENTER_TIMEOUT_S
        self._keeps_app_stopped = keeps_app_stopped
        self._transport: Any = None
        self._received = 0  # bytes that a script from `start` has sent

    def __enter__(self) -> Session:
        try:
            self._open()
            self._enter_raw_repl()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(MpotaError), self._reporting():
            # Ctrl-C ends a script that an error left behind, Ctrl-B the raw REPL.
            end = b"\r\x03\x02" if self._keeps_app_stopped else b"\r\x03\x02\x04"
            self._transport.serial.write(end)
            self._transport.serial.flush()
        self._close()

    # --- running code

    def execute(self, code: str, timeout_s: float = _RUN_TIMEOUT_S) -> str:
        """Run ``code``; what it prints. Raises ScriptError."""
        with self._reporting():
            self._transport.exec_raw_no_follow(code)
            output = self._read_part(timeout_s)
            error = self._read_part(timeout_s)
        if error:
            raise ScriptError(error.decode("utf-8", "replace"))
        return output.decode("utf-8", "replace")

    def _read_part(self, timeout_s: float) -> bytes:
        """What a script prints, or its traceback: all up to an EOT."""
        output = bytearray()
        for block in self._hear(_EOT, timeout_s):
            seen = max(0, len(output) - _LONGEST_SIGN)
            output += block
            if any(sign in output[seen:] for sign in _START_SIGNS):
                raise LostBoardError(f"{self.port}: the board has restarted")
            if len(output) > _MAX_OUTPUT_SIZE:
                raise LostBoardError(
                    f"{self.port}: the board prints more than {_MAX_OUTPUT_SIZE:,} bytes: "
                    f"{_excerpt(output.decode('utf-8', 'replace'))}"
                )
            if output.endswith(_EOT):
                break
        else:
            said = f", it printed {_excerpt(output.decode('utf-8', 'replace'))}" if output else ""
            raise LostBoardError(f"{self.port}: the script does not come to its end{said}")
        return bytes(output[:-1])

    def evaluate(
        self,
        expression: str,
        setup: str = "",
        timeout_s: float = _RUN_TIMEOUT_S,
        *,
        fits: Callable[[Any], bool] = lambda value: True,
    ) -> Any:
        """The value of an expression, which must be one that JSON can hold.

        Raises ScriptError, and MpotaError for an answer that is no JSON or does not fit.
        """
        output = self.execute(f"{setup}\nimport json\nprint(json.dumps({expression}))", timeout_s)
        try:
            value = json.loads(output.strip().splitlines()[-1])
            if fits(value):
                return value
        except (ValueError, IndexError, RecursionError):
            pass
        raise MpotaError(f"{self.port}: no answer but {_excerpt(output)}")

    def start(self, code: str) -> None:
        """Run ``code`` without waiting for it: `send` and `receive` talk to it, and `end_script`
        must follow when it has sent its second EOT."""
        with self._reporting():
            self._transport.exec_raw_no_follow(code)
            self._transport.serial.timeout = _SLICE_S
        self._received = 0

    def end_script(self) -> None:
        """A script from `start` is over. `receive` may have swallowed the prompt behind it: ask
        for a new one."""
        with self._reporting():
            self._transport.serial.timeout = _READ_TIMEOUT_S
            self._transport.serial.write(b"\x01")
            self._await(_RAW_REPL, "does not come to its prompt")

    def send(self, data: bytes) -> None:
        with self._reporting():
            self._transport.serial.write(data)

    def receive(self, timeout_s: float) -> bytes:
        """Some of what the board has sent; nothing if it sends nothing for that long."""
        deadline = time.monotonic() + timeout_s
        with self._reporting():
            serial = self._transport.serial
            data: bytes = serial.read(1)
            while not data and time.monotonic() < deadline:
                data = serial.read(1)
            if data and serial.in_waiting:
                data += serial.read(serial.in_waiting)
        self._received += len(data)
        if self._received > _MAX_RECEIVED_SIZE:
            raise LostBoardError(f"{self.port}: the board sends without end")
        return data

    # --- files

    def digests(self, directory: str) -> dict[str, str]:
        """SHA-256 (hex) of the files in a directory of the board, by name; none without it."""
        found: dict[str, str] = self.evaluate(
            f"_digests({directory!r})", _DIGESTS, fits=_are_digests
        )
        return found

    def write_parts(self, files: Mapping[str, bytes]) -> None:
        """Put files on the board under their paths + ".new", and compare their digests.

        Raises MpotaError if the board stores something else.
        """
        if not files:
            return
        self._check_room(files)
        self.execute(
            f"{_WRITE}\nfor path in {sorted({*map(_folder, files)})!r}: _make_folders(path)"
        )
        for path, data in files.items():
            for at in range(0, max(len(data), 1), _WRITE_CHUNK_SIZE):
                text = base64.b64encode(data[at : at + _WRITE_CHUNK_SIZE])
                mode = "ab" if at else "wb"
                self.execute(f"_put({path + '.new'!r}, {mode!r}, {text!r})")
        parts = [path + ".new" for path in files]
        found = self.evaluate(
            f"[_digest(path) for path in {parts!r}]",
            _DIGESTS,
            fits=lambda value: isinstance(value, list) and len(value) == len(parts),
        )
        for digest, (path, data) in zip(found, files.items(), strict=True):
            if digest != hashlib.sha256(data).hexdigest():
                raise MpotaError(f"{self.port}: {path} does not read back as it was written")

    def _check_room(self, files: Mapping[str, bytes]) -> None:
        free = self.evaluate(
            "s[0] * s[3]", "import os\ns = os.statvfs('/')", fits=lambda value: type(value) is int
        )
        needed = sum(align_up(len(data) + 1, SECTOR_SIZE) for data in files.values())
        if needed > free:
            raise MpotaError(
                f"{self.port}: the files need {needed:,} bytes of the board's file system, "
                f"{free:,} are free"
            )

    def finish_parts(self, paths: Mapping[str, object], remove: tuple[str, ...] = ()) -> None:
        """Give files from `write_parts` their names, and remove others, at once.

        A file of that name is replaced by one rename.
        """
        self.execute(
            f"{_REPLACE}\nfor path in {list(paths)!r}: _replace(path)\n"
            f"for path in {list(remove)!r}: os.remove(path)"
        )

    # --- resets

    def soft_reset(self) -> None:
        """Start MicroPython over, with boot.py and without main.py: fresh memory, no timers."""
        with self._reporting():
            transport = self._transport
            transport.read_until(1, b">", timeout=_READ_TIMEOUT_S)
            transport.serial.write(b"\x04")
            for ending in (b"soft reboot\r\n", _RAW_REPL):
                self._await(ending, "does not restart")

    def reset(self, settle_s: float) -> str:
        """Reset the board, and `rejoin` it."""
        with contextlib.suppress(LostBoardError):  # the port may go before the last answer comes
            # The board sleeps so that its answer is out of the UART before the reset.
            self.start("import machine, time\ntime.sleep_ms(50)\nmachine.reset()")
        return self.rejoin(settle_s)

    def rejoin(self, settle_s: float) -> str:
        """Let the program of a board that was reset start, then take the raw REPL again.

        The program is given until the prompt shows, or ``settle_s`` seconds after the last that
        the board printed. The answer is what was on the console meanwhile, the bootloader's lines
        first; on a board whose USB is in the chip itself these are not to be seen. Raises
        LostBoardError if it does not come back.
        """
        deadline = time.monotonic() + _RETURN_TIMEOUT_S
        console = bytearray()
        while True:
            try:
                if self._transport is None:
                    self._open()
                with self._reporting():
                    self._transport.serial.timeout = _SLICE_S
                self._listen(console, settle_s, deadline)
                self._enter_raw_repl()
                return console.decode("utf-8", "replace").replace("\r\n", "\n")
            except LostBoardError:  # the port goes with the chip's own USB, and comes back
                self._close()
                if time.monotonic() > deadline:
                    raise
            time.sleep(OPEN_AGAIN_S)

    def _listen(self, console: bytearray, settle_s: float, deadline: float) -> None:
        while not console.endswith(_PROMPT) and time.monotonic() < deadline:
            data = self.receive(settle_s)
            if not data:
                break
            console += data

    # --- the line

    def _open(self) -> None:
        from mpremote.transport import TransportError
        from mpremote.transport_serial import SerialTransport

        deadline = time.monotonic() + BUSY_S
        with self._reporting():
            while self._transport is None:
                try:
                    self._transport = SerialTransport(self.port, BAUD)
                    self._transport.serial = _Metered(self._transport.serial, self.port)
                except TransportError:  # whoever had it open may be about to close it
                    if time.monotonic() > deadline or not self._may_exist():
                        raise
                    time.sleep(OPEN_AGAIN_S)
            self._transport.serial.timeout = _READ_TIMEOUT_S

    def _may_exist(self) -> bool:
        return "/" not in self.port or "://" in self.port or os.path.exists(self.port)

    def _close(self) -> None:
        if self._transport is not None:
            with contextlib.suppress(Exception):
                self._transport.close()
            self._transport = None

    def _enter_raw_repl(self) -> None:
        """Interrupt what runs. A board that starts just now, or a program that catches Ctrl-C, may
        need more than one attempt."""
        deadline = time.monotonic() + self._patience_s
        with self._reporting():
            transport = self._transport
            transport.serial.timeout = _SLICE_S
            attempts = 0
            data = bytearray()
            while not data.endswith(_RAW_REPL):
                if time.monotonic() > deadline:
                    raise LostBoardError(
                        f"{self.port}: no MicroPython prompt within {self._patience_s:.0f} s",
                        "is another program using the port, or the program on the board deaf to "
                        "Ctrl-C?",
                    )
                attempts += 1
                transport.serial.write(b"\r\x03")
                while transport.serial.in_waiting and time.monotonic() < deadline:
                    transport.serial.read(transport.serial.in_waiting)
                transport.serial.write(b"\r\x01")
                data = bytearray()
                for block in self._hear(_RAW_REPL[-1:], _ATTEMPT_S):
                    data += block
                    if data.endswith(_RAW_REPL):
                        break
            if attempts > 1:
                self._skip_answers()
            transport.in_raw_repl = True
            transport.serial.timeout = _READ_TIMEOUT_S

    def _skip_answers(self) -> None:
        """Read over what a slow board answers to the other attempts."""
        mark = os.urandom(8).hex()
        self._transport.serial.write(f"print('{mark}')\x04".encode())
        self._await(f"OK{mark}\r\n\x04\x04".encode(), "does not come to its prompt")

    def _hear(self, end: bytes, silence_s: float) -> Iterator[bytes]:
        """What the board sends, until it is silent for so long; each block up to an ``end``."""
        heard_at = time.monotonic()
        while time.monotonic() < heard_at + silence_s:
            if block := self._transport.serial.read_up_to(end):
                heard_at = time.monotonic()
                yield block

    def _await(self, ending: bytes, failure: str) -> None:
        data = self._transport.read_until(1, ending, timeout=_ENTER_TIMEOUT_S)
        if not data.endswith(ending):
            raise LostBoardError(f"{self.port}: the board {failure}")

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Errors of mpremote, pyserial and the operating system as ours."""
        from mpremote.transport import TransportError

        if self._transport is not None:
            self._transport.serial.begin()
        try:
            yield
        except (TransportError, OSError, struct.error, AttributeError) as error:
            if isinstance(error, AttributeError) and self._transport is not None:
                raise
            hint = _BUSY_HINT if "in use" in str(error) else None
            raise LostBoardError(f"{self.port}: {_words(error)}", hint) from None


class _Metered:
    """A serial port that ends what a board keeps alive by sending: mpremote waits for silence.

    mpremote reads byte by byte: it gets them from memory, where all is that the port had.
    """

    def __init__(self, serial: Any, port: str) -> None:
        self.__dict__.update(_serial=serial, _port=port, _buffer=bytearray())
        self.begin()

    def begin(self) -> None:
        """One thing is asked of the board from now on."""
        deadline = time.monotonic() + _MAX_OPERATION_S
        self.__dict__.update(_left=_MAX_RECEIVED_SIZE, _deadline=deadline)

    def read(self, size: int = 1) -> bytes:
        """``size`` bytes; fewer if they do not come within the port's time limit."""
        if len(self._buffer) < size:
            self._fill(size - len(self._buffer))
        return self._take(size)

    def read_up_to(self, end: bytes) -> bytes:
        """What has come, up to the first ``end``; nothing if nothing comes within that time."""
        if not self._buffer:
            self._fill(1)
        at = self._buffer.find(end)
        return self._take(len(self._buffer) if at < 0 else at + len(end))

    def _fill(self, size: int) -> None:
        data: bytes = self._serial.read(max(size, self._serial.in_waiting))
        self.__dict__["_left"] -= len(data)
        if self._left < 0 or time.monotonic() > self._deadline:
            raise LostBoardError(f"{self._port}: the board sends without end")
        self._buffer.extend(data)

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    @property
    def in_waiting(self) -> int:
        """Bytes that can be read at once; there may be more."""
        return len(self._buffer) or self._serial.in_waiting

    def inWaiting(self) -> int:
        return self.in_waiting

    def __getattr__(self, name: str) -> Any:
        return getattr(self._serial, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._serial, name, value)


def _excerpt(text: str) -> str:
    """An answer of a board, short enough for an error."""
    more = f"... ({len(text):,} characters)" if len(text) > _MAX_SHOWN else ""
    return repr(text[:_MAX_SHOWN]) + more


def _short(line: str) -> str:
    return line if len(line) <= 5 * _MAX_SHOWN else line[: 5 * _MAX_SHOWN] + "..."


def _are_digests(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(digest, str) for digest in value.values())


def _words(error: Exception) -> str:
    if isinstance(error, struct.error):
        return "the board does not answer"
    return str(error) or type(error).__name__


def _folder(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def has_restarted(output: bytes | bytearray) -> bool:
    """Whether ``output`` ends with lines that only a starting board prints."""
    return output.endswith(_START_SIGNS)


def failure_lines(console: str) -> list[str]:
    """The console's lines that tell why an app was not started, or ended."""
    return [line for line in console.splitlines() if _FAILURE_LINE.match(line)]


_DIGESTS = """
import os, hashlib
def _digest(path):
    sha = hashlib.sha256()
    buf = bytearray(512)
    view = memoryview(buf)
    with open(path, "rb") as file:
        while True:
            count = file.readinto(buf)
            if not count:
                return sha.digest().hex()
            sha.update(view[:count])
def _digests(folder):
    try:
        entries = list(os.ilistdir(folder))
    except OSError:
        entries = []
    return {e[0]: _digest(folder + "/" + e[0]) for e in entries if e[1] == 0x8000}
"""
_REPLACE = """
import os
def _replace(path):
    try:
        os.rename(path + ".new", path)
    except OSError:  # FAT does not rename onto a file
        os.remove(path)
        os.rename(path + ".new", path)
"""
_WRITE = """
import os
from binascii import a2b_base64
def _put(path, mode, text):
    with open(path, mode) as file:
        file.write(a2b_base64(text))
def _make_folders(path):
    at = 0
    while at >= 0:
        at = path.find("/", at + 1)
        try:
            os.mkdir(path if at < 0 else path[:at])
        except OSError as error:
            if error.errno != 17:
                raise
"""
