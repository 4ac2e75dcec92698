"""The story that `mpota demo` tells: everything that can happen to an update, without a board."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mpota.bootloader.check import check_app, check_flash
from mpota.commands import _report as report
from mpota.edit.change import apply_to_file
from mpota.edit.contents import extract
from mpota.edit.resizing import resize
from mpota.errors import MpotaError
from mpota.firmware import sample
from mpota.firmware.describe import describe_firmware
from mpota.firmware.firmware import Firmware
from mpota.firmware.layout import Edits
from mpota.formats.app_desc import find_micropython
from mpota.formats.chips import CHIPS
from mpota.resources import data_directory
from mpota.units import KiB, MiB, format_flash_size
from mpota.virtual import stock
from mpota.virtual.board import Board, End, Run
from mpota.virtual.flash import Cut, CutMode, VirtualFlash

_FLASH_SIZE = 16 * MiB

# The board's main.py: an app that confirms itself, unless it is the one that is broken.
_MAIN = """
import os, ota
print("main.py: MicroPython", os.uname().release, "is up")
if os.uname().release == {broken!r}:
    print("main.py: this one crashes before it is healthy")
    import machine
    machine.reset()
ota.rollback.cancel()
print("main.py: healthy, confirmed")
"""
_INSTALL = "with open('main.py', 'w') as f: f.write({main!r})\nimport machine\nmachine.reset()"
_UPDATE = """
import ota, machine
try:
    ota.update.from_file({url!r}, reboot=False)
except ota.OTAError as error:
    print("refused:", error.code + ":", error)
else:
    machine.reset()
"""


def run(data: bytes | None, name: str, table_offset: int) -> None:
    """Tell the story with the firmware in ``data``, printing it.

    None: the stock one that `make demo` has fetched, else one that is made.

    Raises MpotaError for a firmware that cannot be used, or if the story does not end well.
    """
    if data is None:
        name, data = _some_firmware(name)
    firmware = _prepare(Firmware.from_bytes(data, name, table_offset))
    app = extract(firmware)
    good = sample.next_version(app)
    broken = sample.next_version(good)
    files = {
        "good.bin": good,
        "broken.bin": broken,
        "truncated.bin": good[: len(good) // 2],
        "other-chip.bin": _other_chip(firmware),
    }
    with _flash(firmware) as flash, _serve(files) as url:
        board = Board(
            flash,
            frozen=data_directory("device"),
            table_offset=table_offset,
            on_output=report.print_console,
        )
        _Story(board, url).tell(_version(broken))
    report.say()
    report.say("Every boot started a complete, verified app.")


def _some_firmware(name: str) -> tuple[str, bytes]:
    found = stock.find()
    if found is not None:
        report.say("No firmware given: taking the stock MicroPython that `make demo` has fetched")
        return found.name, found.read_bytes()
    report.say(
        "No firmware given, and no stock one at hand: building one with esptool's image writer"
    )
    return name, sample.build_firmware("esp32")


class _Story:
    """What happens to the board, a chapter each."""

    def __init__(self, board: Board, url: str) -> None:
        self.board = board
        self.url = url

    def tell(self, broken_version: str) -> None:
        """Raises MpotaError as soon as something ends otherwise than it should."""
        _title("The board's first boot: files are set up, main.py confirms the app")
        self.play(_INSTALL.format(main=_MAIN.format(broken=broken_version)), "ota_0", "ota_0")

        _title("A wrong file is refused before a byte is erased")
        run = self.play(self.update("other-chip.bin"), "ota_0")
        _expect(not run.operations, "a refused file left the flash alone")

        _title("A truncated download is refused, the running app stays")
        self.play(self.update("truncated.bin"), "ota_0")
        self.play(None, "ota_0")

        _title("The power fails in the middle of an update: the old app boots")
        self.board.flash.restart_count()
        self.board.flash.cut = Cut(10, CutMode.TORN)
        run = self.play(self.update("good.bin"), "ota_0")
        _expect(run.end is End.POWER_CUT, "the power failed")
        self.board.flash.cut = None
        self.play(None, "ota_0")

        _title("The same update again: it boots, and confirms itself")
        run = self.play(self.update("good.bin"), "ota_0", "ota_1")
        seconds = run.duration_ms / 1000
        report.say(f"(the flash was busy for {seconds:.1f} s, as modelled)")

        _title("A bad update: it crashes before it confirms, and is rolled back")
        self.play(self.update("broken.bin"), "ota_1", "ota_0", "ota_1")

        _title("The bad version is remembered, and not installed again by itself")
        self.play(self.update("broken.bin"), "ota_1")

    def update(self, name: str) -> str:
        return _UPDATE.format(url=f"{self.url}/{name}")

    def play(self, script: str | None, *labels: str) -> Run:
        """Power on with ``script`` at the prompt; ``labels`` are the apps that must boot."""
        run = self.board.run(script)
        _expect(run.labels == labels, f"boots were {', '.join(labels)}", str(run.labels))
        return run


def _prepare(firmware: Firmware) -> Firmware:
    """The desk's part: show, resize for OTA, check."""
    _title("On the desk: a firmware is resized for OTA")
    facts = describe_firmware(firmware)
    version = facts.app.micropython.version if facts.app else None
    report.say(
        f"{firmware.name}: {firmware.chip.title}, "
        f"{format_flash_size(firmware.flash_size)} flash, MicroPython {version or 'unknown'}"
    )
    size = max(_FLASH_SIZE, firmware.flash_size)
    result = resize(firmware, Edits(flash_size=size, arrange="ota"))
    report.say(f"mpota resize -f {format_flash_size(size)} --layout ota: {result.summary}")
    report.print_table(report.DIFFERENCE_COLUMNS, report.difference_rows(result.differences))
    data = apply_to_file(firmware, result)
    resized = Firmware.from_bytes(data, firmware.name, firmware.table_offset)
    check = check_flash(resized.flash, table_offset=firmware.table_offset)
    _expect(check.boots == "ota_0", "'ota_0' boots", str(check.boots))
    report.say("mpota check: 'ota_0' boots")
    merged = check_app(data, resized)
    _expect(not merged.is_ok, "a merged file is no app")
    report.say(f"mpota check --as-app, for the merged file: {merged.console[0]}")
    return resized


def _other_chip(firmware: Firmware) -> bytes:
    other = next(c for c in CHIPS if c.chip_id != firmware.chip.chip_id)
    return sample.build_app(other.name, size=128 * KiB)


def _version(app: bytes) -> str:
    """As the board's ``os.uname().release`` has it."""
    return (find_micropython(app).version or "").removeprefix("v").partition("-")[0]


def _flash(firmware: Firmware) -> VirtualFlash:
    flash = firmware.flash
    contents = {flash.base: flash.read(flash.base, flash.end - flash.base)}
    return VirtualFlash.create(firmware.flash_size, contents)


@contextmanager
def _serve(files: dict[str, bytes]) -> Iterator[str]:
    """An HTTP server on loopback; yields its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = files.get(self.path.lstrip("/"))
            if data is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _title(text: str) -> None:
    report.say()
    report.say(f"== {text}")


def _expect(is_so: bool, what: str, found: str = "") -> None:
    if not is_so:
        raise MpotaError(
            f"the demo expected that {what}" + (f", but found {found}" if found else "")
        )
