"""The README is true: its sessions are run, and print what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    command: str
    expected: list[str]


def sessions() -> list[list[Step]]:
    """The README's console blocks: ``$ command`` and what it prints, ``...`` for any lines."""
    found = []
    for block in _BLOCK.findall(README):
        steps: list[Step] = []
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append(Step(line[2:], []))
            else:
                steps[-1].expected.append(line)
        found.append(steps)
    return found


def assert_printed(step: Step, printed: list[str]) -> None:
    pattern = "\n".join(r"(?:.*\n?)*?" if e == "..." else re.escape(e) for e in step.expected)
    text = "\n".join(line.rstrip() for line in printed)
    assert re.fullmatch(pattern, text), f"$ {step.command}\n{text}"


@pytest.mark.parametrize("steps", sessions()[1:], ids=lambda steps: steps[0].command[:40])
def test_session_prints_what_the_readme_says(steps: list[Step], tmp_path: Path) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "100",
    }
    # The sessions follow from one another: those before are needed for their files.
    for session in sessions()[1:]:
        for step in session:
            done = subprocess.run(
                step.command,
                shell=True,
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=120,
            )
            if session is steps or session == steps:
                assert_printed(step, done.stdout.splitlines())
        if session == steps:
            return


def test_the_readme_opens_with_a_sentence_and_two_commands() -> None:
    opening = README.split("```console\n", 1)
    assert re.match(r"# mpota\n\n[^\n]+\n\n$", opening[0])
    commands = [step.command.split("#")[0].strip() for step in sessions()[0]]
    assert commands == ["make demo", "make test"]


def test_make_demo_tells_the_story_to_its_end() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mpota", "demo"], capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("Every boot started a complete, verified app.\n")
    assert "mpota demo" in (ROOT / "Makefile").read_text()
