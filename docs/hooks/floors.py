"""Graphs of mermaid as floors of text: the theme would fetch what draws them from elsewhere."""

from __future__ import annotations

import re
from collections import defaultdict
from graphlib import TopologicalSorter

_BLOCK = re.compile(r"^```mermaid\ngraph TD\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ARROW = re.compile(r"(\S+) --> (\S+)")


def with_floors(markdown: str) -> str:
    """The page, each graph in it drawn as text. Raises CycleError for one with a circle."""
    return _BLOCK.sub(lambda found: f"```text\n{draw(found[1])}\n```", markdown)


def draw(graph: str) -> str:
    """A line for each floor, the highest first: what stands on one leads to lower ones only."""
    below: dict[str, set[str]] = defaultdict(set)
    for upper, lower in _ARROW.findall(graph):
        below[upper].add(lower)
    floor: dict[str, int] = {}
    for name in TopologicalSorter(below).static_order():
        floor[name] = 1 + max((floor[lower] for lower in below[name]), default=0)
    floors = defaultdict(list)
    for name in sorted(floor):
        floors[floor[name]].append(name)
    return "\n".join(f"{number:>2}  {'  '.join(floors[number])}" for number in sorted(floors)[::-1])
