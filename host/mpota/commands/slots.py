"""``mpota slots``: which app boots, and otadata edited."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from mpota.bootloader.slots import MARKS, SlotState, slot_states
from mpota.commands import _report as report
from mpota.commands._live import change_board, connected, looking
from mpota.commands._options import change_options, json_option, port_argument
from mpota.errors import UsageError
from mpota.firmware.on_board import board_firmware
from mpota.flashing.live import plan_boot, plan_mark
from mpota.units import format_size, short_digest


@click.command()
@port_argument
@click.option("--boot", metavar="SLOT", help="Boot this app partition, as set_boot() does.")
@click.option("--mark", type=click.Choice(list(MARKS)), help="Confirm, or give up, what boots.")
@json_option
@change_options
def command(
    port: str,
    boot: str | None,
    mark: str | None,
    as_json: bool,
    dry_run: bool,
    yes: bool,
    baud: int,
    table_offset: int,
) -> None:
    """Show the app slots of the board on PORT and what otadata says of them, or change that."""
    if boot and mark:
        raise UsageError("--boot and --mark exclude each other")
    changes = bool(boot or mark)
    opened = connected(port, baud) if changes else looking(port, baud, table_offset, yes=yes)
    with opened as board:
        firmware = board_firmware(board, table_offset)
        if boot:
            change = plan_boot(board, firmware, boot)
            change_board(board, change, dry_run=dry_run, yes=yes)
        elif mark:
            change = plan_mark(board, firmware, MARKS[mark])
            change_board(board, change, dry_run=dry_run, yes=yes)
        states = slot_states(firmware, board.size)
    if as_json:
        report.print_json([_json(state) for state in states])
    else:
        columns = ("Slot", ">Offset", ">Size", "App", "Digest", "otadata", "Bootable")
        report.print_table(columns, _rows(states))


def _rows(states: Sequence[SlotState]) -> Iterator[tuple[str, ...]]:
    for state in states:
        slot, verdict = state.slot, state.slot.verdict
        bootable = "yes" if verdict.is_bootable else "blank" if slot.is_blank else "no"
        if state.boots:
            bootable = report.Toned("boots", report.Tone.GOOD)
        elif bootable == "no":
            why = f": {verdict.console[0]}" if verdict.console else ""
            bootable = report.Toned(bootable + why, report.Tone.BAD)
        yield (
            slot.partition.label,
            f"{slot.partition.offset:#x}",
            format_size(slot.partition.size),
            slot.version or "",
            short_digest(slot.digest.hex()) if slot.digest else "",
            " ".join(f"seq {r.ota_seq} {r.state_name}" for r in state.records),
            bootable,
        )


def _json(state: SlotState) -> dict[str, object]:
    slot = state.slot
    return {
        "label": slot.partition.label,
        "offset": slot.partition.offset,
        "size": slot.partition.size,
        "version": slot.version,
        "digest": slot.digest.hex() if slot.digest else None,
        "bootable": slot.verdict.is_bootable,
        "blank": slot.is_blank,
        "boots": state.boots,
        "console": list(slot.verdict.console),
        "records": [{"ota_seq": r.ota_seq, "ota_state": r.state_name} for r in state.records],
    }
