"""The flash of a board on a serial port, through esptool and its stub.

One connection a command: `open_board` connects, resets into download mode, loads the stub, and
lets the board start again when it is done. Everything that is written is read back as an MD5.
"""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, Protocol

from mpota.errors import Again, MpotaError
from mpota.formats.chips import Chip, chip_by_name
from mpota.storage.ports import (
    BUSY_S,
    DEFAULT_BAUD,
    LOADER_END,
    OPEN_AGAIN_S,
    check_end,
    find_port,
    is_pty,
)
from mpota.units import BLOCK_SIZE, SECTOR_SIZE, KiB, MiB, align_down, align_up

BEFORE_ENV = "MPOTA_BEFORE"  # how to reset into download mode: esptool's --before
AFTER_ENV = "MPOTA_AFTER"  # and out of it: esptool's --after

_ROM_BAUD = 115200
_CHUNK_SIZE = 4 * BLOCK_SIZE  # written and verified in one go
_ATTEMPTS = 3
_SHOWN_SIZE = 128 * KiB  # from this size on work takes a second or more, and shows progress
_CACHE_SIZE = 16 * KiB
_READ_SIZE = 2 * BLOCK_SIZE
_SECONDS_PER_MIB = 40.0  # worst case of erasing and writing: esptool's cmds.py, write_flash
_MIN_TIMEOUT = 5.0
_REACH_24BIT = 16 * MiB
_CHECK_CABLE = "check cable and power, then run the same command again"
_GOES_ON = Again(f"{_CHECK_CABLE}: it goes on where it stopped")


class Progress(Protocol):
    """Shows how far work of ``total`` bytes has come. The value it yields takes bytes done."""

    def __call__(
        self, description: str, total: int, /
    ) -> AbstractContextManager[Callable[[int], object]]: ...


def quiet(description: str, total: int, /) -> AbstractContextManager[Callable[[int], object]]:
    """No progress is shown."""
    return nullcontext(lambda done: None)


