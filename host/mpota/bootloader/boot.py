"""The ESP-IDF second-stage bootloader's decisions at a power-on, over the verbs of a flash.

`boot` does what the chip does from reset to the jump into an app: the mask ROM looks at the
bootloader, the bootloader verifies the partition table, reads and rewrites otadata, picks an app,
verifies it, and falls back to others. Each step names the ESP-IDF function that it follows
(``bootloader_utility.c`` where no file is named). It writes otadata through ``erase`` and
``write``, in ESP-IDF's order, so that a power cut modelled by the flash falls in between.

No content of the flash raises anything; what does not boot is a result.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field, replace

from mpota.bootloader.image_load import (
    BootFault,
    BootloaderInfo,
    Cause,
    ImageVerdict,
    Log,
    LogLine,
    address_faults,
    bootloader_info,
    check_chip_validity,
    error_lines,
    known_bootloader,
    read_mapped,
    set_boot_error,
    verify_image,
)
from mpota.errors import MpotaError
from mpota.formats.chips import CHIPS, FLASH_MODES, Chip
from mpota.formats.image import HEADER_SIZE, IMAGE_MAGIC, Image, ImageHeader
from mpota.formats.otadata import (
    RECORD_SIZE,
    OtaRecord,
    OtaState,
    active_record,
    selected_slot,
)
from mpota.formats.partition_table import (
    APP,
    DATA,
    DATA_OTA,
    DEFAULT_TABLE_OFFSET,
    ENTRY_MAGIC,
    ENTRY_SIZE,
    FACTORY,
    MD5_MAGIC,
    OTA_SLOTS,
    TABLE_SIZE,
    TEST,
    Partition,
)
from mpota.storage import Flash
from mpota.units import SECTOR_SIZE, format_flash_size

__all__ = [
    "BootFault",
    "BootResult",
    "BootloaderInfo",
    "Cause",
    "ImageVerdict",
    "LogLine",
    "address_faults",
    "boot",
    "bootloader_info",
    "find_bootloader",
    "known_bootloader",
    "set_boot_error",
    "verify_image",
]

# bootloader_config.h: indices beside the slots' own.
_FACTORY_INDEX = -1
_WORD = 0xFFFFFFFF
_RESETS = 3  # NEW becomes PENDING_VERIFY, then ABORTED
_ESP_FAIL = -1
_ESP_ERR_FLASH_OP_FAIL = 0x6001

# flash_partitions.c: esp_partition_table_verify, the release from which on it is refused.
_EMPTY_TABLE_REFUSED = (5, 5)
_WRAPPED_SIZE_REFUSED = (6, 1)

_APP_USAGE = {FACTORY: "factory app", TEST: "test app"}
_DATA_USAGE = {
    DATA_OTA: "OTA data",
    0x01: "RF data",
    0x02: "WiFi data",
    0x04: "NVS keys",
    0x05: "efuse",
}


@dataclass(frozen=True)
class BootResult:
    """How one power-on ended.

    ``starts`` is the app partition whose image runs, None if none does and the chip resets for
    ever; ``selected`` the one that otadata, or its absence, picked first. ``verdicts`` holds the
    images that were tried, in order. ``lines`` is all that ROM and bootloader print at log level
    info, ``faults`` the causes of the error lines. ``otadata`` is the partition, ``otadata_after``
    its two records of 32 bytes as they were left; both None if no table names one.
    """

    starts: Partition | None
    selected: Partition | None
    partitions: tuple[Partition, ...]
    verdicts: tuple[tuple[Partition, ImageVerdict], ...]
    lines: tuple[LogLine, ...]
    faults: tuple[BootFault, ...]
    otadata: Partition | None
    otadata_after: tuple[bytes, bytes] | None
    bootloader: BootloaderInfo | None

    @property
    def console(self) -> tuple[str, ...]:
        """The bootloader's error lines, in order, without level and time: ``boot: ...``."""
        return error_lines(self.lines)

    @property
    def printed(self) -> tuple[str, ...]:
        """The console as this bootloader prints it: MicroPython builds it without info lines."""
        info = self.bootloader is None or self.bootloader.rules.prints_info
        return tuple(line.printed for line in self.lines if info or line.level.value != "I")


