"""What this desk remembers of channels, so that an old channel file that somebody has put back is
told from the one that it knows. Boards refuse it by themselves; who publishes would build on it.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpota.errors import MpotaError, UsageError
from mpota.formats.channel import Channel, line_digest
from mpota.publish.store import Store
from mpota.storage.file import read_file, write_file


class SeenChannels:
    """Serial and digest of each channel as it was seen last, in a JSON file that may be lost."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def check(self, store: Store, channel: Channel) -> None:
        """Raises MpotaError for a channel that is older than what was seen, or another one with
        the same serial.
        """
        serial, digest = self._read().get(_key(store, channel), (0, ""))
        if channel.serial > serial or (channel.serial, _digest(channel)) == (serial, digest):
            return
        is_older = channel.serial < serial
        what = f"serial {channel.serial}" if is_older else "other content than before"
        raise MpotaError(
            f"{store.name}: channel '{channel.channel}' has {what}, this desk has seen serial "
            f"{serial}: somebody has put back an old file, or made another one",
            f"look who may write there; {self._path} is what was seen",
        )

    def note(self, store: Store, channel: Channel) -> None:
        """Remember ``channel``, if the file can be written."""
        found = self._read() | {_key(store, channel): (channel.serial, _digest(channel))}
        with suppress(OSError, UsageError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._path, json.dumps(found, indent=1).encode() + b"\n")

    def _read(self) -> dict[str, tuple[int, str]]:
        with suppress(MpotaError, ValueError, TypeError, AttributeError):  # lost, or damaged
            found: Any = json.loads(read_file(self._path))
            return {key: (int(serial), str(digest)) for key, (serial, digest) in found.items()}
        return {}


def _key(store: Store, channel: Channel) -> str:
    place = store.name if "://" in store.name else os.path.abspath(store.name)
    return f"{place}: {channel.name}, {channel.channel}"


def _digest(channel: Channel) -> str:
    return line_digest(channel.to_line()).hex()
