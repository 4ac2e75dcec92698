"""What is in a firmware, an app image or a partition table: facts for `mpota show`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mpota.errors import MpotaError
from mpota.firmware.firmware import (
    App,
    Firmware,
    find_base,
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
from mpota.formats.image import HEADER_SIZE, IMAGE_MAGIC, Image, ImageHeader
from mpota.formats.partition_table import (
    DEFAULT_TABLE_OFFSET,
    TABLE_SIZE,
    Partition,
    PartitionTable,
)
from mpota.formats.signature import SignatureBlock, parse_app_sector
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


@dataclass(frozen=True)
class Description:
    """``header`` is the bootloader's, or that of an app image alone; a table alone has none.

    ``broken`` are app partitions that hold something else than an intact app, with the reason.
    ``problems`` are what is wrong with the whole: it is shown as far as it can be read.
    """

    name: str
    header: ImageHeader | None
    bootloader: Image | None
    table: PartitionTable | None
    table_offset: int
    apps: tuple[AppFacts, ...]
    blank: tuple[Partition, ...]
    broken: tuple[tuple[Partition, str], ...]
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
    flash = FileImage(find_base(data, name), data)
    try:
        firmware = Firmware.from_flash(flash, name, table_offset)
    except MpotaError as error:
        return _describe_parts(flash, name, table_offset, error)
    return describe_firmware(firmware, is_file=True)


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
                broken.append((partition, str(error)))
    if is_file:
        try:
            firmware.check_contents()
        except MpotaError as error:
            problems.append(error)
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
    flash: FileImage, name: str, table_offset: int, problem: MpotaError
) -> Description:
    """A firmware whose bootloader or table is damaged: the rest of it."""
    chip = next(c for c in CHIPS if _header(flash, c) is not None)
    start = chip.bootloader_offset
    bootloader, table = None, None
    with suppress(MpotaError):
        bootloader = Image.from_bytes(flash.read(start, max(0, table_offset - start)))
    with suppress(MpotaError):
        table = PartitionTable.from_bytes(flash.read(table_offset, TABLE_SIZE))
    apps, broken = [], []
    for partition in table.apps if table else ():
        size = max(0, min(partition.size, flash.end - partition.offset))
        try:
            app = App.from_bytes(flash.read(partition.offset, size))
            app.image.check("app")
            apps.append(_facts(app, partition))
        except MpotaError as error:
            broken.append((partition, str(error)))
    return Description(
        name,
        _header(flash, chip),
        bootloader,
        table,
        table_offset,
        tuple(apps),
        (),
        tuple(broken),
        apps[0] if apps else None,
        (problem,),
    )


def _header(flash: FileImage, chip: Chip) -> ImageHeader | None:
    """The header where this chip has its bootloader, None if it is of another chip or none."""
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
