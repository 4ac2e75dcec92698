"""What an update needs now and then: what it prints, a beginning that is no image, the restart.

And the image that stands in a slot already.
"""

from hashlib import sha256

from esp32 import Partition

from .base import ROOM
from .image import SECTOR, AppImage
from .pump import Inlet


def begin(intake, head, is_bundle):
    """A bundle, or an encoded image, begins with ``head``."""
    if is_bundle:
        room = bytearray(ROOM)  # all that is large, before code divides the heap
        from .release import Bundle, Release

        intake.release = Release(intake.force, intake.verify, room)
        stage = Bundle(intake.release)
    else:
        from .frames import Frames, make_room

        room = make_room(head)
        buf = bytearray(ROOM)
        intake.check_trust(False)
        intake.app = app = intake.make_app(buf)
        stage = Frames(app, close=app.seal, room=room, limit=app.writer.limit)
    intake.inlet = Inlet(stage, intake.buf)
    intake.inlet.fill(len(head))


# --- what is printed


class Console:
    """Tells of an update of the slot ``part``."""

    def __init__(self, part):
        _, _, _, size, self._name, _ = part.info()
        print("Writing new micropython image to OTA partition '%s'..." % self._name)
        print("Device capacity: %d x %d byte blocks." % (size // SECTOR, SECTOR))

    say = staticmethod(print)

    @staticmethod
    def log(text):
        print("\n" + text)

    def begin(self, total):
        if total:
            print("Writing %d blocks + %d bytes." % (total // SECTOR, total % SECTOR))

    def report(self, done):
        if not done % 65536:
            print("\rBLOCK", done // SECTOR, end="")

    def seal(self, digest):
        print("\nSHA-256 of the image in flash: %s" % (digest or b"").hex())

    def end(self):
        print("OTA Partition '%s' updated successfully." % self._name)
        boot = Partition(Partition.BOOT).info()[4]
        print("Micropython will boot from '%s' partition on next boot." % boot)
        print("Remember to call ota.rollback.cancel() after successful reboot.")


# --- the image in a slot


def read_app(partition, board):
    """The AppImage in a slot: its headers read and checked, the data between them not.

    Raises ImageError if there is none that this board could boot.
    """
    image = AppImage(None, board, partition)
    field = image.next_field()
    while field:
        offset, buf = field
        partition.readblocks(offset // SECTOR, buf, offset % SECTOR)
        image.parse_field()
        field = image.next_field()
    return image


def is_intact(partition, image):
    """Whether the slot holds ``image`` with the digest that it carries."""
    sha = sha256()
    buf = bytearray(SECTOR)
    at = 0
    while at < image.digest_offset:
        count = min(SECTOR, image.digest_offset - at)
        piece = buf if count == SECTOR else memoryview(buf)[:count]
        partition.readblocks(at // SECTOR, piece, 0)
        sha.update(piece)
        at += count
    return sha.digest() == image.digest


# --- the restart


def ota_reboot(delay=10):
    """Count down ``delay`` seconds, then reset the board into the app that is to boot."""
    from time import sleep

    from machine import reset

    for left in range(delay, 0, -1):
        print("\rRebooting in %2d seconds (ctrl-C to cancel)" % left, end="")
        sleep(1)
    print()
    reset()
