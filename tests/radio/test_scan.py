"""`mpota scan`: a board that listens tells who asks what it is, and nothing else to nobody else."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mpota import cli
from mpota.errors import MpotaError, UsageError
from mpota.push import ble, scan, tcp
from mpota.push.deploy import DeployPlan

from tests.support import ota_board, releases
from tests.support.network import (
    free_port,
    listener,
    listening,
    push_tcp,
    stop,
)
from tests.support.protocol_client import Plain
from tests.support.radio import NAME, SECRET, Powered, backend, in_reach, peripheral, update
from tests.support.radio import stop as stop_ble

HEAD = b"mpota ?\x01"
QUESTION = HEAD.ljust(256, b"\0")
SECRETLY = f", secret={SECRET!r}"


def ask(port: int, timeout_s: float = 1.5) -> scan.FoundBoard:
    (found,) = scan.ask([("127.0.0.1", port)], timeout_s)
    return found


@contextmanager
def asking(port: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(("127.0.0.1", port))
        sender.settimeout(5)
        yield sender


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    return int(end.value.code or 0), *capsys.readouterr()


# --- what a board tells


def test_a_board_tells_what_it_is_and_what_it_needs() -> None:
    with listening() as (_, _, port):
        found = ask(port)
        stop(port)
    assert (found.name, found.target) == ("mpy-esp32", f"tcp://127.0.0.1:{port}")
    assert (found.release, found.state, found.needs) == ("", "confirmed", ("secret",))
    assert found.ota == "0.2.0"
    assert found.runs is not None
    assert found.runs.startswith("MicroPython ")


def test_it_tells_its_release_and_that_it_takes_what_is_signed(tmp_path: Path) -> None:
    port = free_port()
    board = releases.board(tmp_path)
    bundle = releases.make(releases.tree("2"), name="lamp", version="2.0", chip=None)
    (tmp_path / "2.bundle").write_bytes(bundle.to_bytes())
    ota_board.output(board, "import ota; ota.release.install('/frozen/2.bundle')")
    trusts = releases.key().public.digest.hex()
    script = f"import ota; ota.keys.add({trusts!r})\n" + listener(port, "")
    powered = Powered(board, script.replace('version == "stop"', "chip == 0")).heard("listening")
    found = ask(port)
    assert (found.release, found.state, found.needs) == ("lamp 2.0", "confirmed", ("signature",))
    with pytest.raises(MpotaError):
        push_tcp(port, update(), secret=None)
    powered.wait()


@pytest.mark.parametrize("what", ["app", "files"])
def test_it_tells_that_it_is_on_trial(tmp_path: Path, what: str) -> None:
    port = free_port()
    board = releases.board(tmp_path)
    content = releases.app() if what == "app" else releases.tree("2", listener(port, SECRETLY))
    (tmp_path / "2.bundle").write_bytes(releases.make(content).to_bytes())
    script = "import ota; ota.release.install('/frozen/2.bundle', reboot=False)\n"
    ota_board.output(board, script)
    powered = Powered(board, listener(port, SECRETLY) if what == "app" else None)
    powered.heard("listening")
    assert ask(port).state == "on trial"
    stop(port)
    powered.wait()


def test_it_tells_that_an_update_is_under_way_and_then_waits() -> None:
    with listening(SECRETLY + ", reboot=False") as (powered, _, port):
        what = update()

        async def begin() -> str | None:
            async with tcp.connect("127.0.0.1", port) as link:
                client = Plain(link, SECRET.encode())
                await client.greet()
                await client.begin(what.data)
                return (await asyncio.to_thread(ask, port)).state

        assert asyncio.run(begin()) == "updating"
        push_tcp(port, what)
        assert ask(port).state == "waits for its restart"
        stop(port)
        powered.wait()


def test_one_that_is_not_to_be_seen_says_nothing() -> None:
    with listening(SECRETLY + ", visible=False") as (_, _, port):
        assert scan.ask([("127.0.0.1", port)], 0.6) == []
        stop(port)


def test_where_its_port_is_taken_for_datagrams_updates_come_all_the_same() -> None:
    port = free_port()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
        ota_board.updating_board() as board,
    ):
        other.bind(("127.0.0.1", port))
        powered = Powered(board, listener(port, SECRETLY)).heard("listening")
        push_tcp(port, update())
        assert powered.wait().labels == ("ota_0", "ota_1")


# --- who asks may be anybody


def test_no_answer_is_longer_than_its_question_and_a_stranger_gets_none() -> None:
    with listening() as (_, _, port), asking(port) as sender:
        for hostile in (
            b"", b"mpota", QUESTION[:-1], QUESTION + b"\0", bytes(256), os.urandom(256),
            b"mpota ?\x02".ljust(256, b"\0"), b"mpota !\x01".ljust(256, b"\0"), bytes(1400),
        ):  # fmt: skip
            sender.send(hostile)
        good = HEAD + b"12345678" + b"\xff" * 240
        sender.send(good)
        answer = sender.recv(2000)
        assert answer[:16] == b"mpota !\x0112345678"
        assert len(answer) <= len(good)
        sender.settimeout(0.05)
        with pytest.raises(TimeoutError):  # all others had none
            sender.recv(2000)
        stop(port)


def test_texts_that_are_too_long_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(SECRETLY + f", version={'v' * 600!r}") as (_, _, port), asking(port) as sender:
        sender.send(QUESTION)
        assert len(sender.recv(2000)) <= 256
        assert set(ask(port).runs or "") == {"v"}
        stop(port)


def test_many_questions_bring_few_answers_and_keep_nobody_from_an_update() -> None:
    with listening() as (powered, _, port), asking(port) as sender:
        ended = threading.Event()

        def flood() -> None:
            while not ended.wait(0.001):
                sender.send(QUESTION)

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            push_tcp(port, update())
        finally:
            ended.set()
            thread.join()
        assert powered.wait().labels == ("ota_0", "ota_1")


def test_to_answer_leaves_nothing_in_the_heap() -> None:
    port = free_port()
    script = listener(port, SECRETLY).replace(
        "    try:\n        await task",
        "    import gc\n"
        "    while not task.done():\n"
        "        gc.collect()\n"
        "        print(gc.mem_alloc())\n"
        "        await asyncio.sleep_ms(40)\n"
        "    try:\n        await task",
    )
    with ota_board.updating_board() as board:
        powered = Powered(board, script).heard("listening")
        for _ in range(2):
            ask(port)
        start = len(powered.said.splitlines())
        for _ in range(8):
            ask(port)
        end = len(powered.said.splitlines())
        stop(port)
        used = powered.wait().output.splitlines()
    while_asked = [int(line) for line in used[start:end]]
    half = len(while_asked) // 2
    # The least of each half: what lies on the interpreter's stack may seem to hold something once.
    assert min(while_asked[half:]) - min(while_asked[:half]) <= 64, used


# --- answers may be anybody's


class Liar:
    """Answers each question by ``answers``, made from its random bytes."""

    def __init__(self, *answers: Callable[[bytes], bytes]) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = int(self.socket.getsockname()[1])
        self._answers = answers
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while True:
            question, address = self.socket.recvfrom(2000)
            if not question:
                return
            for answer in self._answers:
                self.socket.sendto(answer(question[8:16]), address)

    def __enter__(self) -> Liar:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with asking(self.port) as sender:
            sender.send(b"")
        self._thread.join()
        self.socket.close()


def answer(token: bytes, *texts: bytes, state: int = 0) -> bytes:
    return b"mpota !\x01" + token + bytes((1, state)) + b"\n".join(texts)


@pytest.mark.parametrize(
    "lie",
    [
        lambda token: b"",
        lambda token: token,
        lambda token: answer(bytes(8), b"a", b"", b"1", b"x"),
        lambda token: answer(token, b"a", b"", b"1"),
        lambda token: answer(token, b"")[:17],
        lambda token: answer(token, b"a", b"", b"1", b"x" * 250),
    ],
)
def test_what_is_no_answer_is_no_board(lie: Callable[[bytes], bytes]) -> None:
    with Liar(lie) as liar:
        assert scan.ask([("127.0.0.1", liar.port)], 0.3) == []


EVIL = b'\x1b]0;own\x07"\r[boards]\xff'


def test_a_hostile_answer_steers_no_terminal_and_no_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.toml"
    with Liar(lambda token: answer(token, EVIL, EVIL, EVIL, EVIL, state=77)) as liar:
        address = f"127.0.0.1:{liar.port}"
        arguments = ["scan", "--address", address, "--timeout", "0.3", "--plan", str(plan)]
        code, out, err = run(arguments, capsys)
    assert (code, err) == (0, "")
    assert all(line.isprintable() for line in out.splitlines())
    assert "state 77" in out
    plan.write_text(plan.read_text().replace('# firmware = "lamp-2.1.bundle"', 'firmware = "f"'))
    (tmp_path / "f").write_bytes(update().data)
    (target,) = DeployPlan.open(plan).targets
    assert target.port == f"tcp://{address}"
    assert target.name.startswith(r"\x1b]0;own\x07")


# --- the command


@contextmanager
def two_listening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Powered, Powered, int, int]]:
    """Two boards, their ports, and new.bin for them in the directory where we are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPOTA_SECRET", SECRET)
    Path("new.bin").write_bytes(update().data)
    with listening() as (first, _, one), listening() as (second, _, two):
        yield first, second, one, two


