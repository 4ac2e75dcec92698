"""What can go wrong in an update: every error is an OTAError with a stable ``code``.

OTAError is a ValueError because that is what micropython-esp32-ota raises when a check fails (a
MicroPython class cannot be an OSError as well).
"""

import gc


class OTAError(ValueError):
    """An update that did not happen. ``str(error)`` says why in words, ``error.code`` in one.

    The words may quote servers and files: control characters are shown as "?". Codes of all
    kinds: memory (see `no_memory`), io, part (of this package, that is not installed: package.py).
    """

    def __init__(self, code, text):
        super().__init__(clean(text))
        self.code = code


class SourceError(OTAError):
    """The bytes could not be had.

    Codes: address, dns, connect, tls, certificate, timeout, slow, connection, http-status,
    redirect, protocol, short, too-short, too-long, changed, no-range, json, not-found, read,
    memory.
    ``status`` is the HTTP status if the server answered with one that is no success,
    ``retry_after`` then its header Retry-After as text.
    """

    status = retry_after = None


def _kind(name):  # takes less heap than a class statement
    return type(name, (OTAError,), {})


# The bytes are no app image that this board could boot. Codes: empty, not-an-image, no-app,
# no-table, wrong-chip, chip-revision, segment-count, segment-length, mapping, load-address,
# no-app-desc, no-digest, too-long, truncated, trailing, digest, sha, length.
ImageError = _kind("ImageError")

# An encoded payload is damaged, or a delta is not for the app that runs. Codes: frame, truncated,
# base.
FrameError = _kind("FrameError")

# The flash did not take the bytes, or does not give them. Codes: no-slot, flash.
SlotError = _kind("SlotError")

# The board is not in a state for this. Codes: unconfirmed, failed-version, aborted, closed,
# not-bootable, no-previous.
StateError = _kind("StateError")

# The release is not for this board, or not to be trusted. Codes: manifest, format, signature,
# unsigned, untrusted, retired-key, keys, key-store, counter, downgrade, expired, clock, wrong-name,
# wrong-chip, wrong-board, from-version, too-long, no-form, no-chain, no-partition, disk-full,
# member, tar, link, path, digest, truncated, certs.
ReleaseError = _kind("ReleaseError")


def clean(text):
    """``text`` with a question mark for each control character, which a terminal would act on."""
    for letter in text:
        if letter < " " or "~" < letter < "\xa0":
            return "".join([c if " " <= c <= "~" or c >= "\xa0" else "?" for c in text])
    return text


_no_room = SourceError("memory", "not enough memory")  # where there is none to make an error


def no_memory(error, purpose, kind=OTAError):
    """The OTAError ("memory") for a MemoryError: what was wanted, what for, what was free."""
    gc.collect()
    try:
        text = "not enough memory for %s: %s, %d bytes are free, not all in one piece"
        return kind("memory", text % (purpose, error, gc.mem_free()))
    except MemoryError:
        return _no_room


def check_sha(sha, due):
    """Raises ImageError if a SHA-256 is not the one that was announced."""
    found = sha.digest()
    if found != due:
        raise ImageError("sha", "SHA mismatch recv=%s expect=%s." % (found.hex(), due.hex()))
