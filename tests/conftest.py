"""Options and fixtures of all tests, and what a test run says of itself before and after."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from mpota.virtual import flash, micropython, standins
from mpota.virtual.board import Board
from mpota.virtual.micropython import cache_dir

from tests.support import amount, browser, once, ota_board, web
from tests.support.browser import Chromium
from tests.support.cuts import Cuts
from tests.support.esp_web_tools import NEEDS_SCRIPT
from tests.support.mqtt_clients import NEEDS_CLIENT
from tests.support.real_files import NEEDS_SHARED, NEEDS_STOCK
from tests.support.services import NEEDS_SERVICE, need

# What waits leaves the cores to the others.
WHOLE_SUITE = "about 6 minutes on two cores"
WORKERS_PER_CORE = 2
CACHE = cache_dir()

# What tests count (record_property), and what that is counted in.
COUNTED = {"power cuts": "scenarios", "hostile cases": "tests"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-cuts",
        action="store_true",
        help="try every power cut, not some hundred, and every mutation, not one in four",
    )
    parser.addoption("--cut", metavar="ID", help="try one power cut: SCENARIO:OPERATION:MODE")


# --- a test run --------------------------------------------------------------------------------


class TestRun:
    """From the first to the last line; in the process that starts the others."""

    def __init__(self) -> None:
        self.directory = once.begin_run()
        self.left: list[Path] = []
        self.is_kept = False
        self.skipped: Counter[str] = Counter()

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        web.check_localhost()
        config = session.config
        if config.args_source is not pytest.Config.ArgsSource.ARGS:
            limit = float(config.getini("timeout"))
            say(config, f"The whole suite takes {WHOLE_SUITE}; {limit:.0f} s is a test's limit.")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2]
            fetched = (NEEDS_STOCK, NEEDS_CLIENT, NEEDS_SCRIPT)
            needs = (NEEDS_SHARED, NEEDS_SERVICE, *fetched)
            self.skipped.update(need for need in needs if need in reason)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        gc.collect()  # flash that nobody has any more is forgotten, where tests run in this process
        self.left = once.left_behind(self.directory)
        if self.left and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        self.is_kept = session.exitstatus != pytest.ExitCode.OK

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        for path in self.left:
            say(config, f"left behind: {path}")
        once.end_run(self.directory, keep=self.is_kept)
        if self.is_kept:
            say(config, f"what failed tests left to look at is in {self.directory}")
        for reason, count in sorted(self.skipped.items(), reverse=True):
            say(config, f"{count} tests skipped: {reason}")


class Garbage:
    """What collecting the tests leaves is for the whole run: garbage collection passes over it."""

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Generator[None, object, object]:
        gc.disable()
        try:
            return (yield)
        finally:
            gc.enable()
            gc.freeze()


class Imports:
    """In a process that runs a part of the tests, and collects them all, as the others do.

    To rewrite the assertions of all modules takes 8 s the first time. So each process begins with
    modules of its own: those that it comes to later are in the cache by then.
    """

    def __init__(self, workerid: str, workercount: int, **others: object) -> None:
        self._share = int(workerid.removeprefix("gw")) / workercount

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        wanted = [Path(arg.split("::")[0]).resolve() for arg in session.config.args]
        tests = Path(__file__).parent
        found = [
            path
            for path in sorted(tests.rglob("test_*.py"))
            if any(path.is_relative_to(one) for one in wanted)
        ]
        first = int(self._share * len(found))
        for path in found[first:] + found[:first]:
            name = ".".join(path.relative_to(tests.parent).with_suffix("").parts)
            with suppress(Exception, pytest.skip.Exception):  # the collection says what it is
                import_module(name)


@pytest.hookimpl(trylast=True)  # what other plugins put into TMPDIR is not of the tests
def pytest_configure(config: pytest.Config) -> None:
    amount.is_all = config.getoption("--all-cuts")
    # In the background SIGINT may be ignored, and all that is started inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(Garbage(), "mpota-test-garbage")
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Imports(**config.workerinput), "mpota-test-imports")
        return
    run = TestRun()
    if sys.dont_write_bytecode:
        # Beside the sources nobody wants it; but tests start a thousand processes.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(cache_dir() / "bytecode")
    config.pluginmanager.register(run, "mpota-test-run")


class Caches:
    """Directories for XDG_CACHE_HOME, each used until something is put into it."""

    def __init__(self, directory: Path) -> None:
        self._directories = (directory / str(number) for number in itertools.count())
        entries = CACHE.iterdir() if CACHE.is_dir() else ()
        self._fetched = [one for one in entries if one.name not in ("apps", "channels.json")]
        self._current = self._make()

    def _make(self) -> Path:
        own = next(self._directories)
        (own / "mpota").mkdir(parents=True)
        for entry in self._fetched:
            (own / "mpota" / entry.name).symlink_to(entry)
        return own

    def clean(self) -> Path:
        """One that holds what is fetched, and nothing else."""
        fetched = {entry.name for entry in self._fetched}
        own = self._current
        if os.listdir(own) != ["mpota"] or set(os.listdir(own / "mpota")) != fetched:
            self._current = self._make()
        return self._current


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Caches:
    micropython.find()  # it is in the cache then
    return Caches(tmp_path_factory.mktemp("caches"))


@pytest.fixture(autouse=True)
def own_cache(caches: Caches, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apps and channels that a test has seen are kept for no other; what is fetched is for all."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches.clean()))


@pytest.fixture(scope="session", autouse=True)
def flashes_of_this_run() -> None:
    """What is left of them at the end is known by its place."""
    if once.flash_directory().is_dir():
        flash._SHARED_MEMORY = once.flash_directory()


@pytest.fixture(scope="session", autouse=True)
def keys_opened_once() -> None:
    """OpenSSL looks for 0.15 s whether a key's primes are primes; the tests have few keys."""
    serialization.load_pem_private_key = cache(serialization.load_pem_private_key)


