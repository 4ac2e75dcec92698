"""NVS as MicroPython's `esp32.NVS` uses it (``nvs_api.cpp``), over ESP-IDF's format.

Stricter than ESP-IDF in one point: that stores at ``nvs_set_*`` and ``nvs_erase_key`` already, and
``nvs_commit`` does nothing. Here no value is stored before `Nvs.commit`, so that a forgotten one is
noticed; then the changes are stored one by one, each as ESP-IDF would.
"""

from __future__ import annotations

from typing import NamedTuple

from mpota.formats.nvs import ItemType
from mpota.formats.partition_table import FLAGS, Partition
from mpota.storage import Flash
from mpota.virtual.nvs_page import NEW_VERSION_FOUND, NO_FREE_PAGES, NOT_FOUND, NvsError
from mpota.virtual.nvs_storage import Storage

ESP_OK = 0
ESP_ERR_NVS_NOT_FOUND = NOT_FOUND
ESP_ERR_NOT_ALLOWED = 0x10D
ESP_ERR_NVS_NOT_INITIALIZED = 0x1101

_TYPES = {ord("i"): ItemType.I32, ord("b"): ItemType.BLOB}


class _Change(NamedTuple):
    namespace: bytes
    key: bytes
    kind: int
    value: bytes | None  # None: the key is erased


class Nvs:
    """The values of keys in namespaces, in the partition ``partition``, None if there is none.

    The methods answer an ``esp_err_t``; ``kind`` is ``ord("i")`` for an i32, ``ord("b")`` for a
    blob. Values are bytes as they are stored. With ``loses_blobs`` a power cut can cost a blob both
    its values, as it can with ESP-IDF since 5.1 (``nvs_page.py``: `Page._lose_blob`).
    """

    def __init__(
        self, flash: Flash, partition: Partition | None, *, loses_blobs: bool = True
    ) -> None:
        """What comes at boot: main.c, boardctrl_startup."""
        self._is_readonly = partition is not None and bool(partition.flags & FLAGS["readonly"])
        self._storage = None if partition is None else _init(flash, partition, loses_blobs)
        self._changes: list[_Change] = []

    def open(self, namespace: bytes) -> int:
        """``nvs_open`` for writing, as MicroPython does it always: it makes a new namespace."""
        if self._is_readonly:
            return ESP_ERR_NOT_ALLOWED
        if self._storage is None:  # of all that was to be initialized: there is one partition
            return ESP_ERR_NVS_NOT_INITIALIZED
        try:
            self._storage.create_namespace(namespace)
        except NvsError as error:
            return error.code
        return ESP_OK

    def set(self, namespace: bytes, key: bytes, kind: int, value: bytes) -> int:
        if self._storage is None:
            return ESP_ERR_NVS_NOT_INITIALIZED
        self._changes.append(_Change(namespace, key, kind, value))
        return ESP_OK

    def get(self, namespace: bytes, key: bytes, kind: int) -> tuple[int, bytes]:
        """(error, value). A value of another type is not found."""
        if self._storage is None:
            return ESP_ERR_NVS_NOT_INITIALIZED, b""
        for change in reversed(self._changes):
            if (change.namespace, change.key) == (namespace, key):
                is_found = change.value is not None and change.kind == kind
                return (ESP_OK, change.value or b"") if is_found else (ESP_ERR_NVS_NOT_FOUND, b"")
        number = self._storage.namespace(namespace)
        if number is None:
            return ESP_ERR_NVS_NOT_FOUND, b""
        try:
            return ESP_OK, self._storage.read(number, _TYPES[kind], key)
        except NvsError as error:
            return error.code, b""

    def erase(self, namespace: bytes, key: bytes) -> int:
        if self._storage is None:
            return ESP_ERR_NVS_NOT_INITIALIZED
        if not self._is_known(self._storage, namespace, key):
            return ESP_ERR_NVS_NOT_FOUND
        self._changes.append(_Change(namespace, key, 0, None))
        return ESP_OK

    def commit(self) -> int:
        """Store what was set and erased; after an error the rest is forgotten."""
        if self._storage is None:
            return ESP_ERR_NVS_NOT_INITIALIZED
        changes, self._changes = self._changes, []
        try:
            for change in changes:
                namespace = self._storage.create_namespace(change.namespace)
                if change.value is None:
                    self._storage.erase(namespace, change.key)
                else:
                    self._storage.write(namespace, _TYPES[change.kind], change.key, change.value)
        except NvsError as error:
            return error.code
        return ESP_OK

    def _is_known(self, storage: Storage, namespace: bytes, key: bytes) -> bool:
        """Whether the key has a value of any type."""
        for change in reversed(self._changes):
            if (change.namespace, change.key) == (namespace, key):
                return change.value is not None
        number = storage.namespace(namespace)
        return number is not None and storage.has(number, key)


def _init(flash: Flash, partition: Partition, loses_blobs: bool) -> Storage | None:
    """nvs_flash_init; if the partition has to be erased for it, main.c does so, and tries again."""
    if partition.flags & (FLAGS["encrypted"] | FLAGS["readonly"]):
        return None
    try:
        return Storage(flash, partition.offset, partition.size, loses_blobs=loses_blobs)
    except NvsError as error:
        if error.code not in (NO_FREE_PAGES, NEW_VERSION_FOUND):
            return None
    flash.erase(partition.offset, partition.size)
    try:
        return Storage(flash, partition.offset, partition.size, loses_blobs=loses_blobs)
    except NvsError:
        return None
