"""TLS: which certificates are trusted, and what is wrong with one that is not.

MicroPython's ``tls`` module verifies in C (extmod/modtls_mbedtls.c): the chain up to a root that is
known here, the host name, and the dates by the board's clock.
"""

import errno
from binascii import a2b_base64
from time import gmtime

from micropython import const

from .base import SourceError

_BEGIN = b"-----BEGIN CERTIFICATE-----"
_END = b"-----END CERTIFICATE-----"
_MAX_CERTIFICATE = const(16384)
# MBEDTLS_ERR_X509_CERT_VERIFY_FAILED, MBEDTLS_ERR_SSL_CA_CHAIN_REQUIRED
_REFUSED = (-0x2700, -0x7680)
_CLOCK_SET = const(2025)  # an earlier year means that the clock was never set (ESP32: 2000)
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


class Trust:
    """Whom to believe.

    ``cadata``: root certificates, DER (one) or PEM (any number), as bytes or str; ``cafile``: a
    file with such; without both, those that came with the release that runs (files.py).
    ``server_name``: the name to ask for and to expect, if it is not the URL's host.
    ``insecure_tls``: encrypt, and verify nothing.
    """

    def __init__(self, cafile=None, cadata=None, server_name=None, insecure_tls=False):
        self._cafile = cafile
        self._cadata = cadata
        self._server_name = server_name
        self._is_insecure = insecure_tls
        self._context = None  # made by `wrap`
        self._leaf = self._top = None  # DER: the server's certificate, the last one of its chain

    def wrap(self, socket, host):
        """A TLS socket around a connected one; the handshake comes with the first write."""
        import gc

        gc.collect()
        self._context = self.make_context()
        try:
            return self._context.wrap_socket(
                socket, server_hostname=self._server_name or host, do_handshake_on_connect=False
            )
        except (OSError, ValueError) as error:
            raise self.explain(error, host)

    def end(self):
        """After the handshake: detach the context, which the socket keeps, from this object."""
        self._context.verify_callback = None

    def make_context(self):
        """A context that believes whom `self` believes. Raises SourceError."""
        try:
            import tls
        except ImportError:
            raise SourceError("tls", "this firmware has no TLS: it has no module tls")
        context = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
        if self._is_insecure:
            context.verify_mode = tls.CERT_NONE
            return context
        context.verify_mode = tls.CERT_REQUIRED
        context.verify_callback = self._see
        from .otadata import has_home

        if not self._has_roots() and has_home():
            from .files import certs

            self._cafile = certs()
        if self._cadata:
            from io import BytesIO

            data = self._cadata
            load_roots(context, BytesIO(data.encode() if isinstance(data, str) else data), "cadata")
        elif self._cafile:
            try:
                with open(self._cafile, "rb") as file:
                    load_roots(context, file, self._cafile)
            except OSError as error:
                from .pump import reason

                raise SourceError(
                    "certificate", "cannot read %s: %s" % (self._cafile, reason(error))
                )
        return context

    def _see(self, certificate, depth):
        """Called for each certificate of the chain, whether it is good or not, the top first."""
        try:
            if self._top is None:
                self._top = bytes(certificate)
            if depth == 0:
                self._leaf = bytes(certificate)
        except MemoryError:
            pass
        return 0  # leaves the verdict to mbedTLS

    def explain(self, error, host):
        """The SourceError for what a handshake raised."""
        if isinstance(error, ValueError) or error.errno in _REFUSED:
            name = self._server_name or host
            words = str(error).strip()
            text = explain_certificate(self._leaf, self._top, words, host, name, self._has_roots())
            return SourceError("certificate", text)
        if error.errno in (errno.ETIMEDOUT, errno.EAGAIN):
            return SourceError("timeout", "no answer from %s in the TLS handshake" % host)
        from .pump import reason

        why = reason(error)
        if error.errno == errno.ENOMEM:
            why = "not enough memory, it takes about 40 KiB outside of MicroPython's heap"
        return SourceError("tls", "TLS handshake with %s failed: %s" % (host, why))

    def _has_roots(self):
        return bool(self._cadata or self._cafile)


