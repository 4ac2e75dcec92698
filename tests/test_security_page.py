"""SECURITY.md is true: the tests that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)))


@pytest.mark.parametrize(("path", "name"), NAMED, ids=map("::".join, NAMED))
def test_a_test_that_the_page_names_is_there(path: str, name: str) -> None:
    source = (ROOT / path).read_text()
    assert f"def {name}(" in source if name else "def test_" in source


def test_every_threat_has_its_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line]
    without = [row.split("|")[1].strip() for row in rows if "`tests/" not in row]
    assert without == ["threat", "threat", "guessing offline", "threat"]
    assert len(rows) > 50
