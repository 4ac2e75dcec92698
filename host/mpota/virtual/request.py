"""What a virtual board's MicroPython asks of the host process: the kinds of ``standin/link.py``."""

from __future__ import annotations

from enum import IntEnum


class Request(IntEnum):
    """The first byte of a request; ``standin/link.py`` says what comes with each kind."""

    CONFIG = ord("C")
    SCRIPT = ord("S")
    ERASE = ord("E")
    WRITE = ord("W")
    SET_BOOT = ord("B")
    MARK_VALID = ord("V")
    BOOT_PARTITION = ord("P")
    NVS_OPEN = ord("O")
    NVS_SET = ord("N")
    NVS_GET = ord("G")
    NVS_ERASE = ord("K")
    NVS_COMMIT = ord("M")
    WATCHDOG = ord("D")
    SLEEP = ord("Z")
    RESET = ord("R")
    RTC_MEMORY = ord("X")
    IDLE = ord("I")
    SEND = ord("T")
    HEAP = ord("H")
    INTERRUPT_CHAR = ord("Y")
    RAW_MODE = ord("A")
