"""What commands do to the flash of a live board: plans for changes, flash, ota, slots and erase.

Nothing here writes: a `Plan` is shown first, then `mpota.flashing.plan.carry_out` makes it true.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from mpota.bootloader.check import check_flash, require_app
from mpota.bootloader.slots import mark_slot, next_slot, place_of_next, select_slot
from mpota.edit.change import FirmwareChange
from mpota.errors import MpotaError
from mpota.firmware.changes import BOOTLOADER, TABLE, Change, Difference, order_changes
from mpota.firmware.firmware import App, Firmware
from mpota.firmware.on_board import board_firmware
from mpota.flashing.plan import Plan, make_plan
from mpota.formats.littlefs import Superblock
from mpota.formats.nvs import LOADED_STATES
from mpota.formats.otadata import OtaState
from mpota.formats.partition_table import DATA, DATA_NVS, Partition
from mpota.storage.board import BoardFlash
from mpota.storage.file import FileImage
from mpota.storage.memory import MemoryFlash
from mpota.units import BLOCK_SIZE, SECTOR_SIZE, align_up, format_flash_size


@dataclass(frozen=True)
class LiveChange:
    """What is about to happen to a board: ``summary`` in a line, and the plan."""

    summary: str
    plan: Plan
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = field(default=())


def plan_change(board: BoardFlash, change: FirmwareChange) -> LiveChange:
    """A change to the firmware on a board. Raises MpotaError if the board would not boot then."""
    plan = make_plan(board, change.changes, table_offset=change.table_offset)
    return LiveChange(change.summary, plan, change.differences, change.notes)


def plan_erase(
    board: BoardFlash, firmware: Firmware, labels: Sequence[str], *, force: bool = False
) -> LiveChange:
    """Partitions made blank, MicroPython's own ``vfs`` behind the table among them.

    Raises MpotaError for an unknown one and, unless ``force``, if nothing would boot afterwards.
    """
    unlisted = firmware.unlisted_vfs(board.size)
    known = {unlisted.label: unlisted} if unlisted else {}
    changes = [_blank(known.get(label) or firmware.table[label]) for label in labels]
    plan = make_plan(board, changes, table_offset=firmware.table_offset, must_boot=not force)
    return LiveChange("erase " + ", ".join(labels), plan)


def plan_ota(
    board: BoardFlash, firmware: Firmware, app: App, *, is_confirmed: bool = False
) -> LiveChange:
    """An OTA update: ``app`` into the slot behind the one that boots, then otadata.

    otadata becomes what ``Partition.set_boot()`` writes; with ``is_confirmed`` the new app counts
    as confirmed at once, and no rollback follows. Raises MpotaError if the table has no slot for
    it, or the bootloader would not boot it.
    """
    slot = next_slot(firmware, board.size)
    if app.size > slot.size:
        raise MpotaError(
            f"app image is {app.size:,} bytes, slot {slot.label} holds {slot.size:,}",
            f"mpota resize {board.name} --app-size {align_up(app.size, BLOCK_SIZE):#x}",
        )
    require_app(app.to_bytes(), "app", firmware, slot)
    image = Change(slot.offset, align_up(app.size, SECTOR_SIZE), slot.label, app.to_bytes())
    changes = [image, select_slot(firmware, slot, is_confirmed=is_confirmed)]
    plan = make_plan(board, changes, table_offset=firmware.table_offset)
    if plan.boots_after != slot.label:
        raise MpotaError(f"the bootloader would start '{plan.boots_after}' instead of {slot.label}")
    return LiveChange(f"{slot.label}: {app.size:,} bytes", plan)


def plan_boot(board: BoardFlash, firmware: Firmware, label: str) -> LiveChange:
    """The app partition ``label`` selected, as ``Partition.set_boot()`` does.

    Raises MpotaError if there is none, or the bootloader would not start it.
    """
    target = firmware.table[label]
    change = select_slot(firmware, target)
    plan = make_plan(board, [change], table_offset=firmware.table_offset)
    if plan.boots_after != label:
        raise MpotaError(
            f"{board.name}: the bootloader would not start '{label}' but '{plan.boots_after}'",
            f"mpota slots {board.name} tells why",
        )
    return LiveChange(f"boot '{label}'", plan)


def plan_mark(board: BoardFlash, firmware: Firmware, state: OtaState) -> LiveChange:
    """What otadata selects marked VALID or INVALID.

    Raises MpotaError if nothing is selected, or nothing would boot.
    """
    plan = make_plan(board, [mark_slot(firmware, state)], table_offset=firmware.table_offset)
    return LiveChange(f"mark {state.name}", plan)


def plan_flash(
    board: BoardFlash,
    firmware: Firmware,
    *,
    keeps_data: bool = True,
    force: bool = False,
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> LiveChange:
    """A firmware file onto a board: bootloader, table, apps, and otadata as in the file.

    nvs, file systems and other data that the file has no bytes for are kept where the board has
    them at the same place, if ``keeps_data``; else the plan is for a flash that is erased before.
    ``files``: contents of other data partitions by label (files.py). Raises MpotaError as
    `check_flashable`.
    """
    check_flashable(board, firmware, force=force)
    old = firmware_on(board, firmware.table_offset) if keeps_data else None
    data = [
        replace(change, data=files[change.what]) if change.what in files else change
        for change in _data_changes(board, firmware, old, keeps_data=keeps_data)
    ]
    changes = [*_app_changes(firmware), *data, *_fixed_changes(firmware)]
    grows = old is None or firmware.flash_size >= old.flash_size
    live = place_of_next(old, board.size) if old else (0, 0)
    ordered = list(order_changes(changes, live, grows=grows))
    if old is not None and old.table == firmware.table:
        # Until the new app is complete, what otadata selects now goes on booting.
        otadata = firmware.table.otadata
        ordered.sort(key=lambda change: otadata is not None and change.what == otadata.label)
    flash = board if keeps_data else MemoryFlash(FileImage(0, b""), board.size)
    plan = make_plan(flash, ordered, table_offset=firmware.table_offset, must_boot=not force)
    size = format_flash_size(firmware.flash_size)
    first = "" if keeps_data else f"; first all {format_flash_size(board.size)} are erased"
    return LiveChange(
        f"{firmware.name}: {firmware.chip.title}, {size}{first}",
        plan,
        notes=tuple(_flash_notes(board, firmware, changes, files)),
    )


def check_flashable(board: BoardFlash, firmware: Firmware, *, force: bool = False) -> None:
    """Raises MpotaError for another chip, a flash that is too small, or a firmware that would not
    boot (unless ``force``)."""
    if firmware.chip != board.chip:
        raise MpotaError(
            f"{firmware.name} is for {firmware.chip.title}, on {board.name} is {board.chip.title}"
        )
    if firmware.flash_size > board.size:
        raise MpotaError(
            f"{firmware.name} is made for {format_flash_size(firmware.flash_size)} of flash, "
            f"the board has {format_flash_size(board.size)}",
            "use --fit to resize it on the fly",
        )
    check = check_flash(
        firmware.flash,
        table_offset=firmware.table_offset,
        chip_revision=board.chip_revision,
        block_revision=board.block_revision,
    )
    if not check.is_ok and not force:
        # An app's own fault says more than "nothing boots".
        causes = sorted(check.findings, key=lambda found: found.where == "boot")
        cause = causes[0].cause if causes else "nothing boots"
        raise MpotaError(
            f"{firmware.name} would not boot: {cause}", f"mpota check {firmware.name}; or --force"
        )


# --- flash ---------------------------------------------------------------------------------------


def firmware_on(board: BoardFlash, table_offset: int) -> Firmware | None:
    """The firmware on a board; None if there is none that can be told."""
    try:
        return board_firmware(board, table_offset)
    except MpotaError:
        return None


def _app_changes(firmware: Firmware) -> Iterator[Change]:
    for partition in firmware.table.apps:
        if not firmware.is_blank(partition):
            data = firmware.content(partition)
            yield Change(partition.offset, align_up(len(data), SECTOR_SIZE), partition.label, data)


def _data_changes(
    board: BoardFlash, firmware: Firmware, old: Firmware | None, *, keeps_data: bool
) -> Iterator[Change]:
    """Writes of what the file has bytes for; erases where the board holds anything foreign."""
    for partition in _data_partitions(firmware, board.size):
        data = firmware.flash.read(partition.offset, partition.size).rstrip(b"\xff")
        is_kept = keeps_data and not partition.is_otadata and _is_kept(board, partition, old)
        if data or not is_kept:
            size = align_up(partition.end, SECTOR_SIZE) - partition.offset
            yield Change(partition.offset, size, partition.label, data)


def _fixed_changes(firmware: Firmware) -> Iterator[Change]:
    """The table's sector and all that stands from the bootloader to it, signatures included."""
    start, end = firmware.chip.bootloader_offset, firmware.table_offset
    bootloader = firmware.flash.read(start, end - start).rstrip(b"\xff")
    yield Change(start, align_up(len(bootloader), SECTOR_SIZE), BOOTLOADER, bootloader)
    table = firmware.flash.read(end, SECTOR_SIZE).rstrip(b"\xff")
    yield Change(end, SECTOR_SIZE, TABLE, table)


