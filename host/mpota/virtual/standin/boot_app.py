# What an app does from its start to the REPL, on a virtual board: ports/esp32/main.c, mp_task,
# with modules/_boot.py. Runs in a fresh process for every boot.

import gc
import json
import sys
import time

import link
import machine
from micropython import const

_MOUNT_OF_FROZEN = "/frozen"

# How boot.py and main.py ended, for the host: board.py. _HAS_TIMERS is added to one of the others.
_NORMALLY = 0
_EXCEPTION = 1
_FORCED_EXIT = 2
_HAS_TIMERS = 4

_MOST_NAMES = const(2000)
_NAMES_AT_ONCE = const(64)
_LARGEST_TABLE = const(8192)  # bytes: one for 1280 names, and no smaller one
_TABLE_OF_NAMES = const(4480)  # bytes: 7 a name

# To be known before the board's own files come into sight.
_MODULES = ("ssl", "bluetooth", "esp", "esp32", "network")

_ballast = None
_is_prepared = False


def _call(run, *args):
    run(*args)


def prepare():
    # For forks of this process: what all of their boots begin with.
    global _is_prepared
    for name in _MODULES:
        __import__(name)
    __import__("repl")  # some have a terminal
    _make_room_for_names()
    _is_prepared = True


def start(requests_fd, answers_fd, flash_fd):
    link.connect(requests_fd, answers_fd, flash_fd)
    config = json.loads(link.fetch(link.CONFIG)[1])
    script = link.fetch(link.SCRIPT)[1] if config["has_script"] else None
    _set_up_modules(config)
    terminal = config["terminal"]
    if terminal:
        _connect_terminal()
    _set_up_files(config)
    if not _is_prepared:
        _make_room_for_names()
    _take_all_but(config["heap_size"] and config["heap_size"] - _TABLE_OF_NAMES)
    if not config["has_psram"]:
        import esp32

        gc.collect()
        esp32._idle_alloc = gc.mem_alloc()
    link.watches_heap = config["watches_heap"]
    has_prompt = config["has_prompt"]
    config = None
    ended, traceback = _run(script, terminal)
    if machine.Timer._running:
        ended += _HAS_TIMERS
    link.call(link.IDLE, ended, traceback)
    if terminal:
        import repl

        repl.run(terminal == "raw")
        _finalise()
        print("MPY: soft reboot")
        link.call(link.RESET, machine.SOFT_RESET)
    if has_prompt:
        return  # to the interpreter's own REPL
    # Nothing happens at the prompt until somebody types, but timers and threads go on.
    while True:
        time.sleep_ms(5)


def _set_up_modules(config):
    for name in _MODULES:
        __import__(name)
    import bluetooth
    import esp
    import esp32

    esp32._partitions = tuple(tuple(row) for row in config["partitions"])
    esp32._running = esp32._partitions[config["running"]]
    esp32._read_faults = config["read_faults"]
    esp32._null_erase = config["null_erase"]
    esp._flash_size = config["flash_size"]
    bluetooth._port = config["radio_port"]
    machine._reset_cause = config["reset_cause"]
    machine._unique_id = bytes(config["unique_id"])
    if config["is_rehearsed"]:
        import hardware

        hardware.set_up()
    if config["skipped_sleep_ms"]:
        import clock

        clock.set_up(config["skipped_sleep_ms"])
    _pose_as(config)


class _Posing:
    # A built-in module with some of its attributes exchanged: those of the unix port cannot be
    # assigned.
    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, name)


def _pose_as(config):
    # sys and os tell of the app in the flash, not of the interpreter that stands in for it.
    import os
    from collections import namedtuple

    posing_sys = _Posing(sys)
    posing_os = _Posing(os)
    posing_sys.platform = "esp32"
    facts = config["micropython"]
    if facts:
        build, board = facts["build"], facts["board"]
        Implementation = namedtuple("Implementation", ("name", "version", "_machine", "_mpy"))
        posing_sys.implementation = Implementation(
            "micropython", tuple(facts["numbers"]), board, sys.implementation._mpy
        )
        posing_sys.version = "3.4.0; MicroPython " + build
        Uname = namedtuple("Uname", ("sysname", "nodename", "release", "version", "machine"))
        uname = Uname("esp32", "esp32", facts["release"], build, board)
        posing_os.uname = lambda: uname
    sys.modules["sys"] = posing_sys
    sys.modules["os"] = posing_os


