"""Strict JSON: what decides about an update must not be read in two ways.

Duplicate keys, numbers that are no integers and unknown fields are refused, but for fields whose
name starts with ``x-``, which are ignored. The board's half reads the same
(``device/ota/manifest.py``).
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple, NoReturn

from mpota.errors import MpotaError

MAX_NUMBER = 0x7FFFFFFF


class Rule(NamedTuple):
    """What a text must be: as a pattern, and in words."""

    pattern: re.Pattern[str]
    words: str


NAME = Rule(
    re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,63}"),
    "1 to 64 letters, digits, blanks, '.', '_' and '-', first a letter or digit",
)
VERSION = Rule(
    re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,3}(-[0-9A-Za-z.-]{1,32})?"),
    "one to four numbers, as in 2.1.0 or 2.1.0-rc1",
)
URL = Rule(re.compile(r"[!-~]{1,1024}"), "1 to 1024 characters of ASCII without blanks")
BOARD = Rule(re.compile(r"[ -~]{1,100}"), "1 to 100 characters of ASCII")
TIME = Rule(
    re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"),
    "a time as in 2027-01-31T12:00:00Z",
)
DIGEST = Rule(re.compile(r"[0-9a-f]{64}"), "64 hexadecimal digits, small letters")

_KIND_WORDS = {
    dict: "an object", list: "a list", str: "a text", int: "a whole number", bool: "true or false",
}  # fmt: skip


class Fields:
    """Takes the fields out of a JSON object one by one; what is left at the end is unknown."""

    def __init__(self, found: Any, what: str) -> None:
        if not isinstance(found, dict):
            raise MpotaError(f"{what} is not a JSON object")
        self.found = dict(found)
        self.what = what

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        value = self.found.pop(key, default)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.fail(key, value, _KIND_WORDS[kind])
        return value

    def number(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self.take(key, int, default)
        if key in self.found or (not low <= value <= high and value != default):
            self.fail(key, value, f"{low} to {high}")
        return int(value)

    def text(self, key: str, rule: Rule) -> str:
        value = self.take(key, str)
        if not rule.pattern.fullmatch(value):
            self.fail(key, value, rule.words)
        return str(value)

    def optional_text(self, key: str, rule: Rule) -> str | None:
        return self.text(key, rule) if key in self.found else None

    def end(self) -> None:
        unknown = sorted(key for key in self.found if not key.startswith("x-"))
        if unknown:
            raise MpotaError(f"{self.what} has an unknown field '{unknown[0]}'")

    def fail(self, key: str, value: Any, rule: str) -> NoReturn:
        if value is None:
            raise MpotaError(f"{self.what} has no '{key}'")
        raise MpotaError(f"{self.what} has {key} {str(value)[:80]!r}, it must be {rule}")


def present(**fields: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {key: value for key, value in fields.items() if value is not None}


def load_object(data: bytes, limit: int, what: str) -> dict[str, Any]:
    """The JSON object in ``data``, at most ``limit`` bytes. Raises MpotaError, naming ``what``."""
    if len(data) > limit:
        raise MpotaError(f"{what} is {len(data):,} bytes, at most {limit:,}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise MpotaError(f"{what} has the key '{twice}' twice")
        return document

    def no_number(text: str) -> NoReturn:
        raise MpotaError(f"{what} has the number {text}, only integers are allowed")

    try:
        document = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique,
            parse_float=no_number,
            parse_constant=no_number,
        )
    except (ValueError, RecursionError) as error:
        raise MpotaError(f"{what} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise MpotaError(f"{what} is not a JSON object")
    return document
