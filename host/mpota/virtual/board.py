"""A board without hardware: a flash file, the bootloader model, and real MicroPython.

Each boot is the bootloader model and then a fresh process of the MicroPython unix port, in which
the modules in ``standin/`` take the place of the board's own. What is C code and silicon on a
board (flash, otadata, NVS, the watchdog) lives here, in the host process, which that process asks
through a pipe (``standin/link.py``). So the rules of the flash exist once, a power cut can hit
any operation whoever performs it, and it is what it is on a board: the end, without a word.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import select
import struct
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from pathlib import Path
from typing import Literal

from mpota.bootloader import ota_ops
from mpota.bootloader.boot import BootloaderInfo, BootResult, boot, set_boot_error
from mpota.firmware.layout import unlisted_vfs
from mpota.formats import partition_table
from mpota.formats.app_desc import MicroPythonText, find_micropython
from mpota.formats.micropython import parse_release
from mpota.formats.partition_table import DATA, DEFAULT_TABLE_OFFSET, Partition
from mpota.storage import Flash
from mpota.units import KiB
from mpota.virtual import forkserver, micropython, standins
from mpota.virtual.call_faults import CallFault, find_error
from mpota.virtual.flash import FlashError, Operation, PowerCut, VirtualFlash, total_ms
from mpota.virtual.nvs import Nvs
from mpota.virtual.request import Request
from mpota.virtual.terminal import Terminal, process_state

# What a board without PSRAM has for MicroPython's heap after it has grown.
DEFAULT_HEAP_SIZE = 120 * KiB
# A larger heap than any board without PSRAM has.
_PSRAM_HEAP_SIZE = 256 * KiB
# The stand-ins and the interpreter's own needs, which on a board are not in the heap.
_HEAP_RESERVE_SIZE = 104 * KiB

_DEFAULT_TIMEOUT_S = 60.0
_DEFAULT_MAX_BOOTS = 20
# A program that waits at so many looks in a row, and asked nothing of its chip, is at rest.
_LOOKS, _LOOK_S = 8, 0.1

_REQUEST = struct.Struct("<BIIII")  # kind, argument, payload size, reads of files, other reads
_ANSWER = struct.Struct("<iI?")  # result, payload size, whether Ctrl-C was typed

# How an app came to its prompt: standin/boot_app.py.
_FORCED_EXIT = 2
_HAS_TIMERS = 4

# Where an image holds MicroPython's version texts: in its first segment, the read-only data.
_TEXTS_SIZE = 512 * KiB
_RELEASE = re.compile(r"v(\d+)\.(\d+)\.(\d+)(?:-(preview))?")


# What `writeblocks(n, uctypes.bytearray_at(0, size))` does on a chip. "erases" is what is known of
# ESP32 and ESP32-C3: esp_flash_write refuses the source after esp_partition_erase_range, and all
# of ``size`` is blank. The others are what a flash driver in ROM might do: it reads at address 0
# after the erase ("crashes", as it always does where the partition is encrypted), takes what it
# reads there ("written"), does nothing but says the same error ("ignored"), erases the first sector
# ("partial"), or erases and says no error ("accepted").
NullErase = Literal["erases", "crashes", "written", "ignored", "partial", "accepted"]


class ResetCause(IntEnum):
    """``machine.reset_cause()``: ports/esp32/modmachine.c."""

    POWER_ON = 1
    HARD = 2
    WATCHDOG = 3
    DEEP_SLEEP = 4
    SOFT = 5


class End(Enum):
    """Why a run is over."""

    IDLE = "idle"  # main.py, or the script, has ended: the REPL waits
    POWER_CUT = "power cut"
    NO_APP = "no app"  # the bootloader found nothing to start
    TOO_MANY_BOOTS = "too many boots"
    SETTLED = "settled"  # main.py goes on, and there is no more to wait for
    TIMEOUT = "timeout"
    DIED = "died"  # the interpreter ended by itself: os.system("kill ..."), or a crash


@dataclass(frozen=True)
class Boot:
    """One start of an app: from a reset to the next."""

    cause: ResetCause
    partition: Partition | None  # None: the bootloader found no app, or the power failed in it
    bootloader_lines: tuple[str, ...]
    output: str  # what the app wrote on the console
    # How often the app's MicroPython had read the flash when it last changed anything, or was at
    # its prompt: by the file system, and otherwise. (Not what ESP-IDF reads for itself: NVS,
    # otadata, the image that set_boot() verifies.)
    file_reads: int = 0
    other_reads: int = 0
    least_free: int | None = None  # bytes of heap, where that is watched: `Board.watches_heap`

    @property
    def console(self) -> str:
        return "".join(f"{line}\n" for line in self.bootloader_lines) + self.output


@dataclass(frozen=True)
class Run:
    """All that happened from power-on to the end of a run."""

    end: End
    boots: tuple[Boot, ...]
    traceback: str  # of the exception that ended main.py or the script, or empty
    operations: tuple[Operation, ...]  # what was done to the flash, bootloader included

    @property
    def output(self) -> str:
        """What the apps wrote, over all boots."""
        return "".join(boot.output for boot in self.boots)

    @property
    def console(self) -> str:
        """The whole console, bootloader included."""
        return "".join(boot.console for boot in self.boots)

    @property
    def labels(self) -> tuple[str | None, ...]:
        """The labels of the apps that were started, in order."""
        return tuple(boot.partition.label if boot.partition else None for boot in self.boots)

    @property
    def file_reads(self) -> int:
        """How often the file system read the flash, over all boots."""
        return sum(boot.file_reads for boot in self.boots)

    @property
    def reads(self) -> int:
        """How often MicroPython read the flash, the file system included: `Boot`."""
        return self.file_reads + sum(boot.other_reads for boot in self.boots)

    @property
    def duration_ms(self) -> float:
        """The modelled time of the flash operations."""
        return total_ms(self.operations)


@dataclass
class Board:
    """A board with the flash ``flash``. Nothing but the flash outlives a `run`."""

    flash: VirtualFlash
    # Free when boot.py starts; 4.4 KiB of it are for the names that a package brings (boot_app.py).
    heap_size: int = DEFAULT_HEAP_SIZE
    frozen: Path | None = None  # a directory of modules that the firmware has built in
    table_offset: int = DEFAULT_TABLE_OFFSET
    chip_revision: int | None = None  # major * 100 + minor; None: any image's demand is met
    block_revision: int | None = None  # of its eFuses, the same
    unique_id: bytes = bytes.fromhex("240ac4c0ffee")
    on_output: Callable[[str], None] | None = None  # told of the console as it is written
    radio_port: int = 0  # of the radio in reach (radio.py), 0: `bluetooth` finds none
    null_erase: NullErase = "erases"
    call_faults: list[CallFault] = field(default_factory=list)
    interpreter: micropython.Interpreter = field(default_factory=micropython.find)
    # Told the label of the app that a reset starts, and how many flash operations were before it.
    on_boot: Callable[[str, int], None] | None = None
    # Called in MicroPython's process before it starts, where it `is_rehearsed`.
    confine: Callable[[], None] | None = None
    # Files bear no time of day, so that the same run leaves the same flash; and there are stand-ins
    # for what programs use of a chip beside its flash.
    is_rehearsed: bool = False
    # time.sleep() of so many ms, or more, takes no time: the clock goes on by it. 0: all wait.
    # After fewer than 50 a program looks again for what comes from elsewhere.
    skipped_sleep_ms: int = 0
    watches_heap: bool = False  # see what is free at each change of the flash, garbage collected

    def run(
        self,
        script: str | None = None,
        *,
        timeout_s: float | None = _DEFAULT_TIMEOUT_S,
        max_boots: int = _DEFAULT_MAX_BOOTS,
        wait_at_idle: bool = False,
        stdin: int | None = None,
        terminal: Terminal | None = None,
        is_settled: Callable[[], bool] | None = None,
        power_fd: int | None = None,
    ) -> Run:
        """Power on, and let the board run until it idles, or until something else ends it.

        With a ``script`` the first boot runs it in place of main.py, as `mpremote run` does; a
        reset in it ends it, and the next boot is an ordinary one. With ``wait_at_idle`` the board
        is left at its prompt as long as its watchdog or a timer runs, until one of them resets
        it or time is out. What comes from the file descriptor ``stdin`` is typed at the prompt;
        its end, or Ctrl-D, ends the run. With a ``terminal`` the board is on until that hangs up,
        and what it prints goes there alone. A program that goes on for ever is left as soon as it
        only waits, changes nothing, and ``is_settled()``. The power fails as soon as the file
        descriptor ``power_fd`` can be read.

        Raises FlashError if the code on the board breaks a rule of NOR flash, and MpotaError if
        no interpreter is to be had.
        """
        first_operation = len(self.flash.operations)
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        power_on = _PowerCycle(
            self, _Limits(deadline, wait_at_idle, stdin, terminal, is_settled, power_fd)
        )
        power_on.run(script, max_boots)
        operations = tuple(self.flash.operations[first_operation:])
        return Run(power_on.end, tuple(power_on.boots), power_on.traceback, operations)

    def tell(self, text: str, terminal: Terminal | None = None) -> None:
        """Let whoever listens know what is on the console now."""
        if terminal is not None:
            terminal.print(text.encode())
        elif self.on_output is not None and text:
            self.on_output(text)


def _app_partitions(
    table: tuple[Partition, ...], flash: Flash, app: Partition
) -> tuple[Partition, ...]:
    """The partitions as the running app sees them."""
    if unlisted_vfs(table, flash.size, None) is None:
        return table
    vfs = unlisted_vfs(table, flash.size, parse_release(_micropython_text(flash, app).version))
    return (*table, vfs) if vfs else table


@dataclass(frozen=True)
class _Limits:
    """When a run has to end."""

    deadline: float
    wait_at_idle: bool
    stdin: int | None
    terminal: Terminal | None
    is_settled: Callable[[], bool] | None
    power_fd: int | None


@dataclass(frozen=True)
class _Start:
    """What the process of one boot is given."""

    app: Partition
    partitions: tuple[Partition, ...]  # as the app sees them
    bootloader: BootloaderInfo
    cause: ResetCause
    script: str | None


class _PowerCycle:
    """The boots from power-on to the end of a run."""

    def __init__(self, board: Board, limits: _Limits) -> None:
        self._board = board
        self._limits = limits
        self._found: BootResult | None = None  # what the bootloader came to last
        self._watchdog: float | None = None
        self._rtc_memory = b""  # it is lost with the power
        self.boots: list[Boot] = []
        self.end = End.TOO_MANY_BOOTS
        self.traceback = ""

    def run(self, script: str | None, max_boots: int) -> None:
        cause = ResetCause.POWER_ON
        while len(self.boots) < max_boots:
            try:
                next_cause = self._boot(cause, script)
            except PowerCut:  # in the bootloader
                self.boots.append(Boot(cause, None, (), ""))
                self.end = End.POWER_CUT
                return
            if next_cause is None:
                return
            cause, script = next_cause, None

    def _boot(self, cause: ResetCause, script: str | None) -> ResetCause | None:
        """One boot; why the next one follows, None if none does."""
        operations = len(self._board.flash.operations)
        if cause is not ResetCause.SOFT:  # a soft reset is a matter of MicroPython alone
            self._watchdog = None
            if self._limits.terminal is not None:
                self._limits.terminal.reset()
            self._found = self._start_bootloader()
        found = self._found
        assert found is not None  # the first boot is no soft reset
        lines = () if cause is ResetCause.SOFT else found.printed
        app = found.starts
        if app is None or found.bootloader is None:
            self.boots.append(Boot(cause, None, lines, ""))
            self.end = End.NO_APP
            return None
        if cause is not ResetCause.SOFT and self._board.on_boot is not None:
            self._board.on_boot(app.label, operations)
        partitions = _app_partitions(found.partitions, self._board.flash, app)
        start = _Start(app, partitions, found.bootloader, cause, script)
        process = _Process(self._board, start, self._limits, self._watchdog, self._rtc_memory)
        next_cause = process.serve()
        self._watchdog, self._rtc_memory = process.watchdog, process.rtc_memory
        self.boots.append(
            Boot(cause, app, lines, process.output, *process.reads, process.least_free)
        )
        if next_cause is None:
            self.end, self.traceback = process.end, process.traceback
        return next_cause

    def _start_bootloader(self) -> BootResult:
        board = self._board
        result = boot(
            board.flash,
            table_offset=board.table_offset,
            chip_revision=board.chip_revision,
            block_revision=board.block_revision,
        )
        board.tell("".join(f"{line}\n" for line in result.printed), self._limits.terminal)
        return result


def _readable(fds: Iterable[int], wait_s: float | None) -> set[int]:
    """Those that can be read, or have ended, within that time; select() is for few open files."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(None if wait_s is None else math.ceil(wait_s * 1000))}


