"""A chip is in every table that docs/chips.md lists, and they tell the same of it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mpota.firmware.sample import build_bootloader
from mpota.formats.chips import CHIPS, Chip
from mpota.formats.memory import memory_map
from mpota.resources import data_directory
from mpota.virtual.rom_chips import ROM_CHIPS

ROOT = Path(__file__).parents[2]
ON_BOARDS = data_directory("device") / "ota" / "chips.py"


def on_boards() -> dict[int, tuple[Any, ...]]:
    """The rows of device/ota/chips.py by chip id."""
    for node in ast.parse(ON_BOARDS.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_CHIPS":
            rows = eval(compile(ast.Expression(node.value), str(ON_BOARDS), "eval"), {})
            return {row[0]: row for row in rows}
    raise AssertionError(f"{ON_BOARDS} has no _CHIPS")


def _is_known(chip: Chip) -> bool:
    return chip in CHIPS


def _has_memory(chip: Chip) -> bool:
    return memory_map(chip.name).chip == chip.name


def _is_on_boards(chip: Chip) -> bool:
    return on_boards()[chip.chip_id][1:3] == (chip.title, chip.bootloader_offset >> 4)


def _has_a_build(chip: Chip) -> bool:
    return build_bootloader(chip)[12] == chip.chip_id


def _has_registers(chip: Chip) -> bool:
    return chip.name in {row.name for row in ROM_CHIPS}


# By the file that has the table: does it have the chip?
TABLES: dict[str, Callable[[Chip], bool]] = {
    "host/mpota/formats/chips.py": _is_known,
    "host/mpota/formats/memory.py": _has_memory,
    "device/ota/chips.py": _is_on_boards,
    "host/mpota/firmware/sample.py": _has_a_build,
    "host/mpota/virtual/rom_chips.py": _has_registers,
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_a_chip_is_in_every_table(chip: Chip, table: str) -> None:
    try:
        has_it = TABLES[table](chip)
    except KeyError:
        has_it = False
    assert has_it, f"{table} has no row that fits {chip.title}: see docs/chips.md"


def test_a_table_has_no_chip_that_is_not_known() -> None:
    assert on_boards().keys() == {chip.chip_id for chip in CHIPS}
    assert {row.name for row in ROM_CHIPS} == {chip.name for chip in CHIPS}


def test_the_page_lists_the_tables() -> None:
    page = (ROOT / "docs" / "chips.md").read_text()
    listed = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert listed == list(TABLES)
