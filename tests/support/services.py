"""Programs that tests need besides Python's packages: where they are, or why a test is skipped."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

# What a skip says; the last lines of a run count it. `.ci/services` installs all of them.
NEEDS_SERVICE = "a program that `.ci/services` installs (as root, from Debian)"
# Debian puts servers where only root's PATH leads to.
_PLACES = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def need(program: str) -> Path:
    """Where ``program`` is. Skips the test if it is missing; fails it where CI=true is set."""
    if found := shutil.which(program, path=_PLACES):
        return Path(found)
    reason = f"needs {program}: {NEEDS_SERVICE}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
