"""What has come: what is it, and where does it go? And the last word before the first erase.

Loaded for that, and let go of once the first sector is in the flash (slot.py).
"""

import gc

from esp32 import Partition
from micropython import const

from . import base, otadata
from .base import ROOM, ImageError, acquire_slot, has_trust, unload
from .pump import Inlet

_SECTOR = const(4096)
_BLOCK = const(65536)
_HEAD_SIZE = const(32)  # of an app: slot.py
_DESC_OFFSET = const(32)  # of app_desc, in an app image
_DESC_MAGIC = b"\x32\x54\xcd\xab"
_BUNDLE_MAGIC = b"manifest.json\0"  # the name of its first member
_FRAMES_MAGIC = b"OTAF"  # of a compressed image or a delta

_NOTE = "erase"  # u8 tries that ended in a reset, or one of the next two; digest of the app
_TRIES = const(2)
_GOOD = const(0xFF)
_BAD = const(0xFE)


def choose(intake, head):
    """Choose the stages of an Intake by the first bytes, which then go through them."""
    acquire_slot(intake)
    if not len(head):
        raise ImageError("empty", "the file is empty")
    magic = bytes(head[: len(_BUNDLE_MAGIC)])
    if magic == _BUNDLE_MAGIC:
        _begin_bundle(intake, head)
    elif magic[: len(_FRAMES_MAGIC)] == _FRAMES_MAGIC:
        _begin_frames(intake, head)
    else:
        _begin_image(intake, head)


def _begin_bundle(intake, head):
    unload("begin", "otadata")
    room = bytearray(ROOM)  # all that is large, before code divides the heap
    from .release import Bundle, Release

    intake.release = Release(intake.force, intake.verify, room)
    intake.inlet = Inlet(Bundle(intake.release), intake.buf)
    intake.inlet.fill(len(head))


def _begin_frames(intake, head):
    from .frames import Frames, make_room

    room = make_room(head)
    buf = bytearray(ROOM)
    _check_trust(intake, False)
    intake.app = app = _make_app(intake, buf)
    stage = Frames(app, close=app.seal, room=room, limit=app.writer.limit)
    intake.inlet = Inlet(stage, intake.buf)
    intake.inlet.fill(len(head))


def _begin_image(intake, head):
    found_merged = head[_DESC_OFFSET : _DESC_OFFSET + 4] != _DESC_MAGIC
    board = intake.board
    if found_merged:
        from .merged import MergedFirmware, is_merged

        found_merged = is_merged(head, board)
    signed = _check_trust(intake, not found_merged)
    # The head stands where the writer wants it.
    intake.app = app = _make_app(
        intake,
        intake.room,
        embedded=found_merged,
        needs_digest=not intake.due,
        total=intake.total,
        signed=signed,
    )
    app.note = intake.note and intake.note(app)
    intake.stage = app.image
    if found_merged:
        intake.stage = MergedFirmware(app.image, board, app.note)
    intake.stage.write(app.buffer() if len(head) == _SECTOR else head)


def _make_app(intake, buf, **options):
    if otadata.has_home():  # its files go on with the new app: they have to be written then
        from .boot import settle

        settle()
        unload("boot")
    from .slot import NewApp

    return NewApp(
        otadata.find_next_slot(),
        intake.board,
        intake.force,
        intake.verify,
        buf=buf,
        by_sectors=intake.by_sectors,
        **options,
    )


def _check_trust(intake, may_be_signed):
    """The SHA-256 that a trusted key has signed; None where no keys are installed."""
    if not has_trust():
        return None
    from .keys import check_image

    signed = check_image(intake.end, may_be_signed)
    del check_image
    unload("keys")
    intake.end = None
    return signed


# --- before the first erase


def accept(app, image):
    """Judge a NewApp by its header, before the first erase. Raises OTAError to refuse it."""
    from .image import refused

    if app.total and app.total > app.writer.limit:
        raise refused("too-long", app.total, "", app.writer.name, app.writer.limit)
    if app.signed:  # a bare image has no counter: so its version may not be older than what runs
        desc = bytearray(4)
        Partition(Partition.RUNNING).readblocks(0, desc, 36)
        found, least = (int.from_bytes(data, "little") for data in (image.desc[4:8], desc))
        if found < least:
            raise refused("secure-version", found, least)
    if base.has_note("failed") or otadata.state(app.part) in (otadata.ABORTED, otadata.INVALID):
        from .recovery import Failed

        app.failed = Failed(app.part)
        if not app.force:
            app.failed.check_header(image)


def before_erase(app):
    """Remove otadata and notes that name the slot's content, which is about to be erased.

    Else a complete image that was then refused could be rolled back to as the former one
    (esp_ota_begin does the same: esp_ota_invalidate_inactive_ota_data_slot).
    """
    if app.failed:
        app.failed.save()
    if app.writer.kept:  # the notes of an earlier attempt still hold
        base.forget("download", "payload")
    else:
        base.forget_attempt()
    found = otadata.find_record(app.part)
    if found:
        otadata.erase(found[0])


# --- whether 64 KiB can be erased at once: the note holds the digest of the app that runs, so that
# another firmware is asked anew


def try_block(writer, at):
    """As `SlotWriter.ask`; where that may crash, under a note, and checked.

    What two resets have ended is given up.
    """
    app = otadata.app_id(Partition(Partition.RUNNING)) or b""
    found = base.recall(_NOTE, 1 + _HEAD_SIZE)
    tries = found[0] if len(found) and found[1:] == app else 0
    if tries == _GOOD:
        return writer.ask(at)
    if tries >= _TRIES or not base.note(_NOTE, bytes((tries + 1,)) + app):
        return False
    is_good = writer.ask(at) and writer.is_blank(at, _BLOCK)
    base.note(_NOTE, bytes((_GOOD if is_good else _BAD,)) + app)
    return is_good


def erases_blocks():
    """Whether updates erase 64 KiB at once: True, False, or None where none has tried yet."""
    found = base.recall(_NOTE, 1 + _HEAD_SIZE)
    if not len(found) or found[1:] != (otadata.app_id(Partition(Partition.RUNNING)) or b""):
        return None
    return True if found[0] == _GOOD else False if found[0] >= _TRIES else None


gc.collect()  # what loading left behind would divide a small heap
