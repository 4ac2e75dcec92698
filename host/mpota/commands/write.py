"""``mpota write``: files into partitions, or a new bootloader."""

from __future__ import annotations

from pathlib import Path

import click

from mpota.commands import _report as report
from mpota.commands._live import change_board, connected_firmware
from mpota.commands._options import (
    change_options,
    firmware_argument,
    force_option,
    output_option,
    split_pair,
)
from mpota.edit.change import apply_to_file
from mpota.edit.contents import write_contents
from mpota.errors import UsageError
from mpota.firmware.firmware import Firmware
from mpota.storage.file import beside, check_output, read_file, write_file
from mpota.storage.ports import is_port


@click.command()
@firmware_argument
@click.argument("contents", nargs=-1, metavar="PARTITION=FILE...")
@click.option("--erase", "erases", multiple=True, metavar="PARTITION", help="Make it blank.")
@output_option
@force_option
@change_options
def command(
    firmware: Path,
    contents: tuple[str, ...],
    erases: tuple[str, ...],
    output: Path | None,
    force: bool,
    dry_run: bool,
    yes: bool,
    baud: int,
    table_offset: int,
) -> None:
    """Put files into partitions of FIRMWARE; PARTITION may also be 'bootloader'.

    An app partition takes only an app image that this firmware's bootloader will boot. A FIRMWARE
    file itself is never changed; on the port of a board the board is.
    """
    pairs = [split_pair(text, "=", "PARTITION=FILE") for text in contents]
    names = [name for name, _ in pairs] + list(erases)
    if not names:
        raise UsageError("nothing to write", "give PARTITION=FILE or --erase PARTITION")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"'{name}' is given {names.count(name)} times")
    wanted = {name: read_file(path) for name, path in pairs} | dict.fromkeys(erases, b"")
    if is_port(firmware):
        if output is not None:
            raise UsageError("-o is for a firmware in a file: on a board the board is written")
        from mpota.flashing.live import plan_change

        with connected_firmware(str(firmware), baud, table_offset) as (board, on_board):
            change = plan_change(board, write_contents(on_board, wanted))
            change_board(board, change, dry_run=dry_run, yes=yes)
        return
    target = output or beside(firmware, "-".join(("", *names)) + ".bin")
    sources = [Path(path) for _, path in pairs]
    check_output(target, (firmware, *sources), force=force)
    old = Firmware.open(firmware, table_offset)
    edit = write_contents(old, wanted)
    data = apply_to_file(old, edit)
    report.say(f"{firmware.name}: {edit.summary}")
    if dry_run:
        report.say("dry run: nothing written")
        return
    write_file(target, data)
    report.written(target, f"{len(data):,} bytes")
