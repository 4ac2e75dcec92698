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
from collections.abc import Collection

from mpota.formats.tar import Member, read_tree, write_tar

SUFFIX = ".thin"
ID_SIZE = 8

_MAX_NAME_SIZE = 100
_HEAD = struct.Struct("<cB")
_SIZE = struct.Struct("<I")
_COMES, _TAKEN, _DIRECTORY = b"+", b"=", b"/"


def file_id(name: str, data: bytes) -> bytes:
    """The id by which a board tells that it has this file, 8 bytes."""
    return hashlib.sha256(name.encode() + b"\0" + data).digest()[:ID_SIZE]


def make_thin(archive: bytes, there: Collection[bytes]) -> bytes | None:
    """The payload ``archive`` without files whose ids are in ``there``.

    None where that saves nothing, or the tar file is none that a board makes again: as
    `mpota.formats.tar.write_tar` does, with paths up to 100 bytes.
    """
    members = read_tree(archive)
    names = [member.name.encode() for member in members]
    if any(len(name) + member.is_directory > _MAX_NAME_SIZE
           for name, member in zip(names, members, strict=True)):  # fmt: skip
        return None
    if write_tar(members) != archive:
        return None
    thin = b"".join(_record(member, there) for member in members)
    return thin if len(thin) < len(archive) else None


def _record(member: Member, there: Collection[bytes]) -> bytes:
    name = member.name.encode()
    if member.is_directory:
        return _HEAD.pack(_DIRECTORY, len(name)) + name
    if file_id(member.name, member.data) in there:
        return _HEAD.pack(_TAKEN, len(name)) + name
    return _HEAD.pack(_COMES, len(name)) + name + _SIZE.pack(len(member.data)) + member.data
