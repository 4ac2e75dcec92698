"""What users call a board's serial port: ``/dev/ttyUSB0``, ``COM3``, ``u0``, ``a0``, ``auto``.

The short names are mpremote's: u for ttyUSB, a for ttyACM, c for COM.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

from mpota.errors import MpotaError, UsageError

DEFAULT_BAUD = 460800
BUSY_S = 2.0  # whoever has a port open may be about to close it
OPEN_AGAIN_S = 0.05  # to the next try: nothing portable tells that a port came or is free

_SHORT = r"([uac])(\d{1,3})"
_SHORT_PREFIX = {"u": "/dev/ttyUSB", "a": "/dev/ttyACM", "c": "COM"}
_WINDOWS = r"(?i)(\\\\\.\\)?COM\d{1,3}"
_URL = r"(rfc2217|socket):/+.+"
_ESPRESSIF_VID = 0x303A


def is_port(text: str | os.PathLike[str]) -> bool:
    """Whether ``text`` names a serial port rather than a file; a file of that name wins."""
    name = os.fspath(text)
    try:
        return stat.S_ISCHR(os.stat(name).st_mode)  # /dev/stdin may be a file
    except OSError:
        pass
    if name.startswith("/dev/"):
        return True
    known = (_SHORT, _WINDOWS, _URL)
    return name == "auto" or any(re.fullmatch(pattern, name) for pattern in known)


def find_port(text: str | os.PathLike[str]) -> str:
    """The port that ``text`` names, as the operating system calls it.

    Raises MpotaError if ``auto`` finds no board, UsageError if it finds several or ``text`` is no
    port.
    """
    name = os.fspath(text)
    if not is_port(name):
        raise UsageError(
            f"'{name}' is not a serial port",
            "ports are /dev/ttyUSB0, COM3, u0 (ttyUSB0), a0 (ttyACM0), c3 (COM3), or auto",
        )
    if name == "auto":
        return _only_port()
    if re.fullmatch(_URL, name):
        return re.sub(":/+", "://", name, count=1)
    short = re.fullmatch(_SHORT, name)
    if short and not Path(name).exists():
        return f"{_SHORT_PREFIX[short[1]]}{int(short[2])}"
    return name


def is_pty(port: str) -> bool:
    """Whether ``port`` is a pty, as a virtual board has it: there are no reset lines."""
    return os.path.realpath(port).startswith(("/dev/pts/", "/dev/ttys"))


REPL_END, LOADER_END = ".repl", ".rom"  # of the names of a virtual board's ports


def check_end(port: str, end: str) -> None:
    """Raises UsageError if ``port`` is named as the other end of a virtual board than ``end``.

    A real board has one port for both.
    """
    path = Path(port)
    other = {REPL_END: LOADER_END, LOADER_END: REPL_END}[end]
    if path.suffix == other and is_pty(port):
        what = {REPL_END: "MicroPython's REPL", LOADER_END: "the ROM loader"}
        raise UsageError(
            f"{port} is {what[other]} of a virtual board, this needs {what[end]}",
            f"that is {path.with_suffix(end)}",
        )


def usb_ports() -> list[str]:
    """The ports that a board may be on, those of Espressif's own USB first."""
    return [str(port.device) for port in _usb_ports()]


def format_mac(mac: str) -> str:
    """``240ac4000102`` as people write it."""
    return ":".join(mac[i : i + 2] for i in range(0, len(mac), 2))


def _usb_ports() -> list[Any]:
    from serial.tools.list_ports import comports

    found = [port for port in comports() if port.vid is not None]
    return sorted(found, key=lambda port: port.vid != _ESPRESSIF_VID)


def _only_port() -> str:
    found = _usb_ports()
    chosen = [port for port in found if port.vid == _ESPRESSIF_VID] or found
    if not chosen:
        raise MpotaError(
            "no board found: no serial port of a USB device",
            "plug the board in, use a cable that carries data, or name the port",
        )
    if len(chosen) > 1:
        names = ", ".join(f"{port.device} ({port.description})" for port in chosen)
        raise UsageError(f"auto finds {len(chosen)} ports: {names}", "name one of them")
    return str(chosen[0].device)
