"""Which app boots: otadata read, and edited as ESP-IDF edits it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mpota.bootloader.boot import boot
from mpota.bootloader.check import Slot, check_flash
from mpota.bootloader.ota_ops import mark_app_valid, set_boot_partition
from mpota.errors import MpotaError, UsageError
from mpota.firmware.changes import Change
from mpota.firmware.firmware import Firmware
from mpota.formats.otadata import OtaRecord, OtaState, active_record
from mpota.formats.partition_table import FACTORY, Partition
from mpota.storage.memory import MemoryFlash
from mpota.units import SECTOR_SIZE

MARKS = {"valid": OtaState.VALID, "invalid": OtaState.INVALID}


@dataclass(frozen=True)
class SlotState:
    """An app partition: what the bootloader says of it, and the otadata records that select it."""

    slot: Slot
    records: tuple[OtaRecord, ...]
    boots: bool

    @property
    def state_name(self) -> str:
        """The state of its newest record, empty without one."""
        newest = max(self.records, key=lambda record: record.ota_seq, default=None)
        return newest.state_name if newest else ""


def slot_states(firmware: Firmware, flash_size: int) -> tuple[SlotState, ...]:
    """The app partitions of a firmware, in the order of the table."""
    check = check_flash(
        firmware.flash, flash_size=flash_size, table_offset=firmware.table_offset, is_file=False
    )
    records = [r for r in firmware.otadata or () if r.is_crc_ok and r.ota_seq != 0xFFFFFFFF]
    return tuple(
        SlotState(
            slot,
            tuple(r for r in records if firmware.table.slot_of(r.ota_seq) == slot.partition),
            slot.partition.label == check.boots,
        )
        for slot in check.slots
    )


def boots_next(firmware: Firmware, flash_size: int) -> Partition | None:
    """The app that the bootloader starts at the next reset, by its model; None: nothing."""
    flash = MemoryFlash(firmware.flash, flash_size)
    return boot(flash, table_offset=firmware.table_offset).starts


def place_of_next(firmware: Firmware, flash_size: int) -> tuple[int, int]:
    """Flash addresses (start, end) of the app that starts at the next reset; (0, 0) if none."""
    running = boots_next(firmware, flash_size)
    if running is None:
        return (0, 0)
    try:
        return (running.offset, running.offset + firmware.app(running).size)
    except MpotaError:
        return (running.offset, running.end)


def next_slot(firmware: Firmware, flash_size: int) -> Partition:
    """The slot for an update: the one behind the app that is proven, which is never overwritten.

    As esp_ota_ops.c: esp_ota_get_next_update_partition; but an app that has not confirmed itself
    does not count as proven. Raises MpotaError if the table has no otadata, or no slot is free.
    """
    slots = firmware.table.counted_slots
    if firmware.table.slots and not slots:
        labels = ", ".join(p.label for p in firmware.table.slots)
        raise MpotaError(
            f"{firmware.name}: the partition table has {labels} and no ota_0: ESP-IDF counts the "
            "slots from ota_0 on, an OTA update is not possible",
            f"mpota resize {firmware.name} --layout ota",
        )
    running = _proven_app(firmware, flash_size)
    free = [slot for slot in slots if slot != running]
    if firmware.table.otadata is None or not free:
        missing = "no otadata" if firmware.table.otadata is None else "no second app slot"
        raise MpotaError(
            f"{firmware.name}: the partition table has {missing}, an OTA update is not possible",
            f"mpota resize {firmware.name} --layout ota",
        )
    if running not in slots:
        return free[0]
    return slots[(slots.index(running) + 1) % len(slots)]


def _proven_app(firmware: Firmware, flash_size: int) -> Partition | None:
    """The app that boots if an update that is not confirmed yet is rolled back."""
    partition, records = firmware.table.otadata, firmware.otadata
    active = active_record(records) if records else None
    if partition is not None and records is not None and active is not None:
        record = records[active]
        if record.ota_state in (OtaState.NEW, OtaState.PENDING_VERIFY):
            flash = MemoryFlash(firmware.flash, flash_size)
            offset = partition.offset + active * SECTOR_SIZE
            flash.erase(offset, SECTOR_SIZE)
            flash.write(offset, record._replace(ota_state=OtaState.ABORTED).to_bytes())
            proven = boot(flash, table_offset=firmware.table_offset).starts
            if proven is not None:
                return proven
    return boots_next(firmware, flash_size)


def select_slot(firmware: Firmware, target: Partition, *, is_confirmed: bool = False) -> Change:
    """otadata as ``Partition.set_boot()`` leaves it for ``target``.

    With ``is_confirmed`` its record is VALID at once, so that no rollback follows. The image in
    ``target`` is not looked at. Raises MpotaError without otadata, UsageError if ``target`` is no
    app that otadata can select.
    """
    if target not in (*firmware.table.slots, *_factory(firmware)):
        raise UsageError(f"'{target.label}' is not factory and not an ota_N slot: it cannot be set")

    def edit(flash: MemoryFlash) -> int:
        partitions = firmware.table.partitions
        error = set_boot_partition(flash, partitions, target, lambda partition: 0)
        if not error and is_confirmed and target.subtype != FACTORY:
            error = mark_app_valid(flash, partitions)
        return error

    return _edit_otadata(firmware, edit)


def mark_slot(firmware: Firmware, state: OtaState) -> Change:
    """otadata with the record that selects now marked: VALID confirms, INVALID rolls back.

    Raises MpotaError if no record selects a slot.
    """
    records = firmware.otadata
    active = active_record(records) if records else None
    if records is None or active is None:
        raise MpotaError(
            f"{firmware.name}: no otadata record selects a slot, there is none to mark",
            "select one with --boot",
        )
    record = records[active]._replace(ota_state=state)
    partition = firmware.table.otadata
    assert partition is not None

    def edit(flash: MemoryFlash) -> int:
        flash.erase(partition.offset + active * SECTOR_SIZE, SECTOR_SIZE)
        flash.write(partition.offset + active * SECTOR_SIZE, record.to_bytes())
        return 0

    return _edit_otadata(firmware, edit)


def _edit_otadata(firmware: Firmware, edit: Callable[[MemoryFlash], int]) -> Change:
    partition = firmware.table.otadata
    if partition is None:
        raise MpotaError(
            f"{firmware.name}: the partition table has no otadata: "
            "factory or the first app always boots",
            f"mpota resize {firmware.name} --layout ota",
        )
    flash = MemoryFlash(firmware.flash, partition.end)
    error = edit(flash)
    if error:
        raise MpotaError(f"{firmware.name}: otadata cannot be changed: ESP-IDF error {error:#x}")
    data = flash.read(partition.offset, partition.size)
    return Change(partition.offset, partition.size, partition.label, data)


def _factory(firmware: Firmware) -> tuple[Partition, ...]:
    return tuple(p for p in firmware.table.apps if p.subtype == FACTORY)
