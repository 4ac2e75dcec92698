"""Pages whose sessions are run: ``console`` blocks print what the page says.

All blocks of a page are one session, in one shell and one directory. A line that starts with ``$ ``
is a command, what follows is what it prints: ``...`` is any lines where it is a line, any text
within one. A comment ``<!-- console`` is a block that readers do not see.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_BLOCK = re.compile(r"^(?:```|<!-- )console\n(.*?)^(?:```|-->)$", re.MULTILINE | re.DOTALL)
_MARK = "\x1e"  # ASCII's record separator stands between the outputs of two commands
_END = "trap 'kill $(jobs -p) 2>/dev/null' EXIT\n"  # a virtual board ends with its session


@dataclass(frozen=True)
class Step:
    """A command, and the lines that it prints."""

    command: str
    expected: list[str] = field(default_factory=list)


def blocks(page: str) -> list[list[Step]]:
    """The steps of each console block. Raises ValueError for output without a command."""
    found = []
    for block in _BLOCK.findall(page):
        steps: list[Step] = []
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append(Step(line[2:]))
            elif steps:
                steps[-1].expected.append(line)
            else:
                raise ValueError(f"a console block starts with '{line}', which is no command")
        found.append(steps)
    return found


def pattern(expected: Iterable[str]) -> str:
    """What the output of a step has to match as a whole."""
    lines = [
        r"(?:.*\n)*?" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + r"\s*\n"
        for line in expected
    ]
    return "".join(lines)


def check(steps: list[Step], directory: Path, timeout: float = 300) -> None:
    """Run them in ``directory``. Raises AssertionError for the first that prints something else."""
    printed = _run([step.command for step in steps], directory, timeout)
    for step, text in zip(steps, printed, strict=False):
        if not re.fullmatch(pattern(step.expected), text):
            raise AssertionError(f"$ {step.command}\n{text}")
    if len(printed) < len(steps):
        raise AssertionError(f"it ended behind $ {steps[len(printed) - 1].command}")


def _run(commands: list[str], directory: Path, timeout: float) -> list[str]:
    """What each printed, as far as they came: one that hangs is ended, and is the last."""
    script = _END + "".join(f"printf '{_MARK}'\n{command}\n" for command in commands)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(
        ["bash", "-c", script],
        cwd=directory,
        env=os.environ | {"PATH": programs, "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            output, _ = shell.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGTERM)
            output, _ = shell.communicate()
            output += f"(not done after {timeout} s)\n"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    return output.split(_MARK)[1:]