def load_roots(context, file, name):
    """Load the certificates in a binary file, DER or PEM, one at a time. Raises SourceError."""
    start = file.read(1)
    if start == b"\x30":  # SEQUENCE: DER, with two bytes for its length as all that hold a key
        head = start + file.read(3)
        size = int.from_bytes(head[2:], "big")
        is_usual = head[1:2] == b"\x82" and size < _MAX_CERTIFICATE
        # As much memory as it takes, and one byte more, so that nothing may follow.
        _load(context, head + file.read(size + 1 if is_usual else _MAX_CERTIFICATE), name)
        return
    count = 0
    text = None
    line = start + file.readline(_MAX_CERTIFICATE)
    while line:
        line = line.strip()
        if line == _BEGIN:
            text = b""
        elif line == _END and text is not None:
            try:
                data = a2b_base64(text)
            except ValueError:
                data = b""
            _load(context, data, name)
            count += 1
            text = None
        elif text is not None and len(text) < _MAX_CERTIFICATE:
            text += line
        line = file.readline(_MAX_CERTIFICATE)
    if not count:
        raise SourceError("certificate", "no certificate in %s, neither DER nor PEM" % name)


def _load(context, data, name):
    try:
        context.load_verify_locations(data)
    except (ValueError, OSError):
        raise SourceError("certificate", "a certificate in %s is damaged" % name)


# --- what a person needs to know of a certificate (X.509: RFC 5280)


def explain_certificate(leaf, top, words, host, name, has_roots):
    """Why a certificate is refused, in words.

    ``leaf``, ``top``: DER of the server's certificate and of the last one of its chain, as far as
    they are known; ``words``: of mbedTLS (x509_crt_verify_info); ``name``: the one to expect.
    """
    text = "the certificate of %s is refused: %s" % (host, words)
    try:
        _, subject, start, end, names = _read(leaf)
        issuer, _, top_start, top_end, _ = _read(top)
    except (ValueError, TypeError, IndexError):  # not of the kind that is read here
        return text
    today = "%04d-%02d-%02d" % gmtime()[:3]
    found = []
    if "future" in words:
        start = max(start, top_start)
        if gmtime()[0] < _CLOCK_SET:
            return (
                "the certificate of %s is valid from %s on, and this board's clock is not set: "
                "it says %s. Set it first, for instance by ntptime.settime()" % (host, start, today)
            )
        found.append("it is not valid before %s, the clock says %s" % (start, today))
    if "expired" in words:
        end = min(end, top_end)
        found.append("it expired on %s, the clock says %s" % (end, today))
    if "CN" in words:
        found.append("it is for %s, not for %s" % (", ".join(names) or "no host", name))
    if not has_roots:
        found.append("there is no root certificate to check it with: pass cafile= or cadata=")
    elif "trusted" in words:
        found.append(
            "it is self-signed, and not one of the given root certificates"
            if issuer == subject
            else "its issuer is not one of the given root certificates"
        )
    if found:
        text = "the certificate of %s is refused: %s" % (host, "; ".join(found))
    return "%s (issuer: %s)" % (text, issuer)


def _read(der):
    """(issuer, subject, not before, not after, hosts that it is for) of a certificate, as text.

    Raises ValueError, TypeError or IndexError if ``der`` is none.
    """
    fields = list(_items(_first(_first(memoryview(der)))))
    if fields[0][0] == _CONTEXT_0:  # the version
        fields.pop(0)
    _, _, (_, issuer), (_, validity), (_, subject), *more = fields
    start, end = [_date(*item) for item in _items(validity)]
    names = []
    for tag, value in more:
        if tag == _EXTENSIONS:
            for _, extension in _items(_first(value)):
                parts = [part for _, part in _items(extension)]
                if bytes(parts[0]) == _ALT_NAME:
                    for item in _items(_first(parts[-1])):
                        if len(names) < _MAX_NAMES:
                            names.append(_host(*item))
    return _name(issuer), _name(subject), start, end, names


def _first(view):
    """The content of the first of the DER values in ``view``."""
    for _, value in _items(view):
        return value
    raise ValueError


def _items(view):
    """(tag, content) of each of the DER values that follow each other in ``view``."""
    at = 0
    while at < len(view):
        tag, size = view[at], view[at + 1]
        at += 2
        if size & 0x80:
            count = size & 0x7F
            size = int.from_bytes(view[at : at + count], "big")
            at += count
        end = at + size
        if end > len(view):
            raise ValueError
        yield tag, view[at:end]
        at = end


def _name(view):
    """A distinguished name as text."""
    found = {}
    for _, relative in _items(view):
        for _, attribute in _items(relative):
            oid, value = [value for _, value in _items(attribute)]
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
