"""What a bootloader will do with a firmware, or with an image somebody is about to install.

The verdict is `mpota.bootloader.boot`'s; here it gets a cause in plain words and a remedy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from mpota.bootloader.boot import (
    BootloaderInfo,
    BootResult,
    ImageVerdict,
    address_faults,
    boot,
    bootloader_info,
    find_bootloader,
    known_bootloader,
    verify_image,
)
from mpota.bootloader.findings import DOWNLOAD, EXTRACT, TABLE, Finding, finding
from mpota.errors import MpotaError
from mpota.firmware.firmware import Firmware, check_no_other, find_table_hint
from mpota.formats.app_desc import (
    APP_DESC_OFFSET,
    APP_DESC_SIZE,
    find_app_desc,
    find_micropython,
    has_rollback,
)
from mpota.formats.image import HEADER_SIZE, IMAGE_MAGIC, Image, ImageHeader
from mpota.formats.memory import is_app
from mpota.formats.partition_table import DEFAULT_TABLE_OFFSET, Partition, PartitionTable
from mpota.storage import FlashContents
from mpota.storage.file import FileImage
from mpota.storage.memory import MemoryFlash
from mpota.units import BLOCK_SIZE, MiB, align_up

_ALONE_OFFSET = BLOCK_SIZE  # flash address assumed for an image that comes without a firmware
_MAX_SLOT_SIZE = 16 * MiB
_MAX_BOOTLOADER_END = 0x20000


@dataclass(frozen=True)
class Slot:
    """An app partition and what the bootloader says of the image in it."""

    partition: Partition
    verdict: ImageVerdict
    data: bytes = field(repr=False)

    @property
    def is_blank(self) -> bool:
        return not self.data.strip(b"\xff")

    @property
    def is_app(self) -> bool:
        return is_app(self.data)

    @property
    def version(self) -> str | None:
        """MicroPython's version text, if the app boots and has one."""
        return find_micropython(self.data).version if self.verdict.is_bootable else None

    @property
    def digest(self) -> bytes | None:
        """What the image carries, if the app boots and carries one."""
        return Image.from_bytes(self.data).digest if self.verdict.is_bootable else None


@dataclass(frozen=True)
class Check:
    """The verdict: ``boots`` is the label of the app that would start, None if none would.

    ``console`` are the bootloader's error lines, ``otadata_after`` the two records as it leaves
    them. ``rollback`` tells whether the bootloader was built with app rollback, None if nothing
    tells: then the verdict assumes that it was, and ``boots_without_rollback`` that it was not.
    ``is_ok`` is False for contents that do not boot, or boot by luck.
    """

    boots: str | None
    console: tuple[str, ...]
    otadata_after: tuple[bytes, bytes] | None
    slots: tuple[Slot, ...]
    findings: tuple[Finding, ...]
    is_ok: bool
    log: tuple[str, ...] = field(default=(), repr=False)
    rollback: bool | None = None
    boots_without_rollback: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "boots": self.boots,
            "ok": self.is_ok,
            "rollback": self.rollback,
            "boots_without_rollback": self.boots_without_rollback,
            "console": list(self.console),
            "otadata_after": self.otadata_after and [r.hex() for r in self.otadata_after],
            "slots": [_slot_json(slot) for slot in self.slots],
            "findings": [vars(finding) for finding in self.findings],
        }


def check_flash(
    flash: FlashContents,
    *,
    flash_size: int | None = None,
    table_offset: int = DEFAULT_TABLE_OFFSET,
    is_file: bool = True,
    chip_revision: int | None = None,
    block_revision: int | None = None,
) -> Check:
    """What happens at power-on of a board with these flash contents.

    ``flash_size`` in bytes; None: what the bootloader's header declares, or as much as there is.
    ``chip_revision`` and ``block_revision`` as in `boot`. ``flash`` is only read. No content raises
    anything.
    """
    power_on = partial(
        boot,
        table_offset=table_offset,
        chip_revision=chip_revision,
        block_revision=block_revision,
    )
    size = _flash_size(flash, flash_size)
    memory = MemoryFlash(flash, size)
    result = power_on(memory)
    slots = tuple(_slots(memory, result))
    rollback = _rollback(result.bootloader, slots)
    plain = result if rollback else power_on(MemoryFlash(flash, size), rollback=False)
    if rollback is False:
        result = plain
    findings = [*_boot_findings(memory, result), *_slot_findings(slots, result)]
    if _label(plain) != _label(result):
        findings.append(_without_rollback(_label(plain)))
    if result.partitions:
        table = PartitionTable(result.partitions)
        findings += [Finding("table", f"odd: {o}", TABLE) for o in table.oddities(table_offset)]
    damage = _damage(flash, memory, result, table_offset) if is_file else None
    if damage is not None:
        findings.append(damage)
    return Check(
        _label(result),
        result.console,
        result.otadata_after,
        slots,
        tuple(findings),
        result.starts is not None and damage is None,
        result.printed,
        rollback,
        _label(plain) if not rollback else None,
    )