def test_the_command_shows_them_and_writes_a_plan_that_deploys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with two_listening(tmp_path, monkeypatch) as (first, second, one, two):
        where = ["--address", f"127.0.0.1:{one}", "--address", f"127.0.0.1:{two}"]
        code, out, _ = run(["scan", *where, "--plan", "plan.toml"], capsys)
        assert code == 0
        assert all(len(line) <= 80 for line in out.splitlines()), out
        lines = [line.split() for line in out.splitlines()]
        assert [line[0] for line in lines if line[1:2] == [f"tcp://127.0.0.1:{min(one, two)}"]]
        text = Path("plan.toml").read_text()
        assert f'mpy-esp32-2 = "tcp://127.0.0.1:{max(one, two)}"  # confirmed' in text
        assert run(["scan", *where, "--plan", "plan.toml"], capsys)[0] == 2  # it exists
        assert Path("plan.toml").read_text() == text
        Path("plan.toml").write_text(text.replace('# firmware = "lamp-2.1.b', 'firmware = "new.b')
                                     .replace("new.bundle", "new.bin"))  # fmt: skip
        code, out, _ = run(["deploy", "plan.toml", "--json"], capsys)
        assert [row["outcome"] for row in json.loads(out)["boards"]] == ["sent", "sent"]
        assert first.wait().labels == second.wait().labels == ("ota_0", "ota_1")


