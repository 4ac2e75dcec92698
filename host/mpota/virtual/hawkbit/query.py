"""Searches of the stand-in's Management API: the part of FIQL that is used, ``name==value`` joined
by ``;``, with ``*`` for anything and quotes around what has other characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from mpota.virtual.hawkbit.state import Refusal

T = TypeVar("T")

_TERM = re.compile(
    r"""\s*(?P<name>[A-Za-z.]+)\s*(?P<how>==|!=)\s*"""
    r"""(?:'(?P<quoted>(?:[^'\\]|\\.)*)'|(?P<plain>[^;,()'"\s]+))\s*(?:;|$)"""
)


def search(
    found: Iterable[T], query: str | None, fields: Mapping[str, Callable[[T], object]]
) -> list[T]:
    """The entries that match. Raises Refusal (400) for a malformed query or an unknown field."""
    rows = list(found)
    at = 0
    while query and at < len(query):
        term = _TERM.match(query, at)
        if term is None:
            raise Refusal(400, f"The given search parameter is not well formed: {query[:100]}")
        read = fields.get(term["name"].lower())
        if read is None:
            raise Refusal(
                400, f"The given search parameter field {{{term['name']}}} does not exist"
            )
        value = term["quoted"] if term["quoted"] is not None else term["plain"]
        pattern = re.compile(_pattern(value), re.IGNORECASE)
        is_wanted = term["how"] == "=="
        rows = [row for row in rows if bool(pattern.fullmatch(str(read(row)))) == is_wanted]
        at = term.end()
    return rows


def _pattern(value: str) -> str:
    pieces = re.findall(r"\\.|.", value, re.DOTALL)
    return "".join(".*" if one == "*" else re.escape(one[-1]) for one in pieces)