class _Process:
    """The MicroPython process of one boot, and the chip around it."""

    def __init__(
        self,
        board: Board,
        start: _Start,
        limits: _Limits,
        watchdog: float | None,
        rtc_memory: bytes,
    ) -> None:
        self._board = board
        self._flash = board.flash
        self._partitions = start.partitions
        self._start = start
        self._limits = limits
        self._terminal = limits.terminal
        self.watchdog = watchdog  # when it bites, None: it does not run
        self.rtc_memory = rtc_memory
        self._slept_s = 0.0  # without waiting
        self._is_idle = False
        self._is_resettable = False  # by a timer or the watchdog
        # nvs_flash_init: ESP-IDF's default partition.
        names = ("data", "nvs", "nvs")
        nvs = (p for p in self._partitions if (p.type_name, p.subtype_name, p.label) == names)
        self._nvs = Nvs(self._flash, next(nvs, None))
        self.reads = (0, 0)  # by the file system, and others
        self.least_free: int | None = None
        self._looks = 0  # in a row in which nothing happened: `_is_at_rest`
        self._output = bytearray()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.end = End.DIED  # until another reason is found
        self.traceback = ""

    @property
    def output(self) -> str:
        return self._output.decode("utf-8", "replace").replace("\r\n", "\n")

    def serve(self) -> ResetCause | None:
        """Run the process until it resets, the answer is why, or until it ends: None."""
        request_fd, child_request_fd = os.pipe()
        child_answer_fd, answer_fd = os.pipe()
        child_flash_fd = os.open(self._flash.path, os.O_RDONLY)
        child_fds = (child_request_fd, child_answer_fd, child_flash_fd)
        try:
            try:
                child = self._spawn(child_fds)
            finally:
                for fd in child_fds:
                    os.close(fd)
            return self._watch(child, request_fd, answer_fd)
        except PowerCut:
            self.end = End.POWER_CUT
            return None
        finally:
            os.close(request_fd)
            os.close(answer_fd)

    def _watch(
        self, child: subprocess.Popen[bytes] | forkserver.Fork, request_fd: int, answer_fd: int
    ) -> ResetCause | None:
        """Serve the process, and let nothing of it outlive what is decided then."""
        assert child.stdout is not None
        console_fd = child.stdout.fileno()
        if self._terminal is not None:
            self._terminal.attach(child.pid)
        self._pid = child.pid
        try:
            return self._serve(request_fd, answer_fd, console_fd)
        finally:
            child.kill()  # a reset, as a power cut, lets nothing finish
            while self._take_output(console_fd):
                pass
            child.wait()
            child.stdout.close()

    def _spawn(self, fds: tuple[int, int, int]) -> subprocess.Popen[bytes] | forkserver.Fork:
        stdin = self._limits.stdin
        has_own_prompt = stdin is not None
        if self._terminal is not None:
            stdin = self._terminal.stdin_fd
        command = self._board.interpreter.with_heap(self._board.heap_size + _HEAP_RESERVE_SIZE)
        if not has_own_prompt and not self._board.is_rehearsed:
            child = forkserver.start(command, fds, stdin)
            if child is not None:
                return child
        return standins.start(
            [*command, *(["-i"] if has_own_prompt else [])],
            f"import boot_app; boot_app.start{fds}",
            fds,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=self._board.confine,
        )

    def _serve(self, request_fd: int, answer_fd: int, console_fd: int) -> ResetCause | None:
        """Answer requests and collect output until a reset, its cause, or the end: None."""
        waiting = [request_fd, console_fd]
        self._console_fd = console_fd
        while True:
            if self._terminal is not None:
                self._terminal.look()
            paused_until = self._terminal.paused_until if self._terminal is not None else math.inf
            deadline = self._limits.deadline - self._slept_s
            until = min(deadline, self.watchdog or math.inf, paused_until)
            is_watched = self._limits.is_settled is not None and self._start.script is None
            look_at = time.monotonic() + _LOOK_S if is_watched else math.inf
            is_look = look_at < until
            until = min(until, look_at)
            wait_s = None if until == math.inf else max(0.0, until - time.monotonic())
            typed_fd = self._terminal.waiting_fd if self._terminal is not None else None
            typed = [] if typed_fd is None else [typed_fd]
            power_fd = self._limits.power_fd
            power = [] if power_fd is None else [power_fd]
            ready = _readable([*waiting, *typed, *power], wait_s)
            if power_fd in ready:
                self.end = End.POWER_CUT
                return None
            if console_fd in ready and not self._take_output(console_fd):
                waiting.remove(console_fd)
            if typed_fd in ready:
                assert self._terminal is not None
                if not self._terminal.forward():
                    self.end = End.POWER_CUT
                    return None
            if request_fd in ready:
                self._looks = 0
                try:
                    is_over = self._answer(request_fd, answer_fd)
                except _Reset as reset:
                    return reset.cause
                if is_over:
                    self.end = End.IDLE if self._is_idle else End.DIED
                    return None
            elif not ready and is_look:
                if self._is_at_rest():
                    self.end = End.SETTLED
                    return None
            elif not ready and until == paused_until:
                continue
            elif not ready and until == self.watchdog:
                self._print(_WATCHDOG_LINES)
                return ResetCause.WATCHDOG
            elif not ready:
                self.end = End.IDLE if self._is_idle else End.TIMEOUT
                return None

    def _is_at_rest(self) -> bool:
        """Whether nothing has happened for a while, and nothing more is to come.

        One that runs, or would if this machine had the time, is not at rest.
        """
        is_waiting, _ = process_state(self._pid)
        self._looks = self._looks + 1 if is_waiting else 0
        is_settled = self._limits.is_settled
        return self._looks >= _LOOKS and is_settled is not None and is_settled()

    def _answer(self, request_fd: int, answer_fd: int) -> bool:
        """Take a request, perform it, answer it; whether the run is over with it."""
        header = _read_exactly(request_fd, _REQUEST.size)
        if not header:
            return True  # the process has ended
        kind, argument, size, *reads = _REQUEST.unpack(header)
        self.reads = (reads[0], reads[1])
        try:
            request = Request(kind)
        except ValueError:
            raise FlashError(f"the board asked for '{chr(kind)}', which is nothing") from None
        result, payload = self._perform(request, argument, _read_exactly(request_fd, size))
        if self._is_idle and not self._lives_on():
            return True
        is_interrupted = self._takes_interrupt(request, argument)
        try:
            os.write(answer_fd, _ANSWER.pack(result, len(payload), is_interrupted) + payload)
        except BrokenPipeError:  # the process has ended meanwhile
            return True
        return False

    def _takes_interrupt(self, request: Request, argument: int) -> bool:
        """Whether Ctrl-C was typed, and KeyboardInterrupt can follow this request."""
        if self._terminal is None or request is Request.HEAP:  # another request follows it
            return False
        if request in (Request.ERASE, Request.WRITE) and any(
            p.type == DATA and p.offset <= argument < p.end for p in self._partitions
        ):
            return False  # littlefs asks for it: C code, which nothing breaks off on a board
        return self._terminal.take_interrupt()

    def _lives_on(self) -> bool:
        """Whether anything can still happen at the prompt that the caller waits for."""
        limits = self._limits
        if limits.stdin is not None or limits.terminal is not None:
            return True
        return limits.wait_at_idle and self._is_resettable

    def _perform(self, request: Request, argument: int, payload: bytes) -> tuple[int, bytes]:
        """Carry a request out: the result and the payload of its answer."""
        faults = self._board.call_faults
        if faults and (error := find_error(faults, request, argument, payload, self._partitions)):
            return error, b""
        match request:
            case Request.ERASE:
                (size,) = struct.unpack("<I", payload)
                self._check_region_safe(argument, size)
                self._flash.erase(argument, size)
            case Request.WRITE:
                self._check_region_safe(argument, len(payload))
                self._flash.write(argument, payload)
            case Request.SET_BOOT:
                return self._set_boot(argument), b""
            case Request.MARK_VALID:
                return ota_ops.mark_app_valid(self._flash, self._partitions), b""
            case Request.BOOT_PARTITION:
                selected = ota_ops.boot_partition(self._flash, self._partitions)
                return (-1 if selected is None else selected.offset), b""
            case Request.HEAP:
                free = argument * 4 // self._board.interpreter.word_size
                self.least_free = min(free, self.least_free or free)
            case Request.WATCHDOG:
                self.watchdog = time.monotonic() + argument / 1000
            case Request.SLEEP:
                self._sleep(argument / 1000)
            case Request.RESET:
                raise _Reset(ResetCause(argument))
            case Request.RTC_MEMORY if argument:
                self.rtc_memory = payload
            case Request.RTC_MEMORY:
                return 0, self.rtc_memory
            case Request.CONFIG:
                return 0, json.dumps(self._config()).encode()
            case Request.SCRIPT:
                return 0, (self._start.script or "").encode()
            case Request.IDLE:
                self._drain_output()
                self._idle(argument, payload.decode("utf-8", "replace"))
            case Request.SEND | Request.INTERRUPT_CHAR | Request.RAW_MODE:
                self._tell_terminal(request, argument, payload)
            case _:
                return self._perform_nvs(request, argument, payload)
        return ota_ops.ESP_OK, b""

    def _perform_nvs(self, request: Request, argument: int, payload: bytes) -> tuple[int, bytes]:
        """As `_perform`, for NVS; ``argument`` is the type of the value."""
        if request is Request.NVS_OPEN:
            return self._nvs.open(payload), b""
        if request is Request.NVS_COMMIT:
            return self._nvs.commit(), b""
        namespace, key, *value = payload.split(b"\0", 2)
        if request is Request.NVS_GET:
            return self._nvs.get(namespace, key, argument)
        if request is Request.NVS_ERASE:
            return self._nvs.erase(namespace, key), b""
        return self._nvs.set(namespace, key, argument, value[0]), b""

    def _tell_terminal(self, request: Request, argument: int, payload: bytes) -> None:
        if self._terminal is None:
            raise FlashError(f"the board asked for a terminal ({request.name}): there is none")
        if request is Request.SEND:
            self._drain_output()
            self._terminal.send(payload)
        elif request is Request.INTERRUPT_CHAR:
            self._terminal.set_interrupt_char(argument)
        else:
            self._terminal.is_raw = bool(argument)

    def _sleep(self, duration_s: float) -> None:
        """Let time pass without waiting for it."""
        self._slept_s += duration_s
        if self.watchdog is not None:
            self.watchdog -= duration_s
            if self.watchdog <= time.monotonic():
                self._print(_WATCHDOG_LINES)
                raise _Reset(ResetCause.WATCHDOG)

    def _set_boot(self, offset: int) -> int:
        def image_validate(partition: Partition) -> int:
            bootloader = self._start.bootloader
            return set_boot_error(self._flash, partition.offset, partition.size, bootloader)

        target = next(p for p in self._partitions if p.offset == offset)
        return ota_ops.set_boot_partition(self._flash, self._partitions, target, image_validate)

    def _idle(self, ended: int, traceback: str) -> None:
        """boot.py and main.py are over. ``ended``: bits of ``standin/boot_app.py``."""
        if ended & _FORCED_EXIT and self._start.script is None:
            self._print("MPY: soft reboot\n")
            raise _Reset(ResetCause.SOFT)
        # On a board the functions of the stand-ins are C code, which no traceback shows.
        own = tuple(f'  File "{path.stem}.py"' for path in standins.SOURCES.glob("*.py"))
        lines = traceback.splitlines(keepends=True)
        self.traceback = "".join(line for line in lines if not line.startswith(own))
        self._print(self.traceback)
        self._is_idle = True
        self._is_resettable = bool(ended & _HAS_TIMERS) or self.watchdog is not None

    def _check_region_safe(self, offset: int, size: int) -> None:
        """esp_partition_main_flash_region_safe, with SPI_FLASH_DANGEROUS_WRITE_ABORTS."""
        table_end = self._board.table_offset + partition_table.TABLE_SIZE
        running = self._start.app
        if offset <= table_end or (offset < running.end and offset + size > running.offset):
            self._print("\nabort() was called: write to a protected region of the flash\n")
            self._print("Rebooting...\n")
            raise _Reset(ResetCause.HARD)

    def _config(self) -> dict[str, object]:
        """What ``standin/boot_app.py`` sets up its modules from."""
        board = self._board
        return {
            "partitions": [
                (p.type, p.subtype, p.offset, p.size, p.label, bool(p.flags & 1))
                for p in self._partitions
            ],
            "running": next(
                i for i, p in enumerate(self._partitions) if p.offset == self._start.app.offset
            ),
            "flash_size": self._flash.size,
            "reset_cause": int(self._start.cause),
            "unique_id": list(board.unique_id),
            "micropython": _micropython_facts(self._flash, self._start.app),
            "has_script": self._start.script is not None,
            "has_prompt": self._limits.stdin is not None,
            "terminal": self._terminal and ("raw" if self._terminal.is_raw else "friendly"),
            "frozen": str(board.frozen.resolve()) if board.frozen else None,
            "radio_port": board.radio_port,
            "read_faults": [
                (fault.where, fault.error, fault.times)
                for fault in board.call_faults
                if fault.call == "read"
            ],
            "null_erase": board.null_erase,
            "has_psram": board.heap_size >= _PSRAM_HEAP_SIZE,
            "heap_size": board.heap_size * board.interpreter.word_size // 4,
            "is_rehearsed": board.is_rehearsed,
            "skipped_sleep_ms": board.skipped_sleep_ms,
            "watches_heap": board.watches_heap,
        }

    def _take_output(self, console_fd: int) -> bool:
        data = os.read(console_fd, 1 << 16)
        if self._terminal is not None:
            self._terminal.print(data)
        else:
            self._output += data
            self._board.tell(self._decoder.decode(data))
        return bool(data)

    def _drain_output(self) -> None:
        """Take what was printed before the request at hand."""
        while _readable([self._console_fd], 0) and self._take_output(self._console_fd):
            pass

    def _print(self, text: str) -> None:
        if self._terminal is None:
            self._output += text.encode()
        self._board.tell(text, self._terminal)


