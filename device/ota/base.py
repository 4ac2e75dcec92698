"""What every other module stands on: the errors, and what outlives a reset.

That is: the two records of otadata, by which the bootloader selects a slot, the images in the
slots, and this package's own notes in NVS. Source of the rules: ESP-IDF ``esp_ota_ops.c``,
``bootloader_common_loader.c``, ``esp_image_format.c``.

Every error is an OTAError with a stable ``code``. OTAError is a ValueError because that is what
micropython-esp32-ota raises when a check fails (a MicroPython class cannot be an OSError as well).
"""

import gc
import os
import struct
import sys
from binascii import crc32

from esp32 import NVS, Partition
from micropython import const


class OTAError(ValueError):
    """An update that did not happen. ``str(error)`` says why in words, ``error.code`` in one.

    The words may quote servers and files: control characters are shown as "?". Codes of all
    kinds: memory (see `no_memory`), io, part (of this package, that is not installed: status.py).
    """

    def __init__(self, code, text):
        super().__init__(clean(text))
        self.code = code


class SourceError(OTAError):
    """The bytes could not be had.

    Codes: address, dns, connect, tls, certificate, timeout, slow, connection, http-status,
    redirect, protocol, short, too-short, too-long, changed, no-range, json, not-found, read,
    memory.
    ``status`` is the HTTP status if the server answered with one that is no success,
    ``retry_after`` then its header Retry-After as text.
    """

    status = retry_after = None


def _kind(name):  # takes less heap than a class statement
    return type(name, (OTAError,), {})


# The bytes are no app image that this board could boot. Codes: empty, not-an-image, no-app,
# no-table, wrong-chip, chip-revision, segment-count, segment-length, mapping, load-address,
# no-app-desc, no-digest, too-long, truncated, trailing, digest, sha, length.
ImageError = _kind("ImageError")

# An encoded payload is damaged, or a delta is not for the app that runs. Codes: frame, truncated,
# base.
FrameError = _kind("FrameError")

# The flash did not take the bytes, or does not give them. Codes: no-slot, flash.
SlotError = _kind("SlotError")

# The board is not in a state for this. Codes: unconfirmed, failed-version, aborted, closed,
# not-bootable, no-previous.
StateError = _kind("StateError")

# The release is not for this board, or not to be trusted. Codes: manifest, format, signature,
# unsigned, untrusted, retired-key, keys, key-store, counter, downgrade, expired, clock, wrong-name,
# wrong-chip, wrong-board, from-version, too-long, no-form, no-chain, no-partition, disk-full,
# member, tar, link, path, digest, truncated, certs.
ReleaseError = _kind("ReleaseError")


def clean(text):
    """``text`` with a question mark for each control character, which a terminal would act on."""
    for letter in text:
        if letter < " " or "~" < letter < "\xa0":
            return "".join([c if " " <= c <= "~" or c >= "\xa0" else "?" for c in text])
    return text


_NO_MEMORY = "not enough memory for %s: %s, %d bytes are free, not all in one piece"


class _NoRoom(SourceError):
    """The error where there is no memory to make one: its text is made when somebody asks."""

    purpose = wanted = free = None

    def __str__(self):
        return clean(_NO_MEMORY % (self.purpose, self.wanted, self.free))


_no_room = _NoRoom("memory", "")
_no_room.purpose = _no_room.wanted = _no_room.free = 0  # their place


def no_memory(error, purpose, kind=OTAError):
    """The OTAError ("memory") for a MemoryError: what was wanted, what for, what was free."""
    gc.collect()
    try:
        return kind("memory", _NO_MEMORY % (purpose, error, gc.mem_free()))
    except MemoryError:
        _no_room.purpose, _no_room.wanted, _no_room.free = purpose, error, gc.mem_free()
        return _no_room


def check_sha(sha, due):
    """Raises ImageError if a SHA-256 is not the one that was announced."""
    found = sha.digest()
    if found != due:
        raise ImageError("sha", "SHA mismatch recv=%s expect=%s." % (found.hex(), due.hex()))


# --- modules


