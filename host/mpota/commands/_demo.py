"""The story that `mpota demo` tells: everything that can happen to an update, without a board."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from mpota.bootloader.check import check_app, check_flash
from mpota.commands import _demo_world as world
from mpota.commands import _report as report
from mpota.commands._report import Tone
from mpota.edit.change import apply_to_file
from mpota.edit.resizing import resize
from mpota.errors import MpotaError
from mpota.firmware import sample
from mpota.firmware.describe import describe_firmware
from mpota.firmware.firmware import Firmware
from mpota.firmware.layout import Edits
from mpota.resources import data_directory
from mpota.storage.file import beside
from mpota.units import MiB, format_flash_size
from mpota.virtual import stock
from mpota.virtual.board import Board, Boot, Run
from mpota.virtual.cuts import power_cut
from mpota.virtual.flash import CutMode

_FLASH_SIZE = 16 * MiB
_CUT_AT = 10  # flash operations: the update is being written
_INDENT = "   "

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
_IS_UP = re.compile(r"^main\.py: MicroPython (\S+) is up$", re.MULTILINE)
_REFUSAL = re.compile(r"refused: (\S+): (.*)")


def run(data: bytes | None, name: str, table_offset: int, *, shows_console: bool = False) -> None:
    """Tell the story with the firmware in ``data``, printing it.

    None: the stock one that `make demo` has fetched, else one that is made. ``shows_console``: with
    all that the board prints.

    Raises MpotaError for a firmware that cannot be used, or if the story does not end well.
    """
    own_name = name if data is not None else None
    if data is None:
        name, data, kind = _some_firmware(name)
    else:
        kind = "yours"
    given = Firmware.from_bytes(data, name, table_offset)
    _print_opening(given, kind)
    telling = _Telling()
    firmware = _prepare(given, telling)
    files = world.update_files(firmware)
    console = _Console() if shows_console else None
    with world.flash_with(firmware) as flash, world.served(files) as url:
        board = Board(
            flash,
            frozen=data_directory("device"),
            table_offset=table_offset,
            on_output=console.take if console else None,
        )
        story = _Story(board, url, telling)
        story.tell(world.version_of(files[world.BROKEN]))
    telling.close(story.boots, own_name)


def _some_firmware(name: str) -> tuple[str, bytes, str]:
    """Name, bytes, and what it is."""
    found = stock.find()
    if found is not None:
        return found.name, found.read_bytes(), "stock MicroPython, as it is downloaded"
    return name, sample.build_firmware("esp32"), "made by esptool, since no stock one is at hand"


def _print_opening(firmware: Firmware, kind: str) -> None:
    facts = describe_firmware(firmware)
    version = facts.app.micropython.version if facts.app else None
    report.say("An update cannot brick this board", tone=Tone.STRONG)
    report.say(
        f"Firmware: {firmware.name}, {kind}: {firmware.chip.title}, "
        f"{format_flash_size(firmware.flash_size)} of flash, MicroPython {version or 'unknown'}."
    )
    report.say("Board: a flash file, a model of its bootloader, and a real MicroPython.")


@dataclass
class _Telling:
    """The chapters as they are printed, and what is left of them for the closing table."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    _title: str = ""

    def begin(self, title: str, *sentences: str) -> None:
        self._title = title
        report.say()
        report.say(f"{len(self.rows) + 1}. {title}", tone=Tone.STRONG)
        for sentence in sentences:
            report.say(_INDENT + sentence, hang=len(_INDENT))

    def command(self, text: str) -> None:
        report.say(_INDENT + text, tone=Tone.HINT)

    def happens(self, text: str) -> None:
        report.say(_INDENT + text, hang=len(_INDENT) + 2)

    def verdict(self, text: str, runs: str) -> None:
        """Print how the chapter ended; ``runs``: which app runs then."""
        report.say(text, head=f"{_INDENT}ok: ", tone=Tone.GOOD, hang=len(_INDENT) + 4)
        self.rows.append((f"{len(self.rows) + 1}. {self._title}", text, runs))

    def close(self, boots: int, own_name: str | None) -> None:
        report.say()
        report.say("What was shown", tone=Tone.STRONG)
        report.print_table(("Chapter", "Verdict", "Runs then"), self.rows)
        report.say(f"All {boots} boots started a complete, verified app.", tone=Tone.GOOD)
        report.say()
        report.say("With a firmware of your own:" if own_name is None else "And with it:")
        commands = _next_commands(own_name or "firmware.bin")
        width = max(len(command) for command, _ in commands)
        for command, text in commands:
            report.say(f"  {command:<{width}}  # {text}", is_whole=True)


def _next_commands(name: str) -> tuple[tuple[str, str], ...]:
    program, file = _program(), shlex.quote(name)
    resized = shlex.quote(str(beside(Path(name), "-ota.bin")))
    return (
        (f"{program} show {file}", "what is in it"),
        (f"{program} resize {file} --layout ota", "room for updates"),
        (f"{program} check {resized}", "whether that boots"),
    )


def _program() -> str:
    """How to start `mpota` from here: after `make demo` it is in .venv alone."""
    if shutil.which("mpota"):
        return "mpota"
    if Path(sys.argv[0]).stem == "mpota":
        return os.path.relpath(sys.argv[0])
    return f"{Path(sys.executable).name} -m mpota"


