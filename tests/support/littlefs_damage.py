"""A littlefs with real history, and ways to damage it that its checksums do not show."""

from __future__ import annotations

import faulthandler
import random
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import littlefs
from mpota.errors import MpotaError
from mpota.filesystem.block_device import MemoryDevice
from mpota.filesystem.littlefs import FileSystem, Writer, migrate
from mpota.formats.littlefs import Entry

BLOCK = 4096

Tag = tuple[int, int, int, bytes]  # kind, id, size field, data


def worn(block_count: int = 64, seed: int = 3, block_cycles: int = 1) -> bytes:
    """A file system as MicroPython leaves it after many writes: its superblock has copies."""
    choose = random.Random(seed)
    device = littlefs.UserContext(buffsize=BLOCK * block_count)
    fs = mounted(device, format=True, block_cycles=block_cycles)
    for directory in ("/lib", "/lib/app", "/data"):
        fs.mkdir(directory)
    sizes = (0, 20, 128, 600, 4096, 9000)
    for _ in range(400):
        directory = choose.choice(("", "/lib", "/lib/app", "/data"))
        path = f"{directory}/f{choose.randrange(3)}.py"
        with fs.open(path, "wb") as file:
            file.write(choose.randbytes(choose.choice(sizes)))
        fs.setattr(path, 1, bytes(8))
    fs.rename("/lib/app/f0.py", "/moved.py")
    fs.unmount()
    return bytes(device.buffer)


class Recorder(littlefs.UserContext):
    """Flash in memory that keeps every state that a power cut could leave, once `states` is set."""

    states: list[bytes] | None = None

    def prog(self, cfg: littlefs.LFSConfig, block: int, off: int, data: bytes) -> int:
        self._change(block * cfg.block_size + off, data)
        return 0

    def erase(self, cfg: littlefs.LFSConfig, block: int) -> int:
        self._change(block * cfg.block_size, b"\xff" * cfg.block_size)
        return 0

    def _change(self, start: int, data: bytes) -> None:
        middle = len(data) // 2
        for part in ((start, data[:middle]), (start + middle, data[middle:])):
            self.buffer[part[0] : part[0] + len(part[1])] = part[1]
            if self.states is not None:
                self.states.append(bytes(self.buffer))


def cut_states(seed: int) -> list[bytes]:
    """A file system after a power cut in each step of one operation of a board's littlefs."""
    choose = random.Random(seed)
    device = Recorder(buffsize=BLOCK * 64)
    fs = mounted(device, format=True, block_cycles=choose.choice((1, 2, -1)))
    for directory in ("/a", "/b", "/a/c"):
        fs.mkdir(directory)
    for _ in range(choose.randrange(40)):
        with fs.open(f"{choose.choice(('', '/a', '/a/c'))}/f{choose.randrange(5)}", "wb") as file:
            file.write(choose.randbytes(choose.choice((0, 20, 120, 300, 5000))))
    for name in fs.listdir("/a/c") if seed % 5 == 0 else ():
        fs.remove(f"/a/c/{name}")
    with fs.open("/mv", "wb") as file:
        file.write(b"mv" * 100)
    device.states = []
    (
        lambda: fs.remove("/a/c"),
        lambda: fs.rename("/a/c", "/b/c"),
        lambda: fs.rename("/mv", "/b/mv"),
        lambda: fs.rename("/mv", "/a/f0"),
        lambda: fs.mkdir("/a/new"),
    )[seed % 5]()
    return device.states


def mounted(
    device: littlefs.UserContext, *, format: bool = False, block_cycles: int = -1
) -> littlefs.LittleFS:
    """A file system mounted as MicroPython does it."""
    fs = littlefs.LittleFS(
        device,
        block_size=BLOCK,
        block_count=len(device.buffer) // BLOCK,
        read_size=32,
        prog_size=32,
        cache_size=128,
        lookahead_size=32,
        block_cycles=block_cycles,
        mount=False,
    )
    if format:
        fs.format()
    fs.mount()
    return fs


