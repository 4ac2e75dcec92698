"""Says what a file is that is no firmware, by its first bytes. Loaded when one turns up."""

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


def describe(head):
    """What bytes that are no image look like."""
    head = bytes(head[:16])
    for magic, what in _LOOKS:
        if head.startswith(magic):
            return "this is no firmware: " + what
    return "this is no firmware: it starts with 0x%02x, an image with 0xe9" % head[0]
