"""What ota.rollback offers beyond confirming, and the memory of what has failed.

Versions that failed on this board are not installed again by themselves. In NVS stands for each of
them one byte, what is known of it, the digest that its image carries, and the start of a digest
over what its headers say. The slot may be overwritten since. Of files that came without an app it
is the SHA-256 of their payload, and zeros.

One case is forgiven, once: what was given up at a power-on, an image by the bootloader, files by
boot.py. The power may have gone in the first boot, before it could be confirmed. Whether it was so
shows in the boot that follows: there ota.rollback.cancel() calls `settle`, and what a reset ended
has had its chance.
"""

import struct
from hashlib import sha256

from esp32 import Partition
from machine import PWRON_RESET, reset_cause
from micropython import const

from . import base, otadata
from .base import StateError

_NOT_SUPPORTED = const(-261)  # ESP_ERR_NOT_FOUND, as esp32.Partition says it
_VALIDATE_FAILED = const(-5379)  # ESP_ERR_OTA_VALIDATE_FAILED

_KEY = "failed"
_TRIAL = "trial"  # finish.py: _set_boot
_RETRIED = "retried"  # of version 0.1: a digest that has had its second chance
_FAILED = const(0)
_FORGIVABLE = const(1)  # once
_FORGIVEN = const(2)  # it has its second chance
_DIGEST = const(33)  # end of the digest in an entry
_SIZE = const(41)
_MAX = const(8)

# The longest time-out of the task watchdog: task_wdt_impl_timergroup.c counts 500 us ticks of
# twice the time in 32 bits.
_LONGEST_MS = const(0x3FFFFFFF)
_POLL_MS = const(100)


def failure(error):
    """The error to raise for an OSError of the flash."""
    return StateError("otadata", "the flash of otadata or of an app fails: %s" % error)


def _translated(call):
    def translated(*args, **options):
        try:
            return call(*args, **options)
        except OSError as error:
            if error.args[0] == _NOT_SUPPORTED:  # as micropython-esp32-ota says it
                raise
            raise failure(error)

    return translated


@_translated
def force():
    """Boot the app that ran before this one from now on.

    It is the one that otadata names, and set_boot() verifies its image first. It must confirm
    itself like a new one, else the bootloader comes back to the app that runs now.

    Files that wait for their trial are given up: what comes back runs with those it has.

    Raises OSError(-261) where the table has no OTA slots, StateError if there is no such app
    (no-previous), its image is not intact (not-bootable) or the flash fails (otadata).
    """
    partition = _previous()
    try:
        partition.set_boot()
    except OSError as error:
        if error.args[0] != _VALIDATE_FAILED:
            raise
        raise StateError(
            "not-bootable",
            "the image in %s is not intact: still booting %s"
            % (partition.info()[4], _running().info()[4]),
        )
    if otadata.has_home():
        from .confirm import give_up_waiting

        give_up_waiting()


@_translated
def cancel_force():
    """Boot the running app from now on, confirmed if it was so before `force`."""
    running = _running()
    if Partition(Partition.BOOT).info()[2] == running.info()[2]:
        return
    state = otadata.state(running)
    # Unless it waits for `cancel`, by the note of finish.py: _set_boot.
    on_trial = base.recall("trial", 36)[:4] == struct.pack("<I", running.info()[2])
    if state is None and not on_trial:  # set_boot() to a factory app erases otadata
        state = otadata.VALID
    running.set_boot()
    if state in (otadata.VALID, otadata.UNDEFINED):
        Partition.mark_app_valid_cancel_rollback()


def is_possible():
    """Whether there is an app to go back to and its image is intact (reads all of it)."""
    from .slot_app import check_intact

    try:
        check_intact(_previous())
    except (OSError, StateError):
        return False
    return True


def _rewrite_state(index, state):
    """Write record ``index`` of otadata with another state: esp_ota_ops.c, rewrite_ota_seq."""
    partition = otadata.find_otadata()
    record = bytearray(32)
    partition.readblocks(index, record, 0)
    struct.pack_into("<I", record, 24, state)
    otadata.erase(index)
    partition.writeblocks(index, record, 0)


@_translated
def mark_invalid(reboot=True):
    """Give up the running app, as esp_ota_mark_app_invalid_rollback_and_reboot() does.

    While a confirmed app runs with files on trial, it is these that are given up.

    Raises OSError(-261) where the table has no OTA slots, StateError if there is nothing to go
    back to (no-previous, not-bootable) or otadata does not name the running app (not-selected).
    """
    if _has_trial_files():
        from .confirm import give_up_files

        give_up_files()
    else:
        from .slot_app import check_intact

        check_intact(_previous())
        index = otadata.active(otadata.records())
        if index is None or Partition(Partition.BOOT).info()[2] != _running().info()[2]:
            raise StateError("not-selected", "otadata selects another app")
        _rewrite_state(index, otadata.INVALID)
    if reboot:
        from machine import reset

        reset()


