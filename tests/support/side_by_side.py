"""Cases of one test that wait, all at the same time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Case = TypeVar("Case")


def run(cases: Mapping[str, Case], try_one: Callable[[Case], object]) -> None:
    """Try all, each in a thread of its own; the first that fails fails all, and is named."""
    with ThreadPoolExecutor(len(cases)) as pool:
        tries = {name: pool.submit(try_one, case) for name, case in cases.items()}
    for name, one in tries.items():
        error = one.exception()
        if error is not None:
            raise AssertionError(f"case '{name}': {error}") from error
