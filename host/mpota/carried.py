"""The directories that mpota carries beside its own code: ``partitions`` and ``device``."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent
_IN_CHECKOUT = {"partitions": "partitions", "device": "device/ota"}


def data_directory(name: str) -> Path:
    """``partitions`` (CSV tables) or ``device`` (the ``ota`` package for boards).

    A wheel has them inside the package, a checkout at its top level (pyproject.toml,
    ``package-dir``).
    """
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parents[1] / _IN_CHECKOUT[name]
