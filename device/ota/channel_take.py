"""Before and after an installation: asks the app, begins, and keeps account of what came of it
(trial.py). Loaded for each of these steps.
"""

from time import ticks_ms

from micropython import const

from . import base
from .base import SourceError, StateError
from .trial import STARTED, SWITCHED, fail, load, refuse, start, switched
from .trial import offer as make_trial

_MAX_ATTEMPTS = const(8)
_MAX_FAULTS = const(3)
# What another attempt with the same release could change nothing of, from the judge (policy.py).
_FINAL = (
    " pin manifest format signature unsigned untrusted retired-key keys counter downgrade expired "
    "wrong-name wrong-chip wrong-board from-version too-long no-form no-chain no-partition "
)
# What is no fault of the release: it is taken up again later.
_PASSING = " unconfirmed waiting busy memory clock part "


def begin(channel, by_hand):
    """Whether the offer is to be installed now: the app may say no, or the board. It is noted."""
    offer = channel.offer
    if not _may_begin(channel, offer, by_hand):
        return False
    from .boot import check_confirmed
    from .confirm import check_selected

    try:
        check_confirmed()
        check_selected()
    except StateError as error:
        channel.code, channel.reason = error.code, str(error)
        return False
    trial = load()
    if _is_done(channel, offer, trial):
        return False
    make_trial(trial, "channel", offer.sha256, offer.version, offer.serial)
    if trial.attempts >= _MAX_ATTEMPTS:
        refuse(trial, "given up after %d attempts" % trial.attempts)
        channel.offer = None
        channel.code, channel.reason = "refused", "%s: %s" % (offer.version, trial.why)
        return False
    if trial.stage != STARTED or not channel.is_begun:
        start(trial)
    channel.is_begun = True
    return True


def end(channel, is_restart_due):
    """It is installed."""
    offer = channel.offer
    switched(load())
    channel.offer = None
    channel.code, channel.reason = "waiting", "%s waits for the restart" % offer.version
    if not is_restart_due:
        channel.code, channel.reason = "current", "%s is installed" % offer.version
    channel.log(channel.reason)
    if is_restart_due:
        _restart(channel)


def _is_done(channel, offer, trial):
    """Whether the offer has been taken since it was found."""
    if trial.stage == SWITCHED and trial.digest == offer.sha256:
        channel.code = "waiting"
        channel.reason = "%s waits for the restart, or to be confirmed" % offer.version
        return True
    from .keys import load as load_trust

    counter = load_trust().counter
    del load_trust
    base.unload("keys")
    if counter < offer.counter:
        return False
    channel.offer = None
    channel.is_known = False  # what comes after it is to be found
    channel.code, channel.reason = "current", "%s is installed" % offer.version
    return True


def _restart(channel):
    if channel.restart:
        channel.restart()
    else:
        from machine import reset

        reset()


def _may_begin(channel, offer, by_hand):
    if channel.busy:
        channel.code, channel.reason = "busy", "%s waits: the app is busy" % offer.version
        return False
    if by_hand or not channel.may_install:
        return True
    answer = channel.may_install(offer)
    if answer is None:
        channel.code, channel.reason = "later", "%s waits: the app says later" % offer.version
    elif not answer:
        channel.refused = offer.sha256
        channel.offer = None
        channel.code, channel.reason = "declined", "%s: the app says no" % offer.version
    return bool(answer)


def look_again(channel, is_same, by_hand):
    """Before the switch. Raises StateError ("again") if another channel file may be there."""
    offer = channel.offer
    if not is_same:
        raise StateError("again", "%s waits: the channel may have changed" % offer.version)
    channel.read_at = ticks_ms()
    from .channel_more import judge

    judge(channel, by_hand)
    if channel.code:
        raise StateError("again", "%s waits: %s" % (offer.version, channel.reason))


def account(channel, error):
    """``error`` ended the installation: whose fault that was, and whether it is tried again."""
    trial = load()
    if isinstance(error, SourceError) or _is_among(error, _PASSING):
        return
    if error.code == "failed-version":
        fail(trial, error)
        channel.offer = None
        channel.code, channel.reason = "failed", "%s: %s" % (trial.version, trial.why)
        return
    if isinstance(error, StateError):  # it was found to be paused, replaced, ...
        return
    count = channel.faults[1] + 1 if channel.faults[0] == trial.digest else 1
    channel.faults = trial.digest, count
    if _is_among(error, _FINAL) or count >= _MAX_FAULTS:
        refuse(trial, "%s: %s" % (error.code, error))
        channel.offer = None
        channel.code, channel.reason = "refused", "%s: %s" % (trial.version, trial.why)


def _is_among(error, codes):
    return " %s " % error.code in codes
