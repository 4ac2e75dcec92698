"""Another flash size or partition table for a firmware, in a file or on a board."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from mpota.edit.change import FirmwareChange
from mpota.edit.keep import kept_files, kept_on_board
from mpota.errors import MpotaError, UsageError
from mpota.firmware.changes import Difference, changes_for, differences, order_changes
from mpota.firmware.firmware import Firmware, boot_order, read_table
from mpota.firmware.layout import LAYOUTS, Edits, Layout
from mpota.formats.otadata import active_record, selected_slot
from mpota.formats.partition_table import Partition, PartitionTable
from mpota.resources import data_directory
from mpota.storage.file import read_file
from mpota.units import MiB, format_flash_size, format_size


def resize(
    firmware: Firmware, edits: Edits, *, keep_files: bool = False, board_size: int | None = None
) -> FirmwareChange:
    """Fit a firmware to another flash size or table.

    In a file (``board_size`` None) a data partition that moves or changes size is reset; with
    ``keep_files`` its files go along. On a board with ``board_size`` bytes of flash nvs is kept
    too, where it fits, and the app that boots stays the one. Raises MpotaError if the result would
    not fit, or if files cannot be kept; UsageError for edits that cannot be.
    """
    if board_size is None and edits.flash_size is not None:
        firmware.chip.flash_size_code(edits.flash_size)
    layout = edits.apply(firmware.layout())
    if board_size is None:
        kept = kept_files(firmware, layout, layout.flash_size, keep_files=keep_files)
    else:
        kept = kept_on_board(firmware, layout, board_size, keep_files=keep_files)
    changes = (*kept.changes, *changes_for(firmware, layout, kept.contents))
    rows = kept.tell(differences(firmware, layout))
    if board_size is None:
        notes = tuple(_file_notes(firmware, layout, edits))
    else:
        from mpota.bootloader.slots import place_of_next  # for boards only

        grows = layout.flash_size >= firmware.flash_size
        changes = order_changes(changes, place_of_next(firmware, board_size), grows=grows)
        notes = tuple(_board_notes(firmware, rows))
    summary = _summary(firmware.flash_size, layout.flash_size)
    return FirmwareChange(summary, changes, layout.flash_size, layout.table_offset, rows, notes)


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
    has_file_system = any(p.is_file_system for p in layout.table)
    if grown and edits.table is None and layout.table == firmware.table:
        if not has_file_system:
            yield (
                "the table stays as it is: it has no file system partition, MicroPython 1.25 and "
                "later makes one at boot in all the flash behind the last entry"
            )
        elif layout.file_system is None:
            last = max(firmware.table, key=lambda p: p.offset)
            yield f"the table stays as it is: it ends with '{last.label}', which is no file system"
    else:
        known = _gaps(firmware.layout())
        for start, end in _gaps(layout):
            # Without a file system MicroPython 1.25 and later takes all behind the last entry.
            if (start, end) not in known and (has_file_system or end < layout.flash_size):
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
    records, slots = firmware.otadata, firmware.table.slots
    active = active_record(records) if records and slots else None
    if records and active is not None:
        selected = slots[selected_slot(records[active].ota_seq, len(slots))]
        boots = _boots_first(firmware, layout)
        if boots is not None and layout.sources.get(boots.label) != selected:
            yield (
                f"otadata selected '{selected.label}' and is blank now: "
                f"'{boots.label}' boots, which was '{_label(layout, boots.label)}'"
            )
    if layout.table.otadata and not firmware.table.otadata:
        yield "otadata is blank: the first boot starts ota_0"


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
