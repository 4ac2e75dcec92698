"""What a resize keeps: files, in file systems fitted to their new places; on a board nvs, and which
app boots.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from mpota.errors import MpotaError
from mpota.firmware.changes import Change, Difference
from mpota.firmware.firmware import Firmware
from mpota.firmware.layout import Layout
from mpota.formats.otadata import OtaRecord, OtaState
from mpota.formats.partition_table import DATA, DATA_NVS, Partition
from mpota.units import SECTOR_SIZE, align_down


class Kept(NamedTuple):
    """Contents for partitions of the new table by label, and changes for places without an entry.

    ``labels`` are the file systems whose files are kept, ``whole`` partitions kept as they are.
    """

    contents: Mapping[str, bytes] = MappingProxyType({})
    changes: tuple[Change, ...] = ()
    labels: frozenset[str] = frozenset()
    whole: frozenset[str] = frozenset()

    def tell(self, rows: Iterable[Difference]) -> tuple[Difference, ...]:
        """``rows`` of `mpota.firmware.changes.differences`, with what is kept added to them."""
        return tuple(self._told(row) for row in rows)

    def _told(self, row: Difference) -> Difference:
        if row.new is not None and row.new.label in self.whole:
            told = ("content kept" if e == "content reset" else e for e in row.effects)
            return row._replace(effects=tuple(told))
        if row.new is None or row.new.label not in self.labels:
            return row
        lost = ("content reset", "added, blank")
        effects = tuple(effect for effect in row.effects if effect not in lost)
        return row._replace(effects=(*effects, "files kept"))


def kept_on_board(firmware: Firmware, layout: Layout, board_size: int, *, keep_files: bool) -> Kept:
    """What has to be written so that a board keeps its files, its nvs where that fits, and the
    app that boots, as far as ``layout`` allows.

    ``board_size`` are the bytes of its flash chip. Raises MpotaError as `kept_files` does.
    """
    files = kept_files(firmware, layout, board_size, keep_files=keep_files)
    nvs = _kept_nvs(firmware, layout)
    contents = {**files.contents, **nvs, **_otadata_for(firmware, layout)}
    return files._replace(contents=contents, whole=frozenset(nvs))


def kept_files(firmware: Firmware, layout: Layout, flash_size: int, *, keep_files: bool) -> Kept:
    """What has to be written so that the file systems that ``layout`` moves keep their files.

    ``flash_size`` is what MicroPython will see. A file system goes where its label goes, and the
    one that MicroPython puts behind a table without ``vfs`` counts as such. Raises MpotaError if
    one of them is no intact littlefs, or if its files do not fit. Without ``keep_files`` they
    become blank, the one that the table has no entry for as well.
    """
    if not keep_files and firmware.flash.end <= firmware.table.end:
        return Kept()  # partitions that move are blanked by the change of the table anyway
    from mpota.filesystem.block_device import MemoryDevice, is_blank

    contents: dict[str, bytes] = {}
    changes: list[Change] = []
    for old, new in _moves(firmware, layout, flash_size):
        size = align_down(new.size, SECTOR_SIZE)
        data = firmware.read(old)[: align_down(old.size, SECTOR_SIZE)]
        name = f"{firmware.name}: partition '{old.label}'"
        if is_blank(MemoryDevice(len(data), data, name)):
            continue
        try:
            fitted = _migrated(data, size, name) if keep_files else b""
        except MpotaError as error:
            raise MpotaError(f"files cannot be kept: {error}", _hint(error)) from None
        if layout.table.find(new.label):
            contents[new.label] = fitted
        else:
            changes.append(Change(new.offset, size, new.label, fitted))
    labels = [] if not keep_files else [*contents, *(change.what for change in changes)]
    return Kept(contents, tuple(changes), frozenset(labels))


def _hint(error: MpotaError) -> str | None:
    from mpota.filesystem.littlefs import FAT, OtherContentError

    if isinstance(error, OtherContentError) and error.kind == FAT:
        return error.hint  # MicroPython mounts it: no advice to give its files up
    return "--drop-files makes the file system blank"


def _migrated(data: bytes, size: int, name: str) -> bytes:
    from mpota.filesystem.littlefs import migrate

    return migrate(data, size, name).rstrip(b"\xff")


def _moves(
    firmware: Firmware, layout: Layout, flash_size: int
) -> Iterator[tuple[Partition, Partition]]:
    """Old and new place of every file system that does not stay as it is."""
    from mpota.filesystem.volumes import is_volume
    from mpota.firmware.layout import unlisted_vfs

    old_vfs = firmware.unlisted_vfs(max(firmware.flash_size, firmware.flash.end))
    new_vfs = unlisted_vfs(layout.table, flash_size, layout.release)
    for new in (*layout.table, *([new_vfs] if new_vfs else [])):
        old = layout.sources.get(new.label)
        if old is None and old_vfs is not None and new.label == old_vfs.label:
            old = old_vfs
        if old is None or (old.offset, old.size) == (new.offset, new.size):
            continue
        if old == old_vfs or is_volume(firmware.flash, old):
            yield old, new


def _otadata_for(firmware: Firmware, layout: Layout) -> dict[str, bytes]:
    """otadata for the new table, so that the app that boots now boots afterwards.

    A file gets it blank; on a board the slot that an update filled must not be forgotten.
    """
    otadata, slots = layout.table.otadata, layout.table.slots
    if otadata is None or firmware.table.otadata is None:
        return {}
    if [layout.sources.get(slot.label) for slot in slots] == list(firmware.table.slots):
        return {otadata.label: firmware.read(firmware.table.otadata)}
    app = firmware.app_partition
    index = next((i for i, s in enumerate(slots) if layout.sources.get(s.label) == app), None)
    has_factory = any(p.is_app and p.slot is None for p in layout.table)
    if index is None or (index == 0 and not has_factory):
        return {}  # the same app boots with blank otadata
    return {otadata.label: OtaRecord.selecting(index + 1, OtaState.VALID).to_bytes()}


def _kept_nvs(firmware: Firmware, layout: Layout) -> dict[str, bytes]:
    """The contents of an nvs that changes its size, where what is used of it fits."""
    kept = {}
    for new in layout.table:
        old = layout.sources.get(new.label)
        if old is None or (new.type, new.subtype) != (DATA, DATA_NVS) or old == new:
            continue
        data = firmware.read(old).rstrip(b"\xff")
        if data and _nvs_fits(data, new.size):
            kept[new.label] = data
    return kept


def _nvs_fits(data: bytes, size: int) -> bool:
    """Whether the used pages fit, and a blank one, which NVS needs (nvs_pagemanager.cpp).

    Pages are independent of each other, so the rest may be cut off.
    """
    pages = (data[start : start + SECTOR_SIZE] for start in range(0, size, SECTOR_SIZE))
    return len(data) <= size and any(not page.strip(b"\xff") for page in pages)
