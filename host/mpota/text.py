"""Foreign text, made safe to show.

Labels, names, versions and messages come out of files, boards, radios and servers that may be
hostile: on a terminal they could move the cursor, forge lines, reverse the order of letters or type
commands.
"""

from __future__ import annotations

import re
from contextlib import suppress

# Letters and marks that are drawn as nothing (Unicode's Default_Ignorable_Code_Point, as far as
# `str.isprintable` does not know of it), and the blank that is no space.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\uffa0"
    "\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)


def shown(text: str) -> str:
    """``text`` as one line of visible characters; all others as escapes of Python's.

    That is controls (C0, DEL, C1), line and paragraph separators, marks of direction, what has no
    width, unassigned code points and lone surrogates; surrogates that stand for bytes become what
    these are as UTF-8, else the bytes. What is shown already stays as it is.
    """
    if text.isascii() and text.isprintable():
        return text
    with suppress(UnicodeEncodeError):
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return "".join(c if is_visible(c) else _escape(c) for c in text)


def is_visible(text: str) -> bool:
    """Whether nothing in ``text`` can steer or deceive a terminal: not even a line's end."""
    return text.isprintable() and not _INVISIBLE.search(text)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # PEP 383
        return f"\\x{ord(character) - 0xDC00:02x}"
    return ascii(character)[1:-1]
