"""What holds for the tests themselves."""

from __future__ import annotations

import ast
import socket
from pathlib import Path

import pytest

from tests.support import web
from tests.support.real_files import ROOT

TESTS = ROOT / "tests"
MODULES = sorted(TESTS.rglob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "tests":
            found |= {f"tests.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def sets_path(tree: ast.AST) -> bool:
    """Whether ``sys.path`` is changed, in Python that runs here."""
    return any(
        isinstance(node, ast.Call) and ast.unparse(node.func).startswith("sys.path.")
        for node in ast.walk(tree)
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(TESTS).as_posix())
def test_no_test_imports_another_and_none_changes_where_modules_are_found(path: Path) -> None:
    tree = ast.parse(path.read_text())
    own = {name for name in imported(tree) if name.partition(".")[0] == "tests"}
    assert {name for name in own if not name.startswith("tests.support")} == set()
    assert not sets_path(tree)


def test_every_folder_of_tests_is_a_package() -> None:
    assert {path.parent for path in MODULES} == {path.parent for path in TESTS.rglob("__init__.py")}


@pytest.mark.parametrize("answer", [socket.gaierror(-2, "Name or service not known"), "10.0.0.7"])
def test_a_name_of_this_machine_that_leads_nowhere_is_one_clear_error(
    answer: str | OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getaddrinfo(*args: object) -> list[object]:
        if isinstance(answer, OSError):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answer, 0))]

    web.check_localhost()
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(pytest.UsageError, match=r"localhost to lead to 127\.0\.0\.1") as error:
        web.check_localhost()
    assert "put a line '127.0.0.1 localhost' into /etc/hosts" in str(error.value)
    assert (answer if isinstance(answer, str) else "not known") in str(error.value)
