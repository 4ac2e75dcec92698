"""What the running app's C code does with otadata: esp_ota_ops.c, as MicroPython builds it.

Rollback enabled, anti-rollback and flash encryption off. The functions answer the ``esp_err_t``
that esp32_partition.c turns into an OSError. A record is rewritten as ESP-IDF does it: the
sector erased, then 32 bytes written, so there is a moment in which it is blank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mpota.formats import otadata, partition_table
from mpota.formats.otadata import OtaRecord, OtaState
from mpota.formats.partition_table import Partition
from mpota.storage import Flash
from mpota.units import SECTOR_SIZE

ESP_OK = 0
ESP_FAIL = -1
ESP_ERR_INVALID_ARG = 0x102
ESP_ERR_NOT_FOUND = 0x105


def set_boot_partition(
    flash: Flash,
    partitions: Sequence[Partition],
    target: Partition,
    image_validate: Callable[[Partition], int],
) -> int:
    """esp_ota_set_boot_partition. ``image_validate`` is the check of the image, an esp_err_t."""
    error = image_validate(target)
    if error:
        return error
    if target.type != partition_table.APP:
        return ESP_ERR_INVALID_ARG
    data = _otadata_partition(partitions)
    if data is None:
        return ESP_ERR_NOT_FOUND
    if target.subtype == partition_table.FACTORY:
        flash.erase(data.offset, data.size)
        return ESP_OK
    return _rewrite_ota_data(flash, data, target.subtype & 0x0F, slot_count(partitions))


def _rewrite_ota_data(flash: Flash, data: Partition, slot: int, count: int) -> int:
    """esp_rewrite_ota_data: select ``slot``, as NEW, in the record that does not select now."""
    if slot >= count:
        return ESP_ERR_INVALID_ARG
    records = read_otadata(flash, data)
    active = otadata.active_record(records)
    if active is None:
        index, ota_seq = 0, slot + 1
    elif otadata.selected_slot(records[active].ota_seq, count) == slot:
        index, ota_seq = active, records[active].ota_seq
    else:
        index, ota_seq = 1 - active, _next_seq(records[active].ota_seq, slot, count)
    _rewrite_record(flash, data, records, index, ota_seq, OtaState.NEW)
    return ESP_OK


def _next_seq(current: int, slot: int, count: int) -> int:
    """compute_ota_seq_for_target_slot: the smallest ota_seq that selects ``slot``."""
    base = (slot + 1) % count
    rounds = max(0, -(-(current - base) // count))
    return base + rounds * count


def mark_app_valid(flash: Flash, partitions: Sequence[Partition]) -> int:
    """esp_ota_mark_app_valid_cancel_rollback: the *active* record, whatever app runs."""
    data = _otadata_partition(partitions)
    if data is None:
        return ESP_ERR_NOT_FOUND
    records = read_otadata(flash, data)
    active = otadata.active_record(records)
    if active is None or slot_count(partitions) == 0:
        return ESP_FAIL
    if records[active].ota_state != OtaState.VALID:
        _rewrite_record(flash, data, records, active, records[active].ota_seq, OtaState.VALID)
    return ESP_OK


def boot_partition(flash: Flash, partitions: Sequence[Partition]) -> Partition | None:
    """esp_ota_get_boot_partition: what otadata selects for the next boot."""
    data = _otadata_partition(partitions)
    if data is None:
        return None
    records = read_otadata(flash, data)
    active = otadata.active_record(records)
    count = slot_count(partitions)
    if active is None or count == 0:
        return _default_boot_partition(partitions)
    slot = otadata.selected_slot(records[active].ota_seq, count)
    return _app(partitions, partition_table.OTA_0 + slot)


def slot_count(partitions: Sequence[Partition]) -> int:
    """esp_ota_get_app_partition_count: ota_0, ota_1, ... up to the first that is missing."""
    count = 0
    while _app(partitions, partition_table.OTA_0 + count) is not None:
        count += 1
    return count


def read_otadata(flash: Flash, data: Partition) -> tuple[OtaRecord, OtaRecord]:
    """The two records of the otadata partition ``data``."""
    return otadata.parse_otadata(flash.read(data.offset, otadata.OTADATA_SIZE))


def _default_boot_partition(partitions: Sequence[Partition]) -> Partition | None:
    """find_default_boot_partition: factory, else the first slot, else the test app."""
    slots = range(partition_table.OTA_0, partition_table.OTA_0 + partition_table.OTA_SLOTS)
    candidates = (
        _app(partitions, s) for s in (partition_table.FACTORY, *slots, partition_table.TEST)
    )
    return next((p for p in candidates if p is not None), None)


def _rewrite_record(
    flash: Flash,
    data: Partition,
    records: Sequence[OtaRecord],
    index: int,
    ota_seq: int,
    state: OtaState,
) -> None:
    """rewrite_ota_seq: erase the record's sector, then write the record; seq_label is kept."""
    record = OtaRecord(ota_seq, records[index].seq_label, state, otadata.seq_crc(ota_seq))
    offset = data.offset + index * SECTOR_SIZE
    flash.erase(offset, SECTOR_SIZE)
    flash.write(offset, record.to_bytes())


def _otadata_partition(partitions: Sequence[Partition]) -> Partition | None:
    return next((p for p in partitions if p.is_otadata), None)


def _app(partitions: Sequence[Partition], subtype: int) -> Partition | None:
    return next((p for p in partitions if p.is_app and p.subtype == subtype), None)
