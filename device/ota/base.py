"""What every other module stands on: the errors, who updates, and this package's notes in NVS.

Every error is an OTAError with a stable ``code``. OTAError is a ValueError because that is what
micropython-esp32-ota raises when a check fails (a MicroPython class cannot be an OSError as well).
"""

import gc
import os
import sys

from esp32 import NVS
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
# no-table, wrong-chip, chip-revision, segment-count, segment-length, mapping, mmu-pages,
# load-address, no-app-desc, no-digest, too-long, truncated, trailing, digest, sha, length.
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
    """An OTAError where there is no memory to make one: its text is made when it is asked for."""

    purpose = wanted = free = None

    def __str__(self):
        return clean(_NO_MEMORY % (self.purpose, self.wanted, self.free))


_no_room = _NoRoom("memory", "")
_no_room.purpose = _no_room.wanted = _no_room.free = 0  # their place


def no_memory(error, purpose, kind=OTAError):
    """The OTAError ("memory") for a MemoryError: bytes wanted, ``purpose``, and bytes free."""
    gc.collect()
    try:
        return kind("memory", _NO_MEMORY % (purpose, error, gc.mem_free()))
    except MemoryError:
        _no_room.purpose, _no_room.wanted, _no_room.free = purpose, error, gc.mem_free()
        return _no_room


# --- modules


def installed():
    """The names of this package's modules and of its packs (NAME.pack, see ../packed.py).

    None where it is part of the firmware.
    """
    try:
        names = os.listdir(package_path())
    except OSError:
        return None
    return {name if name[-5:] == ".pack" else name.partition(".")[0] for name in names}


def package_path():
    """The directory of this package."""
    return sys.modules[__name__.rpartition(".")[0]]._home


def unload(*names):
    """Forget modules of this package; they are loaded again where they are imported again."""
    package = __name__.rpartition(".")[0]
    attributes = sys.modules[package].__dict__
    for name in names:
        sys.modules.pop(package + "." + name, None)
        attributes.pop(name, None)
    gc.collect()  # else MicroPython's heap grows into ESP-IDF's, which the network needs


# --- who updates

ROOM = const(5120)  # bytes that slot.py needs: a sector, and a piece of it that is read back

owner = None  # the update that writes at present. This module is never unloaded.


def acquire_slot(taker):
    """Make ``taker`` the one update that is under way. Raises StateError ("busy")."""
    global owner
    if owner not in (None, taker):
        raise StateError("busy", "another update is under way: it has to end, or be aborted, first")
    owner = taker


def release_slot(holder):
    """The update of ``holder`` is over, however it ended."""
    global owner
    if owner is holder:
        owner = None


# --- notes in NVS: updates can do without them, so a full NVS is no reason to fail

TRUST = ("trust", "trust-copy")  # keys.py
# What NVS raises where there are none: ESP_ERR_NVS_NOT_INITIALIZED (no partition to use: nvs_open,
# as MicroPython uses one alone), _NOT_FOUND, _NOT_ENOUGH_SPACE (nvs_open finds no room for the
# namespace, so it is a new one), _PART_NOT_FOUND.
NO_TRUST = (-0x1101, -0x1102, -0x1105, -0x110F)

_TOO_LONG = const(-0x110C)  # ESP_ERR_NVS_INVALID_LENGTH


def has_trust():
    """Whether keys or a counter are stored (keys.py); True as well if they cannot be read."""
    for name in TRUST:
        try:
            NVS("ota").get_blob(name, bytearray(1))
        except OSError as error:
            if error.args[0] in NO_TRUST:
                continue
        return True
    return False


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
    """Store a blob; whether that worked. A power cut can lose old and new value: keys.py."""
    try:
        nvs = NVS("ota")
        nvs.set_blob(key, data)
        nvs.commit()
        return True
    except OSError:  # a table without nvs, or a full one
        return False


def forget_attempt():
    """Forget what the slot holds of an earlier attempt. The last keys are version 0.1's."""
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
