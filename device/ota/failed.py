"""Remembers the version that failed on this board, so that it is not installed again by itself.

The memory is the slot: otadata says ABORTED or INVALID of it, and the image that failed still
stands there. It is forgotten when another image overwrites it.

One case is forgiven, once: an image that the bootloader gave up at a power-on. The power may have
gone in its first boot, before it could confirm itself. Whether it was so shows in the boot that
follows: there ota.rollback.cancel() calls `settle`, and what a reset ended has had its chance.
"""

import struct

from esp32 import NVS, Partition
from machine import PWRON_RESET, reset_cause

from . import otadata
from .errors import ImageError, StateError

_NAMESPACE = "ota"
_KEY = "retried"  # the digest of the image that has had its second chance
_TRIAL = "trial"  # finish.py: put_on_trial


def settle(trial):
    """``trial``, from NVS, has ended, unless its app was not started yet."""
    running = Partition(Partition.RUNNING).info()[2]
    offset = struct.unpack_from("<I", trial)[0]
    nvs = NVS(_NAMESPACE)
    try:
        if offset != running:
            slots = [slot for slot in otadata.slots() if slot.info()[2] == offset]
            if slots and otadata.state(slots[0]) not in (otadata.ABORTED, otadata.INVALID):
                return
            if reset_cause() != PWRON_RESET:
                nvs.set_blob(_KEY, trial[4:])
        nvs.erase_key(_TRIAL)
        nvs.commit()
    except OSError:  # NVS is full: an app that runs well is not to fail for that
        pass


class Failed:
    """The image that failed in ``slot``, if it is still there."""

    def __init__(self, slot, board):
        from .installed import read_app

        self._name = slot.info()[4]
        self._is_aborted = otadata.state(slot) == otadata.ABORTED
        try:
            self._image = read_app(slot, board)
        except ImageError:
            self._image = None

    def check_header(self, image):
        """Raises StateError if ``image``, of which only the header is known, is the failed one.

        That shows where images carry the digest of their ELF file, as those of ESP-IDF do.
        """
        if (
            self._image
            and image.header == self._image.header
            and image.desc == self._image.desc
            and any(image.desc[144:176])
            and not self._is_forgiven()
        ):
            self._refuse()

    def check_digest(self, digest):
        """Raises StateError if the image with this digest is the failed one."""
        if self._image and digest == self._image.digest:
            if not self._is_forgiven():
                self._refuse()
            try:
                nvs = NVS(_NAMESPACE)
                nvs.set_blob(_KEY, digest)  # lost by a power cut (keys.py): forgiven once more
                nvs.commit()
            except OSError:  # NVS is full, or there is none: it could be forgiven for ever
                self._refuse()

    def _is_forgiven(self):
        if not self._is_aborted or reset_cause() != PWRON_RESET:
            return False
        retried = bytearray(32)
        try:
            NVS(_NAMESPACE).get_blob(_KEY, retried)
        except OSError:
            return True
        return retried != self._image.digest

    def _refuse(self):
        raise StateError(
            "failed-version",
            "this image has failed on this board before, it was not confirmed in %s: "
            "not installed again without force=True" % self._name,
        )
