"""Reads the manifest of a release: strictly, as it decides what is installed.

What comes out has no methods, which would hold this module: it goes before the release is judged.
The format is described in the desk's ``mpota/formats/manifest.py``.
"""

from micropython import const

from . import __version__
from .base import ReleaseError, is_older

_FORMAT = const(2)
_MAX_SIZE = const(8192)
_MAX_PAYLOADS = const(8)
_MAX_KEYS = const(3)
_MAX_DEPTH = const(6)
_MAX_NUMBER = const(0x7FFFFFFF)
_PIECE = const(4096)
_FRAME = const(4128)  # of a chain: a piece and the link of the next

_KINDS = ("app", "files", "certs", "data")
_CHAINED = {"chained": None, "chained-deflate": "deflate"}
_REQUIRED = object()
_HEX = "0123456789abcdef"
_WORD = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"


class Form:
    """Bytes that give a payload: as they are (``encoding`` None) or encoded.

    ``size`` and ``sha256`` (hex) are those of the bytes as they come; one of ``member`` and
    ``url`` is set. ``base``: SHA-256 of the content that a delta starts from. ``chain``: SHA-256
    (bytes) of the first frame of a chained stream, None for others.
    """


def _form(fields, size, sha256):
    form = Form()
    form.size = size
    form.sha256 = sha256
    form.encoding = form.base = form.chain = None
    form.member = fields.text("member", _WORD, 99, None)
    form.url = fields.text("url", None, 1024, None)
    if (form.member is None) == (form.url is None):
        raise _error("%s must have one of member and url" % fields.what)
    if form.member in ("manifest.json", "manifest.sig"):
        raise _error("%s has the member '%s'" % (fields.what, form.member))
    return form


class Payload:
    """``size`` and ``sha256`` (hex) of the content; ``forms`` in the order of a bundle."""


def _payload(fields, format=1):
    payload = Payload()
    payload.kind = kind = fields.text("kind")
    if kind not in _KINDS:
        raise _error("%s is of kind '%s'" % (fields.what, kind))
    payload.size = fields.number("size", 1)
    payload.sha256 = fields.digest("sha256")
    payload.partition = fields.text("partition", None, 15) if kind == "data" else None
    payload.disk = fields.number("disk", 0, payload.size) if kind == "files" else 0
    payload.forms = []
    for index, item in enumerate(fields.take("encoded", list, ())):
        part = Fields(item, "%s, encoded %d" % (fields.what, index))
        form = _form(part, part.number("size", 1), part.digest("sha256"))
        form.encoding = part.text("encoding", _WORD, 16)
        form.base = part.digest("from", None)
        if format > 1 and kind == "data" and form.encoding in _CHAINED:
            _take_chain(form, part, payload.size)
        part.end()
        payload.forms.append(form)
    if "member" in fields.found or "url" in fields.found:
        payload.forms.append(_form(fields, payload.size, payload.sha256))
    if not payload.forms:
        raise _error("%s has neither member nor url" % fields.what)
    fields.end()
    return payload


def _take_chain(form, part, size):
    """``size``: bytes of the content."""
    form.chain = bytes.fromhex(part.digest("chain"))
    form.encoding = _CHAINED[form.encoding]
    links = form.size // _FRAME
    if not 0 < form.size - links * _FRAME <= _PIECE or (
        form.encoding is None and form.size - links * (_FRAME - _PIECE) != size
    ):
        raise _error("%s has %d bytes, which is no chain" % (part.what, form.size))


class Manifest:
    """A manifest, as `read` returns it. ``forms``: those of all payloads, in a bundle's order."""


def read(data):
    """The Manifest in these bytes.

    Raises ReleaseError ("manifest") for bytes that are none, "format" for one of a later ota.
    """
    manifest = Manifest()
    fields = Fields(parse(data), "manifest")
    manifest.name = manifest.version = manifest.chip = manifest.board = None
    manifest.from_version = manifest.expires = None
    manifest.counter = 0
    manifest.add_keys = manifest.retire_keys = ()
    manifest.allow_downgrade = False
    manifest.mpy = 0
    if all(key in fields.found for key in ("firmware", "sha", "length")):
        _take_simple(manifest, fields)
    else:
        _take(manifest, fields)
    manifest.changes_keys = bool(manifest.add_keys or manifest.retire_keys)
    return manifest