def find_bootloader(flash: Flash, chip: Chip | None = None) -> tuple[Chip, int] | None:
    """The chip, and the flash address of its bootloader's header, found by that header.

    Without ``chip`` every chip's place is looked at; None if no place holds its chip's header.
    """
    for row in CHIPS if chip is None else (chip,):
        size = max(0, min(HEADER_SIZE, flash.size - row.bootloader_offset))
        raw = flash.read(row.bootloader_offset, size) if size else b""
        is_image = len(raw) == HEADER_SIZE and raw[0] == IMAGE_MAGIC
        if is_image and ImageHeader.from_bytes(raw).chip_id == row.chip_id:
            return row, row.bootloader_offset
    return None


def boot(
    flash: Flash,
    *,
    chip: Chip | None = None,
    table_offset: int = DEFAULT_TABLE_OFFSET,
    rollback: bool = True,
    chip_revision: int | None = None,
    block_revision: int | None = None,
    bootloader: BootloaderInfo | None = None,
) -> BootResult:
    """One power-on of a chip with this flash.

    ``chip`` is the chip that is there, None: the one whose bootloader the flash holds.
    ``table_offset`` and ``rollback`` were fixed when the bootloader was built, and no binary
    shows them; MicroPython's builds have rollback since v1.21. ``chip_revision`` and
    ``block_revision`` are as in `bootloader_info`; None takes those of the chip that the flash
    belongs to, if there is one. With ``bootloader`` the ROM's look at the flash is left out.

    Where no app starts, the chip resets for ever: the result tells of the first run, and otadata
    is left as the last one leaves it. Where the first run ends in an app that the bootloader does
    not survive, and rollback leads out of it, the result tells of both runs.
    """

    def run() -> BootResult:
        power_on = _PowerOn(flash, table_offset, rollback)
        revisions = (
            flash.chip_revision if chip_revision is None else chip_revision,
            flash.block_revision if block_revision is None else block_revision,
        )
        info = bootloader or power_on.load_bootloader(chip, revisions)
        if info is not None:
            power_on.bootloader_start(info)
        return power_on.result()

    result = first = run()
    # bootloader_reset: with no app to start the chip resets and runs the bootloader again, which
    # gives up an app that the run before selected. After that nothing changes any more.
    for _ in range(_RESETS if first.starts is None else 0):
        again = run()
        if again.otadata_after == result.otadata_after and again.starts == result.starts:
            break
        result = again
        if result.starts is not None:
            break
    if result.starts is None:
        return replace(first, otadata_after=result.otadata_after)
    if result is first:
        return first
    return replace(
        result,
        selected=first.selected,
        verdicts=first.verdicts + result.verdicts,
        lines=first.lines + result.lines,
        faults=first.faults + result.faults,
    )


@dataclass
class _State:
    """bootloader_state_t. Each ``ota_N`` counts; of two factory or otadata entries the last."""

    ota_info: Partition | None = None
    factory: Partition | None = None
    test: Partition | None = None
    ota: dict[int, Partition] = field(default_factory=dict)
    app_count: int = 0

    def partition(self, index: int) -> Partition | None:
        """index_to_partition. None also for a partition of size 0: it is skipped silently."""
        found = self.factory
        if index != _FACTORY_INDEX:
            is_slot = 0 <= index < min(OTA_SLOTS, self.app_count)
            found = self.ota.get(index) if is_slot else None
        return found if found is not None and found.size else None


