"""How many of very many cases are tried: some by default, all with ``--all-cuts``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Case = TypeVar("Case")

is_all = False  # set from the options, before tests are collected


def some(count: int, share: int = 4) -> int:
    """``count`` cases, one in ``share`` of them by default; the same ones each time."""
    return count if is_all else max(1, count // share)


def some_of(cases: Sequence[Case], share: int = 4) -> Sequence[Case]:
    """One in ``share`` of the cases by default."""
    return cases if is_all else cases[::share]


def is_chosen(number: int, share: int = 4) -> bool:
    """Whether case ``number`` is one of those that are tried."""
    return is_all or number % share == 0
