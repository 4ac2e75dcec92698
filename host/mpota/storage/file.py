"""Files as storage: read whole, written whole or not at all."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mpota.errors import MpotaError, UsageError
from mpota.units import MiB

MAX_FILE_SIZE = 256 * MiB  # twice the largest flash that an image can declare
MAX_SECRET_SIZE = 8192  # bytes of a password, of a token, and of the file that has one
_SHOWN_NAME = 40  # letters of a file's name in that of its temporary one
_numbers = itertools.count()


@dataclass(frozen=True)
class FileImage:
    """Flash contents in memory: ``data`` stands at flash address ``base``, all around is 0xFF."""

    base: int
    data: bytes

    @property
    def chip_revision(self) -> None:
        """None: a file belongs to no chip."""

    @property
    def block_revision(self) -> None:
        """None, as for `chip_revision`."""

    @property
    def end(self) -> int:
        """The first flash address behind the data."""
        return self.base + len(self.data)

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from flash address ``offset``."""
        start = max(offset, self.base)
        stop = min(offset + size, self.end)
        if start >= stop:
            return b"\xff" * size
        found = self.data[start - self.base : stop - self.base]
        return b"\xff" * (start - offset) + found + b"\xff" * (offset + size - stop)


def read_credentials(name: str) -> tuple[str, str]:
    """User and password of a file with USER:PASSWORD in it. Raises UsageError for another one."""
    text = read_file(Path(name))[:MAX_SECRET_SIZE].decode("utf-8", "replace").strip()
    user, colon, password = text.partition(":")
    if not colon:
        raise UsageError(f"'{name}' is not USER:PASSWORD")
    return user, password


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The content of a file. Raises UsageError if it cannot be read, MpotaError if it is empty."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            # A pipe would block, a device never end.
            raise UsageError(f"cannot read '{os.fspath(path)}': it is no regular file")
        _check_size(path, status.st_size)
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        raise UsageError(f"cannot read '{os.fspath(path)}': {error.strerror}") from None
    if not data:
        raise MpotaError(f"'{os.fspath(path)}' is empty")
    _check_size(path, len(data))
    return data


def _check_size(path: str | os.PathLike[str], size: int) -> None:
    if size > MAX_FILE_SIZE:
        raise MpotaError(
            f"'{os.fspath(path)}' is larger than {MAX_FILE_SIZE:,} bytes, the limit of a firmware"
        )


def check_output(path: Path, inputs: tuple[Path, ...] = (), *, force: bool = False) -> None:
    """Raises UsageError if ``path`` cannot be an output: it is an input, no file, or it exists
    and ``force`` is not given.
    """
    if any(_is_same_file(path, source) for source in inputs):
        raise UsageError(f"output '{path}' is the input: the input is never changed")
    exists = os.path.lexists(path)
    if exists and not os.path.isfile(path):
        raise UsageError(f"cannot write '{path}': it is no regular file")
    if exists and not force:
        raise UsageError(f"'{path}' exists", "use --force to overwrite it, or -o for another name")


def beside(path: Path, ending: str) -> Path:
    """A name for what is made of the file ``path``: its name without suffix, then ``ending``.

    Raises UsageError if ``path`` has no name.
    """
    if not path.name:
        raise UsageError(f"'{path}' is a directory, not a file")
    return path.with_name(path.stem + ending)


def make_directory(path: Path) -> None:
    """Make a directory and its parents, if it is missing. Raises UsageError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make directory '{path}': {error.strerror}") from None


def write_file(path: Path, data: bytes) -> None:
    """Write all of ``data`` to ``path`` or leave ``path`` as it was.

    Raises UsageError if the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error.

    A link stays one: what it points to is replaced. A ``private`` file is its owner's to read from
    its first byte on, whatever stood there before, and a link there is replaced itself. Raises
    UsageError if the file cannot be written.
    """
    target = Path(os.path.abspath(path) if private else os.path.realpath(path))
    # The start of the name is enough: a name of the greatest length leaves no room for more.
    name = f".{target.name[:_SHOWN_NAME]}.{os.getpid()}.{next(_numbers)}.tmp"
    temporary = target.with_name(name)
    try:
        try:
            mode = 0o600 if private else 0o666
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
            yield temporary
            if target.exists() and not private:
                temporary.chmod(target.stat().st_mode)
            temporary.replace(target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise UsageError(f"cannot write '{path}': {error.strerror}") from None


def from_os(name: str) -> str:
    """A name of a file here, or an argument, as text: its bytes may be UTF-8 where the locale, as
    C's, knows less.
    """
    try:
        return os.fsencode(name).decode("utf-8")
    except UnicodeError:
        return name


def to_os(name: str) -> str:
    """Text as the name of a file here: by the locale, where that cannot have it as UTF-8."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        with suppress(UnicodeEncodeError):
            return os.fsdecode(name.encode("utf-8", "surrogateescape"))
    return name


def _is_same_file(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return False
