"""What is on a board's flash: the app in a slot, the files, and whether they belong together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mpota.errors import MpotaError
from mpota.filesystem.volumes import Volumes
from mpota.firmware.firmware import App, Firmware
from mpota.formats.otadata import OtaState, active_record, parse_otadata
from mpota.formats.partition_table import Partition
from mpota.storage.file import FileImage

HOME = "/.ota/"
TREES = HOME + "trees/"
NO_TREE = ""


@dataclass(frozen=True)
class Sight:
    """A board at rest. ``app``: SHA-256 (hex) of the app in slot ``label``, None if none is whole;
    ``size``: its bytes. ``files``: path -> SHA-256, None if the file system cannot be read, for
    which ``damage`` is the reason. ``tree``: the digest of the release that belongs to the app.
    """

    label: str | None
    app: str | None
    size: int
    files: Mapping[str, str] | None = field(repr=False)
    damage: str
    tree: str
    tree_path: str
    is_confirmed: bool

    @property
    def pair(self) -> tuple[str | None, str]:
        """App and tree, which have to be of one release."""
        return self.app, self.tree

    @property
    def tree_files(self) -> dict[str, str]:
        """The files of the release, by their names in it."""
        if not self.tree_path or self.files is None:
            return {}
        start = self.tree_path + "/"
        return {p.removeprefix(start): d for p, d in self.files.items() if p.startswith(start)}


def look(content: bytes, label: str | None, table_offset: int) -> Sight:
    """What a board shows that has this flash and runs the app in ``label``."""
    firmware = Firmware.from_flash(FileImage(0, content), "board", table_offset)
    slot = next((p for p in firmware.table.apps if p.label == label), None)
    app, size = (None, 0) if slot is None else _app(content, slot)
    records, files, damage = _read_files(firmware, content)
    record = records.get(f"{HOME}{slot.offset:x}", {}) if slot else {}
    release, is_trial = _release(record)
    name = release.get("tree")
    return Sight(
        label,
        app,
        size,
        files,
        damage,
        str(release.get("sha256", NO_TREE)) if name else NO_TREE,
        TREES + str(name) if name else "",
        not is_trial and _is_confirmed(firmware),
    )


def is_confirmed(content: bytes, label: str | None, table_offset: int) -> bool:
    """Whether nothing is on trial there, app or files."""
    return look(content, label, table_offset).is_confirmed


def _app(content: bytes, slot: Partition) -> tuple[str | None, int]:
    try:
        app = App.from_bytes(content[slot.offset : slot.end])
    except MpotaError:
        return None, 0
    data = app.to_bytes()
    return hashlib.sha256(data).hexdigest(), len(data)


def _release(record: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """The release of the running app by its ``record`` (device/ota/boot.py), whether on trial."""
    is_trial = "next" in record
    found = record.get("next" if record.get("tried") else "now", {})
    return (found if isinstance(found, dict) else {}), is_trial


def _is_confirmed(firmware: Firmware) -> bool:
    partition = firmware.table.otadata
    if partition is None:
        return True
    records = parse_otadata(firmware.read(partition))
    active = active_record(records)
    if active is None:
        return True
    return records[active].ota_state not in (OtaState.NEW, OtaState.PENDING_VERIFY)


def _read_files(
    firmware: Firmware, content: bytes
) -> tuple[dict[str, dict[str, Any]], dict[str, str] | None, str]:
    """The records of `ota`, the digests of all files, and what is damaged."""
    records: dict[str, dict[str, Any]] = {}
    files: dict[str, str] = {}
    try:
        volumes = Volumes.of_firmware(firmware, _ReadOnly(content))
        if not volumes.partitions:
            return {}, {}, ""
        file_system = volumes.file_system()
        for path, entry in file_system.volume.walk():
            if entry.is_dir:
                continue
            data = file_system.read(path)
            files[path] = hashlib.sha256(data).hexdigest()
            if path.startswith(HOME) and "/" not in path.removeprefix(HOME):
                records[path] = _record(data)
    except MpotaError as error:
        return {}, None, str(error)
    return records, files, "; ".join(file_system.problems)


def _record(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class _ReadOnly:
    """A flash (`mpota.storage.Flash`) that nothing changes."""

    chip_revision: int | None = None
    block_revision: int | None = None

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    def read(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]

    def erase(self, offset: int, size: int) -> None:
        raise AssertionError("only looked at")

    def write(self, offset: int, data: bytes) -> None:
        raise AssertionError("only looked at")
