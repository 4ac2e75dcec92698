"""For ota.mqtt.Updates without a channel: the release of one manifest.

    source = ota.mqtt_manifest.Manifest("https://files.example.org/pump/manifest.json", name="pump")
    updates = ota.mqtt.Updates(client.publish, source, name="Pump")

It is followed as a channel is (channel.py), but for shares, turns and pauses: whoever writes the
manifest, and its signature beside it (manifest.sig), says which release all boards may take.
"""

from hashlib import sha256
from time import ticks_ms

from micropython import const

from . import base
from .base import ReleaseError, SourceError
from .channel import Channel

_MAX_MANIFEST = const(8192)


class Manifest(Channel):
    """The release of the manifest at ``url``, for the product ``name``.

    ``options`` are those of a Channel. It is of interest if its counter is above that of the
    release confirmed last. Raises OTAError ("no-key", "address").
    """

    def __init__(self, url, name, **options):
        if url[-5:] != ".json":
            raise SourceError("address", "not the URL of a manifest, NAME.json: %s" % url)
        super().__init__(url.rpartition("/")[0], name, "", **options)
        self.url = url

    def _step(self, module, function, *args):
        if function == "checking":
            module, function, args = "mqtt_manifest", "looking", ()
        return super()._step(module, function, *args)


class _Offer:
    share = 10000
    serial = begins = delay = seen = 0


def looking(source):
    """A generator: read the manifest, and judge whether it is of interest. Raises OTAError."""
    try:
        data = yield from _reading(source)
        offer, code, reason = _decide(source, data)
    except MemoryError as error:
        raise base.no_memory(error, source.url)
    source.offer, source.code, source.reason = offer, code, reason
    source.is_known = True
    source.read_at = ticks_ms()


def _reading(source):
    """A generator: the manifest, which a trusted key has signed."""
    data, _ = yield from source._step("channel_more", "fetching", source.url, _MAX_MANIFEST)
    from .release import _reading_signature as reading

    options = dict(source.request)
    options["origin"] = source.url
    sector = yield from reading(source.url[:-5] + ".sig", options)
    reading = None
    base.unload("release", "tar")
    from .keys import check_manifest, load

    check_manifest(data, sector, load())
    return data


def _decide(source, data):
    """(offer or None, code, reason)."""
    from .keys import load

    counter = load().counter
    load = None
    base.unload("keys")
    from .manifest import read

    manifest = read(data)
    if manifest.name != source.name:
        raise ReleaseError(
            "wrong-name",
            "the manifest is of '%s', this board follows '%s'" % (manifest.name, source.name),
        )
    offer = _Offer()
    offer.version, offer.counter = manifest.version, manifest.counter
    manifest = read = None
    base.unload("manifest")
    offer.url, offer.size, offer.sha256 = source.url, len(data), sha256(data).digest()
    from .trial import REFUSED
    from .trial import load as load_trial

    trial = load_trial()
    if offer.counter <= counter:
        code, text = "current", "is the newest for this board"
    elif trial.has_failed(offer.sha256):
        code, text = "failed", "has failed on this board"
    elif trial.stage == REFUSED and trial.digest == offer.sha256:
        code, text = "refused", "cannot be installed: " + trial.why
    elif offer.sha256 == source.refused:
        code, text = "declined", "is not wanted by the app"
    else:
        return offer, "", "%s may be installed" % offer.version
    return None, code, "%s %s" % (offer.version, text)
