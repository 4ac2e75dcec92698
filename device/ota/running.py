"""The app that runs, as a file: what a delta may start from."""

from hashlib import sha256
from struct import unpack_from

from esp32 import Partition
from micropython import const

_SECTOR = const(4096)
_PIECE = const(1024)
_HEADER_SIZE = const(24)
_DIGEST_SIZE = const(32)
_SIGNATURE_MAGIC = const(0xE7)


def digests():
    """SHA-256 (hex) of the image that runs, and of the image with its signature if it has one."""
    part = Partition(Partition.RUNNING)
    size = _image_size(part)
    sizes = [size]
    end = (size + _SECTOR - 1) // _SECTOR * _SECTOR
    head = bytearray(1)
    if end + _SECTOR <= part.info()[3]:
        part.readblocks(end // _SECTOR, head, 0)
        if head[0] == _SIGNATURE_MAGIC:
            sizes.append(end + _SECTOR)
    buf = memoryview(bytearray(_PIECE))
    return [digest(part, size, buf).hex() for size in sizes]


def _image_size(part):
    """The size of an image that has been booted, so that its headers are good."""
    head = bytearray(_HEADER_SIZE)
    part.readblocks(0, head, 0)
    field = bytearray(8)
    at = _HEADER_SIZE
    for _ in range(head[1]):  # segments
        part.readblocks(at // _SECTOR, field, at % _SECTOR)
        at += 8 + unpack_from("<I", field, 4)[0]
    return ((at + 16) & ~15) + (_DIGEST_SIZE if head[23] == 1 else 0)


def digest(part, size, buf):
    """SHA-256 of the first ``size`` bytes of a partition, None if it is not that large.

    ``buf``: a memoryview to read with, of a sector or a part of one.
    """
    if size > part.info()[3]:
        return None
    sha = sha256()
    piece = len(buf)
    for at in range(0, size, piece):
        part.readblocks(at // _SECTOR, buf, at % _SECTOR)
        sha.update(buf if size - at >= piece else buf[: size - at])
    return sha.digest()
