"""A firmware: bootloader, partition table and apps over flash contents.

What people have: the merged file of a release (it starts at the chip's bootloader offset), a dump
of a whole flash (it starts at 0), or the flash of a board. All three are the same `Firmware`.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from mpota.errors import MpotaError
from mpota.firmware.layout import Layout, unlisted_vfs
from mpota.formats.app_desc import find_micropython
from mpota.formats.chips import CHIPS, FLASH_SIZES, Chip, find_chip
from mpota.formats.image import (
    DIGEST_SIZE,
    HEADER_SIZE,
    IMAGE_MAGIC,
    Image,
    ImageHeader,
    TruncatedError,
    signature_size,
)
from mpota.formats.littlefs import is_littlefs
from mpota.formats.memory import is_app
from mpota.formats.micropython import Release, parse_release
from mpota.formats.otadata import OtaRecord, active_record, parse_otadata
from mpota.formats.partition_table import (
    DEFAULT_TABLE_OFFSET,
    ENTRY_MAGIC,
    FACTORY,
    TABLE_SIZE,
    Partition,
    PartitionTable,
)
from mpota.storage import FlashContents, Reader
from mpota.storage.file import FileImage, read_file
from mpota.units import BLOCK_SIZE, SECTOR_SIZE, KiB, align_up

_MAX_CSV_SIZE = 64 * KiB
_DOWNLOAD = "download the file itself: the link led to a page about it, or to an error"
_MISPLACED_END = 0x8000
_TEXTS_SIZE = 512 * KiB  # an app starts with its read-only data, MicroPython's version in it
_TABLE_SEARCH_END = 0x20000  # tables behind it are not searched for: the user names the offset


@dataclass(frozen=True)
class App:
    """An app image as it stands in a file or a slot: ``image``, and its signature if it has one."""

    image: Image
    signature: bytes = b""

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> App:
        """The app at the start of ``data``. Raises MpotaError if it is broken or no app."""
        image = Image.from_bytes(data)
        if not is_app(image.data):
            raise MpotaError(
                "image is a bootloader or a merged firmware, not an app: all of its segments "
                "go to RAM"
            )
        size = signature_size(data, image.size)
        return cls(image, bytes(data[image.size : image.size + size]))

    @property
    def size(self) -> int:
        """Bytes, signature included: what an update has to write."""
        return self.image.size + len(self.signature)

    def to_bytes(self) -> bytes:
        return self.image.data + self.signature


@dataclass(frozen=True)
class Firmware:
    """Flash contents that have a bootloader and a partition table.

    Addresses are flash addresses. ``name`` is for messages.
    """

    name: str
    flash: FlashContents = field(repr=False)
    bootloader: Image = field(repr=False)
    table: PartitionTable
    table_offset: int = DEFAULT_TABLE_OFFSET
    _apps: dict[Partition, App] = field(default_factory=dict, repr=False, compare=False)
    _known_apps: tuple[App, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], table_offset: int = DEFAULT_TABLE_OFFSET
    ) -> Firmware:
        """The firmware in a file: merged, or a dump of a whole flash.

        Raises UsageError if the file cannot be read, MpotaError if it is no firmware, or one
        whose bootloader, partition table or apps are damaged.
        """
        return cls.from_bytes(read_file(path), Path(path).name, table_offset)

    @classmethod
    def from_bytes(
        cls, data: bytes, name: str = "firmware", table_offset: int = DEFAULT_TABLE_OFFSET
    ) -> Firmware:
        """The same for the bytes of such a file."""
        firmware = cls.from_flash(FileImage(find_base(data, name), data), name, table_offset)
        firmware.check_contents()
        return firmware

    @classmethod
    def from_flash(
        cls, flash: FlashContents, name: str, table_offset: int = DEFAULT_TABLE_OFFSET
    ) -> Firmware:
        """The firmware in ``flash``, which may be the flash of a board.

        Raises MpotaError without a bootloader whose checksum fits, or without a valid table.
        """
        bootloader = _read_bootloader(flash, name, table_offset)
        table = _read_table(flash, name, table_offset)
        return cls(name, flash, bootloader, table, table_offset)

    def with_data(self, data: bytes, table_offset: int) -> Firmware:
        """The firmware once the bytes of its file are ``data``, checked as by `from_bytes`.

        An app that is in both is not verified twice: comparing bytes is faster than hashing them.
        """
        contents = FileImage(self.flash.base, data)
        firmware = Firmware.from_flash(contents, self.name, table_offset)
        firmware = replace(firmware, _known_apps=tuple(self._apps.values()))
        firmware.check_contents()
        return firmware

    @property
    def chip(self) -> Chip:
        return self.bootloader.chip

    @property
    def flash_size(self) -> int:
        """Bytes of flash as the bootloader's header declares them, else what the table needs."""
        return self.bootloader.header.flash_size or align_up(self.table.end, SECTOR_SIZE)

    @property
    def is_dump(self) -> bool:
        """Whether the contents begin before the bootloader, or reach the end of the flash."""
        return self.flash.base < self.chip.bootloader_offset or self.flash.end >= self.flash_size

    def read(self, partition: Partition) -> bytes:
        """All bytes of a partition."""
        return self.flash.read(partition.offset, partition.size)

    def content(self, partition: Partition) -> bytes:
        """The app in a partition, else all bytes up to the blank end.

        An app that overruns its partition is given whole; the partition that it runs into is empty.
        """
        if self._is_run_into(partition):
            return b""
        if partition in self.oversized:
            return self.app(partition).to_bytes()
        known = max(0, min(partition.size, self.flash.end - partition.offset))
        data = self.flash.read(partition.offset, known)
        if partition.is_app:
            try:
                return App.from_bytes(data).to_bytes()
            except MpotaError:
                pass  # no app, or half of one: keep the bytes as they are
        return data.rstrip(b"\xff")

    def layout(self) -> Layout:
        """The table as it is, to start edits from."""
        partition = self.app_partition
        return Layout(
            self.table,
            self.flash_size,
            partition,
            self.app(partition).size,
            self.table_offset,
            release=self.release,
        )

    @cached_property
    def release(self) -> Release | None:
        """MicroPython's release in the app that this firmware is about; None if it is unknown.

        A board's flash is read only as far as that text.
        """
        for partition in self._candidates():
            if self.flash.read(partition.offset, 1) == bytes([IMAGE_MAGIC]):
                return self._find_release(partition)
        return None

    def _find_release(self, partition: Partition) -> Release | None:
        end = min(partition.end, self.flash.end, partition.offset + _TEXTS_SIZE)
        data = b""
        for start in range(partition.offset, end, BLOCK_SIZE):
            data += self.flash.read(start, min(BLOCK_SIZE, end - start))
            version = find_micropython(data).version
            if version is not None:
                return parse_release(version)
        return None

    def unlisted_vfs(self, flash_size: int) -> Partition | None:
        """The file system that MicroPython adds behind the table: `mpota.firmware.layout`."""
        found = unlisted_vfs(self.table, flash_size, None)
        # Reading the release takes seconds on a board, and matters only if there is none yet.
        if found is None or is_littlefs(self.flash.read(found.offset, 2 * SECTOR_SIZE)):
            return found
        return unlisted_vfs(self.table, flash_size, self.release)

    def is_blank(self, partition: Partition) -> bool:
        """Whether the partition is erased, as far as the contents reach."""
        size = min(partition.size, max(0, self.flash.end - partition.offset))
        return self.flash.read(partition.offset, size).count(0xFF) == size

    def app(self, partition: Partition) -> App:
        """The app in a partition. Raises MpotaError, naming the partition, if it is not whole."""
        if partition in self._apps:
            return self._apps[partition]
        try:
            # Where a file ends early, its app is truncated, not filled up with 0xFF.
            known = max(0, min(partition.size, self.flash.end - partition.offset))
            if not known:
                raise MpotaError(f"the file ends at flash offset {self.flash.end:#x}, before it")
            if self.is_blank(partition):
                raise MpotaError("the partition is blank")
            app = self._read_app(partition.offset, known)
            if app.image.chip != self.chip:
                raise MpotaError(
                    f"app is for {app.image.chip.title}, the bootloader for {self.chip.title}"
                )
            if app not in self._known_apps:
                app.image.check("app")
        except MpotaError as error:
            raise MpotaError(f"{self.name}: {partition.label}: {error}", error.hint) from None
        self._apps[partition] = app
        return app

    def _read_app(self, offset: int, known: int) -> App:
        """The app at ``offset``, where ``known`` bytes are its partition's: an app that is larger
        stands whole in a file all the same.
        """
        while True:
            try:
                return App.from_bytes(self.flash.read(offset, known))
            except TruncatedError as error:
                if error.needed > self.flash.end - offset:
                    raise
                known = error.needed

    def check_fits(self, partition: Partition) -> None:
        """Raises MpotaError if the app in a partition is whole, but larger than it."""
        size = self.app(partition).size
        if size > partition.size:
            raise MpotaError(
                f"{self.name}: {partition.label}: the app does not fit: it is {size:,} bytes, the "
                f"partition holds {partition.size:,}",
                f"mpota resize {self.name} --app-size {align_up(size, BLOCK_SIZE):#x}",
            )

    @cached_property
    def oversized(self) -> tuple[Partition, ...]:
        """The app partitions whose app runs over their end."""
        found = []
        for partition in self.table.apps:
            with suppress(MpotaError):
                if self.app(partition).size > partition.size:
                    found.append(partition)
        return tuple(found)

    def _is_run_into(self, partition: Partition) -> bool:
        return any(
            large.end <= partition.offset < large.offset + self.app(large).size
            for large in self.oversized
        )

    @property
    def otadata(self) -> tuple[OtaRecord, OtaRecord] | None:
        """The otadata records, None for a table without otadata."""
        partition = self.table.otadata
        return parse_otadata(self.read(partition)) if partition else None

    @cached_property
    def app_partition(self) -> Partition:
        """The partition of the app that this firmware is about.

        That is the slot that otadata selects, else factory, else the first slot, else any other,
        and of these the first that holds an intact app. Raises MpotaError if none does.
        """
        problems = []
        for partition in self._candidates():
            try:
                self.app(partition)
            except MpotaError as error:
                problems.append(error)
            else:
                return partition
        if problems:
            raise problems[0]
        raise MpotaError(f"{self.name}: the partition table has no app partition")

    def check_contents(self) -> None:
        """Raises MpotaError if bytes of a file are damaged where a checksum can tell.

        In a dump a slot may well hold what an interrupted update left: it needs one intact app.
        """
        app_partition = self.app_partition
        if self.is_dump:
            return
        self.bootloader.check(f"{self.name}: bootloader")
        written = [
            p
            for p in self.table.apps
            if p == app_partition or not (self.is_blank(p) or self._is_run_into(p))
        ]
        self.check_ends(written)

    def check_ends(self, apps: Iterable[Partition]) -> None:
        """Raises MpotaError if bytes that belong to nothing follow the bootloader, the table or
        one of these apps, as when a header lost its word of a digest. A dump may have such bytes.
        """
        if self.is_dump:
            return
        start = self.chip.bootloader_offset
        self._check_tail("bootloader", start, self.bootloader.size, self.table_offset - start)
        self._check_tail("partition table", self.table_offset, TABLE_SIZE, SECTOR_SIZE)
        for partition in apps:
            size = self.app(partition).size
            self._check_tail(partition.label, partition.offset, size, partition.size)

    def _check_tail(self, name: str, offset: int, size: int, room: int) -> None:
        """Raises MpotaError unless the rest of the last sector, and a digest's place, are blank."""
        end = offset + size
        rest = max(align_up(size, SECTOR_SIZE), align_up(size + DIGEST_SIZE, 16)) - size
        tail = self.flash.read(end, max(0, min(rest, room - size)))
        if tail.strip(b"\xff") and tail.strip(b"\0"):
            raise MpotaError(
                f"{self.name}: {name} ends at {end:#x}, but bytes that belong to nothing follow: "
                "its header was changed, or the file put together wrongly"
            )

    def _candidates(self) -> list[Partition]:
        """The app partitions, the most likely to be the running one first."""
        order = boot_order(self.table)
        records = self.otadata
        active = active_record(records) if records else None
        selected = (
            self.table.slot_of(records[active].ota_seq) if records and active is not None else None
        )
        if selected is not None:
            order.remove(selected)
            order.insert(0, selected)
        return order


