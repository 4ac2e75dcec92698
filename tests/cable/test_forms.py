"""Every form that an update has, by every way over the cable: first, again, over another kind."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from mpota.firmware.sample import build_firmware
from mpota.formats.frames import compress
from mpota.formats.partition_table import DATA, Partition, PartitionTable
from mpota.units import MiB
from mpota.virtual.flash import VirtualFlash

from tests.support.consoles import CHIP, OTA_TABLE, Bench, app, bench

QUICK = ("--settle", "0.3", "--check-timeout", "0")
ASSETS = Partition("assets", DATA, 0x8F, 0x190000, 0x10000)
TABLE = PartitionTable((*OTA_TABLE, ASSETS))
CONTENT = bytes(range(251)) * 100

Run = Callable[..., str]

# Form: (what the board says that it has, what runs then).
NEW_APP = ("ota_1 runs {version}, confirmed", "ota_1 1.27.0")
FORMS = {
    "app": NEW_APP,
    "merged": NEW_APP,
    "compressed": NEW_APP,
    "compressed-bundle": NEW_APP,
    "delta": NEW_APP,
    "files": ("ota_0 runs with what {version} brought, confirmed", "ota_0 1.26.1"),
    "data": ("{version} is installed; ota_0 runs on, no restart is needed", "ota_0 1.26.1"),
}


@pytest.fixture
def board() -> Iterator[Bench]:
    firmware = build_firmware(CHIP, flash_size=2 * MiB, table=TABLE, app=app())
    with bench(VirtualFlash.create(2 * MiB, {0x1000: firmware}), has_ota=True) as board:
        yield board


@pytest.fixture
def make(tmp_path: Path, mpota: Run) -> Callable[[str], Path]:
    """The file of a form, for a board that runs v1.26.1."""
    (tmp_path / "old.bin").write_bytes(app())
    (tmp_path / "new.bin").write_bytes(app("v1.27.0"))
    (tmp_path / "merged.bin").write_bytes(build_firmware(CHIP, app=app("v1.27.0")))
    (tmp_path / "assets.bin").write_bytes(CONTENT)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/thing.py").write_text("SAYS = 'with the release'\n")
    release = ("--name", "lamp", "--version", "2.0", "--force", "-o")
    commands: dict[str, tuple[str, ...]] = {
        "compressed-bundle": ("bundle", "new.bin", "--compress", *release),
        "delta": ("delta", "old.bin", "new.bin", "--force", "-o"),
        "files": ("bundle", "--files", "tree", *release),
        "data": ("bundle", "--data", "assets=assets.bin", *release),
    }

    counters = itertools.count(1)

    def make(form: str) -> Path:
        if form == "compressed":
            (tmp_path / form).write_bytes(compress(app("v1.27.0")).to_bytes())
            return tmp_path / form
        if form not in commands:
            return tmp_path / {"app": "new.bin", "merged": "merged.bin"}[form]
        # Of two releases in one second the second would be the first one once more.
        more = ("--counter", str(next(counters))) if commands[form][0] == "bundle" else ()
        mpota(*commands[form], form, *more)
        return tmp_path / form

    return make


def _version(form: str) -> str:
    if form == "delta":
        return form
    return "v1.27.0" if FORMS[form] == NEW_APP and form != "compressed-bundle" else "lamp 2.0"


def _running(board: Bench) -> str:
    script = "import os, ota; print(ota.status.info()['running'], os.uname().release)"
    return board.say("exec", script).strip()


def _check_content(board: Bench, form: str) -> None:
    assert _running(board) == FORMS[form][1]
    if form == "files":
        assert board.say("exec", "import thing; print(thing.SAYS)") == "with the release\n"
    if form == "data":
        assert board.flash.read(ASSETS.offset, len(CONTENT)) == CONTENT


@pytest.mark.parametrize("form", FORMS)
def test_a_push_of_any_form_says_what_it_brought_and_a_second_one_has_nothing_to_do(
    board: Bench,
    mpota: Run,
    make: Callable[[str], Path],
    form: str,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("update", f"push, and again: {form}")
    file = make(form)
    said = FORMS[form][0].format(version=_version(form))
    check = ("--check", "__import__('thing').SAYS") if form == "files" else ()
    assert mpota("push", board.port.path, file, *check, *QUICK).splitlines()[-1] == said
    _check_content(board, form)
    if form != "data":
        with board.off():
            pass
        _check_content(board, form)  # confirmed: it stays
    board.flash.restart_count()
    if form == "delta":  # what it starts from runs no longer
        assert "mpota status" in mpota("push", board.port.path, file, *QUICK, exit_code=1)
    else:
        assert "nothing to do" in mpota("push", board.port.path, file, *QUICK)
    assert board.flash.operations == []


@pytest.mark.parametrize("form", FORMS)
def test_a_url_of_any_form_is_fetched_by_the_board_and_says_what_it_brought(
    board: Bench,
    mpota: Run,
    make: Callable[[str], Path],
    form: str,
    record_property: Callable[[str, object], None],
    tmp_path: Path,
) -> None:
    record_property("update", f"push URL (HTTP): {form}")
    file = make(form)
    handler = partial(_Handler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{file.name}"
        shown = mpota("push", board.port.path, url, *QUICK)
        server.shutdown()
    assert shown.splitlines()[-1] == FORMS[form][0].format(version=url)
    _check_content(board, form)


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize("form", FORMS)
def test_a_plan_with_any_form_is_done_and_then_up_to_date(
    board: Bench,
    mpota: Run,
    make: Callable[[str], Path],
    form: str,
    record_property: Callable[[str, object], None],
    tmp_path: Path,
) -> None:
    record_property("update", f"deploy, and again: {form}")
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f'firmware = "{make(form).name}"\nsettle = 0.3\ncheck_timeout = 0\n'
        f'[boards]\nnorth = "{board.port.path}"\n'
    )
    shown = json.loads(mpota("deploy", plan, "--json"))["boards"][0]
    assert shown["outcome"] == "updated"
    _check_content(board, form)
    if form != "delta":
        again = json.loads(mpota("deploy", plan, "--json"))["boards"][0]
        assert (again["outcome"], again["changes"]) == ("up to date", [])


def test_each_kind_goes_over_each_other(
    board: Bench, mpota: Run, make: Callable[[str], Path]
) -> None:
    for form in ("files", "data", "delta", "files", "compressed-bundle", "app", "data", "merged"):
        mpota("push", board.port.path, make(form), *QUICK)
    assert _running(board).endswith(" 1.27.0")
    assert board.say("exec", "import thing; print(thing.SAYS)") == "with the release\n"
    assert board.flash.read(ASSETS.offset, len(CONTENT)) == CONTENT


def test_files_that_fail_their_check_are_given_up_and_the_former_ones_run(
    board: Bench, mpota: Run, make: Callable[[str], Path]
) -> None:
    file = make("files")
    check = ("--check", "not __import__('thing').SAYS")
    shown = mpota("push", board.port.path, file, *check, *QUICK, exit_code=4)
    assert "ota_0 with the new files failed its health check" in shown
    assert "given up, ota_0 runs again with what it had" in shown
    assert "failed on this board before" in mpota(
        "push", board.port.path, file, *QUICK, exit_code=1
    )


def test_files_that_reset_the_board_are_rolled_back(
    board: Bench, mpota: Run, tmp_path: Path
) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/main.py").write_text("import machine\nmachine.reset()\n")
    mpota("bundle", "--files", "tree", "--name", "lamp", "--version", "2.0", "-o", "bad.bundle")
    # Its main.py has to be reached: silence of 0.3 s may still be its start.
    shown = mpota("push", board.port.path, "bad.bundle", "--settle", "3", exit_code=3)
    assert "the board went back to the files that ota_0 had before" in shown


def test_files_that_wait_for_their_first_boot_are_not_sent_again(
    board: Bench, mpota: Run, make: Callable[[str], Path]
) -> None:
    file = make("files")
    board.say("fs", "cp", file, ":/lamp.bundle")
    board.say("exec", "import ota.release; ota.release.install('/lamp.bundle', reboot=False)")
    shown = mpota("push", board.port.path, file, *QUICK)
    assert "sending" not in shown
    assert shown.splitlines()[-1] == "ota_0 runs with what lamp 2.0 brought, confirmed"
