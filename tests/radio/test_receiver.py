"""The receiver of a board against whoever is in reach: real MicroPython, a clock that tests set.

What comes over the air and over the line is in test_hostile_push.py; here are floods, days and
mutations, which take a while there.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mpota.virtual.board import Board

from tests.support import boards, ota_board
from tests.support.receiver import PRELUDE


@pytest.fixture
def board():  # type: ignore[no-untyped-def]
    with ota_board.updating_board(heap_size=400 * 1024) as made:
        made.flash.restart_count()
        yield made


def say(board: Board, script: str) -> str:
    """What a script prints; nothing may have been done to the slots or to otadata."""
    run = board.run(PRELUDE + script)
    assert run.traceback == "", run.traceback
    assert ota_board.slot_writes(run) == []
    return run.output


FUZZ = """
r = pr.Receiver(SECRET if {secret} else None, open=not {secret})
random.seed({seed})
fed = escaped = 0
kinds = {{}}
def mutated(data):
    data = bytearray(data)
    for _ in range(random.randrange(4)):
        way = random.randrange(5)
        at = random.randrange(len(data) + 1)
        if way == 0 and at < len(data):
            data[at] = random.getrandbits(8)
        elif way == 1:
            data = data[:at]
        elif way == 2:
            data = data[:at] + os.urandom(random.randrange(40)) + data[at:]
        elif way == 3 and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        else:
            data = data + data[:at]
    return bytes(data[:256])
def feed(step, data):
    global fed, escaped
    fed += 1
    try:
        step(data)
    except Exception as error:
        escaped += 1
        print("ESCAPED", repr(error), data)
while fed < {count}:
    c = Client(r, random.randrange(20), SECRET if {secret} else None)
    if c.session is None:
        wait(r, 600)
        continue
    hello = b"\\x01\\x02" + os.urandom(16)
    if random.randrange(3):
        c.greet(hello[2:])
    else:
        feed(c.say, mutated(hello))
    flags = random.randrange(4)
    head = struct.pack("<BBI32sHB", 2, flags, 9000, os.urandom(32), 0xFFFF, 3) + b"1.2"
    begin = head + (c.prove(b"begin", head) if c.nonces else b"")
    if random.randrange(3):
        feed(c.say, begin)
    else:
        feed(c.say, mutated(begin))
    for _ in range(random.randrange(8)):
        window = os.urandom(4096)
        packet = struct.pack("<H", random.choice((0, 0, 0, 100, 4096, 0x9000)))
        packet += os.urandom(random.randrange(1, 200))
        way = random.randrange(4)
        if way == 0:
            packet = bytes(2) + window + struct.pack("<I", crc32(window))
        if way < 3:
            packet = mutated(packet) if way else packet
            feed(lambda data: r.data(c.session, memoryview(data)), packet)
            feed(lambda data: work(r), packet)
        else:
            feed(c.say, mutated(bytes((random.randrange(8), 1)) + os.urandom(32)))
    if random.randrange(2):
        c.sha = head[6:38]
        feed(lambda data: c.end(1) if c.nonces else c.say(data), b"\\x03\\x01")
    if random.randrange(2):
        r.lost(c.session)
    wait(r, random.choice((0, 100, 20000)), 500)
    kinds[code(c.answer()) if c.answer() else "nothing"] = 1
print("fed", fed, "escaped", escaped, sorted(kinds))
wait(r, 700000, 1000)
c = Client(r, 1, SECRET if {secret} else None)
c.greet()
print("then", code(c.begin(flags=1)), r.is_done, len(r._wrong))
"""


@pytest.mark.parametrize("secret", [True, False])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_whatever_comes_nothing_escapes_and_the_next_client_is_served(
    board: Board, secret: bool, seed: int, hostile: Callable[..., None]
) -> None:
    count = 1500
    said = say(board, FUZZ.format(secret=secret, seed=seed, count=count))
    hostile(count)
    assert "escaped 0" in said
    assert "then kind 86 False 0" in said
    for kind in ("protocol", "kind 86", "not-an-image"):
        assert kind in said


def test_a_flood_of_wrong_proofs_keeps_nobody_waiting_and_no_memory(
    board: Board, hostile: Callable[..., None]
) -> None:
    script = """
r = pr.Receiver(SECRET)
gc.collect()
wrong = 0
for i in range(300):
    c = Client(r, i % 40, b"another secret of 16")
    if c.session is None:
        wait(r, 500)
        continue
    c.greet()
    c.begin()
    wrong += 1
    if i % 50 == 7:
        wait(r, 600)
        right = Client(r, i % 40)
        right.greet()
        print("right", code(right.begin()))
        r.lost(right.session)
