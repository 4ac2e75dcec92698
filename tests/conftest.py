"""Options of all tests, and the counts of power cuts and hostile cases that were tried."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-cuts", action="store_true", help="try every power cut, not some hundred"
    )
    parser.addoption("--cut", metavar="ID", help="try one power cut: SCENARIO:OPERATION:MODE")


# What tests count (record_property), and what that is counted in.
COUNTED = {"power cuts": "scenarios", "hostile cases": "tests"}


@pytest.fixture
def hostile(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """``hostile(count)``: so many hostile cases were tried, 1 without a number."""

    def count(number: int = 1) -> None:
        record_property("hostile cases", number)

    return count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    for name, unit in COUNTED.items():
        counts = [
            [int(value) for found, value in report.user_properties if found == name]
            for report in reports
            if report.when == "call"
        ]
        total, where = sum(map(sum, counts)), len([one for one in counts if one])
        if where:
            terminalreporter.write_line(f"{name} tried: {total:,} in {where} {unit}")
