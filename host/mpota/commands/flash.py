"""``mpota flash``: a firmware file onto a board."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mpota.commands import _report as report
from mpota.commands._live import change_board, connected
from mpota.commands._options import change_options, firmware_argument, port_argument
from mpota.edit.change import apply_to_file
from mpota.edit.resizing import resize
from mpota.errors import MpotaError
from mpota.firmware.firmware import Firmware, is_app_image
from mpota.firmware.layout import Edits
from mpota.flashing.files import LostFiles, back_up, find_lost_files, moved_files
from mpota.flashing.live import check_flashable, firmware_on, plan_flash
from mpota.flashing.plan import carry_out
from mpota.storage.file import read_file
from mpota.units import format_flash_size


@click.command()
@firmware_argument
@port_argument
@click.option("--fit", is_flag=True, help="Resize FIRMWARE to the board's flash on the fly.")
@click.option("--erase", is_flag=True, help="Erase the whole flash first, nvs and files too.")
@click.option(
    "--keep-files/--drop-files",
    "keep_files",
    default=None,
    help="Whether files that have another place in FIRMWARE go there. A backup is made anyway.",
)
@click.option("--force", is_flag=True, help="Flash what would not boot, too.")
@change_options
def command(
    firmware: Path,
    port: str,
    fit: bool,
    erase: bool,
    keep_files: bool | None,
    force: bool,
    dry_run: bool,
    yes: bool,
    baud: int,
    table_offset: int,
) -> None:
    """Put FIRMWARE on the board on PORT, at the right offsets, and verify it.

    nvs and file systems are kept where FIRMWARE's table has them at the same place; otadata is
    cleared, so that what was flashed is what boots. Files that have no place where they are can be
    kept (--keep-files); a backup is made of them. Interrupted, the same command goes on.
    """
    data = read_file(firmware)
    if is_app_image(data):
        raise MpotaError(
            f"{firmware.name} is an app image alone: there is no table to flash with it",
            f"mpota ota {port} {firmware} puts it into the next slot, mpota write into a partition",
        )
    new = Firmware.from_bytes(data, firmware.name, table_offset)
    with connected(port, baud) as board:
        if fit and new.chip == board.chip and new.flash_size != board.size:
            report.say(
                f"{firmware.name}: flash size {format_flash_size(new.flash_size)} -> "
                f"{format_flash_size(board.size)}"
            )
            resized = apply_to_file(new, resize(new, Edits(flash_size=board.size)))
            new = Firmware.from_bytes(resized, firmware.name, table_offset)
        check_flashable(board, new, force=force)
        old = None if erase else firmware_on(board, table_offset)
        lost = find_lost_files(board, new, old)
        keeps = bool(lost) and _is_to_keep(lost, keep_files, yes=yes or dry_run)
        moved = moved_files(lost) if keeps else {}
        change = plan_flash(board, new, keeps_data=not erase, force=force, files=moved)
        for files in () if keeps else lost:
            report.say(
                f"by this, and saved before: {files.words} (--keep-files keeps files)",
                head="lost ",
                tone=report.Tone.CAUTION,
            )

        def write() -> None:
            for files in lost:  # also those that will be kept: power may fail while they move
                path = back_up(files, board.mac, Path())
                report.say(f"backup: {path} (mpota fs ls {path})")
            if erase:
                board.erase(0, board.size)
            carry_out(board, change.plan.steps)

        change_board(board, change, dry_run=dry_run, yes=yes, write=write)


def _is_to_keep(lost: tuple[LostFiles, ...], wanted: bool | None, *, yes: bool) -> bool:
    """Whether to keep the files: by the option, else by asking the user."""
    if wanted is not None or yes or not sys.stdin.isatty():
        return bool(wanted)
    words = "; ".join(files.words for files in lost)
    return report.confirm(f"{words}: to be lost. Keep them, at their new place?")