print("peers", len(r._wrong), "sessions", len(r._sessions) <= 4, "wrong", wrong > 100)
"""
    said = say(board, script)
    assert said.count("right kind 86") == 6
    assert "peers 9 sessions True wrong True" in said
    hostile(300)


def test_wrong_proofs_are_answered_later_and_later_and_forgotten(
    board: Board, hostile: Callable[..., None]
) -> None:
    script = """
r = pr.Receiver(SECRET)
waits = []
for _ in range(7):
    c = Client(r, 1, b"another secret of 16")
    c.greet()
    c.begin()
    ms = 0
    while code(c.answer()) != "secret":
        wait(r, 100)
        ms += 100
    waits.append(ms // 1000)
print(waits)
right = Client(r, 1)
right.greet()
print(code(right.begin()), r._wrong)
r.lost(right.session)
c = Client(r, 1, b"another secret of 16")
c.greet()
print(code(c.begin()), r._wrong)
wait(r, 601000, 1000)
print(r._wrong)
"""
    said = say(board, script).splitlines()
    assert said == ["[0, 2, 4, 8, 16, 16, 16]", "kind 86 {}", "secret {1: 1}", "{}"]
    hostile(7)


def test_no_time_comes_round(board: Board, hostile: Callable[..., None]) -> None:
    """ticks_ms() wraps after 12.4 days, and is signed after half of that."""
    script = """
r = pr.Receiver(SECRET, keep=300)
for days in range(1, 15):
    for peer in range(3):
        c = Client(r, peer, b"another secret of 16")
        c.greet()
        c.begin()
    wait(r, 60000, 1000)
    now += 86400000  # of which nobody looked
    wait(r, 20000, 1000)
    right = Client(r, 1)
    right.greet()
    print(code(right.begin()), len(r._sessions))
    r.lost(right.session)
    now += 500000000
    wait(r, 310000, 1000)
    print(r._wanted, len(r._sessions))
"""
    said = say(board, script).splitlines()
    assert said == ["kind 86 1", "None 0"] * 14
    hostile(14)


def test_each_state_ends(board: Board, hostile: Callable[..., None]) -> None:
    script = """
r = pr.Receiver(SECRET)
silent, greeted, begun = Client(r), Client(r), Client(r)
greeted.greet()
begun.greet()
begun.begin()
wait(r, 9000)
print([c.link.is_closed for c in (silent, greeted, begun)])
wait(r, 1500)
print([code(c.answer()) for c in (silent, greeted)], begun.link.is_closed)
trickle = 0
while not begun.link.is_closed:
    wait(r, 1000)
    r.data(begun.session, struct.pack("<H", trickle) + b"x")  # a byte a second
    trickle += 1
print(code(begun.answer()), trickle, r._wanted is not None)
wait(r, 301000, 1000)
print(r._wanted, r._update)
"""
    said = say(board, script).splitlines()
    assert said[0] == "[False, False, False]"
    assert said[1] == "['timeout', 'timeout'] False"
    assert said[2] == "timeout 6 True"
    assert said[3] == "None None"
    hostile(4)


def test_replays_are_of_no_use(board: Board, hostile: Callable[..., None]) -> None:
    script = """
r = pr.Receiver(SECRET)
class Ear(Client):
    def say(self, message):
        heard.append(bytes(message))
        return Client.say(self, message)
heard = []
one = Ear(r)
one.greet()
one.begin(flags=1)
window = os.urandom(4096)
print("begun", code(one.say(heard[1])), r._position)          # the same again: the same answer
head = b"\\x03\\x00"
proof = one.prove(b"end", head + one.sha)
print(code(one.say(head + proof)))                            # too early: AGAIN
two = Client(r, 2)                                            # somebody else, who has heard it
two.say(heard[0])
print(code(two.say(heard[1])))
more = [b"\\x03\\x01" + proof, b"\\x04" + proof, b"\\x04", b"\\x03\\x01", b"\\x03\\x00"]
for message in heard[1:] + more:
    c = Client(r, 3)
    c.greet(heard[0][2:18])                                   # even with the same 16 bytes
    c.say(message)
    for _ in range(40):
        wait(r, 500)
        one.session.left = 16000                              # that one goes on meanwhile
    print(code(c.answer()), end=" ")
print()
print("still", r.active is one.session, r._position, one.link.is_closed)
print(code(one.say(b"\\x03\\x01" + proof)), r.is_done, r._wanted is not None)  # another flag
"""
    said = say(board, script).splitlines()
    assert said[0] == "begun kind 86 0"
    assert said[1] == "kind 83"
    assert said[2] in ("secret", "kind 81")
    assert set(said[3].split()) == {"secret", "protocol"}
    assert said[4] == "still True 0 False"
    assert said[5] == "secret False True"
    hostile(9)


def test_a_half_update_waits_through_strangers(board: Board, hostile: Callable[..., None]) -> None:
    script = """
r = pr.Receiver(SECRET)
one = Client(r)
one.greet()
one.begin(flags=1)
r.data(one.session, b"\\0\\0" + b"\\xe9" + bytes(99))
r.lost(one.session)
for peer in range(20):
    stranger = Client(r, peer, b"another secret of 16")
    if stranger.session:
        stranger.greet()
        say = lambda: stranger.say((b"\\x04", b"")[peer & 1])
        (stranger.begin, stranger.abort, say, say)[peer % 4]()
    wait(r, 1000)
print(r._position, r._wanted is not None)
one = Client(r)
one.greet()
answer = one.begin(flags=1)
print(code(answer), struct.unpack_from("<BIH", answer)[1])
"""
    assert say(board, script).splitlines() == ["100 True", "kind 86 100"]
    hostile(20)


AHEAD = """
import ota.push_intake
random.seed({seed})
SIZE = {size}
data = os.urandom(SIZE)
class Parts:
    is_vouched, needs_reset = True, False
    def __init__(self, sha, size, **options):
        self.at, self.taken = 0, 0
        self.place = memoryview(bytearray(4096))
        self.left_over = 0
    def buffer(self):
        return self.place
    def take(self, count):
        assert bytes(self.place[:count]) == data[self.at:self.at + count], self.at
        self.at += count
        self.taken += count
        self.left_over = random.randrange(3)
    def work(self):
        self.left_over -= 1
        return self.left_over > 0
    def skip(self):
        if random.randrange(4):
            return 0
        count = random.choice(({steps}))
        count = min(count, SIZE - self.at)
        self.at += count
        return count
    def finishing(self):
        assert self.at == SIZE, self.at
        print("taken", self.taken < SIZE)
        yield 0
    def abort(self):
        print("ABORTED")
ota.push_intake.Intake = Parts
pr.unload = lambda *names: None  # it would be loaded anew
r = pr.Receiver(SECRET)
Link.credit = {credit}
c = Client(r)
c.greet()
c.begin(size=SIZE, flags={flags})
position, queue, sent, rounds = 0, [], 0, 0
end = 0
while position < SIZE and not c.link.is_closed:
    rounds += 1
    assert rounds < 100000
    for message in c.link.sent:
        if message[0] in (0x82, 0x83, 0x86):
            kind, position, credit = struct.unpack_from("<BIH", message)
            end = position + credit
            if kind != 0x82:
                sent = position
    c.link.sent.clear()
    if sent < end:
        stop = min(sent - sent % 4096 + 4096, SIZE)
        part = data[sent:min(sent + 1000, stop)]
        packet = struct.pack("<H", sent & 0xFFFF) + part
        if sent + len(part) == stop:
            packet += struct.pack("<I", crc32(data[sent - sent % 4096:stop]))
        queue.append(packet)
        sent += len(part)
    if queue and (sent >= end or len(queue) > {lag}):
        r.data(c.session, memoryview(queue.pop(0)))
    work(r)
    if not queue and sent >= end and not c.link.sent:
        wait(r, 1100)
print(code(c.end()), r._position == SIZE)
"""


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "steps",
    ["65536, 131072", "1, 511, 4096, 5000", "100000, 61440, 16384, 70000, 32768", "900000,"],
)
@pytest.mark.parametrize("lag", [0, 15])
def test_what_is_left_out_is_never_taken_for_what_is_due(
    seed: int, steps: str, lag: int, hostile: Callable[..., None]
) -> None:
    """Whatever is under way when the board goes ahead, and wherever its offsets come round."""
    size = (700_000, 655_360, 700_001, 69_632)[seed]
    script = AHEAD.format(seed=seed, size=size, steps=steps, lag=lag, credit=16384, flags=seed & 1)
    with ota_board.updating_board(heap_size=2 << 20) as board:
        said = say(board, script).splitlines()
    assert said == ["taken True", "kind 84 True"]
    hostile()


def test_what_nothing_vouches_for_is_not_kept(board: Board, hostile: Callable[..., None]) -> None:
    """Nor does it hold the slot: the app may want to update itself meanwhile."""
    ota_board.output(board, "import ota; ota.keys.add('ab' * 32)")
    script = """
from ota import base
r = pr.Receiver()
for peer in range(5):
    one = Client(r, peer, None)
    one.greet()
    print(code(one.begin(size=9000 + peer)), base.owner is not None, end=" ")
    r.lost(one.session)
    wait(r, 100)
    print(r._wanted, base.owner)
"""
    assert say(board, script).splitlines() == ["kind 86 True None None"] * 5
    hostile(5)


@pytest.mark.parametrize("step", ["greet", "begin", "end", "poll"])
def test_who_relied_on_keys_takes_nothing_once_they_are_gone(
    board: Board, step: str, hostile: Callable[..., None]
) -> None:
    ota_board.output(board, "import ota; ota.keys.add('ab' * 32)")
    script = f"""
import ota
r = pr.Receiver()
c = Client(r, 1, None)
steps = c.greet, c.begin, c.end, None
names = "greet", "begin", "end", "poll"
for step in steps[:names.index({step!r})]:
    step()
ota.keys.clear()
if {step!r} == "poll":
    pr.keys_cleared()
    wait(r, 100)
else:
    print(code(steps[names.index({step!r})]()))
    wait(r, 100)
print(r.is_shut, r.open(Link()), r._wanted, r._sessions, c.link.is_closed)
ota.keys.add("ab" * 32)
r.check_keys()
print(r.is_shut)
"""
    said = say(board, script).splitlines()
    assert said[-2:] == ["True None None [] True", "False"]
    assert said[:-2] == ([] if step == "poll" else ["open"])
    hostile()


def test_keys_that_are_installed_meanwhile_count(
    board: Board, hostile: Callable[..., None]
) -> None:
    script = """
import ota, ota.push_intake
class Whole:
    is_vouched, needs_reset = False, True
    def __init__(self, sha, size, **options):
        self.place = memoryview(bytearray(4096))
    def buffer(self):
        return self.place
    def take(self, count):
        pass
    def work(self):
        return False
    def skip(self):
        return 0
    def finishing(self):
        print("SWITCHED")
        yield 0
    def abort(self):
        print("aborted")
ota.push_intake.Intake = Whole
pr.unload = lambda *names: None  # it would be loaded anew
r = pr.Receiver(SECRET)
c = Client(r)
c.greet()
c.begin(size=4)
r.data(c.session, memoryview(b"\\0\\0abcd" + struct.pack("<I", crc32(b"abcd"))))
ota.keys.add("ab" * 32)
print(code(c.end()), r.is_done)
"""
    said = say(board, script).splitlines()
    assert said == ["aborted", "unsigned False"]
    hostile()


def test_an_update_of_the_program_and_a_push_exclude_each_other(
    board: Board, hostile: Callable[..., None]
) -> None:
    """Whoever brings it: the network and Bluetooth have the same receiver."""
    image = boards.app("v1.27.0", 0x3000)
    script = f"""
import ota
from ota.base import acquire_slot, release_slot
with open("app.bin", "wb") as file:
    file.write({image!r})
class Mine: pass
acquire_slot(Mine)
r = pr.Receiver(SECRET)
c = Client(r)
c.greet()
print(code(c.begin()))
release_slot(Mine)
c = Client(r)
c.greet()
print(code(c.begin()))
try:
    ota.update.from_file("app.bin", verbose=False, reboot=False)
except ota.OTAError as error:
    print(error.code, r.active is c.session)
print(code(c.abort()), ota.base.owner)
"""
    assert say(board, script).splitlines() == ["busy", "kind 86", "busy True", "aborted None"]
    hostile()


def test_who_begins_and_brings_nothing_makes_room(
    board: Board, hostile: Callable[..., None]
) -> None:
    ota_board.output(board, "import ota; ota.keys.add('ab' * 32)")
    script = """
r = pr.Receiver()
one, two = Client(r, 1, None), Client(r, 2, None)
one.greet()
one.begin()
two.greet()
print(code(two.begin(size=8000)), r.active is one.session)
wait(r, 5000)
two = Client(r, 2, None)
two.greet()
print(code(two.begin(size=8000)), r.active is two.session, code(one.answer()))
"""
    assert say(board, script).splitlines() == ["busy True", "kind 86 True busy"]
    hostile(2)


def test_the_app_s_own_errors_pass_after_the_client_was_told(
    board: Board, hostile: Callable[..., None]
) -> None:
    script = """
def accept(size, chip, version):
    raise ZeroDivisionError("the app's")
r = pr.Receiver(SECRET, accept=accept)
c = Client(r)
c.greet()
try:
    c.begin()
except ZeroDivisionError as error:
    print("passed", error, code(c.answer()), c.link.is_closed, r._sessions)
"""
    assert "passed the app's board True []" in say(board, script)
    hostile()
