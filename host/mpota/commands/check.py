"""``mpota check``: what the bootloader will do with a firmware or an app image."""

from __future__ import annotations

import sys
from pathlib import Path

import rich_click as click

from mpota import report
from mpota.check import Check, check_app, check_flash
from mpota.commands.options import firmware_argument, json_option, table_offset_option
from mpota.firmware import Firmware, find_base, is_app_image
from mpota.storage.file import FileImage, read_file


@click.command()
@firmware_argument
@click.option("--as-app", is_flag=True, help="FIRMWARE is about to be written into an OTA slot.")
@click.option("--against", type=click.Path(path_type=Path), help="Whose bootloader will load it.")
@json_option
@table_offset_option
def command(
    firmware: Path, as_app: bool, against: Path | None, as_json: bool, table_offset: int
) -> None:
    """Say what the bootloader will do with FIRMWARE, in its own words; exit 1 if not boot it."""
    data = read_file(firmware)
    if as_app or against or is_app_image(data):
        loader = Firmware.open(against, table_offset) if against else None
        check = check_app(data, loader)
    else:
        flash = FileImage(find_base(data, firmware.name), data)
        check = check_flash(flash, table_offset=table_offset)
    if as_json:
        report.print_json(check.to_json())
    else:
        _print(check, firmware.name)
    sys.exit(0 if check.is_ok else 1)


def _print(check: Check, name: str) -> None:
    console = report.console()
    verdict = f"'{check.boots}' boots" if check.boots else "nothing boots"
    console.print(f"{name}: {verdict}", soft_wrap=True)
    for slot in check.slots:
        state = "bootable" if slot.verdict.is_bootable else "not bootable"
        if slot.is_blank:
            state = "blank"
        version = f", MicroPython {slot.version}" if slot.version else ""
        console.print(
            f"  {slot.partition.label} at {slot.partition.offset:#x}: {state}{version}",
            soft_wrap=True,
        )
    if check.console:
        console.print("The bootloader says:")
        for line in check.console:
            console.print(f"  {line}", soft_wrap=True, markup=False)
    for finding in check.findings:
        console.print(f"{finding.where}: {finding.cause}", soft_wrap=True, markup=False)
        console.print(f"  remedy: {finding.remedy}", soft_wrap=True, markup=False)
