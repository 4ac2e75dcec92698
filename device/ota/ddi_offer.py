"""Reads what a DDI server says, which may be anything, and tells it what this board is.

Loaded for that, and let go of: see ddi.py.
"""

import os
import sys
from hashlib import sha256
from json import loads

from micropython import const

from .base import ReleaseError, SourceError
from .pump import LIMIT

_MAX_DEPTH = const(10)
_MAX_ARTIFACTS = const(64)
_MAX_NAME = const(128)
_MAX_URL = const(1024)
_MAX_VALUE = const(128)  # characters of an attribute
_DIGITS = const(9)  # of an action: the trial has 32 bits for it
_HANDLING = ("forced", "attempt", "skip")


class Offer:
    """What the server wants installed: see ddi.Client."""


# --- what it says


def parse(client, data):
    """The dict in a JSON text. Raises SourceError ("protocol")."""
    depth = 0
    is_text = is_escaped = False
    for byte in data:
        if is_text:
            is_text = is_escaped or byte != 0x22
            is_escaped = byte == 0x5C and not is_escaped
        elif byte == 0x22:  # "
            is_text, is_escaped = True, False
        elif byte in b"{[":
            depth += 1
            if depth > _MAX_DEPTH:
                raise _broken(client, "JSON of more than %d levels" % _MAX_DEPTH)
        elif byte in b"}]":
            depth -= 1
    try:
        found = loads(bytes(data))
    except (ValueError, RuntimeError):
        found = None
    except MemoryError:
        raise _broken(client, "JSON that takes too much memory: %d bytes" % len(data))
    if not isinstance(found, dict):
        raise _broken(client, "no JSON object: %r" % bytes(data[:32]))
    return found


def _broken(client, what):
    return SourceError("protocol", "%s sent %s" % (client.url, what))


def read_poll(client, data):
    """The links in the answer to a poll: name -> the action; None, where it needs none."""
    found = parse(client, data)
    sleep = _dict(_dict(found.get("config")).get("polling")).get("sleep")
    if isinstance(sleep, str):
        client._set_sleep(sleep)
    links = {}
    for name, link in _dict(found.get("_links")).items():
        href = _dict(link).get("href")
        if name == "configData":
            links[name] = None
        elif name in ("deploymentBase", "cancelAction", "confirmationBase"):
            links[name] = _action(client, href, name)
    return links


def _dict(value):
    return value if isinstance(value, dict) else {}


def _action(client, href, name):
    """The action's number in a link, whose host is not believed: the server is known already."""
    text = href if isinstance(href, str) else ""
    number = text.partition("?")[0].rpartition("/%s/" % name)[2]
    if not number.isdigit() or len(number) > _DIGITS:
        raise _broken(client, "a link to %s without the number of an action: %r" % (name, text))
    return int(number)


def read(client, data, action, member):
    """The Offer in a deployment. Raises SourceError, or ReleaseError ("artifact")."""
    what = parse(client, data).get(member)
    chunks = _dict(what).get("chunks")
    if not isinstance(chunks, list):
        raise _broken(client, "a deployment without chunks")
    found = []
    for chunk in chunks:
        artifacts = _dict(chunk).get("artifacts")
        for artifact in artifacts if isinstance(artifacts, list) else ():
            found.append((chunk, _dict(artifact)))
    if len(found) > _MAX_ARTIFACTS:
        raise ReleaseError("artifact", "%d artifacts, at most %d" % (len(found), _MAX_ARTIFACTS))
    chunk, artifact = _choose(found)
    offer = _make_offer(client, artifact, action)
    offer.version = _text(chunk.get("version"), 64) or offer.filename
    offer.name = _text(chunk.get("name"), 64)
    offer.download, offer.update = [
        what.get(key) if what.get(key) in _HANDLING else "attempt" for key in ("download", "update")
    ]
    offer.has_window = "maintenanceWindow" in what
    offer.is_forced = offer.update == "forced"
    return offer


def _choose(found):
    """The artifact to install: the manifest, else the bundle, else the only file."""
    for end in (".json", ".bundle", ""):
        those = [one for one in found if str(one[1].get("filename")).endswith(end)]
        if len(those) == 1:
            return those[0]
        if those:
            break
    raise ReleaseError(
        "artifact",
        "%d artifacts: one bundle, one manifest with its payloads, or one app image is due"
        % len(found),
    )


def _make_offer(client, artifact, action):
    offer = Offer()
    offer.action = action
    offer.needs_consent = False
    offer.filename = _text(artifact.get("filename"), _MAX_NAME)
    offer.size = size = artifact.get("size")
    links = _dict(artifact.get("_links"))
    href = _dict(links.get("download") or links.get("download-http")).get("href")
    if not offer.filename or type(size) is not int or not 0 < size <= LIMIT:
        raise ReleaseError("artifact", "an artifact without a name, or of size %r" % (size,))
    if not isinstance(href, str) or len(href) > _MAX_URL:
        raise ReleaseError("artifact", "%s has no link to download it by" % offer.filename)
    offer.url = _place(client, href)
    hashes = _dict(artifact.get("hashes"))
    offer.has_sha256 = True
    try:
        offer.sha256 = bytes.fromhex(hashes.get("sha256"))
        if len(offer.sha256) != 32:
            raise ValueError
    except (ValueError, TypeError):  # a server that has others: they tell files apart
        offer.has_sha256 = False
        others = (offer.filename, size, hashes.get("sha1"), hashes.get("md5"))
        offer.sha256 = sha256(repr(others).encode()).digest()
    return offer


def _place(client, href):
    """The URL of a download. What the server has itself is fetched where the client found it.

    A server behind a proxy may not know how it is reached.
    """
    own = client.path[client.path.rfind("/controller/v1/") :] + "/softwaremodules/"
    at = href.find(own)
    return client.url + href[at + len(own) - len("/softwaremodules/") :] if at > 0 else href


def _text(value, limit):
    """``value`` if it is a text that can be shown, else ""."""
    if not isinstance(value, str):
        return ""
    return "".join([c if " " <= c <= "~" else "?" for c in value[:limit]])


# --- what is said of the board


def attributes(client):
    """The attributes of this board for the server: str -> str."""
    from esp32 import Partition

    from . import __version__
    from .chips import running_chip
    from .otadata import has_home

    release = {}
    if has_home():
        from .boot import running

        release = running()
    space = os.statvfs("/")
    found = {
        "release": release.get("name", ""),
        "version": release.get("version", ""),
        "micropython": ".".join([str(part) for part in sys.implementation.version[:3]]),
        "machine": sys.implementation._machine,
        "chip": running_chip(),
        "slot": Partition(Partition.RUNNING).info()[4],
        "free_space": space[0] * space[3],
        "ota": __version__,
    }
    more = client.attributes
    found.update(more() if callable(more) else more or {})
    return {str(key)[:_MAX_VALUE]: str(value)[:_MAX_VALUE] for key, value in found.items()}
