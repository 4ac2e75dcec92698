"""Acts on what a DDI server says: cancels, asks for consent, begins, reports. Loaded for that.

See ddi.py. What is said of an action is in trial.py, where it lasts: its tag is the action.
"""

from hashlib import sha256
from time import ticks_ms

from micropython import const

from . import base
from .base import OTAError, ReleaseError, SourceError, StateError
from .ddi_ask import GONE, KEY, asking, checking, own, owns, say
from .trial import (
    CONFIRMED,
    FAILED,
    REFUSED,
    STARTED,
    SWITCHED,
    fail,
    load,
    refuse,
    runs,
    tell,
    wait,
)
from .trial import offer as make_trial

_MAX_DEPLOYMENT = const(8192)
_OVER = (CONFIRMED, FAILED, REFUSED)
_DOWNLOADED = "downloaded, waits until it may be installed"


# --- what the server wants


def answering(client, status, after, body):
    """A generator: act on the answer to a poll.

    "install": `offer` is to be installed; "again": something was done, ask once more; else None.
    Raises OTAError.
    """
    yield from checking(client, status, after, body)
    if status != 200:
        error = SourceError("http-status", "HTTP Error: %d: %s" % (status, client.url))
        error.status = status
        raise error
    client.read_at = ticks_ms()
    links = client._call("ddi_offer", "read_poll", body)
    client.offer = None
    trial = load()
    is_mine = owns(client, trial)
    if is_mine and trial.stage in _OVER and not trial.told:
        yield from _report(client, trial)
        return "again"
    client.is_idle = not (is_mine and trial.stage == SWITCHED)
    if "configData" in links:
        attributes = client._call("ddi_offer", "attributes")
        yield from asking(client, "PUT", "/configData", {"mode": "merge", "data": attributes})
    for name, act in (
        ("cancelAction", _cancel),
        ("confirmationBase", _confirm),
        ("deploymentBase", _deploy),
    ):
        if name in links:
            return (yield from act(client, trial, is_mine, links[name]))
    if client.is_idle:
        client._rest()
    else:
        _wait_for_boot(client, trial)
    return None


def _report(client, trial):
    """A generator: report how an action ended, also if the server has closed it."""
    finished, code = "failure", 1
    client.code, client.reason = "failed", "%s: %s" % (trial.version, trial.why)
    if trial.stage == REFUSED:
        client.code, code = "refused", 2
    elif trial.stage == CONFIRMED:
        finished, code = "success", None
        client.code, client.reason = "current", "%s runs and is confirmed" % trial.version
    yield from say(client, trial.tag, "closed", finished, [client.reason], code)
    client.log("action %d: reported %s" % (trial.tag, finished))
    tell(trial)


def _wait_for_boot(client, trial):
    client.code = "waiting"
    client.reason = "%s waits for the restart, or to be confirmed" % trial.version


def _cancel(client, trial, is_mine, action):
    """A generator: the server wants an action to be given up."""
    is_it = is_mine and trial.tag == action
    if is_it and trial.stage == SWITCHED:
        text = "%s is installed, and to be started or confirmed" % trial.version
        yield from say(client, action, "rejected", "none", [text], None, "cancelAction")
        _wait_for_boot(client, trial)
        return None
    if is_it and trial.stage == STARTED:
        base.forget_attempt()
        refuse(trial, "cancelled")
        tell(trial)
    yield from say(client, action, "closed", "success", ["cancelled"], None, "cancelAction")
    client.code, client.reason = "cancelled", "action %d is cancelled" % action
    client.log(client.reason)
    return "again"


def _confirm(client, trial, is_mine, action):
    """A generator: the server waits for consent."""
    offer = yield from _reading(client, trial, "confirmation", action)
    if not offer:
        return "again"
    offer.needs_consent = True
    client.code, client.reason = "consent", "%s waits for consent" % offer.version
    if not client.may_install or client.denied == action:
        return None
    answer = client.may_install(offer)
    if answer is None:
        client.code = "later"
        return None
    body = {"confirmation": "confirmed" if answer else "denied", "details": ["by the device"]}
    yield from asking(client, "POST", "/confirmationBase/%d/feedback" % action, body)
    if not answer:
        client.denied = action
        client.reason = "%s: consent is denied" % offer.version
        return None
    client.agreed = action
    return "again"


