"""Rehearsals in this process, of small releases on small boards."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from mpota.formats.bundle import Bundle
from mpota.push.update import HealthCheck
from mpota.rehearse.offer import Offer, open_offer
from mpota.rehearse.stage import Aftermath, Passage, Setup, Stage
from mpota.rehearse.subject import Subject
from mpota.virtual.board import Board, End
from mpota.virtual.cuts import Outcome
from mpota.virtual.flash import VirtualFlash

from tests.support import boards, ota_files

BOOT = b"import ota.boot; ota.boot.activate()\n"
APP = boards.app()  # what they run
CONFIRM = b"import ota.rollback\nota.rollback.cancel()\n"


def board(
    *scripts: str,
    main: bytes = CONFIRM,
    package: dict[str, bytes] | None = None,
    parts: tuple[str, ...] = ("release", "encoded"),
) -> Subject:
    """A board whose main.py confirms, on which these scripts have run."""
    files = package or ota_files.new_files(*parts)
    content = ota_files.board_with(files).flash.snapshot()
    content = ota_files.put(content, {"/boot.py": BOOT, "/main.py": main})
    with VirtualFlash.create(len(content), {0: content}) as flash:
        for script in scripts:
            run = Board(flash).run(script)
            assert (run.end, run.traceback) == (End.IDLE, ""), run.console
        return Subject("board.bin", flash.snapshot(), "esp32")


def app_offer(directory: Path, data: bytes | None = None) -> Offer:
    path = directory / "new.bin"
    path.write_bytes(boards.app("v1.27.0", 0x27000) if data is None else data)
    return open_offer(str(path))


def bundle_offer(directory: Path, made: Bundle, name: str = "new.bundle") -> Offer:
    (directory / name).write_bytes(made.to_bytes())
    return open_offer(str(directory / name))


@cache
def _has_namespaces() -> bool:
    """Tried in a process of its own, which would be in them ever after."""
    script = (
        "import sys, pathlib; from mpota.rehearse.confine import Cage\n"
        "Cage(pathlib.Path(sys.argv[1]), [sys.executable], [pathlib.Path(sys.argv[1])])"
    )
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-c", script, root]
        return subprocess.run(command, capture_output=True).returncode == 0


def need_namespaces() -> None:
    if not _has_namespaces():
        pytest.skip("this machine keeps namespaces from users: boards cannot be confined")


@dataclass
class Played:
    steps: list[Passage]
    stage: Stage

    @property
    def findings(self) -> list[str]:
        return [text for step in self.steps for text in step.findings]

    def cut(self, count: int) -> list[Outcome[Aftermath]]:
        """Some power cuts in each scenario."""
        points = [p for r in self.stage.recordings.values() for p in r.chosen_points(count)[:count]]
        return list(self.stage.try_cuts(points))


@contextlib.contextmanager
def played(
    subject: Subject, offer: Offer, way: str = "http", check: str | None = None, **more: Any
) -> Iterator[Played]:
    """Everything that nothing disturbs, not confined: what runs here the tests have made."""
    given = {"then": None, "heap_size": 120 * 1024, "confirm_s": 2.0} | more
    plan = Setup(subject, offer, way=way, check=HealthCheck.parse(check, 2.0), is_confined=False,
                **given)  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        with Stage(plan, scratch, scratch) as stage:
            yield Played(stage.play(), stage)
