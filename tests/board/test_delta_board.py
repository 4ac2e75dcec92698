"""Deltas on the real MicroPython: the right base, the smallest form, damage, both editors."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import zlib
from pathlib import Path

import pytest
from mpota.formats.delta import make_delta
from mpota.formats.frames import Frames, deflate
from mpota.formats.tar import Member, write_tar
from mpota.release.build import Content
from mpota.release.serve import Served
from mpota.virtual import micropython
from mpota.virtual.board import Board, End

from tests.support import encoded, releases
from tests.support.desk_server import running
from tests.support.encoded import FILE, INSTALL, NEW, OLD, app, content, give, is_old, run, slot

DEVICE = Path(__file__).parents[2] / "device"


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return encoded.board(tmp_path)


def put(board: Board, name: str, data: bytes) -> None:
    (Path(str(board.frozen)) / name).write_bytes(data)


def test_a_delta_makes_the_new_app_out_of_the_one_that_runs(board: Board) -> None:
    put(board, "file", make_delta(OLD, NEW).to_bytes())
    assert run(board, FILE) == "INSTALLED\n"
    assert slot(board, len(NEW)) == NEW
    assert board.run("").labels == ("ota_1",)


def test_a_delta_for_another_app_is_refused_before_anything_is_written(board: Board) -> None:
    put(board, "file", make_delta(app("v1.20.0"), NEW).to_bytes())
    before = board.flash.snapshot()
    assert run(board, FILE).startswith("REFUSED base the delta starts from another app")
    assert board.flash.snapshot() == before


def test_the_smallest_form_that_fits_is_taken_and_the_others_are_not_read(board: Board) -> None:
    made = content().compressed().with_delta(app("v1.25.0")).with_delta(OLD)
    assert [form.encoding for form in made.encoded] == ["delta", "delta", "deflate"]
    give(board, made)
    said = run(board, releases.COUNTED + INSTALL + "print(seen)").split()
    assert said[0] == "INSTALLED"
    total = sum(len(form.data) for form in made.encoded)
    assert int(said[1]) < total // 4  # the compressed image is most of it
    assert slot(board, len(NEW)) == NEW


def test_a_board_that_no_delta_fits_takes_the_whole(board: Board) -> None:
    give(board, content().compressed().with_delta(app("v1.25.0")))
    assert run(board, INSTALL) == "INSTALLED\n"
    assert slot(board, len(NEW)) == NEW


def test_a_release_of_deltas_alone_says_that_none_fits(board: Board) -> None:
    made = dataclasses.replace(content().with_delta(app("v1.25.0")), is_plain=False)
    give(board, made)
    assert run(board, INSTALL).startswith("REFUSED no-form ")
    assert is_old(board)


def test_a_delta_that_leads_to_something_else_is_refused_by_the_digest(board: Board) -> None:
    other = make_delta(OLD, app("v1.28.0")).to_bytes()
    made = content().with_delta(OLD)
    form = dataclasses.replace(made.encoded[0], data=other)
    data = releases.manifest(dataclasses.replace(made, encoded=(form,), is_plain=False)).to_bytes()
    put(board, "release.bundle", write_tar(
        [Member("manifest.json", data), Member(form.member, other)]))  # fmt: skip
    assert run(board, INSTALL).startswith("REFUSED sha ")
    assert is_old(board)


def test_a_delta_is_fetched_over_http_and_the_rest_of_its_bundle_is_not(
    board: Board, tmp_path: Path
) -> None:
    pytest.importorskip("aiohttp")
    made = content().with_delta(OLD)
    data = releases.make(made).to_bytes()
    public = tmp_path / "public"
    public.mkdir()
    (public / "a.bundle").write_bytes(data)
    with running(public) as (server, served):
        script = INSTALL.replace("/frozen/release.bundle", server.url + "a.bundle")
        assert run(board, script) == "INSTALLED\n"
    assert slot(board, len(NEW)) == NEW
    assert ranges(served) == [None, len(data) // 4096 * 4096]


def ranges(served: list[Served]) -> list[int | None]:
    """Where each answer started, in sectors: the last request is for the end of the bundle."""
    starts = [s.range and int(s.range.removeprefix("bytes=").rstrip("-")) for s in served]
    return [start and start // 4096 * 4096 for start in starts]


FUZZ = """
import sys, random, deflate, io
sys.path.insert(0, sys.argv[1])
base = open(sys.argv[3], "rb").read()

class Partition:
    RUNNING = 1
    def __init__(self, which):
        pass
    def info(self):
        return (0, 16, 0x10000, len(base), "ota_0", False)
    def readblocks(self, block, buf, offset=0):
        at = block * 4096 + offset
        if not 0 <= at <= at + len(buf) <= (len(base) + 4095) // 4096 * 4096:
            raise RuntimeError("reads %d bytes at %d" % (len(buf), at))
        data = base[at : at + len(buf)]
        memoryview(buf)[: len(data)] = data