def _take(manifest, fields):
    number = fields.number("format", 1)
    if number > 1:
        _check_format(number, fields)
        manifest.allow_downgrade = fields.take("allow_downgrade", bool, False)
    manifest.name = fields.text("name", _WORD + " ")
    manifest.version = fields.version("version")
    manifest.chip = fields.text("chip", _WORD, 64, None)
    manifest.board = fields.text("board", None, 100, None)
    manifest.from_version = fields.version("from_version", None)
    manifest.counter = fields.number("counter", 0, 0)
    manifest.expires = fields.text("expires", "0123456789-:TZ", 20, None)
    manifest.mpy = fields.number("x-mpy", 0, 0)
    items = fields.take("payloads", list)
    if len(items) > _MAX_PAYLOADS:
        raise _error("manifest has %d payloads, at most %d" % (len(items), _MAX_PAYLOADS))
    manifest.payloads = [
        _payload(Fields(item, "payload %d" % i), number) for i, item in enumerate(items)
    ]
    keys = Fields(fields.take("keys", dict, {}), "keys")
    manifest.add_keys = keys.digests("add")
    manifest.retire_keys = keys.digests("retire")
    keys.end()
    fields.end()
    manifest.forms = [form for payload in manifest.payloads for form in payload.forms]
    _check(manifest)


def _take_simple(manifest, fields):
    """Take the JSON of micropython-esp32-ota, which describes one app."""
    item = {
        "kind": "app",
        "size": fields.number("length", 1),
        "sha256": fields.digest("sha"),
        "url": fields.text("firmware", None, 1024),
    }
    manifest.payloads = [_payload(Fields(item, "manifest"))]
    manifest.forms = manifest.payloads[0].forms


def _check(manifest):
    kinds = [payload.kind for payload in manifest.payloads]
    if not kinds and not manifest.add_keys and not manifest.retire_keys:
        raise _error("manifest has no payloads and changes no keys")
    for kind in ("app", "files", "certs"):
        if kinds.count(kind) > 1:
            raise _error("manifest has %d %s payloads" % (kinds.count(kind), kind))
    if "app" in kinds and manifest.chip is None:
        raise _error("manifest has an app payload and no chip")
    if "data" in kinds and kinds[kinds.index("data") :] != ["data"] * kinds.count("data"):
        raise _error("manifest has a %s payload behind data" % kinds[-1])
    labels = [payload.partition for payload in manifest.payloads if payload.partition]
    members = [form.member for form in manifest.forms if form.member]
    for names, what in ((labels, "partition"), (members, "member")):
        if len(set(names)) < len(names):
            raise _error("manifest names a %s twice" % what)
    if set(manifest.add_keys) & set(manifest.retire_keys):
        raise _error("manifest adds and retires the same key")


def _error(text):
    return ReleaseError("manifest", text)


def _check_format(number, fields):
    """Raises ReleaseError for a manifest that only a later version of this package reads."""
    needs = None
    try:
        needs = fields.version("ota")
    except ReleaseError:
        if number == _FORMAT:
            raise
    if number > _FORMAT or is_older(__version__, needs):
        raise ReleaseError(
            "format",
            "the release (format %d) needs ota %s, this is %s: mpota install PORT"
            % (number, needs or "of a later version", __version__),
        )


class Fields:
    """Takes the fields out of a JSON object one by one; what is left at the end is unknown."""

    def __init__(self, found, what):
        if not isinstance(found, dict):
            raise _error("%s is not a JSON object" % what)
        self.found = found
        self.what = what

    def take(self, key, kind, default=_REQUIRED):
        if key not in self.found:
            if default is _REQUIRED:
                raise _error("%s has no '%s'" % (self.what, key))
            return default
        value = self.found.pop(key)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self._bad(key, value)
        return value

    def _bad(self, key, value):
        return _error("%s has %s '%s', which is not acceptable" % (self.what, key, str(value)[:80]))

    def number(self, key, low, default=_REQUIRED):
        value = self.take(key, int, default)
        if value < low:
            raise self._bad(key, value)
        return value

    def text(self, key, allowed=_WORD, limit=64, default=_REQUIRED):
        """Printable ASCII, of the ``allowed`` characters and not "." or "-" first, if given."""
        value = self.take(key, str, default)
        if value is None:
            return None
        if allowed is None:
            good = all(" " <= c <= "~" for c in value)
        else:
            good = all(c in allowed for c in value) and value[:1] not in ("", ".", "-", "_", " ")
        if not good or not 0 < len(value) <= limit:
            raise self._bad(key, value)
        return value

    def version(self, key, default=_REQUIRED):
        value = self.text(key, _WORD, 72, default)
        if value is not None:
            parts = value.split("-", 1)[0].split(".")
            if len(parts) > 4 or not all(p.isdigit() and len(p) < 10 for p in parts):
                raise self._bad(key, value)
        return value

    def digest(self, key, default=_REQUIRED):
        value = self.text(key, _HEX, 64, default)
        if value is not None and len(value) != 64:
            raise self._bad(key, value)
        return value

    def digests(self, key):
        values = self.take(key, list, [])
        for value in values:
            if not isinstance(value, str) or len(value) != 64 or any(c not in _HEX for c in value):
                raise self._bad(key, value)
        if len(values) > _MAX_KEYS or len(set(values)) < len(values):
            raise self._bad(key, values)
        return values

    def end(self):
        for key in self.found:
            if not key.startswith("x-"):
                raise _error("%s has an unknown field '%s'" % (self.what, key))


