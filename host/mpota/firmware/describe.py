"""What is in a firmware, an app image or a partition table: facts for `mpota show`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mpota.errors import MpotaError
from mpota.firmware.firmware import (
    App,
    Firmware,
    find_base,
    find_table_hint,
    is_app_image,
    is_table,
    read_app,
    read_table,
)
from mpota.formats.app_desc import (
    AppDesc,
    MicroPythonText,
    find_app_desc,
    find_bootloader_desc,
    find_micropython,
    has_rollback,
)
from mpota.formats.chips import CHIPS, FLASH_MODES, Chip
from mpota.formats.image import HEADER_SIZE, IMAGE_MAGIC, Image, ImageHeader, whole_segments
from mpota.formats.otadata import OtaRecord, seq_crc
from mpota.formats.partition_table import (
    DEFAULT_TABLE_OFFSET,
    TABLE_SIZE,
    Partition,
    PartitionTable,
)
from mpota.formats.signature import SignatureBlock, parse_app_sector
from mpota.storage import FlashContents
from mpota.storage.file import FileImage
from mpota.units import SECTOR_SIZE


@dataclass(frozen=True)
class AppFacts:
    """An intact app and the partition that it stands in (None: a file of its own)."""

    app: App = field(repr=False)
    partition: Partition | None
    desc: AppDesc | None
    micropython: MicroPythonText

    @property
    def fill(self) -> float | None:
        """How full its partition is, 0 to 1; more for an app that does not fit."""
        return self.app.size / self.partition.size if self.partition else None


class BrokenApp(NamedTuple):
    """An app partition without an intact app: why, and what can be read of it.

    ``whole_segments`` of the ``segments`` that its header announces are there; 0 without a header.
    """

    partition: Partition
    reason: str
    desc: AppDesc | None
    micropython: MicroPythonText
    whole_segments: int
    segments: int


@dataclass(frozen=True)
class Description:
    """``header`` is the bootloader's, or that of an app image alone; a table alone has none.

    ``problems`` are what is wrong with the whole: it is shown as far as it can be read.
    """

    name: str
    header: ImageHeader | None
    bootloader: Image | None
    table: PartitionTable | None
    table_offset: int
    apps: tuple[AppFacts, ...]
    blank: tuple[Partition, ...]
    broken: tuple[BrokenApp, ...]
    app: AppFacts | None
    problems: tuple[MpotaError, ...] = ()

    @property
    def oddities(self) -> tuple[str, ...]:
        """What is odd in the table, though it can be read."""
        return self.table.oddities(self.table_offset) if self.table is not None else ()

    @property
    def rollback(self) -> bool | None:
        """Whether the bootloader rolls back, as far as MicroPython's version tells; else None."""
        return has_rollback(self.app.micropython.version if self.app else None)

    def to_json(self) -> dict[str, Any]:
        header = self.header
        return {
            "file": self.name,
            "chip": header.chip.name if header else None,
            "flash_size": header.flash_size if header else None,
            "flash_mode": flash_mode(header) if header else None,
            "flash_frequency": flash_frequency(header) if header else None,
            "micropython": _micropython_json(self.app),
            "app": _app_json(self.app) if self.app else None,
            "apps": [_app_json(app) for app in self.apps],
            "broken": [_broken_json(app) for app in self.broken],
            "bootloader": _bootloader_json(self.bootloader) if self.bootloader else None,
            "table_offset": self.table_offset if self.table is not None else None,
            "partitions": [partition_json(p) for p in self.table or ()],
            "oddities": list(self.oddities),
            "problems": [str(problem) for problem in self.problems],
            "ota": {
                "capable": self.table.is_ota_capable if self.table else None,
                "rollback": self.rollback,
            },
        }


def describe(data: bytes, name: str, table_offset: int = DEFAULT_TABLE_OFFSET) -> Description:
    """Facts about a file's bytes: a firmware, an app image, or a partition table (binary or CSV).

    What is damaged is described as far as it can be read, with its `Description.problems`. Raises
    MpotaError if it is none of these, or a table alone that cannot be read.
    """
    if is_app_image(data):
        return _describe_app(data, name, table_offset)
    if is_table(data):
        table = read_table(data, name, table_offset, is_strict=False)
        return Description(name, None, None, table, table_offset, (), (), (), None)
    try:
        base = find_base(data, name)
    except MpotaError as error:
        by_table = _base_by_table(data, table_offset)
        if by_table is None:
            raise
        return _describe_parts(FileImage(by_table, data), name, table_offset, error)
    flash = FileImage(base, data)
    cut = _cut_before_apps(flash, name, table_offset)
    if cut is not None:
        return _describe_parts(flash, name, table_offset, cut)
    return describe_flash(flash, name, table_offset, is_file=True)


