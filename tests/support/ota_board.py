"""Boards that update themselves, and the servers they update from."""

from __future__ import annotations

import functools
import socketserver
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mpota.formats.otadata import OtaRecord, parse_otadata
from mpota.formats.partition_table import Partition, PartitionTable
from mpota.virtual.board import Board, End, Run
from mpota.virtual.flash import Operation, VirtualFlash

from tests.support import boards, ota_package, web
from tests.support.boards import OTA_0, OTA_1

LOOPBACK = "127.0.0.1"

OLD = boards.app("v1.26.1", 0x20000)
# Of another size, so that every sector behind the first ones differs, and no multiple of 64 KiB.
NEW = boards.app("v1.27.0", 0x27000)


@functools.cache
def base(old: bytes = OLD) -> bytes:
    """The flash of a board that has ``old`` in ota_0, has made its file system and confirmed."""
    with VirtualFlash.create(boards.FLASH_SIZE, contents(old)) as flash:
        run = Board(flash).run(boards.FIRST_LOOK)
        assert run.end is End.IDLE, run.console
        return flash.snapshot()


def contents(old: bytes) -> dict[int, bytes]:
    table = PartitionTable(boards.OTA_TABLE).to_bytes()
    return {boards.BOOTLOADER_OFFSET: boards.BOOTLOADER, 0x8000: table, OTA_0.offset: old}


@contextmanager
def updating_board(content: bytes | None = None, heap_size: int = 120 * 1024) -> Iterator[Board]:
    """A board with the package built in; its flash is ``content``, `base()` if not given."""
    content = base() if content is None else content
    with VirtualFlash.create(len(content), {0: content}) as flash:
        yield Board(flash, heap_size=heap_size, frozen=ota_package.compiled())


def try_update(url: str, more: str = "", then: str = "") -> str:
    """A script that updates quietly and prints how that ended. The first failure ends it."""
    one_try = "" if "max_failures" in more else ", max_failures=1"
    return f"""
import ota
try:
    print("wrote", ota.update.from_file({url!r}, verbose=False, reboot=False{one_try}{more}))
except ota.OTAError as error:
    print(error.code + ":", error)
{then}
"""


def output(board: Board, script: str) -> str:
    """What ``script`` prints; it must end well."""
    run = board.run(script)
    assert (run.end, run.traceback) == (End.IDLE, ""), run.console
    return run.output


def slot_writes(run: Run) -> list[Operation]:
    """What was done to the slots and to otadata."""
    offset = boards.OTADATA.offset
    end = boards.VFS.offset
    return [op for op in run.operations if offset <= op.offset < end]


def records(board: Board) -> tuple[OtaRecord, OtaRecord]:
    return parse_otadata(board.flash.read(boards.OTADATA.offset, boards.OTADATA.size))


def states(board: Board) -> list[str]:
    return [record.state_name if record.ota_seq != 0xFFFFFFFF else "-" for record in records(board)]


def slot_content(board: Board, size: int, slot: Partition = OTA_1) -> bytes:
    return board.flash.read(slot.offset, size)


# --- servers -----------------------------------------------------------------------------------


def answer(body: bytes, *headers: str, status: str = "200 OK", length: bool = True) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


Answer = bytes | Callable[["Connection"], None]


class Connection(socketserver.StreamRequestHandler):
    """One request: its head is kept, its answer is sent as it stands, then the line is closed."""

    server: Server

    def handle(self) -> None:
        lines = []
        while (line := self.rfile.readline().decode()) not in ("\r\n", "\n", ""):
            lines.append(line.rstrip("\r\n"))
        self.server.requests.append(lines)
        path = lines[0].split(" ")[1] if lines else "/"
        reply = self.server.answers.get(path, answer(b"no such file", status="404 Not Found"))
        try:
            if callable(reply):
                reply(self)
            else:
                self.wfile.write(reply)
        except OSError:  # the board has hung up, as it may
            pass


class Server(socketserver.ThreadingTCPServer):
    """An HTTP server that says exactly what a test wants it to say."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, answers: dict[str, Answer]) -> None:
        super().__init__((LOOPBACK, 0), Connection)
        self.answers = answers
        self.requests: list[list[str]] = []

    @property
    def root(self) -> str:
        return f"http://{LOOPBACK}:{self.server_address[1]}"

    def url(self, path: str) -> str:
        return self.root + path


@contextmanager
def serving(answers: dict[str, Answer]) -> Iterator[Server]:
    with web.running(Server(answers)) as server:
        yield server


def merged_firmware(app: bytes) -> bytes:
    """As MicroPython's makeimg.py makes it for an ESP32: from 0x1000 on."""
    image = bytearray(b"\xff" * (0x10000 - 0x1000))
    image[: len(boards.BOOTLOADER)] = boards.BOOTLOADER
    table = PartitionTable(boards.OTA_TABLE).to_bytes()
    image[0x7000 : 0x7000 + len(table)] = table
    return bytes(image) + app
