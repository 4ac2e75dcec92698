"""A certificate authority of one's own, so that a development server can be trusted by boards."""

from __future__ import annotations

import ipaddress
import os
import ssl
import tempfile
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from mpota.errors import MpotaError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

# The clock of a board that was never set starts in this year: certificates are valid from then on.
_START = datetime(2000, 1, 1, tzinfo=timezone.utc)
_LIFETIME = timedelta(days=3650)


class LocalCa:
    """A root certificate and its key (ECDSA P-256: small, and quick on a board)."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate

    @classmethod
    def open(cls, directory: Path) -> LocalCa:
        """The authority kept in ``directory``, made there at first use.

        Raises MpotaError if what is there is damaged.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        path = directory / "ca.pem"
        if not path.exists():
            made = cls.make()
            directory.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=directory)  # readable by its owner only
            with os.fdopen(descriptor, "wb") as file:
                file.write(made._to_pem())
            os.replace(name, path)
            return made
        data = path.read_bytes()
        try:
            key = serialization.load_pem_private_key(data, None)
            certificate = x509.load_pem_x509_certificate(data)
        except ValueError as error:
            raise MpotaError(f"'{path}' is damaged: {error}", "remove it") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise MpotaError(f"'{path}' holds no EC key", "remove it")
        return cls(key, certificate)

    @classmethod
    def make(cls) -> LocalCa:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("mpota development CA")
        builder = (
            _builder(name, name, key.public_key(), key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(key_cert_sign=True), critical=True)
        )
        return cls(key, _signed(builder, key))

    @property
    def der(self) -> bytes:
        """The root certificate, for boards."""
        from cryptography.hazmat.primitives.serialization import Encoding

        return self._certificate.public_bytes(Encoding.DER)

    def server_context(self, names: Iterable[str]) -> ssl.SSLContext:
        """For a server that is reached by these host names and addresses."""
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        names = tuple(names)
        issuer = self._certificate.subject
        server_auth = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH])
        builder = (
            _builder(_name(names[0]), issuer, key.public_key(), self._key.public_key())
            .add_extension(x509.SubjectAlternativeName([*_alternatives(names)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(server_auth, critical=False)
        )
        certificate = _signed(builder, self._key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile(suffix=".pem") as file:
            file.write(_key_pem(key) + certificate.public_bytes(serialization.Encoding.PEM))
            file.flush()
            context.load_cert_chain(file.name)
        return context

    def _to_pem(self) -> bytes:
        from cryptography.hazmat.primitives.serialization import Encoding

        return _key_pem(self._key) + self._certificate.public_bytes(Encoding.PEM)


def _alternatives(names: Iterable[str]) -> Iterable[x509.GeneralName]:
    from cryptography import x509

    for name in names:
        # Addresses stand as names as well: Mbed TLS before 3.5 ignores addresses.
        yield x509.DNSName(name)
        try:
            yield x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            continue


def _name(text: str) -> x509.Name:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text[:64])])


def _key_usage(**uses: bool) -> x509.KeyUsage:
    from cryptography import x509

    names = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
        "key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**{name: uses.get(name, False) for name in names.split()})


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
) -> x509.CertificateBuilder:
    """What RFC 5280 asks of both: strict clients (Python 3.13's) refuse less."""
    from cryptography import x509

    by_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_START)
        .not_valid_after(datetime.now(timezone.utc) + _LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(by_key, critical=False)
    )


def _signed(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    from cryptography.hazmat.primitives import hashes

    return builder.sign(key, hashes.SHA256())


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
