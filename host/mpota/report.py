"""What commands print: text for people through rich, JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mpota.changes import Difference
from mpota.describe import AppFacts, Description, digest_state, flash_frequency, flash_mode
from mpota.formats.app_desc import find_bootloader_desc
from mpota.formats.partition_table import Partition, PartitionTable
from mpota.units import format_flash_size, format_size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MAP_WIDTH = 64
_PLAIN_WIDTH = 120


def console() -> Console:
    """Standard output; wide enough for every table where it is not a terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    return Console(width=width, highlight=False, soft_wrap=width is not None)


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A rich table; columns whose name starts with ``>`` are right-aligned."""
    from rich import box
    from rich.table import Table

    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        result.add_column(column.removeprefix(">"), justify="right" if right else "left")
    for row in rows:
        result.add_row(*row)
    return result


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


def print_description(facts: Description) -> None:
    """The text of ``mpota show``."""
    out = console()
    for key, value in _lines(facts):
        out.print(f"{key + ':':<14}{value}", soft_wrap=True, markup=False)
    if facts.table is None:
        return
    out.print(table(None, PARTITION_COLUMNS, partition_rows(facts.table)))
    size = (facts.header.flash_size if facts.header else None) or facts.table.end
    for line in flash_map(facts.table, facts.table_offset, size):
        out.print(line, soft_wrap=True, markup=False)


def _lines(facts: Description) -> Iterator[tuple[str, str]]:
    header = facts.header
    yield "file", facts.name
    if header is not None:
        size = format_flash_size(header.flash_size) if header.flash_size else "of unknown size"
        yield "chip", header.chip.title
        yield "flash", f"{size}, {flash_mode(header)}, {flash_frequency(header)}"
    if facts.bootloader is not None:
        desc = find_bootloader_desc(facts.bootloader.data)
        release = f"ESP-IDF {desc.idf_ver}, " if desc else ""
        yield (
            "bootloader",
            f"{release}{facts.bootloader.size:,} bytes at {header.chip.bootloader_offset:#x}, "
            f"digest {digest_state(facts.bootloader)}"
            if header
            else "",
        )
    for app in facts.apps:
        yield "app", _app_line(app)
    for partition, reason in facts.broken:
        yield "broken", f"{partition.label}: {reason}"
    for partition in facts.blank:
        yield "blank", f"{partition.label} ({format_size(partition.size)})"
    if facts.table is not None and facts.app is not None:
        yield "OTA", _ota_line(facts)


def _app_line(facts: AppFacts) -> str:
    text, desc, image = facts.micropython, facts.desc, facts.app.image
    parts = []
    if text.version:
        parts.append(f"MicroPython {text.version} ({text.build_date})")
    if text.board:
        parts.append(text.board)
    if desc is not None:
        named = " ".join(filter(None, (desc.project_name, desc.version)))
        parts += [*([named] if named else []), f"ESP-IDF {desc.idf_ver}"]
    digest = f", {image.digest.hex()[:12]}..." if image.digest else ""
    parts.append(f"{facts.app.size:,} bytes, digest {digest_state(image)}{digest}")
    if facts.app.signature:
        parts.append("signed")
    line = "; ".join(parts)
    if facts.partition is not None and facts.fill is not None:
        free = format_size(facts.partition.size - facts.app.size)
        line = f"{facts.partition.label} {facts.fill:.0%} full, {free} free: {line}"
    return line


def _ota_line(facts: Description) -> str:
    rollback = "rollback enabled" if facts.rollback else "rollback unknown"
    if facts.table is not None and facts.table.is_ota_capable:
        return f"possible, {rollback}"
    return f"not possible with this table ({rollback}): mpota resize --layout ota"


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
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.update(task, completed=done)


def _place(partition: Partition | None) -> str:
    if partition is None:
        return "-"
    return f"{partition.offset:#x} + {partition.size:#x} ({format_size(partition.size)})"
