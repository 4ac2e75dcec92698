"""The README is true: its sessions are run, and print what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = "\x1e"  # ASCII's record separator stands between the outputs of two commands


@dataclass(frozen=True)
class Step:
    command: str
    expected: list[str] = field(default_factory=list)


def sessions() -> list[list[Step]]:
    """The README's console blocks: ``$ command`` and what it prints, ``...`` for any lines."""
    found = []
    for block in _BLOCK.findall(README):
        steps: list[Step] = []
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append(Step(line[2:]))
            else:
                steps[-1].expected.append(line)
        found.append(steps)
    return found


def pattern(expected: list[str]) -> str:
    """``...`` is any lines when it is a line, any text within one."""
    lines = [
        r"(?:.*\n)*?" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + r"\s*\n"
        for line in expected
    ]
    return "".join(lines)


def test_the_sessions_print_what_the_readme_says(tmp_path: Path) -> None:
    steps = [step for session in sessions()[1:] for step in session]
    commands = [f"printf '{_MARK}'\n{step.command}\n" for step in steps]
    script = "trap 'kill $(jobs -p) 2>/dev/null' EXIT\n" + "".join(commands)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "100",
    }
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    printed = done.stdout.split(_MARK)[1:]
    assert len(printed) == len(steps), done.stdout
    for step, text in zip(steps, printed, strict=True):
        assert re.fullmatch(pattern(step.expected), text), f"$ {step.command}\n{text}"


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
