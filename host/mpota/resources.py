"""What mpota carries beside its own code: ``partitions`` and ``device``."""

from __future__ import annotations

import re
from pathlib import Path

_PACKAGE = Path(__file__).parent
_VERSION = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)


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
