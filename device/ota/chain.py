"""Content of a data partition: nothing of it is written before it is verified.

A data payload comes as a chain (the desk's ``mpota/formats/chain.py``): pieces of 4 KiB, each
followed by the SHA-256 of the next piece and what follows that; the manifest has that of the first.
The first two sectors of the partition come last: what is half-written cannot be mounted (littlefs
has a superblock in both).
"""

from hashlib import sha256

from micropython import const

from .base import ReleaseError, unload
from .slot import HEAD_SIZE, SlotWriter

_SECTOR = const(4096)
_LINK_SIZE = const(32)
_FRAME_SIZE = const(4128)
_HEAD_SIZE = const(8192)  # of the partition, which comes last


class DataWriter:
    """A stage that writes ``size`` bytes, in the order in which a chain brings them.

    ``buf``: ROOM bytes. ``at``: bytes that an earlier attempt has brought, before those of the
    first two sectors. ``written``: bytes that the flash holds.
    """

    def __init__(self, partition, size, verify, buf, at=0):
        self._size = size
        self._tail = self.last_resume(size)  # bytes that come before the first two sectors
        self.written = at
        self._writer = writer = SlotWriter(
            partition, self._passed, verify, head_size=HEAD_SIZE, buf=buf
        )
        self._blank_end = 0  # end of the bytes that `work` has erased
        self._left_out = self._have = at
        if at < self._tail:
            writer.at = _HEAD_SIZE + at
        else:
            self._begin_head()

    @staticmethod
    def last_resume(size):
        """Bytes after which an update of ``size`` bytes can be gone on with at most."""
        return size - min(size, _HEAD_SIZE)

    def _begin_head(self):
        """From now on bytes belong to the first two sectors, which `work` erases."""
        self._writer.at = 0
        self._writer.blank_end = _HEAD_SIZE

    def _passed(self, buf):
        if not self.written:
            unload("begin", "otadata")  # slot.py asked whether 64 KiB can be erased at once
        self.written = min(self.written + _SECTOR, self._have)

    def wanted(self):
        return self._size - self._have

    def work(self):
        at = self._blank_end
        if at < min(_HEAD_SIZE, self._writer.limit):
            if not self._writer.is_blank(at, _SECTOR):
                self._writer.erase_sector(at)
            self._blank_end = at + _SECTOR
            return True
        if self._writer.at or self._have == self._size:
            return self._writer.work()
        return False  # the first sector waits until the second one is known

    def buffer(self):
        """Where the next bytes belong."""
        buf = self._writer.buffer()
        left = (self._tail if self._have < self._tail else self._size) - self._have
        return buf if len(buf) <= left else buf[:left]

    def take(self, count):
        self._have += count
        self._writer.take(count)
        if self._have == self._tail:
            self._writer.close()
            self._begin_head()

    def write(self, view):
        while view:
            place = self.buffer()
            count = min(len(view), len(place))
            place[:count] = view[:count]
            self.take(count)
            view = view[count:]

    def skip(self):
        count = self._left_out
        self._left_out = 0
        return count

    def finish(self):
        if self._have < self._size:
            raise ReleaseError(
                "member", "the data payload gave %d bytes of %d" % (self._have, self._size)
            )
        self._writer.close()
        from .finish import write_head

        write_head(self._writer)


