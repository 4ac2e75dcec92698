"""How what a DDI server offers is installed, and what comes before the switch: see ddi.py.

Loaded for that, and not in memory in between.
"""

from hashlib import sha256
from time import ticks_diff, ticks_ms

from micropython import const

from .base import ReleaseError, StateError
from .ddi import MAX_POLL

_LOOK_AGAIN = const(600)  # seconds for which what the server said holds, where it says nothing
_RELEASES = (".bundle", ".json")


def plan(client):
    """What installs the offer: module, its generator, arguments. That answers if a restart is due.

    What it calls in between is the client's, since that stays in memory.
    """
    offer = client.offer
    request = dict(client.request, origin=client.url)  # which alone is told secrets
    url = offer.url
    if url.split("/")[:3] != client.url.split("/")[:3]:
        client.log("%s is at another server, which is not told the token" % url)
    name = offer.filename
    if name[name.rfind(".") :] in _RELEASES:
        check = client._check if name.endswith(".json") else None
        more = {"check": check, "before_switch": client._looking_again}
        return "release", "installing", (url, request, client.progress), more
    request.update(before_switch=client._looking_again, progress=client.progress)
    digest = offer.sha256.hex() if offer.has_sha256 else ""
    return "update", "_updating", (url, digest, offer.size, True, False, request), {}


def check(client, data):
    """Raises ReleaseError ("pin") unless the manifest is the one that the server names."""
    offer = client.offer
    if len(data) != offer.size or (offer.has_sha256 and sha256(data).digest() != offer.sha256):
        raise ReleaseError("pin", "%s is not what the server says of it" % offer.filename)


def looking_again(client):
    """A generator: all has come: does the server still want it? Raises StateError if not, or later.

    Codes: again (it is cancelled, or another one), window (not now).
    """
    offer = client.offer
    status, _, body = yield from client._exchanging(client.ask, MAX_POLL)
    if status == 200:
        links = client._call("ddi_offer", "read_poll", body)
        if links.get("deploymentBase") != offer.action:
            raise StateError("again", "%s is not wanted any more" % offer.version)
        client.read_at = ticks_ms()
    elif not 0 <= ticks_diff(ticks_ms(), client.read_at) < _LOOK_AGAIN * 1000:
        raise StateError("again", "%s waits: the server does not answer" % offer.version)
    if offer.has_window and offer.update != "skip":
        offer = yield from client._step("ddi_more", "reading_again")
    if offer.update == "skip":
        raise StateError("window", "%s waits until it may be installed" % offer.version)
    client._call("follow_more", "switching")
