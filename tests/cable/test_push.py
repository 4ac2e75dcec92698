"""`mpota push` and `status` on a virtual board, through the real mpremote transport."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest
from mpota.firmware.sample import build_app, build_firmware
from mpota.formats.chips import CHIPS
from mpota.push.repl import Session
from mpota.push.serial import push
from mpota.push.update import Options, Package, RolledBackError
from mpota.release.signing import PrivateKey, public_to_pem

from tests.support import old_package
from tests.support.consoles import APP_SIZE, CHIP, Bench, app, bench

QUICK = ("--settle", "0.3", "--check-timeout", "0")
PIECE = 4096

Run = Callable[..., str]


@pytest.fixture
def new(tmp_path: Path) -> Path:
    path = tmp_path / "new.bin"
    path.write_bytes(app("v1.27.0"))
    return path


def _running(board: Bench) -> str:
    script = "import os, ota; print(ota.status.info()['running'], os.uname().release)"
    return board.say("exec", script).strip()


def _state(mpota: Run, board: Bench, label: str) -> str:
    info = json.loads(mpota("status", board.port.path, "--json"))
    return next(slot["state"] for slot in info["slots"] if slot["label"] == label)


# --- it works


def test_an_app_is_sent_booted_and_confirmed(board: Bench, mpota: Run, new: Path) -> None:
    shown = mpota("push", board.port.path, new, *QUICK)
    assert shown.splitlines()[-1] == "ota_1 runs v1.27.0, confirmed"
    assert _state(mpota, board, "ota_1") == "VALID"
    with board.off():
        pass
    assert _running(board) == "ota_1 1.27.0"


def test_of_a_merged_firmware_the_app_is_sent(board: Bench, mpota: Run, tmp_path: Path) -> None:
    (tmp_path / "merged.bin").write_bytes(build_firmware(CHIP, app=app("v1.27.0")))
    report = json.loads(mpota("push", board.port.path, "merged.bin", "--json", *QUICK))
    assert report["sent"] == APP_SIZE
    assert (report["slot"], report["version"], report["new"]) == ("ota_1", "v1.27.0", True)


def test_what_runs_already_is_not_sent_again(board: Bench, mpota: Run, new: Path) -> None:
    mpota("push", board.port.path, new, *QUICK)
    board.flash.restart_count()
    assert "nothing to do" in mpota("push", board.port.path, new, *QUICK)
    assert board.flash.operations == []


def test_pieces_that_the_slot_holds_are_not_sent(board: Bench, mpota: Run, tmp_path: Path) -> None:
    first, second = bytearray(app("v1.27.0")), app("v1.27.0")
    board.flash.write(0x50000, bytes(first[:60_000]).ljust(60_000))
    (tmp_path / "app.bin").write_bytes(second)
    report = json.loads(mpota("push", board.port.path, "app.bin", "--json", *QUICK))
    assert report["sent"] == APP_SIZE - 60_000 // PIECE * PIECE


def test_a_bundle_brings_firmware_and_files_and_is_recognised(
    board: Bench, mpota: Run, new: Path, tmp_path: Path
) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/thing.py").write_text("SAYS = 'with the firmware'\n")
    bundle = ("--name", "lamp", "--version", "2.0", "--files", "tree", "-o", "lamp.bundle")
    mpota("bundle", new, *bundle)
    board.write("boot.py", "import ota.boot; ota.boot.activate()")
    assert "runs lamp 2.0, confirmed" in mpota("push", board.port.path, "lamp.bundle", *QUICK)
    assert board.say("exec", "import thing; print(thing.SAYS)") == "with the firmware\n"
    assert "nothing to do" in mpota("push", board.port.path, "lamp.bundle", *QUICK)
    assert "release: lamp 2.0\n" in mpota("status", board.port.path)


def test_a_url_is_fetched_by_the_board(board: Bench, mpota: Run) -> None:
    content = app("v1.27.0")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/firmware.bin"
        mpota("push", board.port.path, url, *QUICK)
        server.shutdown()
    assert _running(board) == "ota_1 1.27.0"


def test_status_is_a_table_and_json(board: Bench, mpota: Run) -> None:
    shown = mpota("status", board.port.path)
    assert "running: ota_0, next boot: ota_0\nnext update goes to: ota_1\n" in shown
    assert "ota_0  VALID  v1.26.1  " in shown
    assert json.loads(mpota("status", board.port.path, "--json"))["running"] == "ota_0"


def test_without_the_package_the_way_to_it_is_named(mpota: Run, new: Path) -> None:
    with bench() as board:
        for command in (("status", board.port.path), ("push", board.port.path, new)):
            assert f"hint: mpota install {board.port.path}" in mpota(*command, exit_code=1)


def test_a_board_with_ota_0_1_is_updated_as_well(mpota: Run, new: Path) -> None:
    with bench() as board:
        board.board.frozen = old_package.package()
        with board.off():
            pass
        shown = mpota("push", board.port.path, new, *QUICK)
        assert shown.splitlines()[-1] == "ota_1 runs v1.27.0, confirmed"


# --- it does not work, and the board is well


def test_a_lack_of_memory_is_told_with_what_was_wanted(board: Bench, mpota: Run, new: Path) -> None:
    board.flash.restart_count()
    board.write("boot.py", "import gc\ntaken = bytearray(gc.mem_free() - 24000)")
    shown = mpota("push", board.port.path, new, *QUICK, exit_code=1)
    assert re.search("not enough memory for .*: memory allocation failed, allocating", shown)
    assert "bytes are free" in shown
    board.write("boot.py", "")
    assert _running(board) == "ota_0 1.26.1"


def test_another_chip_s_app_is_refused_before_a_byte_is_erased(
    board: Bench, mpota: Run, tmp_path: Path
) -> None:
    other = next(chip.name for chip in CHIPS if chip.name != CHIP)
    (tmp_path / "other.bin").write_bytes(build_app(other, size=APP_SIZE))
    board.flash.restart_count()
    shown = mpota("push", board.port.path, "other.bin", *QUICK, exit_code=1)
    assert "this board is ESP32" in shown
    assert board.flash.operations == []
    assert _running(board) == "ota_0 1.26.1"


def test_an_app_too_long_for_the_slot_is_refused(board: Bench, mpota: Run, tmp_path: Path) -> None:
    (tmp_path / "long.bin").write_bytes(app(size=0x40010))
    shown = mpota("push", board.port.path, "long.bin", *QUICK, exit_code=1)
    assert "ota_1 holds 262144" in shown
    assert "hint: mpota resize" in shown


def test_a_damaged_file_is_refused_at_the_desk(board: Bench, mpota: Run, new: Path) -> None:
    new.write_bytes(new.read_bytes()[:-1000])
    mpota("push", board.port.path, new, *QUICK, exit_code=1)
    assert _running(board) == "ota_0 1.26.1"


def test_where_keys_are_installed_an_unsigned_app_is_refused_and_a_signed_bundle_taken(
    board: Bench, mpota: Run, new: Path, tmp_path: Path
) -> None:
    key = PrivateKey.generate()
    (tmp_path / "key.pem").write_bytes(key.to_pem())
    (tmp_path / "public.pem").write_bytes(public_to_pem(key.public))
    mpota("install", board.port.path, "--key", "public.pem")
    assert "signed" in mpota("push", board.port.path, new, *QUICK, exit_code=1)
    bundle = ("--name", "lamp", "--version", "2.0", "--key", "key.pem", "-o", "lamp.bundle")
    mpota("bundle", new, *bundle)
    mpota("push", board.port.path, "lamp.bundle", *QUICK)
    assert _running(board) == "ota_1 1.27.0"


def test_an_app_that_crashes_is_rolled_back(board: Bench, mpota: Run, new: Path) -> None:
    board.write(
        "main.py",
        "import os, machine\nif os.uname().release == '1.27.0':\n  machine.reset()",
    )
    shown = mpota("push", board.port.path, new, *QUICK, exit_code=3)
    assert "the board went back to ota_0" in shown
    assert "ota_1 ABORTED" in shown
    assert _running(board) == "ota_0 1.26.1"


def test_a_refusal_is_reported_in_the_bootloader_s_words(board: Bench, new: Path) -> None:
    # The flash loses a byte between the switch and the boot.
    def on_step(text: str) -> None:
        if "restarting" in text:
            content = bytearray(board.flash.snapshot())
            content[0x50000 + 0x2000] ^= 0x10
            board.flash.restore(bytes(content))

    with Session(board.port.path) as session, pytest.raises(RolledBackError) as error:
        push(session, Package.open(str(new)), Options(settle_s=0.3, tell=on_step))
    assert "the board went back to ota_0" in str(error.value)
    assert any("esp_image: Checksum failed." in line for line in error.value.details)


def test_a_check_that_resets_the_board_is_a_rollback(board: Bench, mpota: Run, new: Path) -> None:
    check = ("--check", "__import__('machine').reset()")
    shown = mpota("push", board.port.path, new, *check, *QUICK, exit_code=3)
    assert "the board went back to ota_0" in shown


def test_an_unhealthy_app_is_given_up(board: Bench, mpota: Run, new: Path) -> None:
    shown = mpota("push", board.port.path, new, "--check", "1 > 2", *QUICK, exit_code=4)
    assert "ota_1 failed its health check (1 > 2 is not true): given up, ota_0 runs again" in shown
    assert _state(mpota, board, "ota_1") == "INVALID"
    assert _running(board) == "ota_0 1.26.1"
    shown = mpota("push", board.port.path, new, *QUICK, exit_code=1)
    assert "has failed on this board before" in shown
    mpota("push", board.port.path, new, *QUICK, "--force")
    assert _running(board) == "ota_1 1.27.0"


def test_a_check_is_tried_until_it_holds(
    board: Bench, mpota: Run, new: Path, tmp_path: Path
) -> None:
    (tmp_path / "check.py").write_text(
        "import os\nassert os.uname().release == '1.27.0'\n"
        "tries = globals().get('tries', 0) + 1\n"
        "if tries < 3: raise ValueError('not yet')\n"
    )
    mpota("push", board.port.path, new, "--settle", "0.3", "--check", "check.py")
    assert _state(mpota, board, "ota_1") == "VALID"


# --- the cable


@pytest.mark.parametrize("is_power_cut", [False, True], ids=["powered", "power-lost"])
@pytest.mark.parametrize("cut_after", [50, 3_000, 30_000, 70_001, 117_000])
def test_a_cable_pulled_during_the_transfer_and_the_same_command_goes_on(
    board: Bench, mpota: Run, new: Path, cut_after: int, is_power_cut: bool
) -> None:
    board.wire.cut_after = cut_after
    shown = mpota("push", board.port.path, new, *QUICK, exit_code=1)
    assert "mpota: /dev/" in shown
    if is_power_cut:
        with board.off():
            pass
    board.plug_in()
    assert _running(board) == "ota_0 1.26.1"
    report = json.loads(mpota("push", board.port.path, new, "--json", *QUICK))
    assert report["slot"] == "ota_1"
    # What went over the line in both attempts: no more than one 64 KiB block is sent twice.
    assert report["sent"] <= APP_SIZE - max(0, cut_after - 65536 - 3 * PIECE)
    assert _running(board) == "ota_1 1.27.0"


@pytest.mark.parametrize("power", [False, True], ids=["powered", "power-lost"])
def test_a_cable_pulled_after_the_switch(
    board: Bench, mpota: Run, new: Path, power: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpota.push.repl._RETURN_TIMEOUT_S", 0.5)

    def pull(text: str) -> None:
        if "checking" in text:
            board.port.unplug()

    with (
        Session(board.port.path) as session,
        pytest.raises(Exception, match="switched to") as error,
    ):
        push(session, Package.open(str(new)), Options(settle_s=0.3, tell=pull))
    assert getattr(error.value, "exit_code", None) == 5
    board.plug_in()
    if power:  # the one boot that a new app has is over: the bootloader goes back
        with board.off():
            pass
        assert _running(board) == "ota_0 1.26.1"
    mpota("push", board.port.path, new, *QUICK, *(("--force",) if power else ()))
    assert _running(board) == "ota_1 1.27.0"
    assert _state(mpota, board, "ota_1") == "VALID"


@pytest.mark.parametrize("lost", [{2_000}, {2_000, 2_001, 60_000}, set(range(5_000, 5_200))])
def test_lost_bytes_are_noticed_and_sent_again(
    board: Bench, new: Path, lost: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpota.push.serial._ACK_TIMEOUT_S", 1.0)
    monkeypatch.setattr("mpota.push.serial._ANSWER_TIMEOUT_S", 4.0)
    board.wire.lose = lost
    with Session(board.port.path) as session:
        done = push(session, Package.open(str(new)), Options(settle_s=0.3))
    assert done.slot == "ota_1"
    assert _running(board) == "ota_1 1.27.0"


def test_a_port_that_goes_away_with_the_reset_is_waited_for(
    board: Bench, mpota: Run, new: Path, tmp_path: Path
) -> None:
    # As that of a chip whose USB is its own. The name of the port stays the same.
    name = tmp_path / "port"
    name.symlink_to(board.port.path)
    has_gone = Event()

    def replace() -> None:
        has_gone.wait()
        board.port.unplug()
        name.unlink()
        board.plug_in()
        name.symlink_to(board.port.path)

    thread = Thread(target=replace)
    thread.start()
    board.wire.on_output = lambda data: has_gone.set() if b"load:0x" in data else None
    shown = mpota("push", name, new, *QUICK)
    thread.join()
    assert shown.splitlines()[-1] == "ota_1 runs v1.27.0, confirmed"


def test_plain_mpremote_finds_a_prompt_after_a_push_broke_off(
    board: Bench, mpota: Run, new: Path
) -> None:
    board.wire.cut_after = 40_000
    mpota("push", board.port.path, new, *QUICK, exit_code=1)
    board.plug_in()
    assert board.say("resume", "exec", "print('free')") == "free\n"


# --- what is asked for is looked at before anything is sent


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ("sensors.ok(", "the check 'sensors.ok(' is no expression"),
        ("import sensors", "the check 'import sensors' is no expression"),
        ("broken.py", "broken.py is no Python: "),
        ("gone.py", "cannot read 'gone.py'"),
    ],
)
def test_a_check_that_is_no_python_is_refused_before_anything_is_sent(
    board: Bench, mpota: Run, new: Path, tmp_path: Path, check: str, said: str
) -> None:
    (tmp_path / "broken.py").write_text("assert (\n")
    sent_size = board.wire.sent_size
    assert said in mpota("push", board.port.path, new, "--check", check, exit_code=2)
    assert board.wire.sent_size == sent_size


def _outcome(shown: str) -> dict[str, object]:
    """The JSON in the output of a command, which standard error follows."""
    found: dict[str, object]
    found, _ = json.JSONDecoder().raw_decode(shown[shown.index("{") :])
    return found


@pytest.mark.parametrize(
    ("options", "exit_code", "outcome"),
    [
        ((), 0, "updated"),
        (("--check", "False"), 4, "unhealthy"),
        (("--check", "__import__('machine').reset()"), 3, "rolled back"),
        (("--check", "("), 2, "wrong usage"),
    ],
    ids=["updated", "unhealthy", "rolled-back", "usage"],
)
def test_json_tells_the_outcome_on_every_exit(
    board: Bench, mpota: Run, new: Path, options: tuple[str, ...], exit_code: int, outcome: str
) -> None:
    shown = mpota("push", board.port.path, new, "--json", *QUICK, *options, exit_code=exit_code)
    found = _outcome(shown)
    assert found["outcome"] == outcome
    assert found.get("exit_code", 0) == exit_code


def test_json_tells_of_a_refusal_and_of_a_board_that_does_not_answer(
    board: Bench, mpota: Run, tmp_path: Path
) -> None:
    (tmp_path / "long.bin").write_bytes(app(size=0x40010))
    refused = _outcome(mpota("push", board.port.path, "long.bin", "--json", *QUICK, exit_code=1))
    assert (refused["outcome"], refused["code"]) == ("refused", "too-long")
    board.port.unplug()
    lost = mpota("push", board.port.path, "long.bin", "--json", *QUICK, exit_code=1)
    assert _outcome(lost)["outcome"] == "no answer"
    board.plug_in()


# --- of an app that is known to run only what differs is sent


def test_after_a_push_only_what_differs_is_sent(
    board: Bench, mpota: Run, new: Path, tmp_path: Path
) -> None:
    mpota("push", board.port.path, new, *QUICK)
    (tmp_path / "newer.bin").write_bytes(app("v1.28.0"))
    found = _outcome(mpota("push", board.port.path, "newer.bin", "--json", *QUICK))
    assert found["sent"] < APP_SIZE / 10
    assert _running(board) == "ota_0 1.28.0"


def test_of_a_firmware_that_is_given_and_runs_only_what_differs_is_sent(
    board: Bench, mpota: Run, new: Path, tmp_path: Path
) -> None:
    (tmp_path / "old.bin").write_bytes(build_firmware(CHIP, app=app()))
    shown = mpota("push", board.port.path, new, "--delta-from", "old.bin", *QUICK)
    assert "what differs is sent" in shown
    assert _running(board) == "ota_1 1.27.0"


def test_of_another_firmware_than_the_one_that_runs_all_is_sent(
    board: Bench, mpota: Run, new: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.bin").write_bytes(app("v1.20.0"))
    options = ("--delta-from", "other.bin", "--json", *QUICK)
    assert _outcome(mpota("push", board.port.path, new, *options))["sent"] == APP_SIZE


def test_a_board_with_keys_is_sent_no_delta_that_nobody_has_signed(
    board: Bench, mpota: Run, new: Path, tmp_path: Path
) -> None:
    key = PrivateKey.generate()
    (tmp_path / "public.pem").write_bytes(public_to_pem(key.public))
    (tmp_path / "old.bin").write_bytes(app())
    mpota("install", board.port.path, "--key", "public.pem")
    options = ("--delta-from", "old.bin", *QUICK)
    assert "what differs" not in mpota("push", board.port.path, new, *options, exit_code=1)


# --- back to what ran before


def test_rollback_starts_the_former_app_and_keeps_it(board: Bench, mpota: Run, new: Path) -> None:
    mpota("push", board.port.path, new, *QUICK)
    shown = mpota("rollback", board.port.path, "--settle", "0.3")
    assert shown.splitlines()[-1] == "ota_0 runs v1.26.1, confirmed"
    with board.off():
        pass
    assert _running(board) == "ota_0 1.26.1"


def test_rollback_gives_up_an_app_that_is_not_confirmed(
    board: Bench, mpota: Run, new: Path
) -> None:
    board.say("fs", "cp", new, ":/new.bin")
    board.say("exec", "import ota; ota.update.from_file('/new.bin', reboot=False)")
    with board.off():
        pass
    assert _state(mpota, board, "ota_1") == "PENDING_VERIFY"
    mpota("rollback", board.port.path, "--settle", "0.3")
    assert _running(board) == "ota_0 1.26.1"
    assert _state(mpota, board, "ota_1") == "INVALID"


def test_rollback_where_nothing_ran_before_is_refused(board: Bench, mpota: Run) -> None:
    found = _outcome(mpota("rollback", board.port.path, "--json", exit_code=1))
    assert (found["outcome"], found["code"]) == ("refused", "no-previous")
    assert _running(board) == "ota_0 1.26.1"


def test_status_of_a_board_without_a_release_says_so(board: Bench, mpota: Run) -> None:
    assert "release: none\n" in mpota("status", board.port.path)


# --- exit code 1: the board is unchanged


def test_an_app_that_cannot_be_asked_after_the_switch_is_not_told_as_unchanged(
    board: Bench, mpota: Run, new: Path
) -> None:
    board.write(
        "boot.py",
        "import os, sys\nif os.uname().release == '1.27.0': sys.modules['ota'] = sys",
    )
    found = _outcome(mpota("push", board.port.path, new, "--json", *QUICK, exit_code=5))
    assert found["outcome"] == "unconfirmed"
    assert "ota_1 was switched to, and then: " in str(found["message"])


def test_a_cable_pulled_before_the_board_has_said_that_it_switched(
    board: Bench, mpota: Run, new: Path
) -> None:
    board.wire.on_output = lambda data: board.port.unplug() if b"\x1eDONE" in data else None
    shown = mpota("push", board.port.path, new, *QUICK, exit_code=5)
    assert "hint: the same command again goes on from there" in shown
    board.plug_in()
    mpota("push", board.port.path, new, *QUICK)
    assert _running(board) == "ota_1 1.27.0"
