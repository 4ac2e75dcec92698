"""Keys and signatures: made and verified by ``cryptography``, which is imported here, and late."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from mpota.errors import MpotaError
from mpota.formats.channel import SignedLine
from mpota.formats.signature import (
    CURVES,
    EXPONENT,
    KEY_BITS,
    P256,
    EcdsaBlock,
    EcdsaKey,
    PublicKey,
    SignatureBlock,
    compose_sector,
    padded,
    parse_app_sector,
    parse_sector,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

_Key = TypeVar("_Key", PublicKey, EcdsaKey)
_Block = TypeVar("_Block", SignatureBlock, EcdsaBlock)

_SIGNATURE_SIZE = KEY_BITS // 8
_PUBLIC_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----\s(.*?)-----END PUBLIC KEY-----", re.DOTALL)


class LockedKeyError(MpotaError):
    """A private key is encrypted, and no passphrase was given."""


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
        """Raises MpotaError unless ``data`` is a private RSA key that Secure Boot V2 can use, and
        for a wrong ``password``; LockedKeyError if it needs one. A password that it does not need
        is ignored.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        is_locked = False
        try:
            try:
                key = serialization.load_pem_private_key(data, None)
            except TypeError:  # it is encrypted
                is_locked = True
                if password is None:
                    raise LockedKeyError("the key is encrypted") from None
                key = serialization.load_pem_private_key(data, password)
        except UnsupportedAlgorithm as error:
            raise MpotaError(f"a private key of a kind that is not supported: {error}") from None
        except (ValueError, TypeError) as error:
            if is_locked:
                raise MpotaError("the passphrase is wrong, or the key is damaged") from None
            raise MpotaError(f"not a private key in PEM: {error}") from None
        if not isinstance(key, rsa.RSAPrivateKey) or key.key_size != KEY_BITS:
            raise MpotaError(f"private key is not RSA with {KEY_BITS} bits")
        if key.public_key().public_numbers().e != EXPONENT:
            raise MpotaError(f"private key has another exponent than {EXPONENT}")
        return cls(key)

    def to_pem(self, password: bytes | None = None) -> bytes:
        """PEM as espsecure makes it; with a password PKCS #8, encrypted with AES-256."""
        from cryptography.hazmat.primitives import serialization

        if password is None:
            form = serialization.PrivateFormat.TraditionalOpenSSL
            return self._key.private_bytes(
                serialization.Encoding.PEM, form, serialization.NoEncryption()
            )
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password),
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


def sign_line(line: bytes, keys: tuple[PrivateKey, ...]) -> bytes:
    """A channel or fresh file: ``line`` with a block for each key (one to three)."""
    signed = SignedLine(line, tuple(key.sign(line) for key in keys)).to_bytes()
    SignedLine.from_bytes(signed)
    return signed


def check_line(data: bytes, trusted: Iterable[PublicKey], what: str) -> tuple[bytes, PublicKey]:
    """The line of a channel or fresh file, and the trusted key that signed it.

    Raises MpotaError, as `SignedLine.from_bytes` and `check_signature`.
    """
    signed = SignedLine.from_bytes(data, what)
    return signed.line, check_signature(signed.line, signed.sector, trusted)


def check_signature(content: bytes, sector: bytes, trusted: Iterable[PublicKey]) -> PublicKey:
    """The trusted key that signed ``content``.

    Raises MpotaError if the sector is damaged, belongs to other content, or none of its blocks is
    a valid signature of a trusted key.
    """
    digest = hashlib.sha256(padded(content)).digest()
    blocks = parse_sector(sector)
    for block in blocks:
        _check_block(block, digest, is_valid)
    return _trusted_signer([block.key for block in blocks], trusted)


def _check_block(block: _Block, digest: bytes, verifies: Callable[[_Block], bool]) -> None:
    if block.content_digest != digest:
        raise MpotaError("signature belongs to other content: the digests differ")
    if not verifies(block):
        raise MpotaError(f"signature of key {block.key.digest.hex()[:16]} is not valid")