class BoardFlash:
    """A board's flash. Follows `mpota.storage.Flash` and `mpota.storage.FlashContents`.

    ``name`` is the port, ``mac`` the chip's in hex, ``chip_revision`` and ``block_revision`` (of
    its eFuses, None for an ESP32) are major * 100 + minor. What was read once is kept;
    blank flash is recognised by its MD5 and never read. With ``stays_in_loader`` it is not started
    at the end. ``places``: (start, end, what people call it), for progress. Of all that was
    programmed ``kept_size`` bytes stood there before, and ``repeats`` chunks had to be written
    again.
    """

    base = 0
    stays_in_loader = False
    places: tuple[tuple[int, int, str], ...] = ()
    kept_size = 0
    repeats = 0

    def __init__(self, esp: Any, name: str, chip: Chip, size: int, progress: Progress) -> None:
        self._esp = esp
        self.name = name
        self.chip = chip
        self.size = size
        self.mac = bytes(esp.read_mac()).hex()
        self.chip_revision: int | None = esp.get_chip_revision()
        self.block_revision = _read_block_revision(esp, chip)
        self._progress = progress
        self._cache: dict[int, bytes] = {}
        has_32bit = getattr(esp, "FLASH_32BIT_ADDR_SUPPORTED", False)
        self._reach = size if has_32bit else min(size, _REACH_24BIT)

    @property
    def end(self) -> int:
        """The first flash address behind the flash."""
        return self.size

    # --- reading ---------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``; 0xFF behind the end of the flash."""
        first, last = align_down(offset, _CACHE_SIZE), min(offset + size, self.size)
        wanted = range(first, last, _CACHE_SIZE)
        missing = [start for start in wanted if start not in self._cache]
        if missing:
            self._check_range("read", offset, last - offset)
            total = len(missing) * _CACHE_SIZE
            with self._show(f"reading {self._place(offset)}", total) as update, self.translated():
                done = 0
                for start, end in _runs(missing, _CACHE_SIZE):
                    self._fetch(start, end, update, done)
                    done += end - start
        data = b"".join(self._cache[start] for start in wanted)
        return data[offset - first :][:size].ljust(size, b"\xff")

    def _fetch(self, start: int, end: int, update: Callable[[int], object], done: int) -> None:
        """``end`` - ``start`` <= _READ_SIZE bytes into the cache; blank ones cost only an MD5."""
        size = end - start
        if self._esp.flash_md5sum(start, size) == _md5(b"\xff" * size):
            data = b"\xff" * size
        else:
            data = self._esp.read_flash(start, size, lambda n, *_: update(done + n))
        update(done + size)
        for at in range(0, size, _CACHE_SIZE):
            self._cache[start + at] = data[at : at + _CACHE_SIZE]

    def is_equal(self, offset: int, data: bytes) -> bool:
        """Whether these bytes stand at ``offset``: by MD5, without reading them."""
        self._check_range("compare", offset, len(data))
        with self.translated():
            return not data or bool(self._esp.flash_md5sum(offset, len(data)) == _md5(data))

    # --- changing --------------------------------------------------------------------------------

    def erase(self, offset: int, size: int) -> None:
        """Set whole sectors to 0xFF; offset and size are multiples of 4 KiB."""
        self._check_range("erase", offset, size)
        with self._show(f"erasing {self._place(offset)}", size) as update, self.translated():
            for start in range(offset, offset + size, 16 * BLOCK_SIZE):
                step = min(16 * BLOCK_SIZE, offset + size - start)
                self._forget(start, step)
                self._esp.erase_region(start, step)
                update(start + step - offset)

    def write(self, offset: int, data: bytes) -> None:
        """Program erased flash: in sectors that are written only in part, the rest stays."""
        start, end = align_down(offset, SECTOR_SIZE), align_up(offset + len(data), SECTOR_SIZE)
        if (start, end) != (offset, offset + len(data)):
            around = self.read(start, end - start)
            data = around[: offset - start] + data + around[offset - start + len(data) :]
        self.program(start, data)

    def program(self, offset: int, data: bytes, what: str = "") -> bool:
        """Make ``data`` stand at ``offset``, a sector's start: erase, write and compare by MD5.

        The last sector's rest becomes 0xFF. Chunks that stand there already are left alone, so
        that the same call again finishes what was interrupted; False: there was nothing to do.
        Raises MpotaError if the flash does not keep what is written to it.
        """
        self._check_range("write", offset, len(data))
        data = data.ljust(align_up(len(data), SECTOR_SIZE), b"\xff")
        is_changed = False
        with self._show(f"writing {what or self._place(offset)}", len(data)) as update:
            # Chunks end at 64 KiB blocks, which erase faster than sectors.
            position = 0
            while position < len(data):
                at = offset + position
                size = min(align_down(at, BLOCK_SIZE) + _CHUNK_SIZE - at, len(data) - position)
                chunk = data[position : position + size]
                if not self.is_equal(at, chunk):
                    self._write_chunk(at, chunk, partial(_update_behind, update, position))
                    is_changed = True
                else:
                    self.kept_size += size
                position += size
                update(position)
        return is_changed

    def _write_chunk(self, offset: int, data: bytes, update: Callable[[int], object]) -> None:
        self._forget(offset, len(data))
        for attempt in range(_ATTEMPTS):
            with self.translated():
                self._try_chunk(offset, data, update)
            if self.is_equal(offset, data):
                self.repeats += attempt
                return
        raise self._unreliable(offset, data)

    def _unreliable(self, offset: int, data: bytes) -> MpotaError:
        with self.translated():
            found = self._esp.read_flash(offset, len(data))
        wrong = [i for i, (a, b) in enumerate(zip(data, found, strict=True)) if a != b]
        example = ""
        if wrong:
            at = wrong[0]
            example = (
                f", the first at {offset + at:#x}: {found[at]:#04x} instead of {data[at]:#04x}"
            )
        return MpotaError(
            f"{self.name}: flash does not keep what is written to it: {len(wrong):,} of "
            f"{len(data):,} bytes at {offset:#x} differ after {_ATTEMPTS} attempts{example}",
            "the flash chip is worn out or badly soldered, or the supply voltage drops",
        )

    def _try_chunk(self, offset: int, data: bytes, update: Callable[[int], object]) -> None:
        from esptool.util import FatalError

        try:
            if data.count(0xFF) == len(data):
                self._esp.erase_region(offset, len(data))
            else:
                self._send_chunk(offset, data, update)
        except FatalError as error:
            # FatalError.WithResult: the stub answered that the flash chip failed. All else is
            # a matter of the cable.
            if "result was" not in str(error):
                raise

    def _send_chunk(self, offset: int, data: bytes, update: Callable[[int], object]) -> None:
        esp = self._esp
        packed = zlib.compress(data, 9)
        block_size = esp.FLASH_WRITE_SIZE
        timeout = max(_MIN_TIMEOUT, _SECONDS_PER_MIB * (len(data) + BLOCK_SIZE) / MiB)
        esp.flash_defl_begin(len(data), len(packed), offset)
        for seq, start in enumerate(range(0, len(packed), block_size)):
            esp.flash_defl_block(packed[start : start + block_size], seq, timeout=timeout)
            update(len(data) * min(start + block_size, len(packed)) // len(packed))
        # The stub answers before it writes: its answer to this one says that all is written.
        esp.flash_defl_finish(reboot=False, timeout=timeout)

    def _show(
        self, description: str, total: int
    ) -> AbstractContextManager[Callable[[int], object]]:
        shown = self._progress if total >= _SHOWN_SIZE else quiet
        return shown(description, total)

    # --- inside ----------------------------------------------------------------------------------

    def _place(self, offset: int) -> str:
        found = (name for start, end, name in self.places if start <= offset < end)
        return next(found, f"the flash from {offset:#x} on")

    def _forget(self, offset: int, size: int) -> None:
        for start in range(align_down(offset, _CACHE_SIZE), offset + size, _CACHE_SIZE):
            self._cache.pop(start, None)

    def _check_range(self, verb: str, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise MpotaError(
                f"{self.name}: {verb} of {size:#x} bytes at {offset:#x}: "
                f"the flash ends at {self.size:#x}"
            )
        if offset + size > self._reach:
            raise MpotaError(
                f"{self.name}: {verb} of {size:#x} bytes at {offset:#x}: esptool reaches only the "
                f"first {self._reach:#x} bytes of an {self.chip.title}'s flash"
            )

    def translated(self) -> AbstractContextManager[None]:
        """What esptool and the serial port raise becomes a MpotaError."""
        return _translated(self.name)


@contextmanager
def open_board(
    port: str | os.PathLike[str], *, baud: int = DEFAULT_BAUD, progress: Progress = quiet
) -> Iterator[BoardFlash]:
    """Connect to the board on ``port`` (see `mpota.storage.ports`); at the end it is reset.

    How it is reset can be set by the environment, MPOTA_BEFORE and MPOTA_AFTER, in esptool's
    words; a pty, which has no reset lines, is never reset. Raises MpotaError if there is no
    board, or one whose flash cannot be written as it is (encrypted, or in secure download mode).
    """
    name = find_port(port)
    check_end(name, LOADER_END)
    fixed = "no-reset" if is_pty(name) else None
    before = os.environ.get(BEFORE_ENV) or fixed or "default-reset"
    after = os.environ.get(AFTER_ENV) or ("no-reset-stub" if fixed else "hard-reset")
    with _quiet_esptool(), _connected(name, before, baud) as esp:
        board = BoardFlash(esp, name, chip_by_name(esp.CHIP_NAME), _flash_size(esp, name), progress)
        try:
            yield board
        finally:
            # A board that has gone cannot be reset, and its own error is the one to tell.
            with suppress(MpotaError), _translated(name):
                from esptool.cmds import reset_chip

                reset_chip(esp, "no-reset" if board.stays_in_loader else after)


@contextmanager
def _connected(name: str, before: str, baud: int) -> Iterator[Any]:
    from esptool.cmds import attach_flash, run_stub

    with _translated(name, "no board answers", _CHECK_CABLE):
        esp = _detect_chip(name, before)
    try:
        with _translated(name):
            if esp.secure_download_mode:
                raise MpotaError(f"{name}: the board is in secure download mode")
            if esp.get_flash_encryption_enabled():
                raise MpotaError(
                    f"{name}: flash encryption is on: what is written over the cable would not boot"
                )
            esp = run_stub(esp)
            if baud != _ROM_BAUD:
                esp.change_baud(baud)
            attach_flash(esp)
        yield esp
    finally:
        with suppress(Exception):
            esp._port.close()


def _detect_chip(name: str, before: str) -> Any:
    """esptool's, with patience: whoever has the port open may be about to close it."""
    from esptool.cmds import detect_chip
    from esptool.util import FatalError

    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            return detect_chip(name, _ROM_BAUD, before)
        except FatalError as error:
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
        time.sleep(OPEN_AGAIN_S)


def _read_block_revision(esp: Any, chip: Chip) -> int | None:
    """efuse_hal.c: efuse_hal_blk_version."""
    if chip.block_revision is None:
        return None
    major, minor = (
        esp.read_reg(esp.EFUSE_BASE + field.address) >> field.shift & field.mask
        for field in chip.block_revision
    )
    return int(major) * 100 + int(minor)


def _flash_size(esp: Any, name: str) -> int:
    from esptool.cmds import detect_flash_size
    from esptool.util import flash_size_bytes

    with _translated(name):
        text = detect_flash_size(esp)
        size = flash_size_bytes(text) if text else None
        if size is None:
            raise MpotaError(
                f"{name}: flash chip {esp.flash_id():#08x} does not tell a size that esptool knows"
            )
        esp.flash_set_parameters(size)
    return int(size)


@contextmanager
def _translated(
    name: str, what: str = "the connection failed", hint: str = _GOES_ON
) -> Iterator[None]:
    from esptool.util import FatalError, UnsupportedCommandError
    from serial import SerialException

    kinds: list[type[BaseException]] = [
        FatalError,
        UnsupportedCommandError,
        SerialException,
        OSError,
    ]
    with suppress(ImportError):
        import termios

        kinds.append(termios.error)
    try:
        yield
    except tuple(kinds) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise MpotaError(
            f"{name}: {what}: {lines[0] if lines else error!r}", _hint(error) or hint
        ) from None


def _is_busy(error: BaseException) -> bool:
    return any(words in str(error) for words in ("exclusively lock", "Access is denied"))


def _hint(error: BaseException) -> str | None:
    text = str(error)
    if _is_busy(error):
        return "another program has the port open: close it"
    if "Permission denied" in text:
        return "add yourself to the group that may use serial ports, dialout or uucp"
    if "Errno 2" in text or "FileNotFoundError" in text:
        return "check the port's name: `mpota ... auto` finds the only board that is plugged in"
    if "Failed to connect" in text or "No serial data" in text:
        return "hold BOOT while you press RESET, then run the command again"
    return None


class _NoText:
    """In place of what spells all bytes for traces: nobody sees these, and they take as long as
    all else (5.x: loader.py, HexFormatter)."""

    def __init__(self, *args: object) -> None:
        pass

    def __str__(self) -> str:
        return ""


@contextmanager
def _quiet_esptool() -> Iterator[None]:
    """esptool prints what it does; here only what goes wrong is told, as an error."""
    from esptool import loader
    from esptool.logger import log

    spelled = loader.HexFormatter
    loader.HexFormatter = _NoText
    log.set_verbosity("silent")
    try:
        yield
    finally:
        log.set_verbosity("auto")
        loader.HexFormatter = spelled


def _update_behind(update: Callable[[int], object], behind: int, done: int) -> None:
    update(behind + done)


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _runs(starts: list[int], step: int) -> Iterator[tuple[int, int]]:
    """Neighbours among ``starts`` together, as (start, end) of at most _READ_SIZE bytes."""
    first = previous = starts[0]
    for start in starts[1:]:
        if start != previous + step or start + step - first > _READ_SIZE:
            yield first, previous + step
            first = start
        previous = start
    yield first, previous + step
