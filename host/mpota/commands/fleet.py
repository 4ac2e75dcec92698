"""``mpota fleet``: all boards in one table, and new ones."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import click

from mpota.commands import _report as report
from mpota.commands._hawkbit import open_client
from mpota.commands._options import complete_ports, json_option
from mpota.errors import MpotaError, UsageError
from mpota.fleet.row import BoardStage, Row
from mpota.fleet.table import (
    SILENT,
    Filter,
    ago,
    changed,
    key_of,
    ordered,
    read_all,
    sums,
    to_json,
)
from mpota.text import shown

if TYPE_CHECKING:
    from rich.console import Group

    from mpota.fleet.row import BoardSource

_TONES = {
    BoardStage.FAILED: report.Tone.BAD,
    BoardStage.TRIAL: report.Tone.CAUTION,
    BoardStage.CURRENT: report.Tone.GOOD,
}
_COLUMNS = ("Board", "Runs", "Wanted", "Stage", ">Since", "Last word")
_sources = click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
_only = click.option(
    "--only",
    metavar="STAGES",
    help='Only boards that are "failed", "silent", "on trial", ...; several with commas.',
)
_boards = click.option(
    "--board", "boards", multiple=True, metavar="PATTERN", help="Only these, as in pump-*."
)


@click.group()
def command() -> None:
    """All boards in one table, and new ones.

    SOURCE is hawkbit+https://HOST/TENANT, mqtts://HOST, or a plan of mpota deploy; several make one
    table. Credentials for hawkBit: MPOTA_HAWKBIT_USER and MPOTA_HAWKBIT_PASSWORD,
    MPOTA_HAWKBIT_TOKEN, or MPOTA_HAWKBIT_FILE, a file with USER:PASSWORD. For a broker:
    MPOTA_MQTT_USER and MPOTA_MQTT_PASSWORD, or MPOTA_MQTT_FILE; MPOTA_MQTT_CA: its certificates.
    """


@command.command()
@_sources
@_only
@_boards
@json_option
def status(
    sources: tuple[str, ...], only: str | None, boards: tuple[str, ...], as_json: bool
) -> None:
    """Show what boards run, what they are to run, and how far they are: what stands out first.

    Of a plan, boards at their REPL are stopped for a moment, as by mpota status.
    """
    wanted = Filter.parse(only, boards)
    with _opened(sources) as opened, report.doing("asking"):
        rows = read_all(opened)
    now = _now()
    found = ordered((row for row in rows if wanted.takes(row, now)), now)
    if as_json:
        report.print_json({"boards": [to_json(row, now) for row in found]})
        return
    if found:
        report.print_table(*_table(found, now))
    text = sums(rows, now)
    report.say(text if len(found) == len(rows) else f"{text}; {len(found)} shown")


@command.command()
@_sources
@_only
@_boards
@click.option(
    "--every",
    type=click.FloatRange(0.2, 86400),
    help="Seconds from one look to the next (default: what the sources bear).",
)
@json_option
def watch(
    sources: tuple[str, ...],
    only: str | None,
    boards: tuple[str, ...],
    every: float | None,
    as_json: bool,
) -> None:
    """The same, live until Ctrl-C; where that is no terminal, and with --json, a line a change."""
    wanted = Filter.parse(only, boards)
    with _opened(sources) as opened, suppress(KeyboardInterrupt):
        interval = every or max(source.every_s for source in opened)
        if sys.stdout.isatty() and not as_json:
            _live(opened, wanted, interval)
        else:
            _lines(opened, wanted, interval, as_json=as_json)


@command.command()
@click.argument("target")
@click.argument("board", metavar="ID")
@click.argument("port", required=False, shell_complete=complete_ports)
@click.option("--url", help="What boards reach the server by, if not as this computer does.")
@click.option(
    "--allow-tokens", is_flag=True, help="Have the tenant let boards in by their tokens, too."
)
def add(target: str, board: str, port: str | None, url: str | None, allow_tokens: bool) -> None:
    """Make a board known to hawkBit as ID, and tell the board on PORT.

    TARGET is hawkbit+https://HOST/TENANT. The server gets a token that lets this board in; it goes
    into the board's NVS, with the server's address, where ota.ddi.Client() finds both, and is
    shown nowhere. The part `ddi` of the ota package is put on the board if it is missing. The same
    again changes nothing; without PORT the board is told another time.
    """
    from mpota.hawkbit import targets
    from mpota.storage.ports import find_port

    if port is not None:
        find_port(port)  # raises before the server is told of a board
    client = open_client(target)
    client.check_tenant()
    if url is not None and not url.startswith(("http://", "https://")):
        raise UsageError(f"--url {url} is not http://... or https://...")
    token, is_new = targets.add(client, board)
    name = client.place.name
    report.say(f"{board}: {'made' if is_new else 'known already'} at {name}")
    if allow_tokens:
        targets.allow_target_tokens(client)
    elif not targets.allows_target_tokens(client):
        report.note(f"{name} lets no board in by its token: --allow-tokens changes that")
    if port is not None:
        _enrol(port, url or client.place.base, client.place.tenant, board, token)


def _enrol(port: str, url: str, tenant: str, board: str, token: str) -> None:
    from mpota.push.enrol import Enrolment, enrol
    from mpota.push.repl import Session

    enrolment = Enrolment(url, tenant, board, token)
    with report.doing(f"telling the board on {port}"), Session(port) as session:
        is_changed = enrol(session, enrolment)
    report.say(f"the board on {port} {'knows it now' if is_changed else 'knows it already'}")
    report.say("in its program: asyncio.create_task(ota.ddi.Client().run())", is_whole=True)


@contextmanager
def _opened(sources: Sequence[str]) -> Iterator[list[BoardSource]]:
    from mpota.fleet.sources import open_source

    if len(set(sources)) < len(sources):
        raise UsageError("a source is named twice")
    with ExitStack() as stack:
        yield [stack.enter_context(open_source(source)) for source in sources]


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _table(rows: Sequence[Row], now: datetime) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Columns and cells; with several sources there is a column for them."""
    cells: list[tuple[str, ...]] = [
        (
            row.board,
            row.runs or "-",
            row.wanted or "-",
            _stage(row, now),
            ago(row.heard if row.is_silent(now) else row.since, now),
            _words(row),
        )
        for row in rows
    ]
    if len({row.source for row in rows}) < 2:
        return _COLUMNS, cells
    sources = (row.source for row in rows)
    return ("Of", *_COLUMNS), [(source, *row) for source, row in zip(sources, cells, strict=True)]


