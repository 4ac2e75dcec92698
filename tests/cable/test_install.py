"""`mpota install` on a virtual board, through the real mpremote transport."""

from __future__ import annotations

import functools
import http.server
import runpy
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mpota.push.install import _SWITCH, install
from mpota.push.repl import Session
from mpota.release.signing import PrivateKey, public_to_pem
from mpota.virtual.board import Board
from mpota.virtual.cuts import ALL_MODES, Scenario
from mpota.virtual.flash import VirtualFlash

from tests.support import boards, ota_files
from tests.support.consoles import Bench, bench
from tests.support.cuts import Cuts, some


@pytest.fixture
def board() -> Iterator[Bench]:
    with bench() as board:
        yield board


@pytest.fixture(scope="module")
def content() -> bytes:
    """The flash of a board that has the package."""
    with bench() as board, Session(board.port.path) as session:
        install(session)
    return board.flash.snapshot()


@pytest.fixture
def installed(content: bytes) -> Iterator[Bench]:
    with bench(VirtualFlash.create(len(content), {0: content})) as board:
        yield board


def _import(board: Bench) -> str:
    return board.say("exec", "import ota; print(ota.__file__, ota.status.info()['running'])")


def test_the_package_is_compiled_for_the_board_and_works(
    board: Bench, mpota: Callable[..., str]
) -> None:
    shown = mpota("install", board.port.path)
    assert "files, compiled; 0 were there; all verified" in shown
    assert _import(board) == "/lib/ota/__init__.mpy ota_0\n"


def test_a_second_install_writes_nothing(installed: Bench, mpota: Callable[..., str]) -> None:
    installed.flash.restart_count()
    assert mpota("install", installed.port.path).startswith("up to date: ")
    assert installed.flash.operations == []


def test_what_differs_is_replaced_and_what_would_hide_it_removed(
    installed: Bench, mpota: Callable[..., str]
) -> None:
    board = installed
    board.write("/lib/ota/core.pack", "damaged")
    board.write("/lib/ota/status.py", "raise SystemExit")  # MicroPython looks for .py first
    board.write("/lib/ota/notes.txt", "mine")
    shown = mpota("install", board.port.path)
    assert "removed: /lib/ota/status.py\n" in shown
    assert "copied 1 files, " in shown
    assert _import(board) == "/lib/ota/__init__.mpy ota_0\n"
    assert "notes.txt" in board.say("fs", "ls", "/lib/ota")


