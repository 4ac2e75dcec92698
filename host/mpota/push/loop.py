"""The daily loop of somebody who writes a program: a project's directory, pushed as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mpota.firmware.firmware import read_app
from mpota.formats.payloads import APP
from mpota.push.update import FindBase, Package
from mpota.release.build import Content, Contents
from mpota.release.project import Project
from mpota.release.signing import PrivateKey

_STEP_MS = 50  # of quiet, after which a burst of saves is over
_LONGEST_MS = 1000  # that a burst may take
_IDLE_MS = 200


@dataclass(frozen=True)
class Made:
    """A release that was made of a project on the fly."""

    project: Project
    package: Package

    @classmethod
    def of(cls, project: Project, keys: tuple[PrivateKey, ...]) -> Made:
        """``keys``: to sign it with. Raises MpotaError for what is not for boards."""
        return cls(project, _package(project, Contents.read(project.sources), keys))

    def __str__(self) -> str:
        files = self.package.bundle.files if self.package.bundle else {}
        words = [f"{len(files)} file{'' if len(files) == 1 else 's'}"] if files else []
        words += ["an app"] if self.package.brings_app else []
        return f"{self.package.version}: {', '.join(words) or 'nothing that it shows'}"


def _package(project: Project, contents: Contents, keys: tuple[PrivateKey, ...]) -> Package:
    """The package of these contents. A board that runs the app in it is sent the rest alone, one
    that runs an app which is known the difference."""

    def suited(digest: str, find_base: FindBase) -> Package:
        found = _suited(contents, digest, find_base)
        return package if found is contents else _package(project, found, keys)

    made = project.release(contents, keys)
    package = Package.of_bundle(project.name, made, made.to_bytes())
    release = {key: value for key, value in (package.release or {}).items() if key != "counter"}
    has_app = contents.contents[0].kind == APP
    package = replace(package, release=release, suit=suited if has_app else None)
    return package


def _suited(contents: Contents, digest: str, find_base: FindBase) -> Contents:
    app, *rest = contents.contents
    if app.kind != APP or not digest:
        return contents
    found = read_app(app.data, app.member).image.digest
    if found and found.hex() == digest:
        return replace(contents, contents=tuple(rest)) if rest else contents
    less = _as_delta(app, find_base(digest))
    return contents if less is app else replace(contents, contents=(less, *rest))


def _as_delta(app: Content, base: bytes | None) -> Content:
    """The app as a delta from ``base``, if that is much smaller."""
    less = app.with_delta(base) if base else app
    deltas = tuple(form for form in less.encoded if form.encoding == "delta")
    if not deltas or 2 * len(deltas[0].data) >= len(app.data):
        return app
    return replace(less, encoded=deltas, is_plain=False)


def saves(project: Project) -> Iterator[bool]:
    """Whether there was a burst of changes to what a project is made of: again and again, until
    Ctrl-C. The first tells that from now on none is missed.
    """
    from watchfiles import Change, watch

    top = project.directory.resolve()

    def counts(change: Change, path: str) -> bool:
        """Whether a change is one of the project's: hidden files are git's and the editors'."""
        parts = Path(path).relative_to(top).parts if Path(path).is_relative_to(top) else ()
        return not any(part.startswith(".") or part == "__pycache__" for part in parts)

    for changes in watch(
        *_watched(project, top),
        watch_filter=counts,
        debounce=_LONGEST_MS,
        step=_STEP_MS,
        rust_timeout=_IDLE_MS,
        yield_on_timeout=True,
    ):
        yield bool(changes)


def _watched(project: Project, top: Path) -> list[Path]:
    """The directories to watch: the project's, and those outside that it names."""
    sources = project.sources
    named = [*sources.directories, *sources.certs, *(path for _, path in sources.data)]
    named += [sources.firmware] if sources.firmware else []
    others = {path.resolve() for path in named}
    return [top, *sorted(path for path in others if not path.is_relative_to(top))]
