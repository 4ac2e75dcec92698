"""Draws docs/packages.md: the packages of the desk half, and which imports which.

    python tools/draw_packages.py

The arrows are the imports that are there (grimp reads them from the source, those inside of
functions and for type checkers too). Which ones may be is in pyproject.toml: `lint-imports`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "host" / "mpota"
PAGE = ROOT / "docs" / "packages.md"
# Nearly all import these: drawn, they would hide the rest.
EVERYWHERE = frozenset({"errors", "units", "text"})

_HEAD = """\
# Packages of the desk half

`python tools/draw_packages.py` draws this page from the imports in `host/mpota`. Arrows point down
only: `make lint` holds them to the floors in `pyproject.toml` (import-linter). An arrow that goes
without saying, because it leads over a floor in between, is left out of the drawing; the table has
them all.
"""


def arrows() -> dict[str, set[str]]:
    """Every package or module directly in ``mpota``, and which others it imports."""
    graph = grimp.build_graph("mpota", cache_dir=None)
    found: dict[str, set[str]] = {
        module.split(".")[1]: set() for module in graph.find_children("mpota")
    }
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            importer, target = module.split(".")[1:2], imported.split(".")[1:2]
            if importer and target and importer != target:
                found[importer[0]].add(target[0])
    return found


def reachable(start: str, graph: Mapping[str, Set[str]]) -> set[str]:
    """All that ``start`` imports, directly or not."""
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph[name]
    return found


def reduced(graph: Mapping[str, Set[str]]) -> Iterator[tuple[str, str]]:
    """The arrows that no way over another package stands for."""
    for name in sorted(graph):
        for target in sorted(graph[name]):
            others = graph[name] - {target}
            if not any(target in reachable(other, graph) for other in others):
                yield name, target


def purpose(name: str) -> str:
    """The first sentence of its docstring."""
    path = PACKAGE / f"{name}.py"
    source = path if path.is_file() else PACKAGE / name / "__init__.py"
    text = ast.get_docstring(ast.parse(source.read_text())) or ""
    return text.partition("\n\n")[0].replace("\n", " ").replace("``", "`")


def order(graph: Mapping[str, Set[str]]) -> list[str]:
    """From the top down: whatever imports more comes first."""
    return sorted(graph, key=lambda name: (-len(reachable(name, graph)), name))


def page() -> str:
    """The text of docs/packages.md."""
    graph = arrows()
    drawn = {
        name: targets - EVERYWHERE for name, targets in graph.items() if name not in EVERYWHERE
    }
    lines = [_HEAD, "```mermaid", "graph TD"]
    lines += [f"    {name} --> {target}" for name, target in reduced(drawn)]
    lines += ["```", "", "| package | purpose | imports |", "| --- | --- | --- |"]
    for name in order(graph):
        imports = ", ".join(target for target in order(graph) if target in graph[name])
        is_package = (PACKAGE / name).is_dir()
        lines.append(f"| `{name}{'/' if is_package else '.py'}` | {purpose(name)} | {imports} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