def _connect_terminal():
    import micropython
    import repl

    global _call
    _call = repl.guarded
    sys.modules["micropython"] = _Posing(micropython)
    repl.set_up(sys.modules["sys"], sys.modules["micropython"])


def _finalise():
    # main.c calls gc_sweep_all(), so that what was left open is closed.
    import __main__

    __main__.__dict__.clear()
    gc.collect()


def _set_up_files(config):
    # The board's own file system takes the place of the machine's.
    import vfs
    from flashbdev import bdev

    vfs.umount("/")
    try:
        if bdev and config["is_rehearsed"]:
            _mount_timeless(vfs, bdev)
        elif bdev:
            vfs.mount(bdev, "/")
    except OSError:
        vfs.mount(vfs.VfsPosix("/"), "/")
        import inisetup

        vfs.umount("/")
        inisetup.setup()
    sys.path[:] = ["", ".frozen", "/lib"]
    if config["frozen"]:
        vfs.mount(vfs.VfsPosix(config["frozen"]), _MOUNT_OF_FROZEN)
        sys.path.insert(2, _MOUNT_OF_FROZEN)


def _mount_timeless(vfs, bdev):
    try:
        vfs.mount(vfs.VfsLfs2(bdev, mtime=False), "/")
    except OSError:  # another file system
        vfs.mount(bdev, "/")


def _make_room_for_names():
    # MicroPython's table of names (py/qstr.c) grows by a piece twice as large as the one before:
    # with the names of these modules in it, the next one would be of 9 KiB, for which a board has
    # no use. So it is taken now, and beside the heap; what a board takes for some 600 names in its
    # place is taken out of the heap: `_take_all_but`.
    gc.collect()
    names = gc.mem_alloc()
    for number in range(_MOST_NAMES):
        getattr(link, "n%d" % number, None)
        if not number % _NAMES_AT_ONCE:  # few: they leave less room in the new piece
            before, names = names, gc.mem_alloc()
            if names - before > _LARGEST_TABLE:
                return


def _take_all_but(heap_size):
    # These modules live in the heap, which on a board they would not: the heap is larger by more
    # than they need. What is left over is taken away here, so that what remains is in one piece,
    # as a board's heap is when boot.py starts, and not in the holes that these modules left.
    global _ballast
    if not heap_size:
        return
    gc.collect()
    surplus = gc.mem_free() - heap_size
    if surplus <= 0:
        return
    try:
        heap = bytearray(heap_size - 256)  # the rest of it: what little else stays free
    except MemoryError:  # a large one need not be in one piece
        _ballast = bytearray(surplus)
        return
    gc.disable()  # there is no garbage
    for size in (4096, 512, 64, 0):
        try:
            while True:
                _ballast = (_ballast, bytearray(size) if size else None)
        except MemoryError:
            pass
    gc.enable()
    del heap


def _run(script, terminal):
    # boot.py, then main.py, or the script in its place. An exception in boot.py ends it all. A
    # soft reset of the raw REPL leaves out main.py.
    import __main__

    names = __main__.__dict__
    ended, traceback = _guarded(_run_file, "boot.py", names)
    if ended == _NORMALLY and terminal != "raw":
        if script is None:
            ended, traceback = _guarded(_run_file, "main.py", names)
        else:
            ended, traceback = _guarded(_run_text, script, names)
    return ended, traceback


def _run_file(name, names):
    # pyexec.c: pyexec_file_if_exists
    import os

    try:
        os.stat(name)
    except OSError:
        return
    execfile(name, names)


def _run_text(text, names):
    exec(compile(text, "<stdin>", "exec"), names)


def _guarded(run, what, names):
    global _ballast
    try:
        _call(run, what, names)
    except SystemExit:
        return _FORCED_EXIT, b""
    except BaseException as error:
        import io

        _ballast = None  # room to say what happened
        text = io.StringIO()
        sys.print_exception(error, text)
        return _EXCEPTION, text.getvalue()
    return _NORMALLY, b""
