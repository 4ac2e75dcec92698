"""Whether what runs is confirmed: a failed update would leave nothing to roll back to, else."""

from esp32 import Partition

from . import boot, otadata
from .errors import StateError


def check_confirmed():
    """Raises StateError while the app or the files that run are unconfirmed."""
    part = Partition(Partition.RUNNING)
    what = None
    if otadata.state(part) == otadata.PENDING_VERIFY:
        what = "the running app (%s) is" % part.info()[4]
    elif boot.is_on_trial():
        what = "the files in use are"
    if what:
        raise StateError(
            "unconfirmed",
            "%s not confirmed: call ota.rollback.cancel() first, or a failed update would leave "
            "nothing to roll back to" % what,
        )