def log_of(block: bytes) -> list[Tag]:
    """The tags of a metadata block's valid commits, without their checksums."""
    tags: list[Tag] = []
    offset, tag, valid = 4, 0xFFFFFFFF, 0
    while offset + 4 <= BLOCK:
        tag ^= int.from_bytes(block[offset : offset + 4], "big")
        size = tag & 0x3FF
        end = offset + 4 + (0 if size == 0x3FF else size)
        if tag >> 31 or end > BLOCK:
            break
        kind = tag >> 20
        if kind & 0x780 == 0x500:
            tag ^= (kind & 1) << 31
            valid = len(tags)
        elif kind != 0x5FF:
            tags.append((kind, tag >> 10 & 0x3FF, size, block[offset + 4 : end]))
        offset = end
    return tags[:valid]


def block_of(revision: int, tags: list[Tag]) -> bytes:
    """A metadata block with these tags in one commit whose checksum is right."""
    data, previous = revision.to_bytes(4, "little"), 0xFFFFFFFF
    for kind, number, size, content in (*tags, (0x500, 0x3FF, 4, b"")):
        tag = (kind << 20 | number << 10 | size) & 0x7FFFFFFF
        data += (tag ^ previous).to_bytes(4, "big") + content
        previous = tag
    data += (zlib.crc32(data) ^ 0xFFFFFFFF).to_bytes(4, "little")
    return data[:BLOCK].ljust(BLOCK, b"\xff")


def is_metadata(block: bytes) -> bool:
    return bool(log_of(block))


