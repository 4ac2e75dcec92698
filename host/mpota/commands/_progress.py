"""Progress: one line at the bottom of the terminal, which goes when the work is done.

It is printed to standard error, and not at all if that is no terminal.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from mpota.commands._terminal import is_terminal, width_of
from mpota.text import shown
from mpota.units import KiB, MiB

_REDRAW_S = 0.1
_LABEL_WIDTH = 28  # wider where the terminal is
_NUMBERS_WIDTH = 60
_LEAST_BAR = 6
_SPEED_WIDTH = 12


class Advance(Protocol):
    """Takes the bytes done, and their total if that has changed."""

    def __call__(self, done: int, total: int | None = None, /) -> object: ...


_lock = threading.RLock()
_tasks: list[_Task] = []  # nested; the innermost is shown
_drawn = 0  # characters of it on the terminal


class _Task:
    """``done`` of ``total`` bytes; ``total`` 0: unknown."""

    def __init__(self, label: str, total: int = 0) -> None:
        self.label = shown(label)
        self.total = total
        self.done = 0
        self._first: tuple[float, int] | None = None  # bytes that were done before have no rate
        self._drawn_at = 0.0

    def update(self, done: int, total: int | None = None) -> None:
        with _lock:
            now = time.monotonic()
            self.done = done
            if total is not None and total != self.total:
                self.total, self._first = total, None
            if self._first is None:
                self._first = (now, done)
            if done >= self.total > 0:
                _clear()  # what comes now is not about bytes
            elif now - self._drawn_at >= _REDRAW_S:
                self._drawn_at = now
                _draw(self)

    def line(self, width: int) -> str:
        if self._first is None:
            return f"{self.label} ..."[:width]
        label = self.label
        most = max(_LABEL_WIDTH, width - _NUMBERS_WIDTH)
        if len(label) > most:
            label = label[: most - 3] + "..."
        part = f"{self.done / self.total:4.0%}  " if self.total else ""
        numbers = part + self._amount() + self._speed()
        room = width - len(label) - len(numbers) - 4
        has_bar = self.total and room >= _LEAST_BAR
        bar = ("=" * (room * self.done // self.total)).ljust(room) if has_bar else ""
        return "  ".join(filter(None, (label, bar, numbers)))[:width]

    def _amount(self) -> str:
        if not self.total:
            return f"{self.done // KiB} KiB"
        if self.total >= MiB:
            total = f"{self.total / MiB:.2f}"
            return f"{self.done / MiB:{len(total)}.2f} of {total} MiB"
        total = f"{-(-self.total // KiB)}"
        return f"{self.done // KiB:{len(total)}} of {total} KiB"

    def _speed(self) -> str:
        """Bytes a second, and the time that is left; blanks as long as nothing is known."""
        start, before = self._first or (time.monotonic(), self.done)
        seconds, size = time.monotonic() - start, self.done - before
        if seconds < _REDRAW_S or size <= 0:
            return " " * (2 * _SPEED_WIDTH)
        rate = size / seconds
        speed = f"{rate / MiB:.1f} MiB/s" if rate >= MiB else f"{rate / KiB:.0f} KiB/s"
        if not self.total:
            return f"{speed:>{_SPEED_WIDTH}}"
        minutes, left = divmod(round((self.total - self.done) / rate), 60)
        return f"{speed:>{_SPEED_WIDTH}}{f'{minutes}:{left:02} left':>{_SPEED_WIDTH}}"


class _Count(_Task):
    """Things that are counted, not bytes."""

    def _amount(self) -> str:
        return f"{self.done} of {self.total}"

    def _speed(self) -> str:
        start, before = self._first or (time.monotonic(), self.done)
        seconds, count = time.monotonic() - start, self.done - before
        if seconds < _REDRAW_S or count <= 0:
            return ""
        minutes, left = divmod(round((self.total - self.done) * seconds / count), 60)
        return f"  {minutes}:{left:02} left"


@contextmanager
def counting(description: str) -> Iterator[Advance]:
    """Show how many things are done, and how long the others will take: the value takes how many
    are done, and of how many."""
    with _shown(_Count(description)) as task:
        with _lock:
            _draw(task)
        yield task.update


@contextmanager
def progress(description: str, total: int) -> Iterator[Advance]:
    """Show how far work of ``total`` bytes has come: the value takes bytes done, and another total.

    Those of the first call were there before. When all are done the line is gone.
    """
    with _shown(_Task(description, total)) as task:
        yield task.update


@contextmanager
def doing(description: str) -> Iterator[None]:
    """Show ``description`` while something takes a while, nobody knows how long."""
    with _shown(_Task(description)) as task:
        with _lock:
            _draw(task)
        yield


@contextmanager
def aside() -> Iterator[None]:
    """Hide the line at the bottom while other lines are printed."""
    with _lock:
        was_drawn = _drawn > 0
        _clear()
        try:
            yield
        finally:
            if was_drawn:
                _draw(_tasks[-1])


@contextmanager
def _shown(task: _Task) -> Iterator[_Task]:
    with _lock:
        _tasks.append(task)
    try:
        yield task
    finally:
        with _lock:
            _clear()
            _tasks.remove(task)


def _draw(task: _Task) -> None:
    global _drawn
    if task is not _tasks[-1] or not is_terminal(sys.stderr):
        return
    # The last column stays free: some terminals begin a new line behind it.
    text = task.line((width_of(sys.stderr) or 0) - 1)
    sys.stderr.write("\r" + text.ljust(_drawn))
    sys.stderr.flush()
    _drawn = len(text)


def _clear() -> None:
    global _drawn
    if _drawn:
        sys.stderr.write("\r" + " " * _drawn + "\r")
        sys.stderr.flush()
        _drawn = 0
