"""Tar files that a board can take as they stream by: POSIX ustar (IEEE 1003.1, pax: "ustar
Interchange Format").

Each member is a header of 512 bytes and the content, filled with zeros to a multiple of 512; two
blocks of zeros end the file, and zeros may follow them. A header::

      0 100  name, ended by a zero if shorter        157 100  linkname, empty
    100  24  mode, uid, gid: 3 x 8 octal             257   8  "ustar", zero, "00"
    124  12  size, octal                             265  64  uname, gname
    136  12  mtime, octal                            329  16  devmajor, devminor
    148   8  sum of all header bytes, octal,         345 155  prefix, goes before the name
             these eight taken as spaces             500  12  zeros
    156   1  type: "0" or zero a file, "5" a directory; all others are refused

A ``files`` payload is one whose names are relative, of components that are not empty, ``.`` or
``..``, at most 16; directories stand before what is in them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mpota.errors import MpotaError
from mpota.units import SECTOR_SIZE, align_up

_BLOCK_SIZE = 512
_HEADER = struct.Struct("<100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_MAGIC = b"ustar\x0000"
_CHECKSUM = slice(148, 156)
_MAX_DEPTH = 16


@dataclass(frozen=True)
class Member:
    """A file or directory in a tar file. ``name`` has no trailing slash."""

    name: str
    data: bytes
    is_directory: bool = False


def read_tar(archive: bytes, what: str = "tar file") -> Iterator[Member]:
    """The members of a ustar file, in order; ``what`` names it in errors.

    Raises MpotaError for damage, links, other tar dialects, a missing end, and anything but zeros
    behind the end.
    """
    offset = 0
    while True:
        header = archive[offset : offset + _BLOCK_SIZE]
        if len(header) < _BLOCK_SIZE:
            raise MpotaError(f"{what} is truncated: it ends without its two blocks of zeros")
        if not any(header):
            break
        offset += _BLOCK_SIZE
        name, size, is_directory = _parse_header(header, what)
        if offset + align_up(size, _BLOCK_SIZE) > len(archive):
            raise MpotaError(
                f"{what} is truncated: member '{name}' is {size:,} bytes, "
                f"{len(archive) - offset:,} are left"
            )
        yield Member(name, archive[offset : offset + size], is_directory)
        offset += align_up(size, _BLOCK_SIZE)
    rest = archive[offset:]
    if len(rest) < 2 * _BLOCK_SIZE or any(rest):
        raise MpotaError(f"{what} does not end in two blocks of zeros")


def write_tar(members: Iterable[Member]) -> bytes:
    """A ustar file of these members; the same members always give the same bytes."""
    pieces = []
    for member in members:
        pieces.append(_compose_header(member))
        pieces.append(member.data.ljust(align_up(len(member.data), _BLOCK_SIZE), b"\0"))
    return b"".join(pieces) + bytes(2 * _BLOCK_SIZE)


def read_tree(archive: bytes) -> tuple[Member, ...]:
    """The content of a ``files`` payload. Raises MpotaError for what a board would refuse."""
    members = tuple(read_tar(archive, "files payload"))
    seen: dict[str, bool] = {"": True}
    for member in members:
        parts = member.name.split("/")
        if {"", ".", ".."} & set(parts) or "\\" in member.name:
            raise MpotaError(f"path '{member.name}' leaves the tree")
        if any(character < " " for character in member.name):
            raise MpotaError(f"path {member.name!r} has a control character")
        if len(parts) > _MAX_DEPTH:
            raise MpotaError(f"path '{member.name}' is deeper than {_MAX_DEPTH} components")
        if not seen.get("/".join(parts[:-1])):
            raise MpotaError(f"path '{member.name}' has no directory")
        if member.name in seen:
            raise MpotaError(f"path '{member.name}' is there twice")
        seen[member.name] = member.is_directory
    if not members:
        raise MpotaError("files payload is empty")
    return members


def disk_size(members: Iterable[Member]) -> int:
    """Bytes of littlefs that a tree takes at most: whole blocks, two for each directory."""
    return 2 * SECTOR_SIZE + sum(
        2 * SECTOR_SIZE if member.is_directory else align_up(len(member.data) + 1, SECTOR_SIZE)
        for member in members
    )


def _parse_header(header: bytes, what: str) -> tuple[str, int, bool]:
    """(name, size, is a directory)"""
    stored = _octal(header[_CHECKSUM], "checksum", what)
    if stored != _checksum(header):
        raise MpotaError(f"{what}: a header is damaged, its checksum is {stored}, not its sum")
    fields = _HEADER.unpack(header)
    if fields[9] != _MAGIC:
        raise MpotaError(f"{what} is not POSIX ustar", "make it with tar --format=ustar")
    try:
        name, prefix = (fields[i].split(b"\0", 1)[0].decode("utf-8") for i in (0, 14))
    except UnicodeDecodeError:
        raise MpotaError(f"{what}: a name is not UTF-8") from None
    if prefix:
        name = f"{prefix}/{name}"
    kind = fields[7]
    if kind not in (b"0", b"\0", b"5"):
        raise MpotaError(f"{what}: member '{name}' is a link or device (type {kind!r})")
    size = _octal(fields[4], "size", what)
    if kind == b"5":
        name = name.removesuffix("/")
        if size:
            raise MpotaError(f"{what}: directory '{name}' has a size")
    if not name:
        raise MpotaError(f"{what}: a member has no name")
    return name, size, kind == b"5"


def _compose_header(member: Member) -> bytes:
    import tarfile  # slow to import, and not needed to read

    info = tarfile.TarInfo(member.name)
    info.size = len(member.data)
    if member.is_directory:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    try:
        return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except ValueError as error:
        raise MpotaError(f"'{member.name}' cannot be in a tar file: {error}") from None


def _checksum(header: bytes) -> int:
    return sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" ")


def _octal(data: bytes, what: str, where: str) -> int:
    digits = data.strip(b"\0 ")
    if not digits or any(digit not in b"01234567" for digit in digits):
        raise MpotaError(f"{where}: a header has {what} {bytes(data)!r}, must be octal")
    return int(digits, 8)
