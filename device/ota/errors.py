"""What can go wrong in an update: every error is an OTAError with a stable ``code``.

OTAError is a ValueError because that is what micropython-esp32-ota raises when a check fails (a
MicroPython class cannot be an OSError as well).
"""


class OTAError(ValueError):
    """An update that did not happen. ``str(error)`` says why in words, ``error.code`` in one."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


class SourceError(OTAError):
    """The bytes could not be had.

    Codes: address, dns, connect, tls, certificate, timeout, connection, http-status, redirect,
    protocol, short, changed, not-found, read.
    ``status`` is the HTTP status if the server answered with one that is no success,
    ``retry_after`` then its header Retry-After as text.
    """

    status = retry_after = None


class ImageError(OTAError):
    """The bytes are no app image that this board could boot.

    Codes: empty, not-an-image, no-app, no-table, wrong-chip, chip-revision, segment-count,
    segment-length, mapping, load-address, no-app-desc, no-digest, too-long, truncated, trailing,
    digest, sha, length.
    """


class FrameError(OTAError):
    """An encoded payload is damaged, or a delta is not for the app that runs.

    Codes: frame, truncated, base.
    """


class SlotError(OTAError):
    """The flash did not take the bytes. Codes: no-slot, flash."""


class StateError(OTAError):
    """The board is not in a state for this.

    Codes: unconfirmed, failed-version, aborted, closed, not-bootable, no-previous.
    """


class ReleaseError(OTAError):
    """The release is not for this board, or not to be trusted.

    Codes: manifest, signature, unsigned, untrusted, retired-key, keys, key-store, counter, expired,
    clock, wrong-name, wrong-chip, wrong-board, from-version, too-long, no-form, no-partition,
    disk-full, member, tar, link, path, digest, truncated, certs.
    """
