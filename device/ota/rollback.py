"""Confirm the running app, or go back to the one before.

All but `cancel` is loaded when it is first used, see recovery.py: ``force()``, ``cancel_force()``,
``mark_invalid(reboot=True)``, ``is_possible()``, ``guard(timeout_s, check=None)``.
"""

import os

from esp32 import NVS, Partition

watchdog = None  # of `guard`: an update may unload the module that has armed it


def cancel():
    """Confirm the running app: the bootloader keeps it. Call it once it has proved healthy.

    Nothing happens where there is nothing to confirm. If what follows from it fails (to keep
    the files of a release, its counter, its keys), that is printed, and the next call tries
    again. Raises StateError ("otadata") if the app is not confirmed, since otadata cannot be
    written.
    """
    global watchdog
    running = Partition(Partition.RUNNING).info()[2]
    has_trial = True
    try:
        # If set_boot() has chosen another app, or the bootloader fell back to this one, then
        # what mark_app_valid_cancel_rollback() would mark is that other app.
        has_trial = Partition(Partition.BOOT).info()[2] == running
        if has_trial:
            Partition.mark_app_valid_cancel_rollback()
    except OSError as error:
        if error.args[0] in (2, -261):  # no otadata: ENOENT, ESP_ERR_NOT_FOUND
            print("ota.rollback.cancel(): The bootloader does not support OTA rollback.")
        elif error.args[0] != -1:  # ESP_FAIL: a factory app needs no confirmation
            from .recovery import failure

            raise failure(error)
    if watchdog:  # before anything else can fail
        from .recovery import release

        release()
        watchdog = None
    try:
        trial = bytearray(36)
        try:
            NVS("ota").get_blob("trial", trial)
        except OSError:
            has_trial = False
        if has_trial:
            from .recovery import settle

            settle(trial)
        try:
            settled = [entry[3] for entry in os.ilistdir("/.ota") if entry[0] == "settled"]
        except OSError:  # no release has ever come
            return
        if running >> 16 not in settled:  # boot.py: settle
            from .confirm import confirm

            confirm()
    except Exception as error:
        print("ota.rollback.cancel(): to be tried again:", repr(error))


def __getattr__(name):
    from . import recovery

    return getattr(recovery, name)
