"""Table to table: what `mpota resize` does to a partition table, as pure functions.

A `Layout` is a table on its way: every edit returns a new one, `origins` remembers which old
partition each content comes from, and `check` tells whether the result may be written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from mpota.errors import MpotaError, UsageError
from mpota.formats.micropython import VFS, Release, makes_vfs, root_labels
from mpota.formats.otadata import OTADATA_SIZE
from mpota.formats.partition_table import (
    APP,
    DATA,
    DATA_NVS,
    DATA_OTA,
    DEFAULT_TABLE_OFFSET,
    FACTORY,
    MAX_NEW_LABEL_SIZE,
    NVS_MIN_SIZE,
    OTA_0,
    SUBTYPES,
    Partition,
    PartitionTable,
    offset_alignment,
)
from mpota.units import BLOCK_SIZE, SECTOR_SIZE, KiB, MiB, align_down, align_up, format_flash_size

LAYOUTS = ("single", "ota", "romfs")
ROMFS_SUBTYPE = 0x8F  # MicroPython: ports/esp32/partitions-4MiB-romfs.csv
FAT_SUBTYPE = 0x81  # MicroPython's own tables say "fat" for its file system, littlefs too

MIN_FILE_SYSTEM_SIZE = 64 * KiB
# MicroPython gives its apps this much where the flash has room for it:
# ports/esp32/partitions-8MiBplus-ota.csv.
_ROOMY_FLASH_SIZE = 8 * MiB
_ROOMY_APP_SIZE = 0x270000
_USUAL_APP_SIZE = 0x180000  # ports/esp32/partitions-4MiB-ota.csv
_ROMFS_SIZE = 0x20000

# Subtypes of labels that are no subtype's name, as in mp-image-tool-esp32's table strings.
_USUAL_SUBTYPES = {"otadata": "ota", "vfs": "fat", "phy_init": "phy", "romfs": "0x8f"}


@dataclass(frozen=True)
class Layout:
    """A partition table, the flash it is for, and where its contents come from.

    ``origins`` maps labels to partitions of the table that was there first; a label that is not
    in it starts blank. ``app`` is the old partition of the app that has to run afterwards too,
    ``app_size`` its bytes. ``release`` is MicroPython's in it, None: nothing tells it.
    """

    table: PartitionTable
    flash_size: int
    app: Partition | None = None
    app_size: int = 0
    table_offset: int = DEFAULT_TABLE_OFFSET
    origins: Mapping[str, Partition] | None = None
    release: Release | None = None

    @property
    def sources(self) -> Mapping[str, Partition]:
        """`origins`, for a layout without edits every partition's own."""
        return {p.label: p for p in self.table} if self.origins is None else self.origins

    @property
    def first_offset(self) -> int:
        """The first flash address behind the table."""
        return self.table_offset + SECTOR_SIZE

    @property
    def file_system(self) -> Partition | None:
        """The file system that ends the table: the one that takes what others leave.

        None also where MicroPython takes the flash behind it for a file system of its own.
        """
        last = max(self.table, key=lambda p: p.offset, default=None)
        if last is None or not last.is_file_system:
            return None
        has_root = self.has_root or self.release is None or not makes_vfs(self.release)
        return last if has_root else None

    @property
    def has_root(self) -> bool:
        """MicroPython mounts one of the entries at ``/``."""
        return find_root(self.table, self.release) is not None

    def files_room(self, flash_size: int) -> int:
        """Bytes of what MicroPython mounts at ``/`` in a flash of that size, 0 if it has none."""
        root = find_root(self.table, self.release)
        root = root or unlisted_vfs(self.table, flash_size, self.release)
        return root.size if root else 0

    def check(self) -> None:
        """Raises MpotaError if the table breaks a rule or does not fit the flash."""
        self.table.check(self.flash_size, self.table_offset)

    def resize_flash(self, flash_size: int) -> Layout:
        """For another flash: the file system that ends the table grows or shrinks with it.

        Raises MpotaError if what is in front of the file system does not fit.
        """
        layout = replace(self, flash_size=flash_size)
        file_system = self.file_system
        if file_system is None or file_system.end == flash_size:
            layout.check()
            return layout
        size = align_down(flash_size, SECTOR_SIZE) - file_system.offset
        if size < MIN_FILE_SYSTEM_SIZE:
            raise MpotaError(
                f"partition '{file_system.label}' starts at {file_system.offset:#x}: a flash of "
                f"{flash_size:#x} bytes leaves {max(size, 0):#x} for it, "
                f"a file system needs {MIN_FILE_SYSTEM_SIZE:#x}"
            )
        return layout._with(_replaced(self.table, file_system, replace(file_system, size=size)))

    def delete(self, label: str) -> Layout:
        """Without the partition ``label``; its place stays free. Raises MpotaError if unknown."""
        gone = self.table[label]
        return self._with(p for p in self.table if p != gone)

    def rename(self, old: str, new: str) -> Layout:
        """Raises MpotaError if there is no ``old``, UsageError if ``new`` is no name or taken."""
        partition = self.table[old]
        _check_label(new)
        if old != new and self.table.find(new):
            raise UsageError(f"cannot rename '{old}': there is a partition '{new}' already")
        sources = {(new if label == old else label): p for label, p in self.sources.items()}
        table = _replaced(self.table, partition, replace(partition, label=new))
        return replace(self._with(table), origins=sources)

    def set_size(self, label: str, size: int) -> Layout:
        """With partition ``label`` of ``size`` bytes; 0 takes all that is free behind it.

        Partitions that are in the way move up; the file system that ends the table gives up what
        is then beyond the flash. Raises MpotaError if that is not enough, UsageError for a size
        that is no multiple of 4 KiB.
        """
        target = self.table[label]
        _check_aligned(size, f"size of '{label}'")
        behind = sorted((p for p in self.table if p.offset > target.offset), key=_by_offset)
        if size == 0:
            size = (behind[0].offset if behind else self.flash_size) - target.offset
        moved = {target: replace(target, size=size)}
        end = moved[target].end
        if end > self.flash_size:
            raise MpotaError(
                f"partition '{label}' of {size:#x} bytes would end at {end:#x}, "
                f"the flash ends at {self.flash_size:#x}"
            )
        for partition in behind:
            offset = max(partition.offset, align_up(end, offset_alignment(partition.type)))
            moved[partition] = replace(partition, offset=offset)
            end = moved[partition].end
        layout = self._with(moved.get(p, p) for p in self.table)
        if end > self.flash_size and behind and behind[-1].is_file_system:
            layout = layout.resize_flash(self.flash_size)
        layout.check()
        return layout

    def add(self, label: str, subtype: str, size: int, offset: int | None = None) -> Layout:
        """With a new partition, at ``offset`` or in the first gap that holds it.

        ``subtype`` is a name or number, with the type in front where it is not obvious
        (``app/factory``, ``0x40/0x01``); empty: by the name. Size 0 takes the whole gap. Where
        there is no gap, the file system that ends the table gives up its end. Raises MpotaError
        if there is no room, UsageError for a name, size or offset that cannot be.
        """
        _check_label(label)
        if self.table.find(label):
            raise UsageError(f"cannot add '{label}': there is a partition of that name already")
        kind, number = parse_kind(subtype or _USUAL_SUBTYPES.get(label, label))
        _check_aligned(size, f"size of '{label}'")
        layout = self
        if offset is None:
            layout, offset, size = self._find_room(kind, size, label)
        elif size == 0:
            above = [p.offset for p in self.table if p.offset >= offset]
            size = min(above, default=self.flash_size) - offset
        new = Partition(label, kind, number, offset, size)
        added = layout._with(sorted((*layout.table, new), key=_by_offset))
        added = replace(added, origins=dict(layout.sources))
        added.check()
        return added

    def arrange(self, name: str, app_size: int | None = None) -> Layout:
        """The layout called ``name``: ``single``, ``ota`` or ``romfs``.

        Data partitions keep their order and size (nvs gives or takes the room of otadata); the
        app partitions become ``factory``, or ``ota_0`` and ``ota_1``, of ``app_size`` bytes each
        or sized for the app with room to grow; the file system gets the rest. Raises MpotaError
        if that does not fit, UsageError for another name.
        """
        if name not in LAYOUTS:
            raise UsageError(f"layout '{name}' is not one of {', '.join(LAYOUTS)}")
        head, apps_offset = self._head(is_ota=name == "ota")
        middle, file_system = self._tail(apps_offset, with_romfs=name == "romfs")
        count = 2 if name == "ota" else 1
        room = self.flash_size - apps_offset - sum(p.size for p in middle)
        size = self._slot_size(room, count, app_size)
        labels = ("ota_0", "ota_1") if name == "ota" else ("factory",)
        subtype = OTA_0 if name == "ota" else FACTORY
        end = apps_offset
        arranged = list(head)
        for index, label in enumerate(labels):
            arranged.append(Partition(label, APP, subtype + index, end, size))
            end += size
        for partition in middle:
            arranged.append(replace(partition, offset=end))
            end = arranged[-1].end
        arranged.append(replace(file_system, offset=end, size=self.flash_size - end))
        layout = replace(self._with(arranged), origins=self._app_origins(arranged))
        layout.check()
        return layout

    def use_table(self, table: PartitionTable) -> Layout:
        """A ready-made table: contents go where the labels are, the app to the first app.

        Raises MpotaError if the table does not fit the flash or has no app partition.
        """
        if not table.apps:
            raise MpotaError("the layout has no app partition")
        layout = replace(self, table=table, origins=self._app_origins(table.partitions))
        layout.check()
        return layout

    def _with(self, partitions: Iterable[Partition]) -> Layout:
        table = PartitionTable(tuple(partitions), self.table.has_md5)
        labels = {p.label for p in table}
        sources = {label: p for label, p in self.sources.items() if label in labels}
        return replace(self, table=table, origins=sources)

    def _app_origins(self, new: Iterable[Partition]) -> dict[str, Partition]:
        """Old contents for new partitions: by label; the first app partition gets the app."""
        new = tuple(new)
        sources = self.sources
        origins = {
            p.label: sources[p.label]
            for p in new
            if p.label in sources and sources[p.label].type == p.type
        }
        apps = [p for p in new if p.is_app]
        if self.app is not None and self.app not in [origins.get(p.label) for p in apps]:
            origins[apps[0].label] = self.app
        return origins

    def _head(self, *, is_ota: bool) -> tuple[list[Partition], int]:
        """The data partitions in front of the apps, with or without otadata; where apps start."""
        apps_offset = min((p.offset for p in self.table.apps), default=2 * BLOCK_SIZE)
        old = sorted(
            (p for p in self.table if not p.is_app and p.offset < apps_offset), key=_by_offset
        )
        head = [p for p in old if not p.is_otadata]
        otadata = self.table.otadata
        if is_ota and otadata is not None and otadata in old:
            return old, apps_offset
        if is_ota:
            return _with_otadata(head, self.first_offset, apps_offset)
        if otadata is None or otadata not in old:
            return head, apps_offset
        return _grown_over(head, otadata), apps_offset

    def _tail(self, apps_offset: int, *, with_romfs: bool) -> tuple[list[Partition], Partition]:
        """Data partitions behind the apps that keep their size, and the file system."""
        behind = sorted(
            (p for p in self.table if not p.is_app and p.offset > apps_offset), key=_by_offset
        )
        behind = [p for p in behind if not p.is_otadata]
        file_systems = [p for p in behind if p.is_file_system]
        if self.release is not None and not self.has_root:
            file_systems = []  # MicroPython mounts none of them
        file_system = file_systems[-1] if file_systems else None
        middle = [p for p in behind if p is not file_system]
        if with_romfs and not any(p.subtype == ROMFS_SUBTYPE for p in middle):
            middle.insert(0, Partition("romfs", DATA, ROMFS_SUBTYPE, 0, _ROMFS_SIZE))
        return middle, file_system or Partition(VFS, DATA, FAT_SUBTYPE, 0, 0)

    def _slot_size(self, room: int, count: int, app_size: int | None) -> int:
        """Bytes for each of ``count`` app partitions in ``room`` bytes, the file system included.

        Room to grow is a quarter of the app, and at least what MicroPython's own tables have; an
        eighth of the flash stays with the file system unless the app needs it.
        """
        needed = align_up(self.app_size, BLOCK_SIZE)
        if app_size is not None:
            _check_aligned(app_size, "app size")
            if app_size < self.app_size:
                raise MpotaError(
                    f"app image is {self.app_size:,} bytes, an app size of {app_size:#x} holds "
                    f"{app_size:,}: use --app-size {needed:#x} or more"
                )
            if count > 1 and app_size % BLOCK_SIZE:
                raise UsageError(
                    f"app size {app_size:#x} is not a multiple of {BLOCK_SIZE:#x}, "
                    "at which app partitions start"
                )
            size = app_size
        else:
            usual = _ROOMY_APP_SIZE if self.flash_size >= _ROOMY_FLASH_SIZE else _USUAL_APP_SIZE
            wanted = max(align_down(self.app_size * 5 // 4, BLOCK_SIZE), usual)
            fair = align_down((room - self.flash_size // 8) // count, BLOCK_SIZE)
            size = max(needed, min(wanted, fair))
        total = count * size + MIN_FILE_SYSTEM_SIZE
        if total > room:
            raise MpotaError(
                f"{count} app partition{'s' * (count > 1)} of {size:#x} and a file system of at "
                f"least {MIN_FILE_SYSTEM_SIZE:#x} need {total:#x} bytes, "
                f"{format_flash_size(self.flash_size)} of flash leave {max(room, 0):#x}",
                "use a larger flash (-f), or a smaller --app-size if the app allows",
            )
        return size

    def _find_room(self, kind: int, size: int, label: str) -> tuple[Layout, int, int]:
        """A place for a new partition: this layout or one with a smaller file system."""
        alignment = offset_alignment(kind)
        taken = sorted(((p.offset, p.end) for p in self.table), key=lambda place: place[0])
        start = self.first_offset
        for offset, end in (*taken, (self.flash_size, self.flash_size)):
            start = align_up(start, alignment)
            if offset - start >= max(size, SECTOR_SIZE):
                return self, start, size or offset - start
            start = max(start, end)
        file_system = self.file_system
        if file_system is not None and size:
            offset = align_down(file_system.end - size, alignment)
            left = offset - file_system.offset
            if left >= MIN_FILE_SYSTEM_SIZE:
                return self.set_size(file_system.label, left), offset, size
        raise MpotaError(
            f"no room for partition '{label}' of {size:#x} bytes in a flash of "
            f"{self.flash_size:#x}",
            "make another partition smaller with --set, or use a larger flash (-f)",
        )


class NewPartition(NamedTuple):
    """A partition to add: see `Layout.add`."""

    label: str
    subtype: str
    size: int
    offset: int | None = None


class Edits(NamedTuple):
    """What to do to a layout, in this order; names are those of the table at that moment.

    ``arrange`` is the name of a layout, ``table`` a ready-made one; ``sizes`` and ``renames``
    are pairs. Sizes are in bytes, None leaves them as they are.
    """

    flash_size: int | None = None
    arrange: str | None = None
    table: PartitionTable | None = None
    app_size: int | None = None
    deletes: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()
    adds: tuple[NewPartition, ...] = ()

    def apply(self, layout: Layout) -> Layout:
        """The edited layout, checked. Raises MpotaError or UsageError, as the edits do."""
        if self.arrange or self.table:
            # In a smaller flash only the new table has to fit, not the old one that it replaces.
            layout = replace(layout, flash_size=self.flash_size or layout.flash_size)
        elif self.flash_size is not None:
            layout = layout.resize_flash(self.flash_size)
        if self.arrange:
            layout = layout.arrange(self.arrange, self.app_size)
        elif self.table:
            layout = layout.use_table(self.table)
        if self.app_size is not None and not self.arrange:
            for app in layout.table.apps:
                layout = layout.set_size(app.label, self.app_size)
        for label in self.deletes:
            layout = layout.delete(label)
        for old, new in self.renames:
            layout = layout.rename(old, new)
        for label, size in self.sizes:
            layout = layout.set_size(label, size)
        for new_partition in self.adds:
            layout = layout.add(
                new_partition.label,
                new_partition.subtype,
                new_partition.size,
                new_partition.offset,
            )
        layout.check()
        return layout


def parse_kind(text: str) -> tuple[int, int]:
    """Type and subtype of ``nvs``, ``ota_1``, ``data/nvs``, ``0x40/1`` or ``0x8f`` (data).

    Raises UsageError if it is none of these.
    """
    kind_text, _, subtype_text = text.rpartition("/")
    for kind, names in SUBTYPES.items():
        if subtype_text in names and kind_text in ("", _type_name(kind)):
            return kind, names[subtype_text]
    kinds = {_type_name(kind): kind for kind in SUBTYPES}
    try:
        kind = kinds[kind_text] if kind_text in kinds else int(kind_text or "1", 0)
        subtype = int(subtype_text, 0)
    except ValueError:
        known = ", ".join(name for names in (SUBTYPES[APP], SUBTYPES[DATA]) for name in names)
        raise UsageError(f"subtype '{text}' is neither a number nor one of {known}") from None
    if not 0 <= kind <= 0xFE or not 0 <= subtype <= 0xFF:
        raise UsageError(f"subtype '{text}': type 0 to 0xfe and subtype 0 to 0xff are possible")
    return kind, subtype


def _type_name(kind: int) -> str:
    return Partition("", kind, 0, 0, 0).type_name


def _with_otadata(
    head: list[Partition], first_offset: int, apps_offset: int
) -> tuple[list[Partition], int]:
    """Put otadata behind nvs: in a gap, else in nvs' end, else the apps start later."""
    otadata = Partition("otadata", DATA, DATA_OTA, 0, OTADATA_SIZE)
    end = first_offset
    for index, partition in enumerate([*head, None]):
        gap_end = partition.offset if partition is not None else apps_offset
        if gap_end - end >= OTADATA_SIZE:
            return [*head[:index], replace(otadata, offset=end), *head[index:]], apps_offset
        end = partition.end if partition is not None else end
    for index, nvs in enumerate(head):
        if (nvs.type, nvs.subtype) == (DATA, DATA_NVS) and nvs.size - OTADATA_SIZE >= NVS_MIN_SIZE:
            nvs = replace(nvs, size=nvs.size - OTADATA_SIZE)
            placed = replace(otadata, offset=nvs.end)
            return [*head[:index], nvs, placed, *head[index + 1 :]], apps_offset
    return [*head, replace(otadata, offset=end)], align_up(end + OTADATA_SIZE, BLOCK_SIZE)


def _grown_over(head: list[Partition], otadata: Partition) -> list[Partition]:
    """Without otadata: nvs takes its place back if it ends there."""
    return [
        replace(p, size=p.size + otadata.size)
        if (p.type, p.subtype, p.end) == (DATA, DATA_NVS, otadata.offset)
        else p
        for p in head
    ]


def _replaced(table: PartitionTable, old: Partition, new: Partition) -> list[Partition]:
    return [new if p == old else p for p in table]


def _by_offset(partition: Partition) -> int:
    return partition.offset


def _check_label(label: str) -> None:
    size = len(label.encode("utf-8", "surrogateescape"))
    if not 1 <= size <= MAX_NEW_LABEL_SIZE or not label.isprintable():
        raise UsageError(
            f"partition name '{label}' is {size} bytes, 1 to {MAX_NEW_LABEL_SIZE} printable ones "
            "are allowed"
        )


def _check_aligned(size: int, what: str) -> None:
    if size % SECTOR_SIZE:
        raise UsageError(
            f"{what} {size:#x} is not a multiple of {SECTOR_SIZE:#x}",
            f"use {align_up(size, SECTOR_SIZE):#x}",
        )


def find_root(table: Iterable[Partition], release: Release | None) -> Partition | None:
    """The entry that MicroPython mounts at ``/``, None if there is none."""
    found = {p.label: p for p in reversed(tuple(table)) if p.type == DATA}
    return next((found[label] for label in root_labels(release) if label in found), None)


def unlisted_vfs(
    table: Iterable[Partition], flash_size: int, release: Release | None
) -> Partition | None:
    """The partition that MicroPython adds at boot, if the table has none for its files.

    It takes all the flash behind the last entry (ports/esp32/main.c: boardctrl_startup).
    """
    partitions = tuple(table)
    if find_root(partitions, release) is not None or not makes_vfs(release):
        return None
    end = max((p.end for p in partitions), default=0)
    size = align_down(flash_size - end, SECTOR_SIZE)
    return Partition(VFS, DATA, FAT_SUBTYPE, end, size) if size > 0 else None
