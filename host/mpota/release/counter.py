"""The counter of a release that is given none: the time, so that each is above those before it."""

from __future__ import annotations

import os
import re
import time

from mpota.errors import UsageError
from mpota.formats.manifest import MAX_COUNTER

_EPOCH = 1577836800  # 2020-01-01T00:00:00Z


def counter_now() -> int:
    """The seconds since 2020, by the clock or by SOURCE_DATE_EPOCH.

    Raises UsageError if no manifest can hold it.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is not None and not re.fullmatch(r"[0-9]{1,15}", text):
        raise UsageError(f"SOURCE_DATE_EPOCH is {text!r}, it must be seconds since 1970")
    counter = (int(time.time()) if text is None else int(text)) - _EPOCH
    if not 0 <= counter <= MAX_COUNTER:
        where = "the clock" if text is None else "SOURCE_DATE_EPOCH"
        raise UsageError(
            f"{where} gives the counter {counter}: the seconds since 2020, 0 to {MAX_COUNTER}",
            "give --counter",
        )
    return counter
