"""What mpota carries beside its own code: ``partitions``, ``device``, and pages in parts."""

from __future__ import annotations

import re
from pathlib import Path

_PACKAGE = Path(__file__).parent
_VERSION = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
_PLACE = re.compile(r"^(?:/\*|<!--) ([\w.]+) (?:\*/|-->)$", re.MULTILINE)


def data_directory(name: str) -> Path:
    """``partitions`` (CSV tables) or ``device`` (holds ``ota``, the package for boards).

    A wheel has them inside the package, a checkout at its top level (pyproject.toml, ``sources``).
    """
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parents[1] / name


def version() -> str:
    """The version of mpota, which is that of the package for boards that it carries.

    Raises OSError if that package is not there, RuntimeError if it states no version: the
    installation is broken.
    """
    source = data_directory("device") / "ota" / "__init__.py"
    found = _VERSION.search(source.read_text(encoding="utf-8"))
    if found is None:
        raise RuntimeError(f"{source} has no __version__")
    return found[1]


def page(*folders: Path) -> str:
    """``page.html`` with other files in the places that name them.

    A place is a line ``/* page.js */`` or ``<!-- head.html -->``; each file comes from the first of
    ``folders`` that has it. Raises OSError if none has.
    """

    def part(name: str) -> str:
        found = next((folder for folder in folders if (folder / name).is_file()), folders[-1])
        return (found / name).read_text(encoding="utf-8").rstrip("\n")

    return _PLACE.sub(lambda place: part(place[1]), part("page.html"))
