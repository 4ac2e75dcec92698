"""`mpota push PORT DIR`: a directory on a virtual board, through the real mpremote transport."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import old_package, releases
from tests.support.consoles import Bench, app, bench

QUICK = ("--settle", "0.3", "--check-timeout", "0")
FILES = {
    "pyproject.toml": '[tool.mpota]\nname = "pump"\nversion = "1.0"\n',
    "main.py": "import pump\n",
    "lib/pump.py": "SPEED = 1\n",
    "lib/page.html": "<p>pump</p>\n" * 400,
}

Run = Callable[..., str]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    directory = tmp_path / "pump"
    for name, text in FILES.items():
        write(directory, name, text)
    return directory


def write(directory: Path, name: str, text: str | bytes) -> None:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def speed(board: Bench) -> str:
    return board.say("exec", "import pump; print(pump.SPEED)").strip()


def test_a_directory_is_pushed_and_what_changed_is_all_that_is_sent_then(
    board: Bench, mpota: Run, project: Path
) -> None:
    first = mpota("push", board.port.path, project, *QUICK)
    assert first.splitlines()[0] == "pump 1.0: 3 files"
    assert "ota_0 runs with what pump 1.0 brought, confirmed (" in first.splitlines()[-1]
    assert speed(board) == "1"
    write(project, "lib/pump.py", "SPEED = 2\n")
    board.wire.sent_size = 0
    second = mpota("push", board.port.path, project, *QUICK)
    assert "sending 1 file of 3: " in second
    assert board.wire.sent_size < len(FILES["lib/page.html"]) + 4096
    assert speed(board) == "2"
    assert board.say("exec", "print(len(open('lib/page.html').read()))") == "4800\n"


def test_what_runs_already_is_not_sent_again(board: Bench, mpota: Run, project: Path) -> None:
    mpota("push", board.port.path, project, *QUICK)
    board.flash.restart_count()
    shown = mpota("push", board.port.path, project, *QUICK)
    assert shown.splitlines()[-1] == "ota_0 runs pump 1.0 already, confirmed: nothing to do"
    assert board.flash.operations == []
    shown = mpota("push", board.port.path, project, "--force", *QUICK)
    assert "sending 0 files of 3: " in shown
    assert "confirmed" in shown.splitlines()[-1]


def test_files_that_the_program_has_changed_are_sent(
    board: Bench, mpota: Run, project: Path
) -> None:
    mpota("push", board.port.path, project, *QUICK)
    board.write("lib/pump.py", "SPEED = 9")
    write(project, "main.py", "import pump\nprint(pump.SPEED)\n")
    assert "sending 2 files of 3: " in mpota("push", board.port.path, project, *QUICK)
    assert speed(board) == "1"


def test_a_change_that_is_not_healthy_goes_back(board: Bench, mpota: Run, project: Path) -> None:
    mpota("push", board.port.path, project, *QUICK)
    write(project, "lib/pump.py", "SPEED = 1 / 0\n")
    write(project, "pyproject.toml", FILES["pyproject.toml"] + "check = \"__import__('pump')\"\n")
    shown = mpota("push", board.port.path, project, *QUICK, exit_code=4)
    assert "failed its health check (ZeroDivisionError: " in shown
    assert speed(board) == "1"
    shown = mpota("push", board.port.path, project, "--json", *QUICK, exit_code=1)
    assert json.loads(shown[: shown.rindex("}") + 1])["code"] == "failed-version"


def test_what_the_program_ends_with_is_shown(board: Bench, mpota: Run, project: Path) -> None:
    mpota("push", board.port.path, project, *QUICK)
    write(project, "main.py", "import pump\nprint(pump.PACE)\n")
    shown = mpota("push", board.port.path, project, *QUICK).splitlines()
    assert shown[-4] == "the program stopped:"
    assert shown[-2].startswith("AttributeError: ")
    assert "AttributeError" not in mpota("push", board.port.path, project, "--json", *QUICK)


def test_a_key_of_the_project_signs_what_a_board_with_keys_takes(
    board: Bench, mpota: Run, project: Path, tmp_path: Path
) -> None:
    public = releases.key().public.digest.hex()
    board.say("exec", f"import ota; ota.keys.add({public!r})")
    shown = mpota("push", board.port.path, project, *QUICK, exit_code=1)
    assert "signed" in shown
    write(tmp_path, "dev.pem", releases.key().to_pem())
    mpota("push", board.port.path, project, "--key", "dev.pem", *QUICK)
    write(project, "dev.pem", releases.key().to_pem())
    write(project, "pyproject.toml", FILES["pyproject.toml"] + 'key = "dev.pem"\n')
    write(project, "lib/pump.py", "SPEED = 2\n")
    assert "sending 1 file of 3" in mpota("push", board.port.path, project, *QUICK)
    assert speed(board) == "2"


def test_an_app_goes_along_once_and_then_what_differs(
    board: Bench, mpota: Run, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write(project, "pyproject.toml", FILES["pyproject.toml"] + 'firmware = "app.bin"\n')
    write(project, "app.bin", app("v1.27.0"))
    shown = mpota("push", board.port.path, project, *QUICK)
    assert shown.splitlines()[0] == "pump 1.0: 3 files, an app"
    assert "ota_1 runs pump 1.0, confirmed (" in shown.splitlines()[-1]
    write(project, "lib/pump.py", "SPEED = 2\n")
    shown = mpota("push", board.port.path, project, *QUICK)
    assert "sending 1 file of 3" in shown
    assert "ota_1 runs with what pump 1.0 brought, confirmed (" in shown.splitlines()[-1]
    write(project, "app.bin", app("v1.28.0"))
    report = json.loads(mpota("push", board.port.path, project, "--json", *QUICK))
    assert (report["slot"], report["app"]) == ("ota_0", True)
    assert report["sent"] < len(app()) // 4
    assert speed(board) == "2"


def test_a_bundle_leaves_out_what_the_board_has(
    board: Bench, mpota: Run, project: Path, tmp_path: Path
) -> None:
    for version in ("1.0", "1.1"):
        write(project, "lib/pump.py", f"SPEED = {version}\n")
        options = ("--name", "pump", "--version", version, "-o", f"{version}.bundle")
        mpota("bundle", "--files", project, *options)
    mpota("push", board.port.path, "1.0.bundle", *QUICK)
    shown = mpota("push", board.port.path, "1.1.bundle", *QUICK)
    assert "sending 1 file of 4" in shown
    assert speed(board) == "1.1"


def test_a_board_with_ota_0_1_is_sent_whole_bundles(mpota: Run, project: Path) -> None:
    with bench() as board:
        board.board.frozen = old_package.package()
        with board.off():
            pass
        for version in ("1.0", "1.1"):
            write(project, "lib/pump.py", f"SPEED = {version}\n")
            options = ("--name", "pump", "--version", version, "-o", f"{version}.bundle")
            mpota("bundle", "--files", project, *options)
            shown = mpota("push", board.port.path, f"{version}.bundle", *QUICK)
            assert "instead of" not in shown
            assert speed(board) == version
        shown = mpota("push", board.port.path, project, *QUICK, exit_code=1)
        assert "pump 1.0 has format 2, the board has ota 0.1" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("main.py", "--watch"), "--key and --watch are for directories, 'main.py' is none"),
        (("pump", "--watch", "--json"), "--watch is for people"),
        (("pump", "--check", "1 +"), "is no expression"),
    ],
)
def test_what_makes_no_sense_is_told_before_anything_is_asked_of_the_board(
    mpota: Run, project: Path, options: tuple[str, ...], words: str
) -> None:
    assert words in mpota("push", "/dev/no-such-port", *options, exit_code=2)


def test_elsewhere_than_at_a_repl_the_program_checks_its_health(mpota: Run, project: Path) -> None:
    shown = mpota("push", "tcp://127.0.0.1:1", project, "--check", "True", exit_code=2)
    assert "--check needs a serial port" in shown


# --- on each save


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """What it prints, up to a line with ``words``."""
    assert process.stdout
    shown = ""
    for line in process.stdout:
        shown += line
        if words in line:
            return shown
    raise AssertionError(shown)


@pytest.fixture
def watching(board: Bench, project: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "mpota", "push", board.port.path, str(project), "--watch"]
    command += ["--settle", "0.3", "--check", "__import__('pump')", "--check-timeout", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_each_save_is_pushed_until_ctrl_c(
    board: Bench, project: Path, watching: subprocess.Popen[str]
) -> None:
    assert "confirmed (" in read_until(watching, "watching")
    for name, text in (("lib/pump.py", "SPEED = 2\n"), ("more.py", "x = 1\n"), ("z.py", "")):
        write(project, name, text)  # a burst
    shown = read_until(watching, "watching")
    assert "sending 3 files of 5" in shown
    assert shown.count("confirmed (") == 1

    write(project, "lib/pump.py", "SPEED = 1 / 0\n")
    shown = read_until(watching, "watching")
    assert "mpota: ota_0 with the new files failed its health check (ZeroDivisionError" in shown

    write(project, "pyproject.toml", "[tool.mpota")
    assert "mpota: pyproject.toml is not TOML" in read_until(watching, "watching")
    write(project, "pyproject.toml", FILES["pyproject.toml"])
    write(project, "lib/pump.py", "SPEED = 3\n")
    assert "confirmed (" in read_until(watching, "watching")

    watching.send_signal(signal.SIGINT)
    shown, _ = watching.communicate(timeout=30)
    assert shown.splitlines()[-1] == (
        "no longer watching: ota_0 runs with what pump 1.0 brought, confirmed"
    )
    assert watching.returncode == 0
    assert speed(board) == "3"
