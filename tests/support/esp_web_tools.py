"""The script that `mpota web` puts on its pages, where `make test` could fetch it."""

from __future__ import annotations

import os

import pytest
from mpota.publish import esp_web_tools
from mpota.virtual.micropython import cache_dir

# What a skip says; the last lines of a run count it.
NEEDS_SCRIPT = "the npm package that `make test` fetches"


def need() -> bytes:
    """The package. Skips the test where it is not at hand; fails it where CI=true is set."""
    if found := esp_web_tools.find(cache_dir()):
        return found
    reason = f"needs {esp_web_tools.PACKAGE}: {NEEDS_SCRIPT}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