def test_without_mpy_cross_the_source_is_installed(
    board: Bench, mpota: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpota.push.install.can_compile", lambda format: False)
    assert "as source" in mpota("install", board.port.path)
    assert _import(board) == "/lib/ota/__init__.py ota_0\n"


@pytest.mark.parametrize(
    ("cut_after", "is_power_cut"), [(2_000, False), (30_000, True), (60_000, False)]
)
def test_a_cable_pulled_leaves_the_old_package_and_the_same_command_completes(
    board: Bench, mpota: Callable[..., str], cut_after: int, is_power_cut: bool
) -> None:
    board.say("fs", "mkdir", "/lib", "fs", "mkdir", "/lib/ota")
    board.write("/lib/ota/__init__.py", "VERSION = 'old'\n")
    board.wire.cut_after = cut_after
    board.wire.sent_size = 0
    assert "mpota: /dev/" in mpota("install", board.port.path, exit_code=1)
    if is_power_cut:
        with board.off():
            pass
    board.plug_in()
    assert board.say("exec", "import ota; print(ota.VERSION)") == "old\n"
    mpota("install", board.port.path)
    assert _import(board) == "/lib/ota/__init__.mpy ota_0\n"
    assert ".new" not in board.say("fs", "ls", "/lib/ota")


def test_the_program_on_the_board_runs_again_afterwards(
    installed: Bench, mpota: Callable[..., str]
) -> None:
    installed.write("main.py", "f = open('runs', 'a')\nf.write('x')\nf.close()")
    installed.flash.restart_count()
    mpota("install", installed.port.path)
    deadline = time.monotonic() + 20
    while not installed.flash.operations and time.monotonic() < deadline:
        time.sleep(0.01)
    assert installed.say("resume", "exec", "print(open('runs').read())") == "x\n"


def test_keys_and_certificates_come_along(
    installed: Bench, mpota: Callable[..., str], tmp_path: Path
) -> None:
    board = installed
    key = PrivateKey.generate()
    (tmp_path / "key.pem").write_bytes(public_to_pem(key.public))
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    for _ in range(2):
        shown = mpota("install", board.port.path, "--key", "key.pem", "--ca", "ca.pem")
        assert f"trusted key: {key.public.digest.hex()}\n" in shown
        assert 'cafile="/ca.pem"' in shown
    assert "BEGIN" in board.say("fs", "cat", "/ca.pem")


def test_what_is_no_key_is_refused(
    installed: Bench, mpota: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "key.pem").write_text("not a key")
    shown = mpota("install", installed.port.path, "--key", "key.pem", exit_code=1)
    assert "mpota: key.pem: " in shown


def test_a_port_that_is_not_there_is_named(mpota: Callable[..., str]) -> None:
    assert "/dev/nothing" in mpota("install", "/dev/nothing", exit_code=1)


def test_a_full_file_system_is_named_before_anything_is_written(
    board: Bench, mpota: Callable[..., str]
) -> None:
    board.say("exec", "f = open('big', 'w')\nfor _ in range(240): f.write('x' * 4096)\nf.close()")
    board.flash.restart_count()
    shown = mpota("install", board.port.path, exit_code=1)
    assert "the files need " in shown
    assert board.flash.operations == []


# --- parts


def test_a_board_gets_the_core_and_is_told_of_the_other_parts(
    board: Bench, mpota: Callable[..., str]
) -> None:
    shown = mpota("install", board.port.path)
    assert (
        "parts: core; not installed: "
        "release, encoded, ble, listen, web, channel, ddi, mqtt (--with)\n" in shown
    )
    assert board.say("exec", "import ota; print(ota.parts(), ota.__version__)") == (
        "['core'] 0.2.0\n"
    )


MISSING = {
    "ota.release.install('x')": "release",
    "ota.keys.trusted()": "release",
    "ota.ble.start": "ble",
    "ota.listen.start": "listen",
    "ota.channel.Channel": "channel",
    "ota.trial.report()": "channel",
    "ota.ddi.Client": "ddi",
    "ota.mqtt.Updates": "mqtt",
    "ota.update.from_file('x.bundle', verbose=False)": "release",
    "ota.update.from_file('x.encoded', verbose=False)": "encoded",
}


def test_a_part_that_is_missing_is_named_with_what_installs_it(
    installed: Bench, mpota: Callable[..., str]
) -> None:
    installed.write("x.bundle", "manifest.json" + "\0" * 5000)
    installed.write("x.encoded", "OTAF" + "\0" * 5000)
    for call, part in MISSING.items():
        shown = installed.say(
            "exec",
            "import ota\ntry:\n    "
            + call
            + "\nexcept ota.OTAError as error:\n    print(error.code, error)",
        )
        text = f"the part '{part}' is not installed: mpota install PORT --with {part}"
        assert shown == f"part {text}\n", call
    assert installed.say("exec", "import ota; print(hasattr(ota, 'nothing'))") == "False\n"


def test_parts_stay_and_others_come_along(installed: Bench, mpota: Callable[..., str]) -> None:
    board = installed
    assert "parts: core, ble; " in mpota("install", board.port.path, "--with", "ble")
    assert "up to date: " in mpota("install", board.port.path)
    shown = mpota("install", board.port.path, "--with", "listen", "--with", "encoded")
    assert "copied 2 files, " in shown  # what it shares with ble is there
    assert "parts: core, encoded, ble, listen; " in shown
    assert "parts: core, release, encoded, ble, listen, web, channel, ddi, mqtt\n" in mpota(
        "install", board.port.path, "--all"
    )
    assert board.say("exec", "import ota; print(ota.parts())") == (
        "['core', 'release', 'encoded', 'ble', 'listen', 'web', 'channel', 'ddi', 'mqtt']\n"
    )


def test_a_part_brings_what_it_needs(board: Bench, mpota: Callable[..., str]) -> None:
    shown = mpota("install", board.port.path, "--with", "channel")
    assert "parts: core, release, channel; " in shown
    assert board.say("exec", "import ota; print(ota.parts())") == "['core', 'release', 'channel']\n"


def test_a_part_that_there_is_not_is_refused_before_the_board_is_stopped(
    mpota: Callable[..., str],
) -> None:
    shown = mpota("install", "/dev/nothing", "--with", "wings", exit_code=2)
    assert "there is no part 'wings'" in shown
    assert "release, encoded, ble, listen" in shown


def test_a_board_with_keys_gets_releases(installed: Bench, mpota: Callable[..., str]) -> None:
    installed.say("exec", "from esp32 import NVS; NVS('ota').set_blob('trust', b'x')")
    assert "parts: core, release; " in mpota("install", installed.port.path)


def test_a_board_that_took_a_release_gets_releases(
    installed: Bench, mpota: Callable[..., str]
) -> None:
    installed.say("fs", "mkdir", "/.ota")
    assert "parts: core, release; " in mpota("install", installed.port.path)


# --- boards with 0.1

OLD_PARTS = ("release", "encoded", "ble", "listen")  # all that it could


@pytest.fixture
def old() -> Iterator[Bench]:
    """A board with 0.1, a key and a counter, and what somebody has put beside the package."""
    files = {f"/lib/ota/{name}": data for name, data in ota_files.old_files().items()}
    with bench() as board:
        with board.off():
            content = board.flash.snapshot()
            board.flash.restore(ota_files.put(content, files | {"/lib/ota/notes.txt": b"mine"}))
        yield board


def test_a_board_with_0_1_keeps_its_keys_and_all_that_it_could(
    old: Bench, mpota: Callable[..., str]
) -> None:
    digest = PrivateKey.generate().public.digest.hex()
    old.say(
        "exec",
        f"import ota.keys\nota.keys.add({digest!r})\n"
        "trust = ota.keys.load()\ntrust.counter = 41\ntrust.save()",
    )
    shown = mpota("install", old.port.path)
    assert "removed: /lib/ota/judge.mpy\n" in shown
    others = "web, channel, ddi, mqtt "
    assert f"parts: core, release, encoded, ble, listen; not installed: {others}" in shown
    assert f"trusted key: {digest}\n" in shown
    assert old.say("exec", "import ota; print(ota.__version__, ota.keys.counter())") == "0.2.0 41\n"
    files = ota_files.tree(old.flash.snapshot(), "/lib/ota")
    assert files == ota_files.new_files(*OLD_PARTS) | {"notes.txt": b"mine"}
    assert ota_files.tree_names(old.flash.snapshot(), "/lib") == ["ota"]
    assert mpota("install", old.port.path).startswith("up to date: ")


def test_a_package_of_somebody_at_the_root_is_left_alone(
    old: Bench, mpota: Callable[..., str]
) -> None:
    old.say("fs", "mkdir", "/ota")
    old.write("/ota/__init__.py", "VERSION = 'mine'\n")
    shown = mpota("install", old.port.path, exit_code=1)  # the keys cannot be asked for
    files = ota_files.tree(old.flash.snapshot(), "/lib/ota")
    assert files == ota_files.new_files(*OLD_PARTS) | {"notes.txt": b"mine"}, shown
    assert ota_files.tree_names(old.flash.snapshot(), "/ota") == ["__init__.py"]


def test_where_both_do_not_fit_the_old_one_stays_and_what_to_free_is_named(
    old: Bench, mpota: Callable[..., str]
) -> None:
    old.say(
        "exec",
        "import os\ns = os.statvfs('/')\nf = open('big', 'w')\n"
        "for _ in range(s[3] - 20): f.write('x' * 4096)\nf.close()",
    )
    old.flash.restart_count()
    shown = mpota("install", old.port.path, exit_code=1)
    assert "beside the old one" in shown
    assert "hint: free " in shown
    assert old.flash.operations == []
    assert ota_files.tree(old.flash.snapshot(), "/lib/ota") == ota_files.old_files() | {
        "notes.txt": b"mine"
    }


def test_at_every_cut_of_the_switch_a_whole_package_is_imported(cuts: Cuts) -> None:
    first = {"/lib/ota/__init__.py": b"__version__ = 'old'\nfrom .errors import OTAError\n"}
    first["/lib/ota/errors.py"] = b"OTAError = ValueError\n"
    first["/lib/ota/judge.py"] = b""
    second = {f"/lib/ota.new/{name}": data for name, data in ota_files.new_files("ble").items()}
    whole = {path.rpartition("/")[2]: data for path, data in second.items()}
    others = {"/lib/ota.new/moving": b"", "/lib/ota/notes.txt": b"mine", "/app/main.py": b""}
    look = "import ota, os; os.chdir('/app'); ota.OTAError\nprint(ota.__version__)"
    if_new = "\nif ota.__version__ != 'old': print(ota.status.ready(), ota.parts())"
    board = boards.formatted(table=ota_files.TABLE)
    start = ota_files.put(board.flash.snapshot(), first | second | others)
    finish = f"{_SWITCH}\n_finish()"
    scenario = Scenario("package-switch", start, lambda board: board.run(finish))

    def judge(board: Board) -> str:
        run = board.run(look + if_new)
        assert run.output in ("old\n", "0.2.0\nTrue ['core', 'ble']\n"), run.console
        board.run(finish)
        assert ota_files.tree(board.flash.snapshot(), "/lib/ota") == whole | {"notes.txt": b"mine"}
        assert ota_files.tree_names(board.flash.snapshot(), "/lib") == ["ota"]
        return run.output

    seen = cuts.try_all(scenario, board, judge, some(40, modes=ALL_MODES))
    assert cuts.is_one or len(seen) == 2


# --- mip


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """device/mpy as build_mpy.py makes it."""
    directory = tmp_path_factory.mktemp("mip")
    script = Path(__file__).parents[2] / "device/build_mpy.py"
    build: Callable[[Path], None] = runpy.run_path(str(script))["build"]
    build(directory)
    return directory


def _parts(board: Bench) -> str:
    return board.say("exec", "import ota, ota.update; print(ota.parts())")


def test_mip_installs_parts_from_a_clone(board: Bench, lists: Path) -> None:
    board.say("mip", "install", str(lists / "package.json"))
    assert _parts(board) == "['core']\n"
    board.say("mip", "install", str(lists / "ble.json"))
    assert _parts(board) == "['core', 'ble']\n"


def test_mip_installs_a_part_from_a_server(board: Bench, lists: Path) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=lists)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        board.say("mip", "install", f"http://127.0.0.1:{server.server_port}/release.json")
        server.shutdown()
    assert _parts(board) == "['core', 'release']\n"
