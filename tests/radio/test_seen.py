"""What a client may see of a board before it sends an update: LOOK and SEEN, docs/PROTOCOL.md."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from mpota.virtual.board import Board

from tests.support import boards, thin
from tests.support.receiver import PRELUDE

LOOK = """
def look(client, start=0, proof=None):
    head = struct.pack("<BH", 5, start)
    return client.say(head + (client.prove(b"look", head) if proof is None else proof))
"""
SEE = PRELUDE + LOOK


@pytest.fixture
def board(tmp_path: Path) -> Board:
    made = thin.fresh(tmp_path)
    made.heap_size = 400 * 1024
    return made


def say(board: Board, script: str) -> list[str]:
    run = board.run(SEE + script)
    assert run.traceback == "", run.traceback
    return run.output.split()


GREETED = """
c = Client(pr.Receiver(SECRET))
welcome = c.greet()
"""


def test_who_knows_the_secret_sees_what_runs_and_which_files_it_has(board: Board) -> None:
    script = "a = look(c)\nprint(welcome[2], a.hex(), a[-32:] == c.prove(b'seen', a[:-32]))"
    flags, answer, is_proven = say(board, GREETED + script)
    assert (int(flags) & 8, is_proven) == (8, "True")
    seen = bytes.fromhex(answer)[:-32]
    kind, state = seen[:2]
    assert (kind, state) == (0x87, 1 | 4)  # confirmed, and nothing waits for a restart
    assert seen[2:34] == boards.app()[-32:]
    assert seen[34:66] == hashlib.sha256(thin.archive(thin.OLD)).digest()
    assert {seen[at : at + 8] for at in range(66, len(seen), 8)} == thin.ids(thin.OLD)


def test_many_files_come_in_several_answers(board: Board) -> None:
    script = """
import sys
for number in range(40):
    with open(sys.path[0] + "/more%d" % number, "w") as file:
        file.write(str(number))
start = 0
while True:
    a = look(c, start)
    names = len(a) - 66 - 32
    print(a[1], names // 8, a[66:-32].hex() or "-")
    if not a[1] & 2:
        break
    start += names // 8
"""
    words = say(board, GREETED + script)
    found = "".join(words[2::3]).replace("-", "")
    more = {f"more{number}": str(number).encode() for number in range(40)}
    whole = {one.hex() for one in thin.ids(thin.OLD | more)}
    assert {found[at : at + 16] for at in range(0, len(found), 16)} == whole
    assert len(found) == 16 * len(whole)
    assert words[0] == "7"
    assert max(map(int, words[1::3])) == 19


def test_a_look_without_the_secret_is_refused(board: Board) -> None:
    assert say(board, GREETED + "print(code(look(c, 0, bytes(32))))") == ["secret"]
    assert say(board, GREETED + "print(code(look(c, 0, b'')))") == ["secret"]


def test_half_a_look_is_refused(board: Board) -> None:
    script = "c = Client(pr.Receiver(open=True), secret=None)\nc.greet()\n"
    assert say(board, script + "print(code(c.say(b'\\x05\\x00')))") == ["protocol"]


def test_a_board_that_is_open_to_signatures_alone_is_not_looked_at(board: Board) -> None:
    script = "c = Client(pr.Receiver(), secret=None)\nprint(c.greet()[2], code(look(c)))"
    assert say(board, script) == ["2", "protocol"]


TRIED = """
import ota.boot
from esp32 import Partition
part = Partition(Partition.RUNNING)
record = ota.boot.read_record(part)
record["next"] = {"sha256": "ab" * 32, "tree": record["now"]["tree"]}
record["tried"] = True
ota.boot.write_record(part, record)
"""


@pytest.fixture
def stock_board() -> Board:
    """It never took a release, and has no keys."""
    board = boards.formatted()
    board.frozen = thin.prepared()[0]
    board.heap_size = 400 * 1024
    return board


def test_an_update_that_waits_for_the_restart_is_told_as_such(stock_board: Board) -> None:
    image = boards.app("v1.27.0", 0x3000)
    script = f"""
import hashlib
image = {image!r}
r = pr.Receiver(SECRET)
c = Client(r)
c.greet()
c.begin(len(image), hashlib.sha256(image).digest())
for at in range(0, len(image), 4096):
    window = image[at : at + 4096]
    packet = struct.pack("<H", at) + window + struct.pack("<I", crc32(window))
    r.data(c.session, memoryview(packet))
    work(r)
print(code(c.end()), r.is_done)
c = Client(r)
c.greet()
print(look(c)[1])
"""
    assert say(stock_board, script) == ["kind", "84", "True", "1"]


def test_files_on_trial_are_told_as_such(board: Board) -> None:
    words = say(board, TRIED + GREETED + "a = look(c)\nprint(a[1], a[34:66].hex(), len(a))")
    assert words == ["4", "ab" * 32, str(66 + 8 * len(thin.OLD) + 32)]


def test_a_board_that_never_took_a_release_says_which_app_it_runs(stock_board: Board) -> None:
    (answer,) = say(stock_board, GREETED + "print(look(c)[:-32].hex())")
    seen = bytes.fromhex(answer)
    assert struct.unpack_from("<BB", seen) == (0x87, 1 | 4)
    assert seen[2:] == boards.app()[-32:] + bytes(32)
