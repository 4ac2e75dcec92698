"""Takes a bundle apart as it streams by: manifest, signature, payloads, in one tar file."""

from micropython import const

from .errors import ReleaseError
from .tar import TarReader

_MAX_MANIFEST = const(8192)
_SECTOR = const(4096)
_MANIFEST = "manifest.json"
_SIGNATURE = "manifest.sig"
_HEAD_SIZE = const(14)


def is_bundle(head):
    """Whether a file that starts with these bytes is a bundle: its first member tells."""
    return bytes(head[:_HEAD_SIZE]) == b"manifest.json\0"


class Bundle:
    """A stage for a bundle. ``release``: see release.py; it judges, and makes the payloads' sinks.

    Raises ReleaseError for members that are missing, too many, in another order or of another
    size than the manifest says, and what the release raises.
    """

    is_complete = False  # zeros may follow the end

    def __init__(self, release):
        self._release = release
        self._tar = TarReader(self._open_member, "the bundle")
        self._manifest = None
        self._signature = None
        self._items = None  # those that have not come yet, once the manifest is accepted

    def write(self, buf):
        self._tar.write(buf)

    def skip(self):
        """Pass over what comes next and is not wanted; returns how many bytes."""
        return self._tar.skip()

    def finish(self):
        """No more bytes come: all of the payloads must have."""
        self._tar.finish()
        if self._items is None:
            self._accept()
        if self._items:
            raise ReleaseError("member", "the bundle lacks its member '%s'" % self._items[0].name)

    def _open_member(self, name, size, is_directory):
        if is_directory:
            raise ReleaseError("member", "the bundle has a directory, '%s'" % name)
        if self._manifest is None:
            self._manifest = _Collector(name, size, _MANIFEST, _MAX_MANIFEST)
            return self._manifest
        if self._signature is None and self._items is None and name == _SIGNATURE:
            self._signature = _Collector(name, size, _SIGNATURE, _SECTOR)
            return self._signature
        if self._items is None:
            self._accept()
        if not self._items:
            raise ReleaseError("member", "the bundle has a member too many, '%s'" % name)
        item = self._items.pop(0)
        if name != item.name:
            raise ReleaseError(
                "member", "the bundle has '%s' where '%s' is due" % (name, item.name)
            )
        if size != item.size:
            raise ReleaseError(
                "member",
                "member '%s' is %d bytes, the manifest says %d" % (name, size, item.size),
            )
        return self._release.open(item)

    def _accept(self):
        if self._manifest is None:
            raise ReleaseError("member", "the bundle is empty")
        signature = self._signature.data if self._signature else None
        manifest = self._manifest.data
        self._manifest.data = self._signature = None
        self._release.accept(manifest, signature, "member")
        self._items = list(self._release.items)


class _Collector:
    """A sink that keeps a small member whole."""

    def __init__(self, name, size, expected, limit):
        if name != expected:
            raise ReleaseError("member", "the bundle starts with '%s', not %s" % (name, expected))
        if size > limit:
            raise ReleaseError(
                "member", "member '%s' is %d bytes, at most %d" % (name, size, limit)
            )
        self.data = bytearray(size)
        self._have = 0

    def write(self, buf):
        self.data[self._have : self._have + len(buf)] = buf
        self._have += len(buf)

    def close(self):
        pass
