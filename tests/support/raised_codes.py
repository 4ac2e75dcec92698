"""Which codes the board's package gives to which kind of error, told from its source."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

BASE = "OTAError"
_CODE = re.compile(r"([a-z]+(?:-[a-z]+)*)(?: \d)?")  # with a number where it has several texts

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Sources:
    """The modules below a directory, and what is called in them."""

    directory: Path
    trees: dict[str, ast.Module] = field(init=False)

    def __post_init__(self) -> None:
        paths = sorted(self.directory.rglob("*.py"))
        self.trees = {path.name: ast.parse(path.read_bytes()) for path in paths}

    @cached_property
    def kinds(self) -> set[str]:
        """OTAError, and all that is made from it: by a class statement or a function's result."""
        nodes = [node for tree in self.trees.values() for node in ast.walk(tree)]
        found = {BASE}
        for node in nodes:
            if isinstance(node, ast.ClassDef) and found & set(map(_name, node.bases)):
                found.add(node.name)
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                named = [_name(target) for target in node.targets]
                given = [_text(argument) for argument in node.value.args]
                if named == given and named[0].endswith("Error"):  # X = kind("X")
                    found.update(named)
        return found

    @cached_property
    def public(self) -> dict[str, str]:
        """Classes that nobody names, and the kind that each of them is."""
        nodes = [node for tree in self.trees.values() for node in ast.walk(tree)]
        classes = [node for node in nodes if isinstance(node, ast.ClassDef) and node.bases]
        return {node.name: _name(node.bases[0]) for node in classes if node.name.startswith("_")}

    @cached_property
    def calls(self) -> dict[str, list[ast.Call]]:
        """All calls, by the last name of what is called."""
        found = defaultdict(list)
        for tree in self.trees.values():
            for node in ast.walk(tree):
                if isinstance(node, ast.Call):
                    found[_name(node.func)].append(node)
        return found

    def raised(self) -> set[tuple[str, str]]:
        """Kind and code of every error that is made somewhere.

        Raises AssertionError where the code of one cannot be told.
        """
        found = set()
        for module, tree in self.trees.items():
            for function, call in _calls_by_function(tree, None):
                kind = _name(call.func)
                if function and kind not in self.kinds:
                    kind = _default(function, kind)
                kind = self.public.get(kind, kind)
                if kind in self.kinds and call.args:
                    codes = self._codes(call.args[0], function)
                    assert codes is not None, (
                        f"{module}:{call.lineno}: which code has {ast.unparse(call)}?"
                    )
                    found |= {(kind, code) for code in codes}
        return found

    def _codes(self, value: ast.expr, function: Function | None) -> set[str] | None:
        """What a code may be; None if that cannot be told."""
        if isinstance(value, ast.Constant):
            return {str(value.value)}
        if isinstance(value, ast.IfExp):
            both = [self._codes(part, function) for part in (value.body, value.orelse)]
            return None if None in both else both[0] | both[1]  # type: ignore[operator]
        if isinstance(value, ast.Attribute) and value.attr == "code":
            return set()  # that of an error which was made elsewhere
        if isinstance(value, ast.Subscript):
            value = _partitioned(value.value) or value
        if function and isinstance(value, ast.Name):
            return self._passed(function, value.id)
        return None

    def _passed(self, function: Function, parameter: str) -> set[str] | None:
        """What calls of a function give for a parameter, as far as they give constants."""
        names = [argument.arg for argument in function.args.args]
        if parameter not in names:
            return None
        is_method = names[0] == "self"
        at = names.index(parameter) - is_method
        given = [
            _CODE.fullmatch(_text(call.args[at]))
            for call in self.calls[function.name]
            if len(call.args) > at and is_method == isinstance(call.func, ast.Attribute)
        ]
        return {match[1] for match in given if match} or None


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _partitioned(node: ast.expr) -> ast.expr | None:
    """``key`` in ``key.partition(" ")``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.value if node.func.attr == "partition" else None
    return None


def _default(function: Function, parameter: str) -> str:
    """The name that is the default of a parameter, "" if it has none."""
    arguments = function.args.args
    defaults = dict(
        zip([a.arg for a in arguments[::-1]], function.args.defaults[::-1], strict=False)
    )
    return _name(defaults[parameter]) if parameter in defaults else ""


def _calls_by_function(
    node: ast.AST, function: Function | None
) -> Iterator[tuple[Function | None, ast.Call]]:
    """Each call, with the innermost function that it stands in."""
    for child in ast.iter_child_nodes(node):
        inside = child if isinstance(child, Function) else function
        if isinstance(child, ast.Call):
            yield function, child
        yield from _calls_by_function(child, inside)
