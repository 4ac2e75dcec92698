"""A bootloader and an image check of the simplest kind, until mpota.virtual has its own."""

from dataclasses import dataclass

from mpota.formats import otadata, partition_table
from mpota.formats.partition_table import Partition, PartitionTable
from mpota.virtual import ota_ops


@dataclass(frozen=True)
class Result:
    partition: Partition | None
    lines: tuple[str, ...]


def boot(flash):
    table = PartitionTable.from_bytes(flash.read(0x8000, 0xC00))
    data = table.otadata
    for index, record in enumerate(ota_ops.read_otadata(flash, data)):
        if record.is_valid and record.ota_state == otadata.OtaState.PENDING_VERIFY:
            rewrite(flash, data, index, record, otadata.OtaState.ABORTED)
    records = ota_ops.read_otadata(flash, data)
    active = otadata.active_record(records)
    if active is not None and records[active].ota_state == otadata.OtaState.NEW:
        rewrite(flash, data, active, records[active], otadata.OtaState.PENDING_VERIFY)
    partition = ota_ops.boot_partition(flash, table.partitions)
    lines = (f"I (29) boot: Loaded app from partition at offset {partition.offset:#x}",)
    return Result(partition, lines)


def rewrite(flash, data, index, record, state):
    ota_ops._rewrite_record(
        flash, data, ota_ops.read_otadata(flash, data), index, record.ota_seq, state
    )


def verify(flash, partition):
    return flash.read(partition.offset, 1) == b"\xe9"
