"""A change to a firmware as a value: computed once, shown, then made in a file or on a board."""

from __future__ import annotations

from dataclasses import dataclass

from mpota.firmware.changes import Change, Difference, apply
from mpota.firmware.firmware import Firmware


@dataclass(frozen=True)
class FirmwareChange:
    """``changes`` make another firmware, in the order that is safest against power cuts.

    ``summary`` tells it in a line, ``differences`` for each partition, ``notes`` what else people
    should know. ``flash_size``, in bytes, and ``table_offset`` are those of the result.

    `apply_to_file` makes it in a file, `mpota.flashing.live.plan_change` on a board.
    """

    summary: str
    changes: tuple[Change, ...]
    flash_size: int
    table_offset: int
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()


def apply_to_file(firmware: Firmware, change: FirmwareChange) -> bytes:
    """The bytes of a firmware's file after ``change``. Raises MpotaError if that damages it."""
    flash = firmware.flash
    data = bytearray(flash.read(flash.base, flash.end - flash.base))
    apply(data, flash.base, change.changes)
    if firmware.is_dump:
        # A dump of the whole flash stays one.
        data.extend(b"\xff" * (change.flash_size - flash.base - len(data)))
    del data[max(0, change.flash_size - flash.base) :]
    result = bytes(data)
    firmware.with_data(result, change.table_offset)
    return result
