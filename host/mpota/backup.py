"""A backup of what a change to a live board overwrites, and the journal to finish or undo it.

The file is a zip that any tool opens: ``manifest.json``, and for each step the bytes that were
there (``before/``) and the bytes that belong there (``after/``). While the change is under way the
file's name ends in ``.unfinished``.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpota.errors import MpotaError, UsageError
from mpota.plan import Step
from mpota.storage.file import replacing
from mpota.units import SECTOR_SIZE

UNFINISHED = ".unfinished"
_FORMAT = "mpota-backup-1"
_MAX_MANIFEST_SIZE = 1 << 20
_MAX_STEP_SIZE = 1 << 28


@dataclass(frozen=True)
class Backup:
    """``mac`` in hex and ``flash_size`` tell the board, ``change`` what was done to it in words."""

    chip: str
    mac: str
    flash_size: int
    change: str
    steps: tuple[Step, ...] = field(repr=False)

    def save(self, path: Path) -> None:
        """Write the file whole or not at all. Raises UsageError if it cannot be written."""
        manifest = {
            "format": _FORMAT,
            "chip": self.chip,
            "mac": self.mac,
            "flash_size": self.flash_size,
            "change": self.change,
            "steps": [
                {"what": step.what, "offset": step.offset, "size": step.size} for step in self.steps
            ],
        }
        with (
            replacing(path) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            archive.writestr("manifest.json", json.dumps(manifest, indent=2))
            for index, step in enumerate(self.steps):
                archive.writestr(_member("before", index, step.offset), step.before)
                archive.writestr(_member("after", index, step.offset), step.after)

    @classmethod
    def load(cls, path: Path) -> Backup:
        """Raises UsageError if the file cannot be read, MpotaError if it is no backup."""
        try:
            with zipfile.ZipFile(path) as archive:
                manifest = json.loads(_read(archive, "manifest.json", _MAX_MANIFEST_SIZE))
                if manifest["format"] != _FORMAT:
                    raise MpotaError(f"'{path}' has format {manifest['format']!r}, not {_FORMAT}")
                steps = tuple(
                    _load_step(archive, index, row) for index, row in enumerate(manifest["steps"])
                )
                return cls(
                    str(manifest["chip"]),
                    str(manifest["mac"]),
                    int(manifest["flash_size"]),
                    str(manifest["change"]),
                    steps,
                )
        except OSError as error:
            raise UsageError(f"cannot read '{path}': {error.strerror}") from None
        except (zipfile.BadZipFile, KeyError, TypeError, ValueError, EOFError) as error:
            raise MpotaError(f"'{path}' is no backup of mpota's, or damaged: {error}") from None

    def check_board(self, port: str, chip: str, mac: str, flash_size: int) -> None:
        """Raises MpotaError if this is the backup of another board."""
        ours = (self.chip, self.mac, self.flash_size)
        if ours != (chip, mac, flash_size):
            raise MpotaError(
                f"the backup is of a board with {self.chip}, MAC {format_mac(self.mac)} and "
                f"{self.flash_size:#x} bytes of flash; on {port} is {chip}, MAC {format_mac(mac)}, "
                f"{flash_size:#x}"
            )

    @property
    def undo(self) -> tuple[Step, ...]:
        """The steps back, what was written last first."""
        return tuple(
            Step(step.what, step.offset, step.after, step.before) for step in reversed(self.steps)
        )


def default_path(directory: Path, mac: str) -> Path:
    """A new name in ``directory`` for a backup of the board with this MAC."""
    path = directory / f"mpota-backup-{mac}.zip"
    number = 2
    while path.exists():
        path = directory / f"mpota-backup-{mac}-{number}.zip"
        number += 1
    return path


def find_unfinished(directory: Path, mac: str) -> Path | None:
    """The journal of a change to this board that did not come to its end, under its last name."""
    found = sorted(directory.glob(f"mpota-backup-{mac}*.zip{UNFINISHED}"))
    return found[0] if found else None


def unfinished_path(path: Path) -> Path:
    return path.with_name(path.name + UNFINISHED)


def format_mac(mac: str) -> str:
    return ":".join(mac[i : i + 2] for i in range(0, len(mac), 2))


def total_size(steps: Iterable[Step]) -> int:
    return sum(step.size for step in steps)


def _member(kind: str, index: int, offset: int) -> str:
    return f"{kind}/{index:02}-{offset:#010x}.bin"


def _load_step(archive: zipfile.ZipFile, index: int, row: dict[str, Any]) -> Step:
    what, offset, size = str(row["what"]), int(row["offset"]), int(row["size"])
    if offset < 0 or offset % SECTOR_SIZE or not 0 < size <= _MAX_STEP_SIZE or size % SECTOR_SIZE:
        raise ValueError(f"step {index} has offset {offset:#x} and size {size:#x}")
    before = _read(archive, _member("before", index, offset), size)
    after = _read(archive, _member("after", index, offset), size)
    if not len(before) == len(after) == size:
        raise ValueError(f"step {index} is {size:#x} bytes, the file has {len(before):#x}")
    return Step(what, offset, before, after)


def _read(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    with archive.open(name) as member:  # a ZipExtFile checks the CRC at its end
        data = member.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{name} is larger than {limit:#x} bytes")
    return data
