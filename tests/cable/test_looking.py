"""A look at a board changes nothing: a trial boot is not spent unasked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mpota.formats.chips import chip_by_name
from mpota.formats.otadata import OtaRecord, OtaState, parse_otadata
from mpota.push.repl import Session
from mpota.virtual.board import Board
from mpota.virtual.cable import plugged_in
from mpota.virtual.flash import VirtualFlash

from tests.support.consoles import CHIP, OTA_TABLE, app, ota_flash

Run = Callable[..., str]


@pytest.fixture
def flash() -> Iterator[VirtualFlash]:
    """v1.27.0 in ota_1 has been selected, and has not been started yet."""
    with ota_flash() as flash:
        flash.write(OTA_TABLE["ota_1"].offset, app("v1.27.0"))
        flash.erase(0xD000, 0x2000)
        flash.write(0xD000, OtaRecord.selecting(1, OtaState.VALID).to_bytes())
        flash.write(0xE000, OtaRecord.selecting(2, OtaState.NEW).to_bytes())
        yield flash


@pytest.fixture
def ports(flash: VirtualFlash, tmp_path: Path) -> Iterator[Path]:
    """Its first boot goes on, at the ports x.repl and x.rom."""
    with plugged_in(Board(flash), chip_by_name(CHIP)) as ports:
        (tmp_path / "x.repl").symlink_to(ports.console)
        (tmp_path / "x.rom").symlink_to(ports.loader)
        with Session(ports.console):
            pass
        yield tmp_path


def _state(flash: VirtualFlash) -> int:
    return parse_otadata(flash.read(0xD000, 0x2000))[1].ota_state


LOOKS = [("show",), ("slots",), ("check",), ("extract",), ("table",)]


@pytest.mark.parametrize("look", LOOKS, ids=lambda words: words[0])
def test_a_trial_boot_is_not_ended_by_a_look(
    ports: Path, flash: VirtualFlash, mpota: Run, look: tuple[str, ...]
) -> None:
    assert _state(flash) == OtaState.PENDING_VERIFY
    shown = mpota(*look, ports / "x.rom", exit_code=2)
    assert "ota_1 is on its trial boot" in shown
    assert "nothing was started" in shown
    assert f"hint: mpota status {ports / 'x.repl'}" in shown
    assert _state(flash) == OtaState.PENDING_VERIFY


def test_a_look_that_ends_a_trial_boot_gives_it_back(
    ports: Path, flash: VirtualFlash, mpota: Run
) -> None:
    shown = mpota("show", ports / "x.rom", "-y")
    assert "the trial boot is given back: ota_1 starts once more" in shown
    with Session(str(ports / "x.repl")) as session:
        assert session.evaluate("os.uname().release", "import os") == "1.27.0"
    assert _state(flash) == OtaState.PENDING_VERIFY


def test_where_only_the_loader_tells_of_a_trial_boot_nothing_is_started_unasked(
    ports: Path, mpota: Run
) -> None:
    (ports / "x.repl").unlink()
    shown = mpota("slots", ports / "x.rom")
    assert "it stays in the loader. -y gives the boot back" in shown


def test_a_confirmed_app_is_looked_at_without_a_word(ports: Path, mpota: Run) -> None:
    with Session(str(ports / "x.repl")) as session:
        session.execute("from esp32 import Partition\nPartition.mark_app_valid_cancel_rollback()")
    rows = json.loads(mpota("slots", ports / "x.rom", "--json"))
    assert [row["label"] for row in rows if row["boots"]] == ["ota_1"]