class _Console:
    """What the board prints, as lines, between those of the story."""

    def __init__(self) -> None:
        self._rest = ""

    def take(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            # As on a terminal, text before a carriage return is overwritten.
            report.say(line.rstrip("\r").rpartition("\r")[2], head=f"{_INDENT}| ", is_whole=True)


class _Story:
    """What happens to the board, a chapter each."""

    def __init__(self, board: Board, url: str, telling: _Telling) -> None:
        self.board = board
        self.url = url
        self.telling = telling
        self.boots = 0

    def tell(self, broken: str) -> None:
        """Raises MpotaError as soon as something ends otherwise than it should."""
        telling = self.telling
        telling.begin("First boot", "main.py sees that all is well, and confirms the app.")
        run = self.play(_INSTALL.format(main=_MAIN.format(broken=broken)), "ota_0", "ota_0")
        telling.happens(_boots(run))
        telling.verdict("confirmed by main.py", _running(run))

        telling.begin("An image for another chip", "Its header says so before anything is erased.")
        run = self.update(world.OTHER_CHIP, "ota_0")
        self.tell_refusal(run)
        _expect(not run.operations, "a refused file left the flash alone")
        telling.verdict("refused, the flash untouched", self.after_reset("ota_0"))

        telling.begin("A download cut short", "Half of the image comes, and is written.")
        self.tell_refusal(self.update(world.TRUNCATED, "ota_0"))
        telling.verdict("refused, it can never boot", self.after_reset("ota_0"))

        telling.begin("The power fails", "It is cut in the middle of a write of an update.")
        with power_cut(self.board.flash, _CUT_AT, CutMode.TORN):
            run = self.update(world.GOOD, "ota_0")
        telling.happens(f"dark in flash operation {len(run.operations)}, a part of it done")
        telling.verdict("the old app boots", self.after_reset("ota_0"))

        telling.begin("The same update again", "Read, checked, written, read back, selected.")
        run = self.update(world.GOOD, "ota_0", "ota_1")
        telling.happens(_boots(run))
        telling.verdict("boots, and confirms itself", _running(run))

        telling.begin("An update that crashes", "It has one boot to confirm itself, and fails.")
        run = self.update(world.BROKEN, "ota_1", "ota_0", "ota_1")
        telling.happens(_boots(run))
        telling.verdict("the bootloader goes back", _running(run))

        telling.begin("The same bad update again", "What has failed on a board is remembered.")
        self.tell_refusal(self.update(world.BROKEN, "ota_1"))
        telling.verdict("refused, unless forced", self.after_reset("ota_1"))

    def update(self, name: str, *labels: str) -> Run:
        self.telling.command(f'>>> ota.update.from_file("http://server/{name}")')
        return self.play(_UPDATE.format(url=f"{self.url}/{name}"), *labels)

    def after_reset(self, label: str) -> str:
        return _running(self.play(None, label))

    def play(self, script: str | None, *labels: str) -> Run:
        """Power on with ``script`` at the prompt.

        ``labels`` are the apps that must boot, in order.
        """
        run = self.board.run(script)
        _expect(run.labels == labels, f"boots were {', '.join(labels)}", str(run.labels))
        self.boots += len(run.boots)
        return run

    def tell_refusal(self, run: Run) -> None:
        found = _REFUSAL.search(run.output)
        _expect(found is not None, "the board refuses it")
        if found is not None:
            self.telling.happens(f"{found[1]}: {found[2].strip()}")


def _boots(run: Run) -> str:
    return "boots: " + ", then ".join(_app(boot) for boot in run.boots)


def _running(run: Run) -> str:
    return _app(run.boots[-1])


def _app(boot: Boot) -> str:
    """Its slot, and its version where main.py has told it."""
    found = _IS_UP.search(boot.output.replace("\r", ""))
    label = boot.partition.label if boot.partition else "nothing"
    return f"{label} (v{found[1]})" if found else label


def _prepare(firmware: Firmware, telling: _Telling) -> Firmware:
    """The desk's part: resize for OTA, check."""
    telling.begin(
        "Room for two apps",
        "An update is written into one slot while the app in the other one runs.",
    )
    size = max(_FLASH_SIZE, firmware.flash_size)
    result = resize(firmware, Edits(flash_size=size, arrange="ota"))
    telling.command(f"$ mpota resize {firmware.name} -f {format_flash_size(size)} --layout ota")
    report.print_table(report.DIFFERENCE_COLUMNS, report.difference_rows(result.differences))
    data = apply_to_file(firmware, result)
    resized = Firmware.from_bytes(data, firmware.name, firmware.table_offset)
    check = check_flash(resized.flash, table_offset=firmware.table_offset)
    _expect(check.boots == "ota_0", "'ota_0' boots", str(check.boots))
    telling.verdict("ota_0 boots", "")

    telling.begin(
        "The wrong kind of file",
        "A whole firmware where an app belongs: it would be written, and never start.",
    )
    telling.command(f"$ mpota check --as-app {firmware.name}")
    merged = check_app(data, resized)
    _expect(not merged.is_ok, "a merged file is no app")
    telling.happens(merged.console[0])
    telling.verdict("said before it is written", "")
    return resized


def _expect(is_so: bool, what: str, found: str = "") -> None:
    if not is_so:
        raise MpotaError(
            f"the demo expected that {what}" + (f", but found {found}" if found else "")
        )
