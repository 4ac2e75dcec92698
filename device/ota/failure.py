"""What goes wrong, in words: loaded when it does.

Errors whose text takes no more than a line stand where they arise.
"""

from micropython import const

from .base import ImageError, OTAError, SlotError, SourceError

_NAMED = const(4)  # lost bytes that an error names


def explained(error, what):
    """The OTAError for an OSError or ImportError in the update from ``what``."""
    if isinstance(error, OSError):
        return OTAError("io", "%s: the flash or the file system fails: %s" % (what, error))
    from .status import missing

    return missing(error)


# --- sources


def too_long(name, limit):
    return SourceError("too-long", "%s has more than %d bytes, the limit here" % (name, limit))


def too_short(name, size, due):
    return SourceError("too-short", "%s has %d bytes, at least %d are due" % (name, size, due))


# --- flash


def lost(writer):
    """The SlotError for the sector at hand of a SlotWriter, which the flash does not hold."""
    count = 0
    places = ""
    for number, piece in enumerate(writer.pieces):
        writer.read(number)
        for at, byte in enumerate(piece):
            if writer.check[at] != byte:
                if count < _NAMED:
                    place = writer.at + number * len(piece) + at
                    places += "%s0x%x" % (", " if places else "", place)
                count += 1
    return SlotError(
        "flash",
        "flash lost %d bytes of %s, twice, at offset %s%s"
        % (count, writer.name, places, ", ..." if count > _NAMED else ""),
    )


# --- images

_IMAGE_TEXTS = {
    "not-an-image": "%s",
    "wrong-chip": "%s is for %s, this board is %s",
    "chip-revision": "%s needs chip revision v%d.%d or newer, this chip is v%d.%d at most",
    "chip-revision 2": "%s needs chip revision v%d.%d or older, this chip is v%d.%d at least",
    "segment-count": "the image has %d segments, 1 to %d are possible",
    "no-digest": "the image carries no SHA-256 digest: pass the file's as sha=",
    "segment-length": "segment %d (at 0x%x) has length 0x%x, which cannot be: "
    "the file is damaged or bytes are missing before it",
    "load-address": "segment %d (0x%08x-0x%08x) %s",
    "no-app-desc": "the image has no app_desc: it is no app (a bootloader, perhaps)",
    "no-app-desc 2": "segment 0 has 0x%x bytes, app_desc alone has 0x100",
    "mapping": "segment %d is to be mapped to 0x%08x, its data at flash 0x%x does not align",
    "mmu-pages": "the image was built for MMU pages of 0x%x bytes, with which this bootloader "
    "cannot map it in %s",
    "too-long": "the app image is %d bytes%s, %s holds %d: it needs a larger slot",
    "truncated": "the file is %d bytes, an image's header alone has 24",
    "truncated 2": "the image ends after %d bytes, in segment %d of %d: "
    "%d bytes or more are missing",
    "truncated 3": "the image ends after %d bytes of %d: %d bytes are missing",
    "trailing": "bytes that are no part of it follow the image of %d bytes",
    "secure-version": "the image has secure_version %d, the app that runs has %d",
    "digest": "the image is damaged: its SHA-256 is not %s, which it carries",
    "digest 2": "the image is not the one that its signature is for",
}


_LOOKS = (
    (b"<", "it looks like a web page"),
    (b"{", "it looks like JSON"),
    (b"\x1f\x8b", "it is gzip-compressed"),
    (b"PK", "it is a zip archive"),
    (b"UF2\n", "it is a UF2 file"),
    (b"\x7fELF", "it is an ELF file: use the .bin beside it"),
    (b"\0\0\0\0", "it starts with zeros"),
    (b"\xff\xff\xff\xff", "it is erased"),
)


def _describe(head):
    """What a file that is no image seems to be, in words, by its first bytes."""
    head = bytes(head[:16])
    for magic, what in _LOOKS:
        if head.startswith(magic):
            return "this is no firmware: " + what
    return "this is no firmware: it starts with 0x%02x, an image with 0xe9" % head[0]


def refused(key, *args):
    """The ImageError for ``key``: a code, with a number where it has more than one text."""
    if key == "wrong-chip":
        from .chips import chip_name

        args = args[0], chip_name(args[1]), chip_name(args[2])
    elif key == "not-an-image":
        args = (_describe(args[0]),)
    return ImageError(key.partition(" ")[0], _IMAGE_TEXTS[key] % args)
