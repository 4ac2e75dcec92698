"""What commands print: text for people, JSON for machines."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence

from mpota.commands._progress import aside, counting, doing, progress
from mpota.commands._terminal import (
    Tone,
    Toned,
    broken,
    column_widths,
    fitted,
    painted,
    width_of,
)
from mpota.firmware.changes import Difference
from mpota.formats.partition_table import Partition, PartitionTable
from mpota.text import is_visible, shown
from mpota.units import format_size

__all__ = ["Tone", "Toned", "counting", "doing", "progress"]  # for commands, as the functions below

MAP_WIDTH = 64
_GAP = 2  # blanks in front of each column


def say(
    line: str = "",
    *,
    head: str = "",
    tone: Tone | None = None,
    hang: int | None = None,
    is_whole: bool = False,
    error: bool = False,
) -> None:
    """Print one line, at once. Whatever it quotes cannot leave it, nor steer the terminal.

    ``tone`` is for ``head`` if there is one, which comes first, else for all of it. On a terminal a
    line that is too long goes on ``hang`` columns in, unless ``is_whole``: that is to be pasted.

    All that commands print comes by here; nothing else in the package prints.
    """
    stream = sys.stderr if error else sys.stdout
    head, text = shown(head), shown(head + line)
    if hang is None:
        hang = len(text) - len(text.lstrip()) + 2
    lines = fitted(text, None if is_whole else width_of(stream), hang)
    if head:
        lines[0] = painted(head.rstrip(), tone, stream) + lines[0][len(head.rstrip()) :]
    else:
        lines = [painted(part, tone, stream) for part in lines]
    with aside():
        print("\n".join(lines), file=stream, flush=True)


def confirm(question: str) -> bool:
    """Whether somebody at the terminal says yes. Raises click.Abort for Ctrl-C."""
    import click

    *lines, last = fitted(f"{shown(question)} [y/N]:", width_of(sys.stderr), 2)
    for line in lines:
        say(line, error=True)
    return click.confirm(last.removesuffix(" [y/N]:"), err=True)


def note(text: str, *, error: bool = False) -> None:
    say(text, head="note: ", tone=Tone.NOTE, error=error)


def done(text: str) -> None:
    say(text, head="done: ", tone=Tone.GOOD)


def written(target: object, amount: str = "") -> None:
    """Say that a file was made."""
    say(f"{target} ({amount})" if amount else str(target), head="written: ", tone=Tone.GOOD)


def write_out(data: bytes) -> None:
    """Write the bytes of a file; to a terminal, as lines that cannot steer it."""
    if not sys.stdout.isatty():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        return
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        say(line.expandtabs(), is_whole=True)


def print_json(value: object, *, is_line: bool = False) -> None:
    """Print a value as JSON, in plain ASCII. ``is_line``: one line of many, flushed at once."""
    import json

    print(json.dumps(value, indent=None if is_line else 2), flush=is_line)


def print_document(text: str) -> None:
    """Print a JSON document byte for byte; with escapes if it has invisible characters."""
    import json

    if all(map(is_visible, text.split("\n"))):
        print(text, end="")
    else:
        print_json(json.loads(text))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table. Columns named ``>...`` are right-aligned, `Toned` cells coloured.

    On a terminal long texts go on below themselves. Not rich's: importing that takes longer than
    all else that `mpota resize` does.
    """
    right = [column.startswith(">") for column in columns]
    table = [tuple(column.removeprefix(">") for column in columns), *map(tuple, rows)]
    texts = [[shown(cell) for cell in row] for row in table]
    screen = width_of(sys.stdout)
    room = screen - _GAP * len(columns) if screen else sys.maxsize
    widths = column_widths(texts, right, room)
    say()
    for number, (cells, row) in enumerate(zip(texts, table, strict=True)):
        tones = [cell.tone if isinstance(cell, Toned) else None for cell in row]
        for line in broken(cells, widths):
            _print_row(line, widths, right, tones if number else [Tone.STRONG] * len(row))
        if not number:
            _print_row(["-" * width for width in widths], widths, right, [None] * len(row))
    say()


def _print_row(
    cells: Sequence[str],
    widths: Sequence[int],
    right: Sequence[bool],
    tones: Sequence[Tone | None],
) -> None:
    line, blank = "", ""
    for cell, width, is_right, tone in zip(cells, widths, right, tones, strict=True):
        blank += " " * (_GAP + (width - len(cell) if is_right else 0))
        if cell:
            line += blank + painted(cell, tone, sys.stdout)
            blank = ""
        blank += "" if is_right else " " * (width - len(cell))
    with aside():
        print(line, file=sys.stdout, flush=True)


def partition_rows(partitions: PartitionTable) -> Iterator[Sequence[str]]:
    for p in partitions:
        yield (
            p.label,
            p.type_name,
            p.subtype_name,
            f"{p.offset:#x}",
            f"{p.size:#x}",
            f"{p.end:#x}",
            format_size(p.size),
            " ".join(p.flag_names) or (f"{p.flags:#x}" if p.flags else ""),
        )


PARTITION_COLUMNS = ("Name", "Type", "SubType", ">Offset", ">Size", ">End", ">", "Flags")


def difference_rows(rows: Iterable[Difference]) -> Iterator[Sequence[str]]:
    """Old against new, a row a partition."""
    for row in rows:
        shown = row.new or row.old
        yield (
            shown.label if shown else "",
            _place(row.old),
            _place(row.new),
            _effects(row),
        )


_LOSSES = ("content reset", "deleted")


def _effects(row: Difference) -> str:
    text = ", ".join(row.effects)
    is_loss = any(effect in _LOSSES for effect in row.effects)
    return Toned(text, Tone.CAUTION if is_loss else Tone.HINT)


DIFFERENCE_COLUMNS = ("Name", "Before", "After", "")


def flash_map(partitions: PartitionTable, flash_size: int) -> list[str]:
    """The flash drawn to scale: a line of cells, a line of names below the partitions' starts.

    Every partition gets at least one cell, however small it is.
    """
    ordered = sorted((p for p in partitions if p.offset < flash_size), key=lambda p: p.offset)
    cells = ["."] * MAP_WIDTH
    legend = []
    letters = iter("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789" * 2)
    previous = 0
    for partition in ordered:
        letter = next(letters)
        first = max(partition.offset * MAP_WIDTH // flash_size, previous)
        last = max(-(-min(partition.end, flash_size) * MAP_WIDTH // flash_size), first + 1)
        last = min(last, MAP_WIDTH)
        first = min(first, MAP_WIDTH - 1)
        cells[first:last] = letter * max(last - first, 1)
        previous = min(first + 1, MAP_WIDTH - 1)
        legend.append(f"{letter} {partition.label}")
    ends = f"{'0':<{MAP_WIDTH}}{format_size(flash_size)}"
    return [ends, "|" + "".join(cells[:MAP_WIDTH]) + "|", "  ".join(legend)]


def _place(partition: Partition | None) -> str:
    if partition is None:
        return "-"
    return f"{partition.offset:#x}, {format_size(partition.size)}"
