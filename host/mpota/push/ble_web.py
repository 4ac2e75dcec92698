"""The page that updates boards from a browser over Web Bluetooth: one file, with all that it needs.

Its parts are in ``ble_page/``; what it shares with the page on boards is in ``device/web``.
"""

from __future__ import annotations

from pathlib import Path

from mpota import resources

FILE_NAME = "index.html"

_OWN = Path(__file__).with_name("ble_page")


def page() -> bytes:
    """The page: HTML with its style and its script inside."""
    return resources.page(_OWN, resources.data_directory("device") / "web").encode()
