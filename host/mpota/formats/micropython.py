"""What MicroPython's ESP32 port mounts at boot, by release.

Source: ``ports/esp32/modules/flashbdev.py`` and ``inisetup.py``, ``ports/esp32/main.c``
(boardctrl_startup) and ``lib/littlefs/lfs2.h`` (LFS2_DISK_VERSION) of v1.18 to v1.28.
"""

from __future__ import annotations

import re

Release = tuple[int, int]  # (1, 26)

VFS = "vfs"
FFAT = "ffat"  # TinyUF2's; with blocks of 512 bytes, and with FAT

DISK_VERSION_2_0, DISK_VERSION_2_1 = 0x20000, 0x20001

_MOUNTS_FFAT = (1, 19)
_MOUNTS_2_1 = (1, 22)
_MAKES_VFS = (1, 26)


def parse_release(version: str | None) -> Release | None:
    """(1, 26) of ``v1.26.1`` and ``v1.26.0-preview.12``; None: the text says no version."""
    match = re.match(r"v(\d+)\.(\d+)", version or "")
    return (int(match[1]), int(match[2])) if match else None


def root_labels(release: Release | None) -> tuple[str, ...]:
    """The data partitions that are mounted at ``/``: the first of these that there is."""
    return (VFS,) if release is not None and release < _MOUNTS_FFAT else (VFS, FFAT)


def makes_vfs(release: Release | None) -> bool:
    """Whether a table with none of `root_labels` gets a ``vfs`` behind its last entry.

    Of what tells no release it is assumed: whoever left the entry out counts on it.
    """
    return release is None or release >= _MAKES_VFS


def disk_version(release: Release | None) -> int:
    """The disk version of the littlefs that it makes, and the highest that it mounts.

    2.0 where nothing tells the release: every one mounts that.
    """
    return DISK_VERSION_2_1 if release is not None and release >= _MOUNTS_2_1 else DISK_VERSION_2_0


def name_release(release: Release | None) -> str:
    """``MicroPython 1.26``, for messages."""
    return f"MicroPython {release[0]}.{release[1]}" if release else "MicroPython 1.26 and later"
