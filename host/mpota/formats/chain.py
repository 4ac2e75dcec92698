"""Chained streams: bytes that a board verifies piece by piece before it writes them.

The stream is cut into pieces of 4096 bytes, each followed by the link of the next frame; a link is
the SHA-256 of a frame. The first link stands in the signed manifest, so every frame is known
before it comes, and a board needs memory for one of them only::

    frame   4096  piece of the stream          the last frame: 1 to 4096 bytes of it,
              32  SHA-256 of the next frame    and no link

What is chained is the content of a data partition with its first two sectors at its end
(`head_last`), so that a file system that is half written has no superblock, or frames of deflate of
that (formats/frames.py).
"""

from __future__ import annotations

import hashlib

from mpota.errors import MpotaError

PIECE_SIZE = 4096
LINK_SIZE = 32
FRAME_SIZE = PIECE_SIZE + LINK_SIZE
HEAD_SIZE = 8192


def make_chain(stream: bytes) -> tuple[bytes, bytes]:
    """(the chained stream, its first link). Raises MpotaError for an empty ``stream``."""
    if not stream:
        raise MpotaError("there is nothing to chain: the content is empty")
    frames: list[bytes] = []
    link = b""
    for at in reversed(range(0, len(stream), PIECE_SIZE)):
        frames.append(stream[at : at + PIECE_SIZE] + link)
        link = hashlib.sha256(frames[-1]).digest()
    return b"".join(reversed(frames)), link


def read_chain(chained: bytes, link: bytes) -> bytes:
    """The stream in a chain whose first link is ``link``.

    Raises MpotaError, naming the frame, for anything that is not what its link says.
    """
    check_size(len(chained))
    pieces = []
    for at in range(0, len(chained), FRAME_SIZE):
        frame = chained[at : at + FRAME_SIZE]
        if hashlib.sha256(frame).digest() != link:
            raise MpotaError(f"chained stream is damaged in frame {at // FRAME_SIZE}, at {at:#x}")
        pieces.append(frame[:PIECE_SIZE])
        link = frame[PIECE_SIZE:]
    return b"".join(pieces)


def check_size(size: int, stream_size: int | None = None) -> None:
    """Raises MpotaError unless a chain of ``stream_size`` bytes (None: any) may have ``size``."""
    links, rest = divmod(size, FRAME_SIZE)
    if not 1 <= rest <= PIECE_SIZE or stream_size not in (None, size - links * LINK_SIZE):
        of = "" if stream_size is None else f" of {stream_size:,} bytes of content"
        raise MpotaError(f"{size:,} bytes are no chained stream{of}")


def head_last(content: bytes) -> bytes:
    """The content of a partition in the order in which a board writes it."""
    return content[HEAD_SIZE:] + content[:HEAD_SIZE]


def head_first(stream: bytes) -> bytes:
    """What `head_last` started from."""
    head = min(HEAD_SIZE, len(stream))
    return stream[len(stream) - head :] + stream[: len(stream) - head]