def _boot_findings(memory: MemoryFlash, result: BootResult) -> list[Finding]:
    """What is wrong with bootloader, table and otadata."""
    of_images = [id(fault) for _, verdict in result.verdicts for fault in verdict.faults]
    findings = [finding(f, "boot") for f in result.faults if id(f) not in of_images]
    if result.bootloader and not result.partitions:
        hint = find_table_hint(memory, memory.size)
        if hint is not None:
            return [replace(f, remedy=hint) for f in findings]
    return findings


def _slot_findings(slots: tuple[Slot, ...], result: BootResult) -> Iterator[Finding]:
    """What is wrong with the images; a blank slot matters only if it was selected in vain."""
    for slot in slots:
        if not slot.is_blank or (slot.partition == result.selected and not result.starts):
            for fault in slot.verdict.faults:
                yield finding(fault, slot.partition.label, is_app=slot.is_app)


def check_app(data: bytes, against: Firmware | None = None, slot: Partition | None = None) -> Check:
    """What the bootloader will say of ``data`` once it has been written into an app slot.

    ``against`` supplies the bootloader, whose own segments decide what memory is taken, and the
    slot, if ``slot`` is None: that of the next update. Without it a merged firmware's own
    bootloader does, or the chip's known regions. Raises MpotaError if ``data`` is no image of a
    known chip and there is no ``against``.
    """
    if against is not None:
        chip = against.flash
        info = bootloader_info(against.bootloader.data, chip.chip_revision, chip.block_revision)
        slot = slot or update_slot(against)
    else:
        info = likely_bootloader(data)
        slot = Partition("app", 0, 0, _ALONE_OFFSET, _MAX_SLOT_SIZE)
    image = FileImage(slot.offset, data)
    flash = MemoryFlash(image, max(info.flash_size or 0, slot.offset + _MAX_SLOT_SIZE))
    verdict = verify_image(flash, slot.offset, slot.size, info)
    checked = Slot(slot, verdict, data)
    findings = [finding(fault, slot.label, is_app=checked.is_app) for fault in verdict.faults]
    if not checked.is_app:
        findings += _collisions(data, info, checked)
    if verdict.is_bootable:
        findings += _tail_findings(data, slot)
    is_ok = verdict.is_bootable and not findings
    return Check(
        slot.label if verdict.is_bootable else None,
        verdict.console,
        None,
        (checked,),
        tuple(findings),
        is_ok,
    )


def require_app(data: bytes, what: str, against: Firmware, slot: Partition) -> None:
    """Raises MpotaError if ``data`` would not boot from ``slot``, in the bootloader's words, or if
    it is no image, saying what it is."""
    check_no_other(data, f"the file for {what}")
    check = check_app(data, against, slot)
    if not check.is_ok:
        words = f": {check.console[0]}" if check.console else ""
        finding = check.findings[0]
        raise MpotaError(f"{what}: {finding.cause}{words}", finding.remedy)


def update_slot(firmware: Firmware) -> Partition:
    """The slot that an update is written to: the one after the running app's, if there is another.

    esp_ota_ops.c: esp_ota_get_next_update_partition.
    """
    running, slots = firmware.app_partition, firmware.table.slots
    if running not in slots:
        return slots[0] if slots else running
    return slots[(slots.index(running) + 1) % len(slots)]


def likely_bootloader(data: bytes) -> BootloaderInfo:
    """The bootloader that will probably load ``data``: its own if it is a merged firmware, else
    the newest known of its chip.

    Raises MpotaError if ``data`` does not start with an image of a known chip.
    """
    if data[:1] != bytes([IMAGE_MAGIC]) or len(data) < HEADER_SIZE:
        raise MpotaError(
            f"image at {_ALONE_OFFSET:#x} has invalid magic byte (nothing flashed here?): "
            f"{len(data):,} bytes that start with {data[:4].hex(' ')}, images start with e9",
            "an app image is what `mpota extract` takes out of a firmware",
        )
    if not is_app(data):
        try:
            return bootloader_info(data)
        except MpotaError:
            pass  # its own bootloader is cut short
    header = ImageHeader.from_bytes(data[:HEADER_SIZE])
    return known_bootloader(header.chip, header.min_revision)


