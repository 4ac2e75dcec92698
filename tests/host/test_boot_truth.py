"""What real bootloaders did with flash images, case by case: tests/data/boot_truth."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mpota.bootloader.boot import boot
from mpota.bootloader.image_load import bootloader_info
from mpota.virtual.flash import VirtualFlash

from tests.support.boot_truth import RECORDINGS, Case, cases

ALL = [case for recording in RECORDINGS for case in cases(recording)]


@pytest.mark.parametrize("case", ALL, ids=str)
def test_the_model_does_what_the_real_bootloader_did(case: Case) -> None:
    content = case.flash()
    loader = content[case.recording.bootloader_offset :]
    info = bootloader_info(loader, case.recording.chip_revision(loader))
    with VirtualFlash.create(len(content), {0: content}) as flash:
        result = boot(
            flash,
            rollback=case.recording.has_rollback,
            bootloader=replace(info, block_revision=0),
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