def _trusted_signer(signers: Sequence[_Key], trusted: Iterable[PublicKey | EcdsaKey]) -> _Key:
    """Raises MpotaError if none of the signers is trusted."""
    known = set(trusted)
    for key in signers:
        if key in known:
            return key
    names = ", ".join(key.digest.hex()[:16] for key in signers)
    raise MpotaError(f"signed by {names}: none of the keys given")


def check_app_signature(
    content: bytes, sector: bytes, trusted: Iterable[PublicKey | EcdsaKey]
) -> PublicKey | EcdsaKey:
    """The trusted key that signed an app image, by RSA or ECDSA; raises as `check_signature`."""
    trusted = tuple(trusted)
    blocks = [b for b in parse_app_sector(sector) if isinstance(b, EcdsaBlock)]
    if not blocks:
        return check_signature(content, sector, [k for k in trusted if isinstance(k, PublicKey)])
    for block in blocks:
        _check_block(block, block.key.curve.digest(padded(content)), _is_valid_ecdsa)
    return _trusted_signer([block.key for block in blocks], trusted)


def _is_valid_ecdsa(block: EcdsaBlock) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    is_p256 = block.key.curve == P256
    curve: ec.EllipticCurve = ec.SECP256R1() if is_p256 else ec.SECP384R1()
    hash_: hashes.HashAlgorithm = hashes.SHA256() if is_p256 else hashes.SHA384()
    try:
        ec.EllipticCurvePublicNumbers(block.key.x, block.key.y, curve).public_key().verify(
            utils.encode_dss_signature(*block.signature),
            block.content_digest,
            ec.ECDSA(utils.Prehashed(hash_)),
        )
    except (InvalidSignature, ValueError):  # ValueError: a point that is not on the curve
        return False
    return True


def is_valid(block: SignatureBlock) -> bool:
    """Whether the signature fits the block's own key and digest; says nothing of the content."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils

    try:
        rsa.RSAPublicNumbers(EXPONENT, block.key.n).public_key().verify(
            block.signature.to_bytes(_SIGNATURE_SIZE, "big"),
            block.content_digest,
            padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=hashes.SHA256.digest_size),
            utils.Prehashed(hashes.SHA256()),
        )
    except (InvalidSignature, ValueError):  # ValueError: a modulus that is none
        return False
    return True


def public_to_pem(key: PublicKey) -> bytes:
    text = base64.encodebytes(key.to_der()).replace(b"\n", b"")
    lines = [text[i : i + 64] for i in range(0, len(text), 64)]
    return b"\n".join((b"-----BEGIN PUBLIC KEY-----", *lines, b"-----END PUBLIC KEY-----", b""))


def app_key_from_pem(data: bytes, password: bytes | None = None) -> PublicKey | EcdsaKey:
    """A key that signs apps from its PEM, RSA's or ECDSA's; raises as `public_from_pem`."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key: object = None
    with suppress(ValueError, TypeError, UnsupportedAlgorithm):
        if b"PRIVATE KEY-----" in data:
            key = serialization.load_pem_private_key(data, password)
        else:
            key = serialization.load_pem_public_key(data)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        key = key.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return public_from_pem(data, password)
    curve = next((c for c in CURVES if c.size * 8 == key.key_size), None)
    if curve is None or not key.curve.name.startswith("secp"):
        raise MpotaError(f"ECDSA key is on {key.curve.name}, known are P-256 and P-384")
    numbers = key.public_numbers()
    return EcdsaKey(curve, numbers.x, numbers.y)


def public_from_pem(data: bytes, password: bytes | None = None) -> PublicKey:
    """A public key from its PEM, or from that of the private key, for which ``password`` is.

    Raises MpotaError if ``data`` is neither; LockedKeyError as `PrivateKey.from_pem`.
    """
    if b"PRIVATE KEY-----" in data:
        return PrivateKey.from_pem(data, password).public
    found = _PUBLIC_PEM.search(data)
    if found is None:
        raise MpotaError("not a key in PEM: there is no BEGIN PUBLIC KEY")
    try:
        return PublicKey.from_der(base64.b64decode(b"".join(found[1].split()), validate=True))
    except binascii.Error as error:
        raise MpotaError(f"not a key in PEM: {error}") from None
