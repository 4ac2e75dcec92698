"""The kinds of payloads that a release can have: a row each.

What is told of them here is the same on boards (device/ota/manifest.py). How files of the desk
become one is told in release/build.py, what a board does with one in device/ota/release.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpota.formats.tar import disk_size, read_tree


@dataclass(frozen=True)
class PayloadKind:
    """What the manifest's rules are for a kind, which goes by ``name`` there."""

    name: str
    is_single: bool = True  # a release has one at most
    needs_chip: bool = False  # the release is for one chip
    has_partition: bool = False  # field ``partition``; written in place, so that it comes last
    has_tree: bool = False  # a tar file; field ``disk``
    may_chain: bool = False  # a board verifies it piece by piece: formats/chain.py

    @property
    def is_checked_whole(self) -> bool:
        """Whether content has rules of its own, besides its digest: see `check`."""
        return self.has_tree

    def check(self, content: bytes) -> None:
        """Raises MpotaError for a content that a board would refuse."""
        if self.has_tree:
            read_tree(content)

    def disk_size(self, content: bytes) -> int | None:
        """Bytes of file system that ``content`` takes; None for a kind without field ``disk``."""
        return disk_size(read_tree(content)) if self.has_tree else None


APP, FILES, CERTS, DATA = "app", "files", "certs", "data"
# In the order in which a board takes them.
KINDS = {
    kind.name: kind
    for kind in (
        PayloadKind(APP, needs_chip=True),
        PayloadKind(FILES, has_tree=True),
        PayloadKind(CERTS),
        PayloadKind(DATA, is_single=False, has_partition=True, may_chain=True),
    )
}
