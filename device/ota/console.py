"""What an update prints, as micropython-esp32-ota does."""

from esp32 import Partition

from .slot import SECTOR


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
