"""What comes first: the options of a Channel, what NVS has, the request of its polls. Loaded for
that.
"""

import struct
from hashlib import sha256
from time import ticks_add, ticks_ms

from micropython import const

from . import base
from .base import OTAError, SourceError
from .follow import DAY, random
from .twin import recall_twin

KEYS = ("channel-a", "channel-b")  # in NVS: the state
# Format, generation, flags (1: something is waited for), whose it is; serial, digest, issued,
# expires, poll, digest of the key that signed, of the one that signs the fresh file; the entry that
# was first seen (the start of its digest) when the clock said so; then the ETag.
STATE = "<BIB8sI32sIII32s32s8sI"
STATE_SIZE = const(138)
SERIAL = const(14)  # offsets in it
DIGEST = const(18)
ISSUED = const(50)
EXPIRES = const(54)
POLL = const(58)
KEY = const(62)
FRESH_KEY = const(94)
SEEN = const(126)
FORMAT = const(1)
NO_KEY = b"\0" * 32

_DEFAULT_POLL = const(3600)
_MAX_FIRST = const(600)  # seconds within which the first poll comes


def begin(channel, url, name, word, options):
    """Set what a Channel needs. Raises OTAError."""
    if not _has_key():
        raise OTAError(
            "no-key",
            "a channel is only as good as its key, and this board trusts none: mpota install PORT "
            "--key KEY.pub.pem, or ota.keys.add()",
        )
    if "://" not in url or "?" in url or "#" in url:
        raise SourceError("address", "not the URL of a directory: %s" % url)
    channel.name = name
    channel.channel = word
    channel.url = "%s/%s.channel" % (url.rstrip("/"), word)
    channel.may_install = options.pop("may_install", None)
    channel.progress = options.pop("progress", None)
    channel.restart = options.pop("restart", None)
    channel.needs_clock = options.pop("needs_clock", False)
    channel.log = options.pop("log", None) or bool  # bool(text) does nothing
    channel.request = options  # of HttpSource
    channel.failures = 0  # polls that failed, in a row
    channel.fresh = 0  # until when the fresh file says that all is current; seconds since 2000
    channel.read_at = None  # ticks_ms() of the last answer
    channel.refused = b""  # the manifest that the app does not want
    channel.is_begun = False  # an installation, since the start: a fault of the network is no end
    channel.faults = (b"", 0)  # the manifest that failed last, and how often it has
    channel.is_known = False  # what the file offers was read since the start
    channel.is_idle = False  # whether there is nothing to do but ask if anything has changed
    channel.answer = channel.ask = channel.context = None  # see `_asking`; of TLS
    channel.state = state = recall_twin(KEYS)
    tag = None
    if not is_mine(state, name, word):
        channel.state = b""
    elif state[FRESH_KEY:SEEN] == NO_KEY:  # of a fresh file it is not stored
        tag = str(state[STATE_SIZE:], "ascii") or None
    channel.poll_s = number(channel.state, POLL) if channel.state else _DEFAULT_POLL
    try:
        set_ask(channel, tag)
    except SourceError:  # the first poll meets it as well
        channel.ask = None
    if channel.ask and not state[5] & 1:
        channel.is_idle = True
        channel.code, channel.reason = "current", "nothing new is known"
    channel.due = ticks_add(ticks_ms(), _first_pause(channel) * 1000)
    channel.full_due = ticks_add(ticks_ms(), (DAY - random(DAY // 4)) * 1000)


def _first_pause(channel):
    from machine import DEEPSLEEP_RESET, reset_cause

    if reset_cause() == DEEPSLEEP_RESET:
        return 0
    return random(min(channel.poll_s, _MAX_FIRST))


def is_mine(state, name, word):
    """Whether this is the state of that channel of that product."""
    return len(state) >= STATE_SIZE and state[0] == FORMAT and state[6:SERIAL] == whose(name, word)


def whose(name, word):
    return sha256(("%s/%s" % (name, word)).encode()).digest()[:8]


def number(state, at):
    return struct.unpack_from("<I", state, at)[0]


def _has_key():
    """Whether a key is trusted: keys.py has the layout, and is not loaded for this."""
    for name in base.TRUST:
        data = base.recall(name, 256) or base.recall(name, 1265)
        if len(data) > 6:
            return data[5] > 0
    return False


# --- the request


def file_url(channel):
    """The URL that polls ask for: the fresh file if the channel has one, else the channel file."""
    if channel.state and channel.state[FRESH_KEY:SEEN] != NO_KEY:
        return channel.url[:-8] + ".fresh"
    return channel.url


def set_ask(channel, tag):
    """The request by which polls ask whether there is another file than that with this ETag.

    http_connect.py makes requests as well: that would take 5 KiB more of the heap here.

    None is sent where there is no ETag, or for what only the HTTP client of the core understands.
    Raises SourceError for certificates that cannot be had.
    """
    channel.ask = None
    scheme, _, rest = file_url(channel).partition("://")
    place, slash, path = rest.partition("/")
    host, _, port = place.partition(":")
    is_tls = scheme.lower() == "https"
    if not tag or not host or "@" in place or "[" in place:
        return
    if not all("!" <= c <= "~" for c in rest):  # http_connect.py escapes a blank, an umlaut
        return
    if is_tls and not channel.context:
        channel.context = channel._call("follow_more", "make_context")
    head = "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n" % (slash + path, place)
    headers = {"User-Agent": "ota (MicroPython)", "If-None-Match": tag}
    headers.update(channel.request.get("headers") or {})
    auth = channel.request.get("auth")
    if auth:
        if not isinstance(auth, str):
            from binascii import b2a_base64

            auth = "Basic " + str(b2a_base64(("%s:%s" % tuple(auth)).encode()).strip(), "ascii")
        else:
            auth = "Bearer " + auth
        headers["Authorization"] = auth
    head += "".join(["%s: %s\r\n" % item for item in headers.items()])
    if head.count("\r") != len(headers) + 3 or head.count("\n") != len(headers) + 3:
        return  # which it refuses
    channel.ask = (
        is_tls,
        host,
        int(port or (443 if is_tls else 80)),
        channel.request.get("server_name") or host,
        head.encode() + b"\r\n",
    )
