"""Installs what a DDI server offers, and asks once more before the switch: see ddi.py.

Loaded for that, and let go of.
"""

from hashlib import sha256
from time import ticks_diff, ticks_ms

from micropython import const

from .base import ReleaseError, StateError
from .ddi import MAX_POLL

_LOOK_AGAIN = const(600)  # seconds for which what the server said holds, where it says nothing
_RELEASES = (".bundle", ".json")


def installing(client):
    """A generator: install the offer; whether a restart is due. Raises OTAError."""
    offer = client.offer
    request = dict(client.request, origin=client.url)  # which alone is told secrets
    url = offer.url
    if url.split("/")[:3] != client.url.split("/")[:3]:
        client.log("%s is at another server, which is not told the token" % url)

    def before_switch():
        return _looking_again(client, offer)

    if offer.filename[offer.filename.rfind(".") :] in _RELEASES:
        from .release import installing as steps

        check = None
        if offer.filename.endswith(".json"):
            check = lambda data, entry=None: _check(offer, data)  # noqa: E731 - smaller so
        return (
            yield from steps(
                url, request, client.progress, check=check, before_switch=before_switch
            )
        )
    from .update import _updating as steps

    request.update(before_switch=before_switch, progress=client.progress)
    digest = offer.sha256.hex() if offer.has_sha256 else ""
    yield from steps(url, digest, offer.size, True, False, request)
    return True


def _check(offer, data):
    """Raises ReleaseError ("pin") unless the manifest is the one that the server names."""
    if data is None:
        return
    if len(data) != offer.size or (offer.has_sha256 and sha256(data).digest() != offer.sha256):
        raise ReleaseError("pin", "%s is not what the server says of it" % offer.filename)


def _looking_again(client, offer):
    """A generator: all has come: does the server still want it? Raises StateError if not, or later.

    Codes: again (it is cancelled, or another one), window (not now).
    """
    status, _, body = yield from client._asking(client.ask, MAX_POLL)
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
