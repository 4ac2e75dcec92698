"""A directory as a release: what it is called, and which of its files are meant for a board.

Name and version come from ``[tool.mpota]`` in its pyproject.toml, else from what that or a
package.json says of the project, else the name from the directory and the version from git. What
else `mpota bundle` has options for stands in ``[tool.mpota]`` (paths are relative to it)::

    name, version
    files      directories whose files are meant, "." if none is named
    exclude    patterns of files and directories that stay at home: "tests", "*.md"
    mpy        true: modules are compiled by mpy-cross
    with-ota   true: the ota package goes along
    firmware   an app image or a merged firmware
    certs, data, board
    key        the private key to sign with, or a list of up to three
    check      the health check of `mpota push`
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from mpota.errors import UsageError
from mpota.formats.bundle import Bundle
from mpota.formats.manifest import Manifest, check_name, check_version
from mpota.mpy_cross import PORTABLE
from mpota.release.build import Contents, Sources, bundle
from mpota.release.counter import counter_now
from mpota.release.signing import PrivateKey

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MAX_SIZE = 256 * 1024  # bytes of a project's file
_MAX_DOTS = 64  # in a line of it: a parser takes time and stack for each part of a key
_MAX_NAME = 64
_MAX_SUFFIX = 32
# What editors and tools leave beside what is meant, wherever it stands in a project.
_NEVER = (".*", "*~", "#*#", "__pycache__", "*.pyc", "pyproject.toml", "package.json", "*.bundle")
_TEXT, _TEXTS, _FLAG, _TABLE = "a text", "a text or a list of texts", "true or false", "a table"
_KEYS = {
    "name": _TEXT,
    "version": _TEXT,
    "files": _TEXTS,
    "exclude": _TEXTS,
    "mpy": _FLAG,
    "with-ota": _FLAG,
    "firmware": _TEXT,
    "certs": _TEXTS,
    "data": _TABLE,
    "board": _TEXT,
    "key": _TEXTS,
    "check": _TEXT,
}
_DESCRIBED = re.compile(
    r"v?(?P<numbers>\d{1,9}(?:\.\d{1,9}){0,3})(?:[-.]?(?P<word>[A-Za-z][0-9A-Za-z.]*))?"
    r"-(?P<count>\d{1,9})-g(?P<commit>[0-9a-f]+)(?P<dirty>-dirty)?"
)
_DECLARED = re.compile(r"v?(?P<numbers>\d{1,9}(?:\.\d{1,9}){0,3})(?P<rest>.*)", re.DOTALL)


@dataclass(frozen=True)
class Project:
    """``keys``: those that it is to be signed by; ``check``: the health check of a push."""

    directory: Path
    name: str
    version: str
    sources: Sources
    keys: tuple[Path, ...] = ()
    board: str | None = None
    check: str | None = None

    @classmethod
    def read(cls, directory: Path) -> Project:
        """Raises UsageError, naming file and key, for what a project's files cannot say."""
        pyproject = directory / "pyproject.toml"
        document = _read_toml(pyproject)
        tool = _table(document.get("tool"))
        settings = _checked(_table(tool.get("mpota")), f"{pyproject.name}: [tool.mpota]")
        declared = (_table(document.get("project")), _read_json(directory / "package.json"))
        name = settings.get("name") or _name(directory, declared)
        version = settings.get("version") or _version(directory, declared)
        check_name(name)
        check_version(version)
        keys = _paths(directory, settings, "key")
        return cls(
            directory,
            name,
            version,
            _sources(directory, settings, keys),
            keys,
            settings.get("board"),
            settings.get("check"),
        )

    def release(self, contents: Contents, keys: tuple[PrivateKey, ...]) -> Bundle:
        """A bundle of ``contents``, with a counter above those of all releases before.

        Its version may be below one that a board had: whoever writes a program goes back as well.
        """
        manifest = Manifest(
            self.name,
            self.version,
            contents.payloads(),
            chip=contents.chip,
            board=self.board,
            counter=counter_now(),
            allow_downgrade=True,
            mpy=contents.mpy,
        )
        return bundle(manifest, contents.contents, keys)


def _sources(directory: Path, settings: Mapping[str, Any], keys: tuple[Path, ...]) -> Sources:
    firmware = directory / settings["firmware"] if "firmware" in settings else None
    data = {label: directory / path for label, path in settings.get("data", {}).items()}
    certs = _paths(directory, settings, "certs")
    named = [*keys, *certs, *data.values(), *([firmware] if firmware else [])]
    patterns = (*_NEVER, *_listed(settings.get("exclude", [])))
    return Sources(
        firmware,
        _paths(directory, settings, "files") or (directory,),
        certs,
        tuple(data.items()),
        PORTABLE if settings.get("mpy") else None,
        has_ota=bool(settings.get("with-ota")),
        is_left_out=partial(_is_left_out, patterns, frozenset(path.resolve() for path in named)),
    )


def _is_left_out(
    patterns: Iterable[str], named: frozenset[Path], path: Path, relative: str
) -> bool:
    names = (path.name, relative)
    if any(fnmatchcase(name, pattern) for pattern in patterns for name in names):
        return True
    return path.resolve() in named


