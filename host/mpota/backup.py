"""A backup of what a change to a live board overwrites, and the journal to finish or undo it.

The file is a zip that any tool opens: ``manifest.json``, and for each place that the change gives
another use the bytes that were there (``before/``) and those that belong there (``after/``). While
the change is under way the file's name ends in ``.unfinished``.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mpota.changes import Change
from mpota.errors import MpotaError, UsageError
from mpota.formats.chips import Chip
from mpota.plan import BOOTLOADER, TABLE, LiveFlash, Plan, Step, carry_out, make_plan
from mpota.ports import format_mac
from mpota.storage.file import replacing
from mpota.units import SECTOR_SIZE, format_flash_size

UNFINISHED = ".unfinished"
_FORMAT = "mpota-backup-1"
_MAX_MANIFEST_SIZE = 1 << 20
_MAX_AREA_SIZE = 1 << 28
# What zipfile and json raise for bytes that are not theirs.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    KeyError,
    TypeError,
    ValueError,
    EOFError,
    NotImplementedError,
    RuntimeError,
)


@dataclass(frozen=True)
class Backup:
    """``mac`` in hex and ``flash_size`` tell the board, ``change`` what was done to it in words.

    ``areas`` are all the places that got another use, ``writes`` what of them, (offset, size), was
    really written, in order.
    """

    chip: str
    mac: str
    flash_size: int
    table_offset: int
    change: str
    areas: tuple[Step, ...] = field(repr=False)
    writes: tuple[tuple[int, int], ...] = field(repr=False)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The writes, in order."""
        return tuple(
            area.part(offset - area.offset, offset - area.offset + size)
            for offset, size in self.writes
            for area in self.areas
            if area.offset <= offset and offset + size <= area.offset + area.size
        )

    def save(self, path: Path) -> None:
        """Write the file whole or not at all. Raises UsageError if it cannot be written."""
        manifest = {
            "format": _FORMAT,
            "chip": self.chip,
            "mac": self.mac,
            "flash_size": self.flash_size,
            "table_offset": self.table_offset,
            "change": self.change,
            "areas": [{"what": a.what, "offset": a.offset, "size": a.size} for a in self.areas],
            "writes": [{"offset": offset, "size": size} for offset, size in self.writes],
        }
        with (
            replacing(path) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            archive.writestr("manifest.json", json.dumps(manifest, indent=2))
            for index, area in enumerate(self.areas):
                archive.writestr(_member("before", index, area.offset), area.before)
                archive.writestr(_member("after", index, area.offset), area.after)

    @classmethod
    def load(cls, path: Path) -> Backup:
        """Raises UsageError if the file cannot be read, MpotaError if it is no backup."""
        try:
            with zipfile.ZipFile(path) as archive:
                manifest = json.loads(_read(archive, "manifest.json", _MAX_MANIFEST_SIZE))
                if manifest["format"] != _FORMAT:
                    raise MpotaError(f"'{path}' has format {manifest['format']!r}, not {_FORMAT}")
                areas = tuple(
                    _load_area(archive, index, row) for index, row in enumerate(manifest["areas"])
                )
                writes = tuple((int(w["offset"]), int(w["size"])) for w in manifest["writes"])
                return cls(
                    str(manifest["chip"]),
                    str(manifest["mac"]),
                    int(manifest["flash_size"]),
                    int(manifest["table_offset"]),
                    str(manifest["change"]),
                    areas,
                    writes,
                )
        except OSError as error:
            raise UsageError(f"cannot read '{path}': {error.strerror}") from None
        except _DAMAGE as error:
            raise MpotaError(f"'{path}' is no backup of mpota's, or damaged: {error}") from None

    def check_board(self, board: Board) -> None:
        """Raises MpotaError if this is the backup of another board."""
        if (self.chip, self.mac, self.flash_size) != (board.chip.name, board.mac, board.size):
            raise MpotaError(
                f"the backup is of another board: {self.chip} with MAC {format_mac(self.mac)} and "
                f"{format_flash_size(self.flash_size)} of flash; on {board.name} is "
                f"{board.chip.name}, {format_mac(board.mac)}, {format_flash_size(board.size)}"
            )

    def plan_undo(self, board: Board) -> Plan:
        """The way back: contents first, then table and bootloader, in the opposite order."""
        changes = [
            Change(area.offset, area.size, area.what, area.before) for area in reversed(self.areas)
        ]
        changes.sort(key=lambda change: change.what in (TABLE, BOOTLOADER))
        return make_plan(board, changes, table_offset=self.table_offset, must_boot=False)


class Board(LiveFlash, Protocol):
    """What tells one board from another (`mpota.storage.board.BoardFlash`)."""

    @property
    def name(self) -> str: ...
    @property
    def chip(self) -> Chip: ...
    @property
    def mac(self) -> str: ...


def change_with_backup(
    board: Board, plan: Plan, path: Path, change: str, table_offset: int
) -> None:
    """Save what ``plan`` will overwrite to ``path``, then carry the plan out.

    Until all is written the file has the name of `unfinished_path`: with it `resume` finishes an
    interrupted change, and `Backup.plan_undo` takes it back. Raises UsageError, and changes
    nothing, if the file cannot be written.
    """
    writes = tuple((step.offset, step.size) for step in plan.steps)
    backup = Backup(
        board.chip.name, board.mac, board.size, table_offset, change, plan.areas, writes
    )
    unfinished = unfinished_path(path)
    backup.save(unfinished)
    carry_out(board, plan.steps)
    close_journal(unfinished)


def resume(board: Board, unfinished: Path, change: str) -> Path:
    """Finish a change that was interrupted; what is written already is left alone.

    Returns the backup's final path. Raises MpotaError if it was another ``change``, or another
    board.
    """
    backup = Backup.load(unfinished)
    backup.check_board(board)
    if backup.change != change:
        raise MpotaError(
            f"{board.name}: another change to this board was interrupted: {backup.change}",
            f"run that again, or take it back: mpota restore {unfinished} {board.name}",
        )
    carry_out(board, backup.steps)
    return close_journal(unfinished)


def close_journal(path: Path) -> Path:
    """The backup under its last name: the change is finished, or taken back."""
    final = path.with_name(path.name.removesuffix(UNFINISHED))
    path.replace(final)
    return final


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


def _member(kind: str, index: int, offset: int) -> str:
    return f"{kind}/{index:02}-{offset:#010x}.bin"


def _load_area(archive: zipfile.ZipFile, index: int, row: dict[str, Any]) -> Step:
    what, offset, size = str(row["what"]), int(row["offset"]), int(row["size"])
    if offset < 0 or offset % SECTOR_SIZE or not 0 < size <= _MAX_AREA_SIZE or size % SECTOR_SIZE:
        raise ValueError(f"area {index} has offset {offset:#x} and size {size:#x}")
    before = _read(archive, _member("before", index, offset), size)
    after = _read(archive, _member("after", index, offset), size)
    if not len(before) == len(after) == size:
        raise ValueError(f"area {index} is {size:#x} bytes, the file has {len(before):#x}")
    return Step(what, offset, before, after)


def _read(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    with archive.open(name) as member:  # a ZipExtFile checks the CRC at its end
        data = member.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{name} is larger than {limit:#x} bytes")
    return data
