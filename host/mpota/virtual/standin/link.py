# The line between the virtual board's MicroPython and the process that owns its flash.
#
# What is C code and silicon on a board (esp_flash, esp_ota_ops, nvs, the watchdog) runs in the
# host process: mpota/virtual/board.py. Requests go through one pipe, answers come through
# another; reads of the flash come straight from its file, which is open here for reading only, and
# mapped into memory where that can be done: littlefs reads it in thousands of small pieces.
#
# Request: kind (a character), u32 argument, u32 payload size, u32 reads of the file system and u32
# other reads of the flash since the start, payload.
# Answer: i32 result, u32 payload size, u8 whether Ctrl-C was typed, payload. Nothing is allocated
# for a request without one.

import _thread
import gc
import struct

from micropython import const

# The kinds of requests: request.py has the same for the host process.
CONFIG = ord("C")  # -> JSON
SCRIPT = ord("S")  # -> source text of the script to run instead of main.py
ERASE = ord("E")  # argument: flash offset, payload: u32 size
WRITE = ord("W")  # argument: flash offset, payload: data
SET_BOOT = ord("B")  # argument: flash offset of the partition
MARK_VALID = ord("V")
BOOT_PARTITION = ord("P")  # -> flash offset of the partition
NVS_OPEN = ord("O")  # payload: namespace
NVS_SET = ord("N")  # argument: type, payload: namespace NUL key NUL value
NVS_GET = ord("G")  # argument: type, payload: namespace NUL key -> value
NVS_ERASE = ord("K")  # payload: namespace NUL key
NVS_COMMIT = ord("M")
WATCHDOG = ord("D")  # argument: milliseconds until the board is reset; again: feeds it
RESET = ord("R")  # argument: a cause (machine.py); never answered
RTC_MEMORY = ord("X")  # -> what it holds; argument 1: the payload takes its place
IDLE = ord("I")  # argument: how boot.py and main.py ended, payload: the traceback, if any
# With a terminal on the serial port: repl.py.
SEND = ord("T")  # payload: bytes for it, as they are
HEAP = ord("H")  # argument: bytes that are free, once garbage is collected
INTERRUPT_CHAR = ord("Y")  # argument: what raises KeyboardInterrupt when it is typed, 0xFF: none
RAW_MODE = ord("A")  # argument: whether the raw REPL is on, also after a soft reset

# Whose reads of the flash: `read`. On a board each one stops both cores.
FILES = 0
OTHER = 1

_SIGINT = const(2)

# Where the flash is mapped: where its addresses are small integers on 32 bits too, for which
# nothing is allocated.
_MAP_AT = const(0x10000000)
_PROT_READ = 1
_MAP_SHARED_FIXED_NOREPLACE = 0x100001  # Linux

_reads = [0, 0]
_header = bytearray(17)
_answer = bytearray(9)
_lock = _thread.allocate_lock()
_requests = _answers = _flash = _hold = _release = _copy = None
_mapped_size = 0
_main = _thread.get_ident()
watches_heap = False  # set by boot_app.py: tell before each change of the flash


def connect(requests_fd, answers_fd, flash_fd):
    global _requests, _answers, _flash
    _requests = open(requests_fd, "wb")
    _answers = open(answers_fd, "rb")
    _flash = open(flash_fd, "rb")
    _map(flash_fd)


def _map(flash_fd):
    global _copy, _mapped_size
    try:
        import ffi

        library = ffi.open("libc.so.6")
    except (ImportError, OSError):
        return
    size = _flash.seek(0, 2)
    mmap = library.func("P", "mmap", "PIiiil")
    if mmap(_MAP_AT, size, _PROT_READ, _MAP_SHARED_FIXED_NOREPLACE, flash_fd, 0) == _MAP_AT:
        _copy = library.func("v", "memcpy", "pPI")
        _mapped_size = size


def mask_interrupts():
    # A request is C code on a board, which Ctrl-C does not interrupt half-way: here the interpreter
    # raises KeyboardInterrupt from its handler of SIGINT, wherever it is.
    global _lock, _hold, _release
    import ffi

    for name in ("libc.so.6", "libSystem.B.dylib"):
        try:
            library = ffi.open(name)
        except OSError:
            continue
        _hold = library.func("i", "sighold", "i")
        _release = library.func("i", "sigrelse", "i")
        _lock = _MaskedLock(_lock)


def mask_thread():
    # Only the main thread is to be interrupted.
    if _hold:
        _hold(_SIGINT)


class _MaskedLock:
    def __init__(self, lock):
        self._lock = lock
        self.locked = lock.locked

    def __enter__(self):
        _hold(_SIGINT)
        self._lock.acquire()

    def __exit__(self, kind, error, traceback):
        self._lock.release()
        if _thread.get_ident() == _main:
            _release(_SIGINT)


def is_busy():
    return _lock.locked()


def call(kind, argument=0, payload=b""):
    # The result of a request that has no payload in its answer.
    if watches_heap:
        gc.collect()
        free = gc.mem_free()
        with _lock:
            _exchange(HEAP, free, b"")
    with _lock:
        result = _exchange(kind, argument, payload)[0]
        is_interrupted = _answer[8]
    if is_interrupted:
        raise KeyboardInterrupt
    return result


def fetch(kind, argument=0, payload=b""):
    # (result, payload) of a request.
    with _lock:
        result, size = _exchange(kind, argument, payload)
        payload = _answers.read(size)
        is_interrupted = _answer[8]
    if is_interrupted:
        raise KeyboardInterrupt
    return result, payload


def read(offset, buf, size, whose=OTHER):
    # ``size`` is that of ``buf``.
    _reads[whose] += 1
    if offset + size > _mapped_size:
        with _lock:
            _flash.seek(offset)
            _flash.readinto(buf)
    else:
        _copy(buf, _MAP_AT + offset, size)


def _exchange(kind, argument, payload):
    struct.pack_into("<BIIII", _header, 0, kind, argument, len(payload), _reads[0], _reads[1])
    _requests.write(_header)
    if payload:
        _requests.write(payload)
    _answers.readinto(_answer)
    return struct.unpack("<iI", _answer)