class Chain:
    """A stage that lets verified pieces of a chain pass. Raises ReleaseError ("digest").

    ``size``: of the chain; ``link``: SHA-256 of its first piece and what follows that; ``sink``:
    the next stage; ``mark`` (release.py): ``sink`` may begin where that stands.
    ``is_plain``: what passes is the content itself, not an encoded form of it, which notes by
    itself. ``buf``: a bytearray of 4128 bytes or more.
    """

    def __init__(self, sink, size, link, mark, is_plain, buf):
        self.sink = sink
        self._mark = mark
        self._is_plain = is_plain
        self._link = self._next_link = link
        self._left = size  # bytes that have not come
        self._buf = memoryview(buf)[:_FRAME_SIZE]
        self._have = 0
        self._is_begun = False  # a piece is verified: now `sink` may write
        self._rest = None  # of a verified piece: what has not gone on
        self._piece = 0  # number of that piece, or of the one that comes
        self._place = 0  # of what goes on next, counted without the links
        self._left_out = 0  # bytes that come and are not wanted
        self._drop = 0  # bytes of the piece that comes that are not wanted
        self.at, self.place = mark.at, mark.place

    def note(self, at, place):
        """`Frames` has come so far: what comes next is in the piece at hand."""
        self._mark.note(at, place, self._link)

    def forget(self):
        self._mark.forget()

    def wanted(self):
        return self._left_out or min(len(self._buf) - self._have, self._left)

    def write(self, view):
        count = len(view)
        self._left -= count
        if self._left_out:
            self._left_out -= count
            return
        self._buf[self._have : self._have + count] = view
        self._have += count
        if self._have == _FRAME_SIZE or not self._left:
            self._verify()

    def _verify(self):
        frame = self._buf[: self._have]
        if sha256(frame).digest() != self._link:
            if self._link is self._mark.more:  # which may be what is wrong
                self._mark.forget()
            raise ReleaseError(
                "digest",
                "the data payload is not what its manifest says, from byte %d on: nothing of that "
                "was written" % (self._piece * _SECTOR),
            )
        end = self._have
        if self._left:
            end -= _LINK_SIZE
            self._next_link = bytes(frame[end:])
        self._rest = frame[self._drop : end]
        self._drop = self._have = 0
        if not self._is_begun:
            self._is_begun = True
            if not self._mark.at:  # what is noted of another release ends with what comes
                self._mark.forget()

    def work(self):
        sink = self.sink
        if self._is_begun and sink.work():
            return True
        count = sink.skip()
        if count:
            self._jump(self._place + count)
            return True
        rest = self._rest
        if rest is None:
            return False
        if not rest:
            self._rest = None
            self._piece += 1
            self._link = self._next_link
            return True
        count = min(sink.wanted(), len(rest))
        if not count:
            raise ReleaseError("member", "the data payload goes on behind its end")
        sink.write(rest[:count])
        self._rest = rest[count:]
        self._place += count
        if self._is_plain:
            self.note(self._place, self._place)
        return True

    def _jump(self, place):
        """Skip to where an earlier attempt ended."""
        piece = (place - 1) // _SECTOR
        if self._rest is not None:
            if piece == self._piece:
                self._rest = self._rest[place - self._place :]
                self._place = place
                return
            self._piece += 1
            self._rest = None
        if place != self.place or (piece - self._piece) * _FRAME_SIZE >= self._left:
            self._mark.forget()
            raise ReleaseError("member", "the data payload cannot be gone on with at %d" % place)
        self._left_out = (piece - self._piece) * _FRAME_SIZE
        self._drop = place - piece * _SECTOR
        self._piece = piece
        self._place = place
        self._link = self._mark.more

    def skip(self):
        count = self._left_out
        self._left_out = 0
        self._left -= count
        return count

    def finish(self):
        if self._left:
            raise ReleaseError("member", "the data payload ends %d bytes early" % self._left)
        self.sink.finish()
        self._mark.forget()


class HeadLast:
    """A stage for a payload without a chain: the first two sectors are kept until all is known.

    ``digest``: its SHA-256; ``head``: a bytearray for them. Only where no keys are installed: what
    is written before may be anything.
    """

    def __init__(self, writer, size, digest, head):
        self._writer = writer
        self._sha = sha256()
        self._digest = digest
        self._left = size
        self._head = memoryview(head)
        self._have = 0
        self.work = writer.work
        self.skip = writer.skip

    def wanted(self):
        return min(self._left, len(self._head) - self._have or self._left)

    def write(self, view):
        self._sha.update(view)
        self._left -= len(view)
        if self._have < len(self._head):
            self._head[self._have : self._have + len(view)] = view
            self._have += len(view)
        else:
            self._writer.write(view)

    def finish(self):
        if self._left:
            raise ReleaseError("member", "the data payload ends %d bytes early" % self._left)
        if self._sha.digest() != self._digest:
            raise ReleaseError(
                "digest", "the data payload has not the SHA-256 that its manifest says"
            )
        self._writer.write(self._head)
        self._writer.finish()


