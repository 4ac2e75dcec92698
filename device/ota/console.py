"""What an update prints, and the restart."""

from esp32 import Partition
from micropython import const

from .pump import run

_SECTOR = const(4096)


class _Lines:
    """Prints, and ends a line that counts blocks before other text begins."""

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
