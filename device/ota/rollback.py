"""Confirm the running app, or go back to the one before. Imported on every boot, hence tiny."""

from esp32 import NVS, Partition


def cancel():
    """Confirm the running app: the bootloader keeps it. Call it once the app has proved healthy.

    Nothing happens where there is nothing to confirm.
    """
    try:
        # If set_boot() has chosen another app, or the bootloader fell back to this one, then what
        # mark_app_valid_cancel_rollback() would mark is that other app.
        if Partition(Partition.BOOT).info()[2] == Partition(Partition.RUNNING).info()[2]:
            Partition.mark_app_valid_cancel_rollback()
    except OSError as error:
        if error.args[0] in (2, -261):  # no otadata: ENOENT, ESP_ERR_NOT_FOUND
            print("ota.rollback.cancel(): The bootloader does not support OTA rollback.")
        elif error.args[0] != -1:  # ESP_FAIL: a factory app needs no confirmation
            raise
    _settle_trial()
    from .home import has_home

    if has_home():
        from .confirm import confirm

        confirm()
    _recovery("release", is_loaded=True)


def _settle_trial():
    trial = bytearray(36)
    try:
        NVS("ota").get_blob("trial", trial)
    except OSError:
        return
    from .failed import settle

    settle(trial)


def force():
    """Boot the app that ran before this one from now on. See recovery.py for all of these."""
    return _recovery("force")


def cancel_force():
    """Undo `force`: boot the running app from now on."""
    return _recovery("cancel_force")


def mark_invalid(reboot=True):
    """Give up the running app: the bootloader goes back to the one before, for good."""
    return _recovery("mark_invalid", reboot)


def is_possible():
    """Whether there is an intact app to go back to."""
    return _recovery("is_possible")


def guard(timeout_s, check=None):
    """Unless the app is confirmed in time, the watchdog resets it and the bootloader rolls back."""
    return _recovery("guard", timeout_s, check)


def _recovery(name, *args, is_loaded=False):
    import sys

    module = __name__.rpartition(".")[0] + ".recovery"
    if is_loaded and module not in sys.modules:
        return None
    __import__(module)
    return getattr(sys.modules[module], name)(*args)
