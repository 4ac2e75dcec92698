"""The results of updating many boards, as a table and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mpota.commands import _report as report

if TYPE_CHECKING:
    from mpota.push.deploy import Result

_COLUMNS = ("Board", "Port", "Outcome", "Version", ">Seconds", "What changed")


def to_document(results: Iterable[Result]) -> dict[str, object]:
    return {"boards": [result.to_json() for result in results]}


def print_results(results: tuple[Result, ...]) -> None:
    report.print_table(_COLUMNS, [_row(result) for result in results])
    counts = Counter(result.outcome for result in results)
    report.say(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))


def _row(result: Result) -> tuple[str, ...]:
    return (
        result.name,
        result.port,
        report.Toned(result.outcome, report.Tone.GOOD if result.is_good else report.Tone.BAD),
        result.version or "-",
        f"{result.seconds:.1f}",
        "; ".join(result.changes) or "-",
    )
