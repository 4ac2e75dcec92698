"""How a DDI client begins, and makes its requests: see ddi.py. Loaded for that."""

from json import dumps
from time import ticks_add, ticks_ms

from micropython import const

from .base import OTAError, SourceError, recall
from .follow import random
from .twin import TRIAL, recall_twin

_MAX_ID = const(128)
_DEFAULT_POLL = const(300)
_MAX_FIRST = const(60)  # seconds within which the first poll comes
_STAGE, _TOLD = const(5), const(8)  # in the record of a trial: trial.py, _HEAD
_PLACE = "ddi-place"  # in NVS
_MAX_PLACE = const(512)
_SAFE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~:"


def begin(client, url, tenant, id, token, gateway_token, options):
    """Set what a Client needs. Raises OTAError."""
    # Without trial.py: whether something is still to be said, of whomever. It finds out more then.
    trial = recall_twin(TRIAL)
    client.is_idle = len(trial) <= _TOLD or not trial[_STAGE] or bool(trial[_TOLD])
    trial = None
    if not url:
        url, tenant, id, token = _told()
    if token and gateway_token:
        raise OTAError("token", "a board has a token of its own, or that of a gateway: not both")
    if not 0 < len(id) <= _MAX_ID:
        raise SourceError("address", "an id has 1 to %d characters: %r" % (_MAX_ID, id))
    client.url = "%s/%s/controller/v1/%s" % (url.rstrip("/"), _quote(tenant), _quote(id))
    for name in ("may_install", "progress", "restart", "attributes"):
        setattr(client, name, options.pop(name, None))
    client.log = options.pop("log", None) or bool  # which says nothing
    client.headers = dict(options.pop("headers", None) or {})
    if token or gateway_token:
        client.headers["Authorization"] = (
            "TargetToken %s" % token if token else "GatewayToken %s" % gateway_token
        )
    # Of all of a file as of a part of it: a server that counts downloads counts no parts.
    options["headers"] = dict(client.headers, Range="bytes=0-")
    client.request = options  # of HttpSource
    client.failures = 0  # polls that failed, in a row
    client.faults = (b"", 0)  # the artifact that failed last, and how often it has
    client.refused = b""  # the artifact that the app does not want
    client.is_begun = False  # an installation, since the start
    # The actions of which something was said since the start, and with which it agreed.
    client.told = client.repeated = client.denied = client.agreed = None
    client.poll_s = _DEFAULT_POLL
    client.read_at = None  # ticks_ms() of the last answer
    _set_where(client)
    client.due = ticks_add(ticks_ms(), _first_pause(client) * 1000)


def _told():
    """URL, tenant, id and token, as the desk has stored them (mpota.push.enrol)."""
    told = bytes(recall(_PLACE, _MAX_PLACE)).split(b"\0")
    if len(told) != 4:
        raise SourceError("address", "no server is given, nor has mpota fleet add told of one")
    return [str(text, "utf-8") for text in told]


def _quote(text):
    return "".join([chr(c) if chr(c) in _SAFE else "%%%02X" % c for c in text.encode()])


def _first_pause(client):
    from machine import DEEPSLEEP_RESET, reset_cause

    if reset_cause() == DEEPSLEEP_RESET or not client.is_idle:
        return 0
    return random(_MAX_FIRST)


def _set_where(client):
    """Where requests go. (http_connect.py knows as much: it would take 4 KiB more of the heap.)"""
    scheme, _, rest = client.url.partition("://")
    place, slash, path = rest.partition("/")
    host, _, port = place.partition(":")
    if place[:1] == "[":  # IPv6
        host, _, port = place[1:].partition("]")
        port = port[1:]
    scheme = scheme.lower()
    is_tls = scheme == "https"
    port = port or ("443" if is_tls else "80")
    if (
        scheme not in ("http", "https")
        or not host
        or "@" in place
        or not all("!" <= c <= "~" for c in rest)
        or any(c in rest for c in "?#")
        or not port.isdigit()
        or not 0 < int(port[:6]) < 65536
    ):
        raise SourceError("address", "not the http:// or https:// URL of a server: %s" % client.url)
    client.place, client.path = place, slash + path
    client.where = is_tls, host, int(port), client.request.get("server_name") or host
    client.context = client._call("follow_more", "make_context") if is_tls else None
    client.ask = make_ask(client, "GET", "")


def make_ask(client, method, path, body=None):
    """A request for `_exchanging`; ``path``: below the device's own."""
    lines = [
        "%s %s%s HTTP/1.1" % (method, client.path, path),
        "Host: " + client.place,
        "Connection: close",
        "Accept: application/json",
    ]
    headers = {"User-Agent": "ota (MicroPython)"}
    headers.update(client.headers)
    data = b""
    if body is not None:
        data = dumps(body).encode()
        headers["Content-Type"] = "application/json"
        headers["Content-Length"] = str(len(data))
    lines += ["%s: %s" % item for item in headers.items()]
    head = "\r\n".join(lines)
    if head.count("\r") != len(lines) - 1 or head.count("\n") != len(lines) - 1:
        raise SourceError("address", "a line break in the URL, the token or a header")
    data = head.encode() + b"\r\n\r\n" + data
    return client.where + (data,)  # noqa: RUF005 - MicroPython has it only so