def _label(result: BootResult) -> str | None:
    return result.starts.label if result.starts else None


def _rollback(bootloader: BootloaderInfo | None, slots: tuple[Slot, ...]) -> bool | None:
    """Whether the bootloader was built with app rollback, as far as anything tells.

    MicroPython's builds tell by their version, and a bootloader that names the ESP-IDF release of
    such an app came with it. One that names none is older than v5.2: no other build goes with it.
    """
    known = None
    for slot in slots:
        has, desc = has_rollback(slot.version), find_app_desc(slot.data)
        if has is False:
            return False
        named = bootloader.idf_version if bootloader else None
        if has and (named is None or (desc is not None and desc.idf_ver == named)):
            known = True
    return known


def _without_rollback(boots: str | None) -> Finding:
    verdict = f"'{boots}' boots" if boots else "nothing boots"
    return Finding(
        "boot",
        "nothing tells whether this bootloader was built with app rollback: without it, " + verdict,
        "erase otadata, or mark what it selects: `mpota slots PORT --mark valid`",
    )


def _flash_size(flash: FlashContents, flash_size: int | None) -> int:
    known = MemoryFlash(flash, flash.end)
    found = find_bootloader(known)
    declared = 0
    if found is not None:
        header = ImageHeader.from_bytes(flash.read(found[1], HEADER_SIZE))
        declared = header.flash_size or 0
    return max(flash_size or declared, align_up(flash.end, BLOCK_SIZE))


def _slots(flash: MemoryFlash, result: BootResult) -> Iterator[Slot]:
    verdicts = {partition.offset: verdict for partition, verdict in result.verdicts}
    for partition in result.partitions:
        if not partition.is_app or result.bootloader is None:
            continue
        verdict = verdicts.get(partition.offset) or verify_image(
            flash, partition.offset, partition.size, result.bootloader
        )
        # A damaged segment header may claim gigabytes.
        size = min(max(verdict.image_size, APP_DESC_OFFSET + APP_DESC_SIZE), partition.size)
        size = max(0, min(size, flash.size - partition.offset))
        yield Slot(partition, verdict, flash.read(partition.offset, size))


def _damage(
    flash: FlashContents, memory: MemoryFlash, result: BootResult, table_offset: int
) -> Finding | None:
    """Damage that the bootloader overlooks: in itself, or a header that lost ``hash_appended``."""
    found = find_bootloader(memory)
    if found is None:
        return None
    try:
        room = min(memory.size, _MAX_BOOTLOADER_END) - found[1]
        Image.from_bytes(memory.read(found[1], room)).check("bootloader")
        is_dump = flash.base < found[1] or flash.end >= memory.size
        if result.starts is not None and not is_dump:
            Firmware.from_flash(flash, "file", table_offset).check_ends([result.starts])
    except MpotaError as error:
        return Finding("file", str(error).removeprefix("file: "), DOWNLOAD)
    return None


def _collisions(data: bytes, info: BootloaderInfo, slot: Slot) -> Iterator[Finding]:
    """Segments of an image that is no app which the bootloader would refuse as well."""
    try:
        segments = Image.from_bytes(data).segments
    except MpotaError:
        return
    for fault in address_faults(segments, info):
        if fault.text not in slot.verdict.console:
            yield Finding(slot.partition.label, f"also: {fault.text}", EXTRACT)


def _tail_findings(data: bytes, slot: Partition) -> list[Finding]:
    if len(data) <= slot.size:
        return []
    return [
        Finding(
            slot.label,
            f"the file is {len(data):,} bytes, slot {slot.label} holds {slot.size:,}",
            "use the app image alone: mpota extract",
        )
    ]


def _slot_json(slot: Slot) -> dict[str, Any]:
    return {
        "label": slot.partition.label,
        "offset": slot.partition.offset,
        "size": slot.partition.size,
        "bootable": slot.verdict.is_bootable,
        "blank": slot.is_blank,
        "image_size": slot.verdict.image_size,
        "version": slot.version,
        "console": list(slot.verdict.console),
    }
