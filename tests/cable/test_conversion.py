"""The way of a board: stock firmware, converted to OTA, updated, rolled back, updated again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from mpota.firmware.sample import build_firmware
from mpota.formats.chips import chip_by_name
from mpota.push.repl import Session
from mpota.units import MiB
from mpota.virtual.board import Board
from mpota.virtual.cable import Ports, plugged_in
from mpota.virtual.flash import VirtualFlash

from tests.support.consoles import CHIP, app

Run = Callable[..., str]

FILES = {
    "main.py": "import settings\nprint('greenhouse', settings.NAME)\n",
    "settings.py": "NAME = 'north'\n",
    "log.txt": "".join(f"{line}: 21.5 C\n" for line in range(2000)),
}
QUICK = ("--settle", "0.3", "--check-timeout", "0")


def test_a_stock_board_is_converted_updated_rolled_back_and_updated_with_its_files_intact(
    tmp_path: Path, mpota: Run
) -> None:
    stock = build_firmware(CHIP, flash_size=4 * MiB, app=app())
    (tmp_path / "good.bin").write_bytes(app("v1.27.0"))
    (tmp_path / "bad.bin").write_bytes(app("v1.28.0"))
    (tmp_path / "better.bin").write_bytes(app("v1.28.1"))
    with (
        VirtualFlash.create(4 * MiB, {0x1000: stock}) as flash,
        plugged_in(Board(flash), chip_by_name(CHIP)) as ports,
    ):
        _put_files(ports)
        mpota("install", ports.console)
        shown = mpota("push", ports.console, "good.bin", *QUICK, exit_code=1)
        assert "no OTA slot besides factory" in shown
        assert "hint: mpota resize" in shown

        shown = mpota("resize", ports.loader, "--layout", "ota", "--yes", "--backup", "backup.bin")
        assert "files kept" in shown
        assert _files(ports) == FILES

        check = ("--check", "__import__('settings').NAME == 'north'", *QUICK)
        shown = mpota("push", ports.console, "good.bin", *check)
        assert shown.splitlines()[-1] == "ota_1 runs v1.27.0, confirmed"

        shown = mpota(
            "push", ports.console, "bad.bin", "--check", "no_such_name", *QUICK, exit_code=4
        )
        assert "given up, ota_1 runs again" in shown
        assert _slots(mpota, ports) == {"ota_0": "INVALID", "ota_1": "VALID"}

        shown = mpota("push", ports.console, "better.bin", *check)
        assert shown.splitlines()[-1] == "ota_0 runs v1.28.1, confirmed"
        assert _slots(mpota, ports) == {"ota_0": "VALID", "ota_1": "VALID"}
        assert _files(ports) == FILES
    assert ports.board.failure is None


def _put_files(ports: Ports) -> None:
    with Session(ports.console) as session:
        files = {f"/{name}": text.encode() for name, text in FILES.items()}
        session.write_parts(files)
        session.finish_parts(files)


def _files(ports: Ports) -> dict[str, str]:
    with Session(ports.console) as session:
        return {name: session.evaluate(f"open({name!r}).read()") for name in FILES}


def _slots(mpota: Run, ports: Ports) -> dict[str, str]:
    info = json.loads(mpota("status", ports.console, "--json"))
    return {slot["label"]: slot["state"] for slot in info["slots"]}
