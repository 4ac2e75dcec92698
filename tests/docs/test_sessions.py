"""README and site are true: their sessions are run, and print what the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import esp_web_tools, sessions
from tests.support.sessions import Step

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_SESSIONS = [path for path in PAGES if "\n```console\n" in path.read_text()]


def steps(path: Path) -> list[Step]:
    """All but what a checkout is needed for: the commands that README opens with."""
    found = [step for block in sessions.blocks(path.read_text()) for step in block]
    return [step for step in found if not step.command.startswith("make ")]


@pytest.mark.parametrize(
    "path", WITH_SESSIONS, ids=[path.relative_to(ROOT).as_posix() for path in WITH_SESSIONS]
)
def test_the_sessions_print_what_the_page_says(path: Path, tmp_path: Path) -> None:
    found = steps(path)
    if any(step.command.startswith("mpota web ") for step in found):
        esp_web_tools.need()
    sessions.check(found, tmp_path)


def test_a_page_that_says_something_else_fails(tmp_path: Path) -> None:
    page = "```console\n$ echo one; echo two\none\n$ echo 3\n3\n```\n"
    with pytest.raises(AssertionError, match="two"):
        sessions.check(sessions.blocks(page)[0], tmp_path)


def test_a_command_that_hangs_is_named(tmp_path: Path) -> None:
    (tmp_path / "pipe").touch()
    page = "```console\n$ echo 1\n1\n$ tail -f pipe\n$ echo 3\n3\n```\n"
    with pytest.raises(AssertionError, match=r"tail -f pipe\n(.*\n)*\(not done after 0.5 s\)"):
        sessions.check(sessions.blocks(page)[0], tmp_path, timeout=0.5)


def test_dots_are_any_lines_or_any_text(tmp_path: Path) -> None:
    page = "```console\n$ seq 5; echo size 17 KiB\n1\n...\n5\nsize ... KiB\n```\n"
    sessions.check(sessions.blocks(page)[0], tmp_path)


def test_output_without_a_command_is_a_defect_of_the_page() -> None:
    with pytest.raises(ValueError, match="starts with 'done'"):
        sessions.blocks("```console\ndone\n```\n")
