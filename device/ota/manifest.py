"""The manifest of a release: strict JSON, and the fields that a board acts on.

The format is described in the desk's ``mpota/formats/manifest.py``. MicroPython's own json takes
the last of duplicate keys and overlooks missing commas; what decides about an update must not be
read in two ways, so it is parsed here.
"""

from micropython import const

from .errors import ReleaseError

FORMAT = const(1)
MAX_SIZE = const(8192)
MAX_PAYLOADS = const(8)
MAX_KEYS = const(3)

_MAX_DEPTH = const(6)
_MAX_NUMBER = const(0x7FFFFFFF)
_MAX_DIGITS = const(10)
_KINDS = ("app", "files", "certs", "data")
_REQUIRED = object()
_HEX = "0123456789abcdef"
_WORD = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"


class Form:
    """Bytes that give a payload: as they are (``encoding`` None) or encoded.

    ``size`` and ``sha256`` (hex) are those of the bytes as they come; one of ``member`` and
    ``url`` is set. ``base``: SHA-256 of the content that a delta starts from.
    """

    def __init__(self, fields, size, sha256):
        self.size = size
        self.sha256 = sha256
        self.encoding = self.base = None
        self.member = fields.text("member", _WORD, 99, None)
        self.url = fields.text("url", None, 1024, None)
        if (self.member is None) == (self.url is None):
            raise _error("%s must have one of member and url" % fields.what)
        if self.member in ("manifest.json", "manifest.sig"):
            raise _error("%s has the member '%s'" % (fields.what, self.member))


class Payload:
    """``size`` and ``sha256`` (hex) of the content; ``forms`` in the order of a bundle."""

    def __init__(self, fields):
        self.kind = fields.text("kind")
        if self.kind not in _KINDS:
            raise _error("%s is of kind '%s'" % (fields.what, self.kind))
        self.size = fields.number("size", 1)
        self.sha256 = fields.digest("sha256")
        self.partition = fields.text("partition", None, 15) if self.kind == "data" else None
        self.disk = fields.number("disk", 0, self.size) if self.kind == "files" else 0
        self.forms = []
        for index, item in enumerate(fields.take("encoded", list, ())):
            part = _Fields(item, "%s, encoded %d" % (fields.what, index))
            form = Form(part, part.number("size", 1), part.digest("sha256"))
            form.encoding = part.text("encoding", _WORD, 16)
            form.base = part.digest("from", None)
            part.end()
            self.forms.append(form)
        if fields.has("member") or fields.has("url"):
            self.forms.append(Form(fields, self.size, self.sha256))
        if not self.forms:
            raise _error("%s has neither member nor url" % fields.what)
        fields.end()


class Manifest:
    """Raises ReleaseError ("manifest") for bytes that are no manifest of this format."""

    def __init__(self, data):
        fields = _Fields(parse(data), "manifest")
        if fields.has("firmware") and fields.has("sha") and fields.has("length"):
            self._take_simple(fields)
            return
        number = fields.number("format", 0)
        if number != FORMAT:
            raise _error("manifest has format %d, known is %d" % (number, FORMAT))
        self.name = fields.text("name", _WORD + " ")
        self.version = fields.version("version")
        self.chip = fields.text("chip", _WORD, 64, None)
        self.board = fields.text("board", None, 100, None)
        self.from_version = fields.version("from_version", None)
        self.counter = fields.number("counter", 0, 0)
        self.expires = _check_time(fields.text("expires", "0123456789-:TZ", 20, None))
        items = fields.take("payloads", list)
        if len(items) > MAX_PAYLOADS:
            raise _error("manifest has %d payloads, at most %d" % (len(items), MAX_PAYLOADS))
        self.payloads = [Payload(_Fields(item, "payload %d" % i)) for i, item in enumerate(items)]
        keys = _Fields(fields.take("keys", dict, {}), "keys")
        self.add_keys = keys.digests("add")
        self.retire_keys = keys.digests("retire")
        keys.end()
        fields.end()
        self._check()

    def _take_simple(self, fields):
        """The JSON of micropython-esp32-ota: one app."""
        self.name = self.version = self.chip = self.board = None
        self.from_version = self.expires = None
        self.counter = 0
        self.add_keys = self.retire_keys = ()
        item = {
            "kind": "app",
            "size": fields.number("length", 1),
            "sha256": fields.digest("sha"),
            "url": fields.text("firmware", None, 1024),
        }
        self.payloads = [Payload(_Fields(item, "manifest"))]

    def _check(self):
        kinds = [payload.kind for payload in self.payloads]
        if not kinds and not self.add_keys and not self.retire_keys:
            raise _error("manifest has no payloads and changes no keys")
        for kind in ("app", "files", "certs"):
            if kinds.count(kind) > 1:
                raise _error("manifest has %d %s payloads" % (kinds.count(kind), kind))
        if "app" in kinds and self.chip is None:
            raise _error("manifest has an app payload and no chip")
        if "data" in kinds and kinds[kinds.index("data") :] != ["data"] * kinds.count("data"):
            raise _error("manifest has a %s payload behind data" % kinds[-1])
        labels = [payload.partition for payload in self.payloads if payload.partition]
        members = [form.member for form in self.forms() if form.member]
        for names, what in ((labels, "partition"), (members, "member")):
            if len(set(names)) < len(names):
                raise _error("manifest names a %s twice" % what)
        if set(self.add_keys) & set(self.retire_keys):
            raise _error("manifest adds and retires the same key")

    def forms(self):
        """All forms of all payloads, in the order in which they stand in a bundle."""
        return [form for payload in self.payloads for form in payload.forms]


