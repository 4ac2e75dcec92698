"""Read back and compare: what a board's flash should hold against what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mpota.bootloader.check import Slot, check_flash
from mpota.bootloader.slots import boots_next
from mpota.errors import MpotaError, UsageError
from mpota.firmware.changes import BOOTLOADER, TABLE
from mpota.firmware.firmware import Firmware, is_app_image, read_app
from mpota.firmware.on_board import board_firmware
from mpota.flashing.compare import Comparison, compare
from mpota.formats.image import Image
from mpota.formats.partition_table import DATA_NVS, PartitionTable
from mpota.storage.board import BoardFlash
from mpota.units import format_flash_size

_TABLE_NAMES = (TABLE, "partition-table", "table")


@dataclass(frozen=True)
class Expected:
    """Bytes of a file, and the flash address where they belong."""

    name: str
    offset: int
    data: bytes


@dataclass(frozen=True)
class Verified:
    """A region compared; ``slot`` is the bootloader's verdict if it is an app's.

    ``note`` tells what differs where more can be said than of bytes.
    """

    region: Expected
    comparison: Comparison
    slot: Slot | None
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        verdict = self.slot.verdict if self.slot else None
        return {
            "name": self.region.name,
            "offset": self.region.offset,
            "size": self.comparison.size,
            "equal": self.comparison.is_equal,
            "differing": self.comparison.differing,
            "ranges": [list(r) for r in self.comparison.shown_ranges],
            "places": len(self.comparison.ranges),
            "kinds": list(self.comparison.kinds),
            "note": self.note,
            "bootable": verdict.is_bootable if verdict else None,
            "console": list(verdict.console) if verdict else [],
        }


def verify(board: BoardFlash, regions: list[Expected], table_offset: int) -> tuple[Verified, ...]:
    """Compare by MD5 first; only what differs is read. Raises MpotaError behind the flash's end."""
    slots: dict[int, Slot] = {}
    results = []
    for region in regions:
        note = None
        if board.is_equal(region.offset, region.data):
            comparison = Comparison(len(region.data), 0, (), ())
        else:
            found = board.read(region.offset, len(region.data))
            comparison = compare(region.data, found)
            note = _note(region, found)
            if not slots:
                check = check_flash(
                    board, flash_size=board.size, table_offset=table_offset, is_file=False
                )
                slots = {slot.partition.offset: slot for slot in check.slots}
        results.append(Verified(region, comparison, slots.get(region.offset), note))
    return tuple(results)


def find_regions(
    board: BoardFlash, data: bytes, name: str, partition: str | None, table_offset: int
) -> list[Expected]:
    """What of a file belongs where on the board.

    A firmware: bootloader, table, apps, and data it has bytes for; not nvs, otadata and file
    systems, which change while the board runs. An app image: the slot that boots, or
    ``partition``. Other files belong into ``partition``, or to it at their own place if they are a
    firmware. Raises MpotaError if that cannot be told.
    """
    if is_app_image(data):
        return [_app_region(board, data, name, partition, table_offset)]
    try:
        firmware = Firmware.from_bytes(data, name, table_offset)
    except MpotaError:
        if partition is None:
            raise
        return [Expected(partition, _offset_of(board, partition, table_offset), data)]
    regions = list(_firmware_regions(firmware, everything=partition is not None))
    if partition is None:
        return regions
    wanted = TABLE if partition in _TABLE_NAMES else partition
    for region in regions:
        if region.name == wanted:
            return [region]
    if firmware.table.find(partition) is None:
        # The app may be in a slot that only the board's table has: an update brought it there.
        app = firmware.app(firmware.app_partition).to_bytes()
        return [Expected(partition, _offset_of(board, partition, table_offset), app)]
    raise MpotaError(f"{name} has nothing in partition '{partition}'")


def _app_region(
    board: BoardFlash, data: bytes, name: str, partition: str | None, table_offset: int
) -> Expected:
    with suppress(MpotaError):  # a damaged file is compared whole
        data = read_app(data, name).to_bytes()
    if partition is not None:
        return Expected(partition, _offset_of(board, partition, table_offset), data)
    firmware = board_firmware(board, table_offset)
    slot = boots_next(firmware, board.size)
    if slot is None:
        labels = ", ".join(p.label for p in firmware.table.apps)
        raise UsageError(f"{board.name}: no app boots: name the partition, one of {labels}")
    return Expected(slot.label, slot.offset, data)


def _offset_of(board: BoardFlash, partition: str, table_offset: int) -> int:
    firmware = board_firmware(board, table_offset)
    if partition == BOOTLOADER and firmware.table.find(partition) is None:
        return firmware.chip.bootloader_offset
    return firmware.table[partition].offset


def _note(region: Expected, found: bytes) -> str | None:
    """Differences that a resize makes on purpose."""
    with suppress(MpotaError):
        if region.name == TABLE:
            labels = ", ".join(p.label for p in PartitionTable.from_bytes(found))
            return f"a valid table with other partitions: {labels}"
        if region.name == BOOTLOADER:
            expected, image = Image.from_bytes(region.data), Image.from_bytes(found)
            size = image.header.flash_size
            if size is not None and expected.with_flash_size(size).data == image.data:
                return f"the same but for the flash size in its header, {format_flash_size(size)}"
    return None


def _firmware_regions(firmware: Firmware, *, everything: bool) -> Iterator[Expected]:
    yield Expected(BOOTLOADER, firmware.chip.bootloader_offset, firmware.bootloader.data)
    yield Expected(TABLE, firmware.table_offset, firmware.table.to_bytes())
    for partition in firmware.table:
        content = firmware.content(partition)
        changes = partition.is_otadata or partition.is_file_system
        if partition.subtype == DATA_NVS and not partition.is_app:
            changes = True
        if content and (everything or not changes):
            yield Expected(partition.label, partition.offset, content)
