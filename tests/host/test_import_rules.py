"""Which module may import what, and that commands start fast.

Which package may import which is import-linter's to say: pyproject.toml, `make lint`.
"""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mpota
import pytest

from tests.support.firmware_files import small_firmware

PACKAGE = Path(mpota.__file__).parent
ROOT = PACKAGE.parents[1]
# The stand-in runs under MicroPython.
MODULES = [p for p in sorted(PACKAGE.rglob("*.py")) if "standin" not in p.parts]
PURE = [
    *sorted((PACKAGE / "formats").glob("*.py")),
    *(
        PACKAGE / f"{name}.py"
        for name in ("units", "errors", "text", "firmware/layout", "firmware/changes")
    ),
]
# Reading and writing files, processes and sockets is for others.
IO_MODULES = {"os", "io", "pathlib", "shutil", "tempfile", "subprocess", "socket", "sys", "glob"}
HOMES = {
    "esptool": {"storage/board.py", "firmware/sample.py", "release/signing.py"},
    "mpremote": {"push/repl.py"},
    "littlefs": {"filesystem/littlefs.py"},
    "obstore": {"publish/object_store.py"},
    "cryptography": {"release/signing.py", "release/local_ca.py"},
    "rich": {"commands/fleet.py"},
    "rich_click": {"cli.py"},
}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported anywhere below ``tree``, by their full names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""


def imports_at_start(tree: ast.Module) -> Iterator[str]:
    """Those that run when the module is imported, so not in functions or for type checkers."""
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from imports(node)


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_formats_and_layouts_use_the_standard_library_and_do_no_io(path: Path) -> None:
    tree = ast.parse(path.read_text())
    pure = {f"mpota.{name_of(p)[:-3].replace('/', '.')}" for p in PURE}
    for module in imports(tree):
        top = module.split(".")[0]
        if top == "mpota":
            assert module in pure
        else:
            assert top in sys.stdlib_module_names
            assert top not in IO_MODULES
    called = {
        n.func.id
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    }
    assert called.isdisjoint({"open", "print", "input"})


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_packages_are_imported_at_home_only_and_late(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for module in imports(tree):
        top = module.split(".")[0]
        assert name_of(path) in HOMES.get(top, {name_of(path)}), f"{top} in {name_of(path)}"
    early = {module.split(".")[0] for module in imports_at_start(tree)}
    assert early.isdisjoint(HOMES)
    assert early.isdisjoint({"serial"})


@pytest.mark.parametrize("path", sorted((PACKAGE / "commands").glob("*.py")), ids=name_of)
def test_a_verb_imports_the_helpers_of_verbs_but_no_other_verb(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "mpota.commands":
            assert all(alias.name.startswith("_") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mpota.commands."):
            assert (node.module or "").startswith("mpota.commands._")


def test_a_class_name_stands_for_one_thing() -> None:
    homes: dict[str, str] = {}
    # The stand-in for a server has that one's words: target, action, entry.
    for path in (path for path in MODULES if "virtual/hawkbit" not in path.as_posix()):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                other = homes.setdefault(node.name, name_of(path))
                assert other == name_of(path), f"{node.name} is in {other} and {name_of(path)}"


def test_the_drawing_of_the_packages_is_of_today() -> None:
    drawing = runpy.run_path(str(ROOT / "tools" / "draw_packages.py"))
    assert drawing["PAGE"].read_text() == drawing["page"](), "python tools/draw_packages.py"


@pytest.mark.parametrize("arguments", [["show"], ["resize", "-f", "8M", "--dry-run"]], ids=" ".join)
def test_show_and_resize_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    source = tmp_path / "firmware.bin"
    source.write_bytes(small_firmware())
    command, *options = arguments
    code = (
        "import sys; from mpota.cli import main\n"
        f"try: main([{command!r}, {str(source)!r}, *{options!r}])\n"
        "except SystemExit as end: assert not end.code, end\n"
        "print('loaded:', *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("loaded:")[2].split())
    assert "mpota" in loaded
    heavy = {*HOMES, "serial", "ssl", "asyncio"}
    assert loaded.isdisjoint(heavy), loaded & heavy
