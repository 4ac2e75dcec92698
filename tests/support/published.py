"""Bundles small enough to be published by the dozen, and stores that end or change in between."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mpota import cli
from mpota.firmware.sample import build_app
from mpota.publish.store import Listed, Store, Stored, Tag
from mpota.release.build import Content
from mpota.release.signing import public_to_pem

from tests.support import releases

APP_SIZE = 0x18000


@functools.cache
def app(version: str, chip: str = "esp32") -> bytes:
    return build_app(chip, version=version, size=APP_SIZE)


def write_bundle(
    path: Path,
    version: str,
    counter: int,
    chip: str = "esp32",
    *,
    number: int = 0,
    **fields: object,
) -> Path:
    """A signed bundle of app and files at ``path``; ``number``: the key."""
    content = Content("app", "app.bin", app(f"v{version}", chip), chip=chip)
    return _write(path, (content, releases.tree(version)), version, counter, chip, number, fields)


def write_files(path: Path, version: str, counter: int) -> Path:
    """A signed bundle of files alone."""
    return _write(path, (releases.tree(version),), version, counter, "esp32", 0, {})


def _write(
    path: Path,
    contents: tuple[Content, ...],
    version: str,
    counter: int,
    chip: str,
    number: int,
    fields: dict[str, object],
) -> Path:
    given = {"name": "pump", "version": version, "counter": counter, "chip": chip, **fields}
    made = releases.make(*contents, keys=(releases.key(number),), **given)
    path.write_bytes(made.to_bytes())
    return path


def write_keys(directory: Path) -> None:
    """key.pem, key.pub.pem; other.pem, other.pub.pem."""
    for number, name in enumerate(("key", "other")):
        key = releases.key(number)
        (directory / f"{name}.pem").write_bytes(key.to_pem())
        (directory / f"{name}.pub.pem").write_bytes(public_to_pem(key.public))


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    out: str
    error: str

    def __bool__(self) -> bool:
        return self.code == 0


def mpota(*arguments: object) -> Ended:
    """Run a command line here."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            cli.main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Ended(code, out.getvalue(), error.getvalue())


class Cut(KeyboardInterrupt):
    """The publisher is no more."""


class Watched:
    """A store that counts what changes it, and calls ``before`` with the number of each change."""

    def __init__(self, store: Store, before: Callable[[int], None] = lambda number: None) -> None:
        self.name = store.name
        self._store = store
        self._before = before
        self.changes = 0

    def _change(self) -> None:
        self._before(self.changes)
        self.changes += 1

    def get(self, path: str, limit: int) -> Stored | None:
        return self._store.get(path, limit)

    def create(self, path: str, data: bytes) -> bool:
        self._change()
        return self._store.create(path, data)

    def replace(self, path: str, data: bytes, former: Tag | None) -> bool:
        self._change()
        return self._store.replace(path, data, former)

    def holds(self, path: str, data: bytes) -> bool:
        return self._store.holds(path, data)

    def list(self, folder: str) -> Iterator[Listed]:
        return self._store.list(folder)

    def delete(self, path: str) -> None:
        self._change()
        self._store.delete(path)
