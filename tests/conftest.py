"""Options of all tests, and the count of the power cuts that were tried."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-cuts", action="store_true", help="try every power cut, not some hundred"
    )
    parser.addoption("--cut", metavar="ID", help="try one power cut: SCENARIO:OPERATION:MODE")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts = [
        int(value)
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        for name, value in report.user_properties
        if name == "power cuts" and report.when == "call"
    ]
    if counts:
        terminalreporter.write_line(f"power cuts tried: {sum(counts):,} in {len(counts)} scenarios")
