"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from mpota.errors import UsageError
from mpota.formats.partition_table import DEFAULT_TABLE_OFFSET
from mpota.storage.ports import DEFAULT_BAUD, usb_ports
from mpota.units import SECTOR_SIZE, parse_size

if TYPE_CHECKING:
    _IntType = click.ParamType[int]
else:
    _IntType = click.ParamType  # generic since click 8.2 only

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Size(_IntType):
    """``16M``, ``512K``, ``0x1f0000`` or bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return value if isinstance(value, int) else parse_size(value, _option_name(param))


_MAX_TABLE_OFFSET = 0xFFFF000  # the last sector of the largest flash that an image can declare


class TableOffset(Size):
    """A size that a partition table can stand at."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        offset = super().convert(value, param, ctx)
        if not SECTOR_SIZE <= offset <= _MAX_TABLE_OFFSET or offset % SECTOR_SIZE:
            raise UsageError(
                f"table offset {offset:#x} is not a multiple of {SECTOR_SIZE:#x} "
                f"from {SECTOR_SIZE:#x} to {_MAX_TABLE_OFFSET:#x}"
            )
        return offset


def complete_files(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """For the shell: the names of files."""
    return [CompletionItem(incomplete, type="file")]


def complete_ports(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """For the shell: the ports that are plugged in, else files, as a virtual board's ports are."""
    found = [name for name in ("auto", *usb_ports()) if name.startswith(incomplete)]
    return [CompletionItem(name) for name in found] or complete_files(ctx, param, incomplete)


firmware_argument = click.argument("firmware", type=click.Path(path_type=Path))
output_option = click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write to this file."
)
force_option = click.option("--force", is_flag=True, help="Overwrite an existing output file.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
table_offset_option = click.option(
    "--table-offset",
    type=TableOffset(),
    default=DEFAULT_TABLE_OFFSET,
    help="Flash address of the partition table (default 0x8000).",
)


baud_option = click.option(
    "--baud",
    type=click.IntRange(9600, 5_000_000),
    default=DEFAULT_BAUD,
    help=f"Speed of the serial line (default {DEFAULT_BAUD}).",
)
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask before writing.")
look_option = click.option(
    "-y", "--yes", is_flag=True, help="Look though that ends a trial boot, and give it back."
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Show what would change, write nothing."
)
port_argument = click.argument("port", shell_complete=complete_ports)


def change_options(command: _Command) -> _Command:
    """Add the options of commands that change a board."""
    for option in (table_offset_option, baud_option, yes_option, dry_run_option):
        command = option(command)
    return command


def split_pair(text: str, separator: str, what: str) -> tuple[str, str]:
    """``NAME=VALUE`` in two. Raises UsageError if either is missing."""
    name, found, value = text.partition(separator)
    if not (name and found and value):
        raise UsageError(f"'{text}' is not {what}")
    return name, value


def _option_name(param: click.Parameter | None) -> str:
    return param.opts[-1].lstrip("-").replace("-", " ") if param else "size"