def describe_flash(
    flash: FlashContents, name: str, table_offset: int, *, is_file: bool = False
) -> Description:
    """Facts about the firmware in ``flash``, a file's or a board's, damaged or not."""
    try:
        firmware = Firmware.from_flash(flash, name, table_offset)
    except MpotaError as error:
        return _describe_parts(flash, name, table_offset, error)
    return describe_firmware(firmware, is_file=is_file)


def describe_firmware(firmware: Firmware, *, is_file: bool = False) -> Description:
    """Facts about a firmware that is open already, in a file or on a board."""
    apps, blank, broken = [], [], []
    problems: list[MpotaError] = []
    for partition in firmware.table.apps:
        if firmware.is_blank(partition):
            blank.append(partition)
            continue
        try:
            apps.append(_facts(firmware.app(partition), partition))
            firmware.check_fits(partition)
        except MpotaError as error:
            if apps and apps[-1].partition == partition:
                problems.append(error)
            else:
                broken.append(_broken(firmware.flash, firmware.name, partition, error))
    if is_file:
        try:
            firmware.check_contents()
        except MpotaError as error:
            problems.append(error)
    problems += _otadata_problems(firmware)
    main = next((a for a in apps if a.partition == _app_partition(firmware)), None)
    return Description(
        firmware.name,
        firmware.bootloader.header,
        firmware.bootloader,
        firmware.table,
        firmware.table_offset,
        tuple(apps),
        tuple(blank),
        tuple(broken),
        main,
        tuple(problems),
    )


def _otadata_problems(firmware: Firmware) -> Iterator[MpotaError]:
    for number, record in enumerate(firmware.otadata or ()):
        if record == OtaRecord.blank() or record.is_crc_ok:
            continue
        yield MpotaError(
            f"{firmware.name}: otadata record {number} is damaged: its CRC is {record.crc:#010x}, "
            f"its sequence number {record.ota_seq:#x} gives {seq_crc(record.ota_seq):#010x}",
            "the bootloader takes no notice of it: mpota check tells what boots",
        )


def _cut_before_apps(flash: FileImage, name: str, table_offset: int) -> MpotaError | None:
    """What is wrong with a file that ends before its table does, though its bootloader is whole."""
    if flash.end >= table_offset + TABLE_SIZE or _bootloader(flash, table_offset) is None:
        return None
    with suppress(MpotaError):
        if PartitionTable.from_bytes(flash.read(table_offset, TABLE_SIZE)).has_md5:
            return None
    is_before = flash.end <= table_offset
    if is_before and find_table_hint(flash, flash.end) is not None:
        return None  # the table stands at another offset
    return MpotaError(
        f"{name}: the file ends at flash offset {flash.end:#x}, {'before' if is_before else 'in'} "
        f"the partition table, which stands at {table_offset:#x}"
    )


def _base_by_table(data: bytes, table_offset: int) -> int | None:
    """Where a file without bootloader stands in the flash, by the table in it; None if it has
    none."""
    for base in sorted({0, *(chip.bootloader_offset for chip in CHIPS)}):
        if base <= table_offset:
            with suppress(MpotaError):
                PartitionTable.from_bytes(data[table_offset - base :])
                return base
    return None


def _app_partition(firmware: Firmware) -> Partition | None:
    try:
        return firmware.app_partition
    except MpotaError:
        return None


def _describe_app(data: bytes, name: str, table_offset: int) -> Description:
    header = ImageHeader.from_bytes(data[:HEADER_SIZE])
    facts, problems = None, []
    try:
        facts = _facts(read_app(data, name), None)
    except MpotaError as error:
        problems.append(error)
        with suppress(MpotaError):
            facts = _facts(App.from_bytes(data), None)
    apps = (facts,) if facts else ()
    return Description(name, header, None, None, table_offset, apps, (), (), facts, tuple(problems))


def _describe_parts(
    flash: FlashContents, name: str, table_offset: int, problem: MpotaError
) -> Description:
    """A firmware whose bootloader or table is damaged: the rest of it."""
    raw = flash.read(table_offset, TABLE_SIZE)
    try:
        table = PartitionTable.from_bytes(raw)
    except MpotaError:
        salvaged = PartitionTable.salvage(raw)
        table = salvaged if salvaged is not None else PartitionTable(())
    apps, blank, broken = [], [], []
    for partition in table.apps:
        data = _bytes_of(flash, partition)
        if data.count(0xFF) == len(data):
            blank.append(partition)
            continue
        try:
            app = App.from_bytes(data)
            app.image.check("app")
            apps.append(_facts(app, partition))
        except MpotaError as error:
            broken.append(_broken(flash, name, partition, error))
    return Description(
        name,
        next(filter(None, (_header(flash, chip) for chip in CHIPS)), None),
        _bootloader(flash, table_offset),
        table if table.partitions else None,
        table_offset,
        tuple(apps),
        tuple(blank),
        tuple(broken),
        apps[0] if apps else None,
        (problem,),
    )


