"""``mpota check``: what the bootloader will do with a firmware or an app image."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mpota.bootloader.check import Check, check_app, check_flash
from mpota.commands import _report as report
from mpota.commands._live import looking, opened
from mpota.commands._options import (
    baud_option,
    firmware_argument,
    json_option,
    look_option,
    table_offset_option,
)
from mpota.errors import UsageError
from mpota.firmware.firmware import check_no_other, find_base, is_app_image
from mpota.storage.file import FileImage, read_file
from mpota.storage.ports import is_port


@click.command()
@firmware_argument
@click.option("--as-app", is_flag=True, help="FIRMWARE is about to be written into an OTA slot.")
@click.option("--against", type=click.Path(path_type=Path), help="Whose bootloader will load it.")
@json_option
@table_offset_option
@baud_option
@look_option
def command(
    firmware: Path,
    as_app: bool,
    against: Path | None,
    as_json: bool,
    table_offset: int,
    baud: int,
    yes: bool,
) -> None:
    """Say what the bootloader will do with FIRMWARE, in its own words; exit 1 if nothing boots.

    FIRMWARE, and what --against names, may be a file or a board's port.
    """
    if is_port(firmware):
        if as_app or against:
            raise UsageError("--as-app and --against are for an image in a file")
        with looking(str(firmware), baud, table_offset, yes=yes) as board:
            check = check_flash(
                board, flash_size=board.size, table_offset=table_offset, is_file=False
            )
    else:
        check = _check_file(firmware, as_app, against, table_offset, baud, yes=yes)
    if as_json:
        report.print_json(check.to_json())
    else:
        _print(check, str(firmware) if is_port(firmware) else firmware.name)
    sys.exit(0 if check.is_ok else 1)


def _check_file(
    firmware: Path, as_app: bool, against: Path | None, table_offset: int, baud: int, *, yes: bool
) -> Check:
    data = read_file(firmware)
    check_no_other(data, firmware.name)
    if against is not None:
        with opened(against, baud, table_offset, yes=yes) as loader:
            return check_app(data, loader)
    if as_app or is_app_image(data):
        return check_app(data)
    return check_flash(FileImage(find_base(data, firmware.name), data), table_offset=table_offset)


def _print(check: Check, name: str) -> None:
    verdict = f"'{check.boots}' boots" if check.boots else "nothing boots"
    report.say(f"{name}: {verdict}", tone=report.Tone.GOOD if check.is_ok else report.Tone.BAD)
    for slot in check.slots:
        state = "bootable" if slot.verdict.is_bootable else "not bootable"
        if slot.is_blank:
            state = "blank"
        version = f", MicroPython {slot.version}" if slot.version else ""
        report.say(
            f"  {slot.partition.label} at {slot.partition.offset:#x}: {state}{version}",
        )
    if check.console:
        report.say("The bootloader says:")
        for line in check.console:
            report.say(f"  {line}")
    for finding in check.findings:
        report.say(finding.cause, head=f"{finding.where}: ", tone=report.Tone.BAD)
        report.say(finding.remedy, head="  remedy: ", tone=report.Tone.HINT)
