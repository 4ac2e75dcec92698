"""A first installation from a web page: a directory for any static host.

The page is that of ESP Web Tools (https://esphome.github.io/esp-web-tools/), its manifest also what
ESPHome's ``update: http_request`` reads.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpota.bootloader.check import Check, check_flash
from mpota.errors import MpotaError, UsageError
from mpota.filesystem.block_device import is_blank
from mpota.filesystem.transfer import make_directories
from mpota.filesystem.volumes import Volumes
from mpota.firmware.firmware import Firmware, is_app_image
from mpota.formats.chips import Chip
from mpota.formats.littlefs import is_littlefs
from mpota.formats.partition_table import DATA, DATA_NVS, TABLE_SIZE, Partition
from mpota.mpy_cross import MpyFormat, can_compile
from mpota.publish import esp_web_tools
from mpota.release.ota_package import package
from mpota.storage.file import FileImage, make_directory, read_file, write_file
from mpota.storage.memory import MemoryFlash
from mpota.units import SECTOR_SIZE

MANIFEST = "manifest.json"
PAGE = "index.html"
MAX_TEXT = 64  # characters of a name or a version

_FIRMWARE = "firmware"
_SCRIPT = "esp-web-tools"
_DIGITS = 8  # of a file's digest in its name: a cache never gives a new page an old part
_PACKAGE_PLACE = "/lib/ota"
_TEMPLATE = Path(__file__).with_name("first_install.html")
_MAX_GAP = 15  # so many unused blocks are written too, rather than one more file fetched
_ALL_KEPT = "its settings and files stay"
_UNFIT = re.compile(r"[^A-Za-z0-9_-]")  # of labels, in names of files
_NVS_KEYS = 0x04  # gen_esp32part.py: SUBTYPES, data, nvs_keys


@dataclass(frozen=True)
class Part:
    """Bytes that stand at a flash address; ``label``: of their partition, or what they are."""

    label: str
    offset: int
    data: bytes = field(repr=False)

    def path(self, chip: Chip) -> str:
        digest = hashlib.sha256(self.data).hexdigest()[:_DIGITS]
        label = _UNFIT.sub("_", self.label)
        return f"{_FIRMWARE}/{chip.name}-{label}-{digest}.bin"


@dataclass(frozen=True)
class Build:
    """What a board of one chip gets: ``parts`` by address, ``app`` is the one that boots first.

    ``micropython`` is the version of the app, None if it tells none. ``has_slots``: it can be
    updated over the air. ``package`` is how many files of ``ota`` are on board, ``has_files``: a
    file system is written, in place of what the board has there.
    """

    source: str
    chip: Chip
    parts: tuple[Part, ...]
    app: Part
    micropython: str | None
    has_slots: bool
    package: int = 0
    has_files: bool = False

    @property
    def size(self) -> int:
        return sum(len(part.data) for part in self.parts)


@dataclass(frozen=True)
class Release:
    """What page and manifest say; ``summary`` and ``release_url`` for ESPHome alone."""

    name: str
    version: str
    summary: str | None = None
    release_url: str | None = None

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), ("version", self.version)):
            if not text.strip() or not text.isprintable() or len(text) > MAX_TEXT:
                raise UsageError(
                    f"{what} {text[: MAX_TEXT + 1]!r} is not 1 to {MAX_TEXT} printable characters"
                )
        if self.release_url and not self.release_url.startswith(("https://", "http://")):
            raise UsageError(f"release URL '{self.release_url}' does not start with https://")


def read_build(
    path: Path, table_offset: int, *, has_package: bool = False, with_parts: Sequence[str] = ()
) -> Build:
    """What is to be written of a firmware file, so that a board boots.

    With ``has_package`` the ``ota`` package is put into its file system, ``with_parts`` besides the
    core. Raises MpotaError for a firmware that does not boot, as `check_flash` says, or whose nvs
    holds something: that would be for everybody to read.
    """
    data = read_file(path)
    if is_app_image(data):
        raise MpotaError(
            f"{path.name} is an app image alone: a first installation needs bootloader and table",
            "give the merged firmware",
        )
    firmware = Firmware.from_bytes(data, path.name, table_offset)
    size = max(firmware.flash_size, firmware.flash.end)
    flash = MemoryFlash(firmware.flash, size)
    files = _package_files(firmware, with_parts) if has_package else {}
    volumes = Volumes.of_firmware(firmware, flash)
    if files:
        _put(volumes, files)
    parts = tuple(_parts(firmware, flash, volumes))
    check = _check(firmware, parts, size)
    slot = next(slot for slot in check.slots if slot.partition.label == check.boots)
    app = next(part for part in parts if part.offset == slot.partition.offset)
    return Build(
        path.name,
        firmware.chip,
        parts,
        app,
        slot.version,
        firmware.table.otadata is not None and len(firmware.table.slots) > 1,
        len(files),
        any(part.offset == volume.offset for part in parts for volume in volumes.partitions),
    )


def _parts(firmware: Firmware, flash: MemoryFlash, volumes: Volumes) -> Iterator[Part]:
    """In the order of their addresses. What is blank stays out, but for otadata: boards that have
    run something else shall boot what was written.
    """
    chip, table = firmware.chip, firmware.table
    yield Part("bootloader", chip.bootloader_offset, firmware.bootloader.data)
    yield Part("table", firmware.table_offset, flash.read(firmware.table_offset, TABLE_SIZE))
    vfs = firmware.unlisted_vfs(flash.size)
    partitions = [*table, *([vfs] if vfs else [])]
    for partition in sorted(partitions, key=lambda p: p.offset):
        start = flash.read(partition.offset, min(partition.size, 2 * SECTOR_SIZE))
        if is_littlefs(start):
            yield from _used_blocks(volumes, partition)
        else:
            content = _content(firmware, flash, partition)
            yield from [Part(partition.label, partition.offset, content)] if content else []


def _content(firmware: Firmware, flash: MemoryFlash, partition: Partition) -> bytes:
    if partition.is_app:
        try:
            return firmware.app(partition).to_bytes()
        except MpotaError:  # blank, or what an interrupted update left in a dump
            return b""
    data = flash.read(partition.offset, max(0, min(partition.end, flash.size) - partition.offset))
    if partition == firmware.table.otadata:
        return data
    is_empty = data.count(0xFF) == len(data)
    if not is_empty and partition.type == DATA and partition.subtype in (DATA_NVS, _NVS_KEYS):
        raise MpotaError(
            f"{firmware.name}: '{partition.label}' is not blank: Wi-Fi passwords and keys of a "
            "board may be in it, and all that is on the page can be read by everybody",
            f"mpota write {firmware.name} --erase {partition.label}",
        )
    return b"" if is_empty else data


def _used_blocks(volumes: Volumes, partition: Partition) -> Iterator[Part]:
    """The blocks in use of a littlefs, which spreads over its partition.

    Raises MpotaError if it is damaged.
    """
    file_system = volumes.file_system(partition.label)
    file_system.require_intact()
    blocks = sorted(file_system.volume.owners)
    starts = [at for at in blocks if not any(at - gap in blocks for gap in range(1, _MAX_GAP + 1))]
    for number, first in enumerate(starts, 1):
        end = max(at for at in blocks if number == len(starts) or at < starts[number]) + 1
        data = b"".join(file_system.region.read_block(at) for at in range(first, end))
        label = partition.label if number == 1 else f"{partition.label}-{number}"
        yield Part(label, partition.offset + first * SECTOR_SIZE, data)


def _check(firmware: Firmware, parts: tuple[Part, ...], size: int) -> Check:
    """The verdict on a blank flash with the parts. Raises MpotaError if it is bad."""
    flash = MemoryFlash(FileImage(0, b""), size)
    for part in parts:
        flash.replace(part.offset, part.data)
    contents = FileImage(0, flash.read(0, flash.written_end))
    check = check_flash(contents, flash_size=size, table_offset=firmware.table_offset)
    if check.is_ok and check.boots:
        return check
    causes = [f"{finding.where}: {finding.cause}" for finding in check.findings]
    verdict = "it boots by luck only" if check.boots else "nothing would boot"
    raise MpotaError(
        f"{firmware.name}: {verdict}: {causes[0] if causes else check.console[0]}",
        check.findings[0].remedy if check.findings else None,
        tuple(causes[1:]),
    )


def _package_files(firmware: Firmware, with_parts: Sequence[str]) -> dict[str, bytes]:
    release = firmware.release
    if release is None:
        raise MpotaError(f"{firmware.name}: the app tells no version of MicroPython")
    format = MpyFormat.of_micropython(f"v{release[0]}.{release[1]}", firmware.chip.name)
    files = package(format, can_compile(format), with_parts)
    return {f"{_PACKAGE_PLACE}/{name}": data for name, data in files.items()}


def _put(volumes: Volumes, files: Mapping[str, bytes]) -> None:
    """Add files to those that are there; a blank partition becomes a littlefs first."""
    if is_blank(volumes.region()):
        volumes.format()
    file_system = volumes.file_system()
    make_directories(file_system, [_PACKAGE_PLACE], parents=True)
    with file_system.writing() as writer:
        for path, data in files.items():
            writer.write(path, data)


def check_chips(builds: Sequence[Build]) -> None:
    """Raises UsageError for two firmwares of one chip: the page could not tell them apart."""
    seen: dict[str, str] = {}
    for build in builds:
        other = seen.setdefault(build.chip.name, build.source)
        if other != build.source or builds.count(build) > 1:
            raise UsageError(
                f"'{other}' and '{build.source}' are both for {build.chip.title}: "
                "a page has one firmware for a chip",
                "make a page for each",
            )


def manifest(release: Release, builds: Sequence[Build]) -> dict[str, Any]:
    """Of ESP Web Tools 10 (``dist/const.d.ts``), and of ESPHome in the key ``ota``.

    Without ``new_install_prompt_erase`` a board that does not speak Improv, as MicroPython's, would
    be erased without a question; without the wait of 0 s it would be asked for Improv first.
    """
    return {
        "name": release.name,
        "version": release.version,
        "new_install_prompt_erase": True,
        "new_install_improv_wait_time": 0,
        "builds": [_build_json(release, build) for build in builds],
    }


def _build_json(release: Release, build: Build) -> dict[str, Any]:
    more = {"summary": release.summary, "release_url": release.release_url}
    return {
        "chipFamily": build.chip.title,
        "parts": [{"path": part.path(build.chip), "offset": part.offset} for part in build.parts],
        "ota": {
            "path": build.app.path(build.chip),
            "md5": hashlib.md5(build.app.data, usedforsecurity=False).hexdigest(),
            **{key: text for key, text in more.items() if text},
        },
    }


def page(release: Release, builds: Sequence[Build]) -> str:
    rows = (
        f"<tr><th scope=row>{html.escape(build.chip.title)}</th>"
        f"<td>{html.escape(build.micropython or '')}</td><td>{build.size / 1e6:.1f} MB</td></tr>"
        for build in builds
    )
    has_files = any(build.has_files for build in builds)
    values = {
        "kept": "its settings stay, its files are replaced" if has_files else _ALL_KEPT,
        "name": html.escape(release.name),
        "version": html.escape(release.version),
        "script": f"{_SCRIPT}/{esp_web_tools.ENTRY}",
        "manifest": MANIFEST,
        "rows": "\n".join(rows),
    }
    text = _TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], text)


def make_site(
    release: Release, builds: Sequence[Build], script: Mapping[str, bytes]
) -> dict[str, bytes]:
    """All files by their paths; page and manifest last, after what they name."""
    files = {f"{_SCRIPT}/{name}": data for name, data in script.items()}
    for build in builds:
        files.update({part.path(build.chip): part.data for part in build.parts})
    text = json.dumps(manifest(release, builds), indent=2) + "\n"
    files[MANIFEST] = text.encode()
    files[PAGE] = page(release, builds).encode()
    return files


def check_directory(directory: Path, *, force: bool) -> None:
    """Raises UsageError if ``directory`` is no directory, or has a page and not ``force``."""
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"'{directory}' is no directory")
    for name in (PAGE, MANIFEST):
        if (directory / name).exists() and not force:
            raise UsageError(f"'{directory / name}' exists", "use --force to overwrite it")


def write_site(directory: Path, files: Mapping[str, bytes]) -> None:
    """Raises UsageError if they cannot be written."""
    for name, data in files.items():
        path = directory / name
        make_directory(path.parent)
        write_file(path, data)
