"""``mpota sample``: a realistic firmware to try things on."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from mpota.commands import _report as report
from mpota.commands._options import Size, force_option, output_option
from mpota.formats.chips import CHIPS
from mpota.storage.file import check_output, write_file
from mpota.units import MiB


def _complete_chip(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return [CompletionItem(c.name) for c in CHIPS if c.name.startswith(incomplete)]


@click.command()
@click.argument("chip", default="esp32", shell_complete=_complete_chip)
@click.option("-f", "--flash-size", type=Size(), default=4 * MiB, help="Default 4M.")
@click.option("--version", "mp_version", help="The MicroPython version that its texts name.")
@output_option
@force_option
def command(
    chip: str, flash_size: int, mp_version: str | None, output: Path | None, force: bool
) -> None:
    """Build a merged firmware for CHIP with esptool's image writer.

    It is laid out like a MicroPython release, and boots on the virtual board; there is no code
    in it that a real chip could run.
    """
    from mpota.firmware.sample import DEFAULT_VERSION, build_app, build_firmware

    target = output or Path(f"{chip}.bin")
    check_output(target, force=force)
    app = build_app(chip, version=mp_version or DEFAULT_VERSION)
    data = build_firmware(chip, flash_size=flash_size, app=app)
    write_file(target, data)
    report.written(target, f"{len(data):,} bytes")
