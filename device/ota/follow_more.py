"""What followers (follow.py) do now and then: begin, keep account of what came of it, back off.

Loaded for each of these steps. The account is in trial.py.
"""

from errno import ETIMEDOUT

from micropython import const

from .base import SourceError, StateError
from .follow import DAY, random

_MAX_ATTEMPTS = const(8)
_MAX_FAULTS = const(3)
# Codes of the judge (policy.py) that another attempt with the same release would get again.
_FINAL = (
    " pin manifest format signature unsigned untrusted retired-key keys counter downgrade expired "
    "wrong-name wrong-chip wrong-board from-version too-long no-form no-chain no-partition "
)
# Codes that are no fault of the release: it is tried again later.
_PASSING = " unconfirmed waiting busy memory clock part "
_FIRST_FAULT = const(60)  # seconds
_NO_NETWORK = const(10)
_MAX_NO_NETWORK = const(300)
_MAX_FAILURES = const(20)


def begin(follower, origin, tag, by_hand=False):
    """Whether the offer is to be installed now: the app may say no, or the board. It is noted.

    ``origin``, ``tag``: of the trial.
    """
    offer = follower.offer
    if not _may_begin(follower, offer, by_hand):
        return False
    from .boot import check_confirmed
    from .confirm import check_selected

    try:
        check_confirmed()
        check_selected()
    except StateError as error:
        follower.code, follower.reason = error.code, str(error)
        return False
    from .trial import STARTED, SWITCHED, load, refuse, start
    from .trial import offer as make_trial

    trial = load()
    if trial.stage == SWITCHED and trial.digest == offer.sha256:
        follower.code = "waiting"
        follower.reason = "%s waits for the restart, or to be confirmed" % offer.version
        return False
    make_trial(trial, origin, offer.sha256, offer.version, tag)
    if trial.attempts >= _MAX_ATTEMPTS:
        refuse(trial, "given up after %d attempts" % trial.attempts)
        follower.offer = None
        follower.code, follower.reason = "refused", "%s: %s" % (offer.version, trial.why)
        return False
    if trial.stage != STARTED or not follower.is_begun:
        start(trial)
    follower.is_begun = True
    return True


def switching(follower):
    """Note that all has come, and that what boots next is about to change."""
    from .trial import load, switching

    switching(load())


def end(follower, is_restart_due):
    """Note that the offer is installed; the restart, if one is due, is still to come."""
    from .trial import load, switched

    offer = follower.offer
    switched(load())
    follower.offer = None
    follower.code, follower.reason = "waiting", "%s waits for the restart" % offer.version
    if not is_restart_due:
        follower.code, follower.reason = "current", "%s is installed" % offer.version
    follower.log(follower.reason)


def restart(follower):
    if follower.restart:
        follower.restart()
    else:
        from machine import reset

        reset()


def _may_begin(follower, offer, by_hand):
    if follower.busy:
        follower.code, follower.reason = "busy", "%s waits: the app is busy" % offer.version
        return False
    if by_hand or not follower.may_install:
        return True
    answer = follower.may_install(offer)
    if answer is None:
        follower.code, follower.reason = "later", "%s waits: the app says later" % offer.version
    elif not answer:
        follower.refused = offer.sha256
        follower.offer = None
        follower.code, follower.reason = "declined", "%s: the app says no" % offer.version
    return bool(answer)


def account(follower, error):
    """Note that ``error`` ended the installation, and whether the release is tried again."""
    from .trial import fail, load, refuse

    trial = load()  # it finds out whether the switch had happened
    if isinstance(error, SourceError) or _is_among(error, _PASSING):
        return
    if error.code == "failed-version":
        fail(trial, error)
        follower.offer = None
        follower.code, follower.reason = "failed", "%s: %s" % (trial.version, trial.why)
        return
    if isinstance(error, StateError):  # it was found to be paused, replaced, ...
        return
    count = follower.faults[1] + 1 if follower.faults[0] == trial.digest else 1
    follower.faults = trial.digest, count
    if _is_among(error, _FINAL) or count >= _MAX_FAULTS:
        refuse(trial, "%s: %s" % (error.code, error))
        follower.offer = None
        follower.code, follower.reason = "refused", "%s: %s" % (trial.version, trial.why)


def _is_among(error, codes):
    return " %s " % error.code in codes


def make_context(follower):
    """For TLS, by the options of its requests. Raises SourceError."""
    from .tls_trust import Trust

    names = ("cafile", "cadata", "server_name", "insecure_tls")
    request = follower.request
    context = Trust(**{name: request[name] for name in names if name in request}).make_context()
    context.verify_callback = None  # it would keep tls_trust.py in memory
    return context


def check_answer(follower, url, what, more):
    """Raises SourceError for what may pass: an overloaded server, or no answer at all.

    ``what``: the status, and ``more`` its Retry-After; or what failed, and the error. Of a TLS
    handshake, and of what is no HTTP, the full client says more.
    """
    if isinstance(what, int):
        if what == 429 or what >= 500:
            error = SourceError("http-status", "HTTP Error: %d: %s" % (what, url))
            error.status, error.retry_after = what, more
            raise error
    elif what != "tls" and isinstance(more, OSError):
        if more.errno == ETIMEDOUT:
            raise SourceError("timeout", "no answer from %s in time" % url)
        raise SourceError("dns" if what == "dns" else "connection", "%s: %s" % (url, more))


def back_off(follower, error):
    """Seconds until the next poll after one that failed with ``error``, an OTAError."""
    follower.error = error
    follower.log("%s: %s" % (error.code, error))
    follower.failures = min(follower.failures + 1, _MAX_FAILURES)
    first, most = _FIRST_FAULT, follower.poll_s
    if error.code == "dns":
        first, most = _NO_NETWORK, _MAX_NO_NETWORK
    elif not isinstance(error, SourceError) and error.code not in ("memory", "busy"):
        return most - random(most // 4 + 1)  # asking again soon would change nothing
    pause = min(first << (follower.failures - 1), most)
    pause -= random(pause // 4 + 1)  # not all boards at once
    after = getattr(error, "retry_after", None) or ""
    if after.isdigit():  # it may be a date as well
        pause = max(pause, min(int(after[:6]), DAY)) + random(60)
    return pause
