"""From a firmware and a new layout to the erases and writes that bring it about.

The list is the same for a file and for a board, and it is the dry run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from mpota.errors import MpotaError
from mpota.firmware.layout import Layout
from mpota.formats.image import Image
from mpota.formats.partition_table import Partition, PartitionTable
from mpota.units import BLOCK_SIZE, SECTOR_SIZE, align_up

TABLE, BOOTLOADER = "partition table", "bootloader"  # places that are no partitions


@dataclass(frozen=True)
class Change:
    """``size`` bytes of flash from ``offset`` on become ``data``, the rest of them 0xFF.

    Whole sectors are erased, so that both are multiples of 4 KiB. ``what`` names the place.
    """

    offset: int
    size: int
    what: str
    data: bytes = field(default=b"", repr=False)

    @property
    def end(self) -> int:
        return self.offset + self.size


class Source(Protocol):
    """What changes need of a firmware (`mpota.firmware.firmware.Firmware`)."""

    @property
    def bootloader(self) -> Image: ...
    @property
    def table(self) -> PartitionTable: ...
    @property
    def table_offset(self) -> int: ...
    @property
    def flash_size(self) -> int: ...
    def content(self, partition: Partition) -> bytes: ...


class Difference(NamedTuple):
    """What becomes of one partition: ``old`` or ``new`` is None if it was added or deleted.

    ``effects`` are the words for it: ``moved``, ``grown``, ``shrunk``, ``content reset``, ...
    """

    old: Partition | None
    new: Partition | None
    effects: tuple[str, ...]


def changes_for(
    source: Source, layout: Layout, contents: Mapping[str, bytes] | None = None
) -> tuple[Change, ...]:
    """What has to be written so that ``source`` becomes ``layout``, in a safe order.

    ``contents`` are bytes for partitions by label, instead of what moves there. First come the
    partitions, then the table, then the bootloader. Raises MpotaError if a content does not fit
    its partition, and UsageError for a flash size that the bootloader's header cannot say.
    """
    changes = list(_partition_changes(source, layout, contents or {}))
    if layout.table != source.table:
        changes.append(Change(layout.table_offset, SECTOR_SIZE, TABLE, layout.table.to_bytes()))
    if layout.flash_size != source.flash_size:
        bootloader = source.bootloader.with_flash_size(layout.flash_size)
        changes.append(bootloader_change(bootloader))
    return tuple(changes)


def bootloader_change(bootloader: Image) -> Change:
    return Change(
        bootloader.chip.bootloader_offset,
        align_up(bootloader.size, SECTOR_SIZE),
        BOOTLOADER,
        bootloader.data,
    )


def order_changes(
    changes: Iterable[Change], live: tuple[int, int], *, grows: bool
) -> tuple[Change, ...]:
    """The safest order: ``live`` is the place (start, end) of the app that boots now.

    First what does not touch it, then what does, at last table and bootloader. A bootloader that
    knows of more flash comes before the table that uses it, one that knows of less after it:
    the bootloader refuses a table that goes beyond its flash (esp_partition_table_verify).
    """
    last = {BOOTLOADER: 3, TABLE: 4} if grows else {TABLE: 3, BOOTLOADER: 4}

    def rank(change: Change) -> int:
        touches = change.offset < live[1] and change.end > live[0]
        return last.get(change.what, 1 + touches)

    return tuple(sorted(changes, key=rank))


def differences(source: Source, layout: Layout) -> tuple[Difference, ...]:
    """Old against new, for every partition of either table."""
    rows = []
    sources = layout.sources
    for new in layout.table:
        old = sources.get(new.label)
        if old is None:
            rows.append(Difference(None, new, ("added, blank",)))
        else:
            rows.append(Difference(old, new, tuple(_effects(old, new))))
    used = {p.label for p in sources.values()}
    for old in source.table:
        if old.label not in used:
            rows.append(Difference(old, None, ("deleted",)))
    return tuple(sorted(rows, key=lambda row: (row.new or row.old or _NOWHERE).offset))


_NOWHERE = Partition("", 0, 0, 0, 0)


def apply(data: bytearray, base: int, changes: Iterable[Change]) -> None:
    """Make the changes in ``data``, which stands at flash address ``base``; it grows as needed."""
    for change in changes:
        start = change.offset - base
        # A file ends where its contents end: flash that is erased behind that adds no bytes.
        size = min(change.size, max(len(change.data), len(data) - start))
        if size <= 0:
            continue
        if len(data) < start:
            data.extend(b"\xff" * (start - len(data)))
        data[start : start + size] = change.data.ljust(size, b"\xff")


def _partition_changes(
    source: Source, layout: Layout, contents: Mapping[str, bytes]
) -> Iterable[Change]:
    sources = layout.sources
    # Read all contents before writing any: a move may overwrite its own source.
    for new in layout.table:
        old = sources.get(new.label)
        if new.label in contents:
            yield _write(new, contents[new.label])
        elif new.is_otadata or old is None or _is_reset(old, new):
            yield _write(new, b"")
        elif old.offset != new.offset or new.size != old.size:
            # It grows in place: its bytes are there already, unless its app ran over the end.
            content = source.content(old)
            if len(content) > new.size:
                raise MpotaError(
                    f"content of '{old.label}' is {len(content):,} bytes, "
                    f"partition '{new.label}' would hold {new.size:,}",
                    f"give it {align_up(len(content), BLOCK_SIZE):#x} bytes or more",
                )
            if old.offset != new.offset or len(content) > old.size:
                yield _write(new, content)


def _write(partition: Partition, data: bytes) -> Change:
    if len(data) > partition.size:
        raise MpotaError(
            f"content for '{partition.label}' is {len(data):,} bytes, "
            f"the partition holds {partition.size:,}"
        )
    return Change(partition.offset, align_up(partition.size, SECTOR_SIZE), partition.label, data)


def _is_reset(old: Partition, new: Partition) -> bool:
    return not new.is_app and (old.offset, old.size) != (new.offset, new.size)


def _effects(old: Partition, new: Partition) -> Iterable[str]:
    if old.label != new.label:
        yield f"was {old.label}"
    if old.offset != new.offset:
        yield "moved"
    if old.size != new.size:
        yield "grown" if new.size > old.size else "shrunk"
    if new.is_otadata or _is_reset(old, new):
        yield "content reset"
