# Stand-in for MicroPython's `esp` module: raw flash (ports/esp32/modesp.c).

import errno
import struct

import link
from uctypes import addressof

LOG_NONE, LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG, LOG_VERBOSE = range(6)

_flash_size = 0  # set by boot_app.py


def osdebug(uart, level=LOG_VERBOSE):
    pass


def flash_size():
    return _flash_size


def flash_user_start():
    return 0x200000


def flash_read(offset, buf):
    _check_range(offset, len(buf))
    link.read(offset, buf, len(buf))


def flash_write(offset, buf):
    _check_range(offset, len(buf))
    if addressof(buf) == 0 or link.call(link.WRITE, offset, buf):
        raise OSError(errno.EIO)


def flash_erase(sector):
    _check_range(sector * 4096, 4096)
    if link.call(link.ERASE, sector * 4096, struct.pack("<I", 4096)):
        raise OSError(errno.EIO)


def _check_range(offset, size):
    if not 0 <= offset <= _flash_size - size:
        raise OSError(errno.EIO)