def boot_order(table: PartitionTable) -> list[Partition]:
    """The app partitions in the order in which the bootloader tries them while otadata is blank;
    those that it never starts come last.
    """
    order = [p for p in table.apps if p.subtype == FACTORY]
    # bootloader_utility.c: index_to_partition knows no slot from the number of slots on.
    order += [p for p in table.slots if p.slot is not None and p.slot < len(table.slots)]
    return order + [p for p in table.apps if p not in order]


def find_base(data: bytes, name: str = "file") -> int:
    """The flash address of the first byte of a firmware file: its chip's bootloader offset, or 0.

    Raises MpotaError for anything else, saying what it seems to be.
    """
    check_no_other(data, name)
    if is_app_image(data):
        raise MpotaError(
            f"{name} is an app image alone, without bootloader and partition table",
            "commands that change a partition table need the merged firmware",
        )
    if data[:1] == bytes([IMAGE_MAGIC]):
        try:
            header = ImageHeader.from_bytes(data[:HEADER_SIZE])
            base = header.chip.bootloader_offset
        except MpotaError as error:
            raise MpotaError(f"{name}: {error}", error.hint) from None
        # A file as long as a whole flash: it would not fit behind the bootloader's offset.
        if base and len(data) in FLASH_SIZES and base + len(data) > (header.flash_size or 0):
            _check_place(FileImage(0, data), name)
        return base
    for chip in CHIPS:
        header_bytes = data[chip.bootloader_offset :][:HEADER_SIZE]
        if len(header_bytes) == HEADER_SIZE and header_bytes[0] == IMAGE_MAGIC:
            header = ImageHeader.from_bytes(header_bytes)
            if find_chip(header.chip_id) == chip:
                return 0
    _check_place(FileImage(0, data), name)
    raise MpotaError(
        f"{name} starts with {data[:4].hex(' ')}: it is no firmware for a chip that is known, "
        "whose images start with e9"
    )


