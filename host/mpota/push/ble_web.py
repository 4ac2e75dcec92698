"""The page that updates boards from a browser over Web Bluetooth: one file, with all that it needs.

Its parts are in ``ble_page/``; what it shares with the page on boards is in ``device/web``.
"""

from __future__ import annotations

import re
from pathlib import Path

from mpota.resources import data_directory

FILE_NAME = "index.html"

_OWN = Path(__file__).with_name("ble_page")
_PLACE = re.compile(r"^/\* ([\w.]+) \*/$", re.MULTILINE)


def page() -> bytes:
    """The page: HTML with its style and its script inside."""
    return _PLACE.sub(lambda found: _part(found[1]), _part("page.html")).encode()


def _part(name: str) -> str:
    own = _OWN / name
    path = own if own.is_file() else data_directory("device") / "web" / name
    return path.read_text(encoding="utf-8").rstrip("\n")
