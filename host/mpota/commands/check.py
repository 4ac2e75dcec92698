"""``mpota check``: what the bootloader will do with a firmware or an app image."""

from __future__ import annotations

import sys
from pathlib import Path

import click

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
    verdict = f"'{check.boots}' boots" if check.boots else "nothing boots"
    print(f"{name}: {verdict}")
    for slot in check.slots:
        state = "bootable" if slot.verdict.is_bootable else "not bootable"
        if slot.is_blank:
            state = "blank"
        version = f", MicroPython {slot.version}" if slot.version else ""
        print(
            f"  {slot.partition.label} at {slot.partition.offset:#x}: {state}{version}",
        )
    if check.console:
        print("The bootloader says:")
        for line in check.console:
            print(f"  {line}")
    for finding in check.findings:
        print(f"{finding.where}: {finding.cause}")
        print(f"  remedy: {finding.remedy}")
