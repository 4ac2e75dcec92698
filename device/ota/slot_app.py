"""The app that stands in a slot already: read, and checked as a whole."""

from hashlib import sha256

from esp32 import Partition
from micropython import const

from .base import ImageError, StateError

_SECTOR = const(4096)


def read_app(partition, board):
    """The AppImage in a slot: its headers read and checked, the data between them not.

    Raises ImageError if there is none that this board could boot.
    """
    from .image import AppImage

    image = AppImage(None, board, partition)
    field = image.next_field()
    while field:
        offset, buf = field
        partition.readblocks(offset // _SECTOR, buf, offset % _SECTOR)
        image.parse_field()
        field = image.next_field()
    return image


def is_intact(partition, image):
    """Whether the slot holds ``image`` with the digest that it carries."""
    sha = sha256()
    buf = bytearray(_SECTOR)
    at = 0
    while at < image.digest_offset:
        count = min(_SECTOR, image.digest_offset - at)
        piece = buf if count == _SECTOR else memoryview(buf)[:count]
        partition.readblocks(at // _SECTOR, piece, 0)
        sha.update(piece)
        at += count
    return sha.digest() == image.digest


def check_intact(partition):
    """Raises StateError for a slot whose app is not one that this board could boot."""
    from .image import Board

    try:
        if is_intact(partition, read_app(partition, Board(Partition(Partition.RUNNING)))):
            return
        reason = "its SHA-256 does not match"
    except ImageError as error:
        reason = str(error)
    raise StateError("not-bootable", "%s: %s" % (partition.info()[4], reason))
