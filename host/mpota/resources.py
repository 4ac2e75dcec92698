"""The directories that mpota carries beside its own code: ``partitions`` and ``device``."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def data_directory(name: str) -> Path:
    """``partitions`` (CSV tables) or ``device`` (holds ``ota``, the package for boards).

    A wheel has them inside the package, a checkout at its top level (pyproject.toml, ``sources``).
    """
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parents[1] / name
