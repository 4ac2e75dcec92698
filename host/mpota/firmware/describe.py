"""What is in a firmware, an app image or a partition table: facts for `mpota show`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mpota.errors import MpotaError
from mpota.firmware.firmware import App, Firmware, is_app_image, is_table, read_app, read_table
from mpota.formats.app_desc import (
    AppDesc,
    MicroPythonText,
    find_app_desc,
    find_bootloader_desc,
    find_micropython,
    has_rollback,
)
from mpota.formats.chips import FLASH_MODES
from mpota.formats.image import Image, ImageHeader
from mpota.formats.partition_table import (
    DEFAULT_TABLE_OFFSET,
    Partition,
    PartitionTable,
)


@dataclass(frozen=True)
class AppFacts:
    """An intact app and the partition that it stands in (None: a file of its own)."""

    app: App = field(repr=False)
    partition: Partition | None
    desc: AppDesc | None
    micropython: MicroPythonText

    @property
    def fill(self) -> float | None:
        """How full its partition is, 0 to 1."""
        return self.app.size / self.partition.size if self.partition else None


@dataclass(frozen=True)
class Description:
    """``header`` is the bootloader's, or that of an app image alone; a table alone has none.

    ``broken`` are app partitions that hold something else than an intact app, with the reason.
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
            "ota": {
                "capable": self.table.is_ota_capable if self.table else None,
                "rollback": self.rollback,
            },
        }


def describe(data: bytes, name: str, table_offset: int = DEFAULT_TABLE_OFFSET) -> Description:
    """Facts about a file's bytes: a firmware, an app image, or a partition table (binary or CSV).

    Raises MpotaError if it is none of these, or damaged.
    """
    if is_app_image(data):
        app = _facts(read_app(data, name), None)
        header = app.app.image.header
        return Description(name, header, None, None, table_offset, (app,), (), (), app)
    if is_table(data):
        table = read_table(data, name, table_offset)
        return Description(name, None, None, table, table_offset, (), (), (), None)
    return describe_firmware(Firmware.from_bytes(data, name, table_offset))


def describe_firmware(firmware: Firmware) -> Description:
    """Facts about a firmware that is open already, in a file or on a board."""
    apps, blank, broken = [], [], []
    for partition in firmware.table.apps:
        if firmware.is_blank(partition):
            blank.append(partition)
            continue
        try:
            apps.append(_facts(firmware.app(partition), partition))
        except MpotaError as error:
            broken.append((partition, str(error)))
    main = next((a for a in apps if a.partition == firmware.app_partition), None)
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
    )


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
