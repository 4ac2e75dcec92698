"""What real bootloaders did with flash images, case by case: tests/data/boot_truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from mpota.bootloader.boot import boot
from mpota.bootloader.image_load import bootloader_info
from mpota.virtual.flash import VirtualFlash

from tests.support.boot_truth import RECORDINGS, Case, cases

MAX_BOOTLOADER_SIZE = 0x8000
ALL = [case for recording in RECORDINGS for case in cases(recording)]


@pytest.fixture(scope="module")
def chips() -> Iterator[Callable[[bytes], VirtualFlash]]:
    """Flash with some content; the same chip for all of a size: to make one takes longer."""
    made: dict[int, VirtualFlash] = {}

    def flash(content: bytes) -> VirtualFlash:
        size = len(content)
        chip = made[size] = made.get(size) or VirtualFlash.create(size)
        chip.restore(content)
        return chip

    yield flash
    for chip in made.values():
        chip.close()


@pytest.mark.parametrize("case", ALL, ids=str)
def test_the_model_does_what_the_real_bootloader_did(
    case: Case, chips: Callable[[bytes], VirtualFlash]
) -> None:
    flash = chips(case.flash())
    recording = case.recording
    loader = flash.read(recording.bootloader_offset, MAX_BOOTLOADER_SIZE)
    info = bootloader_info(loader, recording.chip_revision(loader))
    result = boot(
        flash, rollback=recording.has_rollback, bootloader=replace(info, block_revision=0)
    )
    assert (result.starts.label if result.starts else None) == case.starts
    # What is read behind the end of the flash, neither knows.
    start = -1 if case.reads_beyond_the_flash else 0
    assert result.console[start:] == case.console[start:]
    left = tuple(flash.read(offset, 32).hex() for offset in (0xD000, 0xE000))
    assert left == case.otadata_after
    if result.otadata is not None:
        at = result.otadata.offset
        assert result.otadata_after == (flash.read(at, 32), flash.read(at + 0x1000, 32))


def test_there_are_cases_for_every_chip_and_some_for_all_who_test() -> None:
    assert len(ALL) == 681
    assert {case.recording.chip for case in ALL} == {recording.chip for recording in RECORDINGS}
    assert len({recording.chip for recording in RECORDINGS}) == 10
    assert sum(case.is_otadata_alone for case in ALL) > 100