def is_app_image(data: bytes) -> bool:
    """Whether ``data`` starts with an app image, intact or not, rather than a bootloader."""
    return is_app(data)


def _read_bootloader(flash: FlashContents, name: str, table_offset: int) -> Image:
    for chip in CHIPS:
        if flash.base > chip.bootloader_offset:
            continue
        header = flash.read(chip.bootloader_offset, HEADER_SIZE)
        if header[0] != IMAGE_MAGIC or ImageHeader.from_bytes(header).chip_id != chip.chip_id:
            continue
        size = min(table_offset, flash.end) - chip.bootloader_offset
        if size <= 0:
            raise MpotaError(
                f"{name}: the table offset {table_offset:#x} lies in front of the bootloader, "
                f"which starts at {chip.bootloader_offset:#x}"
            )
        try:
            bootloader = Image.from_bytes(flash.read(chip.bootloader_offset, size))
            if bootloader.checksum != bootloader.computed_checksum:
                bootloader.check()
        except MpotaError as error:
            raise MpotaError(f"{name}: bootloader: {error}", error.hint) from None
        return bootloader
    _check_place(flash, name)
    raise MpotaError(f"{name}: no bootloader where a chip has it")


def _read_table(flash: FlashContents, name: str, table_offset: int) -> PartitionTable:
    data = flash.read(table_offset, TABLE_SIZE)
    try:
        table = PartitionTable.from_bytes(data)
        # A damaged table may claim gigabytes. The flash size in the header is no limit here: it
        # may be what has to be mended. Tables that break other rules boot: see `oddities`.
        table.check_readable(FLASH_SIZES[-1])
    except MpotaError as error:
        hint = error.hint
        if data[:2] != ENTRY_MAGIC:
            hint = find_table_hint(flash, flash.end) or hint
        raise MpotaError(f"{name}: at {table_offset:#x}: {error}", hint) from None
    return table


