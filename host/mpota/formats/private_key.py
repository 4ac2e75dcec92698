"""Private keys, recognised by content: what must never be packed, published or served.

PEM of any kind, the armours of OpenSSH, PGP, SSH2 and PuTTY included, wherever it stands in a file;
and files that are as a whole DER (PKCS #1, #8 and #12, SEC 1, DSA, encrypted or not), such DER in
base64, an OpenSSH key without armour, or a JSON Web Key.

A marker alone is no key: firmware with a TLS library holds the markers that it looks for.
"""

from __future__ import annotations

import base64
import binascii
import json
import re

_MARKER = re.compile(
    rb"-----BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY(?: BLOCK)?-----"
    rb"|---- BEGIN SSH2 [A-Z ]{0,16}PRIVATE KEY ----"
    rb"|PuTTY-User-Key-File-\d"
)
_WINDOW_SIZE = 4096  # bytes behind a marker in which its key begins
_END = re.compile(rb"-----|---- END|\0")
_WORDS = re.compile(rb"[A-Za-z0-9+/]{16,}")
_LEAST = 40  # characters of base64: the shortest keys have more
_BASE64 = re.compile(rb"[A-Za-z0-9+/=_\s-]+")
_MAX_TEXT_SIZE = 1 << 16  # bytes of a file that is a key as a whole
_OPENSSH = b"openssh-key-v1\0"
_INTEGER, _OCTETS, _OID, _SEQUENCE = 0x02, 0x04, 0x06, 0x30
_PBE_OIDS = (  # PKCS #5, and PKCS #12's way to derive keys
    bytes.fromhex("2a864886f70d0105"),
    bytes.fromhex("2a864886f70d010c01"),
)
_PKCS7_OID = bytes.fromhex("2a864886f70d0107")
_WIDE = (b"P\0R\0I\0V\0A\0T\0E\0", b"\0P\0R\0I\0V\0A\0T\0E")


def is_private_key(data: bytes) -> bool:
    """Whether a file with this content is a private key, or holds one in PEM."""
    if _has_pem(data) or (
        any(mark in data for mark in _WIDE) and _has_pem(data.replace(b"\0", b""))
    ):
        return True
    if len(data) > _MAX_TEXT_SIZE:
        return False
    return data.startswith(_OPENSSH) or _is_der(data) or _is_base64(data) or _is_jwk(data)


def _has_pem(data: bytes) -> bool:
    for marker in _MARKER.finditer(data):
        body = _END.split(data[marker.end() : marker.end() + _WINDOW_SIZE], maxsplit=1)[0]
        if sum(map(len, _WORDS.findall(body))) >= _LEAST:
            return True
    return False


def _is_base64(data: bytes) -> bool:
    text = data.strip()
    if len(text) < _LEAST or not _BASE64.fullmatch(text):
        return False
    try:
        decoded = base64.b64decode(text, altchars=b"-_" if {*b"-_"} & {*text} else None)
    except binascii.Error:
        return False
    return decoded.startswith(_OPENSSH) or _is_der(decoded)


def _is_jwk(data: bytes) -> bool:
    if b'"kty"' not in data:
        return False
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return False
    keys = found.get("keys", [found]) if isinstance(found, dict) else found
    return isinstance(keys, list) and any(
        isinstance(key, dict) and "kty" in key and ("d" in key or key["kty"] == "oct")
        for key in keys
    )


def _is_der(data: bytes) -> bool:
    """Whether ``data`` is as a whole one DER sequence with the first elements of a key."""
    outer = _element(data)
    if outer is None or outer[0] != _SEQUENCE or outer[2].strip(b"\0\r\n"):
        return False
    elements: list[tuple[int, bytes]] = []
    rest = outer[1]
    while rest and len(elements) < 10:
        element = _element(rest)
        if element is None:
            return False
        elements.append(element[:2])
        rest = element[2]
    tags = [tag for tag, _ in elements]
    first = elements[0][1] if elements else b""
    if tags[:1] == [_INTEGER] and first in (b"\0", b"\1", b"\2"):
        # PKCS #8; SEC 1; RSA (nine numbers) and DSA (six)
        return (
            tags[1:3] == [_SEQUENCE, _OCTETS] or tags[1:2] == [_OCTETS] or tags == [_INTEGER] * 6
        ) or tags[:9] == [_INTEGER] * 9
    if tags[:2] == [_INTEGER, _SEQUENCE] and first == b"\3":  # PKCS #12
        return _oid(elements[1][1]).startswith(_PKCS7_OID)
    return tags == [_SEQUENCE, _OCTETS] and _oid(first).startswith(_PBE_OIDS)


def _oid(data: bytes) -> bytes:
    element = _element(data)
    return element[1] if element and element[0] == _OID else b""


def _element(data: bytes) -> tuple[int, bytes, bytes] | None:
    """(tag, content, what follows) of the DER or BER element that ``data`` starts with."""
    if len(data) < 2:
        return None
    size, start = data[1], 2
    if size == 0x80:  # of unknown length, as some make PKCS #12
        return data[0], data[2:], b""
    if size > 0x80:
        count = size - 0x80
        if count > 4 or len(data) < 2 + count:
            return None
        size, start = int.from_bytes(data[2 : 2 + count], "big"), 2 + count
    if len(data) < start + size:
        return None
    return data[0], data[start : start + size], data[start + size :]