# --- what is here already

_COMES = const(0x2B)  # "+"
_TAKEN = const(0x3D)  # "="
_DIRECTORY = const(0x2F)  # "/"
_MAX_NAME = const(100)
_RECORD = const(2)
_SIZE = const(4)
_BLOCK = const(512)


class Thin:
    """A stage (pump.py) that makes a `files` payload whole with files of the tree in use.

    It comes in a member whose name ends in ".thin", a record for each entry of its tar file (the
    desk's ``mpota/formats/thin.py``)::

        u8 kind     "+" a file that comes, "=" one of the tree in use, "/" a directory
        u8 length of the path, the path (UTF-8)
        "+": u32 size, and the content

    What goes on to ``sink`` is the tar file that the manifest speaks of, byte for byte. It is
    judged by the digest there: what is taken is verified as what has come is. ``buf``: a memoryview
    of a sector. Raises ReleaseError, "base" for files other than those that the desk counted on.
    """

    def __init__(self, sink, buf):
        self._sink = sink
        from .confirm import header, tree, zeros

        self._header = header
        self._zeros = zeros
        self._tree = tree()
        self._buf = buf
        self._head = bytearray(_RECORD + _MAX_NAME + _SIZE)
        self._have = 0  # bytes of a record
        self._due = _RECORD
        self._left = 0  # bytes of a file that come
        self._padding = 0
        self._out = None  # bytes for the next stage
        self._file = None  # the file of the tree in use that is copied

    def wanted(self):
        return min(self._left, self._sink.wanted()) if self._left else self._due - self._have

    def write(self, view):
        count = len(view)
        if self._left:
            self._sink.write(view)
            self._left -= count
            return
        self._head[self._have : self._have + count] = view
        self._have += count
        if self._have == self._due:
            self._take_record()

    def _take_record(self):
        head = self._head
        kind, length = head[0], head[1]
        end = _RECORD + length
        if self._have == _RECORD:
            if kind not in (_COMES, _TAKEN, _DIRECTORY) or not 0 < length <= _MAX_NAME:
                raise ReleaseError("tar", "the thin files payload has a damaged record")
            self._due = end + (_SIZE if kind == _COMES else 0)
            return
        self._have, self._due = 0, _RECORD
        name = bytes(head[_RECORD:end])
        size = 0
        if kind == _COMES:
            size = self._left = int.from_bytes(head[end : end + _SIZE], "little")
        elif kind == _TAKEN:
            size = self._open(name)
        self._padding = -size % _BLOCK
        self._out = self._header(self._buf, name, size, kind == _DIRECTORY)

    def _open(self, name):
        from os import stat

        from .files import check_path

        try:
            path = str(name, "utf-8")
        except UnicodeError:
            raise _not_there()
        check_path(path)
        try:
            path = self._tree + "/" + path
            self._file = open(path, "rb")
            return stat(path)[6]
        except (OSError, TypeError):
            raise _not_there()

    def work(self):
        sink = self._sink
        if sink.work():
            return True
        out = self._out
        if out:
            count = min(len(out), sink.wanted())
            sink.write(out[:count])
            self._out = out[count:]
            return True
        if self._file:
            count = self._file.readinto(self._buf)
            if not count:
                self.abort()
            self._out = self._buf[:count]
            return True
        if self._padding and not self._left:
            self._out, self._padding = self._zeros(self._buf, self._padding), 0
            return True
        return False

    def skip(self):
        return 0

    def abort(self):
        file, self._file = self._file, None
        if file:
            file.close()

    def finish(self):
        if self._have or self._left:
            raise ReleaseError("tar", "the thin files payload is truncated")
        self._out = self._zeros(self._buf, 2 * _BLOCK)
        while self.work():
            pass
        try:
            self._sink.finish()
        except ReleaseError as error:
            raise _not_there() if error.code == "digest" else error


def _not_there():
    return ReleaseError(
        "base", "the release takes files from those in use that this board does not have so"
    )
