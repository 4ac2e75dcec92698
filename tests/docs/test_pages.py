"""Commands, options and functions that README and site name are there."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from mpota.cli import build

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
EACH_PAGE = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
# A command as far as it goes on: to the end of a code span, a line, a comment, or another command.
_COMMAND = re.compile(r"(?<![\w./-])mpota ([a-z]+)\b([^`\n#;|&]*)")
_OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def verbs() -> dict[str, click.Command]:
    group = build()
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command}


def options(command: click.Command) -> set[str]:
    """Of a command, and of those below it."""
    found = {option for parameter in command.params for option in parameter.opts}
    if isinstance(command, click.Group):
        found = found.union(*map(options, command.commands.values()))
    return found | {"--help", "-h"}


def code(text: str) -> str:
    """What stands in blocks and spans of code."""
    return "\n".join(re.findall(r"^```\w*\n.*?^```$|`[^`\n]+`", text, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize(
    "path",
    [path for path in PAGES if path.name != "PROTOCOL.md"],  # which has texts that begin so
    ids=lambda path: path.stem,
)
def test_the_commands_that_a_page_names_exist(path: Path) -> None:
    known = verbs()
    for verb, rest in _COMMAND.findall(code(path.read_text())):
        assert verb in known, f"mpota {verb}{rest}"
        unknown = set(_OPTION.findall(rest)) - options(known[verb])
        assert not unknown, f"mpota {verb}{rest}"


def test_the_search_for_commands_sees_what_is_wrong() -> None:
    text = "`mpota resize u0 --lay ota`\n```sh\nmpota frob  # --not-this\n```\n`mpota.errors`\n"
    found = [(verb, _OPTION.findall(rest)) for verb, rest in _COMMAND.findall(code(text))]
    assert found == [("resize", ["--lay"]), ("frob", [])]


@pytest.fixture(scope="module", name="site")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="pip install -e '.[docs]'")
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def test_no_page_of_the_site_fetches_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text()
        assert not re.search(r'src="(https?:)?//|<link[^>]+href="(https?:)?//', text), page.name
        assert "mermaid" not in re.findall(r'<pre class="([^"]*)"', text), page.name


def test_the_reference_has_every_command(site: Path) -> None:
    page = (site / "reference" / "commands.html").read_text()
    assert not [verb for verb in verbs() if f'id="mpota-{verb}"' not in page]


@EACH_PAGE
def test_the_functions_that_a_page_names_are_in_the_reference(path: Path, site: Path) -> None:
    page = html.unescape((site / "reference" / "board.html").read_text())
    public = set(re.findall(r"ota\.\w+\.\w+", page))
    named = set(re.findall(r"(?<![\w./-])ota\.[a-z]+\.[a-zA-Z_]+\b", code(path.read_text())))
    assert not named - public
