"""The command line as a whole: groups, names, and what bundles hold."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mpota import cli
from mpota.firmware.firmware import read_app
from mpota.firmware.sample import build_app

Run = Callable[..., tuple[int, bytes, str]]


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run a command line; (exit code, standard output, standard error)."""

    def run(*args: object) -> tuple[int, bytes, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(arg) for arg in args])
        sys.stdout.flush()
        captured = capfdbinary.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err.decode()

    return run


def _help(*args: str) -> str:
    """Of a process of its own: it changes click for good."""
    command = [sys.executable, "-m", "mpota", *args]
    plain = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=plain, check=False).stdout


def test_help_shows_all_commands_in_groups_within_80_columns() -> None:
    shown = _help("--help")
    assert all(f"\n{group}:\n" in shown for group in cli._GROUPS)
    for name, text in cli._COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", shown, re.M)
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("name", ["fs", "ble"])
def test_a_command_with_commands_shows_its_help_when_alone(name: str) -> None:
    assert f"Usage: mpota {name}" in _help(name)


@pytest.mark.parametrize(
    ("typed", "hint"),
    [("pusch", "mpota push or mpota publish"), ("flahs", "mpota flash"), ("xyzzy", "mpota --help")],
)
def test_a_name_that_is_no_command_is_told_with_what_may_be_meant(
    run: Run, typed: str, hint: str
) -> None:
    code, out, error = run(typed, "x")
    assert (code, out) == (2, b"")
    assert error == f"mpota: there is no command '{typed}'\n  hint: {hint}\n"


@pytest.fixture
def bundle(tmp_path: Path, run: Run) -> Path:
    (tmp_path / "app.bin").write_bytes(build_app("esp32", size=0x18000))
    (tmp_path / "src/lib").mkdir(parents=True)
    (tmp_path / "src/lib/pump.py").write_bytes(b"SPEED = 3\n")
    path = tmp_path / "pump.bundle"
    release = ("--name", "pump", "--version", "2.1", "--counter", "7", "--compress")
    assert run("bundle", tmp_path / "app.bin", "--files", tmp_path / "src", *release, "-o", path)
    return path


def test_ls_lists_what_a_bundle_brings(run: Run, bundle: Path) -> None:
    code, out, _ = run("ls", bundle)
    assert code == 0
    assert out.startswith(b"pump 2.1 for esp32, counter 7, not signed\n")
    assert out.endswith(b"         10  lib/pump.py\n")
    found = json.loads(run("ls", bundle, "--json")[1])
    assert found["files"] == {"lib/pump.py": 10}
    assert [payload["kind"] for payload in found["payloads"]] == ["app", "files"]


def test_cat_writes_a_file_of_a_bundle_byte_for_byte(run: Run, bundle: Path) -> None:
    assert run("cat", bundle, "lib/pump.py")[1] == b"SPEED = 3\n"
    assert json.loads(run("cat", bundle, "manifest.json")[1])["counter"] == 7
    code, out, error = run("cat", bundle, "lib/pomp.py")
    assert (code, out) == (2, b"")
    assert "the bundle has no 'lib/pomp.py'" in error


def test_what_is_no_bundle_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "app.bin").write_bytes(build_app("esp32", size=0x18000))
    code, _, error = run("ls", tmp_path / "app.bin")
    assert (code, error.splitlines()[0]) == (1, "mpota: app.bin is no bundle")


def test_an_app_has_one_digest_wherever_it_is_shown(run: Run, bundle: Path) -> None:
    path = bundle.with_name("app.bin")
    digest = read_app(path.read_bytes(), path.name).image.digest
    assert digest is not None
    short = digest.hex()[:16].encode()
    assert short in run("show", path)[1]
    assert short in run("ls", bundle)[1]
    release = ("--name", "pump", "--version", "2.1", "-o", bundle.with_name("other.bundle"))
    assert short in run("bundle", path, *release)[1]


@pytest.fixture
def bash(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """A bash that completes for us: what it runs when a Tab and Enter follow ``text``."""
    program = tmp_path / "bin" / "mpota"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m mpota "$@"\n')
    program.chmod(0o755)
    (tmp_path / "firmware.bin").touch()
    (tmp_path / "board.repl").touch()
    master, slave = pty.openpty()
    process = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        stdin=slave, stdout=slave, stderr=slave, cwd=tmp_path, start_new_session=True,
        env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "TERM": "dumb"},
    )  # fmt: skip
    os.close(slave)

    def read_to(mark: str) -> str:
        output = b""
        while not re.search(mark.encode(), output):
            assert select.select([master], [], [], 60)[0], output
            output += os.read(master, 4096)
        return output.decode()

    def complete(text: str) -> str:
        os.write(master, f"{text}\t\n".encode())
        found = re.search(r"ran<(.*)>", read_to("ran<.*>"))
        assert found is not None
        return found[1].strip()

    os.write(master, b'eval "$(_MPOTA_COMPLETE=bash_source mpota)"\n')
    os.write(master, b"""mpota() { echo "ran""<$*>"; }; echo rea""dy\n""")
    read_to("ready")
    yield complete
    process.kill()
    process.wait()
    os.close(master)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_options_ports_and_files(bash: Callable[[str], str]) -> None:
    assert bash("mpota rollb") == "rollback"
    assert bash("mpota fs mkf") == "fs mkfs"
    assert bash("mpota push --set") == "push --settle"
    assert bash("mpota show firmw") == "show firmware.bin"
    assert bash("mpota push board.r") == "push board.repl"
    assert bash("mpota push u0 firmw") == "push u0 firmware.bin"
    assert bash("mpota fs ls firmw") == "fs ls firmware.bin"
    assert bash("mpota flash firmware.bin au") == "flash firmware.bin auto"
    assert bash("mpota resize firmware.bin --layout rom") == "resize firmware.bin --layout romfs"
    assert bash("mpota sample esp32p") == "sample esp32p4"


def test_the_help_says_how_completion_begins() -> None:
    assert 'eval "$(_MPOTA_COMPLETE=bash_source mpota)"' in _help("--help")
