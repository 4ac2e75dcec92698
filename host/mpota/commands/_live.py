"""What the commands that change a live board have in common: connect, show, ask, write, report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mpota.commands import _report as report
from mpota.errors import MpotaError, UsageError
from mpota.firmware.firmware import Firmware
from mpota.firmware.on_board import board_firmware
from mpota.formats.partition_table import DEFAULT_TABLE_OFFSET
from mpota.storage.ports import DEFAULT_BAUD, is_port
from mpota.units import format_size

if TYPE_CHECKING:
    from mpota.flashing.live import LiveChange
    from mpota.flashing.plan import Plan
    from mpota.push.trial import Trial
    from mpota.storage.board import BoardFlash


@contextmanager
def connected(port: str, baud: int = DEFAULT_BAUD) -> Iterator[BoardFlash]:
    """The board on ``port``; progress on standard error."""
    from mpota.storage.board import open_board

    with ExitStack() as stack:
        with report.doing(f"connecting to the board on {port}"):
            board = stack.enter_context(open_board(port, baud=baud, progress=report.progress))
        yield board


@contextmanager
def connected_firmware(
    port: str, baud: int = DEFAULT_BAUD, table_offset: int = DEFAULT_TABLE_OFFSET
) -> Iterator[tuple[BoardFlash, Firmware]]:
    """The board on ``port``, and the firmware on it."""
    with connected(port, baud) as board:
        yield board, board_firmware(board, table_offset)


@contextmanager
def looking(
    port: str, baud: int, table_offset: int = DEFAULT_TABLE_OFFSET, *, yes: bool
) -> Iterator[BoardFlash]:
    """The board on ``port``, for a command that only looks.

    Looking resets the board, which ends a trial boot. If the REPL tells of one, the user is asked
    before; if only the loader can tell, afterwards, and nothing is started unasked.
    """
    from mpota.push.trial import find_trial

    trial = find_trial(port)
    if trial is not None and not yes:
        _ask_to_look(port, trial)
    with connected(port, baud) as board:
        try:
            yield board
        finally:
            _give_back(board, table_offset, yes=yes or trial is not None)


def _ask_to_look(port: str, trial: Trial) -> None:
    what = f"{port}: {trial.label} is on its trial boot, which a look through the ROM loader ends"
    if not sys.stdin.isatty():
        raise UsageError(
            f"{what}: nothing was started",
            f"mpota status {trial.console} asks at the REPL; -y looks, and gives the boot back",
        )
    if not report.confirm(f"{what}. Look, and give the boot back then?"):
        raise MpotaError("nothing was started")


def _give_back(board: BoardFlash, table_offset: int, *, yes: bool) -> None:
    """Give the app the trial boot that looking has cost it: PENDING_VERIFY becomes NEW."""
    from mpota.bootloader.slots import boots_next, mark_slot
    from mpota.formats.otadata import OtaState, active_record

    try:
        firmware = board_firmware(board, table_offset)
    except MpotaError:
        return
    records = firmware.otadata
    active = active_record(records) if records else None
    if records is None or active is None:
        return
    if records[active].ota_state != OtaState.PENDING_VERIFY:
        return
    what = "the trial boot of its new app is spent by this look"
    if not yes and not sys.stdin.isatty():
        board.stays_in_loader = True
        report.note(
            f"{board.name}: {what}; it stays in the loader. -y gives the boot back; after a "
            "reset the former app runs",
            error=True,
        )
        return
    question = f"{board.name}: {what}. Give it back? Else the former app runs"
    if not yes and not report.confirm(question):
        return
    change = mark_slot(firmware, OtaState.NEW)
    board.program(change.offset, change.data, change.what)
    app = boots_next(board_firmware(board, table_offset), board.size)
    label = app.label if app else "nothing"
    report.note(f"the trial boot is given back: {label} starts once more", error=True)


@contextmanager
def opened(
    source: Path,
    baud: int = DEFAULT_BAUD,
    table_offset: int = DEFAULT_TABLE_OFFSET,
    *,
    yes: bool,
) -> Iterator[Firmware]:
    """The firmware to look at: in a file, or on the board if ``source`` is a port."""
    if not is_port(source):
        yield Firmware.open(source, table_offset)
        return
    with looking(str(source), baud, table_offset, yes=yes) as board:
        yield board_firmware(board, table_offset)


def change_board(
    board: BoardFlash,
    change: LiveChange,
    *,
    dry_run: bool,
    yes: bool,
    write: Callable[[], object] | None = None,
) -> bool:
    """Show what is about to happen, ask if somebody is at the terminal, and do it.

    ``write`` replaces the usual way to carry the plan out. Returns False for a dry run, and if
    nothing had to be done.
    """
    print_change(board.name, change)
    if not change.plan.steps:
        report.say("nothing to write: all of this is on the board already")
        return False
    if dry_run:
        report.say("dry run: nothing written")
        return False
    ask("Write this?", yes=yes)
    if write is None:
        from mpota.flashing.plan import carry_out

        carry_out(board, change.plan.steps)
    else:
        write()
    print_done(board, change.plan)
    return True


def ask(question: str, *, yes: bool) -> None:
    """Raises MpotaError if the user says no, UsageError if nobody is there to be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            "nothing was written: no terminal to ask at",
            "-y writes without asking, --dry-run only shows what would be written",
        )
    if not report.confirm(question):
        raise MpotaError("nothing was written")


def print_change(port: str, change: LiveChange) -> None:
    report.say(f"{port}: {change.summary}")
    if change.differences:
        report.print_table(report.DIFFERENCE_COLUMNS, report.difference_rows(change.differences))
    print_plan(change.plan)
    if change.plan.steps and change.plan.kept_size:
        report.say(f"{format_size(change.plan.kept_size)} of it are there already, and stay")
    for text in change.notes:
        report.note(text)


def print_plan(plan: Plan) -> None:
    """The steps, and what a power cut in each of them would leave."""
    if not plan.steps:
        return
    rows = []
    for phase in plan.phases:
        start = phase.steps[0].offset
        verb = "erase" if all(step.is_erase for step in phase.steps) else "write"
        cut = (
            f"'{phase.boots_if_cut}' boots"
            if phase.boots_if_cut
            else report.Toned("does not boot", report.Tone.CAUTION)
        )
        rows.append((verb, phase.what, f"{start:#x}", format_size(phase.size), cut))
    report.print_table(("Step", "What", ">From", ">Size", "If power fails here"), rows)
    if plan.unsafe:
        names = ", ".join(phase.what for phase in plan.unsafe)
        report.say(
            f"against a power cut: {names}. Run the same command again to repair it.",
            head="not safe ",
            tone=report.Tone.CAUTION,
        )
    else:
        report.say(
            "against a power cut at any moment: the board boots a complete app",
            head="safe ",
            tone=report.Tone.GOOD,
        )


def print_done(board: BoardFlash, plan: Plan) -> None:
    size = format_size(sum(step.size for step in plan.steps))
    boots = f"'{plan.boots_after}' boots" if plan.boots_after else "nothing boots"
    again = f"; {board.repeats} of its chunks took another attempt" if board.repeats else ""
    report.done(f"{size} written and verified, {boots}{again}")
