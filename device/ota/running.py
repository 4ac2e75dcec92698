"""The app that runs, as a file: what a delta may start from."""

from hashlib import sha256

from esp32 import Partition
from micropython import const

_SECTOR = const(4096)
_SIGNATURE_MAGIC = const(0xE7)


def digests():
    """SHA-256 (hex) of the image that runs, and of the image with its signature if it has one."""
    from .errors import ImageError
    from .image import Board
    from .installed import read_app

    part = Partition(Partition.RUNNING)
    try:
        size = read_app(part, Board(part)).size
    except ImageError:
        return ()
    sizes = [size]
    end = (size + _SECTOR - 1) // _SECTOR * _SECTOR
    head = bytearray(1)
    if end + _SECTOR <= part.info()[3]:
        part.readblocks(end // _SECTOR, head, 0)
        if head[0] == _SIGNATURE_MAGIC:
            sizes.append(end + _SECTOR)
    return [digest(part, size).hex() for size in sizes]


def digest(part, size):
    """SHA-256 of the first ``size`` bytes of a partition, None if it is not that large."""
    if size > part.info()[3]:
        return None
    sha = sha256()
    buf = bytearray(_SECTOR)
    for at in range(0, size, _SECTOR):
        part.readblocks(at // _SECTOR, buf)
        sha.update(buf if size - at >= _SECTOR else memoryview(buf)[: size - at])
    return sha.digest()
