"""How an update ends: all that has come is judged, then the slot becomes the next to boot.

Loaded for that.
"""

import gc
import struct

from micropython import const

from . import base
from .base import ImageError, SlotError, StateError, release_slot, unload
from .otadata import has_home

_SECTOR = const(4096)
_BLOCK = const(65536)
_VALIDATE_FAILED = const(-5379)  # ESP_ERR_OTA_VALIDATE_FAILED


def closing(intake, console=None, before_switch=None):
    """A generator: check the whole that an Intake has taken, then make it the next to boot.

    ``before_switch()`` is a generator, when all is checked: what it raises ends it.
    """
    yield from sealing(intake)
    if before_switch:
        yield from before_switch()
    image = intake.image
    if console and image:
        console.seal(image.digest)
    yield from committing(intake)
    if console and image:
        console.end()


def sealing(intake):
    """A generator: no more bytes come. Check the whole. Raises OTAError."""
    intake.check_alive()
    if intake.have or not (intake.stage or intake.inlet):
        intake.pass_on(intake.place[: intake.have] if intake.have else intake.buf[:0])
    while intake.work():
        yield 0
    if intake.length not in (None, intake.received):
        raise ImageError(
            "length", "Received %d bytes (expect %d)." % (intake.received, intake.length)
        )
    if intake.inlet:
        intake.inlet.finish()
    else:
        intake.stage.finish()
    if intake.sha:
        _check_sha(intake.sha, intake.due)
    if intake.stage:
        seal(intake.app)
    intake.stage = intake.inlet = intake.buf = intake.room = intake.place = None
    gc.collect()  # its buffers: what comes now needs the heap
    yield 0


def _check_sha(sha, due):
    found = sha.digest()
    if found != due:
        raise ImageError("sha", "SHA mismatch recv=%s expect=%s." % (found.hex(), due.hex()))


def committing(intake):
    """A generator: make what an Intake has taken the next to boot."""
    if intake.release:
        yield from intake.release.committing()
        intake.needs_reset = intake.release.needs_reset
    else:
        attach = None
        if has_home():
            from .files import carry_over as attach
        yield from switching(intake.app, attach)
    release_slot(intake)


# --- an app


def seal(app, is_payload=False):
    """No more bytes of a NewApp come: judge them. Raises OTAError.

    ``is_payload``: of a release. If it is signed itself, that only has to be whole.
    """
    from .image import refused

    image = app.image
    image.finish()
    app.writer.close()
    if app.due:
        _check_sha(app.content_sha, app.due)
    if image.digest and app.sha.digest() != image.digest:
        raise refused("digest", image.digest.hex())
    if image.digest and app.failed and not app.force:
        app.failed.check_digest(image.digest)
    if app.signed:
        if app.signed_sha.digest() != app.signed:
            raise refused("digest 2")
    elif is_payload and image.is_signed:
        _check_signature(app)


def _check_signature(app):
    """The image is signed itself, for Secure Boot perhaps: then that has to be good as well."""
    from . import keys

    sector = bytearray(_SECTOR)
    app.part.readblocks((app.image.size + _SECTOR - 1) // _SECTOR, sector)
    keys.check_signed(app.signed_sha.digest(), sector)
    unload("keys")


def switching(app, attach=None):
    """A generator: make the slot of a NewApp the next to boot.

    ``attach(part, head)`` is called before.
    """
    writer = app.writer
    yield from _tidying(writer)
    if attach:
        attach(app.part, writer.head)
    if writer.at:
        write_head(writer)
    app.writer = None
    yield 0
    try:
        _set_boot(app.part, app.image.digest)
    except StateError:
        app.part.ioctl(6, 0)  # it is refused: no image any more
        base.forget_attempt()
        raise
    base.forget_attempt()


def _tidying(writer):
    """A generator: erase what stands behind the bytes written, a block at a time."""
    at = writer.at
    while at < writer.limit:
        size = min(_BLOCK - (writer.offset + at) % _BLOCK, writer.limit - at)
        is_blank = writer.is_blank(at, size)
        if not is_blank and (size < _BLOCK or not writer.erase_block(at)):
            size = _SECTOR
            writer.erase_sector(at)
        at += size
        yield 0
    writer.blank_end = 0


def write_head(writer):
    """Write the first bytes, which a SlotWriter left blank: only now is there an image."""
    head = writer.head
    writer.write_flash(0, head, 0)
    place = writer.check[: len(head)]
    writer.read_flash(0, place, 0)
    if place != head:
        raise SlotError("flash", "flash lost bytes of the image's header in %s" % writer.name)


def _set_boot(part, digest):
    """Make ``part`` the next to boot. Raises StateError if ESP-IDF does not accept its image.

    Before that is noted in NVS what is to boot next: the u32 flash offset of its slot, and its
    digest. rollback.cancel() looks at it in the boots that follow (recovery.py: settle). A
    power cut can lose it, and that of an earlier update: then one that failed may be tried again.
    """
    if digest:
        base.note("trial", struct.pack("<I", part.info()[2]) + digest)
    try:
        part.set_boot()
    except OSError as error:
        if error.args[0] != _VALIDATE_FAILED:
            raise StateError("otadata", "otadata cannot be written: %s" % error)
        raise StateError(
            "not-bootable",
            "ESP-IDF does not accept the image in %s (checksum, or a chip revision that it is "
            "not made for)" % part.info()[4],
        )


gc.collect()  # what loading left behind would divide a small heap
