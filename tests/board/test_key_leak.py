"""A signing key has leaked: the steps that SECURITY.md gives, taken on a virtual board."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from mpota import cli
from mpota.release.signing import public_to_pem
from mpota.virtual.board import Board, Run

from tests.support import boards, releases

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STATE = "import ota; print(*ota.keys.trusted(), ota.keys.counter())"


def steps() -> list[list[list[str]]]:
    """The page's commands, block by block."""
    page = (ROOT / "SECURITY.md").read_text()
    blocks = [block.splitlines() for block in _BLOCK.findall(page)]
    return [[shlex.split(line.removeprefix("$ ")) for line in block] for block in blocks]


def mpota(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return int(ended.value.code or 0)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A desk with the key that has leaked, a firmware, and code that confirms itself."""
    folder = tmp_path / "desk"
    (folder / "src" / "lib").mkdir(parents=True)
    monkeypatch.chdir(folder)
    leaked = releases.key(0)
    (folder / "leaked.pem").write_bytes(leaked.to_pem())
    (folder / "leaked.pub.pem").write_bytes(public_to_pem(leaked.public))
    (folder / "firmware.bin").write_bytes(boards.app("v1.27.0"))
    (folder / "src" / "main.py").write_text(releases.MAIN)
    (folder / "src" / "lib" / "code.py").write_text("VERSION = 'ours'\n")
    return folder


@pytest.fixture
def board(desk: Path, tmp_path: Path) -> Board:
    """A board in the field: it trusts the leaked key alone, and runs release 2.1.0, counter 3."""
    frozen = tmp_path / "frozen"
    frozen.mkdir()
    made = releases.board(frozen)
    made.run(f"import ota; ota.keys.add({releases.key(0).public.digest.hex()!r})")
    release(desk, "2.1.0", 3, "leaked.pem", "field.bundle")
    assert "runs v1.27.0 ours" in install(made, desk / "field.bundle").output
    return made


def release(desk: Path, version: str, counter: int, key: str, out: str, *more: str) -> None:
    """What whoever has the key can make; an attacker has the same tool as we."""
    code = mpota(
        "bundle", "firmware.bin", "--files", "src", "--name", "pump", "--version", version,
        "--counter", str(counter), "--key", key, "-o", out, *more,
    )  # fmt: skip
    assert code == 0


def install(board: Board, bundle: Path) -> Run:
    assert board.frozen is not None
    (board.frozen / "x.bundle").write_bytes(bundle.read_bytes())
    return board.run("import ota; ota.release.install('/frozen/x.bundle')")


def assert_refused(board: Board, bundle: Path, words: str) -> None:
    """Refused before a byte is written; keys and counter are what they were."""
    state = board.run(STATE).output
    run = install(board, bundle)
    assert words in run.traceback, run.console
    assert run.operations == ()
    assert board.run(STATE).output == state


def test_the_steps_of_the_page_shut_a_leaked_key_out(board: Board, desk: Path) -> None:
    rotation, later = steps()
    for command in rotation:
        assert command[0] == "mpota"
        assert mpota(*command[1:]) == 0, command
    new = new_digest()
    run = install(board, desk / "rotation.bundle")
    assert "runs v1.27.0 ours" in run.output, run.console  # and it has confirmed itself
    assert board.run(STATE).output.split() == [new, "10"]

    release(desk, "9.9.9", 99, "leaked.pem", "forged.bundle")
    assert_refused(board, desk / "forged.bundle", "which was retired")
    back = ("--add-key", "leaked.pub.pem", "--retire-key", "new.pub.pem")
    release(desk, "9.9.9", 99, "leaked.pem", "takeover.bundle", *back)
    assert_refused(board, desk / "takeover.bundle", "which was retired")
    assert_refused(board, desk / "field.bundle", "which was retired")
    assert_refused(board, desk / "rotation.bundle", "which was retired")

    for command in later:
        assert mpota(*command[1:]) == 0, command
    run = install(board, desk / "next.bundle")
    assert "runs v1.27.0 ours" in run.output, run.console
    assert board.run(STATE).output.split() == [new, "11"]
    for bundle in ("field", "rotation", "forged", "takeover"):
        assert_refused(board, desk / f"{bundle}.bundle", "which was retired")
    release(desk, "2.2.9", 10, "new.pem", "older.bundle")
    assert_refused(board, desk / "older.bundle", "counter 10, this board has had 11")


def test_before_it_is_confirmed_the_rotation_can_be_taken_back_with_the_app(
    board: Board, desk: Path
) -> None:
    (desk / "src" / "main.py").write_text("print('does not confirm')\n")
    for command in steps()[0]:
        assert mpota(*command[1:]) == 0
    run = install(board, desk / "rotation.bundle")
    assert "does not confirm" in run.output
    assert board.run(STATE).output.split()[-2:] == [releases.key(0).public.digest.hex(), "3"]


def test_who_had_a_second_key_signs_the_rotation_with_that(board: Board, desk: Path) -> None:
    spare = releases.key(1)
    (desk / "spare.pem").write_bytes(spare.to_pem())
    (desk / "spare.pub.pem").write_bytes(public_to_pem(spare.public))
    board.run(f"import ota; ota.keys.add({spare.public.digest.hex()!r})")
    for command in steps()[0][:2]:
        words = ["spare.pem" if word == "leaked.pem" else word for word in command[1:]]
        assert mpota(*words) == 0
    assert "runs" in install(board, desk / "rotation.bundle").output
    assert set(board.run(STATE).output.split()) == {spare.public.digest.hex(), new_digest(), "10"}
    release(desk, "9.9.9", 99, "leaked.pem", "forged.bundle")
    assert_refused(board, desk / "forged.bundle", "which was retired")


def new_digest() -> str:
    from mpota.release.signing import public_from_pem

    return public_from_pem(Path("new.pub.pem").read_bytes()).digest.hex()