class _PowerOn:
    """One run of the ROM and the bootloader; its fields are what they found out so far."""

    def __init__(self, flash: Flash, table_offset: int, rollback: bool) -> None:
        self.flash = flash
        self.table_offset = table_offset
        self.rollback = rollback
        self.log = Log()
        self.bootloader: BootloaderInfo | None = None
        self.partitions: tuple[Partition, ...] = ()
        self.state = _State()
        self.selected: Partition | None = None
        self.starts: Partition | None = None
        self.verdicts: list[tuple[Partition, ImageVerdict]] = []
        self.has_initial_otadata = False

    def result(self) -> BootResult:
        otadata = self.state.ota_info or self.find_otadata()
        return BootResult(
            self.starts,
            self.selected,
            self.partitions,
            tuple(self.verdicts),
            tuple(self.log.lines),
            tuple(self.log.faults),
            otadata,
            self.otadata_after(otadata),
            self.bootloader,
        )

    def read(self, offset: int, size: int) -> bytes:
        memory = self.bootloader.memory if self.bootloader else None
        limit = memory.flash_limit if memory else self.flash.size
        unmapped = memory.unmapped if memory else bytes(4)
        return read_mapped(self.flash, offset, size, limit, unmapped)

    # The mask ROM

    def load_bootloader(
        self, chip: Chip | None, revisions: tuple[int | None, int | None]
    ) -> BootloaderInfo | None:
        """Find and load the bootloader. None: it does not run, and the chip resets."""
        found = find_bootloader(self.flash, chip)
        if found is None:
            offset = chip.bootloader_offset if chip else min(0x1000, max(0, self.flash.size - 4))
            word = int.from_bytes(self.read(offset, 4), "little")
            text = f"invalid header: 0x{word:08x}"
            self.log.rom(text)
            self.rom_fault(Cause.BOOTLOADER_MISSING, text, offset=offset, found=word)
            return None
        _, offset = found
        end = self.table_offset if self.table_offset > offset else self.flash.size
        try:
            image = Image.from_bytes(self.flash.read(offset, min(end, self.flash.size) - offset))
        except MpotaError as error:  # each ROM has other words for it, so the text is ours
            self.rom_fault(Cause.BOOTLOADER_CORRUPT, str(error), offset=offset)
            return None
        return self.rom_load(image, offset, revisions)

    def rom_load(
        self, image: Image, offset: int, revisions: tuple[int | None, int | None]
    ) -> BootloaderInfo | None:
        """The ROM refuses a wrong checksum. Newer chips report a wrong digest, and start it."""
        header, is_esp32 = image.header, image.chip.name == "esp32"
        mode = FLASH_MODES[header.spi_mode] if header.spi_mode < len(FLASH_MODES) else "SLOW_READ"
        self.log.rom(f"mode:{mode}, clock div:{1 if header.spi_speed == 0xF else 2}")
        for segment in image.segments:
            size = f"{segment.data_size}" if is_esp32 else f"0x{segment.data_size:x}"
            self.log.rom(f"load:0x{segment.load_addr:08x},len:{size}")
        computed, stored = image.computed_checksum, image.checksum
        if computed != stored:
            text = f"Checksum failure. Calculated 0x{computed:02x} stored 0x{stored:02x}"
            if is_esp32:
                text = f"csum err:0x{computed:x}!=0x{stored:x}"
            self.log.rom(text)
            values = {"offset": offset, "calculated": computed, "found": stored}
            self.rom_fault(Cause.BOOTLOADER_CORRUPT, text, **values)
            return None
        if image.digest not in (None, image.computed_digest) and not is_esp32:
            self.log.rom("SHA-256 comparison failed:")
            self.log.rom("Attempting to boot anyway...")
        self.log.rom(f"entry 0x{header.entry_addr:08x}")
        info = bootloader_info(image.data, *revisions)
        check_chip_validity(header, info, self.log, is_app=False)
        if self.log.faults:  # bootloader_init.c: bootloader_check_bootloader_validity
            self.bootloader = info
            return None
        return info

    def rom_fault(self, cause: Cause, text: str, **values: int) -> None:
        self.log.faults.append(BootFault(cause, text, values))

    # bootloader_start.c: call_start_cpu0

    def bootloader_start(self, info: BootloaderInfo) -> None:
        self.bootloader = info
        self.print_banner(info)
        if not self.load_partition_table(info):
            self.log.error("boot", "load partition table error!")
            return
        index = self.get_selected_boot_partition(info)
        if index is not None:
            self.selected = self.state.partition(index)
            self.load_boot_image(info, index)

    def print_banner(self, info: BootloaderInfo) -> None:
        if info.idf_version:
            self.log.info("boot", f"ESP-IDF {info.idf_version} 2nd stage bootloader")
        revision = info.chip_revision or 0
        self.log.info("boot", f"chip revision: v{revision // 100}.{revision % 100}")
        size = format_flash_size(self.chip_size(info))
        self.log.info(f"boot.{info.chip.name}", f"SPI Flash Size : {size}")

    def chip_size(self, info: BootloaderInfo) -> int:
        """g_rom_flashchip.chip_size: what the bootloader's header says."""
        return self.flash.size if info.flash_size is None else info.flash_size

    # The partition table

    def load_partition_table(self, info: BootloaderInfo) -> bool:
        """bootloader_utility_load_partition_table."""
        table = self.read(self.table_offset, TABLE_SIZE)
        count = self.verify_table(table, self.chip_size(info), info.release)
        if count is None:
            self.log.error("boot", "Failed to verify partition table")
            return False
        # The count leaves out the MD5 entry, wherever it stands, but reading starts at the first
        # row: so an MD5 entry that is not the last costs the last partition.
        self.partitions = tuple(map(Partition.from_bytes, _entries(table[: count * ENTRY_SIZE])))
        self.log.info("boot", "Partition Table:")
        self.log.info("boot", "## Label            Usage          Type ST Offset   Length")
        for index, partition in enumerate(self.partitions):
            usage = self.note_partition(partition)
            label = partition.label.split("\0")[0].encode("ascii", "replace").decode()
            self.log.info(
                "boot",
                f"{index:2d} {label:<16s} {usage:<16s} {partition.type:02x} "
                f"{partition.subtype:02x} {partition.offset:08x} {partition.size:08x}",
            )
        self.log.info("boot", "End of partition table")
        return True

    def verify_table(self, table: bytes, chip_size: int, release: tuple[int, ...]) -> int | None:
        """flash_partitions.c: esp_partition_table_verify. The number of entries, or None."""
        has_md5 = False
        for index, row in enumerate(_entries(table)):
            if row[:2] == ENTRY_MAGIC:
                if not self.is_in_flash(index, row, chip_size, release):
                    return None
            elif row[:2] == MD5_MAGIC[:2]:
                if has_md5:
                    text = "Only one MD5 checksum is allowed"
                    self.log.fail(Cause.TABLE_TWO_MD5, "flash_parts", text, index=index)
                    return None
                md5 = hashlib.md5(table[: index * ENTRY_SIZE], usedforsecurity=False)
                if row[16:] != md5.digest():
                    text = "Incorrect MD5 checksum"
                    self.log.fail(Cause.TABLE_MD5, "flash_parts", text, index=index)
                    return None
                has_md5 = True
            elif row[:4] == b"\xff\xff\xff\xff" and (index or release < _EMPTY_TABLE_REFUSED):
                return index - has_md5
            else:
                magic = int.from_bytes(row[:2], "little")
                text = f"partition {index} invalid magic number 0x{magic:x}"
                self.log.fail(Cause.TABLE_MAGIC, "flash_parts", text, index=index, found=magic)
                return None
        text = "partition table has no terminating entry, not valid"
        self.log.fail(Cause.TABLE_NO_END, "flash_parts", text)
        return None

    def is_in_flash(self, index: int, row: bytes, chip_size: int, release: tuple[int, ...]) -> bool:
        offset, size = struct.unpack_from("<II", row, 4)
        end = offset + size
        if release < _WRAPPED_SIZE_REFUSED:
            end &= _WORD
        if offset <= chip_size and end <= chip_size:
            return True
        self.log.fail(
            Cause.TABLE_FLASH_SIZE,
            "flash_parts",
            f"partition {index} invalid - offset 0x{offset:x} size 0x{size:x} "
            f"exceeds flash chip size 0x{chip_size:x}",
            index=index,
            offset=offset,
            size=size,
            limit=chip_size,
        )
        return False

    def note_partition(self, partition: Partition) -> str:
        """Remember an entry that takes part in booting; returns the bootloader's words for it."""
        state, subtype = self.state, partition.subtype
        if partition.type == APP:
            if subtype == FACTORY:
                state.factory = partition
            elif subtype == TEST:
                state.test = partition
            elif partition.slot is not None:
                state.ota[partition.slot] = partition
                state.app_count += 1
                return "OTA app"
            return _APP_USAGE.get(subtype, "Unknown app")
        if partition.type == DATA:
            if subtype == DATA_OTA:
                state.ota_info = partition
            return _DATA_USAGE.get(subtype, "Unknown data")
        return "unknown"

    # otadata

    def get_selected_boot_partition(self, info: BootloaderInfo) -> int | None:
        """bootloader_utility_get_selected_boot_partition. An index, None: reset."""
        otadata = self.state.ota_info
        if otadata is None or otadata.offset == 0:
            return _FACTORY_INDEX
        records = self.read_otadata(otadata, info.memory.mmap_size)
        if records is None:
            return None
        if self.rollback:
            for which, record in enumerate(records):
                if record.ota_state == OtaState.PENDING_VERIFY:
                    records[which] = record._replace(ota_state=OtaState.ABORTED)
                    self.write_otadata(otadata, which, records[which])
        if all(record.is_invalid for record in records) or self.state.app_count == 0:
            return self.select_default(records)
        active = active_record(records)
        if active is None:
            text = "ota data partition invalid and no factory, will try all partitions"
            if self.has_factory:
                text = "ota data partition invalid, falling back to factory"
            self.log.fail(Cause.OTADATA_INVALID, "boot", text)
            return _FACTORY_INDEX
        record = records[active]
        if self.rollback and record.ota_state == OtaState.NEW:
            record = record._replace(ota_state=OtaState.PENDING_VERIFY)
            self.write_otadata(otadata, active, record)
        return selected_slot(record.ota_seq, self.state.app_count)

    @property
    def has_factory(self) -> bool:
        return self.state.factory is not None and self.state.factory.offset != 0

    def read_otadata(self, otadata: Partition, mmap_size: int) -> list[OtaRecord] | None:
        size = otadata.size
        if size < 2 * SECTOR_SIZE:
            self.log.fail(
                Cause.OTADATA_SIZE,
                "boot",
                f"ota_info partition size {size} is too small (minimum {2 * SECTOR_SIZE} bytes)",
                size=size,
                limit=2 * SECTOR_SIZE,
            )
            return None
        if size > mmap_size:
            self.log.error("bootloader_flash", f"bootloader_mmap excess size {size:x}")
            text = f"bootloader_mmap(0x{otadata.offset:x}, 0x{size:x}) failed"
            self.log.fail(Cause.OTADATA_SIZE, "boot", text, size=size, limit=mmap_size)
            return None
        return [
            OtaRecord.from_bytes(self.read(otadata.offset + which * SECTOR_SIZE, RECORD_SIZE))
            for which in range(2)
        ]

    def select_default(self, records: list[OtaRecord]) -> int:
        if self.has_factory:
            self.log.info("boot", "Defaulting to factory image")
            return _FACTORY_INDEX
        self.log.info("boot", "No factory image, trying OTA 0")
        self.has_initial_otadata = all(
            record.ota_seq == _WORD or not record.is_crc_ok for record in records
        )
        return 0

    def write_otadata(self, otadata: Partition, which: int, record: OtaRecord) -> None:
        """write_otadata: erase the record's sector, then write the record."""
        offset = otadata.offset + which * SECTOR_SIZE
        error = 0
        sector = offset // SECTOR_SIZE * SECTOR_SIZE
        if max(sector + SECTOR_SIZE, offset + RECORD_SIZE) > self.flash.size:
            error = _ESP_ERR_FLASH_OP_FAIL
        else:
            self.flash.erase(sector, SECTOR_SIZE)
            if offset % 4:
                text = f"bootloader_flash_write dest_addr 0x{offset:x} not 4-byte aligned"
                self.log.error("bootloader_flash", text)
                error = _ESP_FAIL
            else:
                # NOR flash only clears bits, which shows where a misplaced otadata partition lets
                # the record reach into the next sector, which was not erased.
                there = self.flash.read(offset, RECORD_SIZE)
                data = bytes(old & new for old, new in zip(there, record.to_bytes(), strict=True))
                self.flash.write(offset, data)
        if error:
            self.log.fail(
                Cause.OTADATA_WRITE,
                "boot",
                f"Error in write_otadata operation. err = 0x{error & _WORD:x}",
                offset=offset,
            )

    # The apps

    def load_boot_image(self, info: BootloaderInfo, start: int) -> None:
        """bootloader_utility_load_boot_image: ``start`` and down to factory, then up, then test."""
        count = self.state.app_count
        for index in (*range(start, _FACTORY_INDEX - 1, -1), *range(start + 1, count)):
            partition = self.state.partition(index)
            if partition is None:
                continue
            verdict = self.try_load_partition(info, partition)
            if verdict.never_returns:
                return
            if verdict.is_bootable:
                self.set_actual_ota_seq(index)
                self.load_image(info, partition)
                return
            name = "Factory app partition"
            if index != _FACTORY_INDEX:
                name = f"OTA app partition slot {index}"
            self.log.error("boot", f"{name} is not bootable")
        test = self.state.test
        verdict_of_test = self.try_load_partition(info, test) if test and test.size else None
        if verdict_of_test and verdict_of_test.never_returns:
            return
        if test and verdict_of_test and verdict_of_test.is_bootable:
            self.log.warning("boot", "Falling back to test app as only bootable partition")
            self.load_image(info, test)
            return
        self.log.fail(
            Cause.NO_BOOTABLE_APP, "boot", "No bootable app partitions in the partition table"
        )

    def try_load_partition(self, info: BootloaderInfo, partition: Partition) -> ImageVerdict:
        verdict = verify_image(self.flash, partition.offset, partition.size, info)
        self.verdicts.append((partition, verdict))
        self.log.lines += verdict.lines
        self.log.faults += verdict.faults
        if verdict.is_bootable:
            text = f"Loaded app from partition at offset 0x{partition.offset:x}"
            self.log.info("boot", text)
        return verdict

    def set_actual_ota_seq(self, index: int) -> None:
        """Blank otadata, and no factory: select the slot that was found to boot."""
        if index > _FACTORY_INDEX and self.has_initial_otadata and self.state.ota_info:
            record = OtaRecord.selecting(index + 1, OtaState.VALID)
            self.write_otadata(self.state.ota_info, 0, record)
            self.log.info("boot", f"Set actual ota_seq={index + 1} in otadata[0]")

    def load_image(self, info: BootloaderInfo, partition: Partition) -> None:
        """load_image and unpack_load_app: map the flash segments, and jump."""
        self.log.info("boot", "Disabling RNG early entropy source...")
        self.starts = partition
        if info.memory.is_one_bus:
            return  # DROM and IROM are one range: these bootloaders do not warn
        segments = self.verdicts[-1][1].segments
        mapped = {
            name: [s for s in segments if s.load_addr in region]
            for name, region in zip(("DROM", "IROM"), info.memory.mapped, strict=True)
        }
        for segment in segments:
            for name, found in mapped.items():
                if segment in found[1:]:
                    text = (
                        f"Image contains multiple {name} segments. "
                        "Only the last one will be mapped."
                    )
                    self.log.fail(Cause.TWO_MAPPED_SEGMENTS, "boot", text, count=len(found))

    # What is left behind

    def find_otadata(self) -> Partition | None:
        """The otadata partition of a table that was refused, whose records nobody has changed."""
        rows = _entries(self.read(self.table_offset, TABLE_SIZE))
        entries = [Partition.from_bytes(row) for row in rows if row[:2] == ENTRY_MAGIC]
        return next((entry for entry in entries if entry.is_otadata), None)

    def otadata_after(self, otadata: Partition | None) -> tuple[bytes, bytes] | None:
        if otadata is None:
            return None
        first, second = (
            self.read(otadata.offset + which * SECTOR_SIZE, RECORD_SIZE) for which in range(2)
        )
        return first, second


def _entries(table: bytes) -> list[bytes]:
    return [table[at : at + ENTRY_SIZE] for at in range(0, len(table), ENTRY_SIZE)]