def find_table_hint(flash: Reader, end: int = _TABLE_SEARCH_END) -> str | None:
    """The advice where a table stands at another offset, None if none is found below ``end``."""
    for offset in range(0, min(_TABLE_SEARCH_END, end), SECTOR_SIZE):
        try:
            PartitionTable.from_bytes(flash.read(offset, TABLE_SIZE))
        except MpotaError:
            continue
        return f"there is a partition table at {offset:#x}: --table-offset {offset:#x}"
    return None


def read_app(data: bytes, name: str, offset_of_table: int = DEFAULT_TABLE_OFFSET) -> App:
    """The app in the bytes of a file that may be an app image or a merged firmware.

    Raises MpotaError if the app is not intact, or if bytes follow an app image that belong to
    nothing.
    """
    if is_app_image(data):
        try:
            app = App.from_bytes(data)
            app.image.check()
        except MpotaError as error:
            raise MpotaError(f"{name}: {error}", error.hint) from None
        tail = data[app.size :]
        if tail.strip(b"\xff") and tail.strip(b"\0"):
            raise MpotaError(
                f"{name}: the app ends at {app.size:,} bytes, but {len(tail):,} bytes follow"
            )
        return app
    firmware = Firmware.from_bytes(data, name, offset_of_table)
    return firmware.app(firmware.app_partition)


