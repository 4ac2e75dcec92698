"""Reads from an X.509 certificate (RFC 5280) what a person needs to know of it."""

from micropython import const

_SEQUENCE = const(0x30)
_SET = const(0x31)
_OID = const(0x06)
_UTC_TIME = const(0x17)
_CONTEXT_0 = const(0xA0)
_EXTENSIONS = const(0xA3)
_DNS_NAME = const(0x82)
_IP_ADDRESS = const(0x87)

# Common name, organization, unit: those that tell one authority from another.
_ATTRIBUTES = ((b"\x55\x04\x03", "CN"), (b"\x55\x04\x0a", "O"), (b"\x55\x04\x0b", "OU"))
_ALT_NAME = b"\x55\x1d\x11"  # subjectAltName
_MAX_TEXT = const(64)
_MAX_NAMES = const(8)


class Certificate:
    """``issuer`` and ``subject`` as text ("CN=..., O=..."), ``not_before`` and ``not_after`` as ISO
    dates, ``names``: the hosts that it is for. Raises ValueError if ``der`` is no certificate.
    """

    def __init__(self, der):
        view = memoryview(der)
        (_, certificate), *_ = _items(view)
        (_, body), *_ = _items(certificate)
        fields = list(_items(body))
        if fields[0][0] == _CONTEXT_0:  # the version
            fields.pop(0)
        try:
            _, _, issuer, validity, subject = fields[:5]
        except ValueError:
            raise ValueError("not a certificate")
        self.issuer = _name(issuer[1])
        self.subject = _name(subject[1])
        self.not_before, self.not_after = [_date(*item) for item in _items(validity[1])]
        self.names = []
        for tag, value in fields[5:]:
            if tag == _EXTENSIONS:
                self._read_extensions(value)

    def _read_extensions(self, value):
        for _, extensions in _items(value):
            for _, extension in _items(extensions):
                parts = list(_items(extension))
                if bytes(parts[0][1]) == _ALT_NAME:
                    for _, names in _items(parts[-1][1]):
                        self.names = [_host(*name) for name in _items(names)][:_MAX_NAMES]


def _items(view):
    """(tag, content) of each of the DER values that follow each other in ``view``."""
    at = 0
    while at < len(view):
        if at + 2 > len(view):
            raise ValueError("DER is cut off")
        tag, size = view[at], view[at + 1]
        at += 2
        if size & 0x80:
            count = size & 0x7F
            if not 1 <= count <= 3 or at + count > len(view):
                raise ValueError("DER has a bad length")
            size = int.from_bytes(view[at : at + count], "big")
            at += count
        if at + size > len(view):
            raise ValueError("DER is cut off")
        yield tag, view[at : at + size]
        at += size


def _name(view):
    """A distinguished name as text."""
    found = {}
    for _, relative in _items(view):
        for _, attribute in _items(relative):
            (_, oid), (_, value) = _items(attribute)
            found[bytes(oid)] = _text(value)
    parts = ["%s=%s" % (label, found[oid]) for oid, label in _ATTRIBUTES if oid in found]
    return ", ".join(parts) or "one without a name"


def _text(value):
    """What a certificate says of itself, with nothing in it that a terminal would act on."""
    return "".join([chr(c) if 32 <= c < 127 else "?" for c in bytes(value[:_MAX_TEXT])])


def _host(tag, value):
    if tag == _IP_ADDRESS and len(value) == 4:
        return ".".join([str(byte) for byte in value])
    return _text(value) if tag == _DNS_NAME else "?"


def _date(tag, value):
    text = _text(value)
    if tag == _UTC_TIME:  # two digits of the year: 1950 to 2049
        text = ("20" if text[:2] < "50" else "19") + text
    return "%s-%s-%s" % (text[:4], text[4:6], text[6:8])