# --- what the project's files say


def _read_toml(path: Path) -> Mapping[str, Any]:
    text = _text(path)
    try:
        return _table(tomllib.loads(text))
    except RecursionError:
        raise UsageError(f"{path.name} is nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"{path.name} is not TOML: {str(error)[:200]}") from None


def _read_json(path: Path) -> Mapping[str, Any]:
    text = _text(path)
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path.name} is not JSON: {str(error)[:200]}") from None
    return _table(found)


def _text(path: Path) -> str:
    """The file's text, "" if there is none."""
    if not path.exists():
        return ""
    try:
        data = path.read_bytes()[: _MAX_SIZE + 1]
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path.name}: {error}") from None
    if len(data) > _MAX_SIZE:
        raise UsageError(f"{path.name} has more than {_MAX_SIZE:,} bytes")
    if any(line.partition("=")[0].count(".") > _MAX_DOTS for line in text.splitlines()):
        raise UsageError(f"{path.name} has lines with more dots than any key needs")
    return text


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _checked(settings: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    for key, value in settings.items():
        if key not in _KEYS:
            raise UsageError(f"{what} has '{key}', it knows {', '.join(_KEYS)}")
        if not _fits(value, _KEYS[key]):
            raise UsageError(f"{what}: {key} = {str(value)[:80]!r} is not {_KEYS[key]}")
    return settings


def _fits(value: Any, kind: str) -> bool:
    if kind == _FLAG:
        return isinstance(value, bool)
    if kind == _TABLE:
        return isinstance(value, dict) and _are_texts(value.values())
    is_text = isinstance(value, str) and bool(value)
    return is_text or (kind == _TEXTS and isinstance(value, list) and _are_texts(value))


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) and value for value in values)


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _paths(directory: Path, settings: Mapping[str, Any], key: str) -> tuple[Path, ...]:
    return tuple(directory / text for text in _listed(settings.get(key, [])))


# --- name and version


def _name(directory: Path, declared: Iterable[Mapping[str, Any]]) -> str:
    """The first of the declared names that a release may have, else the directory's."""
    names = [table.get("name") for table in declared]
    for text in (*names, directory.resolve().name):
        if isinstance(text, str):
            # "@scope/name" is how package.json has it.
            text = re.sub(r"[^A-Za-z0-9._ -]+", "-", text.rpartition("/")[2])
            text = text[:_MAX_NAME].strip(" ._-")
            if text:
                return text
    return "program"


def _version(directory: Path, declared: Iterable[Mapping[str, Any]]) -> str:
    for table in declared:
        if isinstance(table.get("version"), str) and (found := as_version(table["version"])):
            return found
    return _git_version(directory) or "0"


def as_version(text: str) -> str | None:
    """A version as a release can have it: "1.2.0-dev3" of "1.2.0.dev3"; None if that is none."""
    found = _DECLARED.fullmatch(text.strip())
    if not found:
        return None
    return _with_suffix(found["numbers"], found["rest"])


def _with_suffix(numbers: str, text: str) -> str:
    suffix = re.sub(r"[^0-9A-Za-z.-]+", ".", text).strip(".-")[:_MAX_SUFFIX]
    return f"{numbers}-{suffix}" if suffix else numbers


def _git_version(directory: Path) -> str | None:
    """By the last tag that is a version, as "1.2.0", or "1.2.0.5-gabc1234" five commits later.

    Without such a tag all commits count, from 0.0.0 on; None without git.
    """
    patterns = ("--match", "[0-9]*", "--match", "v[0-9]*")
    described = _git(directory, "describe", "--tags", "--long", "--dirty", *patterns)
    if described is None:
        count = _git(directory, "rev-list", "--count", "HEAD")
        commit = _git(directory, "rev-parse", "--short", "HEAD")
        if count is None or commit is None:
            return None
        dirty = "-dirty" if _git(directory, "status", "--porcelain", "-uno") else ""
        described = f"0.0.0-{count}-g{commit}{dirty}"
    return version_of_description(described)


def version_of_description(text: str) -> str | None:
    """The version of what ``git describe --long --dirty`` says; None if that is none.

    The number of commits since the tag comes fourth: a word behind "-" would sort below the tag.
    """
    found = _DESCRIBED.fullmatch(text)
    if not found:
        return None
    numbers, word, count = found["numbers"], found["word"] or "", found["count"]
    words = [word] if word else []
    if count != "0" or found["dirty"]:
        if word or numbers.count(".") > 2:
            words.append(count)
        else:
            first = [*numbers.split("."), "0", "0"][:3]
            numbers = ".".join([*first, count])
        words.append(f"g{found['commit']}")
    if found["dirty"]:
        words.append("dirty")
    return _with_suffix(numbers, ".".join(words))


def _git(directory: Path, *words: str) -> str | None:
    """The output of a git command in ``directory``; None if it fails, or there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *words], capture_output=True, text=True, timeout=10
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout.strip()
