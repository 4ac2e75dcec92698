"""A fleet of virtual boards that follow a server or a broker, for demonstrations and tests.

The first new one is made as a person would make it: the package installed at its REPL, keys and
files put on it. The others are copies of its flash; which board each of them is at a server, is
written into its NVS. A broker they tell by their unique ids.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mpota.errors import MpotaError, UsageError
from mpota.firmware.firmware import Firmware
from mpota.push.enrol import KEY, NAMESPACE, Enrolment
from mpota.push.install import install
from mpota.push.repl import Session
from mpota.storage.file import FileImage, read_file
from mpota.virtual.board import Board
from mpota.virtual.cable import find_chip, mac_of, open_flash, plugged_in, powered_alone
from mpota.virtual.flash import VirtualFlash
from mpota.virtual.nvs import ESP_OK, Nvs

if TYPE_CHECKING:
    from aiohttp.web import Application

MAIN = b"""\
import asyncio
import ota.ddi
import ota.rollback

ota.rollback.cancel()  # it has come so far: confirmed
asyncio.run(ota.ddi.Client().run())
"""
_BLOB = ord("b")
_TEMPLATE = ".template.bin"


_MAX_FILES = 256


@dataclass(frozen=True)
class Recipe:
    """What new boards are made of. ``files``: by their paths on the board."""

    firmware: Path
    keys: tuple[Path, ...]
    parts: tuple[str, ...]
    files: Mapping[str, bytes]


def read_files(path: Path | None) -> dict[str, bytes]:
    """What a board gets: a main.py, or all files of a directory; None: one that follows hawkBit.

    Raises UsageError for a directory without a main.py.
    """
    if path is None:
        return {"/main.py": MAIN}
    if not path.is_dir():
        return {"/main.py": read_file(path)}
    found = sorted(one for one in path.rglob("*") if one.is_file())
    if path / "main.py" not in found:
        raise UsageError(f"'{path}' has no main.py")
    if len(found) > _MAX_FILES:
        raise UsageError(f"'{path}' has {len(found)} files, at most {_MAX_FILES}")
    return {f"/{one.relative_to(path).as_posix()}": read_file(one) for one in found}


def board_ids(count: int) -> list[str]:
    width = max(len(str(count)), 2)
    return [f"virtual-{number:0{width}}" for number in range(1, count + 1)]


def prepare(
    folder: Path,
    ids: Sequence[str],
    recipe: Recipe | None,
    enrolled: Callable[[str], Enrolment] | None,
    tell: Callable[[str], object],
) -> dict[str, Path]:
    """The flash files of the boards, made where they are missing, each told which board it is, if
    a server is to know.

    Raises UsageError if there is nothing to make them of, or if one is on, MpotaError for a
    firmware that is none.
    """
    paths = {id: folder / f"{id}.bin" for id in ids}
    missing = [path for path in paths.values() if not path.exists()]
    if missing and recipe is None:
        raise UsageError(f"'{missing[0]}' does not exist", "--firmware FILE makes it")
    folder.mkdir(parents=True, exist_ok=True)
    template = folder / _TEMPLATE
    template.unlink(missing_ok=True)  # of a run that was killed
    try:
        for id, path in paths.items():
            if path in missing and not template.exists():
                assert recipe is not None
                tell("making the first board")
                _make(template, recipe)
            _tell_which(path, template, enrolled(id) if enrolled else None)
    finally:
        template.unlink(missing_ok=True)
    return paths


def _tell_which(path: Path, template: Path, enrolment: Enrolment | None) -> None:
    """Write the enrolment into the flash file; a copy of ``template``, if there is none yet."""
    if path.exists():
        if enrolment is not None:
            with powered_alone(path):
                _write_enrolment(path, enrolment)
        return
    made = path.with_name(f".{path.name}.new")
    try:
        shutil.copyfile(template, made)
        if enrolment is not None:
            _write_enrolment(made, enrolment)
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)


def _make(path: Path, recipe: Recipe) -> None:
    with open_flash(path, recipe.firmware) as memory:
        chip = find_chip(memory, None)
        with (
            plugged_in(Board(memory), chip) as ports,
            Session(ports.console, keeps_app_stopped=True) as session,
        ):
            install(session, recipe.keys, None, recipe.parts)
            session.write_parts(recipe.files)
            session.finish_parts(recipe.files)


def _write_enrolment(path: Path, enrolment: Enrolment) -> None:
    with VirtualFlash(path) as memory:
        table = Firmware.from_flash(FileImage(0, memory.read(0, memory.size)), path.name).table
        nvs = Nvs(memory, next((p for p in table if p.label == "nvs"), None))
        name, key, data = NAMESPACE.encode(), KEY.encode(), enrolment.to_bytes()
        if nvs.get(name, key, _BLOB) == (ESP_OK, data):
            return
        codes = (nvs.open(name), nvs.set(name, key, _BLOB, data), nvs.commit())
        if any(code != ESP_OK for code in codes):
            raise MpotaError(f"{path.name}: its NVS does not take what it is to know")


@contextmanager
def stand_in() -> Iterator[str]:
    """A server of its own for such a fleet; its URL. It lets "admin" in by "admin", and forgets
    all at the end. Raises UsageError without aiohttp.
    """
    from mpota.virtual.hawkbit.server import running
    from mpota.virtual.hawkbit.state import State

    state = State(config={"pollingTime": "00:00:05"})
    state.allow_target_tokens()

    def add(application: Application) -> None:
        from mpota.virtual.hawkbit.management import Management

        Management(state).add_to(application)

    with running(state, add=add) as server:
        yield server.url


@contextmanager
def powered(paths: dict[str, Path]) -> Iterator[dict[str, str]]:
    """All boards on; the ports of their consoles, beside each a link ID.repl. Off at the end."""
    with ExitStack() as stack:
        ports = {}
        for id, path in paths.items():
            memory = stack.enter_context(open_flash(path))
            stack.enter_context(powered_alone(path))
            mac = mac_of(path)
            board = Board(memory, unique_id=mac)
            found = stack.enter_context(plugged_in(board, find_chip(memory, None), mac))
            ports[id] = found.console
            link = path.with_suffix(".repl")
            link.unlink(missing_ok=True)
            os.symlink(found.console, link)
            stack.callback(link.unlink, missing_ok=True)
        yield ports