def version_key(version):
    """Sorts versions: numbers as numbers, 2.1 as 2.1.0.0, 2.1.0-rc1 before 2.1.0."""
    numbers, _, suffix = version.partition("-")
    parts = [int(number) for number in numbers.split(".")]
    return tuple(parts + [0] * (4 - len(parts))), not suffix, suffix


def _error(text):
    return ReleaseError("manifest", text)


def _check_time(text):
    """None, or a time with all of its places, so that it compares as text."""
    if text is not None:
        shape = "".join(["0" if c.isdigit() else c for c in text])
        if shape != "0000-00-00T00:00:00Z":
            raise _error("manifest has expires '%s', not 2027-01-31T00:00:00Z" % text)
    return text


class _Fields:
    """Takes the fields out of a JSON object one by one; what is left at the end is unknown."""

    def __init__(self, found, what):
        if not isinstance(found, dict):
            raise _error("%s is not a JSON object" % what)
        self._found = found
        self.what = what

    def has(self, key):
        return key in self._found

    def take(self, key, kind, default=_REQUIRED):
        if key not in self._found:
            if default is _REQUIRED:
                raise _error("%s has no '%s'" % (self.what, key))
            return default
        value = self._found.pop(key)
        if not isinstance(value, kind) or isinstance(value, bool):
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
        values = self.take(key, list, ())
        for value in values:
            if not isinstance(value, str) or len(value) != 64 or any(c not in _HEX for c in value):
                raise self._bad(key, value)
        if len(values) > MAX_KEYS or len(set(values)) < len(values):
            raise self._bad(key, values)
        return values

    def end(self):
        for key in self._found:
            if not key.startswith("x-"):
                raise _error("%s has an unknown field '%s'" % (self.what, key))


# --- JSON


def parse(data):
    """The value of a JSON text: duplicate keys and numbers other than integers are refused."""
    if len(data) > MAX_SIZE:
        raise _error("manifest is %d bytes, at most %d" % (len(data), MAX_SIZE))
    data = bytes(data)
    try:
        str(data, "utf-8")
    except ValueError:
        raise _error("manifest is not UTF-8")
    try:
        value, at = _value(data, _skip(data, 0), 0)
        if _skip(data, at) == len(data):
            return value
    except IndexError:
        raise _error("manifest is not JSON: it ends too early")
    raise _error("manifest is not JSON: more at %d" % at)


def _skip(data, at):
    while at < len(data) and data[at] in b" \t\r\n":
        at += 1
    return at


def _value(data, at, depth):
    """(value, where it ends) of what starts at ``at``. IndexError where the text ends too early."""
    first = data[at]
    if first == 0x22:  # "
        return _string(data, at)
    if depth > _MAX_DEPTH:
        raise _error("manifest is nested too deeply")
    if first == 0x7B:  # {
        return _object(data, at, depth)
    if first == 0x5B:  # [
        return _array(data, at, depth)
    if 0x30 <= first <= 0x39:
        return _number(data, at)
    for text, value in ((b"true", True), (b"false", False), (b"null", None)):
        if data[at : at + len(text)] == text:
            return value, at + len(text)
    raise _error("manifest is not JSON: %r at %d" % (chr(first), at))


def _object(data, at, depth):
    found = {}
    at = _skip(data, at + 1)
    while data[at] != 0x7D:  # }
        if found:
            at = _skip(data, _expect(data, at, 0x2C))  # ,
        key, at = _string(data, at)
        if key in found:
            raise _error("manifest has the key '%s' twice" % key)
        at = _skip(data, _expect(data, _skip(data, at), 0x3A))  # :
        found[key], at = _value(data, at, depth + 1)
        at = _skip(data, at)
    return found, at + 1


def _array(data, at, depth):
    found = []
    at = _skip(data, at + 1)
    while data[at] != 0x5D:  # ]
        if found:
            at = _skip(data, _expect(data, at, 0x2C))
        value, at = _value(data, at, depth + 1)
        found.append(value)
        at = _skip(data, at)
    return found, at + 1


def _expect(data, at, byte):
    if data[at] != byte:
        raise _error("manifest is not JSON: %r at %d, not %r" % (chr(data[at]), at, chr(byte)))
    return at + 1


def _string(data, at):
    start = _expect(data, at, 0x22)
    at = start
    has_escape = False
    while data[at] != 0x22:
        if data[at] < 0x20:
            raise _error("manifest is not JSON: a control character at %d" % at)
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
    while at < len(data) and 0x30 <= data[at] <= 0x39:
        at += 1
    if data[at : at + 1] in (b".", b"e", b"E"):
        raise _error("manifest has a number that is no integer at %d" % start)
    if at - start > _MAX_DIGITS or (data[start] == 0x30 and at - start > 1):
        raise _error("manifest has a number that is too long at %d" % start)
    value = int(str(data[start:at], "ascii"))
    if value > _MAX_NUMBER:
        raise _error("manifest has the number %d, at most %d" % (value, _MAX_NUMBER))
    return value, at
