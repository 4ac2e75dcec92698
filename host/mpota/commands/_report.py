"""What commands print: text for people, JSON for machines, progress on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mpota.firmware.changes import Difference
from mpota.formats.partition_table import Partition, PartitionTable
from mpota.text import is_visible, shown
from mpota.units import format_size

MAP_WIDTH = 64


def say(line: str = "", *, error: bool = False) -> None:
    """Print one line, at once. Whatever it quotes cannot leave it, nor steer the terminal.

    All that commands print comes by here; nothing else in the package prints.
    """
    print(shown(line), file=sys.stderr if error else sys.stdout, flush=True)


def write_out(data: bytes) -> None:
    """The bytes of a file; on a terminal, lines that cannot steer it."""
    if not sys.stdout.isatty():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        return
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        say(line.expandtabs())


def print_console(text: str) -> None:
    """What a virtual board prints, as it comes."""
    print(text, end="", flush=True)


def print_json(value: object) -> None:
    """The value as it is: JSON's escapes are plain ASCII."""
    import json

    print(json.dumps(value, indent=2))


def print_document(text: str) -> None:
    """A JSON document, byte for byte where all of it is visible; else another text of its value."""
    import json

    if all(map(is_visible, text.split("\n"))):
        print(text, end="")
    else:
        print_json(json.loads(text))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table; columns whose name starts with ``>`` are right-aligned.

    Not rich's: importing that takes longer than all else that `mpota resize` does.
    """
    right = [column.startswith(">") for column in columns]
    lines = [[column.removeprefix(">") for column in columns]]
    lines += [[shown(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    lines.insert(1, ["-" * width for width in widths])
    say()
    for line in lines:
        cells = zip(line, widths, right, strict=True)
        text = "  ".join(t.rjust(w) if r else t.ljust(w) for t, w, r in cells)
        say(f"  {text.rstrip()}")
    say()


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
            ", ".join(row.effects),
        )


DIFFERENCE_COLUMNS = ("Name", "Before", "After", "")


def flash_map(partitions: PartitionTable, table_offset: int, flash_size: int) -> list[str]:
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


@contextmanager
def progress(description: str, total: int) -> Iterator[Any]:
    """A progress bar on standard error, silent where that is no terminal.

    Yields a callable ``update(done)``, bytes of ``total``.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(shown(description), total=total)
        yield lambda done: bar.update(task, completed=done)


def _place(partition: Partition | None) -> str:
    if partition is None:
        return "-"
    return f"{partition.offset:#x} + {partition.size:#x} ({format_size(partition.size)})"
