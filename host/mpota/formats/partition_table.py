"""Partition tables: bytes to entries, and the rules that entries must keep.

Source: ESP-IDF ``gen_esp32part.py`` (rules, names) and ``flash_partitions.c``
(esp_partition_table_verify: what the bootloader demands).

Not handled: tables signed for Secure Boot V1.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from mpota.errors import MpotaError
from mpota.formats.otadata import OTADATA_SIZE, selected_slot
from mpota.units import BLOCK_SIZE, SECTOR_SIZE

DEFAULT_TABLE_OFFSET = 0x8000
TABLE_SIZE = 0xC00  # what is read of the table's sector
ENTRY_SIZE = 32
# flash_partitions.c: esp_partition_table_verify wants a blank row behind the last one, which is
# the MD5 entry where there is one.
MAX_ROWS = TABLE_SIZE // ENTRY_SIZE - 1
MAX_LABEL_SIZE = 16  # esp_partition.c keeps 16, with or without a NUL behind them
MAX_NEW_LABEL_SIZE = 15  # for names that users give: some tools want the NUL
NVS_MIN_SIZE = 0x3000  # gen_esp32part.py, NVS_RW_MIN_PARTITION_SIZE

ENTRY_MAGIC = b"\xaa\x50"
MD5_MAGIC = b"\xeb\xeb" + b"\xff" * 14
_ENTRY = struct.Struct("<2sBBII16sI")

APP, DATA, BOOTLOADER, TABLE = 0x00, 0x01, 0x02, 0x03
FACTORY, OTA_0, TEST = 0x00, 0x10, 0x20
OTA_SLOTS = 16
DATA_OTA, DATA_PHY, DATA_NVS, DATA_COREDUMP = 0x00, 0x01, 0x02, 0x03
DATA_UNDEFINED = 0x06
DATA_TEE_OTA = 0x90
FILE_SYSTEMS = (0x81, 0x82, 0x83)  # fat, spiffs, littlefs

TYPES = {"app": APP, "data": DATA, "bootloader": BOOTLOADER, "partition_table": TABLE}
SUBTYPES = {
    APP: {
        "factory": FACTORY,
        **{f"ota_{slot}": OTA_0 + slot for slot in range(OTA_SLOTS)},
        "test": TEST,
        "tee_0": 0x30,
        "tee_1": 0x31,
    },
    DATA: {
        "ota": DATA_OTA,
        "phy": DATA_PHY,
        "nvs": DATA_NVS,
        "coredump": DATA_COREDUMP,
        "nvs_keys": 0x04,
        "efuse": 0x05,
        "undefined": DATA_UNDEFINED,
        "esphttpd": 0x80,
        "fat": 0x81,
        "spiffs": 0x82,
        "littlefs": 0x83,
        "tee_ota": DATA_TEE_OTA,
    },
    BOOTLOADER: {"primary": 0x00, "ota": 0x01, "recovery": 0x02},
    TABLE: {"primary": 0x00, "ota": 0x01},
}
_TYPE_NAMES = {number: name for name, number in TYPES.items()}
_SUBTYPE_NAMES = {
    kind: {number: name for name, number in names.items()} for kind, names in SUBTYPES.items()
}
FLAGS = {"encrypted": 1 << 0, "readonly": 1 << 1}


def offset_alignment(kind: int) -> int:
    """Bytes to which the offset of a partition of type ``kind`` is aligned."""
    return BLOCK_SIZE if kind == APP else SECTOR_SIZE


@dataclass(frozen=True)
class Partition:
    """An entry of the table. Offset (a flash address) and size in bytes; flags as stored."""

    label: str
    type: int
    subtype: int
    offset: int
    size: int
    flags: int = 0

    @classmethod
    def from_bytes(cls, data: bytes) -> Partition:
        """Parse 32 bytes that start with the entry's magic."""
        _, kind, subtype, offset, size, label, flags = _ENTRY.unpack(data)
        # A label is whatever bytes a tool wrote there: surrogateescape keeps them for to_bytes.
        text = label.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        return cls(text, kind, subtype, offset, size, flags)

    def to_bytes(self) -> bytes:
        label = self.label.encode("utf-8", "surrogateescape")
        return _ENTRY.pack(
            ENTRY_MAGIC, self.type, self.subtype, self.offset, self.size, label, self.flags
        )

    @property
    def end(self) -> int:
        """The first flash address behind the partition."""
        return self.offset + self.size

    @property
    def type_name(self) -> str:
        """``app``, ``data``, ...; the number in hex where the type has no name."""
        return _TYPE_NAMES.get(self.type, f"{self.type:#04x}")

    @property
    def subtype_name(self) -> str:
        """``ota_0``, ``nvs``, ...; the number in hex where the subtype has no name."""
        return _SUBTYPE_NAMES.get(self.type, {}).get(self.subtype, f"{self.subtype:#04x}")

    @property
    def flag_names(self) -> tuple[str, ...]:
        return tuple(name for name, bit in FLAGS.items() if self.flags & bit)

    @property
    def is_app(self) -> bool:
        return self.type == APP

    @property
    def is_otadata(self) -> bool:
        return self.type == DATA and self.subtype == DATA_OTA

    @property
    def is_primary(self) -> bool:
        """Whether it is the bootloader or the table itself, which lie below the table's end."""
        return self.type in (BOOTLOADER, TABLE) and self.subtype == 0

    @property
    def is_file_system(self) -> bool:
        return self.type == DATA and self.subtype in FILE_SYSTEMS

    @property
    def slot(self) -> int | None:
        """N of an ``ota_N`` app partition, None for any other."""
        slot = self.subtype - OTA_0
        return slot if self.is_app and 0 <= slot < OTA_SLOTS else None

    def check(self) -> None:
        """Raises MpotaError if the entry breaks a rule by itself."""
        name = f"partition '{self.label}'"
        size = len(self.label.encode("utf-8", "surrogateescape"))
        if not 1 <= size <= MAX_LABEL_SIZE or not self.label.isprintable():
            raise MpotaError(
                f"{name}: the name is {size} bytes, "
                f"1 to {MAX_LABEL_SIZE} printable ones are allowed"
            )
        if not self.size:
            raise MpotaError(f"{name} has size 0")
        alignment = offset_alignment(self.type)
        if self.offset % alignment:
            raise MpotaError(
                f"{name}: offset {self.offset:#x} is not a multiple of {alignment:#x}, "
                f"as {self.type_name} partitions need"
            )
        if self.is_app and self.size % SECTOR_SIZE:
            raise MpotaError(f"{name}: size {self.size:#x} is not a multiple of {SECTOR_SIZE:#x}")
        is_otadata = self.type == DATA and self.subtype in (DATA_OTA, DATA_TEE_OTA)
        if is_otadata and self.size != OTADATA_SIZE:
            raise MpotaError(f"{name}: size {self.size:#x}, otadata has {OTADATA_SIZE:#x}")
        readonly = bool(self.flags & FLAGS["readonly"])
        if readonly and self.type == DATA and self.subtype in (DATA_OTA, DATA_COREDUMP):
            raise MpotaError(f"{name}: {self.subtype_name} partitions cannot be readonly")
        is_nvs = (self.type, self.subtype) == (DATA, DATA_NVS)
        if is_nvs and self.size < NVS_MIN_SIZE and not readonly:
            raise MpotaError(
                f"{name}: size {self.size:#x}, nvs that is written needs {NVS_MIN_SIZE:#x}"
            )


