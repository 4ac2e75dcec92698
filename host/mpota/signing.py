"""Keys and signatures: the one place where ``cryptography`` (it comes with esptool) is imported."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import TYPE_CHECKING

from mpota.errors import MpotaError
from mpota.formats.signature import (
    EXPONENT,
    KEY_BITS,
    PublicKey,
    SignatureBlock,
    compose_sector,
    padded,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

_PUBLIC_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----\s(.*?)-----END PUBLIC KEY-----", re.DOTALL)


class PrivateKey:
    """An RSA-3072 key that signs, the same as ``espsecure generate-signing-key`` makes."""

    def __init__(self, key: RSAPrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> PrivateKey:
        from cryptography.hazmat.primitives.asymmetric import rsa

        return cls(rsa.generate_private_key(public_exponent=EXPONENT, key_size=KEY_BITS))

    @classmethod
    def from_pem(cls, data: bytes, password: bytes | None = None) -> PrivateKey:
        """Raises MpotaError unless ``data`` is a private RSA key that Secure Boot V2 can use."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        try:
            key = serialization.load_pem_private_key(data, password)
        except (ValueError, TypeError) as error:
            raise MpotaError(f"not a private key in PEM: {error}") from None
        if not isinstance(key, rsa.RSAPrivateKey) or key.key_size != KEY_BITS:
            raise MpotaError(f"private key is not RSA with {KEY_BITS} bits")
        if key.public_key().public_numbers().e != EXPONENT:
            raise MpotaError(f"private key has another exponent than {EXPONENT}")
        return cls(key)

    def to_pem(self) -> bytes:
        from cryptography.hazmat.primitives import serialization

        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )

    @property
    def public(self) -> PublicKey:
        return PublicKey(self._key.public_key().public_numbers().n)

    def sign(self, content: bytes) -> SignatureBlock:
        """The signature over ``content``, padded as Secure Boot V2 has it."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding, utils

        digest = hashlib.sha256(padded(content)).digest()
        signature = self._key.sign(
            digest,
            padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=hashes.SHA256.digest_size),
            utils.Prehashed(hashes.SHA256()),
        )
        return SignatureBlock(digest, self.public, int.from_bytes(signature, "big"))


def sign(content: bytes, keys: tuple[PrivateKey, ...]) -> bytes:
    """The signature sector for ``content``, a block for each key (one to three)."""
    return compose_sector(key.sign(content) for key in keys)


def public_to_pem(key: PublicKey) -> bytes:
    text = base64.encodebytes(key.to_der()).replace(b"\n", b"")
    lines = [text[i : i + 64] for i in range(0, len(text), 64)]
    return b"\n".join((b"-----BEGIN PUBLIC KEY-----", *lines, b"-----END PUBLIC KEY-----", b""))


def public_from_pem(data: bytes) -> PublicKey:
    """A public key from its PEM, or from that of the private key.

    Raises MpotaError if ``data`` is neither.
    """
    if b"PRIVATE KEY-----" in data:
        return PrivateKey.from_pem(data).public
    found = _PUBLIC_PEM.search(data)
    if found is None:
        raise MpotaError("not a key in PEM: there is no BEGIN PUBLIC KEY")
    try:
        return PublicKey.from_der(base64.b64decode(b"".join(found[1].split()), validate=True))
    except binascii.Error as error:
        raise MpotaError(f"not a key in PEM: {error}") from None
