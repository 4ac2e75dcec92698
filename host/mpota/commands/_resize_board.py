"""What ``mpota resize`` does on the port of a board; for a file none of this is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from mpota.commands import _report as report
from mpota.commands._live import ask, change_board, connected
from mpota.edit.resizing import resize_on_board
from mpota.errors import MpotaError
from mpota.firmware.layout import Edits
from mpota.firmware.on_board import board_firmware
from mpota.flashing import backup as backups
from mpota.flashing.live import plan_change
from mpota.storage.board import BoardFlash
from mpota.storage.file import check_output
from mpota.units import format_size


class ResizeOptions(NamedTuple):
    """The options of `mpota resize` that are for boards, or mean something else there."""

    baud: int
    backup: Path | None
    table_offset: int
    keep_files: bool
    dry_run: bool
    yes: bool


def resize_board(port: str, edits: Edits, words: str, options: ResizeOptions) -> None:
    """Resize a board. ``words`` name the change: a journal is finished only by the same change."""
    with connected(port, options.baud) as board:
        journal = _find_journal(board, options.backup)
        if journal is None:
            _start(board, edits, words, options)
        else:
            _go_on(board, journal, words, options)


def _find_journal(board: BoardFlash, backup: Path | None) -> Path | None:
    """This user's own journal; any that somebody else left in this directory is ignored."""
    if backup is not None:
        journal = backups.unfinished_path(backup)
        return journal if os.path.lexists(journal) else None
    for journal in backups.find_unfinished(Path(), board.mac):
        reason = backups.foreign(journal)
        if reason is None:
            return journal
        report.note(f"{journal} is left alone: {reason}")
    return None


def _go_on(board: BoardFlash, journal: Path, words: str, options: ResizeOptions) -> None:
    saved = backups.load_journal(board, journal, words)
    report.say(f"{board.name}: '{words}' was interrupted, going on with {journal}")
    rows = [(step.what, f"{step.offset:#x}", format_size(step.size)) for step in saved.steps]
    report.print_table(("What", ">From", ">Size"), rows)
    if options.dry_run:
        report.say("dry run: nothing written")
        return
    ask("Go on with it?", yes=options.yes)
    path = backups.finish(board, saved, journal)
    kept = f", {format_size(board.kept_size)} of it before" if board.kept_size else ""
    report.done(f"all of it is written and verified{kept}; what it overwrote is in {path}")


def _start(board: BoardFlash, edits: Edits, words: str, options: ResizeOptions) -> None:
    path = options.backup or backups.default_path(Path(), board.mac)
    check_output(path)
    try:
        firmware = board_firmware(board, options.table_offset)
    except MpotaError as error:
        hint = f"was a resize interrupted? Run it again where its {backups.UNFINISHED} file is"
        raise MpotaError(str(error), error.hint or hint) from None
    edit = resize_on_board(firmware, edits, board.size, keep_files=options.keep_files)
    change = plan_change(board, edit)

    def write() -> None:
        backups.change_with_backup(board, change.plan, path, words, options.table_offset)
        report.say(f"backup: {path}")

    change_board(board, change, dry_run=options.dry_run, yes=options.yes, write=write)
