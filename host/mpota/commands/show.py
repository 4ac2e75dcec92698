"""``mpota show``: what is in a firmware, an app image or a partition table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from mpota.commands import _report as report
from mpota.commands._options import (
    baud_option,
    firmware_argument,
    json_option,
    look_option,
    table_offset_option,
)
from mpota.errors import MpotaError
from mpota.firmware.describe import (
    AppFacts,
    BrokenApp,
    Description,
    describe,
    describe_flash,
    digest_state,
    flash_frequency,
    flash_mode,
    signature_scheme,
)
from mpota.firmware.on_board import board_firmware
from mpota.formats.app_desc import AppDesc, MicroPythonText, find_bootloader_desc
from mpota.formats.partition_table import Partition
from mpota.storage.file import read_file
from mpota.storage.ports import format_mac, is_port
from mpota.units import format_flash_size, format_size, short_digest


@click.command()
@firmware_argument
@json_option
@table_offset_option
@baud_option
@look_option
def command(firmware: Path, as_json: bool, table_offset: int, baud: int, yes: bool) -> None:
    """Show what is in FIRMWARE, a file or a board's port: chip, bootloader, apps, partitions.

    Of what is damaged it shows what can be read, then what is wrong; exit 1.
    """
    found: dict[str, Any] | None = None
    if is_port(firmware):
        from mpota.commands._live import looking

        with looking(str(firmware), baud, table_offset, yes=yes) as board:
            with suppress(MpotaError):
                board_firmware(board, table_offset)  # for the names of what is read
            description = describe_flash(board, board.name, table_offset)
        found = {"port": board.name, "mac": format_mac(board.mac), "flash_size": board.size}
    else:
        description = describe(read_file(firmware), firmware.name, table_offset)
    if as_json:
        report.print_json(description.to_json() | ({"board": found} if found else {}))
    else:
        if found:
            chip_size = format_flash_size(found["flash_size"])
            report.say(
                f"MAC {found['mac']}, {chip_size} of flash",
                head=f"{'board:':<{_KEY_WIDTH}}",
                tone=report.Tone.STRONG,
            )
        _print_description(description)
    if description.problems:
        first, *others = description.problems
        first.details = tuple(map(str, others))
        raise first


_KEY_WIDTH = 12
_ROLLBACK = {True: "rollback enabled", False: "no rollback", None: "rollback unknown"}


def _print_description(facts: Description) -> None:
    for key, value in _lines(facts):
        is_bad = key in ("broken", "odd")
        report.say(
            value,
            head=f"{key and key + ':':<{_KEY_WIDTH}}",
            tone=report.Tone.CAUTION if is_bad else report.Tone.STRONG,
            hang=_KEY_WIDTH,
        )
    if facts.table is None:
        return
    report.print_table(report.PARTITION_COLUMNS, report.partition_rows(facts.table))
    size = (facts.header.flash_size if facts.header else None) or facts.table.end
    for line in report.flash_map(facts.table, size):
        report.say(line)


def _lines(facts: Description) -> Iterator[tuple[str, str]]:
    header = facts.header
    yield "file", facts.name
    if header is not None:
        size = format_flash_size(header.flash_size) if header.flash_size else "of unknown size"
        yield "chip", header.chip.title
        yield "flash", f"{size}, {flash_mode(header)}, {flash_frequency(header)}"
    elif facts.apps:
        yield "chip", f"{facts.apps[0].app.image.chip.title}, as its app says"
    if facts.bootloader is not None:
        desc = find_bootloader_desc(facts.bootloader.data)
        release = f"ESP-IDF {desc.idf_ver}, " if desc else ""
        yield (
            "bootloader",
            f"{release}{facts.bootloader.size:,} bytes at {header.chip.bootloader_offset:#x}, "
            f"digest {digest_state(facts.bootloader)}"
            if header
            else "",
        )
    for app in facts.apps:
        for number, text in enumerate(_app_lines(app)):
            yield "" if number else "app", text
    for broken in facts.broken:
        for number, text in enumerate(_broken_lines(broken)):
            yield "" if number else "broken", text
    for partition in facts.blank:
        yield "blank", f"{partition.label} ({format_size(partition.size)})"
    for oddity in facts.oddities:
        yield "odd", oddity
    if facts.table is not None and facts.app is not None:
        yield "OTA", _ota_line(facts)


def _broken_lines(broken: BrokenApp) -> Iterator[str]:
    yield _names(broken.partition, broken.micropython, broken.desc)
    if broken.whole_segments < broken.segments:
        yield f"{broken.whole_segments} of {broken.segments} segments are whole"
    yield broken.reason


def _app_lines(facts: AppFacts) -> Iterator[str]:
    yield _names(facts.partition, facts.micropython, facts.desc)
    if facts.micropython.board:
        yield facts.micropython.board
    yield _app_numbers(facts)
    yield _app_digest(facts)


def _names(partition: Partition | None, text: MicroPythonText, desc: AppDesc | None) -> str:
    parts = [partition.label] if partition else []
    if text.version:
        parts.append(f"MicroPython {text.version} ({text.build_date})")
    if desc is not None:
        named = " ".join(filter(None, (desc.project_name, desc.version)))
        parts += [*([named] if named else []), f"ESP-IDF {desc.idf_ver}"]
    return ", ".join(parts)


def _app_numbers(facts: AppFacts) -> str:
    parts = [f"{facts.app.size:,} bytes"]
    if facts.partition is not None and facts.fill is not None:
        room = facts.partition.size - facts.app.size
        free = f"{format_size(room)} free" if room >= 0 else f"{-room:,} bytes too many"
        parts.append(f"{facts.fill:.0%} of {facts.partition.label}, {free}")
    return ", ".join(parts)


def _app_digest(facts: AppFacts) -> str:
    image = facts.app.image
    digest = f"digest {short_digest(image.digest.hex())}, " if image.digest else "digest "
    parts = [digest + digest_state(image)]
    if facts.app.signature:
        parts.append(f"signed ({signature_scheme(facts.app)})")
    return ", ".join(parts)


def _ota_line(facts: Description) -> str:
    rollback = _ROLLBACK[facts.rollback]
    if facts.table is not None and facts.table.ota_trouble:
        return f"{facts.table.ota_trouble} ({rollback})"
    if facts.table is not None and facts.table.is_ota_capable:
        return f"possible, {rollback}"
    return f"not with this table ({rollback}): mpota resize --layout ota"