def installed_modules():
    """The names of this package's modules, None where it is part of the firmware."""
    try:
        return {name.partition(".")[0] for name in os.listdir(package_path())}
    except OSError:
        return None


def package_path():
    """The directory of this package."""
    return sys.modules[__name__.rpartition(".")[0]].__path__


def unload(*names):
    """Forget modules of this package; they are loaded again where they are imported again."""
    package = __name__.rpartition(".")[0]
    attributes = sys.modules[package].__dict__
    for name in names:
        sys.modules.pop(package + "." + name, None)
        attributes.pop(name, None)
    gc.collect()  # else MicroPython takes more of ESP-IDF's heap, which the network needs


# --- otadata

HOME = "/.ota"
TRUST = ("trust", "trust-copy")  # in NVS: keys.py
# What NVS raises where there are none: ESP_ERR_NVS_NOT_INITIALIZED (no partition to use: nvs_open,
# as MicroPython uses one alone), _NOT_FOUND, _NOT_ENOUGH_SPACE (nvs_open finds no room for the
# namespace, so it is a new one), _PART_NOT_FOUND.
NO_TRUST = (-0x1101, -0x1102, -0x1105, -0x110F)

PENDING_VERIFY = const(1)
VALID = const(2)
INVALID = const(3)
ABORTED = const(4)
UNDEFINED = const(0xFFFFFFFF)

_BLANK = const(0xFFFFFFFF)
_TOO_LONG = const(-0x110C)  # ESP_ERR_NVS_INVALID_LENGTH
_RECORD_SIZE = const(32)
_SUBTYPE_OTA_0 = const(0x10)
_MAX_SLOTS = const(16)
ROOM = const(5120)  # bytes that slot.py needs: a sector, and a piece of it that is read back
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


owner = None  # the update that writes at present: slot.acquire_slot. This module is never unloaded.


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


def chip_id():
    """The chip that the running app is for: the number in image headers."""
    head = bytearray(14)
    Partition(Partition.RUNNING).readblocks(0, head, 0)
    return head[12] | head[13] << 8


# --- whether this board has ever had more than plain images


def has_home():
    """Whether a release has ever been installed: boot.py, files.py."""
    from os import stat

    try:
        stat(HOME)
        return True
    except OSError:
        return False


def has_trust():
    """Whether keys or a counter are stored (keys.py). What cannot be read counts as stored."""
    for name in TRUST:
        try:
            NVS("ota").get_blob(name, bytearray(1))
        except OSError as error:
            if error.args[0] in NO_TRUST:
                continue
        return True
    return False


# --- notes in NVS: what can be done without, so that a full NVS is no reason to fail


def has_note(key):
    """Whether there is a blob under ``key``."""
    try:
        NVS("ota").get_blob(key, bytearray(1))
    except OSError as error:
        return error.args[0] == _TOO_LONG
    return True


def recall(key, size):
    """The blob under ``key``, of up to ``size`` bytes; b"" if there is none."""
    data = bytearray(size)
    try:
        return memoryview(data)[: NVS("ota").get_blob(key, data)]
    except OSError:
        return b""


def note(key, data):
    """Store a blob; whether that was possible. A power cut can lose old value and new: keys.py."""
    try:
        nvs = NVS("ota")
        nvs.set_blob(key, data)
        nvs.commit()
        return True
    except OSError:  # a table without nvs, or a full one
        return False


def forget_attempt():
    """What the slot holds of an attempt is of no use. The latter keys are of version 0.1."""
    forget("resume", "download", "payload")


def forget(*keys):
    """Remove what is stored under these keys."""
    try:
        nvs = NVS("ota")
        for key in keys:
            try:
                nvs.erase_key(key)
            except OSError:  # there was none
                pass
        nvs.commit()
    except OSError:
        pass


# --- versions


def version_key(version):
    """Sorts versions: numbers as numbers, 2.1 as 2.1.0.0, 2.1.0-rc1 before 2.1.0."""
    numbers, _, suffix = str(version).partition("-")
    parts = [int(number) if number.isdigit() else 0 for number in numbers.split(".")]
    return tuple(parts + [0] * (4 - len(parts))), not suffix, suffix


def is_older(version, other):
    return version_key(version) < version_key(other)