def _data_partitions(firmware: Firmware, flash_size: int) -> Iterator[Partition]:
    """All partitions but the apps, and the file system that MicroPython adds behind the table."""
    yield from (p for p in firmware.table if p.type == DATA)
    unlisted = firmware.unlisted_vfs(flash_size)
    if unlisted is not None:
        yield unlisted


def _is_kept(board: BoardFlash, partition: Partition, old: Firmware | None) -> bool:
    if old is None:
        # An interrupted `flash` may have cost the table, and left the data whole.
        return _holds_own_content(board, partition)
    return partition in _data_partitions(old, board.size)


def _holds_own_content(board: BoardFlash, partition: Partition) -> bool:
    """Whether the board holds an nvs or a file system there that was made for this partition."""
    head = board.read(partition.offset, SECTOR_SIZE)
    if (partition.type, partition.subtype) == (DATA, DATA_NVS):
        return int.from_bytes(head[:4], "little") in LOADED_STATES
    superblock = Superblock.at_start(head)
    if superblock is not None:
        return superblock.size == partition.size
    return head[510:512] == b"\x55\xaa"


def _flash_notes(
    board: BoardFlash, firmware: Firmware, changes: Iterable[Change], moved: Iterable[str]
) -> Iterator[str]:
    if firmware.flash_size < board.size:
        yield (
            f"the firmware uses {format_flash_size(firmware.flash_size)} of "
            f"{format_flash_size(board.size)} of flash: --fit makes it use all"
        )
    if firmware.table.ota_trouble:
        yield firmware.table.ota_trouble
    if moved:
        yield f"files kept, at their new place: {', '.join(moved)}"
    written = {change.what for change in changes}
    kept = [
        p.label
        for p in _data_partitions(firmware, board.size)
        if p.label not in written and board.read(p.offset, SECTOR_SIZE).strip(b"\xff")
    ]
    if kept:
        yield f"kept: {', '.join(kept)} (--erase erases all)"


def _blank(partition: Partition) -> Change:
    return Change(partition.offset, align_up(partition.size, SECTOR_SIZE), partition.label)