# --- JSON. MicroPython's own takes the last of duplicate keys and overlooks missing commas; what
# decides about an update must not be read in two ways.


def parse(data):
    """The value of a JSON text: duplicate keys and numbers other than integers are refused."""
    if len(data) > _MAX_SIZE:
        raise _error("manifest is %d bytes, at most %d" % (len(data), _MAX_SIZE))
    data = bytes(data)
    try:
        str(data, "utf-8")
        value, at = _value(data, _skip(data, 0), 0)
    except IndexError:
        raise _error("manifest is not JSON: it ends too early")
    except UnicodeError:
        raise _error("manifest is not UTF-8")
    at = _skip(data, at)
    if at < len(data):
        raise _bad_json(data, at)
    return value


def _bad_json(data, at):
    return _error("manifest is not JSON: %r at %d" % (chr(data[at]), at))


def _skip(data, at):
    while at < len(data) and data[at] in b" \t\r\n":
        at += 1
    return at


def _expect(data, at, byte):
    if data[at] != byte:
        raise _bad_json(data, at)
    return at + 1


def _value(data, at, depth):
    """(value, where it ends) of what starts at ``at``. IndexError where the text ends too early."""
    first = data[at]
    if first == 0x22:  # "
        return _string(data, at)
    if depth > _MAX_DEPTH:
        raise _error("manifest is nested too deeply")
    if first in b"{[":
        return _container(data, at, depth + 1)
    if first in b"0123456789":
        return _number(data, at)
    for text, value in ((b"true", True), (b"false", False), (b"null", None)):
        if data[at : at + len(text)] == text:
            return value, at + len(text)
    raise _bad_json(data, at)


def _container(data, at, depth):
    is_object = data[at] == 0x7B
    end = data[at] + 2  # } or ]
    found = {} if is_object else []
    at = _skip(data, at + 1)
    while data[at] != end:
        if found:
            at = _skip(data, _expect(data, at, 0x2C))  # ,
        if is_object:
            key, at = _string(data, at)
            if key in found:
                raise _error("manifest has the key '%s' twice" % key)
            at = _skip(data, _expect(data, _skip(data, at), 0x3A))  # :
            found[key], at = _value(data, at, depth)
        else:
            value, at = _value(data, at, depth)
            found.append(value)
        at = _skip(data, at)
    return found, at + 1


def _string(data, at):
    start = at = _expect(data, at, 0x22)
    has_escape = False
    while data[at] != 0x22:
        if data[at] < 0x20:
            raise _bad_json(data, at)
        if data[at] == 0x5C:  # backslash
            has_escape = True
            at += 1
        at += 1
    if has_escape:
        from json import loads

        try:
            return loads(data[start - 1 : at + 1]), at + 1
        except ValueError:
            raise _error("manifest is not JSON: an escape in the text at %d" % start)
    return str(data[start:at], "utf-8"), at + 1


def _number(data, at):
    start = at
    while at < len(data) and data[at] in b"0123456789":
        at += 1
    if data[at : at + 1] in (b".", b"e", b"E"):
        raise _error("manifest has a number that is no integer at %d" % start)
    value = int(data[start:at]) if at - start < 11 else _MAX_NUMBER + 1
    if value > _MAX_NUMBER or (data[start] == 0x30 and at - start > 1):
        raise _error("manifest has a number over %d at %d" % (_MAX_NUMBER, start))
    return value, at
