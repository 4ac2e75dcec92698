"""What ota.rollback offers beyond confirming: it is loaded only when one of these is used."""

import struct

from esp32 import Partition
from micropython import const

from . import otadata
from .errors import ImageError, StateError

_NOT_SUPPORTED = const(-261)  # ESP_ERR_NOT_FOUND, as esp32.Partition says it
_VALIDATE_FAILED = const(-5379)  # ESP_ERR_OTA_VALIDATE_FAILED

# The longest time-out of the task watchdog: task_wdt_impl_timergroup.c counts 500 us ticks of
# twice the time in 32 bits.
_LONGEST_MS = const(0x3FFFFFFF)
_POLL_MS = const(100)

_watchdog = None


def failure(error):
    """What comes out for an OSError of the flash."""
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
    if state is None and not _is_on_trial(running):  # set_boot() to a factory app erases otadata
        state = otadata.VALID
    running.set_boot()
    if state in (otadata.VALID, otadata.UNDEFINED):
        Partition.mark_app_valid_cancel_rollback()


def is_possible():
    """Whether there is an app to go back to and its image is intact (reads all of it)."""
    try:
        _check_intact(_previous())
    except (OSError, StateError):
        return False
    return True


@_translated
def mark_invalid(reboot=True):
    """Give up the running app, as esp_ota_mark_app_invalid_rollback_and_reboot() does.

    Raises OSError(-261) where the table has no OTA slots, StateError if there is nothing to go
    back to (no-previous, not-bootable) or otadata does not name the running app (not-selected).
    """
    _check_intact(_previous())
    index = otadata.active(otadata.records())
    if index is None or Partition(Partition.BOOT).info()[2] != _running().info()[2]:
        raise StateError("not-selected", "otadata selects another app than the one that runs")
    _mark(index, otadata.INVALID)
    if reboot:
        from machine import reset

        reset()


@_translated
def guard(timeout_s, check=None):
    """Arm the watchdog if the running app is not confirmed yet; True if it is (or has been now).

    Without ``check`` the app goes on, and has ``timeout_s`` seconds to call `cancel`. With it,
    ``check()`` is called again and again until it answers True, which confirms the app, or until
    the time is over, which resets the board. An exception in it counts as False.

    machine.WDT is the one thing that also bites when the interpreter hangs, and nothing can stop
    it: once the app is confirmed, it is set to its longest time, 12 days, and fed by a timer where
    MicroPython has timers without hardware (v1.29 on); else feed `machine.WDT` or restart within
    these days. A program that feeds a watchdog of its own must not do so before it has confirmed:
    there is only one.
    """
    if otadata.state(_running()) != otadata.PENDING_VERIFY:
        return True
    from time import sleep_ms, ticks_add, ticks_diff, ticks_ms

    from machine import WDT, reset

    global _watchdog
    _watchdog = WDT(timeout=int(timeout_s * 1000))
    if check is None:
        return False
    deadline = ticks_add(ticks_ms(), int(timeout_s * 1000))
    while ticks_diff(deadline, ticks_ms()) > 0:
        try:
            is_healthy = check()
        except Exception:
            is_healthy = False
        if is_healthy:
            from .rollback import cancel

            cancel()
            return True
        sleep_ms(_POLL_MS)
    reset()


def release():
    """The app is confirmed: keep the watchdog of `guard` from biting."""
    global _watchdog
    if _watchdog is None:
        return
    from machine import WDT

    watchdog = WDT(timeout=_LONGEST_MS)
    _watchdog = None
    from sys import implementation

    if implementation[1] >= (1, 29):
        from machine import Timer

        Timer(-1).init(
            mode=Timer.PERIODIC, period=_LONGEST_MS // 2, callback=lambda timer: watchdog.feed()
        )


def _running():
    return Partition(Partition.RUNNING)


def _is_on_trial(running):
    """Whether it waits for `cancel`, by the note of commit.py."""
    return otadata.recall("trial", 36)[:4] == struct.pack("<I", running.info()[2])


def _mark(index, state):
    """Write record ``index`` of otadata anew with another state: esp_ota_ops.c, rewrite_ota_seq."""
    partition = otadata.find_otadata()
    record = bytearray(32)
    partition.readblocks(index, record, 0)
    struct.pack_into("<I", record, 24, state)
    otadata.erase(index)
    partition.writeblocks(index, record, 0)


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
    raise StateError("no-previous", "otadata names no other app that ran before this one")


def _check_intact(partition):
    from .image import Board
    from .installed import is_intact, read_app

    try:
        if is_intact(partition, read_app(partition, Board(_running()))):
            return
        reason = "its SHA-256 does not match"
    except ImageError as error:
        reason = str(error)
    raise StateError("not-bootable", "%s: %s" % (partition.info()[4], reason))