@dataclass(frozen=True)
class PartitionTable:
    """Entries in the order of the table; ``has_md5`` tells whether an MD5 entry ends them."""

    partitions: tuple[Partition, ...]
    has_md5: bool = True

    @classmethod
    def from_bytes(cls, data: bytes) -> PartitionTable:
        """Parse a table from its first byte on; at most 0xC00 bytes of ``data`` are looked at.

        Raises MpotaError if it is no table, if its MD5 does not fit, or if it has no end. Says
        nothing of offsets and sizes: see `check`.
        """
        data = data[:TABLE_SIZE]
        if data[:2] != ENTRY_MAGIC:
            raise MpotaError(
                f"partition table starts with {data[:2].hex() or 'nothing'}, "
                f"a table with {ENTRY_MAGIC.hex()}"
            )
        partitions: list[Partition] = []
        has_md5 = False
        for start in range(0, len(data), ENTRY_SIZE):
            row = data[start : start + ENTRY_SIZE]
            if len(row) < ENTRY_SIZE:
                raise MpotaError(
                    f"partition table is truncated: {len(data)} bytes, entries have {ENTRY_SIZE}"
                )
            if row == b"\xff" * ENTRY_SIZE:
                if data[start:].strip(b"\xff"):
                    raise MpotaError(f"partition table ends at byte {start:#x}, but more follows")
                return cls(tuple(partitions), has_md5)
            if has_md5:
                raise MpotaError(f"partition table goes on behind its MD5, at byte {start:#x}")
            if row[:16] == MD5_MAGIC:
                _check_md5(data[:start], row)
                has_md5 = True
            elif row[:2] == ENTRY_MAGIC:
                partitions.append(Partition.from_bytes(row))
            else:
                raise MpotaError(
                    f"partition table entry {len(partitions)} has magic {row[:2].hex()}, "
                    f"entries have {ENTRY_MAGIC.hex()}"
                )
        raise MpotaError(f"partition table has no end within {len(data):#x} bytes")

    @classmethod
    def salvage(cls, data: bytes) -> PartitionTable | None:
        """The entries that can be read in a table which `from_bytes` refuses; None if none can."""
        rows = [data[at : at + ENTRY_SIZE] for at in range(0, TABLE_SIZE, ENTRY_SIZE)]
        found = [
            Partition.from_bytes(row)
            for row in rows
            if len(row) == ENTRY_SIZE and row[:2] == ENTRY_MAGIC
        ]
        return cls(tuple(found), any(row[:16] == MD5_MAGIC for row in rows)) if found else None

    def to_bytes(self) -> bytes:
        """The 0xC00 bytes of the table. Raises MpotaError for more entries than they hold."""
        self._check_count()
        data = b"".join(partition.to_bytes() for partition in self.partitions)
        if self.has_md5:
            data += MD5_MAGIC + hashlib.md5(data, usedforsecurity=False).digest()
        return data.ljust(TABLE_SIZE, b"\xff")

    def __iter__(self) -> Iterator[Partition]:
        return iter(self.partitions)

    def __len__(self) -> int:
        return len(self.partitions)

    def find(self, label: str) -> Partition | None:
        """The partition with this label, or None."""
        return next((p for p in self if p.label == label), None)

    def __getitem__(self, label: str) -> Partition:
        """The partition with this label. Raises MpotaError, naming those that are there."""
        partition = self.find(label)
        if partition is None:
            labels = ", ".join(p.label for p in self) or "none"
            raise MpotaError(f"no partition '{label}' in the table, which has {labels}")
        return partition

    @property
    def apps(self) -> tuple[Partition, ...]:
        """The app partitions, in the order of the table."""
        return tuple(p for p in self if p.is_app)

    @property
    def slots(self) -> tuple[Partition, ...]:
        """The ``ota_N`` partitions by N."""
        return tuple(sorted((p for p in self if p.slot is not None), key=lambda p: p.subtype))

    @property
    def otadata(self) -> Partition | None:
        return next((p for p in self if p.is_otadata), None)

    @property
    def counted_slots(self) -> tuple[Partition, ...]:
        """The slots that an update can go to: ota_0, ota_1, ... up to the first that is missing.

        esp_ota_ops.c: esp_ota_get_app_partition_count.
        """
        found = {p.slot: p for p in reversed(self.slots)}
        count = next(n for n in range(OTA_SLOTS + 1) if n not in found)
        return tuple(found[number] for number in range(count))

    @property
    def has_factory(self) -> bool:
        return any(p.is_app and p.subtype == FACTORY for p in self)

    @property
    def is_ota_capable(self) -> bool:
        """Whether there is otadata, and two slots, or a factory app and one slot."""
        slots = self.counted_slots
        return self.otadata is not None and bool(slots) and len(slots) + self.has_factory > 1

    @property
    def ota_trouble(self) -> str | None:
        """Why updates over the air fail in spite of the table's slots; None if they work."""
        slots = self.slots
        if not slots:
            return None
        if not self.counted_slots:
            labels = ", ".join(p.label for p in slots)
            return (
                f"the table has {labels} and no ota_0, from which on ESP-IDF counts the slots: "
                "no update over the air is possible"
            )
        if self.otadata is None:
            return "the table has slots and no otadata: no update over the air is possible"
        if len(self.counted_slots) == 1:
            if self.has_factory:
                return (
                    "beside factory the table has one slot: once an update runs in it, there is "
                    "no place for the next one"
                )
            return "the table has one slot: there is no place for an update"
        return None

    def slot_of(self, ota_seq: int) -> Partition | None:
        """The slot that a sequence number selects: by its subtype, of as many as there are.

        bootloader_utility.c: index_to_partition. None: there is no slot of that number.
        """
        slots = self.slots
        number = selected_slot(ota_seq, len(slots)) if slots else None
        return next((p for p in slots if p.slot == number), None)

    @property
    def end(self) -> int:
        """The first flash address behind all partitions."""
        return max((p.end for p in self), default=0)

    def check(
        self, flash_size: int | None = None, table_offset: int = DEFAULT_TABLE_OFFSET
    ) -> None:
        """Raises MpotaError if the table breaks a rule; ``flash_size`` in bytes, None: any."""
        self._check_count()
        for partition in self:
            partition.check()
        labels = [p.label for p in self]
        for label in labels:
            if labels.count(label) > 1:
                raise MpotaError(f"{labels.count(label)} partitions have the name '{label}'")
        for name, subtype in (("otadata", DATA_OTA), ("TEE otadata", DATA_TEE_OTA)):
            if [(p.type, p.subtype) for p in self].count((DATA, subtype)) > 1:
                raise MpotaError(f"the table has more than one {name} partition, one is the limit")
        self._check_places(flash_size, table_offset)

    def oddities(self, table_offset: int = DEFAULT_TABLE_OFFSET) -> tuple[str, ...]:
        """The rules that the table breaks, a line each. Real bootloaders boot many such tables:
        they check the MD5, the end, and that nothing lies beyond the flash.
        """
        found = []
        for partition in self:
            try:
                partition.check()
            except MpotaError as error:
                found.append(str(error))
        if not found:
            try:
                self.check(table_offset=table_offset)
            except MpotaError as error:
                found.append(str(error))
        return tuple(found)

    def check_readable(self, flash_size: int) -> None:
        """Raises MpotaError if a partition lies beyond ``flash_size`` bytes of flash."""
        for partition in self:
            if partition.end > flash_size:
                raise MpotaError(
                    f"partition '{partition.label}' ends at {partition.end:#x}, "
                    f"the flash at {flash_size:#x}"
                )

    def _check_count(self) -> None:
        limit = MAX_ROWS - self.has_md5
        if len(self) > limit:
            raise MpotaError(f"partition table has {len(self)} entries, {limit} are the limit")

    def _check_places(self, flash_size: int | None, table_offset: int) -> None:
        first = table_offset + SECTOR_SIZE
        previous: Partition | None = None
        for partition in sorted(self, key=lambda p: p.offset):
            if partition.offset < first and not partition.is_primary:
                raise MpotaError(
                    f"partition '{partition.label}' starts at {partition.offset:#x}, "
                    f"bootloader and partition table need all below {first:#x}"
                )
            if previous is not None and partition.offset < previous.end:
                raise MpotaError(
                    f"partition '{partition.label}' starts at {partition.offset:#x}, "
                    f"but '{previous.label}' goes to {previous.end:#x}: they overlap"
                )
            if flash_size is not None and partition.end > flash_size:
                raise MpotaError(
                    f"partition '{partition.label}' ends at {partition.end:#x}, "
                    f"the flash at {flash_size:#x}"
                )
            previous = partition


def _check_md5(entries: bytes, row: bytes) -> None:
    found, computed = row[16:], hashlib.md5(entries, usedforsecurity=False).digest()
    if found != computed:
        raise MpotaError(
            f"partition table has MD5 {found.hex()}, its entries give {computed.hex()}: "
            "it was changed without its checksum"
        )
