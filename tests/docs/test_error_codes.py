"""docs/error_codes.md is the table of all codes: what is raised stands there, and nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.support.raised_codes import Sources

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "error_codes.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(f"{heading}\n")]
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def stated() -> set[tuple[str, str]]:
    kinds = re.findall(r"^## (\w+Error)$", PAGE, re.MULTILINE)
    return {(kind, cells[0].strip("`")) for kind in kinds for cells in rows(kind)}


def test_every_code_that_the_board_raises_stands_on_the_page_and_no_other() -> None:
    raised = Sources(ROOT / "device" / "ota").raised()
    assert sorted(raised - stated()) == [], "docs/error_codes.md lacks them"
    assert sorted(stated() - raised) == [], "nothing raises them any more"
    assert len(raised) > 80


def test_every_row_says_when() -> None:
    kinds = {kind for kind, _ in stated()}
    assert all(len(cells) == 3 and cells[1] for kind in kinds for cells in rows(kind))


def desk() -> Iterator[ast.AST]:
    """All that stands in the desk's modules."""
    for path in (ROOT / "host" / "mpota").rglob("*.py"):
        yield from ast.walk(ast.parse(path.read_bytes()))


def assigned(body: Iterable[ast.AST], name: str) -> list[ast.expr]:
    return [
        node.value
        for node in body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    ]


def test_the_desk_has_hints_for_codes_that_exist() -> None:
    hints = [ast.literal_eval(value) for value in assigned(desk(), "_HINTS")]
    assert hints
    codes = {code for _, code in stated()}
    assert {key for hint in hints for key in hint} <= codes


def test_the_exit_codes_are_those_of_the_desks_errors() -> None:
    own = {
        (ast.literal_eval(value), node.name)
        for node in desk()
        if isinstance(node, ast.ClassDef)
        for value in assigned(node.body, "exit_code")
    }
    table = rows("Exit codes of mpota")
    assert {(int(code), name.strip("`")) for code, name, _ in table if name} == own


KINDS = {
    "made": ("def f(): raise OTAError('io', 'x')", {("OTAError", "io")}),
    "of a kind": ("AError = kind('AError')\ndef f(): raise AError('io', '')", {("AError", "io")}),
    "of a class": ("class B(OTAError): pass\nraise B('io', '')", {("B", "io")}),
    "either": (
        "def f(): raise OTAError('io' if x else 'no', '')",
        {("OTAError", "io"), ("OTAError", "no")},
    ),
    "by a function": (
        "def f(code): return OTAError(code, '')\nf('io'); f('no 2'); f(x)",
        {("OTAError", "io"), ("OTAError", "no")},
    ),
    "by a method": (
        "class C:\n def f(self, code): return OTAError(code, '')\n def g(self): self.f('io')",
        {("OTAError", "io")},
    ),
    "of a kind that is passed": (
        "def f(why, kind=OTAError): raise kind('io', why)",
        {("OTAError", "io")},
    ),
    "passed on": ("def f(error): raise OTAError(error.code, '')", set()),
}


@pytest.mark.parametrize(("source", "found"), KINDS.values(), ids=KINDS)
def test_codes_are_found_however_an_error_is_made(
    source: str, found: set[tuple[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "module.py").write_text(source)
    assert Sources(tmp_path).raised() == found


def test_a_code_that_cannot_be_told_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("def f(): raise OTAError(make(), '')")
    with pytest.raises(AssertionError, match=r"module\.py:1: which code has OTAError\(make\(\)"):
        Sources(tmp_path).raised()