def forged(image: bytes, choose: random.Random) -> bytes:
    """``image`` with some of its metadata changed, under checksums that are right."""
    data = bytearray(image)
    starts = [n for n in range(0, len(data), BLOCK) if is_metadata(bytes(data[n : n + BLOCK]))]
    for _ in range(choose.choice((1, 1, 2, 4))):
        start = choose.choice(starts)
        block = bytes(data[start : start + BLOCK])
        tags = log_of(block)
        for _ in range(choose.choice((1, 1, 3))):
            if tags:
                choose.choice(_FORGERIES)(tags, choose, len(data) // BLOCK)
        revision = int.from_bytes(block[:4], "little") + choose.choice((0, 0, 1, 2, 1 << 31))
        data[start : start + BLOCK] = block_of(revision & 0xFFFFFFFF, tags)
    if choose.random() < 0.3:
        flipped(data, choose)
    return bytes(data)


def flipped(data: bytearray, choose: random.Random) -> None:
    """A few bits changed anywhere, most of them in what littlefs follows: block starts."""
    for _ in range(choose.choice((1, 5, 50))):
        offset = choose.randrange(len(data))
        if choose.random() < 0.5:
            offset -= offset % BLOCK - choose.randrange(24)
        data[offset] ^= 1 << choose.randrange(8)


def _change_kind(tags: list[Tag], choose: random.Random, blocks: int) -> None:
    n = choose.randrange(len(tags))
    known = (0x001, 0x002, 0x0FF, 0x101, 0x200, 0x201, 0x202, 0x301, 0x401, 0x4FF, 0x600, 0x601)
    kind = choose.choice((*known, 0x7FF, choose.randrange(0x800)))
    tags[n] = (kind, *tags[n][1:])


def _change_id(tags: list[Tag], choose: random.Random, blocks: int) -> None:
    n = choose.randrange(len(tags))
    kind, _, size, content = tags[n]
    tags[n] = (kind, choose.choice((0, 1, 2, 3, 9, 0x3FE, 0x3FF)), size, content)


def _change_word(tags: list[Tag], choose: random.Random, blocks: int) -> None:
    with_words = [n for n, tag in enumerate(tags) if len(tag[3]) >= 4]
    if with_words:
        n = choose.choice(with_words)
        kind, number, size, content = tags[n]
        at = choose.randrange(len(content) // 4) * 4
        word = choose.choice(
            (0, 1, 2, 3, choose.randrange(blocks), blocks, blocks - 1, 0xFFFFFFFF, 0x7FFFFFFF,
             0x80000000, 0x4FF00000, 0x4FF00001, 1 << choose.randrange(32),
             choose.randrange(1 << 32))
        )  # fmt: skip
        content = content[:at] + word.to_bytes(4, "little") + content[at + 4 :]
        tags[n] = (kind, number, size, content)


def _change_byte(tags: list[Tag], choose: random.Random, blocks: int) -> None:
    with_bytes = [n for n, tag in enumerate(tags) if tag[3]]
    if with_bytes:
        n = choose.choice(with_bytes)
        kind, number, size, content = tags[n]
        at = choose.randrange(len(content))
        new = choose.choice((0, 0x2F, 0x2E, 0xFF, choose.randrange(256)))
        tags[n] = (kind, number, size, content[:at] + bytes([new]) + content[at + 1 :])


def _change_size(tags: list[Tag], choose: random.Random, blocks: int) -> None:
    n = choose.randrange(len(tags))
    kind, number, _, content = tags[n]
    size = choose.choice((0, 1, 4, 7, 8, 9, 24, 255, 0x3FE, 0x3FF))
    content = b"" if size == 0x3FF else content[:size].ljust(size, b"\x41")
    tags[n] = (kind, number, size, content)


def _drop(tags: list[Tag], choose: random.Random, blocks: int) -> None:
    del tags[choose.randrange(len(tags))]


def _repeat(tags: list[Tag], choose: random.Random, blocks: int) -> None:
    tags.insert(choose.randrange(len(tags)), choose.choice(tags))


def _swap(tags: list[Tag], choose: random.Random, blocks: int) -> None:
    a, b = choose.randrange(len(tags)), choose.randrange(len(tags))
    tags[a], tags[b] = tags[b], tags[a]


def _add_global_state(tags: list[Tag], choose: random.Random, blocks: int) -> None:
    words = (
        choose.choice(
            (0x4FF00000, 0x4FF00C00, 0x80000001, 0x1FF, 0x200, choose.randrange(1 << 32))
        ),
        choose.randrange(blocks + 2),
        choose.randrange(blocks + 2),
    )
    tags.append((0x7FF, 0x3FF, 12, b"".join(word.to_bytes(4, "little") for word in words)))


_FORGERIES: tuple[Callable[[list[Tag], random.Random, int], None], ...] = (
    _change_kind,
    _change_id,
    _change_word,
    _change_word,
    _change_word,
    _change_byte,
    _change_size,
    _drop,
    _repeat,
    _swap,
    _add_global_state,
)


def main(first: int, last: int) -> None:
    """Use damaged file systems in every way: an error of mpota's is the worst that may come.

    A process of its own: what the C library does not expect stops all of it.
    """
    images = [worn(), worn(seed=2, block_cycles=-1)]
    outcomes: Counter[str] = Counter()
    faulthandler.enable()
    for seed in range(first, last):
        choose = random.Random(seed)
        data = bytearray(forged(choose.choice(images), choose))
        if choose.random() < 0.1:
            del data[choose.randrange(1, len(data) // BLOCK) * BLOCK :]
        print(f"seed {seed}", flush=True)
        outcome = "refused"
        faulthandler.dump_traceback_later(30, exit=True)
        with suppress(MpotaError):
            file_system = FileSystem(MemoryDevice(len(data), bytes(data)))
            outcome = "damaged" if file_system.check() else "intact"
            for path, entry in file_system.volume.walk():
                with suppress(MpotaError):
                    assert entry.is_dir or len(file_system.read(path)) == entry.size
            for _ in range(3):
                with file_system.writing() as writer:
                    outcome = "written"
                    _some_operation(writer, list(file_system.volume.walk()), choose)
                assert file_system.check() == ()
            migrate(bytes(data), len(data) * choose.choice((1, 2)))
        outcomes[outcome] += 1
    print(dict(outcomes))


def _some_operation(
    writer: Writer, entries: list[tuple[str, Entry]], choose: random.Random
) -> None:
    path = choose.choice(entries)[0] if entries else "/lonely"
    kind = choose.randrange(6)
    if kind == 0 or not entries:
        writer.write("/new", choose.randbytes(9000), {1: bytes(8)})
    elif kind == 1:
        writer.mkdir("/newdir")
        writer.write("/newdir/file", b"x")
    elif kind == 2:
        writer.remove(path)
    elif kind == 3:
        writer.rename(path, choose.choice(("/renamed", "/lib/renamed", choose.choice(entries)[0])))
    elif kind == 4:
        writer.write(path, b"y" * 500)
    else:
        for path, _ in reversed(entries):
            writer.remove(path)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
