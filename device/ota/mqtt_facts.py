"""What runs, and what became of the last release: read for mqtt_state.py, then unloaded."""

from esp32 import Partition

from . import base, otadata
from .trial import FAILED, REFUSED, SWITCHED, load


def facts(channel):
    """(the version that runs, that of the last release, what is so of it, why).

    What is so of it: "failed", "refused", "on trial", "waits for the restart", or "".
    """
    trial = load()
    word = {FAILED: "failed", REFUSED: "refused"}.get(trial.stage, "")
    installed = _installed()
    if trial.stage == SWITCHED:
        word = "waits for the restart"
        if _is_on_trial(trial):
            word, installed = "is on trial", trial.version
    return installed, trial.version, word, trial.why


def _installed():
    """The version of the release that runs."""
    version = ""
    if otadata.has_home():
        from .boot import running

        version = running().get("version", "")
    return version or _confirmed() or "none"


def _confirmed():
    """The version that was confirmed last: keys.py has the layout, and is not loaded for this."""
    for name in base.TRUST:
        data = base.recall(name, 256) or base.recall(name, 1265)
        if len(data) > 6 and data[0] == 2:
            end = 7 + 32 * (data[5] + data[6])
            return str(data[end + 1 :], "utf-8").partition("\0")[2]
    return ""


def _is_on_trial(trial):
    """Whether what is on trial runs; it may wait for the restart as well."""
    if trial.offset:
        return Partition(Partition.RUNNING).info()[2] == trial.offset
    from .boot import is_on_trial

    return is_on_trial()
