"""Reads ustar as it streams by: a bundle, and the files payload in it."""

from micropython import const

from .base import ReleaseError

_BLOCK = const(512)
_MAX_SIZE = const(0x7FFFFFFF)  # as in a manifest
_MAX_ZEROS = const(20)  # blocks at the end: tar fills up to 10 KiB


class TarReader:
    """A stage (pump.py) that takes a tar file apart.

    ``open_member(name, size, is_directory)`` is called for each member; what it returns is the
    stage for its content, or None skips it. ``what`` names the file in errors. Raises ReleaseError
    for damage, links, other dialects, and for what is behind the end.
    """

    def __init__(self, open_member, what):
        self._open = open_member
        self._what = what
        self._head = bytearray(_BLOCK)
        self._have = 0  # bytes of the header at hand
        self._left = 0  # bytes of the member at hand
        self._padding = 0
        self._name = None
        self._sink = None
        self.next = None  # (name, size, is_directory) of a member that is to be opened
        self._zeros = 0  # blocks of zeros, of which two are the end

    def wanted(self):
        if self._left:
            return min(self._left, self._sink.wanted()) if self._sink else self._left
        return self._padding or _BLOCK - self._have

    def write(self, view):
        count = len(view)
        if self._left:
            if self._sink:
                self._sink.write(view)
            self._left -= count
        elif self._padding:
            self._padding -= count
        else:
            end = self._have + count
            self._head[self._have : end] = view
            self._have = end % _BLOCK
            if end == _BLOCK:
                self._take_header()

    def work(self):
        if self.next:
            member, self.next = self.next, None
            self._sink = self._open(*member)
            return True
        sink = self._sink
        if not sink:
            return False
        if sink.work():
            return True
        if self._left and not sink.wanted():
            raise self._error("tar", "has more in '%s' than belongs there" % self._name)
        if not self._left:
            self._sink = None
            sink.finish()
            return True
        return False

    def skip(self):
        """Pass over what comes next as far as nobody wants it; returns how many bytes."""
        if not self._left:
            return 0
        if self._sink:
            count = self._sink.skip()
            if count > self._left:
                raise self._error("tar", "has too little in '%s'" % self._name)
            self._left -= count
            return count
        count = self._left + self._padding
        self._left = self._padding = 0
        return count

    def finish(self):
        """Raises ReleaseError if the file has not ended: no more bytes come."""
        if self._left:
            raise self._error(
                "tar", "is truncated: %d bytes of '%s' are missing" % (self._left, self._name)
            )
        if self._zeros < 2 or self._have:
            raise self._error("tar", "is truncated: it ends without its two blocks of zeros")

    def _error(self, code, text):
        return ReleaseError(code, "%s %s" % (self._what, text))

    def _take_header(self):
        head = self._head
        if not any(head):
            self._zeros += 1
            if self._zeros > _MAX_ZEROS:
                raise self._error("tar", "has more than %d blocks of zeros" % _MAX_ZEROS)
            return
        if self._zeros:
            raise self._error("tar", "goes on after a block of zeros")
        total = sum(head) - sum(head[148:156]) + 8 * 32
        if self._octal(148, 156) != total:
            raise self._error("tar", "has a damaged header: its checksum does not fit")
        if head[257:265] != b"ustar\x0000":
            raise self._error("tar", "is not POSIX ustar (tar --format=ustar)")
        kind = head[156]
        name = self._text(0, 100)
        prefix = self._text(345, 500)
        if prefix:
            name = prefix + "/" + name
        is_directory = kind == 0x35  # "5"
        if is_directory and name.endswith("/"):
            name = name[:-1]
        if not name:
            raise self._error("tar", "has a member without a name")
        if not is_directory and kind not in (0, 0x30):  # "0"
            raise self._error("link", "has '%s', which is a link or device" % name)
        size = self._octal(124, 136)
        if size > _MAX_SIZE:
            raise self._error("tar", "has a member of %d bytes, '%s'" % (size, name))
        if is_directory and size:
            raise self._error("tar", "has a directory '%s' with content" % name)
        self._name = name
        self._left = size
        self._padding = -size % _BLOCK
        self.next = name, size, is_directory

    def _text(self, start, end):
        data = bytes(self._head[start:end]).split(b"\0", 1)[0]
        try:
            return str(data, "utf-8")
        except ValueError:
            raise self._error("tar", "has a name that is not UTF-8")

    def _octal(self, start, end):
        digits = bytes(self._head[start:end]).strip(b"\0 ")
        if not digits or any(not 0x30 <= digit <= 0x37 for digit in digits):
            raise self._error("tar", "has a damaged header: a number is not octal")
        return int(digits, 8)