@pytest.fixture(scope="session", autouse=True)
def compiled_standins() -> None:
    """In the cache that all tests see."""
    standins.directory()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    return WORKERS_PER_CORE * (os.cpu_count() or 1)


def say(config: pytest.Config, line: str) -> None:
    config.get_terminal_writer().line(line)


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
    _print_updates(terminalreporter, reports)


def _print_updates(
    terminalreporter: pytest.TerminalReporter, reports: list[pytest.TestReport]
) -> None:
    """Every form of an update by every way to a board, as the tests found it ("update")."""
    found: dict[str, dict[str, str]] = {}
    for report in reports:
        for name, value in report.user_properties:
            if name == "update" and report.when == "call":
                way, form = str(value).split(": ")
                found.setdefault(form, {})[way] = report.outcome
    ways = sorted({way for cells in found.values() for way in cells})
    if found:
        lines = [
            ["form", *ways],
            *([form, *(c.get(w, "-") for w in ways)] for form, c in found.items()),
        ]
        for line in lines:
            terminalreporter.write_line("  ".join(f"{cell:<17}" for cell in line).rstrip())


# --- fixtures ----------------------------------------------------------------------------------


@pytest.fixture
def board() -> Iterator[Board]:
    """A board with the package built in. Tests of other boards have a fixture of this name."""
    with ota_board.updating_board() as board:
        yield board


@pytest.fixture
def server() -> Iterator[web.WebServer]:
    """A web server on loopback that has no files yet; others as with `board`."""
    with web.serving() as server:
        yield server


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A real browser, one process for all tests; each has a profile of its own."""
    with browser.running(need("chromium"), tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def hostile(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """``hostile(count)``: so many hostile cases were tried, 1 without a number."""

    def count(number: int = 1) -> None:
        record_property("hostile cases", number)

    return count


@pytest.fixture
def cuts(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Cuts:
    """Cuts the power wherever a scenario touches the flash; ``--cut`` and ``--all-cuts``."""
    return Cuts(request.config, record_property)
