"""A ``files`` payload without what the board has already: it takes that from the tree in use.

Such a payload stands in a bundle in place of a whole one, in a member of the same name and
``.thin``; the manifest stays what it is, and so does its signature. The board makes the whole tar
file of it again, whose digest the manifest has (device/ota/chain.py). A record for each member::

    u8    kind: "+" a file that comes, "=" one of the tree in use, "/" a directory
    u8    length of the path
          the path, UTF-8
    u32   "+": size, little-endian
          "+": the content

What a board has is told by ids, one for each file: the first 8 bytes of the SHA-256 of its path, a
zero byte, and its content. They decide what is sent, and nothing else.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterable, Mapping

from mpota.errors import MpotaError
from mpota.formats.tar import Member, read_tree
from mpota.units import align_up

SUFFIX = ".thin"
ID_SIZE = 8

_BLOCK_SIZE = 512
_MAX_NAME_SIZE = 100
_HEAD = struct.Struct("<cB")
_SIZE = struct.Struct("<I")
_COMES, _TAKEN, _DIRECTORY = b"+", b"=", b"/"


def file_id(name: str, data: bytes) -> bytes:
    """What a file goes by when a board tells which it has."""
    return hashlib.sha256(name.encode() + b"\0" + data).digest()[:ID_SIZE]


def make_thin(archive: bytes, there: Collection[bytes]) -> bytes | None:
    """The payload ``archive`` without files whose ids are in ``there``.

    None where that saves nothing, or the tar file is none that a board makes again: those of
    `mpota.formats.tar.write_tar` are, with paths up to 100 bytes.
    """
    members = read_tree(archive)
    names = [member.name.encode() for member in members]
    if any(len(name) + member.is_directory > _MAX_NAME_SIZE
           for name, member in zip(names, members, strict=True)):  # fmt: skip
        return None
    if _whole(members) != archive:
        return None
    thin = b"".join(_record(member, there) for member in members)
    return thin if len(thin) < len(archive) else None


def expand(thin: bytes, tree: Mapping[str, bytes]) -> bytes:
    """The whole payload, as a board with the files ``tree`` (by path) makes it.

    Raises MpotaError for damage and for a file that is not there.
    """
    return _whole(_read(thin, tree))


def _read(thin: bytes, tree: Mapping[str, bytes]) -> Iterable[Member]:
    at = 0
    try:
        while at < len(thin):
            kind, length = _HEAD.unpack_from(thin, at)
            at += _HEAD.size
            name = thin[at : at + length].decode()
            at += length
            data = b""
            if kind == _COMES:
                (size,) = _SIZE.unpack_from(thin, at)
                at += _SIZE.size + size
                data = thin[at - size : at]
                if len(data) < size:
                    raise MpotaError("thin files payload is truncated")
            elif kind == _TAKEN:
                data = tree[name]
            elif kind != _DIRECTORY:
                raise MpotaError(f"thin files payload has a record of kind {kind!r}")
            yield Member(name, data, kind == _DIRECTORY)
    except (struct.error, UnicodeDecodeError):
        raise MpotaError("thin files payload is damaged") from None
    except KeyError as error:
        raise MpotaError(f"thin files payload takes {error}, which is not there") from None


def _record(member: Member, there: Collection[bytes]) -> bytes:
    name = member.name.encode()
    if member.is_directory:
        return _HEAD.pack(_DIRECTORY, len(name)) + name
    if file_id(member.name, member.data) in there:
        return _HEAD.pack(_TAKEN, len(name)) + name
    return _HEAD.pack(_COMES, len(name)) + name + _SIZE.pack(len(member.data)) + member.data


def _whole(members: Iterable[Member]) -> bytes:
    pieces = []
    for member in members:
        pieces.append(_header(member))
        pieces.append(member.data.ljust(align_up(len(member.data), _BLOCK_SIZE), b"\0"))
    return b"".join(pieces) + bytes(2 * _BLOCK_SIZE)


def _header(member: Member) -> bytes:
    """That of a tar file, as boards make it (device/ota/chain.py); a name has to fit."""
    name = member.name.encode() + (b"/" if member.is_directory else b"")
    head = bytearray(_BLOCK_SIZE)
    for at, text in (
        (0, name),
        (100, b"0000755" if member.is_directory else b"0000644"),
        (108, b"0000000"),
        (116, b"0000000"),
        (124, b"%011o" % len(member.data)),
        (136, b"00000000000"),
        (148, b"        "),
        (156, b"5" if member.is_directory else b"0"),
        (257, b"ustar\x0000"),
    ):
        head[at : at + len(text)] = text
    head[148:155] = b"%06o\0" % sum(head)
    return bytes(head)
