"""The firmware on a board, whose flash learns the names of its places for progress lines."""

from __future__ import annotations

from mpota.firmware.changes import BOOTLOADER, TABLE
from mpota.firmware.firmware import Firmware
from mpota.formats.partition_table import DEFAULT_TABLE_OFFSET
from mpota.storage.board import BoardFlash
from mpota.units import SECTOR_SIZE


def board_firmware(board: BoardFlash, table_offset: int = DEFAULT_TABLE_OFFSET) -> Firmware:
    """The firmware on ``board``; its progress names bootloader, table and partitions from now on.

    Raises MpotaError without a bootloader whose checksum fits, or without a valid table.
    """
    firmware = Firmware.from_flash(board, board.name, table_offset)
    board.places = (
        *((p.offset, p.end, p.label) for p in firmware.table),
        (0, table_offset, BOOTLOADER),
        (table_offset, table_offset + SECTOR_SIZE, TABLE),
    )
    return firmware
