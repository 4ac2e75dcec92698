"""Boards that answer with anything: each is one row of `mpota deploy`, and never its end."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from mpota.push import repl as sessions
from mpota.push.serial import push
from mpota.push.update import Package, RefusedError
from mpota.virtual.serial_port import SerialPort

from tests.support.consoles import app, bench

Run = Callable[..., str]
Answer = Callable[[str], tuple[bytes, bytes]]

GOOD_STATUS = {
    "running": "ota_0", "boot": "ota_0", "next": "ota_1",
    "slots": [{"label": "ota_0", "state": "VALID", "valid": True}],
}  # fmt: skip


class OddBoard:
    """A raw REPL with raw paste (a `PortHandler`) whose scripts print what ``answer`` says."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._input = b""

    def opened(self, send: Callable[[bytes], None]) -> None:
        self._send = send

    def closed(self) -> None:
        pass

    def received(self, data: bytes) -> None:
        for byte in data:
            self._take(bytes([byte]))

    def _take(self, byte: bytes) -> None:
        if byte == b"\x01" and not self._input.startswith(b"\x05"):
            self._input = b""
            self._send(b"raw REPL; CTRL-B to exit\r\n>")
        elif byte == b"\x03":
            self._input = b""
        elif byte == b"\x04":
            code, self._input = self._input.decode("utf-8", "replace"), b""
            if not code.strip():
                self._send(b"OK\r\nMPY: soft reboot\r\nraw REPL; CTRL-B to exit\r\n>")
                return
            printed, error = self._answer(code)
            self._send(b"\x04" + printed + b"\x04" + error + b"\x04>")
        else:
            self._input += byte
            if self._input == b"\x05A\x01":
                self._input = b""
                self._send(b"R\x01\xff\xff" + b"\x01" * 9)  # room for as much as it is sent


class Babbler:
    """A device that is no board: it sends ``noise`` for as long as somebody listens."""

    def __init__(self, noise: bytes) -> None:
        self._noise = noise
        self._is_open = threading.Event()

    def opened(self, send: Callable[[bytes], None]) -> None:
        self._is_open.set()

        def babble() -> None:
            while self._is_open.is_set() and self._noise:
                try:
                    send(self._noise)
                except OSError:
                    return

        threading.Thread(target=babble, daemon=True).start()

    def closed(self) -> None:
        self._is_open.clear()

    def received(self, data: bytes) -> None:
        pass


def always(printed: bytes, error: bytes = b"") -> Answer:
    return lambda code: (printed, error)


def honest(code: str) -> tuple[bytes, bytes]:
    """What a board without any file answers to `install`, up to its end."""
    if "_mpy" in code:
        return b"0", b""
    if "_is_unfinished()," in code:
        return b"[false, false]", b""
    if "_digests(" in code:
        return b"{}", b""
    if "s[0] * s[3]" in code:
        return b"10000000", b""
    if found := re.search(r"\[_digest\(path\) for path in (\[.*?\])\]", code):
        return json.dumps(["0"] * len(eval(found[1]))).encode(), b""
    return b"", b""


def lying_at(part: str, printed: bytes) -> Answer:
    """An honest board but for the answer to what contains ``part``."""
    return lambda code: (printed, b"") if part in code else honest(code)


