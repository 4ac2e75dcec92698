"""A part of a flash as blocks, changed in steps: what a file system stands on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mpota.formats.littlefs import BLOCK_SIZE
from mpota.storage import Flash
from mpota.storage.file import FileImage
from mpota.storage.memory import MemoryFlash


class BlockDevice:
    """A part of a flash as blocks of 4 KiB, each of them read once.

    What is programmed is kept until `flush` writes it, in the order in which it was programmed:
    littlefs stays intact after each of these steps. ``name`` is for messages.
    """

    def __init__(self, flash: Flash, offset: int, size: int, name: str = "file system") -> None:
        self.name = name
        self.size = size
        self._flash = flash
        self._offset = offset
        self._stored: dict[int, bytes] = {}  # as it is on the flash
        self._log: list[tuple[int, bytes]] = []
        self._pending: dict[int, bytes] = {}  # what the log leaves in a block
        self._live: set[int] = set()  # written one by one: see `protect`

    @property
    def block_count(self) -> int:
        return self.size // BLOCK_SIZE

    def read_block(self, block: int) -> bytes:
        if block in self._pending:
            return self._pending[block]
        if block not in self._stored:
            start = self._offset + block * BLOCK_SIZE
            self._stored[block] = self._flash.read(start, BLOCK_SIZE)
        return self._stored[block]

    def program(self, block: int, data: bytes) -> None:
        """Make ``data`` the content of a block, once `flush` is called."""
        if self._log and self._log[-1][0] == block:
            self._log.pop()
        self._log.append((block, data))
        self._pending[block] = data

    def protect(self, blocks: Iterable[int]) -> None:
        """These hold something: two neighbours are never erased in one go, they may be a pair."""
        self._live.update(blocks)

    def flush(self) -> None:
        """Write what was programmed, and only where it differs."""
        log = self._log
        self.discard()
        changed = []
        for block, data in log:
            if self._stored.get(block) != data:
                changed.append((block, data))
                self._stored[block] = data
        for block, data in self._joined(changed):
            self._write(self._offset + block * BLOCK_SIZE, data)

    def _joined(self, changed: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        """Unused blocks that follow each other in the list and on the flash as one."""
        run: list[bytes] = []
        first = 0
        for block, data in changed:
            if run and (block != first + len(run) or block in self._live):
                yield first, b"".join(run)
                run = []
            if not run:
                first = block
            run.append(data)
            self._live.add(block)
        if run:
            yield first, b"".join(run)

    def discard(self) -> None:
        """Forget what was programmed since the last `flush`."""
        self._log = []
        self._pending = {}

    def _write(self, offset: int, data: bytes) -> None:
        program = getattr(self._flash, "program", None)
        if program is not None:  # a board's flash: esptool erases what it writes
            program(offset, data)
        else:
            self._flash.erase(offset, len(data))
            self._flash.write(offset, data)


class MemoryDevice(BlockDevice):
    """A region of its own in memory: ``size`` bytes, ``data`` and then 0xFF."""

    def __init__(self, size: int, data: bytes = b"", name: str = "file system") -> None:
        self._memory = MemoryFlash(FileImage(0, data), size)
        super().__init__(self._memory, 0, size, name)

    def to_bytes(self) -> bytes:
        return self._memory.read(0, self.size)


def is_blank(region: BlockDevice) -> bool:
    """Nothing was ever written to the first blocks, where every file system starts."""
    start = b"".join(region.read_block(block) for block in range(min(2, region.block_count)))
    return start.count(0xFF) == len(start)
