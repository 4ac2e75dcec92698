"""The end of a push: takes a file window by window, whatever it is."""

from micropython import const

from . import update
from .base import acquire_slot, release_slot
from .pump import run
from .ready import make_trail, recall

_SECTOR = const(4096)


class Intake(update.Intake):
    """``sha``: SHA-256 (bytes) of the file, ``size`` its bytes. Raises OTAError, as all of it does.

    ``end``: the last 4096 bytes of an app image that is judged by its signature first. `skip`,
    called before anything else, goes on with what an earlier attempt has left in the slot.
    """

    def __init__(self, sha, size, block_size=0, **options):
        super().__init__(sha.hex(), size, **options)
        acquire_slot(self)
        try:
            self._trail = make_trail()
            run(recall(self._trail, sha.hex()))
        except BaseException:
            release_slot(self)
            raise
        self.note = self._trail.attach
        self._is_new = True
        self._kept = self._at = 0  # of what the slot holds: what is to be read again, and was

    def skip(self):
        if not self._is_new:
            return super().skip()
        self._is_new = False
        if self._trail.total == self.length:
            self._kept = self._trail.size
        else:
            self._trail.begin(self.length, None)
        return self._kept

    def buffer(self):
        """Place for 4096 bytes; `take` moves those at its front on."""
        return super().buffer(True)

    def take(self, count):
        if self._is_new:
            self._is_new = False
            self._trail.begin(self.length, None)
        super().take(count)

    def work(self):
        if super().work():
            return True
        if self._at == self._kept:
            return False
        at = self._at
        self._at += _SECTOR
        self._trail.read(at, self.buffer())
        self.take(_SECTOR)
        return True

    def finishing(self):
        """A generator: all has come. Check the whole, and switch."""
        from .finish import closing

        return closing(self)