DEEP = b"[" * 100_000
ODD: dict[str, Answer] = {
    "garbage": always(bytes(range(5, 256))),
    "invalid UTF-8": always(b"\xff\xfe\x80" * 100),
    "controls": always(b"\x1b[2J\x1b]0;x\x07\r\n\xc2\x9b"),
    "nothing": always(b""),
    "null": always(b"null"),
    "a number": always(b"1e999"),
    "NaN": always(b"NaN"),
    "a long number": always(b"9" * 10_000),
    "a text": always(b'"\\ud800"'),
    "a list": always(b"[]"),
    "a list of all types": always(b'[null, 1, "a", {}, [], true]'),
    "a dict": always(b"{}"),
    "a dict of all types": always(b'{"a": null, "b": 1, "running": [], "slots": 7}'),
    "deep lists": always(DEEP),
    "deep dicts": always(b'{"a":' * 50_000),
    "half of a JSON": always(b'{"a": [1, 2'),
    "HTML": always(b"<html><body>hello</body></html>"),
    "a restart": always(b"\nrst:0x1 (POWERON_RESET)"),
    "an exception": always(b"", b"Traceback (most recent call last):\r\nMemoryError: \r\n"),
    "an exception of bytes": always(b"", bytes(range(5, 256)) * 20),
    "a long exception": always(b"", b"x" * 100_000),
    "much output": always(b"x" * 1_000_000),
    "digests of all types": lying_at("_digests(", b'{"a": 1, "b": null}'),
    "digests as a list": lying_at("_digests(", b'["a"]'),
    "room as a text": lying_at("s[0] * s[3]", b'"much"'),
    "room that is true": lying_at("s[0] * s[3]", b"true"),
    "room without end": lying_at("s[0] * s[3]", b"Infinity"),
    "too few digests": lying_at("for path in ['", b"[]"),
    "digests that are wrong": honest,
    "an unfinished install that is a number": lying_at("_is_unfinished(),", b"[1, 0]"),
    "a version that is none": lying_at("_mpy", b"-1"),
    "a version that is a text": lying_at("_mpy", b'"6"'),
    "a version that is huge": lying_at("_mpy", b"1" * 4000),
}
STATUSES: dict[str, object] = {
    "no slots": {**GOOD_STATUS, "slots": None},
    "slots as numbers": {**GOOD_STATUS, "slots": [1, 2]},
    "slots without labels": {**GOOD_STATUS, "slots": [{}]},
    "a label that is a list": {
        **GOOD_STATUS, "slots": [{"label": [], "state": None, "valid": True}]
    },
    "a digest that is a number": {
        **GOOD_STATUS, "slots": [{"label": "a", "state": None, "valid": True, "digest": 5}]
    },
    "a size that is a text": {
        **GOOD_STATUS, "slots": [{"label": "a", "state": None, "valid": True, "image_size": "5"}]
    },
    "nothing runs": {**GOOD_STATUS, "running": None},
    "boots a list": {**GOOD_STATUS, "boot": []},
    "a list": [GOOD_STATUS],
}  # fmt: skip


@pytest.fixture
def plug() -> Iterator[Callable[[object], str]]:
    """``plug(handler)``: the path of a port."""
    with ExitStack() as stack:

        def plug(handler: object) -> str:
            return stack.enter_context(SerialPort(handler)).path  # type: ignore[arg-type]

        yield plug


def plan(folder: Path, ports: dict[str, str], top: str = "") -> Path:
    (folder / "app.bin").write_bytes(app("v1.27.0"))
    lines = ["firmware = 'app.bin'", "stop_after = 999", "settle = 0.3", "check_timeout = 0", top]
    lines += ["[boards]", *(f'"{name}" = "{port}"' for name, port in ports.items())]
    path = folder / "plan.toml"
    path.write_text("\n".join(lines))
    return path


def assert_visible(text: str) -> None:
    assert all(line.isprintable() for line in text.splitlines())
    assert max(map(len, text.splitlines())) < 3000


def test_odd_boards_are_rows_that_say_what_they_sent_and_a_good_one_is_updated(
    plug: Callable[[object], str], mpota: Run, tmp_path: Path, hostile: Callable[..., None]
) -> None:
    hostile(len(ODD))
    ports = {name: plug(OddBoard(answer)) for name, answer in ODD.items()}
    with bench(has_ota=True) as good:
        ports["good"] = good.port.path
        path = plan(tmp_path, ports, "parallel = 8")
        shown = mpota("deploy", path, "--report", "report.json", exit_code=1)
    assert_visible(shown)
    rows = {
        row["name"]: row for row in json.loads((tmp_path / "report.json").read_text())["boards"]
    }
    assert rows.keys() == ports.keys()
    assert rows.pop("good")["outcome"] == "updated"
    assert {row["outcome"] for row in rows.values()} <= {"failed", "no answer", "refused"}
    assert all(row["message"] for row in rows.values())
    assert not [row for row in rows.values() if re.match(r"\w+Error: ", row["message"])
                and row["name"] not in ("an exception",)]  # fmt: skip
    for name, sent in {
        "HTML": "<html>", "NaN": "NaN", "a list": "[]", "an exception": "MemoryError",
        "controls": r"\x1b[2J", "a restart": "restarted", "room as a text": '"much"',
    }.items():  # fmt: skip
        assert sent in rows[name]["message"], rows[name]


