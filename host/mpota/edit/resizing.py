"""Another flash size or partition table for a firmware, in a file or on a board."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mpota.edit.change import FirmwareChange
from mpota.edit.keep import Kept, kept_files, kept_on_board
from mpota.errors import MpotaError, UsageError
from mpota.firmware.changes import Difference, changes_for, differences, order_changes
from mpota.firmware.firmware import Firmware, boot_order, read_table
from mpota.firmware.layout import LAYOUTS, MIN_FILE_SYSTEM_SIZE, Edits, Layout
from mpota.formats.micropython import VFS, makes_vfs, name_release
from mpota.formats.otadata import active_record
from mpota.formats.partition_table import Partition, PartitionTable
from mpota.resources import data_directory
from mpota.storage.file import read_file
from mpota.units import BLOCK_SIZE, MiB, align_down, format_flash_size, format_size


def resize(firmware: Firmware, edits: Edits, *, keep_files: bool = False) -> FirmwareChange:
    """Fit a firmware in a file to another flash size or table.

    A data partition that moves or changes size is reset; with ``keep_files`` its files go along.
    Raises MpotaError if the result would not fit, or if files cannot be kept; UsageError for edits
    that cannot be.
    """
    if edits.flash_size is not None:
        firmware.chip.flash_size_code(edits.flash_size)
    layout = edits.apply(firmware.layout())
    _check_oversized(firmware, layout)
    kept = kept_files(firmware, layout, layout.flash_size, keep_files=keep_files)
    notes = (
        *_file_notes(firmware, layout, edits),
        *_room_notes(layout, layout.flash_size),
        *_ota_notes(layout),
    )
    return replace(_change(firmware, layout, kept), notes=notes)


def resize_on_board(
    firmware: Firmware, edits: Edits, board_size: int, *, keep_files: bool = True
) -> FirmwareChange:
    """Another table or flash size for the firmware on a board with ``board_size`` bytes of flash.

    The app that boots stays the one, and nvs is kept where it fits. Raises MpotaError if the result
    would not fit the board's flash, or if files cannot be kept (unless not ``keep_files``);
    UsageError for edits that cannot be.
    """
    from mpota.bootloader.slots import place_of_next  # for boards only, and not small

    if edits.flash_size is not None and edits.flash_size > board_size:
        raise MpotaError(
            f"{firmware.name}: the flash chip has {format_flash_size(board_size)}, "
            f"not {format_flash_size(edits.flash_size)}"
        )
    layout = edits.apply(firmware.layout())
    kept = kept_on_board(firmware, layout, board_size, keep_files=keep_files)
    change = _change(firmware, layout, kept)
    ordered = order_changes(
        change.changes,
        place_of_next(firmware, board_size),
        grows=layout.flash_size >= firmware.flash_size,
    )
    notes = (
        *_board_notes(firmware, change.differences),
        *_room_notes(layout, board_size),
        *_ota_notes(layout),
    )
    return replace(change, changes=ordered, notes=notes)


def _check_oversized(firmware: Firmware, layout: Layout) -> None:
    """Raises MpotaError for an app that overran its partition before, and still does."""
    for label, old in layout.sources.items():
        if old in firmware.oversized and layout.table[label].size < firmware.app(old).size:
            firmware.check_fits(old)


def _change(firmware: Firmware, layout: Layout, kept: Kept) -> FirmwareChange:
    return FirmwareChange(
        _summary(firmware.flash_size, layout.flash_size),
        (*kept.changes, *changes_for(firmware, layout, kept.contents)),
        layout.flash_size,
        layout.table_offset,
        kept.tell(differences(firmware, layout)),
    )


def find_layout(text: str | None, table_offset: int) -> tuple[str | None, PartitionTable | None]:
    """What ``--layout`` names: a computed layout, or the table of a CSV.

    A CSV is a file of the user's or one of mpota's own by its name (``4MB-ota``). Raises
    UsageError if there is none.
    """
    if text is None or text in LAYOUTS:
        return text, None
    path = Path(text)
    if path.suffix or path.exists():
        return None, read_table(read_file(path), path.name, table_offset)
    own = {file.stem: file for file in data_directory("partitions").glob("*.csv")}
    if text not in own:
        raise UsageError(
            f"layout '{text}' is not one of {', '.join((*LAYOUTS, *sorted(own)))}, nor a CSV file"
        )
    return None, read_table(own[text].read_bytes(), text, table_offset)


def _summary(old_size: int, new_size: int) -> str:
    if old_size == new_size:
        return f"flash size {format_flash_size(old_size)}"
    return f"flash size {format_flash_size(old_size)} -> {format_flash_size(new_size)}"


def _file_notes(firmware: Firmware, layout: Layout, edits: Edits) -> Iterator[str]:
    grown = edits.flash_size is not None and edits.flash_size != firmware.flash_size
    is_taken = not layout.has_root and makes_vfs(layout.release)  # all behind the last entry
    if grown and edits.table is None and layout.table == firmware.table:
        if is_taken and layout.files_room(layout.flash_size) >= MIN_FILE_SYSTEM_SIZE:
            release = name_release(layout.release)
            yield f"the table stays as it is: {release} takes all behind it for files"
        elif not is_taken and layout.file_system is None:
            last = max(firmware.table, key=lambda p: p.offset)
            yield f"the table stays as it is: it ends with '{last.label}', which is no file system"
    else:
        known = _gaps(firmware.layout())
        for start, end in _gaps(layout):
            if (start, end) not in known and not (is_taken and end == layout.flash_size):
                yield f"{start:#x} to {end:#x} ({format_size(end - start)}) is in no partition"
    if layout.flash_size > 16 * MiB:
        from mpota.bootloader.boot import bootloader_info  # rarely needed, and not small

        bootloader = firmware.bootloader.with_flash_size(layout.flash_size)
        believed = bootloader_info(bootloader.data).flash_size or 0
        if believed < layout.flash_size:
            yield (
                f"this bootloader does not know {format_flash_size(layout.flash_size)} and takes "
                f"it for {format_flash_size(believed)}: it will not boot; use -f 16M, or write a "
                "bootloader of ESP-IDF 6.0 or later"
            )
    records = firmware.otadata
    active = active_record(records) if records else None
    selected = (
        firmware.table.slot_of(records[active].ota_seq) if records and active is not None else None
    )
    if selected is not None:
        boots = _boots_first(firmware, layout)
        if boots is not None and layout.sources.get(boots.label) != selected:
            yield (
                f"otadata selected '{selected.label}' and is blank now: "
                f"'{boots.label}' boots, which was '{_label(layout, boots.label)}'"
            )
    if layout.table.otadata and not firmware.table.otadata:
        first = _boots_first(firmware, layout)
        if first is not None:
            yield f"otadata is blank: the first boot starts {first.label}"


def _room_notes(layout: Layout, flash_size: int) -> Iterator[str]:
    """Whether MicroPython, if that is what it is, will have room for files in that flash."""
    release, room = layout.release, layout.files_room(flash_size)
    if release is None or room >= MIN_FILE_SYSTEM_SIZE:
        return
    if layout.has_root:
        yield f"no room for files: the file system has {format_size(room)}"
    elif makes_vfs(release):
        size = _roomy_app_size(layout, flash_size)
        hint = f"; --app-size {size:#x} makes room" if size else ""
        yield f"no room for files: {format_size(room)} are left{hint}"
    else:
        mounted = f"{name_release(release)} mounts '{VFS}'"
        yield f"no room for files: {mounted}, --add {VFS}=fat:0 makes one"


def _roomy_app_size(layout: Layout, flash_size: int) -> int | None:
    """A size for the app partitions that leaves room for files behind them, if the app allows."""
    last = max(layout.table, key=lambda p: p.offset)
    for room in (flash_size // 8, MIN_FILE_SYSTEM_SIZE):
        size = align_down(flash_size - room - last.offset, BLOCK_SIZE)
        if last.is_app and size >= layout.app_size:
            return size
    return None


def _boots_first(firmware: Firmware, layout: Layout) -> Partition | None:
    """The place of the app that boots while otadata is blank, if it is whole."""
    for partition in boot_order(layout.table):
        old = layout.sources.get(partition.label)
        if old is None:
            continue
        with suppress(MpotaError):
            firmware.app(old)
            return partition
    return None


def _board_notes(firmware: Firmware, rows: Iterable[Difference]) -> Iterator[str]:
    lost = [
        row.old.label
        for row in rows
        if row.old is not None
        and (row.new is None or "content reset" in row.effects)
        and not row.old.is_otadata
        and not firmware.is_blank(row.old)
    ]
    if lost:
        yield (
            f"the board loses the contents of {', '.join(lost)}; what is overwritten of them is in "
            "the backup"
        )


def _ota_notes(layout: Layout) -> Iterator[str]:
    if layout.table.ota_trouble:
        yield layout.table.ota_trouble


def _gaps(layout: Layout) -> list[tuple[int, int]]:
    """The places (start, end) behind the table that are in no partition."""
    gaps, start = [], layout.first_offset
    for offset, end in sorted((p.offset, p.end) for p in layout.table):
        if offset > start:
            gaps.append((start, offset))
        start = max(start, end)
    return [*gaps, (start, layout.flash_size)] if start < layout.flash_size else gaps


def _label(layout: Layout, label: str) -> str:
    old = layout.sources.get(label)
    return old.label if old else "blank"
