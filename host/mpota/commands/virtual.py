"""``mpota virtual``: a board to try any tool on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from mpota.commands import _report as report
from mpota.commands._options import Size
from mpota.commands._virtual_fleet import MAX_FLEET, run_fleet
from mpota.errors import UsageError
from mpota.formats.chips import CHIPS
from mpota.storage.ports import LOADER_END, REPL_END

if TYPE_CHECKING:
    from mpota.virtual.cable import Ports


@click.command()
@click.argument("flash", type=click.Path(path_type=Path))
@click.option(
    "--firmware",
    type=click.Path(path_type=Path),
    help="Make FLASH from this merged firmware or dump.",
)
@click.option("-f", "--flash-size", type=Size(), help="Size of a new FLASH: 4M, 8M, 16M, ...")
@click.option(
    "--chip",
    type=click.Choice([chip.name for chip in CHIPS]),
    help="What a blank FLASH belongs to (default: what its bootloader is for).",
)
@click.option("--link", metavar="NAME", help="Name the ports: links NAME.repl and NAME.rom.")
@click.option(
    "--follow", metavar="URL", help="Have it follow this channel, and show what it prints."
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Public key (PEM) that it is to trust, for --follow and --fleet.",
)
@click.option(
    "--ca",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="CA certificates by which it knows the server, for --follow https://...",
)
@click.option(
    "--fleet",
    type=click.IntRange(1, MAX_FLEET),
    metavar="N",
    help="N boards, whose flash files are in the directory FLASH.",
)
@click.option(
    "--main",
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="main.py of boards of --fleet, or all their files (default: it confirms, and follows).",
)
@click.option(
    "--with",
    "parts",
    multiple=True,
    metavar="PART",
    help="A part of ota for boards of --fleet (default ddi): without ddi they follow no hawkBit.",
)
def command(
    flash: Path,
    firmware: Path | None,
    flash_size: int | None,
    chip: str | None,
    link: str | None,
    follow: str | None,
    keys: tuple[Path, ...],
    ca: Path | None,
    fleet: int | None,
    main: Path | None,
    parts: tuple[str, ...],
) -> None:
    """Run a virtual board whose flash is the file FLASH, until Ctrl-C.

    It has two serial ports: MicroPython's REPL, for mpremote and terminal programs, and the ROM
    loader, for esptool. FLASH keeps what they write. Needs a POSIX system, such as Linux.

    With --follow the board follows a channel as boards in the field do: URL is the directory that
    mpota publish has filled, or mpota serve serves, or its NAME.channel. The package and the key
    are put on it, and a main.py that confirms what runs, and polls. What the board prints is shown.
    A release that brings a main.py has to confirm and follow by that.

    With --fleet there are as many boards as it says, which follow a hawkBit server: virtual-01,
    virtual-02, ..., each with a token of its own there, and a port FLASH/virtual-01.repl. URL is
    hawkbit+https://HOST/TENANT; without --follow it is a stand-in, which runs and remembers as long
    as they do (pip install mpota[serve]). With other parts, as --with mqtt, they follow what the
    program in --main does; machine.unique_id() tells them apart. Credentials for hawkBit:
    MPOTA_HAWKBIT_USER and MPOTA_HAWKBIT_PASSWORD, MPOTA_HAWKBIT_TOKEN, or MPOTA_HAWKBIT_FILE, a
    file with USER:PASSWORD.
    """
    if fleet is not None:
        given = {"-f": flash_size, "--chip": chip, "--link": link, "--ca": ca}
        wrong = next((name for name, value in given.items() if value is not None), None)
        if wrong:
            raise UsageError(f"--fleet and {wrong}")
        run_fleet(flash, fleet, follow, firmware, keys, main, parts, _catch_ctrl_c)
        return
    if parts or main is not None:
        raise UsageError("--main and --with are for boards of --fleet")
    if follow is None and (keys or ca):
        raise UsageError("--key and --ca are for --follow")
    if flash.is_dir():
        raise UsageError(f"'{flash}' is a directory", "--fleet N runs boards that are in it")
    from mpota.virtual.board import Board
    from mpota.virtual.cable import find_chip, mac_of, open_flash, plugged_in, powered_alone

    followed = None
    if follow is not None:
        from mpota.commands import _following

        followed = _following.find(follow, keys, ca)
    with open_flash(flash, firmware, flash_size) as memory, powered_alone(flash):
        row = find_chip(memory, chip)
        mac = mac_of(flash)
        board = Board(memory, unique_id=mac)
        heard = None
        if followed is not None:
            _following.follow(board, row, followed, keys, ca)
            heard = _following.Listener(lambda line: report.say(line, head=_clock()))
        with plugged_in(board, row, mac, heard) as ports, _linked(ports, link):
            ctrl_c = _catch_ctrl_c()
            report.say(f"{row.title}, flash in {flash}; Ctrl-C ends it")
            report.say(f"REPL (mpremote):      {ports.console}")
            report.say(f"ROM loader (esptool): {ports.loader}")
            if followed is not None and heard is not None:
                report.say(_following.describe(followed))
                heard.begin()
            os.read(ctrl_c, 1)
            report.say()
            report.say("off")


def _linked(ports: Ports, link: str | None) -> AbstractContextManager[None]:
    """The links to both ports, if there are to be any."""
    names = {REPL_END: ports.console, LOADER_END: ports.loader}
    return _links({Path(f"{link}{end}"): port for end, port in names.items() if link})


def _clock() -> str:
    return f"{datetime.now():%H:%M:%S} "


@contextmanager
def _links(targets: dict[Path, str]) -> Iterator[None]:
    """Make symbolic links for the block's time; replace links that a killed process has left."""
    try:
        for path, port in targets.items():
            if path.is_symlink():
                path.unlink()
            path.symlink_to(port)
        yield
    except FileExistsError as error:
        raise UsageError(f"'{error.filename2}' exists, and is no link") from None
    finally:
        for path in targets:
            if path.is_symlink():
                path.unlink()


def _catch_ctrl_c() -> int:
    """A file descriptor that can be read as soon as SIGINT or SIGTERM has come.

    signal.pause() would miss the one that comes just before it.
    """
    waiting, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.set_wakeup_fd(waking)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _nothing)
    return waiting


def _nothing(number: int, frame: FrameType | None) -> None:
    """A signal handler for its side effect: Python writes to the wake-up file descriptor."""
