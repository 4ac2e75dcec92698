"""Contents of a firmware's partitions, and its bootloader: taken out and put in."""

from __future__ import annotations

from collections.abc import Mapping

from mpota.bootloader.check import require_app
from mpota.edit.change import FirmwareChange
from mpota.errors import MpotaError
from mpota.firmware.changes import BOOTLOADER, bootloader_change, changes_for
from mpota.firmware.firmware import Firmware
from mpota.firmware.layout import Layout
from mpota.formats.image import Image, signature_size
from mpota.formats.memory import is_app


def write_contents(firmware: Firmware, contents: Mapping[str, bytes]) -> FirmwareChange:
    """Put bytes into partitions by label, or a new bootloader under the name ``bootloader``.

    App partitions and the bootloader take only what will boot. Raises MpotaError otherwise.
    """
    layout = Layout(firmware.table, firmware.flash_size, table_offset=firmware.table_offset)
    partitions = {label: data for label, data in contents.items() if label != BOOTLOADER}
    for label, data in partitions.items():
        partition = firmware.table[label]
        if partition.is_app:
            require_app(data, label, firmware, partition)
    changes = [c for c in changes_for(firmware, layout, partitions) if c.what in partitions]
    if BOOTLOADER in contents:
        changes.append(bootloader_change(_new_bootloader(firmware, contents[BOOTLOADER])))
    summary = ", ".join(f"{label}: {len(data):,} bytes" for label, data in contents.items())
    return FirmwareChange(summary, tuple(changes), firmware.flash_size, firmware.table_offset)


def extract(firmware: Firmware, name: str | None = None) -> bytes:
    """The app image (``name`` None or an app partition's), a data partition's bytes, or the image
    under the name ``bootloader``.

    An app is cut to its exact length, signature included, and its digest checked. Raises
    MpotaError if it is damaged or the partition is unknown.
    """
    if name == BOOTLOADER and firmware.table.find(name) is None:
        firmware.bootloader.check(f"{firmware.name}: bootloader")
        return firmware.bootloader.data
    partition = firmware.app_partition if name is None else firmware.table[name]
    if partition.is_app:
        return firmware.app(partition).to_bytes()
    return firmware.read(partition)


def _new_bootloader(firmware: Firmware, data: bytes) -> Image:
    """``data`` as the firmware's new bootloader, its header set to the firmware's flash size."""
    image = Image.from_bytes(data)
    if signature_size(data, image.size):
        raise MpotaError(
            "bootloader is signed for Secure Boot: its flash size cannot be set, nor the signature "
            "kept",
            "write it as it is: `esptool write-flash`",
        )
    if data[image.size :].strip(b"\xff"):
        image = Firmware.from_bytes(data, BOOTLOADER).bootloader
    image.check(BOOTLOADER)
    if is_app(image.data):
        raise MpotaError("bootloader: the file is an app image")
    if image.chip != firmware.chip:
        raise MpotaError(
            f"bootloader is for {image.chip.title}, the firmware for {firmware.chip.title}"
        )
    room = firmware.table_offset - firmware.chip.bootloader_offset
    if image.size > room:
        raise MpotaError(
            f"bootloader is {image.size:,} bytes, in front of the partition table are {room:,}"
        )
    return image.with_flash_size(firmware.flash_size)
