"""A good release is found good: on every chip, by every way, with files and without."""

from __future__ import annotations

from pathlib import Path

import pytest
from mpota.firmware import sample
from mpota.formats.chips import CHIPS
from mpota.rehearse import subject
from mpota.rehearse.offer import open_offer
from mpota.rehearse.stage import FIRST_BOOT, ROLL_BACK, SECOND, UPDATE

from tests.support import firmware_files, rehearsals, releases
from tests.support.rehearsals import Played, app_offer, bundle_offer, played


def check(found: Played, cuts: int) -> None:
    assert found.findings == [], found.findings
    assert list(found.stage.recordings) == [UPDATE, FIRST_BOOT, SECOND, ROLL_BACK]
    outcomes = found.cut(cuts)
    assert len(outcomes) >= 4 * cuts - 3
    assert [one for one in outcomes if one.verdict.findings] == []


@pytest.mark.parametrize("chip", [chip.name for chip in CHIPS])
def test_on_every_chip(chip: str, tmp_path: Path) -> None:
    firmware = tmp_path / "firmware.bin"
    firmware.write_bytes(firmware_files.small_firmware(chip, firmware_files.OTA_TABLE))
    new = tmp_path / "new.bin"
    new.write_bytes(sample.next_version(firmware_files.small_app(chip)))
    with played(subject.from_file(firmware), open_offer(str(new))) as found:
        assert found.stage.plan.subject.chip_name == chip
        check(found, 1)


@pytest.mark.parametrize(
    ("way", "part"), [("https", ""), ("tcp", "listen"), ("push", ""), ("ble", "ble")]
)
def test_by_every_way(way: str, part: str, tmp_path: Path) -> None:
    board = rehearsals.board(parts=("release", *((part,) if part else ())))
    with played(board, app_offer(tmp_path), way) as found:
        check(found, 1)
        if found.stage.received is None:
            return  # it is a cable
        broken = found.stage.break_network(found.stage.total // 2)
        assert broken.verdict.findings == ()
        assert broken.verdict.seen.boots == "ota_1 v1.27.0"
        assert broken.verdict.seen.twice is not None


def test_a_way_that_the_board_has_not_is_said(tmp_path: Path) -> None:
    with played(rehearsals.board(), app_offer(tmp_path), "tcp") as found:
        (text,) = found.findings
        assert text.startswith("the board refuses it: ")
        assert "listen" in text


def test_a_signed_release_with_files_that_a_broken_line_delays(tmp_path: Path) -> None:
    key = releases.key()
    trust = f"import ota; ota.keys.add({key.public.digest.hex()!r})"
    made = releases.make(releases.app(), releases.tree("2"), keys=(key,), counter=3)
    with played(rehearsals.board(trust), bundle_offer(tmp_path, made)) as found:
        check(found, 6)
        (update,) = (step for step in found.steps if step.name == UPDATE)
        assert update.ends == "ota_1 v1.27.0"
        assert update.least_free is not None
        assert 0 < update.least_free < 120 * 1024
        assert update.received is not None
        assert update.received > len(made.to_bytes())
        broken = found.stage.break_network(update.received // 2)
        assert broken.verdict.findings == ()
        assert broken.verdict.seen.twice is not None
