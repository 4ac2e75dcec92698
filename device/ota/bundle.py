"""Takes a bundle apart as it streams by: manifest, signature, payloads, in one tar file."""

from micropython import const

from .errors import ReleaseError
from .manifest import MAX_SIZE
from .signature import SECTOR
from .tar import TarReader

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
        self._forms = None  # (payload, form) that have not come yet, once the manifest is accepted

    def write(self, buf):
        self._tar.write(buf)

    def finish(self):
        """No more bytes come: all of the payloads must have."""
        self._tar.finish()
        if self._forms is None:
            self._accept()
        if self._forms:
            raise ReleaseError(
                "member", "the bundle lacks its member '%s'" % self._forms[0][1].member
            )

    def _open_member(self, name, size, is_directory):
        if is_directory:
            raise ReleaseError("member", "the bundle has a directory, '%s'" % name)
        if self._manifest is None:
            self._manifest = _Collector(name, size, _MANIFEST, MAX_SIZE)
            return self._manifest
        if self._signature is None and self._forms is None and name == _SIGNATURE:
            self._signature = _Collector(name, size, _SIGNATURE, SECTOR)
            return self._signature
        if self._forms is None:
            self._accept()
        if not self._forms:
            raise ReleaseError("member", "the bundle has a member too many, '%s'" % name)
        payload, form = self._forms.pop(0)
        if name != form.member:
            raise ReleaseError(
                "member", "the bundle has '%s' where '%s' is due" % (name, form.member)
            )
        if size != form.size:
            raise ReleaseError(
                "member",
                "member '%s' is %d bytes, the manifest says %d" % (name, size, form.size),
            )
        return self._release.open(payload, form)

    def _accept(self):
        if self._manifest is None:
            raise ReleaseError("member", "the bundle is empty")
        signature = self._signature.data if self._signature else None
        self._release.accept(self._manifest.data, signature, "member")
        self._forms = [
            (payload, form)
            for payload in self._release.manifest.payloads
            for form in payload.forms
            if form.member
        ]
        self._signature = None


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
