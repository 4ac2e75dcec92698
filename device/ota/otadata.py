"""What boots: the two records of otadata, by which the bootloader selects a slot, and the images.

Source of the rules: ESP-IDF ``esp_ota_ops.c``, ``bootloader_common_loader.c``,
``esp_image_format.c``. Every boot of a board that has taken a release loads this one (boot.py).
"""

import struct
from binascii import crc32

from esp32 import Partition
from micropython import const

HOME = "/.ota"

PENDING_VERIFY = const(1)
VALID = const(2)
INVALID = const(3)
ABORTED = const(4)
UNDEFINED = const(0xFFFFFFFF)

_BLANK = const(0xFFFFFFFF)
_RECORD_SIZE = const(32)
_SUBTYPE_OTA_0 = const(0x10)
_MAX_SLOTS = const(16)
_SECTOR = const(4096)
_MAGIC = const(0xE9)
_MAX_SEGMENTS = const(16)
_DIGEST_SIZE = const(32)


class Record:
    """One record. ``slot`` is the number of the OTA slot that it selects, None if it names none."""

    def __init__(self, data, slot_count):
        self.seq, self.state, crc = struct.unpack("<I20xII", data)
        self.is_crc_ok = self.seq != _BLANK and crc == crc32(data[:4], _BLANK)
        self.is_valid = self.is_crc_ok and self.state not in (INVALID, ABORTED)
        self.slot = (self.seq - 1) % slot_count if self.is_crc_ok and slot_count else None


def find_otadata():
    """The otadata partition, or None."""
    found = Partition.find(Partition.TYPE_DATA, 0)
    return found[0] if found else None


def slots():
    """The OTA slots in order: ota_0, ota_1, ... up to the first that the table lacks."""
    found = {p.info()[1]: p for p in Partition.find(Partition.TYPE_APP)}
    count = 0
    while count < _MAX_SLOTS and _SUBTYPE_OTA_0 + count in found:
        count += 1
    return [found[_SUBTYPE_OTA_0 + i] for i in range(count)]


def find_next_slot():
    """The partition that the next update goes to. Raises SlotError if the table has none."""
    running = Partition(Partition.RUNNING)
    try:
        part = running.get_next_update()
    except OSError:
        part = None
    if part is None or part.info()[2] == running.info()[2] or not find_otadata():
        from .base import SlotError

        raise SlotError(
            "no-slot",
            "the partition table has no OTA slot besides %s: a table with ota_0, ota_1 and otadata "
            "is needed" % running.info()[4],
        )
    return part


def records():
    """Both records, or () where the table has no otadata."""
    partition = find_otadata()
    if partition is None:
        return ()
    count = len(slots())
    data = bytearray(_RECORD_SIZE)
    found = []
    for sector in (0, 1):
        partition.readblocks(sector, data, 0)
        found.append(Record(data, count))
    return tuple(found)


def active(pair):
    """Index of the record that selects a slot: the valid one of the higher seq; None if neither."""
    valid = [i for i, record in enumerate(pair) if record.is_valid]
    return max(valid, key=lambda i: (pair[i].seq, -i)) if valid else None


def find_record(partition):
    """(index, Record) of what otadata says of this partition, None if nothing.

    Of two records of one slot, the one that selects it, else the later.
    """
    number = partition.info()[1] - _SUBTYPE_OTA_0
    pair = records()
    of_slot = [i for i, record in enumerate(pair) if record.slot == number]
    if not of_slot:
        return None
    index = max(of_slot, key=lambda i: (pair[i].is_valid, pair[i].seq))
    return index, pair[index]


def state(partition):
    """The ota_state of a partition: one of the constants above, or None if it has no record."""
    found = find_record(partition)
    return found[1].state if found else None


def check_app_confirmed():
    """Raises StateError while the running app is unconfirmed: see `unconfirmed`."""
    part = Partition(Partition.RUNNING)
    if state(part) == PENDING_VERIFY:
        raise unconfirmed("the running app (%s) is" % part.info()[4])


def unconfirmed(what):
    """The StateError for unconfirmed ``what``: the update would overwrite what a rollback needs."""
    from .base import StateError

    return StateError(
        "unconfirmed",
        "%s not confirmed: call ota.rollback.cancel() first, or a failed update would leave "
        "nothing to roll back to" % what,
    )


def erase(index):
    """Blank record ``index``."""
    find_otadata().ioctl(6, index)


# --- the image in a slot


def image_size(partition, head=None):
    """The size in bytes of the image in a partition, its digest included; None if there is none.

    Only its headers are read. ``head``: its first 32 bytes, where the flash does not hold them
    (slot.py: they are written last).
    """
    if head is None:
        head = bytearray(32)
        partition.readblocks(0, head, 0)
    if head[0] != _MAGIC or not 1 <= head[1] <= _MAX_SEGMENTS:
        return None
    field = memoryview(bytearray(8))
    field[:] = head[24:32]
    at = 24
    for index in range(head[1]):
        if index:
            try:
                partition.readblocks(at // _SECTOR, field, at % _SECTOR)
            except OSError:  # it says that it goes on behind the partition
                return None
        at += 8 + int.from_bytes(field[4:], "little")
    return ((at + 16) & ~15) + (_DIGEST_SIZE if head[23] == 1 else 0)


def app_id(partition, head=None):
    """The last 32 bytes of the image in a partition: its SHA-256, if it carries one. Or None."""
    size = image_size(partition, head)
    if size is None or size > partition.info()[3]:
        return None
    tail = bytearray(_DIGEST_SIZE)
    at = size - _DIGEST_SIZE
    partition.readblocks(at // _SECTOR, tail, at % _SECTOR)
    return bytes(tail)


def has_home():
    """Whether a release has ever been installed: boot.py, files.py."""
    from os import stat

    try:
        stat(HOME)
        return True
    except OSError:
        return False
