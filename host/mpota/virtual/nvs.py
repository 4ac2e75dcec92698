"""The app's non-volatile storage, in the nvs partition, in a format of its own.

Not ESP-IDF's format: content that another system left there is not understood and counts as
empty. Each commit writes all entries, with a CRC, into the half of the partition that does not
hold the current ones, so a power cut leaves the old set or the new one, never a mixture. ESP-IDF
stores at `nvs_set_*` already; here nothing is stored before `commit()`, which is stricter.
"""

from __future__ import annotations

import struct
import zlib

from mpota.formats.partition_table import Partition
from mpota.storage import Flash
from mpota.units import SECTOR_SIZE, align_down, align_up

ESP_OK = 0
ESP_ERR_NVS_NOT_FOUND = 0x1102
ESP_ERR_NVS_NOT_ENOUGH_SPACE = 0x1105
ESP_ERR_NVS_PART_NOT_FOUND = 0x110F

_MAGIC = b"mpNV"
_HEADER = struct.Struct("<4sIII")  # magic, generation, size of the entries, CRC-32 of all of it
_ENTRY = struct.Struct("<BBBI")  # sizes of namespace and key, type, size of the value


class Nvs:
    """Entries (namespace, key) -> (type, value).

    ``partition`` is the nvs partition, None if the table has none; one of less than two sectors
    counts as none. The methods answer an ``esp_err_t``.
    """

    def __init__(self, flash: Flash, partition: Partition | None) -> None:
        self._flash = flash
        self._half_size = align_down(partition.size // 2, SECTOR_SIZE) if partition else 0
        self._partition = partition if self._half_size else None
        self._generation = 0
        self._entries: dict[tuple[bytes, bytes], tuple[int, bytes]] = {}
        if self._partition is not None:
            self._load(self._partition)

    def set(self, namespace: bytes, key: bytes, kind: int, value: bytes) -> int:
        if self._partition is None:
            return ESP_ERR_NVS_PART_NOT_FOUND
        self._entries[namespace, key] = (kind, value)
        return ESP_OK

    def get(self, namespace: bytes, key: bytes, kind: int) -> tuple[int, bytes]:
        """(error, value). A value of another type is not found."""
        found, value = self._entries.get((namespace, key), (None, b""))
        return (ESP_OK, value) if found == kind else (ESP_ERR_NVS_NOT_FOUND, b"")

    def erase(self, namespace: bytes, key: bytes) -> int:
        removed = self._entries.pop((namespace, key), None)
        return ESP_ERR_NVS_NOT_FOUND if removed is None else ESP_OK

    def commit(self) -> int:
        """Erase the other half, write the entries, and the header with the CRC last."""
        if self._partition is None:
            return ESP_ERR_NVS_PART_NOT_FOUND
        entries = b"".join(
            _ENTRY.pack(len(namespace), len(key), kind, len(value)) + namespace + key + value
            for (namespace, key), (kind, value) in self._entries.items()
        )
        if _HEADER.size + len(entries) > self._half_size:
            return ESP_ERR_NVS_NOT_ENOUGH_SPACE
        generation = self._generation + 1
        offset = self._partition.offset + generation % 2 * self._half_size
        self._flash.erase(offset, align_up(_HEADER.size + len(entries), SECTOR_SIZE))
        self._flash.write(offset + _HEADER.size, entries)
        self._flash.write(offset, _header(generation, entries))
        self._generation = generation
        return ESP_OK

    def _load(self, partition: Partition) -> None:
        """Take over the newest half that is whole."""
        for number in (0, 1):
            data = self._flash.read(partition.offset + number * self._half_size, self._half_size)
            magic, generation, size, _ = _HEADER.unpack_from(data)
            entries = data[_HEADER.size : _HEADER.size + size]
            is_whole = magic == _MAGIC and data[: _HEADER.size] == _header(generation, entries)
            if is_whole and generation > self._generation:
                self._generation = generation
                self._entries = _parse(entries)


def _header(generation: int, entries: bytes) -> bytes:
    crc = zlib.crc32(entries, generation)
    return _HEADER.pack(_MAGIC, generation, len(entries), crc)


def _parse(data: bytes) -> dict[tuple[bytes, bytes], tuple[int, bytes]]:
    entries = {}
    at = 0
    while at < len(data):
        namespace_size, key_size, kind, value_size = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        namespace = data[at : at + namespace_size]
        at += namespace_size
        key = data[at : at + key_size]
        at += key_size
        entries[namespace, key] = (kind, data[at : at + value_size])
        at += value_size
    return entries