class NVS:
    def __init__(self, namespace):
        raise OSError(-0x1101)
class esp32:
    pass
esp32.Partition = Partition
esp32.NVS = NVS
sys.modules["esp32"] = esp32
import ota.delta
from ota.base import OTAError
from ota.frames import Frames
if sys.argv[4] == "plain":
    ota.delta.edit = ota.delta._edit
print(ota.delta.edit is ota.delta._edit)

class Sink:
    def __init__(self):
        self.buf = memoryview(bytearray(4096))
        self.total = 0
    def buffer(self):
        return self.buf
    def take(self, count):
        for byte in self.buf[:count]:
            self.total = (self.total * 31 + byte) & 0xffffff
    def work(self):
        return False

taken = refused = 0
totals = []
index = 0
while True:
    try:
        data = open(sys.argv[2] + "/%d" % index, "rb").read()
    except OSError:
        break
    index += 1
    sink = Sink()
    try:
        frames = Frames(sink)
        left = memoryview(data)
        while True:
            while frames.work():
                pass
            count = min(frames.wanted(), len(left))
            if not count:
                break
            frames.write(left[:count])
            left = left[count:]
        frames.finish()
        taken += 1
        totals.append(sink.total)
    except OTAError as error:
        str(error)
        refused += 1
        totals.append(-1)
    except BaseException as error:
        print("ROUND", index)
        raise
print(taken, refused)
print(totals)
"""


def damaged(old: bytes, new: bytes, count: int) -> list[bytes]:
    """Deltas with damage inside their frames, and the good one."""
    rng = random.Random(11)
    delta = make_delta(old, new)
    made = [delta.to_bytes()]
    for _ in range(count):
        index = rng.randrange(len(delta.frames))
        frame = delta.frames[index]
        code = bytearray(zlib.decompressobj(-12).decompress(frame.packed))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(min(len(code), 30) if rng.random() < 0.7 else len(code))
            code[at] = rng.choice((0, 1, 127, 128, 254, 255, rng.randrange(256)))
        if rng.random() < 0.2:
            del code[rng.randrange(len(code)) :]
        bad = dataclasses.replace(frame, packed=deflate(bytes(code)))
        frames = (*delta.frames[:index], bad, *delta.frames[index + 1 :])
        made.append(Frames(delta.size, frames, delta.base).to_bytes())
    return made


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hostile")
    rng = random.Random(9)
    old = rng.randbytes(16000)
    new = bytearray(old[:9000] + rng.randbytes(50) + old[9000:])
    for at in range(0, 15000, 20):
        new[at] = new[at] + 7 & 255
    (directory / "base").write_bytes(old)
    (directory / "deltas").mkdir()
    for number, data in enumerate(damaged(old, bytes(new), 500)):
        (directory / "deltas" / str(number)).write_bytes(data)
    (directory / "fuzz.py").write_text(FUZZ)
    return directory


def fuzz(hostile: Path, editor: str) -> list[str]:
    done = subprocess.run(
        [*micropython.find().with_heap(1 << 20), str(hostile / "fuzz.py"), str(DEVICE),
         str(hostile / "deltas"), str(hostile / "base"), editor],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_damaged_code_is_a_frame_error_or_other_content_by_either_editor(hostile: Path) -> None:
    """Machine code checks no index of its own: what it writes is bounded before."""
    plain = fuzz(hostile, "plain")
    assert plain[0] == "True"
    taken, refused = map(int, plain[1].split())
    assert (taken + refused, refused > 100) == (501, True)
    native = fuzz(hostile, "viper")
    if native[0] == "True":
        pytest.skip("this MicroPython compiles no viper code")
    assert native[1:] == plain[1:]


def test_a_delta_takes_no_more_heap_than_the_image_itself(board: Board) -> None:
    """Above what the update of an image needs: the frame, its window, and what it unpacks to."""
    put(board, "file", NEW)
    plain = peak(board)
    board.flash.restore(encoded.base())
    put(board, "file", make_delta(OLD, NEW).to_bytes())
    assert peak(board) < plain + 32 * 1024 * board.interpreter.word_size // 4


def peak(board: Board) -> int:
    script = """
import gc, ota
gc.collect()
idle = highest = gc.mem_alloc()
def look(done, total):
    global highest
    gc.collect()
    highest = max(highest, gc.mem_alloc())
ota.update.from_file("/frozen/file", reboot=False, verbose=False, progress=look, block_size=4096)
print(highest - idle)
"""
    done = board.run(script)
    assert (done.end, done.traceback) == (End.IDLE, ""), done.console
    return int(done.output)


def test_content_of_another_kind_has_no_deltas() -> None:
    files = Content("files", "files.tar", b"x" * 2000)
    assert [form.encoding for form in files.compressed().encoded] == ["deflate"]
