"""otadata: the two records by which the bootloader picks an app slot.

Source: ESP-IDF ``esp_flash_partitions.h`` (esp_ota_select_entry_t) and
``bootloader_common_loader.c`` (what makes a record valid, invalid and active).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from mpota.errors import MpotaError
from mpota.units import SECTOR_SIZE

RECORD_SIZE = 32
OTADATA_SIZE = 2 * SECTOR_SIZE  # a record at the start of each sector
_RECORD = struct.Struct("<I20sII")
_BLANK_WORD = 0xFFFFFFFF


class OtaState(IntEnum):
    """``esp_ota_img_states_t``."""

    NEW = 0
    PENDING_VERIFY = 1
    VALID = 2
    INVALID = 3
    ABORTED = 4
    UNDEFINED = 0xFFFFFFFF


class OtaRecord(NamedTuple):
    """``esp_ota_select_entry_t``. ``ota_state`` may hold a number that is no OtaState."""

    ota_seq: int
    seq_label: bytes
    ota_state: int
    crc: int

    @classmethod
    def from_bytes(cls, data: bytes) -> OtaRecord:
        """Parse 32 bytes; any content is a record. Raises MpotaError if there are fewer."""
        if len(data) < RECORD_SIZE:
            raise MpotaError(f"otadata record is {len(data)} bytes, it has {RECORD_SIZE}")
        return cls(*_RECORD.unpack_from(data))

    @classmethod
    def selecting(cls, ota_seq: int, state: OtaState) -> OtaRecord:
        """A record as ESP-IDF writes it, with its CRC."""
        return cls(ota_seq, b"\xff" * 20, state, seq_crc(ota_seq))

    @classmethod
    def blank(cls) -> OtaRecord:
        return cls.from_bytes(b"\xff" * RECORD_SIZE)

    def to_bytes(self) -> bytes:
        return _RECORD.pack(self.ota_seq, self.seq_label, self.ota_state, self.crc)

    @property
    def is_crc_ok(self) -> bool:
        return self.crc == seq_crc(self.ota_seq)

    @property
    def is_invalid(self) -> bool:
        """bootloader_common_ota_select_invalid: blank, INVALID or ABORTED. It ignores the CRC."""
        return self.ota_seq == _BLANK_WORD or self.ota_state in (
            OtaState.INVALID,
            OtaState.ABORTED,
        )

    @property
    def is_valid(self) -> bool:
        """bootloader_common_ota_select_valid: it may select a slot."""
        return not self.is_invalid and self.is_crc_ok

    @property
    def state_name(self) -> str:
        try:
            return OtaState(self.ota_state).name
        except ValueError:
            return f"{self.ota_state:#x}"


def seq_crc(ota_seq: int) -> int:
    """The CRC-32 of ota_seq alone, as the ROM's crc32_le(UINT32_MAX, ...) computes it."""
    return zlib.crc32(struct.pack("<I", ota_seq), _BLANK_WORD)


def parse_otadata(data: bytes) -> tuple[OtaRecord, OtaRecord]:
    """Both records of an otadata partition. Raises MpotaError if it is shorter than 0x2000."""
    if len(data) < OTADATA_SIZE:
        raise MpotaError(f"otadata is {len(data):#x} bytes, it has {OTADATA_SIZE:#x}")
    return (
        OtaRecord.from_bytes(data[:RECORD_SIZE]),
        OtaRecord.from_bytes(data[SECTOR_SIZE : SECTOR_SIZE + RECORD_SIZE]),
    )


def active_record(records: Sequence[OtaRecord]) -> int | None:
    """Index of the record that selects, None if neither may: the higher ota_seq wins.

    bootloader_common_select_otadata: of two equal ones the first.
    """
    valid = [index for index, record in enumerate(records) if record.is_valid]
    return max(valid, key=lambda index: (records[index].ota_seq, -index), default=None)


def selected_slot(ota_seq: int, slot_count: int) -> int:
    """The number of the slot that ``ota_seq`` selects among ``slot_count`` (u32 arithmetic)."""
    return ((ota_seq - 1) & 0xFFFFFFFF) % slot_count
