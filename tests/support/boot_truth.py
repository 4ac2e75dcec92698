"""What real bootloaders did with flash images: tests/data/boot_truth, facts without the binaries.

README.md there says what a case holds. A case that only changes otadata has the same outcome with
any bootloader and any app of that chip: it is played with those of `mpota.firmware.sample` where
the binaries that it was recorded with are not at hand. All others need these.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mpota.firmware import sample
from mpota.formats.chips import chip_by_name
from mpota.formats.image import Image, ImageHeader
from mpota.formats.partition_table import Partition
from mpota.units import MiB

from tests.support.bootloader_images import make_table
from tests.support.real_files import SHARED, STOCK, skip_unless

DATA = Path(__file__).parents[1] / "data" / "boot_truth"
OTADATA = range(0xD000, 0xF000)
_APP_OFFSET = 0x10000
_BLANK_LABEL = b"\xff" * 20


@dataclass(frozen=True)
class Edit:
    """Bytes that a case has at a flash offset."""

    offset: int
    data: bytes

    @classmethod
    def parse(cls, text: str) -> Edit:
        """``0xd000 01000000``, or ``0x12000 ff*9000`` for a byte so many times."""
        offset, data = text.split()
        byte, _, count = data.partition("*")
        return cls(int(offset, 16), bytes.fromhex(byte) * int(count or 1))


@dataclass(frozen=True)
class Recording:
    """A bootloader, and the app that is in both slots."""

    name: str
    chip: str
    bootloader: Path  # a file that begins with it
    app: Path
    app_start: int  # where the app begins in that file
    slot_size: int = 0x1D0000
    flash_size: int = 4 * MiB
    bootloader_size: int | None = None  # None: the image alone, with the flash size in its header
    has_rollback: bool = True  # CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE, which no binary shows

    @property
    def bootloader_offset(self) -> int:
        return chip_by_name(self.chip).bootloader_offset

    def chip_revision(self, bootloader: bytes) -> int:
        """Of the chip, major * 100 + minor: the lowest that its bootloader allows."""
        return ImageHeader.from_bytes(bootloader).min_chip_rev_full

    @property
    def slots(self) -> tuple[int, int]:
        return _APP_OFFSET, _APP_OFFSET + self.slot_size

    def table(self) -> tuple[Partition, ...]:
        first, second = self.slots
        end = second + self.slot_size
        vfs_size = 4 * MiB - end
        return (
            Partition("nvs", 1, 2, 0x9000, 0x4000),
            Partition("otadata", 1, 0, 0xD000, 0x2000),
            Partition("phy_init", 1, 1, 0xF000, 0x1000),
            Partition("ota_0", 0, 0x10, first, self.slot_size),
            Partition("ota_1", 0, 0x11, second, self.slot_size),
            Partition("vfs", 1, 0x81, end, vfs_size),
        )


@dataclass(frozen=True)
class Case:
    """One flash image, and what the bootloader did with it."""

    recording: Recording
    name: str
    edits: tuple[Edit, ...]
    starts: str | None
    console: tuple[str, ...]
    otadata_after: tuple[str, str] | None

    def __str__(self) -> str:
        return f"{self.recording.name}: {self.name}"

    @property
    def reads_beyond_the_flash(self) -> bool:
        return self.name == "slot1 seg0 length 16M"

    @property
    def is_otadata_alone(self) -> bool:
        return all(edit.offset in OTADATA for edit in self.edits)

    def flash(self) -> bytes:
        """The flash image. Skips the test if it needs a binary that is not at hand."""
        recording = self.recording
        if not (recording.bootloader.exists() and recording.app.exists()):
            if not self.is_otadata_alone:
                skip_unless(recording.bootloader)
                skip_unless(recording.app)
            image = bytearray(_stand_in(recording))
        else:
            image = bytearray(_base(recording))
        for edit in self.edits:
            image[edit.offset : edit.offset + len(edit.data)] = edit.data
        assert len(image) == recording.flash_size
        return bytes(image)


def _shared_chip(chip: str, bootloader: str, app: str, app_start: int = 0) -> Recording:
    path = SHARED / "bootloaders" / f"{bootloader}-bootloader.bin"
    name = f"{chip}-v6.1"
    return Recording(name, chip, path, SHARED / app, app_start, has_rollback=False)


_V1_23 = SHARED / "firmware" / "ESP32_GENERIC-20240602-v1.23.0.bin"
_S3 = SHARED / "firmware" / "ESP32_GENERIC_S3-20250911-v1.26.1.bin"
_C3 = SHARED / "firmware" / "ESP32_GENERIC_C3-4MiB-v1.22.2-custom.bin"


def _esp32(name: str, firmware: Path) -> Recording:
    return Recording(name, "esp32", firmware, firmware, 0xF000, 0x1B0000, bootloader_size=0x7000)


RECORDINGS = (
    _esp32("esp32-v1.23.0", _V1_23),
    _esp32("esp32-v1.25.0", STOCK),
    Recording("esp32s3-v1.26.1", "esp32s3", _S3, _S3, 0x10000, flash_size=8 * MiB),
    Recording("esp32c3-v1.22.2", "esp32c3", _C3, _C3, 0x10000),
    _shared_chip("esp32s3", "esp32s3", f"firmware/{_S3.name}", app_start=0x10000),
    _shared_chip("esp32c3", "esp32c3", f"firmware/{_C3.name}", app_start=0x10000),
    *(
        _shared_chip(chip, chip, f"boot_truth/chips/apps/{chip}.bin")
        for chip in ("esp32c2", "esp32c5", "esp32c6", "esp32c61", "esp32h2", "esp32s2")
    ),
    _shared_chip("esp32p4", "esp32p4-v3", "boot_truth/chips/apps/esp32p4.bin"),
)


def cases(recording: Recording) -> Iterator[Case]:
    for name, facts in json.loads((DATA / f"{recording.name}.json").read_text()).items():
        after = facts["otadata_after"]
        yield Case(
            recording,
            name,
            tuple(map(Edit.parse, facts["edits"])),
            facts["starts"],
            tuple(facts["console"]),
            None if after is None else (_record(after[0]), _record(after[1])),
        )


def _record(text: str) -> str:
    """An otadata record as hex, of its sequence number, state and CRC."""
    sequence, state, crc = text.split()
    return sequence + _BLANK_LABEL.hex() + state + crc


@cache
def _base(recording: Recording) -> bytes:
    """The flash that every case edits."""
    bootloader = recording.bootloader.read_bytes()[: recording.bootloader_size or 0x8000]
    if recording.bootloader_size is None:
        bootloader = Image.from_bytes(bootloader).with_flash_size(recording.flash_size).data
    return _flash(recording, bootloader, recording.app.read_bytes()[recording.app_start :])


@cache
def _stand_in(recording: Recording) -> bytes:
    chip = chip_by_name(recording.chip)
    return _flash(recording, sample.build_bootloader(chip), sample.build_app(chip, size=0x20000))


def _flash(recording: Recording, bootloader: bytes, app: bytes) -> bytes:
    image = bytearray(b"\xff" * recording.flash_size)
    for offset, data in (
        (recording.bootloader_offset, bootloader),
        (0x8000, make_table(recording.table())),
        *((slot, app) for slot in recording.slots),
    ):
        image[offset : offset + len(data)] = data
    return bytes(image)