def _bytes_of(flash: FlashContents, partition: Partition) -> bytes:
    """The partition's bytes, as far as the flash or the file reaches."""
    size = max(0, min(partition.size, flash.end - partition.offset))
    return flash.read(partition.offset, size)


def _broken(flash: FlashContents, name: str, partition: Partition, error: MpotaError) -> BrokenApp:
    data = _bytes_of(flash, partition)
    whole, count = whole_segments(data)
    return BrokenApp(
        partition,
        str(error).removeprefix(f"{name}: {partition.label}: "),
        find_app_desc(data),
        find_micropython(data),
        whole,
        count,
    )


def _bootloader(flash: FlashContents, table_offset: int) -> Image | None:
    """The bootloader, its checksum right or not; None if it cannot be read as a whole."""
    for chip in CHIPS:
        if _header(flash, chip) is not None:
            size = min(table_offset, flash.end) - chip.bootloader_offset
            with suppress(MpotaError):
                return Image.from_bytes(flash.read(chip.bootloader_offset, max(0, size)))
    return None


def _header(flash: FlashContents, chip: Chip) -> ImageHeader | None:
    """The header where this chip has its bootloader, None if it is of another chip or none."""
    if flash.base > chip.bootloader_offset:
        return None
    data = flash.read(chip.bootloader_offset, HEADER_SIZE)
    if data[0] != IMAGE_MAGIC:
        return None
    header = ImageHeader.from_bytes(data)
    return header if header.chip_id == chip.chip_id else None


def flash_mode(header: ImageHeader) -> str:
    if header.spi_mode < len(FLASH_MODES):
        return FLASH_MODES[header.spi_mode]
    return f"{header.spi_mode:#x}"


def flash_frequency(header: ImageHeader) -> str:
    return header.chip.frequencies.get(header.spi_speed, f"{header.spi_speed:#x}")


def digest_state(image: Image) -> str:
    """``valid``, ``none`` appended, or ``wrong``."""
    if image.digest is None:
        return "none"
    return "valid" if image.digest == image.computed_digest else "wrong"


def signature_scheme(app: App) -> str:
    """How a signed app is signed: ``RSA-3072``, ``ECDSA P-256``, ..."""
    try:
        block = parse_app_sector(app.signature[-SECTOR_SIZE:])[0]
    except MpotaError as error:
        return str(error)
    return "RSA-3072" if isinstance(block, SignatureBlock) else f"ECDSA {block.key.curve.name}"


def partition_json(partition: Partition) -> dict[str, Any]:
    return {
        "label": partition.label,
        "type": partition.type_name,
        "subtype": partition.subtype_name,
        "offset": partition.offset,
        "size": partition.size,
        "flags": partition.flags,
    }


def _facts(app: App, partition: Partition | None) -> AppFacts:
    data = app.image.data
    return AppFacts(app, partition, find_app_desc(data), find_micropython(data))


def _micropython_json(facts: AppFacts | None) -> dict[str, Any]:
    text = facts.micropython if facts else MicroPythonText(None, None, None)
    return {"version": text.version, "build_date": text.build_date, "board": text.board}


def _broken_json(broken: BrokenApp) -> dict[str, Any]:
    return {
        "partition": broken.partition.label,
        "reason": broken.reason,
        "version": broken.desc.version if broken.desc else None,
        "micropython": broken.micropython.version,
        "segments": broken.segments,
        "whole_segments": broken.whole_segments,
    }


def _app_json(facts: AppFacts) -> dict[str, Any]:
    image, desc, partition = facts.app.image, facts.desc, facts.partition
    return {
        "partition": partition.label if partition else None,
        "size": facts.app.size,
        "digest": image.digest.hex() if image.digest else None,
        "digest_state": digest_state(image),
        "signed": bool(facts.app.signature),
        "signature_scheme": signature_scheme(facts.app) if facts.app.signature else None,
        "fill": round(facts.fill, 4) if facts.fill is not None else None,
        "version": desc.version if desc else None,
        "project_name": desc.project_name if desc else None,
        "idf_version": desc.idf_ver if desc else None,
        "secure_version": desc.secure_version if desc else None,
        "date": f"{desc.date} {desc.time}".strip() if desc else None,
        "elf_sha256": desc.app_elf_sha256.hex() if desc else None,
        "micropython": _micropython_json(facts),
    }


def _bootloader_json(image: Image) -> dict[str, Any]:
    desc = find_bootloader_desc(image.data)
    return {
        "offset": image.chip.bootloader_offset,
        "size": image.size,
        "idf_version": desc.idf_ver if desc else None,
        "digest": image.digest.hex() if image.digest else None,
        "digest_state": digest_state(image),
    }
