"""Where releases are published: the few verbs that directories and buckets have in common."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from mpota.errors import MpotaError, UsageError

MAX_OBJECT_SIZE = 64 * 1024 * 1024  # no payload of a release is larger: formats/bundle.py


class Tag(NamedTuple):
    """Identifies one state of a file; each store uses one of the two fields."""

    etag: str | None
    version: str | None = None


@dataclass(frozen=True)
class Stored:
    """A file that was read, and the tag of its state."""

    data: bytes
    tag: Tag


@dataclass(frozen=True)
class Listed:
    """A file that is there. ``changed``: when, in UTC."""

    path: str
    size: int
    changed: datetime


class Store(Protocol):
    """Files by their paths: relative, with slashes. Each verb does all or nothing.

    Raises MpotaError for what the store refuses, UsageError where it cannot be reached.
    """

    name: str  # what people call it

    def get(self, path: str, limit: int) -> Stored | None:
        """A file; None if there is none. Raises MpotaError if it has more than ``limit`` bytes."""

    def create(self, path: str, data: bytes) -> bool:
        """Write a file that will never change; False if there is one already."""

    def replace(self, path: str, data: bytes, former: Tag | None) -> bool:
        """Write a file if its state is still ``former`` (None: it is not there); False if not."""

    def holds(self, path: str, data: bytes) -> bool:
        """Whether the file at ``path`` has this content."""

    def list(self, folder: str) -> Iterator[Listed]:
        """The files in a folder ("" is the top one), without those in folders of it."""

    def delete(self, path: str) -> None:
        """Remove a file, if it is there."""


def open_store(target: str) -> Store:
    """The store that a TARGET means: a directory, or the URL of a bucket and a folder in it.

    Raises UsageError for another kind of URL, and where nobody has given credentials.
    """
    scheme = urlsplit(target).scheme if "://" in target else ""
    if not scheme:
        return Directory(Path(target))
    from mpota.publish.object_store import SCHEMES, open_bucket

    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise UsageError(f"'{target}' is no place to publish in", f"a directory, {known}")
    return open_bucket(target)


class Directory:
    """A directory. It is locked against publishers on the same machine, not for certain against
    others on a network drive."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._top = path
        if path.exists() and not path.is_dir():
            raise UsageError(f"'{path}' is not a directory")

    def get(self, path: str, limit: int) -> Stored | None:
        with self._errors(path):
            try:
                file = self._place(path).open("rb")
            except FileNotFoundError:
                return None
            with file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise MpotaError(f"{self.name}: '{path}' is no regular file")
                data = file.read(limit + 1)
        check_size(self.name, path, len(data), limit)
        return Stored(data, Tag(sha256(data).hexdigest()))

    def create(self, path: str, data: bytes) -> bool:
        with self._errors(path), self._written(path, data) as (new, target):
            try:
                os.link(new, target)
            except FileExistsError:
                return False
            except OSError:  # a file system without links
                if target.exists():
                    return False
                new.rename(target)
        return True

    def replace(self, path: str, data: bytes, former: Tag | None) -> bool:
        with self._errors(path), self._written(path, data) as (new, target), _locked(target.parent):
            found = self.get(path, MAX_OBJECT_SIZE)
            if (found.tag if found else None) != former:
                return False
            new.replace(target)
        return True

    def holds(self, path: str, data: bytes) -> bool:
        found = self.get(path, MAX_OBJECT_SIZE)
        return found is not None and found.data == data

    def list(self, folder: str) -> Iterator[Listed]:
        with self._errors(folder or "."):
            directory = self._place(folder)
            entries = sorted(directory.iterdir()) if directory.is_dir() else []
            found = [(entry, entry.stat()) for entry in entries if entry.is_file()]
        for entry, status in found:
            if not entry.name.startswith("."):
                changed = datetime.fromtimestamp(status.st_mtime, timezone.utc)
                yield Listed(f"{folder}/{entry.name}".lstrip("/"), status.st_size, changed)

    def delete(self, path: str) -> None:
        with self._errors(path):
            self._place(path).unlink(missing_ok=True)

    def _place(self, path: str) -> Path:
        return self._top.joinpath(*check_path(path))

    @contextmanager
    def _written(self, path: str, data: bytes) -> Iterator[tuple[Path, Path]]:
        """A hidden file with ``data`` beside the place of ``path``, on the disk, and that place."""
        target = self._place(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            with new.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield new, target
        finally:
            with suppress(OSError):
                new.unlink()

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(f"{self.name}: '{path}': {error.strerror}") from None


def check_path(path: str) -> list[str]:
    """The parts of a path. Raises MpotaError for one that leads elsewhere: it may come from a
    file that somebody else has put there.
    """
    parts = path.split("/") if path else []
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise MpotaError(f"'{path}' is no path of a published file")
    return parts


def check_size(store: str, path: str, size: int, limit: int) -> None:
    """Raises MpotaError for a file that has more bytes than it may have."""
    if size > limit:
        raise MpotaError(f"{store}: '{path}' has more than {limit:,} bytes")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Lock the directory against other publishers on this machine."""
    try:
        import fcntl
    except ImportError:  # Windows: without a lock, two at the same instant may collide
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
