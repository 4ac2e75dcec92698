"""Boards with version 0.1 of the package, as it was."""

from __future__ import annotations

import io
import subprocess
import tarfile
from functools import cache
from pathlib import Path

import pytest

from tests.support import once
from tests.support.ota_package import compile_all
from tests.support.real_files import ROOT

_COMMIT = "f14c7d7"  # the last one of 0.1


@cache
def package() -> Path:
    """A directory with ``ota`` 0.1, compiled."""
    git = ["git", "-C", str(ROOT), "archive", "--format=tar", _COMMIT, "device/ota"]
    found = subprocess.run(git, capture_output=True, check=False)
    if found.returncode:
        pytest.skip("the history does not reach back to 0.1 here")
    return once.directory("ota-package-0.1", lambda target: _unpack(found.stdout, target))


def _unpack(archive: bytes, target: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive)) as sources:
        sources.extractall(target / "source", filter="data")
    compile_all(target / "source/device/ota", target / "ota", "ota/")
