"""A new app on its way into the next slot: checked as it comes, written, judged, switched to.

What makes it an image, its first 32 bytes, is written when all else has been judged: a slot with a
refused image, or a part of one, holds nothing that could boot.
"""

from hashlib import sha256

from esp32 import Partition

from . import otadata
from .errors import StateError, check_sha
from .image import SECTOR, AppImage, refused
from .slot import HEAD_SIZE, SlotWriter


class NewApp:
    """A stage for the bytes of an app image, which may stand in a larger file (``embedded``).

    ``board``: see image.py. ``force``: though this image has failed before. ``total``: bytes of the
    file, if known; ``sha``: its SHA-256, if that is due. ``signed``: SHA-256 of the content that a
    signature covers, if one was judged before. ``note``: what is remembered for an attempt after a
    reset: resume_download.py, resume_release.py. ``buf``, ``by_sectors``: see SlotWriter.

    Bytes come by `write`, or by `buffer` and `take`. Then `seal` judges, `committing` switches.
    """

    def __init__(
        self,
        board,
        force=False,
        verify=True,
        *,
        embedded=False,
        needs_digest=True,
        total=None,
        sha=None,
        signed=None,
        buf=None,
        by_sectors=False,
    ):
        self.part = part = otadata.find_next_slot()
        self._board = board
        self._force = force
        self._total = None if embedded else total
        self.signed = signed
        self.note = None
        self._failed = None
        self._sha = sha256()  # over the image up to its own digest
        self._due = sha
        self._content_sha = sha256() if sha else None
        # Over all that a signature covers, where there may be one: it is a sector at the end.
        self._signed_sha = sha256() if signed or (total and not total % SECTOR) else None
        self.writer = SlotWriter(
            part,
            self._passed,
            verify,
            self._before_erase,
            HEAD_SIZE,
            buf=buf,
            by_sectors=by_sectors,
        )
        self.image = AppImage(self.writer, board, part, self._accept, embedded, needs_digest)
        self.write = self.image.write
        self.buffer = self.writer.buffer
        self.work = self.writer.work

    @property
    def written(self):
        """Bytes that the slot holds, but for the first 32."""
        return self.writer.at

    def take(self, count):
        """``count`` bytes stand in `buffer`."""
        buf = self.writer.buffer()
        self.write(buf if count == len(buf) else buf[:count])

    def keep(self, size, head):
        """Take the first ``size`` bytes, whole sectors, from the slot, where they are already.

        ``head``: the first 32 of them, which are not. A generator: it yields between sectors.
        """
        self.writer.kept = size
        for at in range(0, size, SECTOR):
            buf = self.buffer()
            self.part.readblocks(at // SECTOR, buf)
            if not at:
                buf[:HEAD_SIZE] = head
            self.take(SECTOR)
            yield 0

    def _accept(self, image):
        """The header has passed: the last word before the first erase."""
        if self._total and self._total > self.writer.limit:
            raise refused("too-long 2", self._total, self.writer.name, self.writer.limit)
        if self.signed:
            self._check_secure_version(image)
        if otadata.has_note("failed") or otadata.state(self.part) in (
            otadata.ABORTED,
            otadata.INVALID,
        ):
            from .failed_version import Failed

            self._failed = Failed(self.part)
            if not self._force:
                self._failed.check_header(image)

    def _check_secure_version(self, image):
        """A bare image has no counter: it is not to be older than what runs."""
        desc = bytearray(4)
        Partition(Partition.RUNNING).readblocks(0, desc, 36)
        found, least = (int.from_bytes(data, "little") for data in (image.desc[4:8], desc))
        if found < least:
            raise refused("secure-version", found, least)

    def _before_erase(self):
        """What speaks of the slot's content ends with it.

        Else a complete image that was then refused could be rolled back to as the former one
        (esp_ota_begin does the same: esp_ota_invalidate_inactive_ota_data_slot).
        """
        if self._failed:
            self._failed.save()
        if self.writer.kept:  # what is noted of that still holds
            otadata.forget("download", "payload")
        else:
            otadata.forget_attempt()
        found = otadata.find_record(self.part)
        if found:
            otadata.erase(found[0])

    def _passed(self, buf):
        """A sector is in the flash."""
        at = self.writer.at
        end = at + SECTOR
        stop = self.image.digest_offset
        if stop is None or end <= stop:
            self._sha.update(buf)
        elif at < stop:
            self._sha.update(buf[: stop - at])
        if self._content_sha:
            self._content_sha.update(buf if end <= self._total else buf[: self._total - at])
        if self._signed_sha and (self.image.size is None or at < self.image.size):
            self._signed_sha.update(buf)
        if self.note:
            self.note.passed(end)

    # --- the end

    def seal(self, is_payload=False):
        """No more bytes come: judge them. Raises OTAError.

        ``is_payload``: of a release. If it is signed itself, that only has to be whole.
        """
        image = self.image
        image.finish()
        self.writer.close()
        if self._due:
            check_sha(self._content_sha, self._due)
        if image.digest and self._sha.digest() != image.digest:
            raise refused("digest", image.digest.hex())
        if image.digest and self._failed and not self._force:
            self._failed.check_digest(image.digest)
        if self.signed:
            if self._signed_sha.digest() != self.signed:
                raise refused("digest 2")
        elif is_payload and image.is_signed:
            self._check_signature()

    def _check_signature(self):
        """The image is signed itself, for Secure Boot perhaps: then that has to be good as well."""
        from . import signature
        from .unload import unload

        sector = bytearray(SECTOR)
        self.part.readblocks((self.image.size + SECTOR - 1) // SECTOR, sector)
        signature.check_signed(self._signed_sha.digest(), sector)
        unload("signature")

    def committing(self, attach=None):
        """A generator: make the slot the next to boot. ``attach(part, head)`` is called before."""
        writer = self.writer
        yield from writer.tidy()
        if attach:
            attach(self.part, writer.head)
        if writer.at:
            writer.write_head()
        self.writer = None
        yield 0
        from .commit import set_boot

        try:
            set_boot(self.part, self.image.digest)
        except StateError:
            self.part.ioctl(6, 0)  # it is refused: no image any more
            otadata.forget_attempt()
            raise
        otadata.forget_attempt()