EVIL = "no \x1b[2J\x07\r\u202e\x9b2J\u2028"
RECORDS = {
    "text": "",
    "no number": "AT many",
    "no number at all": "AT ",
    "a number of many digits": "AT " + "9" * 5000,
    "another script's digits": "AT \u0661",
    "a piece of nothing": "GET \u0661 \u0662 x",
    "a piece of no size": "GET",
    "a piece of a huge size": "GET 0 " + "9" * 5000 + " x",
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_what_a_board_says_of_an_update_is_a_visible_line(
    plug: Callable[[object], str], tmp_path: Path, record: str, hostile: Callable[..., None]
) -> None:
    hostile()
    (tmp_path / "app.bin").write_bytes(app("v1.27.0"))

    def answer(code: str) -> tuple[bytes, bytes]:
        if "drop_in" in code:
            return f"\x1e{record}\n\x1eFAIL {EVIL} {EVIL}\n".encode(), b""
        said = {"now": {}} if "read_record" in code else GOOD_STATUS
        return json.dumps(said).encode(), b""

    port = plug(OddBoard(answer))
    with sessions.Session(port) as session, pytest.raises(RefusedError) as error:
        push(session, Package.open(str(tmp_path / "app.bin")))
    assert str(error.value).isprintable()
    assert error.value.code == "no"
    assert r"\x1b[2J\x07\r\u202e\x9b2J\u2028" in str(error.value)


@pytest.mark.parametrize("status", STATUSES.values(), ids=STATUSES)
def test_an_odd_status_is_an_error_in_one_line(
    plug: Callable[[object], str], mpota: Run, status: object, tmp_path: Path
) -> None:
    port = plug(OddBoard(lying_at("ota.status.info", json.dumps(status).encode())))
    (tmp_path / "app.bin").write_bytes(app("v1.27.0"))
    for words in (["status", port], ["push", port, "app.bin"]):
        shown = mpota(*words, exit_code=1)
        assert "no answer but" in shown
        assert len(shown.splitlines()) == 1
        assert_visible(shown)


@pytest.mark.parametrize("noise", [b"x" * 4096, b"\x04" * 4096, bytes(range(256)) * 16, b""])
def test_a_device_that_never_ends_is_given_up(
    plug: Callable[[object], str],
    mpota: Run,
    noise: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "_ENTER_TIMEOUT_S", 1.0)
    monkeypatch.setattr(sessions, "_ATTEMPT_S", 0.3)
    monkeypatch.setattr(sessions, "_MAX_RECEIVED_SIZE", 1 << 16)
    path = plan(tmp_path, {"odd": plug(Babbler(noise))})
    shown = mpota("deploy", path, exit_code=1)
    assert "odd: no answer: " in shown
    assert_visible(shown)


def test_any_other_failure_is_a_row_too(
    plug: Callable[[object], str], mpota: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise ZeroDivisionError("\x1b[2Jodd")

    monkeypatch.setattr("mpota.push.deploy.install", fail)
    path = plan(tmp_path, {"a": plug(OddBoard(honest)), "b": plug(OddBoard(honest))})
    shown = mpota("deploy", path, exit_code=1)
    assert shown.count(r"failed: ZeroDivisionError: \x1b[2Jodd") == 2
    assert "2 failed" in shown