def _stage(row: Row, now: datetime) -> str:
    text = row.stage.value + (f" {row.percent} %" if row.percent is not None else "")
    tone = _TONES.get(row.stage)
    if row.is_silent(now):
        text, tone = f"{text}, {SILENT}", tone or report.Tone.CAUTION
    return report.Toned(text, tone) if tone else text


def _words(row: Row) -> str:
    return row.error or row.word or "-"


# --- watching


def _lines(sources: list[BoardSource], wanted: Filter, interval: float, *, as_json: bool) -> None:
    known: dict[tuple[str, str], Row] = {}
    for rows in _looks(sources, interval):
        now = _now()
        found = [row for row in rows if wanted.takes(row, now)]
        for row in ordered(changed(known, found, now), now):
            if as_json:
                report.print_json(to_json(row, now), is_line=True)
            else:
                report.say(_line(row, known.get(key_of(row)), now))
        known = {key_of(row): row for row in found}


def _line(row: Row, former: Row | None, now: datetime) -> str:
    stage = str(_stage(row, now))
    if former is not None and former.stage is not row.stage:
        stage = f"{former.stage.value} -> {stage}"
    versions = f"{row.runs or '-'} -> {row.wanted}" if row.wanted else row.runs or "-"
    said = row.error or row.word
    text = f"{now.astimezone():%H:%M:%S}  {row.board}  {versions}  {stage}"
    return f"{text}: {said}" if said else text


def _looks(sources: list[BoardSource], interval: float) -> Iterator[list[Row]]:
    """Read all boards again and again. Errors are told, and do not end it: a server may restart."""
    rows, failure = read_all(sources), ""
    while True:
        yield rows
        time.sleep(interval)
        try:
            rows, failure = read_all(sources), ""
        except MpotaError as error:
            if str(error) != failure:
                failure = str(error)
                report.note(f"{failure}: tried again", error=True)


_STYLES = {
    report.Tone.GOOD: "green",
    report.Tone.BAD: "bold red",
    report.Tone.CAUTION: "bold yellow",
}


def _live(sources: list[BoardSource], wanted: Filter, interval: float) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        for rows in _looks(sources, interval):
            now = _now()
            found = ordered((row for row in rows if wanted.takes(row, now)), now)
            head = f"{now.astimezone():%H:%M:%S}  {sums(rows, now)}"
            live.update(_picture(head, found, now, max(console.height - 5, 1)), refresh=True)


def _picture(head: str, found: Sequence[Row], now: datetime, room: int) -> Group:
    """The screen's lines. Sums come first, since the bottom is cut where it does not fit."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    columns, lines = _table(found[:room], now)
    for column in columns:
        name = column.removeprefix(">")
        table.add_column(name, justify="left" if name == column else "right", overflow="fold")
    for cells in lines:
        tones = [cell.tone if isinstance(cell, report.Toned) else None for cell in cells]
        styles = [_STYLES.get(tone, "") if tone else "" for tone in tones]
        table.add_row(
            *(Text(shown(cell), style) for cell, style in zip(cells, styles, strict=True))
        )
    more = len(found) - room
    rest = [Text(f"... and {more:,} more")] if more > 0 else []
    return Group(Text(head), Text(), table, *rest)
