"""What `update.Intake` seldom needs: other files than images, and boards with keys."""

from .errors import ReleaseError
from .pump import Inlet
from .slot import ROOM
from .unload import unload


def begin(intake, head, is_bundle):
    """A bundle, or an encoded image, begins with ``head``."""
    if is_bundle:
        from .release import Bundle, Release

        intake.release = Release(intake.force, intake.verify)
        stage = Bundle(intake.release)
    else:
        from .frames import Frames, make_room

        room = make_room(head)
        buf = bytearray(ROOM)  # all that is large, before code divides the heap
        intake.check_trust(False)
        intake.app = app = intake.make_app(buf)
        stage = Frames(app, close=app.seal, room=room, limit=app.writer.limit)
    intake.inlet = Inlet(stage, intake.buf)
    intake.inlet.fill(len(head))


def check_trust(intake, may_be_signed):
    """The SHA-256 that a trusted key has signed; None where there are no keys.

    Raises ReleaseError where there are keys, unless their owner has allowed images and this is a
    signed one.
    """
    from .keys import load

    trust = load()
    if not trust.trusted:
        return None
    from .signature import check_end

    if not trust.takes_images or not may_be_signed:
        raise ReleaseError(
            "unsigned",
            "the file is no signed release, and this board has keys: make one by `mpota bundle "
            "--key`" + ("" if trust.takes_images else ", or ota.keys.allow_images(True)"),
        )
    if intake.end is None:
        raise ReleaseError(
            "unsigned",
            "the signature stands at the end of the file, which this source cannot give first: a "
            "server with ranges can, or a release",
        )
    signed = check_end(intake.end, trust)
    intake.end = None
    unload("signature", "keys")
    return signed


def needs_end():
    """Whether a signature that stands at the end of a file has to be judged before all else."""
    from .keys import load

    trust = load()
    unload("keys")
    return bool(trust.trusted) and trust.takes_images
