"""Boards that are found rather than named: where they are looked for, the table of them, and an
update for all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mpota.commands import _report as report
from mpota.commands._results import print_results, to_document
from mpota.errors import MpotaError, UsageError
from mpota.text import shown

if TYPE_CHECKING:
    from mpota.push.scan import FoundBoard
    from mpota.push.update import Package

_Command = TypeVar("_Command", bound=Callable[..., Any])
_WAYS = ("lan", "ble")


def where_options(command: _Command) -> _Command:
    """``addresses``, ``only``, ``timeout``: for `find`."""
    addresses = click.option(
        "--address",
        "addresses",
        multiple=True,
        metavar="ADDRESS[:PORT]",
        help="Ask this board, or by this broadcast address, on the local network.",
    )
    only = click.option("--only", type=click.Choice(_WAYS), help="Look only there.")
    timeout = click.option(
        "--timeout",
        type=click.FloatRange(0.1, 600),
        default=3.0,
        help="Seconds to wait for answers (default 3).",
    )
    return addresses(only(timeout(command)))


def find(addresses: tuple[str, ...], only: str | None, timeout_s: float) -> list[FoundBoard]:
    """The boards that answer or advertise, each by a name of its own.

    By default network and Bluetooth are tried, and one that this computer lacks is only noted;
    with addresses it is the network alone. Raises MpotaError if no board is found.
    """
    from mpota.push import scan, tcp

    if addresses and only == "ble":
        raise UsageError("--address is of the local network, not of Bluetooth")
    asked = [scan.parse_address(text) for text in addresses] or [(scan.BROADCAST, tcp.PORT)]
    ways: dict[str, Callable[[], list[FoundBoard]]] = {
        "lan": lambda: scan.ask(asked, timeout_s),
        "ble": lambda: scan.look(timeout_s),
    }
    chosen = (only,) if only else ("lan",) if addresses else _WAYS
    found: list[FoundBoard] = []
    failures: list[MpotaError] = []
    with ThreadPoolExecutor(len(chosen)) as pool:
        for search in [pool.submit(ways[way]) for way in chosen]:
            try:
                found += search.result()
            except MpotaError as error:
                failures.append(error)
    if len(failures) == len(chosen):
        raise failures[0]
    for failure in failures:
        hint = f" ({failure.hint})" if failure.hint else ""
        report.say(f"note: {failure}{hint}", error=True)
    return scan.named(found)


_COLUMNS = ("Name", "Port", "Release", "State", "ota", "Needs")
_AT_A_TIME = 4


def print_found(boards: Iterable[FoundBoard]) -> None:
    report.print_table(_COLUMNS, [_row(board) for board in boards])


def _row(board: FoundBoard) -> tuple[str, ...]:
    needs = "-" if board.needs is None else ", ".join(board.needs) or "nothing"
    told = (board.release, board.state, board.ota)
    return (board.name, board.target, *(text or "-" for text in told), needs)


def push_all(
    search: Callable[[], list[FoundBoard]],
    package: Package,
    secret: bytes | None,
    *,
    force: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Send a package to all boards that ``search`` finds.

    Boards that run it, confirmed, are left out unless ``force``. Shows the boards first, and asks
    unless ``yes``. Exits with 1 if one of them did not take it. Raises MpotaError if there is none,
    UsageError if nobody can be asked.
    """
    from mpota.push.deploy import DeployPlan, PlannedBoard, deploy
    from mpota.push.update import Options
    from mpota.push.wire import Update, check_secret

    options = Options(secret=secret, restart=True)
    check_secret(options)
    Update.of(package)
    boards = search()
    if not boards:
        raise MpotaError("no board was found", "its app has to listen: ota.listen, ota.ble")
    if not as_json:
        print_found(boards)
    wanted = [board for board in boards if force or _lacks(board, package)]
    if wanted:
        _ask(f"send {package.name} to {len(wanted)} of them?", yes)
    targets = tuple(
        PlannedBoard(board.name, board.target, package, options, {}, (), None) for board in wanted
    )
    plan = DeployPlan(targets, _AT_A_TIME, stop_after=1)
    results = deploy(plan, (lambda line: None) if as_json else report.say) if targets else ()
    if as_json:
        report.print_json(to_document(results))
    elif results:
        print_results(results)
    else:
        report.say(f"all of them run {package.version}: nothing to do")
    if not all(result.is_good for result in results):
        click.get_current_context().exit(1)


def _lacks(board: FoundBoard, package: Package) -> bool:
    return not (board.release == package.version and board.state == "confirmed")


def _ask(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nothing was sent: no terminal to ask at", "-y sends without asking")
    if not click.confirm(shown(question), err=True):
        raise MpotaError("nothing was sent")
