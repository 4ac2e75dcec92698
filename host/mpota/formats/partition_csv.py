"""Partition tables as CSV, in ESP-IDF's dialect (``gen_esp32part.py``, PartitionTable.from_csv).

A line a partition: ``name, type, subtype, offset, size, flags``. Comments start with ``#``;
numbers are decimal or hex, with K or M; an empty offset is the next free one, aligned for the
type; a negative size gives the partition's end; flags are joined by ``:``; names of types and
subtypes in any case. Beyond that dialect, a comment may end a line, and a flags field may be a
number, so that unknown flags survive.

Not handled: ``$VARIABLES``.
"""

from __future__ import annotations

from mpota.errors import MpotaError
from mpota.formats.partition_table import (
    APP,
    BOOTLOADER,
    DATA_UNDEFINED,
    DEFAULT_TABLE_OFFSET,
    FLAGS,
    SUBTYPES,
    TABLE,
    TYPES,
    Partition,
    PartitionTable,
    offset_alignment,
)
from mpota.units import SECTOR_SIZE, KiB, MiB, align_up

_HEADER = "# ESP-IDF Partition Table\n# Name, Type, SubType, Offset, Size, Flags\n"
_U32 = 0xFFFFFFFF


def table_from_csv(text: str, table_offset: int = DEFAULT_TABLE_OFFSET) -> PartitionTable:
    """The table that ``text`` describes, empty offsets filled in from ``table_offset`` on.

    Raises MpotaError, naming the line, if a line cannot be read or starts before the end of the
    one before it. Says nothing of the other rules: see `PartitionTable.check`.
    """
    partitions: list[Partition] = []
    end = table_offset + SECTOR_SIZE
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            partition = _parse_line(line, end, table_offset)
        except MpotaError as error:
            raise MpotaError(f"CSV line {number}: {error}", error.hint) from None
        partitions.append(partition)
        if not partition.is_primary:
            end = partition.end
    if not partitions:
        raise MpotaError("CSV has no partition in it")
    return PartitionTable(tuple(partitions))


def table_to_csv(table: PartitionTable) -> str:
    """ESP-IDF's CSV for ``table``; reading it back gives the same entries.

    Raises MpotaError for a name that this format cannot hold.
    """
    lines = []
    for p in table:
        if "," in p.label or p.label.startswith("#") or p.label != p.label.strip():
            raise MpotaError(f"partition name '{p.label}' cannot be written in a CSV")
        flags = ":".join(p.flag_names)
        if p.flags & ~sum(FLAGS.values()):
            flags = f"{p.flags:#x}"
        fields = (p.label, p.type_name, p.subtype_name, f"{p.offset:#x}", f"{p.size:#x}", flags)
        lines.append(",".join(fields) + "\n")
    return _HEADER + "".join(lines)


def parse_subtype(kind: int, text: str) -> int:
    """The number of a subtype given by name or number. Raises MpotaError if it is neither."""
    if not text:
        if kind == APP:
            raise MpotaError("an app partition needs a subtype")
        return DATA_UNDEFINED
    return _parse_number(text, "subtype", 0xFF, SUBTYPES.get(kind, {}))


def _parse_line(line: str, end: int, table_offset: int) -> Partition:
    label, comma, rest = line.partition(",")  # a name may have a # in it
    line = label + comma + rest.split("#", 1)[0]
    fields = [field.strip() for field in line.split(",")]
    fields = ["" if field.upper() == "N/A" else field for field in fields]
    if len(fields) > 6 and any(fields[6:]):
        raise MpotaError(f"{len(fields)} fields, a partition has 6 at most")
    label, kind_text, subtype_text, offset_text, size_text, flags_text = (fields + [""] * 6)[:6]
    kind = _parse_number(kind_text, "type", 0xFE, TYPES)
    subtype = parse_subtype(kind, subtype_text)
    is_primary = kind in (BOOTLOADER, TABLE) and subtype == 0
    if offset_text:
        offset = _parse_number(offset_text, "offset", _U32)
        if offset < end and not is_primary:
            raise MpotaError(f"offset {offset:#x} is below {end:#x}, where the one before ends")
    elif kind == BOOTLOADER:
        raise MpotaError(
            "where a bootloader stands depends on the chip: write its offset "
            "(0x1000 on ESP32 and ESP32-S2, 0x2000 on ESP32-P4 and ESP32-C5, else 0x0)"
        )
    else:
        is_table = kind == TABLE and is_primary
        offset = table_offset if is_table else align_up(end, offset_alignment(kind))
    if kind == TABLE and not size_text:
        size_text = hex(SECTOR_SIZE)
    if kind == BOOTLOADER and not size_text and offset < table_offset:
        size_text = hex(table_offset - offset)
    size = _parse_number(size_text, "size", _U32, minimum=-_U32)
    if size < 0:
        size = -size - offset
        if size <= 0:
            raise MpotaError(f"size {size_text} ends the partition before its offset {offset:#x}")
    return Partition(label, kind, subtype, offset, size, _parse_flags(flags_text))


def _parse_flags(text: str) -> int:
    if text[:1].isdigit():
        return _parse_number(text, "flags", _U32)
    flags = 0
    for name in filter(None, text.split(":")):
        if name not in FLAGS:
            raise MpotaError(f"flag '{name}' is not one of {', '.join(FLAGS)}")
        flags |= FLAGS[name]
    return flags


def _parse_number(
    text: str, what: str, limit: int, names: dict[str, int] | None = None, *, minimum: int = 0
) -> int:
    if names and text.lower() in names:
        return names[text.lower()]
    unit = {"k": KiB, "m": MiB}.get(text[-1:].lower(), 1)
    try:
        value = int(text[:-1] if unit > 1 else text, 0) * unit
    except ValueError:
        known = f", or one of {', '.join(names)}" if names else ""
        raise MpotaError(f"{what} '{text}' is not a number{known}") from None
    if not minimum <= value <= limit:
        raise MpotaError(f"{what} {text} is outside {minimum:#x} to {limit:#x}")
    return value
