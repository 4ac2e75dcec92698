"""Pages that are made when the site is built: from help, docstrings, imports and other files."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import board_api
import commands
from docstrings import of_module
from floors import with_floors
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mpota.cli import build
from mpota.push import ble_web

ROOT = Path(__file__).parents[2]
COPIED = ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")
FORMATS = ("manifest", "bundle", "tar", "thin", "signature", "chain", "frames", "delta")


def formats() -> str:
    """What releases are made of, byte by byte."""
    text = "# Manifest and formats\n\nMade from the docstrings of `host/mpota/formats`.\n"
    for name in FORMATS:
        text += f"\n## {name}\n\n" + of_module(ROOT / "host" / "mpota" / "formats" / f"{name}.py")
    return text


def copied(name: str) -> str:
    """A page that stands at the top of the repository, with links as from docs/."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")


PAGES: dict[str, Callable[[], str]] = {
    "reference/commands.md": lambda: commands.page(build()),
    "reference/board.md": lambda: board_api.page(ROOT / "device" / "ota"),
    "reference/formats.md": formats,
    **{name: partial(copied, name) for name in COPIED},
}
# Pages link to them as they stand in the repository, one floor above docs/.
_UP = re.compile(rf"\]\(\.\./((?:\.\./)*(?:{'|'.join(COPIED)}))")
# The site has no source: links to it are for who reads the pages in the repository.
_SOURCE = re.compile(r"\[([^\]\n]+)\]\((?:\.\./)*(?:host|device|tests|bench|partitions)/[^)\n]*\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Called by mkdocs: add them."""
    for name, make in PAGES.items():
        files.append(File.generated(config, name, content=make()))
    files.append(File.generated(config, "ble_page.html", content=ble_web.page()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Called by mkdocs for each page."""
    return with_floors(_SOURCE.sub(r"\1", _UP.sub(r"](\1", markdown)))