def read_table(
    data: bytes,
    name: str,
    table_offset: int = DEFAULT_TABLE_OFFSET,
    *,
    is_strict: bool = True,
) -> PartitionTable:
    """The table in the bytes of a file: a binary table, a CSV or a firmware.

    Raises MpotaError if there is none in it or, if ``is_strict``, one that breaks the rules.
    """
    from mpota.formats.partition_csv import table_from_csv

    check_no_other(data, name)
    if not is_table(data):
        if Path(name).suffix.lower() == ".csv":
            raise MpotaError(
                f"{name} is no CSV: {len(data):,} bytes that are not all printable UTF-8, "
                f"or more than {_MAX_CSV_SIZE:,}"
            )
        return Firmware.from_bytes(data, name, table_offset).table
    try:
        if data[:2] == ENTRY_MAGIC:
            table = PartitionTable.from_bytes(data)
        else:
            table = table_from_csv(_text(data) or "", table_offset)
        if is_strict:
            table.check(table_offset=table_offset)
    except MpotaError as error:
        raise MpotaError(f"{name}: {error}", error.hint) from None
    return table


def is_table(data: bytes) -> bool:
    """Whether ``data`` is a partition table alone, valid or not: binary, or text."""
    return data[:2] == ENTRY_MAGIC or _text(data) is not None