def _has_trial_files():
    """Whether a confirmed app runs with files that are not."""
    if otadata.state(_running()) == otadata.PENDING_VERIFY or not otadata.has_home():
        return False
    from .boot import is_on_trial

    return is_on_trial()


@_translated
def guard(timeout_s, check=None):
    """Arm the watchdog if what runs, app or files, is not confirmed; True if it is (or is now).

    Without ``check`` the app goes on, and has ``timeout_s`` seconds to call `cancel`. With it,
    ``check()`` is called again and again until it answers True, which confirms the app, or until
    the time is over, which resets the board. An exception in it counts as False.

    machine.WDT is the one thing that also bites when the interpreter hangs, and nothing can stop
    it: once the app is confirmed, it is set to its longest time, 12 days, and fed by a timer where
    MicroPython has timers without hardware (v1.29 on); else feed `machine.WDT` or restart within
    these days. A program that feeds a watchdog of its own must not do so before it has confirmed:
    there is only one.
    """
    from . import rollback

    if otadata.state(_running()) != otadata.PENDING_VERIFY and not _has_trial_files():
        if otadata.has_home():
            rollback.cancel()  # goes on with a confirmation that was cut short
        return True
    from time import sleep_ms, ticks_add, ticks_diff, ticks_ms

    from machine import WDT, reset

    timeout_ms = int(timeout_s * 1000)
    rollback.watchdog = WDT(timeout=timeout_ms)
    if check is None:
        return False
    deadline = ticks_add(ticks_ms(), timeout_ms)
    while ticks_diff(deadline, ticks_ms()) > 0:
        try:
            is_healthy = check()
        except Exception:
            is_healthy = False
        if is_healthy:
            rollback.cancel()
            return True
        sleep_ms(_POLL_MS)
    reset()


def release():
    """The app is confirmed: keep the watchdog of `guard` from biting."""
    from machine import WDT

    watchdog = WDT(timeout=_LONGEST_MS)
    from sys import implementation

    if implementation[1] >= (1, 29):
        from machine import Timer

        Timer(-1).init(
            mode=Timer.PERIODIC, period=_LONGEST_MS // 2, callback=lambda timer: watchdog.feed()
        )


def _running():
    return Partition(Partition.RUNNING)


def _previous():
    """The partition of the app that ran before this one.

    It is what the bootloader would roll back to (esp_ota_check_rollback_is_possible): the slot of
    the other record, else the factory app.
    """
    pair, slots = otadata.records(), otadata.slots()
    if not pair or not slots:
        raise OSError(_NOT_SUPPORTED)
    running = _running().info()[2]
    others = [r for r in pair if r.is_valid and slots[r.slot].info()[2] != running]
    if others:
        return slots[max(others, key=lambda record: record.seq).slot]
    factory = Partition.find(Partition.TYPE_APP, 0)
    if factory and factory[0].info()[2] != running:
        return factory[0]
    raise StateError("no-previous", "otadata names no app that ran before this one")


# --- versions that failed


def digests():
    """The digests of the versions that are not installed again by themselves."""
    return [bytes(entry[1:_DIGEST]) for entry in _entries() if entry[0] == _FAILED]


def _entries():
    data = base.recall(_KEY, _SIZE * _MAX)
    return [bytearray(data[at : at + _SIZE]) for at in range(0, len(data) - _SIZE + 1, _SIZE)]


def _store(entries):
    return base.note(_KEY, b"".join(entries[-_MAX:]))


def settle(trial):
    """Judge ``trial``, from NVS, which has ended unless its app was not started yet."""
    running = Partition(Partition.RUNNING).info()[2]
    offset = struct.unpack_from("<I", trial)[0]
    if offset == running:  # confirmed
        forgive(trial[4:])
    else:
        slots = [slot for slot in otadata.slots() if slot.info()[2] == offset]
        if slots:
            if otadata.state(slots[0]) not in (otadata.ABORTED, otadata.INVALID):
                return
            entries = _entries()
            if _add_app(entries, slots[0]):
                _store(entries)
    base.forget(_TRIAL)


def forgive(digest):
    """What has this digest is confirmed; of files it is their SHA-256."""
    entries = _entries()
    kept = [entry for entry in entries if entry[1:_DIGEST] != digest]
    if len(kept) < len(entries):
        _store(kept)


def add_files(sha256, is_power_cut):
    """Files with this SHA-256 (hex) were given up; ``is_power_cut``: at a power-on."""
    entries = _entries()
    if _add(entries, bytes.fromhex(sha256), is_power_cut, bytes(8)):
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
    if base.recall(_RETRIED, 32) == digest:
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
                if not _store(entries):  # unrecorded, it could be forgiven for ever
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
