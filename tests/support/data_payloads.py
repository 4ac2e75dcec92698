"""Releases of a data partition: signed, in a chain of pieces."""

from __future__ import annotations

import functools
import random

from littlefs import LittleFS
from mpota.formats.chain import head_last
from mpota.formats.frames import compress
from mpota.formats.manifest import Manifest
from mpota.formats.partition_table import Partition, PartitionTable
from mpota.formats.tar import Member, write_tar
from mpota.release.build import Content, Encoded
from mpota.release.signing import sign
from mpota.virtual.board import Board
from mpota.virtual.flash import VirtualFlash

from tests.support import boards, ota_board
from tests.support.releases import key

ASSETS = Partition("assets", 1, 0x83, 0xD0000, 0x30000)
TABLE = (*boards.OTA_TABLE, ASSETS)
SECTOR = 4096


@functools.cache
def image(text: str) -> bytes:
    """A littlefs image that fills the partition but for some sectors; it compresses to a half."""
    fs = LittleFS(block_size=SECTOR, block_count=ASSETS.size // SECTOR)
    rng = random.Random(text)
    for number in range(9):
        with fs.open(f"file{number}", "wb") as file:
            file.write(bytes(rng.choice(b"abcdefgh") for _ in range(0x3F00)) + text.encode())
    return bytes(fs.context.buffer)


OLD, NEW = image("old"), image("new")


def data(content: bytes, *, is_packed: bool = False) -> Content:
    form = Encoded.chained("chained", "assets.chained", head_last(content))
    if is_packed:
        stream = compress(head_last(content)).to_bytes()
        form = Encoded.chained("chained-deflate", "assets.chained", stream)
    return Content("data", "assets.bin", content, "assets", (form,), is_plain=False)


def parts(content: Content, *, as_url: bool = False, **fields: object) -> tuple[bytes, bytes]:
    """Manifest and signature of a release of data alone."""
    payloads = (content.payload(as_url=as_url),)
    manifest = Manifest("demo", "1.0", payloads, chip=None, **fields)  # type: ignore[arg-type]
    text = manifest.to_bytes()
    return text, sign(text, (key(),))


def bundle_of(content: Content, body: bytes | None = None) -> bytes:
    """A signed bundle in which ``body`` stands where the chain was."""
    text, signature = parts(content)
    form = content.encoded[0]
    return write_tar(
        [
            Member("manifest.json", text),
            Member("manifest.sig", signature),
            Member(form.member, form.data if body is None else body),
        ]
    )


# --- content of no file system

ROMFS = Partition("romfs", 1, 0x8F, 0xD0000, 0x20000)
DATA = bytes(range(251)) * 400  # 24.5 sectors


@functools.cache
def content() -> bytes:
    """The flash of a board with a partition for data, which holds something else."""
    contents = {
        boards.BOOTLOADER_OFFSET: boards.BOOTLOADER,
        0x8000: PartitionTable((*boards.OTA_TABLE, ROMFS)).to_bytes(),
        boards.OTA_0.offset: ota_board.OLD,
        ROMFS.offset: b"\x55" * ROMFS.size,
    }
    with VirtualFlash.create(boards.FLASH_SIZE, contents) as flash:
        Board(flash).run(boards.FIRST_LOOK)
        return flash.snapshot()
