"""``mpota rehearse``: try a release on a copy of a board."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mpota.commands import _report as report
from mpota.commands._live import looking
from mpota.commands._options import (
    Size,
    baud_option,
    force_option,
    json_option,
    look_option,
    output_option,
    table_offset_option,
)
from mpota.commands._sending import check_option
from mpota.errors import MpotaError, UsageError
from mpota.storage.file import check_output, replacing, write_file
from mpota.storage.ports import is_port
from mpota.units import KiB, format_flash_size

if TYPE_CHECKING:
    from mpota.rehearse.offer import Offer
    from mpota.rehearse.rehearsal import Rehearsal
    from mpota.rehearse.stage import Setup
    from mpota.rehearse.subject import Subject

_WAYS = ("http", "https", "push", "tcp", "ble", "ddi", "channel")
_INTERRUPTED = 130


if TYPE_CHECKING:
    _IntType = click.ParamType[int]
else:
    _IntType = click.ParamType  # generic since click 8.2 only


class _CountOrAll(_IntType):
    name = "N|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """A count, or -1 for ``all``."""
        if isinstance(value, int):
            return value
        if value == "all":
            return -1
        if not value.isdecimal():
            raise UsageError(f"--cuts '{value}' is neither a number nor 'all'")
        return int(value)


@click.command()
@click.argument("release")
@click.option(
    "--board",
    "source",
    metavar="PORT|FLASH|FIRMWARE",
    help="The board on this port, a dump or backup of it, or a firmware that is installed first.",
)
@click.option("--cuts", type=_CountOrAll(), default=100, help="Power cuts: how many, or 'all'.")
@click.option("--breaks", type=click.IntRange(0, 1000), default=5, help="Broken connections.")
@click.option("--by", "way", type=click.Choice(_WAYS), help="How the update comes (default http).")
@check_option
@click.option("--then", metavar="RELEASE", help="What comes after it (default: made up).")
@click.option("--heap", type=Size(), help="Bytes of heap on the board (default: read, or 120K).")
@click.option(
    "--confirm",
    type=click.FloatRange(0.5, 600),
    default=10.0,
    help="Seconds that a version may take to confirm itself (default 10).",
)
@click.option("--main", is_flag=True, help="Run the board's code though it cannot be confined.")
@click.option("--replay", metavar="ID", help="This cut alone, and leave its flash in a file.")
@click.option("--jobs", type=click.IntRange(1, 64), help="Processes (default: one a core).")
@click.option("--junit", type=click.Path(path_type=Path), help="Write a report for CI servers.")
@click.option("-f", "--flash-size", type=Size(), help="Flash of a board that FIRMWARE goes onto.")
@output_option
@force_option
@json_option
@table_offset_option
@baud_option
@look_option
def command(
    release: str,
    source: str | None,
    cuts: int,
    breaks: int,
    way: str | None,
    check: str | None,
    then: str | None,
    heap: int | None,
    confirm: float,
    main: bool,
    replay: str | None,
    jobs: int | None,
    junit: Path | None,
    flash_size: int | None,
    output: Path | None,
    force: bool,
    as_json: bool,
    table_offset: int,
    baud: int,
    yes: bool,
) -> None:
    """Try RELEASE on a copy of a board, with power cuts and broken connections; exit 1 if it falls.

    RELEASE is what boards take: an app image, a firmware, a bundle, a manifest or its directory, a
    delta, a URL of one, or the directory of a channel. Nothing of the board is changed.
    """
    from mpota.push.update import HealthCheck
    from mpota.rehearse.offer import CHANNEL, open_offer
    from mpota.rehearse.stage import Setup

    for path in (output, junit):
        if path is not None:
            check_output(path, force=force)
    health = HealthCheck.parse(check, confirm)
    offer = open_offer(release)
    following = open_offer(then) if then else None
    way = way or ("channel" if offer.kind == CHANNEL else "http")
    _check_way(way, offer)
    with _terminated_as_ctrl_c():
        subject, heap_size = _subject(source, offer, table_offset, flash_size, heap, baud, yes=yes)
        if following is not None:
            following = replace(following, is_following=True)
        plan = Setup(subject, offer, following, way, heap_size, health, confirm)
        if replay is not None:
            _replay(plan, replay, main=main, force=force, as_json=as_json)
            return
        plan, result = _rehearse(plan, cuts, breaks, jobs, main=main, as_json=as_json)
    _write_reports(plan, result, output, junit)
    _print(plan, result, as_json=as_json)
    if result.is_interrupted:
        sys.exit(_INTERRUPTED)
    sys.exit(1 if result.findings else 0)


def _check_way(way: str, offer: Offer) -> None:
    from mpota.rehearse.offer import CHANNEL, RELEASE

    if (way == "channel") != (offer.kind == CHANNEL):
        raise UsageError(
            f"{offer.name} does not come by {way}",
            "--by channel is for what `mpota publish` has made, which comes in no other way",
        )
    if offer.kind == RELEASE and len(offer.files) > 1 and way not in ("http", "https"):
        raise UsageError(f"a manifest comes by http or https, not by {way}", "make a bundle of it")


@contextmanager
def _terminated_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does: results so far are told, files removed."""
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _subject(
    source: str | None,
    offer: Offer,
    table_offset: int,
    flash_size: int | None,
    heap: int | None,
    baud: int,
    *,
    yes: bool,
) -> tuple[Subject, int]:
    """The copy of the board, and its heap."""
    from mpota.rehearse import subject
    from mpota.virtual.board import DEFAULT_HEAP_SIZE

    if source is None:
        if offer.app is None or offer.chip is None:
            raise UsageError(f"{offer.name} does not tell what board it is for", "--board says it")
        made = subject.made_for(offer.chip, offer.app.to_bytes(), offer.name)
        return made, heap or DEFAULT_HEAP_SIZE
    if not is_port(source):
        made = subject.from_file(Path(source), table_offset, flash_size)
        return made, heap or DEFAULT_HEAP_SIZE
    from mpota.push.trial import find_trial, read_heap_size

    if heap is None and find_trial(source) is None:
        heap = read_heap_size(source)
    with looking(source, baud, table_offset, yes=yes) as board:
        made = subject.from_board(board, table_offset, source, board.size, board.mac)
    return made, heap or DEFAULT_HEAP_SIZE