class _Reset(Exception):
    def __init__(self, cause: ResetCause) -> None:
        self.cause = cause


_WATCHDOG_LINES = (
    "E (0) task_wdt: Task watchdog got triggered. "
    "The following tasks/users did not reset the watchdog in time:\n"
    "E (0) task_wdt:  - mpy_machine_wdt (CPU 0/1)\n"
    "Rebooting...\n"
)


def _micropython_facts(flash: Flash, app: Partition) -> dict[str, object] | None:
    """What sys.implementation and os.uname() say in ``app``; None if it holds no such texts.

    py/modsys.c and extmod/modos.c put them together from the same texts as the prompt.
    """
    found = _micropython_text(flash, app)
    release = _RELEASE.match(found.version or "")
    if release is None:
        return None
    major, minor, patch, preview = release.groups(default="")
    return {
        "numbers": [int(major), int(minor), int(patch), preview],
        "release": release[0].removeprefix("v"),
        "build": f"{found.version} on {found.build_date}",
        "board": found.board or "ESP32 module with ESP32",
    }


def _micropython_text(flash: Flash, app: Partition) -> MicroPythonText:
    return find_micropython(flash.read(app.offset, min(app.size, _TEXTS_SIZE)))


def _read_exactly(fd: int, size: int) -> bytes:
    """``size`` bytes from a pipe; fewer only at its end."""
    data = b""
    while len(data) < size:
        chunk = os.read(fd, size - len(data))
        if not chunk:
            break
        data += chunk
    return data
