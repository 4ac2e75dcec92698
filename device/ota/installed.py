"""The image that stands in a slot: what it is, and whether it is intact."""

from hashlib import sha256

from .image import SECTOR, AppImage


def read_app(partition, board):
    """The AppImage in a slot: its headers read and checked, the data between them not.

    Raises ImageError if there is none that this board could boot.
    """
    image = AppImage(None, board, partition)
    field = image.next_field()
    while field:
        offset, buf = field
        partition.readblocks(offset // SECTOR, buf, offset % SECTOR)
        image.parse_field()
        field = image.next_field()
    return image


def is_intact(partition, image):
    """Whether the slot holds ``image`` with the digest that it carries."""
    sha = sha256()
    buf = bytearray(SECTOR)
    at = 0
    while at < image.digest_offset:
        count = min(SECTOR, image.digest_offset - at)
        piece = buf if count == SECTOR else memoryview(buf)[:count]
        partition.readblocks(at // SECTOR, piece, 0)
        sha.update(piece)
        at += count
    return sha.digest() == image.digest