def test_boards_that_advertise_are_found_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with in_reach() as (radio, board):
        monkeypatch.setattr(ble, "OWN_BLUETOOTH", backend(radio))
        powered = Powered(board, peripheral())
        code, out, _ = run(["scan", "--only", "ble", "--timeout", "2", "--json"], capsys)
        stop_ble(radio)
        powered.wait()
    (found,) = json.loads(out)["boards"]
    assert (code, found["name"], found["target"]) == (0, NAME, f"ble://{NAME}")


def test_none_found_is_said_and_makes_no_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--address", f"127.0.0.1:{free_port()}", "--timeout", "0.2"]
    assert "no board was found" in run(["scan", *where], capsys)[1]
    plan = tmp_path / "plan.toml"
    code, _, err = run(["scan", *where, "--plan", str(plan)], capsys)
    assert (code, "there is nothing to plan" in err, plan.exists()) == (1, True, False)


@pytest.mark.parametrize("address", ["", "a/b", "host:port", "x:70000", "user@host"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="is not ADDRESS or ADDRESS:PORT"):
        scan.parse_address(address)


# --- mpota push --all


def test_all_boards_that_it_is_for_are_sent_an_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with two_listening(tmp_path, monkeypatch) as (first, second, one, two):
        where = [f"--address=127.0.0.1:{port}" for port in (one, two)]
        code, out, err = run(["push", "--all", "new.bin", *where], capsys)
        assert (code, "no terminal to ask at" in err) == (2, True)
        assert all(len(line) <= 80 for line in out.splitlines()), out
        code, out, _ = run(["push", "--all", "new.bin", "-y", *where, "--json"], capsys)
        assert first.wait().labels == second.wait().labels == ("ota_0", "ota_1")
    rows = json.loads(out)["boards"]
    assert (code, [row["outcome"] for row in rows]) == (0, ["sent", "sent"])


def lamp(directory: Path) -> Path:
    """A project: the release "lamp 2.0" of files."""
    directory.mkdir()
    (directory / "pyproject.toml").write_text('[tool.mpota]\nname = "lamp"\nversion = "2.0"\n')
    (directory / "main.py").write_text("print('lamp 2.0 runs')\n")
    return directory


def test_all_boards_are_sent_a_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = str(lamp(tmp_path / "lamp"))
    with two_listening(tmp_path, monkeypatch) as (first, second, one, two):
        where = [f"--address=127.0.0.1:{port}" for port in (one, two)]
        code, out, _ = run(["push", "--all", project, "-y", *where, "--json"], capsys)
        rows = json.loads(out)["boards"]
        assert (code, [row["outcome"] for row in rows]) == (0, ["sent", "sent"])
        for board in (first, second):
            assert "lamp 2.0 runs" in board.wait().output


@pytest.mark.parametrize("is_project", [False, True], ids=["bundle", "project"])
def test_boards_that_run_it_are_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_project: bool
) -> None:
    bundle = tmp_path / "lamp.bundle"
    if is_project:
        lamp(bundle)
    else:
        made = releases.make(releases.tree("2"), name="lamp", version="2.0", chip=None)
        bundle.write_bytes(made.to_bytes())
    with Liar(lambda token: answer(token, b"lamp", b"lamp 2.0", b"0.2.0", b"x")) as liar:
        where = ["--address", f"127.0.0.1:{liar.port}", "--timeout", "0.3"]
        code, out, _ = run(["push", "--all", str(bundle), *where], capsys)
        assert (code, out.splitlines()[-1]) == (0, "all of them run lamp 2.0: nothing to do")
        code, _, err = run(["push", "--all", str(bundle), *where, "--force"], capsys)
        assert (code, "no terminal" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--all", "a", "b"], "--all finds the boards itself, and takes one file"),
        (["--all", "a", "--watch"], "--all finds the boards itself"),
        (["--all", "a", "--key", "a"], "--key is for directories, 'a' is none"),
        (["--all", "gone.bin"], "cannot read 'gone.bin'"),
        (["tcp://a"], "what is to be sent?"),
        (["tcp://a", "b", "--only", "lan"], "--address and --only are for --all"),
        (["--all", "a", "--only", "ble", "--address", "b"], "not of Bluetooth"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anybody_is_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").write_bytes(update().data)
    code, _, err = run(["push", *arguments], capsys)
    assert (code, message in err) == (2, True), err
