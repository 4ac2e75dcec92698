"""Another flash size or partition table for a firmware in a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mpota.edit.keep import kept_files
from mpota.errors import UsageError
from mpota.firmware.changes import Change, Difference, apply, changes_for, differences
from mpota.firmware.firmware import Firmware, read_table
from mpota.firmware.layout import LAYOUTS, Edits, Layout
from mpota.formats.chips import Chip
from mpota.formats.otadata import active_record, selected_slot
from mpota.formats.partition_table import PartitionTable
from mpota.resources import data_directory
from mpota.storage.file import read_file
from mpota.units import MiB, format_flash_size, format_size


@dataclass(frozen=True)
class Edited:
    """A changed firmware: the file's new bytes, and what to tell about it."""

    chip: Chip
    data: bytes = field(repr=False)
    differences: tuple[Difference, ...]
    changes: tuple[Change, ...]
    summary: str
    notes: tuple[str, ...] = ()


def resize(firmware: Firmware, edits: Edits, *, keep_files: bool = False) -> Edited:
    """Fit a firmware to another flash size or table.

    A data partition that moves or changes size is reset; with ``keep_files`` its files go along.
    Raises MpotaError if the result would not fit or boot, or if files cannot be kept; UsageError
    for edits that cannot be.
    Nothing is written: ``data`` of the result is what the new file holds.
    """
    if edits.flash_size is not None:
        firmware.chip.flash_size_code(edits.flash_size)
    layout = edits.apply(firmware.layout())
    kept = kept_files(firmware, layout, layout.flash_size, keep_files=keep_files)
    changes = (*kept.changes, *changes_for(firmware, layout, kept.contents))
    data = apply_to_file(firmware, changes, layout.flash_size)
    result = firmware.with_data(data, layout.table_offset)
    return Edited(
        firmware.chip,
        data,
        kept.tell(differences(firmware, layout)),
        changes,
        _summary(firmware.flash_size, layout.flash_size),
        tuple(_notes(firmware, layout, edits, result)),
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


def apply_to_file(firmware: Firmware, changes: Iterable[Change], flash_size: int) -> bytes:
    """The bytes of a firmware's file after ``changes``, for a flash of ``flash_size`` bytes."""
    flash = firmware.flash
    data = bytearray(flash.read(flash.base, flash.end - flash.base))
    apply(data, flash.base, changes)
    if firmware.is_dump:
        # A dump of the whole flash stays one.
        data.extend(b"\xff" * (flash_size - flash.base - len(data)))
    del data[max(0, flash_size - flash.base) :]
    return bytes(data)


def _summary(old_size: int, new_size: int) -> str:
    if old_size == new_size:
        return f"flash size {format_flash_size(old_size)}"
    return f"flash size {format_flash_size(old_size)} -> {format_flash_size(new_size)}"


def _notes(firmware: Firmware, layout: Layout, edits: Edits, result: Firmware) -> Iterator[str]:
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

        believed = bootloader_info(result.bootloader.data).flash_size or 0
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
        boots = result.app_partition
        if layout.sources.get(boots.label) != selected:
            yield (
                f"otadata selected '{selected.label}' and is blank now: "
                f"'{boots.label}' boots, which was '{_label(layout, boots.label)}'"
            )
    if layout.table.otadata and not firmware.table.otadata:
        yield "otadata is blank: the first boot starts ota_0"


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