def _reading(client, trial, member, action):
    """A generator: the Offer of an action; None if it is closed, or cannot be used."""
    path = "/%sBase/%d" % (member, action)
    status, body = yield from asking(client, "GET", path, None, _MAX_DEPLOYMENT)
    if status in GONE:
        return None
    if status != 200:
        raise SourceError("protocol", "%s%s is answered with %d" % (client.url, path, status))
    try:
        client.offer = client._call("ddi_offer", "read", body, action, member)
    except ReleaseError as error:
        if member == "deployment":
            digest = sha256(b"%d" % action).digest()
            _refuse(client, trial, digest, "action %d" % action, action, error)
            return None
        raise
    return client.offer


def _refuse(client, trial, digest, version, action, why, how=refuse):
    """Note that the action is refused; the next poll reports it."""
    own(client)
    make_trial(trial, KEY, digest, version, action)
    how(trial, why)
    client.offer = None
    client.is_idle = False
    client.code, client.reason = "refused", "%s: %s" % (version, trial.why)


def _deploy(client, trial, is_mine, action):
    """A generator: the server wants something installed."""
    is_it = is_mine and trial.tag == action
    if trial.stage == SWITCHED:  # a trial under way comes to its end first
        _wait_for_boot(client, trial)
        return None
    if is_it and trial.stage in _OVER:  # the server asks once more
        if client.repeated != action:
            client.repeated = action
            yield from _report(client, trial)
            return "again"
        return None
    offer = yield from _reading(client, trial, "deployment", action)
    if not offer:
        return "again"
    if trial.has_failed(offer.sha256):
        why = "it has failed on this board before"
        _refuse(client, trial, offer.sha256, offer.version, action, why, fail)
        return "again"
    if trial.stage == CONFIRMED and trial.digest == offer.sha256 and runs(trial):
        text = "%s runs already" % offer.version
        status = yield from say(client, action, "closed", "success", [text])
        client.offer = None
        client.code, client.reason = "current", text
        return "again" if status == 200 else None
    if offer.update == "skip" and (
        offer.download == "skip" or (is_it and trial.why == _DOWNLOADED)
    ):
        client.code, client.reason = "window", "%s: %s" % (offer.version, _DOWNLOADED)
        return None
    return (yield from _start(client, trial, is_it, offer))


def _start(client, trial, is_it, offer):
    """A generator: begin with the offer, if the app and the board let it."""
    client.is_idle = False
    action = offer.action
    own(client)
    client.is_begun = client.is_begun and is_it
    if not client._call("follow_more", "begin", KEY, action, client.agreed == action):
        if client.code == "declined":
            _refuse(client, trial, offer.sha256, offer.version, action, "the app says no")
        return "again" if client.code in ("declined", "refused") else None
    if client.told != action:
        text = "%s: the download begins" % offer.version
        try:
            status = yield from say(client, action, "proceeding", "none", [text])
        except SourceError as error:  # that it has come too far to be told this is no obstacle
            client.log("%s: %s" % (error.code, error))
            status = None
        if status in GONE:
            return "again"
        client.told = action
    client.code, client.reason = "installing", "%s is being installed" % offer.version
    return "install"


# --- in and after the installation


def reading_again(client):
    """A generator: the offer, as it is now. Raises OTAError."""
    offer = client.offer
    found = yield from _reading(client, load(), "deployment", offer.action)
    client.offer = offer
    if not found or found.sha256 != offer.sha256:
        raise StateError("again", "%s is not wanted any more" % offer.version)
    return found


def downloaded(client):
    """A generator: report that all has come, and is not to be installed now."""
    offer = client.offer
    client.code, client.reason = "window", "%s: %s" % (offer.version, _DOWNLOADED)
    yield from say(client, offer.action, "downloaded", "none", [client.reason])
    wait(load(), _DOWNLOADED)  # after the report, so that a failed one is repeated


def installed(client, is_restart_due):
    """A generator: it is to boot next, or in force already. Restarts, if that is due."""
    action, version = client.offer.action, client.offer.version
    client.is_idle = False
    client._call("follow_more", "end", is_restart_due)
    if is_restart_due:
        text = "%s is installed: restarts now" % version
        try:
            yield from say(client, action, "scheduled", "none", [text])
        except OTAError as error:  # what counts is said after the restart
            client.log("%s: %s" % (error.code, error))
        client._call("follow_more", "restart")
