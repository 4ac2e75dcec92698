"""Reference of the commands, from their own help."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

_HEAD = """\
# Commands

Made from each command's own help (`mpota VERB --help`). Wherever a command takes a firmware it
takes the port of a board too: `/dev/ttyUSB0`, `COM3`, `u0`, `a0`, `c3`, or `auto`.

Exit codes: 0 done, 1 the content is not acceptable, 2 wrong usage; `push` has
[more](../error_codes.md#exit-codes-of-mpota). An input is never changed, an output is written whole
or not at all.
"""


def page(group: click.Group) -> str:
    """The page in Markdown: a table of all verbs, and a section for each."""
    context = click.Context(group, info_name="mpota")
    verbs = [(name, group.get_command(context, name)) for name in group.list_commands(context)]
    rows = [f"| [`{name}`](#mpota-{name}) | {verb.short_help} |" for name, verb in verbs if verb]
    parts = [_HEAD, "| verb | |\n| --- | --- |", *rows, ""]
    for name, verb in verbs:
        if verb:
            parts += _section(verb, click.Context(verb, info_name=name, parent=context), "##")
    return "\n".join(parts)


def _section(command: click.Command, context: click.Context, level: str) -> Iterator[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"{level} {context.command_path}\n"
    yield f"```text\n{context.command_path} {usage}\n```\n"
    yield _prose(command.help or "")
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    options = [record for record in records if record and "--help" not in record[0]]
    if options:
        yield "| option | |\n| --- | --- |"
        yield from (f"| `{_cell(name)}` | {_cell(text)} |" for name, text in options)
        yield ""
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            part = command.get_command(context, name)
            if part:
                inner = click.Context(part, info_name=name, parent=context)
                yield from _section(part, inner, level + "#")


def _prose(text: str) -> str:
    r"""Paragraphs; those marked by \b are shown as they are."""
    parts = [part.strip() for part in re.split(r"\n\s*\n", inspect.cleandoc(text))]
    return "\n\n".join(_verbatim(part) if part.startswith("\b") else part for part in parts) + "\n"


def _verbatim(paragraph: str) -> str:
    lines = paragraph.removeprefix("\b").strip("\n")
    return f"```text\n{lines}\n```"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
