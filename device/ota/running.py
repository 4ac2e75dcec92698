"""The app that runs, as a file: what a delta may start from."""

from hashlib import sha256

from esp32 import Partition
from micropython import const

from . import otadata

_SECTOR = const(4096)
_SIGNATURE_MAGIC = const(0xE7)

_known = {}  # size -> SHA-256: what runs does not change


def finding(buf):
    """A generator: the SHA-256 (hex) of the image that runs, and of it with its signature, if any.

    ``buf``: a memoryview of up to a sector to read with.
    """
    part = Partition(Partition.RUNNING)
    size = otadata.image_size(part)
    sizes = [size]
    end = (size + _SECTOR - 1) // _SECTOR * _SECTOR
    if end + _SECTOR <= part.info()[3]:
        part.readblocks(end // _SECTOR, buf[:1], 0)
        if buf[0] == _SIGNATURE_MAGIC:
            sizes.append(end + _SECTOR)
    found = []
    for size in sizes:
        digest = yield from digesting(size, buf)
        found.append(digest.hex())
    return found


def digesting(size, buf):
    """A generator: the SHA-256 of the first ``size`` bytes, None if the partition is smaller."""
    part = Partition(Partition.RUNNING)
    if size > part.info()[3]:
        return None
    if size not in _known:
        sha = sha256()
        piece = len(buf)
        for at in range(0, size, piece):
            part.readblocks(at // _SECTOR, buf, at % _SECTOR)
            sha.update(buf if size - at >= piece else buf[: size - at])
            yield 0
        _known[size] = sha.digest()
    return _known[size]
