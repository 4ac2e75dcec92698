"""The terminal that commands print on: how wide it is, whether it wants colours, what fits.

What is no terminal gets plain text: no colours, no control characters, no lines broken.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from enum import Enum
from textwrap import wrap
from typing import TextIO

_DEFAULT_WIDTH = 80
_LEAST_WIDTH = 40  # narrower ones are left to the terminal
_LEAST_LAST = 16  # of a last column, as long as others can be narrower
_LONGEST_WORD = 32  # longer ones are broken
_NO_BREAK = "\xa0"  # not in what is shown: it is not visible
_COMMAND = re.compile(r"`[^`]*`|\bmpota [a-z]+( -[-\w]+ \w+)?")


class Tone(Enum):
    """What a text means: ANSI colours, as esptool 5 has them (esp_pylib.logger)."""

    GOOD = "32"
    BAD = "1;31"
    CAUTION = "1;33"
    NOTE = "34"
    HINT = "36"
    STRONG = "1"


class Toned(str):
    """A cell of a table that means something."""

    __slots__ = ("tone",)
    tone: Tone

    def __new__(cls, text: str, tone: Tone) -> Toned:
        cell = super().__new__(cls, text)
        cell.tone = tone
        return cell


def is_terminal(stream: TextIO) -> bool:
    """Whether there is a cursor that can be moved."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def width_of(stream: TextIO) -> int | None:
    """The terminal's columns; None if ``stream`` is none: lines are not broken then."""
    if not stream.isatty():
        return None
    told = os.environ.get("COLUMNS", "")
    try:
        columns = int(told) if told.isdecimal() else os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return max(columns or _DEFAULT_WIDTH, _LEAST_WIDTH)


def painted(text: str, tone: Tone | None, stream: TextIO) -> str:
    """``text`` in the colour of ``tone``, if the terminal wants colours (no-color.org)."""
    if tone is None or not text or not _wants_colour(stream):
        return text
    return f"\x1b[{tone.value}m{text}\x1b[0m"


def _wants_colour(stream: TextIO) -> bool:
    if not is_terminal(stream) or os.environ.get("NO_COLOR"):
        return False
    # Older consoles of Windows print the codes instead of obeying them.
    return os.name != "nt" or "WT_SESSION" in os.environ or "TERM" in os.environ


def fitted(line: str, width: int | None, hang: int) -> list[str]:
    """Break a line between words to fit ``width``; lines after the first are indented ``hang``."""
    if width is None or len(line) <= width:
        return [line]
    whole = _COMMAND.sub(lambda match: match[0].replace(" ", _NO_BREAK), line)
    lines = wrap(
        whole,
        width,
        subsequent_indent=" " * hang,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_NO_BREAK, " ") for line in lines]


def column_widths(rows: Sequence[Sequence[str]], fixed: Sequence[bool], room: int) -> list[int]:
    """The widths of a table's columns that fit in ``room`` columns, gaps not counted.

    Too wide a table loses the width of its last column first, then of its widest ones, as far as
    words stay whole; ``fixed`` columns, of numbers, lose none.
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    least = [
        width if is_fixed else min(max(map(_longest_word, column)), _LONGEST_WORD)
        for column, width, is_fixed in zip(columns, widths, fixed, strict=True)
    ]
    last = len(widths) - 1
    while (excess := sum(widths) - room) > 0:
        can = [i for i, width in enumerate(widths) if width > least[i]]
        if not can:
            break
        floor = max(least[last], _LEAST_LAST)
        if widths[last] > floor:
            widths[last] = max(widths[last] - excess, floor)
        else:
            widest = max(can, key=lambda i: widths[i])
            widths[widest] = max(widths[widest] - excess, least[widest])
    return widths


def _longest_word(text: str) -> int:
    return max(map(len, text.split()), default=0)


def broken(cells: Sequence[str], widths: Sequence[int]) -> list[list[str]]:
    """A row of a table as lines in which every cell fits its column."""
    parts = [
        [cell] if len(cell) <= width else wrap(cell, width)
        for cell, width in zip(cells, widths, strict=True)
    ]
    height = max(map(len, parts))
    return [[part[i] if i < len(part) else "" for part in parts] for i in range(height)]
