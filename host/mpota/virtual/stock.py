"""A stock MicroPython firmware for demos and tests, where it is at hand.

`make demo` and `make test` fetch it into the user's cache (.ci/firmware): it lies in a wheel on
the Python package index, MIT like all of MicroPython, and is not part of mpota.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from mpota.virtual.micropython import cache_dir

NAME = "ESP32_GENERIC-20250415-v1.25.0.bin"
SHA256 = "1eb1a88473e32aa6a4d45dc1b5b6ad40bc1f06128e7aa8548e438cfa4633da1b"


def path() -> Path:
    """The file's place in the user's cache, where `.ci/firmware` puts it."""
    return cache_dir() / "firmware" / NAME


def is_genuine(data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == SHA256


def find() -> Path | None:
    """The firmware, its digest checked; None where it is not at hand."""
    try:
        return path() if is_genuine(path().read_bytes()) else None
    except OSError:
        return None
