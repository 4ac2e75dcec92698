"""What an update prints, the restart, and the image that stands in a slot already."""

import struct
from hashlib import sha256

from esp32 import Partition
from micropython import const

from . import base, otadata
from .pump import run

_SECTOR = const(4096)


class _Lines:
    """What is printed: a line that counts blocks ends before other text begins."""

    _is_open = False

    def report(self, done):
        if not done % 65536:
            print("\rBLOCK", done // _SECTOR, end="")
            self._is_open = True

    def stop(self):
        if self._is_open:
            print()
            self._is_open = False

    def say(self, text):
        self.stop()
        print(text)

    def begin(self, total):
        if total:
            self.say("Writing %d blocks + %d bytes." % (total // _SECTOR, total % _SECTOR))


class Console(_Lines):
    """Tells of an update of the slot ``part``."""

    def __init__(self, part):
        _, _, _, size, self._name, _ = part.info()
        print("Writing new micropython image to OTA partition '%s'..." % self._name)
        print("Device capacity: %d x %d byte blocks." % (size // _SECTOR, _SECTOR))

    def seal(self, digest):
        self.say("SHA-256 of the image in flash: %s" % (digest or b"").hex())

    def end(self):
        print("OTA Partition '%s' updated successfully." % self._name)
        boot = Partition(Partition.BOOT).info()[4]
        print("Micropython will boot from '%s' partition on next boot." % boot)
        print("Remember to call ota.rollback.cancel() after successful reboot.")


class ReleaseConsole(_Lines):
    """Tells of a release from ``url``; called as ``progress(done, total)``, and calls that."""

    def __init__(self, url, progress, request_args):
        print("Opening release %s..." % url)
        self._progress = progress
        request_args.setdefault("log", self.say)
        self._total = 0

    def __call__(self, done, total):
        if total != self._total:
            self._total = total
            self.begin(total)
        self.report(done)
        if self._progress:
            self._progress(done, total)

    def run(self, steps, feed):
        """Run a generator to its end: whether the release needs the restart."""
        try:
            needs_reset = run(steps, feed)
        finally:
            self.stop()
        print("Release installed%s." % (": it comes into force with the restart" * needs_reset))
        if needs_reset:
            print("Remember to call ota.rollback.cancel() after successful reboot.")
        return needs_reset


# --- the image in a slot


def read_app(partition, board):
    """The AppImage in a slot: its headers read and checked, the data between them not.

    Raises ImageError if there is none that this board could boot.
    """
    from .image import AppImage

    image = AppImage(None, board, partition)
    field = image.next_field()
    while field:
        offset, buf = field
        partition.readblocks(offset // _SECTOR, buf, offset % _SECTOR)
        image.parse_field()
        field = image.next_field()
    return image


def is_intact(partition, image):
    """Whether the slot holds ``image`` with the digest that it carries."""
    sha = sha256()
    buf = bytearray(_SECTOR)
    at = 0
    while at < image.digest_offset:
        count = min(_SECTOR, image.digest_offset - at)
        piece = buf if count == _SECTOR else memoryview(buf)[:count]
        partition.readblocks(at // _SECTOR, piece, 0)
        sha.update(piece)
        at += count
    return sha.digest() == image.digest


def check_intact(partition):
    """Raises StateError for a slot whose app is not one that this board could boot."""
    from .image import Board

    try:
        if is_intact(partition, read_app(partition, Board(Partition(Partition.RUNNING)))):
            return
        reason = "its SHA-256 does not match"
    except base.ImageError as error:
        reason = str(error)
    raise base.StateError("not-bootable", "%s: %s" % (partition.info()[4], reason))


# --- the state of the app that runs, and the restart


def rewrite_state(index, state):
    """Write record ``index`` of otadata with another state: esp_ota_ops.c, rewrite_ota_seq."""
    partition = otadata.find_otadata()
    record = bytearray(32)
    partition.readblocks(index, record, 0)
    struct.pack_into("<I", record, 24, state)
    otadata.erase(index)
    partition.writeblocks(index, record, 0)


def ota_reboot(delay=10, feed=None):
    """Count down ``delay`` seconds, then reset the board into the app that is to boot.

    ``feed()`` is called each second.
    """
    from time import sleep

    from machine import reset

    for left in range(delay, 0, -1):
        print("\rRebooting in %2d seconds (ctrl-C to cancel)" % left, end="")
        if feed:
            feed()
        sleep(1)
    print()
    reset()
