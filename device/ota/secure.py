"""TLS: which certificates are trusted, and what is wrong with one that is not.

MicroPython's ``tls`` module verifies in C (extmod/modtls_mbedtls.c): the chain up to a root that is
known here, the host name, and the dates by the board's clock.
"""

import errno
from binascii import a2b_base64
from time import gmtime

from micropython import const

from .connection import reason
from .errors import SourceError
from .home import has_home

_CLOCK_SET = const(2024)  # a clock that says an earlier year has never been set (ESP32: 2000)
_BEGIN = b"-----BEGIN CERTIFICATE-----"
_END = b"-----END CERTIFICATE-----"
_MAX_CERTIFICATE = const(16384)
# MBEDTLS_ERR_X509_CERT_VERIFY_FAILED, MBEDTLS_ERR_SSL_CA_CHAIN_REQUIRED
_REFUSED = (-0x2700, -0x7680)


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
        self._context = None
        self._leaf = self._top = None  # DER: the server's certificate, the last one of its chain

    def wrap(self, socket, host):
        """A TLS socket around a connected one; the handshake comes with the first write."""
        import gc

        gc.collect()
        if self._context is None:
            self._context = self._make_context()
        self._leaf = self._top = None
        try:
            return self._context.wrap_socket(
                socket, server_hostname=self._server_name or host, do_handshake_on_connect=False
            )
        except OSError as error:
            raise self.explain(error, host)

    def _make_context(self):
        import tls

        context = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
        if self._is_insecure:
            context.verify_mode = tls.CERT_NONE
            return context
        context.verify_mode = tls.CERT_REQUIRED
        context.verify_callback = self._see
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
            return SourceError("certificate", self._explain_certificate(str(error).strip(), host))
        if error.errno == errno.ENOMEM:
            return SourceError(
                "tls",
                "TLS handshake with %s failed: not enough memory, it takes about 40 KiB outside "
                "of MicroPython's heap" % host,
            )
        if error.errno in (errno.ETIMEDOUT, errno.EAGAIN):
            return SourceError("timeout", "no answer from %s in the TLS handshake" % host)
        return SourceError("tls", "TLS handshake with %s failed: %s" % (host, reason(error)))

    def _explain_certificate(self, words, host):
        """``words``: of mbedTLS (x509_crt_verify_info)."""
        from .certificate import Certificate

        try:
            leaf, top = Certificate(self._leaf), Certificate(self._top)
        except (ValueError, TypeError):
            return "the certificate of %s is refused: %s" % (host, words)
        today = "%04d-%02d-%02d" % gmtime()[:3]
        found = []
        if "future" in words:
            start = max(leaf.not_before, top.not_before)
            if gmtime()[0] < _CLOCK_SET:
                return (
                    "the certificate of %s is valid from %s on, and this board's clock is not set: "
                    "it says %s. Set it first, for instance by ntptime.settime()"
                    % (host, start, today)
                )
            found.append("it is not valid before %s, the clock says %s" % (start, today))
        if "expired" in words:
            end = min(leaf.not_after, top.not_after)
            found.append("it expired on %s, the clock says %s" % (end, today))
        if "CN" in words:
            name = self._server_name or host
            found.append("it is for %s, not for %s" % (", ".join(leaf.names) or "no host", name))
        if "trusted" in words or not self._has_roots():
            if not self._has_roots():
                found.append(
                    "there is no root certificate to check it with: pass cafile= or cadata="
                )
            elif top.issuer == leaf.subject:
                found.append("it is self-signed, and not one of the given root certificates")
            else:
                found.append("its issuer is not one of the given root certificates")
        what = "; ".join(found) or words
        return "the certificate of %s is refused: %s (issuer: %s)" % (host, what, top.issuer)

    def _has_roots(self):
        return bool(self._cadata or self._cafile)


def load_roots(context, file, name):
    """Load the certificates in a binary file, DER or PEM, one at a time. Raises SourceError."""
    start = file.read(1)
    if start == b"\x30":  # SEQUENCE: DER
        _load(context, start + file.read(_MAX_CERTIFICATE), name)
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
