"""``mpota scan``: which boards take updates."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mpota.commands import _report as report
from mpota.commands._finding import find, print_found, where_options
from mpota.commands._options import json_option
from mpota.errors import MpotaError
from mpota.storage.file import check_output, write_file
from mpota.text import shown

if TYPE_CHECKING:
    from mpota.push.scan import FoundBoard


@click.command()
@where_options
@click.option(
    "--plan", type=click.Path(path_type=Path), help="Write a plan for `mpota deploy` with them."
)
@json_option
def command(
    addresses: tuple[str, ...],
    only: str | None,
    timeout: float,
    plan: Path | None,
    as_json: bool,
) -> None:
    """Show the boards that take updates: on the local network and by Bluetooth.

    On the network those are asked whose app listens (ota.listen), by broadcast; each tells the
    release that runs, its state, its version of ota, and what it needs of who updates it. What is
    in the column Port is what `mpota push` takes.
    """
    if plan is not None:
        check_output(plan)
    found = find(addresses, only, timeout)
    if plan is not None:
        if not found:
            raise MpotaError("no board was found: there is nothing to plan")
        write_file(plan, plan_of(found, plan.name).encode())
    if as_json:
        report.print_json({"boards": [board.to_json() for board in found]})
        return
    if found:
        print_found(found)
    else:
        report.say("no board was found: its app has to listen (ota.listen, ota.ble)")
    if plan is not None:
        report.say(f"written: {plan} ({len(found)} boards)")


def plan_of(boards: Iterable[FoundBoard], name: str) -> str:
    """A plan for `mpota deploy` with these boards; its owner adds what they are to get."""
    lines = [
        f"# What `mpota scan` has found, for `mpota deploy {shown(name)}`.",
        '# firmware = "lamp-2.1.bundle"   # what all of them are to get',
        '# secret = "board.secret"        # file: what they ask for; or set MPOTA_SECRET',
        "",
        "[boards]",
    ]
    for board in boards:
        about = ", ".join(text for text in (board.release, board.state) if text)
        lines.append(
            f"{_key(board.name)} = {_text(board.target)}" + (f"  # {about}" if about else "")
        )
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _text(text: str) -> str:
    """A basic string of TOML, which is written as in JSON for text that is visible."""
    return json.dumps(text, ensure_ascii=False)
