"""Remembers the versions that failed on this board, so that they are not installed again by
themselves.

In NVS stands for each of them one byte, what is known of it, the digest that its image carries, and
the start of a digest over what its headers say. The slot may be overwritten since. Of files that
came without an app it is the SHA-256 of their payload, and zeros.

One case is forgiven, once: what was given up at a power-on, an image by the bootloader, files by
boot.py. The power may have gone in the first boot, before it could be confirmed. Whether it was so
shows in the boot that follows: there ota.rollback.cancel() calls `settle`, and what a reset ended
has had its chance.
"""

from hashlib import sha256
from struct import unpack_from

from esp32 import Partition
from machine import PWRON_RESET, reset_cause
from micropython import const

from . import otadata
from .errors import StateError

_KEY = "failed"
_TRIAL = "trial"  # commit.py: put_on_trial
_RETRIED = "retried"  # of version 0.1: a digest that has had its second chance
_FAILED = const(0)
_FORGIVABLE = const(1)  # once
_FORGIVEN = const(2)  # it has its second chance
_DIGEST = const(33)  # end of the digest in an entry
_SIZE = const(41)
_MAX = const(8)


def digests():
    """The digests of the versions that are not installed again by themselves."""
    return [bytes(entry[1:_DIGEST]) for entry in _entries() if entry[0] == _FAILED]


def _entries():
    data = otadata.recall(_KEY, _SIZE * _MAX)
    return [bytearray(data[at : at + _SIZE]) for at in range(0, len(data) - _SIZE + 1, _SIZE)]


def _store(entries):
    return otadata.note(_KEY, b"".join(entries[-_MAX:]))


def settle(trial):
    """``trial``, from NVS, has ended, unless its app was not started yet."""
    running = Partition(Partition.RUNNING).info()[2]
    offset = unpack_from("<I", trial)[0]
    if offset == running:  # confirmed
        _forgive(trial[4:])
    else:
        slots = [slot for slot in otadata.slots() if slot.info()[2] == offset]
        if slots:
            if otadata.state(slots[0]) not in (otadata.ABORTED, otadata.INVALID):
                return
            entries = _entries()
            if _add_app(entries, slots[0]):
                _store(entries)
    otadata.forget(_TRIAL)


def forgive(sha256):
    """The files with this SHA-256 (hex) are confirmed."""
    _forgive(bytes.fromhex(sha256))


def _forgive(digest):
    entries = _entries()
    kept = [entry for entry in entries if entry[1:_DIGEST] != digest]
    if len(kept) < len(entries):
        _store(kept)


def add_files(sha256):
    """Files with this SHA-256 (hex) were not confirmed in the boot before this one."""
    entries = _entries()
    if _add(entries, bytes.fromhex(sha256), reset_cause() == PWRON_RESET, bytes(8)):
        _store(entries)


def check_files(sha256, last):
    """Raises StateError if files are failed ones; ``last``: what their record says, failed last.

    Where NVS has not noted them, the record alone counts.
    """
    if not _is_known(_entries(), bytes.fromhex(sha256), "these files have") and sha256 == last:
        _refuse("these files have")


def _add_app(entries, slot):
    """Add what failed in ``slot``; whether that changed anything."""
    digest = otadata.app_id(slot)
    if digest is None:
        return False
    is_power_cut = otadata.state(slot) == otadata.ABORTED and reset_cause() == PWRON_RESET
    if otadata.recall(_RETRIED, 32) == digest:
        is_power_cut = False
    head = bytearray(24 + 256)
    slot.readblocks(0, memoryview(head)[:24], 0)
    slot.readblocks(0, memoryview(head)[24:], 32)
    return _add(entries, digest, is_power_cut, _header_id(head[:24], head[24:]))


def _add(entries, digest, is_power_cut, header_id):
    for entry in entries:
        if entry[1:_DIGEST] == digest:
            if entry[0] == _FAILED or (entry[0] == _FORGIVABLE and is_power_cut):
                return False
            entry[0] = _FAILED
            return True
    entries.append(bytearray((_FORGIVABLE if is_power_cut else _FAILED,)) + digest + header_id)
    return True


def _is_known(entries, digest, what):
    """Whether ``digest`` is noted. Raises StateError if it has failed, and is not forgiven now."""
    for entry in entries:
        if entry[1:_DIGEST] == digest:
            if entry[0] == _FORGIVABLE:
                entry[0] = _FORGIVEN
                if not _store(entries):  # it could be forgiven for ever
                    entry[0] = _FAILED
            if entry[0] == _FAILED:
                _refuse(what)
            return True
    return False


def _header_id(header, desc):
    """The start of a digest over header and app_desc; zeros where they do not tell two builds.

    They do where they carry the digest of the ELF file, as those of ESP-IDF do.
    """
    if not any(desc[144:176]):
        return bytes(8)
    sha = sha256(header)
    sha.update(desc)
    return sha.digest()[:8]


class Failed:
    """What has failed on this board, with what stands in ``slot``, which is to be overwritten."""

    def __init__(self, slot):
        self._entries = _entries()
        self._is_new = otadata.state(slot) in (otadata.ABORTED, otadata.INVALID) and _add_app(
            self._entries, slot
        )

    def save(self):
        """The slot is about to be overwritten."""
        if self._is_new:
            _store(self._entries)
            self._is_new = False

    def check_header(self, image):
        """Raises StateError if ``image``, of which only the header is known, is a failed one."""
        found = _header_id(image.header, image.desc)
        for entry in self._entries:
            if any(found) and entry[_DIGEST:] == found and entry[0] == _FAILED:
                _refuse()

    def check_digest(self, digest):
        """Raises StateError if the image with this digest is a failed one."""
        _is_known(self._entries, digest, "this image has")


def _refuse(what="this image has"):
    raise StateError(
        "failed-version",
        "%s failed on this board before, not confirmed by ota.rollback.cancel(): not installed "
        "again without force=True" % what,
    )
