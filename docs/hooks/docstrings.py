"""Docstrings as this project writes them, as Markdown."""

from __future__ import annotations

import ast
import re
from pathlib import Path

# Two colons at the end of a paragraph: what follows and is indented is to be shown as it is.
_LITERAL = re.compile(r"::\n\n((?:(?: {2,}.*)?\n)+)")


def of_module(path: Path) -> str:
    """The docstring of a module in Markdown. Raises ValueError if it has none."""
    text = ast.get_docstring(ast.parse(path.read_bytes()))
    if text is None:
        raise ValueError(f"{path} has no docstring")
    return markdown(text)


def markdown(docstring: str) -> str:
    """``code`` as `code`, literal blocks in fences."""

    def fenced(found: re.Match[str]) -> str:
        return f":\n\n```text\n{found[1].rstrip()}\n```\n\n"

    text = _LITERAL.sub(fenced, docstring + "\n")
    parts = re.split(r"(^```text$.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        part if part.startswith("```text") else part.replace("``", "`") for part in parts
    )
