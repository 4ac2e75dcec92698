"""The copy of a board that a release is tried on: from a board, a dump, a backup, or a firmware."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from mpota.errors import MpotaError
from mpota.filesystem.volumes import Volumes
from mpota.firmware import sample
from mpota.firmware.firmware import Firmware, find_base
from mpota.firmware.layout import find_root
from mpota.flashing.backup import Backup
from mpota.formats.chips import FLASH_SIZES, Chip, chip_by_name
from mpota.formats.partition_csv import table_from_csv
from mpota.formats.partition_table import DEFAULT_TABLE_OFFSET, Partition
from mpota.mpy_cross import PORTABLE, can_compile
from mpota.release.ota_package import package
from mpota.resources import data_directory
from mpota.storage import FlashContents
from mpota.storage.file import FileImage, read_file
from mpota.units import KiB, MiB, align_up
from mpota.virtual.board import Board
from mpota.virtual.flash import VirtualFlash

DEFAULT_MAC = bytes.fromhex("240ac4c0ffee")

_BOOT = b"import ota.boot; ota.boot.activate()\n"
_MAIN = b"import ota.rollback\nota.rollback.cancel()\n"
_OWN_PACKAGES = ("/lib/ota/", "/ota/")
_ENCRYPTED = 1  # flag of a partition
_CAN_STILL = "rehearse on the firmware as it is before it is flashed: --board FIRMWARE.bin"


@dataclass(frozen=True)
class Subject:
    """``content`` is the whole flash. ``notes``: what is not as on the board, in words.

    ``is_own_code``: all Python on it is mpota's own.
    """

    name: str
    content: bytes = field(repr=False)
    chip_name: str
    table_offset: int = DEFAULT_TABLE_OFFSET
    chip_revision: int | None = None
    block_revision: int | None = None
    mac: bytes = DEFAULT_MAC
    has_package: bool = True
    is_own_code: bool = False
    notes: tuple[str, ...] = ()

    @property
    def chip(self) -> Chip:
        return chip_by_name(self.chip_name)


def from_file(
    path: Path, table_offset: int = DEFAULT_TABLE_OFFSET, flash_size: int | None = None
) -> Subject:
    """A dump of a whole flash, a backup of `mpota`, or a firmware, which is installed first.

    Raises MpotaError for what is none of them, UsageError for what cannot be read.
    """
    if zipfile.is_zipfile(path):
        return _from_backup(path)
    data = read_file(path)
    try:
        base = find_base(data, path.name)
    except MpotaError as error:
        hint = _CAN_STILL if "encrypted" in str(error) else error.hint
        raise MpotaError(str(error), hint) from None
    firmware = Firmware.from_flash(FileImage(base, data), path.name, table_offset)
    firmware.app_partition  # noqa: B018 - there is one that is whole
    if firmware.is_dump:
        size = max(firmware.flash_size, align_up(firmware.flash.end, 64 * KiB))
        return _of_flash(firmware, _whole(firmware.flash, size))
    return _installed(firmware, flash_size or firmware.flash_size)


def made_for(chip: str, app: bytes, name: str) -> Subject:
    """A board that nobody has: with the app of the release already, and room for another.

    Raises MpotaError for an app that no usual table has room for.
    """
    for flash_size in FLASH_SIZES:
        path = data_directory("partitions") / f"{flash_size // MiB}MB-ota.csv"
        if flash_size < MiB or not path.is_file():
            continue
        table = table_from_csv(path.read_text(encoding="utf-8"), DEFAULT_TABLE_OFFSET)
        if table.slots[0].size >= len(app):
            break
    else:
        raise MpotaError(f"{name}: an app of {len(app):,} bytes fits no usual partition table")
    data = sample.build_firmware(chip, flash_size=flash_size, table=table, app=app)
    firmware = Firmware.from_bytes(data, name)
    made = _installed(firmware, flash_size)
    return replace(made, notes=("no --board: one is made up that runs the same app", *made.notes))


def from_board(board: FlashContents, table_offset: int, name: str, size: int, mac: str) -> Subject:
    """What is used of the flash of a board on a port; blank places are not read.

    Raises MpotaError where no app is on it.
    """
    firmware = Firmware.from_flash(board, name, table_offset)
    content = bytearray(b"\xff" * size)

    def copy(start: int, end: int) -> None:
        content[start:end] = board.read(start, end - start)

    copy(0, table_offset + 0x1000)
    partitions = [p for p in firmware.table if p.end <= size]
    root = firmware.unlisted_vfs(size)
    for partition in (*partitions, *((root,) if root else ())):
        used = _used(firmware, partition)
        copy(partition.offset, min(partition.end, partition.offset + used))
    made = _of_flash(firmware, bytes(content))
    return replace(
        made,
        chip_revision=board.chip_revision,
        block_revision=board.block_revision,
        mac=bytes.fromhex(mac),
    )


def _used(firmware: Firmware, partition: Partition) -> int:
    """Bytes of a partition that matter: of a slot the app, of others all."""
    if not partition.is_app:
        return partition.size
    with suppress(MpotaError):
        return align_up(firmware.app(partition).size, 4 * KiB)
    return 0


def _of_flash(firmware: Firmware, content: bytes) -> Subject:
    encrypted = [p.label for p in firmware.table if p.is_app and p.flags & _ENCRYPTED]
    if encrypted:
        raise MpotaError(
            f"{firmware.name}: {', '.join(encrypted)} is marked encrypted: the key never leaves "
            "the chip, and the virtual board has none",
            _CAN_STILL,
        )
    made = Subject(firmware.name, content, firmware.chip.name, firmware.table_offset)
    if _has_package(content, firmware):
        return made
    return replace(
        made,
        has_package=False,
        notes=("there is no ota in its file system: mpota's own runs, as if it were built in",),
    )


def _has_package(content: bytes, firmware: Firmware) -> bool:
    from mpota.rehearse.look import look

    files = look(content, firmware.app_partition.label, firmware.table_offset).files
    return any(path.startswith(_OWN_PACKAGES) or "/lib/ota/" in path for path in files or ())


def _whole(flash: FlashContents, size: int) -> bytes:
    return flash.read(0, size)


def _from_backup(path: Path) -> Subject:
    """What stood on the board before a change; what the backup lacks is made up, and said."""
    facts = Backup.of_any_board(path)
    content = bytearray(b"\xff" * facts.flash_size)
    for area in facts.areas:
        content[area.offset : area.offset + area.size] = area.before
    if facts.table_offset % 0x1000 or not 0 < facts.table_offset < facts.flash_size:
        raise MpotaError(f"'{path}' is no backup of mpota's: a table at {facts.table_offset:#x}")
    chip = chip_by_name(facts.chip)
    notes = []
    start = chip.bootloader_offset
    if content[start : start + 1] != b"\xe9":
        made = sample.build_bootloader(chip, flash_size=facts.flash_size)
        content[start : start + len(made)] = made
        notes.append("the backup has no bootloader: one that is made up stands in")
    flash = FileImage(0, bytes(content))
    firmware = Firmware.from_flash(flash, path.name, facts.table_offset)
    try:
        firmware.app_partition  # noqa: B018 - there is one that is whole
    except MpotaError as error:
        raise MpotaError(
            f"{error}; the backup holds only what its change gave another use",
            "a dump of the whole flash can be rehearsed on: esptool read_flash 0 ALL dump.bin",
        ) from None
    found = _of_flash(firmware, bytes(content))
    return replace(found, mac=bytes.fromhex(facts.mac), notes=(*notes, *found.notes))


def _installed(firmware: Firmware, flash_size: int) -> Subject:
    """The firmware on blank flash, after its first boot, and `ota` copied onto it."""
    flash = firmware.flash
    contents = {flash.base: flash.read(flash.base, flash.end - flash.base)}
    with scratch_flash(flash_size, contents) as memory:
        Board(memory, table_offset=firmware.table_offset, is_rehearsed=True).run()
        whole = Firmware.from_flash(
            FileImage(0, memory.snapshot()), firmware.name, firmware.table_offset
        )
        volumes = Volumes.of_firmware(whole, memory)
        has_files = find_root(volumes.partitions, None) is not None
        if has_files:
            _copy_package(volumes)
        content = memory.snapshot()
    notes = ["it is installed on blank flash, with mpota's ota, and a main.py that confirms"]
    if not has_files:
        notes = ["it has no file system: mpota's ota runs as if it were built in"]
    return Subject(
        firmware.name,
        content,
        firmware.chip.name,
        firmware.table_offset,
        has_package=has_files,
        is_own_code=True,
        notes=tuple(notes),
    )


def _copy_package(volumes: Volumes) -> None:
    with volumes.file_system().writing() as writer:
        for folder in ("/lib", "/lib/ota"):
            writer.mkdir(folder)
        for name, data in package(PORTABLE, can_compile(PORTABLE)).items():
            writer.write(f"/lib/ota/{name}", data)
        writer.write("/boot.py", _BOOT)
        writer.write("/main.py", _MAIN)
    volumes.region().flush()


@contextmanager
def scratch_flash(size: int, contents: dict[int, bytes]) -> Iterator[VirtualFlash]:
    """A flash in a temporary file that only its owner may read."""
    former = os.umask(0o077)
    try:
        flash = VirtualFlash.create(size, contents)
    finally:
        os.umask(former)
    with flash:
        yield flash
