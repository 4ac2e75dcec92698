"""Reference of the board's package, from its docstrings: nothing of it is imported.

Public is what stands in `API`. A name is looked for in the module that it is used by, and then in
all others: what a module passes on by its ``__getattr__`` is defined elsewhere.
"""

from __future__ import annotations

import ast
from pathlib import Path

from docstrings import markdown

API: dict[str, tuple[str, ...]] = {
    "ota": ("OTAError", "parts"),
    "ota.update": ("from_file", "from_json", "fetch", "OTA"),
    "ota.rollback": ("cancel", "guard", "force", "cancel_force", "mark_invalid", "is_possible"),
    "ota.status": ("status", "info", "ready", "partition_table", "ota_reboot"),
    "ota.release": ("install",),
    "ota.keys": ("add", "retire", "clear", "trusted", "counter", "allow_images", "load"),
    "ota.ble": ("Peripheral",),
    "ota.listen": ("Listener",),
    "ota.web": ("Page",),
    "ota.channel": ("Channel",),
    "ota.mqtt": ("Updates",),
    "ota.mqtt_manifest": ("Manifest",),
    "ota.ddi": ("Client",),
    "ota.trial": (
        "report",
        "load",
        "offer",
        "start",
        "wait",
        "switching",
        "switched",
        "refuse",
        "fail",
        "tell",
        "runs",
    ),
}
# What the options of several functions are described by, and for which.
OPTIONS: dict[str, tuple[str, ...]] = {
    "Options of downloads": ("set_up_source", "set_up"),
    "Options of Peripheral, Listener and Page": ("Receiver",),
}
_HEAD = """\
# On the board

Made from the docstrings of `device/ota`. `import ota` loads nothing else: each module is loaded
when it is first used. What goes wrong is an `ota.OTAError` with a [code](../error_codes.md).
"""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


def _defined(body: list[ast.stmt]) -> dict[str, Definition]:
    return {node.name: node for node in body if isinstance(node, Definition)}


class Package:
    """The definitions at the top of all modules below a directory."""

    def __init__(self, directory: Path) -> None:
        self._modules: dict[str, dict[str, Definition]] = {}
        for path in sorted(directory.glob("*.py")):
            self._modules[path.stem] = _defined(ast.parse(path.read_bytes()).body)

    def find(self, name: str, module: str = "") -> Definition:
        """Raises LookupError if nothing, or more than one thing, has the name."""
        own = self._modules.get(module, {})
        if name in own:
            return own[name]
        found = [names[name] for names in self._modules.values() if name in names]
        if len(found) != 1:
            raise LookupError(f"device/ota defines {name} {len(found)} times")
        return found[0]

    def bases(self, node: Definition) -> list[ast.ClassDef]:
        """The classes of the package that a class is derived from."""
        names = [ast.unparse(base) for base in getattr(node, "bases", ())]
        defined = {name for module in self._modules.values() for name in module}
        found = [self.find(name) for name in names if name in defined]
        return [base for base in found if isinstance(base, ast.ClassDef)]


def page(directory: Path) -> str:
    """The page in Markdown. Raises LookupError if something public is not there."""
    package = Package(directory)
    parts = [_HEAD]
    for module, names in API.items():
        parts.append(f"## {module}\n")
        for name in names:
            found = package.find(name, module.rpartition(".")[2])
            parts += _described(found, f"{module}.{name}", package.bases(found))
    for title, names in OPTIONS.items():
        parts.append(f"## {title}\n")
        parts += [_text(package.find(name)) for name in names]
    return "\n".join(parts)


def _described(node: Definition, name: str, bases: list[ast.ClassDef]) -> list[str]:
    """``bases``: what a class has methods from."""
    if not isinstance(node, ast.ClassDef):
        return [f"### {name}\n", _signature(node, name), _text(node)]
    methods = [*_methods(node), *(part for base in bases for part in _methods(base))]
    made = [part for part in methods if part.name == "__init__"]
    parts = [f"### {name}\n", *(_signature(part, name) for part in made), _text(node)]
    for part in methods:
        if not part.name.startswith("_"):
            parts += [_signature(part, part.name), _text(part)]
    return parts


def _methods(node: ast.ClassDef) -> list[Function]:
    return [part for part in node.body if isinstance(part, Function)]


def _signature(node: Function, name: str) -> str:
    arguments = ast.unparse(node.args).removeprefix("self").removeprefix(", ")
    prefix = "await " if isinstance(node, ast.AsyncFunctionDef) else ""
    return f"```python\n{prefix}{name}({arguments})\n```\n"


def _text(node: Definition) -> str:
    text = ast.get_docstring(node)
    if text is None:
        raise LookupError(f"{node.name} has no docstring")
    return markdown(text) + "\n"