def _confined(plan: Setup, error: MpotaError, *, main: bool) -> Setup:
    """The plan without confinement, if ``main`` asks for it, or its code is mpota's own.

    Raises UsageError otherwise.
    """
    from mpota.rehearse.offer import IMAGE

    if main or (plan.subject.is_own_code and plan.offer.kind == IMAGE):
        report.note(f"{error}: its code runs as a program of yours", error=True)
        return replace(plan, is_confined=False)
    raise UsageError(f"{error}; --main runs the board's code all the same", error.hint)


def _rehearse(
    plan: Setup, cuts: int, breaks: int, jobs: int | None, *, main: bool, as_json: bool
) -> tuple[Setup, Rehearsal]:
    from mpota.rehearse.confine import NotConfinedError
    from mpota.rehearse.rehearsal import rehearse

    if not as_json:
        _print_opening(plan)
    wanted = None if cuts < 0 else cuts
    with report.counting("rehearsing") as tell:
        try:
            return plan, rehearse(plan, cuts=wanted, breaks=breaks, jobs=jobs, tell=tell)
        except NotConfinedError as error:
            plan = _confined(plan, error, main=main)
        return plan, rehearse(plan, cuts=wanted, breaks=breaks, jobs=jobs, tell=tell)


def _replay(plan: Setup, name: str, *, main: bool, force: bool, as_json: bool) -> None:
    from mpota.rehearse import report as made
    from mpota.rehearse.confine import NotConfinedError
    from mpota.rehearse.rehearsal import replay

    path = Path(f"rehearse-{name.replace(':', '-')}.bin")
    if "/" in name:
        raise UsageError(f"'{name}' is not an id")
    check_output(path, force=force)
    try:
        result, flash = replay(plan, name)
    except NotConfinedError as error:
        plan = _confined(plan, error, main=main)
        result, flash = replay(plan, name)
    with replacing(path, private=True) as temporary:
        temporary.write_bytes(flash)
    if as_json:
        report.print_json(made.to_json(plan, _cleaned(plan, result)))
    else:
        _print_findings(_cleaned(plan, result))
        boots = result.tried[0].boots if result.tried else "nothing"
        report.say(f"{name}: {boots} boots after it")
        report.written(path, "it may hold passwords; mpota virtual runs it")
    sys.exit(1 if result.findings else 0)


def _cleaned(plan: Setup, result: Rehearsal) -> Rehearsal:
    """The result without words of the board's nvs."""
    from mpota.rehearse.report import Redactor

    clean = Redactor(plan).clean
    return replace(
        result,
        steps=[replace(s, findings=tuple(map(clean, s.findings))) for s in result.steps],
        tried=[replace(t, findings=tuple(map(clean, t.findings))) for t in result.tried],
        notes=list(map(clean, result.notes)),
    )


def _print_opening(plan: Setup) -> None:
    subject, offer = plan.subject, plan.offer
    size = format_flash_size(len(subject.content))
    what = offer.version if offer.version == offer.name else f"{offer.name} ({offer.version})"
    report.say(
        f"{what} on {subject.name}: {subject.chip.title}, {size} of flash, "
        f"{plan.heap_size // KiB} KiB of heap, by {plan.way}"
    )
    for text in subject.notes:
        report.note(text)


def _print(plan: Setup, result: Rehearsal, *, as_json: bool) -> None:
    from mpota.rehearse import report as made

    result = _cleaned(plan, result)
    if as_json:
        report.print_json(made.to_json(plan, result))
        return
    for text in result.notes:
        report.note(text)
    report.print_table(made.COLUMNS, made.rows(result))
    _print_findings(result)
    is_good = not result.findings and not result.is_interrupted
    tone = report.Tone.GOOD if is_good else report.Tone.BAD
    report.say(made.verdict(result), head="ok: " if is_good else "verdict: ", tone=tone)


_SHOWN = 10


def _print_findings(result: Rehearsal) -> None:
    for name, text in result.findings[:_SHOWN]:
        report.say(text, head=f"{name}: ", tone=report.Tone.BAD)
    if len(result.findings) > _SHOWN:
        report.say(f"and {len(result.findings) - _SHOWN:,} more: --json, or --junit FILE, has all")


def _write_reports(plan: Setup, result: Rehearsal, output: Path | None, junit: Path | None) -> None:
    from mpota.rehearse import report as made

    if junit is not None:
        write_file(junit, made.to_junit(plan, _cleaned(plan, result)))
    if output is not None:
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            if output.suffix == ".json":
                _print(plan, result, as_json=True)
            else:
                _print_opening(plan)
                _print(plan, result, as_json=False)
        write_file(output, text.getvalue().encode())
