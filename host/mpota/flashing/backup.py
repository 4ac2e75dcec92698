"""A backup of what a change to a live board overwrites, and the journal to finish or undo it.

The file is a zip that any tool opens: ``manifest.json``, and for each place that the change gives
another use the bytes that were there (``before/``) and those that belong there (``after/``). While
the change is under way the file's name ends in ``.unfinished``.

It holds what was in the board's flash, Wi-Fi passwords among it: nobody but its owner may read it.
Nothing in it is believed before it fits the board: its size in memory follows from the board's.
"""

from __future__ import annotations

import json
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from mpota.errors import MpotaError, UsageError
from mpota.firmware.changes import BOOTLOADER, TABLE, Change
from mpota.flashing.plan import Plan, Step, carry_out, make_plan
from mpota.storage.board import BoardFlash
from mpota.storage.file import replacing
from mpota.storage.ports import format_mac
from mpota.units import SECTOR_SIZE, MiB, format_flash_size

UNFINISHED = ".unfinished"
_FORMAT = "mpota-backup-1"
_MAX_MANIFEST_SIZE = 1 << 20
_MAX_DIRECTORY_SIZE = 1 << 20  # of the zip file
_MAX_FLASH_SIZE = 128 * MiB  # the largest that an image can declare
_DIRECTORY_END = struct.Struct("<4s4H2IH")
_LOCATOR_64 = b"PK\x06\x07"
_LOCATOR_64_SIZE = 20
_SAMPLES = 8  # sectors of a write that tell whether it is of this board
# What zipfile and json raise for damaged or foreign bytes.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    KeyError,
    TypeError,
    ValueError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
)


@dataclass(frozen=True)
class Backup:
    """``mac`` in hex and ``flash_size`` tell the board, ``change`` what was done to it in words.

    ``areas`` are all the places that got another use, ``writes`` the parts of them, (offset, size),
    that were really written, in order.
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
        """Write the file whole or not at all, for its owner alone.

        Raises UsageError if it cannot be written.
        """
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
            replacing(path, private=True) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            archive.writestr("manifest.json", json.dumps(manifest, indent=2))
            for index, area in enumerate(self.areas):
                archive.writestr(_member("before", index, area.offset), area.before)
                archive.writestr(_member("after", index, area.offset), area.after)

    @classmethod
    def load(cls, path: Path, board: BoardFlash, *, is_own: bool = False) -> Backup:
        """The backup of ``board`` in a file; ``is_own``: only if this user wrote it.

        Raises UsageError if the file cannot be read, MpotaError if it is no backup, or that of
        another board.
        """
        return cls._load(path, board, is_own=is_own)

    @classmethod
    def of_any_board(cls, path: Path) -> Backup:
        """The backup in a file, whichever board it is of: to be looked at. Raises as `load`."""
        return cls._load(path, None)

    @classmethod
    def _load(cls, path: Path, board: BoardFlash | None, *, is_own: bool = False) -> Backup:
        try:
            with _opened(path, is_own=is_own) as archive:
                manifest = json.loads(_read(archive, "manifest.json", _MAX_MANIFEST_SIZE))
                if manifest["format"] != _FORMAT:
                    raise MpotaError(f"'{path}' has format {manifest['format']!r}, not {_FORMAT}")
                empty = cls(
                    str(manifest["chip"]),
                    str(manifest["mac"]),
                    int(manifest["flash_size"]),
                    int(manifest["table_offset"]),
                    str(manifest["change"]),
                    (),
                    tuple((int(w["offset"]), int(w["size"])) for w in manifest["writes"]),
                )
                if board is not None:
                    empty.check_board(board)
                places = [(int(a["offset"]), int(a["size"])) for a in manifest["areas"]]
                _check_places("area", places, empty.flash_size)
                _check_places("write", empty.writes, empty.flash_size)
                areas = tuple(
                    _load_area(archive, index, str(row["what"]), *place)
                    for index, (row, place) in enumerate(
                        zip(manifest["areas"], places, strict=True)
                    )
                )
                return replace(empty, areas=areas)
        except OSError as error:
            raise UsageError(f"cannot read '{path}': {error.strerror}") from None
        except _DAMAGE as error:
            raise MpotaError(f"'{path}' is no backup of mpota's, or damaged: {error}") from None

    def check_board(self, board: BoardFlash) -> None:
        """Raises MpotaError if this is the backup of another board."""
        if (self.chip, self.mac, self.flash_size) != (board.chip.name, board.mac, board.size):
            raise MpotaError(
                f"the backup is of another board: {self.chip} with MAC {format_mac(self.mac)} and "
                f"{format_flash_size(self.flash_size)} of flash; on {board.name} is "
                f"{board.chip.name}, {format_mac(board.mac)}, {format_flash_size(board.size)}"
            )

    def plan_undo(self, board: BoardFlash) -> Plan:
        """The way back: contents first, then table and bootloader, in the opposite order."""
        changes = [
            Change(area.offset, area.size, area.what, area.before) for area in reversed(self.areas)
        ]
        changes.sort(key=lambda change: change.what in (TABLE, BOOTLOADER))
        return make_plan(board, changes, table_offset=self.table_offset, must_boot=False)


def change_with_backup(
    board: BoardFlash, plan: Plan, path: Path, change: str, table_offset: int
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


def load_journal(board: BoardFlash, unfinished: Path, change: str) -> Backup:
    """What is left to do of a change that was interrupted; `finish` does it.

    Raises MpotaError if this user has not written it, for another ``change`` or another board, and
    if the board holds something else than what the change found or made.
    """
    backup = Backup.load(unfinished, board, is_own=True)
    if backup.change != change:
        raise MpotaError(
            f"{board.name}: another change to this board was interrupted: {backup.change}",
            f"run that again, or take it back: mpota restore {unfinished} {board.name}",
        )
    strange = [step for step in backup.steps if not _is_known(board, step)]
    if len(strange) > 1:  # a single one may be the write that a power cut interrupted
        raise MpotaError(
            f"{board.name}: the flash at {strange[0].offset:#x} ({strange[0].what}) holds nothing "
            f"that {unfinished} knows of: the board was changed since",
            "remove that file, or take the change back by mpota restore",
        )
    return backup


def finish(board: BoardFlash, backup: Backup, unfinished: Path) -> Path:
    """Do what is left of a change; what is written already is left alone.

    Returns the backup's final path.
    """
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
    while os.path.lexists(path) or os.path.lexists(unfinished_path(path)):
        path = directory / f"mpota-backup-{mac}-{number}.zip"
        number += 1
    return path


def find_unfinished(directory: Path, mac: str) -> tuple[Path, ...]:
    """The journals of changes to this board that did not come to their end, whoever wrote them."""
    return tuple(sorted(directory.glob(f"mpota-backup-{mac}*.zip{UNFINISHED}")))


def foreign(path: Path) -> str | None:
    """Why a journal is not this user's own work, None if it is. Raises OSError."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        return "it is no regular file"
    return _foreign(status)


