"""The README opens as a newcomer needs it; its sessions are run by docs/test_sessions.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support import sessions

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_readme_opens_with_a_sentence_and_two_commands() -> None:
    opening = README.split("```console\n", 1)
    assert re.match(r"# mpota\n\n[^\n]+\n\n$", opening[0])
    commands = [step.command.split("#")[0].strip() for step in sessions.blocks(README)[0]]
    assert commands == ["make demo", "make test"]


def test_the_readme_is_read_to_its_end() -> None:
    assert len(README.splitlines()) <= 150


def test_make_demo_tells_the_story_to_its_end() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mpota", "demo"], capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^All \d+ boots started a complete, verified app\.$", done.stdout, re.M)
    assert "mpota demo" in (ROOT / "Makefile").read_text()