_OTHER_FILES = (  # start of the file in lower case, what it is, what to do
    (b"<!doctype html", "a web page", _DOWNLOAD),
    (b"<html", "a web page", _DOWNLOAD),
    (b"<?xml", "a web page or another XML file", _DOWNLOAD),
    (b"\x7felf", "an ELF file", "the firmware is the .bin made of it"),
    (b"uf2\n", "a UF2 file", "the same build as .bin is what mpota takes"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it first"),
    (b"pk\x03\x04", "a zip archive", "unpack it first"),
    (b"manifest.json\0", "a bundle", "`mpota verify` checks it, `mpota manifest` shows it"),
    (b"otaf", "a compressed app or a delta", "boards install it: ota.update.from_file()"),
    (b"{", "JSON, as manifests are", "`mpota verify` checks a manifest"),
)


def check_no_other(data: bytes, name: str) -> None:
    """Raises MpotaError for files that are often taken for firmware, and for failed downloads."""
    if is_esp8266(data):
        raise MpotaError(
            f"{name} is an image for the ESP8266, not for an ESP32",
            "MicroPython's downloads name the chip; the ESP8266 has no OTA slots like these",
        )
    if _INTEL_HEX.match(data):
        raise MpotaError(
            f"{name} is an Intel HEX file, not a firmware, an app or a table",
            "the same build as .bin is what mpota takes",
        )
    start = data[:64].lstrip().lower()
    for magic, what, hint in _OTHER_FILES:
        if start.startswith(magic):
            raise MpotaError(f"{name} is {what}, not a firmware, an app or a table", hint)
    if _looks_encrypted(data):
        raise MpotaError(
            f"{name} looks like flash that is encrypted: the key never leaves the chip",
            "take the firmware as it was before it was flashed",
        )


_INTEL_HEX = re.compile(rb":[0-9A-Fa-f]{10,}\r?\n")
_ESP8266_MAGICS = (0xE9, 0xEA)  # esptool: ESP8266ROMFirmwareImage, ESP8266V2FirmwareImage


def is_esp8266(data: bytes) -> bool:
    """Whether ``data`` starts with an image for the ESP8266: behind 8 bytes of header it has the
    first segment's address, where an ESP32's header has pins.
    """
    if len(data) < 16 or data[0] not in _ESP8266_MAGICS or not 1 <= data[1] <= 16:
        return False
    entry, address = (int.from_bytes(data[at : at + 4], "little") for at in (4, 8))
    is_v2 = data[0] == 0xEA and data[1] == 4
    in_memory = 0x3FFE8000 <= address < 0x40000000 or 0x40100000 <= address < 0x40300000
    return 0x40100000 <= entry < 0x40300000 and (in_memory or is_v2)


def _looks_encrypted(data: bytes) -> bool:
    """Whether the bootloader's place holds nearly all byte values, about evenly."""
    if any(_has_header(data, at) for at in (0, *(chip.bootloader_offset for chip in CHIPS))):
        return False
    for start in (0x1000, 0x2000, 0):
        page = data[start : start + SECTOR_SIZE]
        if len(page) == SECTOR_SIZE and len(set(page)) > 250:
            return max(map(page.count, range(256))) < SECTOR_SIZE // 64
    return False


def _has_header(data: bytes, offset: int) -> bool:
    """Whether an image of a known chip may start at ``offset``."""
    raw = data[offset : offset + HEADER_SIZE]
    if len(raw) < HEADER_SIZE or raw[0] != IMAGE_MAGIC:
        return False
    return find_chip(ImageHeader.from_bytes(raw).chip_id) is not None


def _check_place(flash: FlashContents, name: str) -> None:
    """Raises MpotaError for a bootloader that stands where its chip does not start it."""
    for offset in range(0, _MISPLACED_END, SECTOR_SIZE):
        raw = flash.read(offset, HEADER_SIZE)
        chip = find_chip(ImageHeader.from_bytes(raw).chip_id) if raw[0] == IMAGE_MAGIC else None
        if chip is None or chip.bootloader_offset == offset:
            continue
        try:
            Image.from_bytes(flash.read(offset, _TABLE_SEARCH_END))
        except MpotaError:
            continue
        raise MpotaError(
            f"{name}: a bootloader for {chip.title} stands at {offset:#x}, the chip starts it at "
            f"{chip.bootloader_offset:#x}: it was written to the wrong offset",
            f"write the merged firmware to {chip.bootloader_offset:#x}, a dump of the whole flash "
            "to 0x0; `mpota flash` knows which it is",
        )


def _text(data: bytes) -> str | None:
    """``data`` decoded as text, None if it is binary. gen_esp32part.py: get_encoding."""
    if len(data) > _MAX_CSV_SIZE:
        return None
    is_utf16 = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        return None
    return text if all(c.isprintable() or c in "\t\r\n" for c in text) else None