def _foreign(status: os.stat_result) -> str | None:
    if not hasattr(os, "geteuid"):
        return None  # Windows: directories have owners there
    if status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to it: its mode is {stat.S_IMODE(status.st_mode):o}"
    return None


def unfinished_path(path: Path) -> Path:
    return path.with_name(path.name + UNFINISHED)


def _member(kind: str, index: int, offset: int) -> str:
    return f"{kind}/{index:02}-{offset:#010x}.bin"


@contextmanager
def _opened(path: Path, *, is_own: bool) -> Iterator[zipfile.ZipFile]:
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if is_own:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"cannot read '{path}': it is no regular file")
        reason = _foreign(status) if is_own else None
        if reason:
            raise MpotaError(f"'{path}' is not yours: {reason}", "remove it, or run as its owner")
        _check_directory(file, status.st_size)
        with zipfile.ZipFile(file) as archive:
            yield archive


def _check_directory(file: BinaryIO, size: int) -> None:
    """zipfile takes the whole directory of a zip file into memory."""
    tail_size = min(size, _LOCATOR_64_SIZE + _DIRECTORY_END.size)
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    end = tail[-_DIRECTORY_END.size :].rjust(_DIRECTORY_END.size, b"\0")
    magic, *_, directory_size, _, comment_size = _DIRECTORY_END.unpack(end)
    if magic != b"PK\x05\x06" or comment_size or tail.startswith(_LOCATOR_64):
        raise ValueError("it does not end as zip files do")
    if directory_size > _MAX_DIRECTORY_SIZE:
        raise ValueError(f"its directory is {directory_size:,} bytes")


def _check_places(what: str, places: Sequence[tuple[int, int]], flash_size: int) -> None:
    """Raises MpotaError unless all are whole sectors in the flash, together no more than it has."""
    if not 0 < flash_size <= _MAX_FLASH_SIZE:
        raise ValueError(f"a flash of {flash_size:#x} bytes")
    for offset, size in places:
        if offset % SECTOR_SIZE or size % SECTOR_SIZE or offset < 0 or size <= 0:
            raise ValueError(f"{what} at {offset:#x} of size {size:#x}")
    end = max((offset + size for offset, size in places), default=0)
    total = sum(size for _, size in places)
    if end > flash_size or total > flash_size:
        raise ValueError(f"{what}s of {total:#x} bytes up to {end:#x}: beyond the flash")


def _load_area(archive: zipfile.ZipFile, index: int, what: str, offset: int, size: int) -> Step:
    before = _read(archive, _member("before", index, offset), size)
    after = _read(archive, _member("after", index, offset), size)
    if not len(before) == len(after) == size:
        raise ValueError(f"area {index} is {size:#x} bytes, the file has {len(before):#x}")
    return Step(what, offset, before, after)


def _read(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed by method {info.compress_type}")
    with archive.open(info) as member:  # a ZipExtFile checks the CRC at its end
        data = member.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{name} is larger than {limit:#x} bytes")
    return data


def _is_known(board: BoardFlash, step: Step) -> bool:
    """Whether most sectors of a sample hold what the change found or made there.

    Not all, since the program on the board may have run meanwhile, and have changed a little.
    """
    count = step.size // SECTOR_SIZE
    starts = [index * count // min(count, _SAMPLES) * SECTOR_SIZE for index in range(_SAMPLES)]
    known = 0
    for start in (chosen := sorted({min(start, step.size - SECTOR_SIZE) for start in starts})):
        part = step.part(start, start + SECTOR_SIZE)
        known += board.read(part.offset, SECTOR_SIZE) in (part.before, part.after)
    return 2 * known >= len(chosen)
