# What all boots begin with is done once: this process waits with it, and each boot is a fork of it.
# The host process is mpota/virtual/forkserver.py.

import gc

import boot_app
import ffi
from micropython import const

_O_RDONLY = const(0)
_O_WRONLY = const(1)
_WNOHANG = const(1)
_PR_SET_PDEATHSIG = const(1)  # linux/prctl.h
_SIGKILL = const(9)

_libc = ffi.open("libc.so.6")
_fork = _libc.func("i", "fork", "")
_getpid = _libc.func("i", "getpid", "")
_waitpid = _libc.func("i", "waitpid", "iPi")
_open = _libc.func("i", "open", "si")
_dup2 = _libc.func("i", "dup2", "ii")
_close = _libc.func("i", "close", "i")
_prctl = _libc.func("i", "prctl", "ii")


def serve(orders_fd, answers_fd):
    # An order: "FILE STDOUT REQUESTS ANSWERS FLASH\n", paths of what the fork opens: its stdin and
    # so on. The answer is the fork's, once it has: "PID\n"; "0\n" where there is none. When the
    # host process ends, however it does, this one does, and all forks with it.
    boot_app.prepare()
    orders = open(orders_fd, "rb")
    told = open(answers_fd, "wb")
    while True:
        gc.collect()  # all forks begin with the same heap
        order = orders.readline().decode().split()
        while _waitpid(-1, None, _WNOHANG) > 0:
            pass
        if not order:
            return
        pid = _fork()
        if pid == 0:
            break
        if pid < 0:
            told.write("0\n")
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    typed, console, requests, answers, flash = order
    _dup2(_open(typed, _O_RDONLY), 0)
    _dup2(_open(console, _O_WRONLY), 1)
    _dup2(1, 2)
    fds = _open(requests, _O_WRONLY), _open(answers, _O_RDONLY), _open(flash, _O_RDONLY)
    told.write("%d\n" % _getpid())
    told.close()
    orders.close()
    boot_app.start(*fds)
