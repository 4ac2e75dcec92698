"""Compressed payloads on the real MicroPython: taken, refused when damaged, gone on with."""

from __future__ import annotations

import dataclasses
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from mpota.formats.delta import make_delta
from mpota.formats.frames import Frames, compress
from mpota.virtual import micropython
from mpota.virtual.board import Board
from mpota.virtual.cuts import ALL_MODES, CutPoint, Scenario, record_changes
from mpota.virtual.flash import CutMode, VirtualFlash

from tests.support import encoded, ota_board, releases, web
from tests.support.cuts import Cuts, some
from tests.support.encoded import FILE, INSTALL, NEW, OLD, content, give, is_old, noise, run, slot
from tests.support.ota_package import compiled


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return encoded.board(tmp_path)


def test_a_compressed_app_is_the_app(board: Board) -> None:
    give(board, content().compressed())
    assert run(board, INSTALL) == "INSTALLED\n"
    assert slot(board, len(NEW)) == NEW
    assert board.run("").labels == ("ota_1",)


def test_a_compressed_file_may_be_passed_as_an_image_may(board: Board) -> None:
    (Path(str(board.frozen)) / "file").write_bytes(compress(NEW).to_bytes())
    assert run(board, FILE) == "INSTALLED\n"
    assert slot(board, len(NEW)) == NEW


@pytest.mark.parametrize(
    ("data", "kib"),
    [(NEW, 64), (compress(NEW).to_bytes(), 84), (make_delta(OLD, NEW).to_bytes(), 92)],
    ids=["image", "compressed", "delta"],
)
def test_the_heap_that_the_readme_names_is_enough(data: bytes, kib: int) -> None:
    flash = VirtualFlash.create(len(encoded.base()), {0: encoded.base()})
    board = Board(flash, heap_size=kib * 1024, frozen=compiled())
    with flash, web.serving({"/file": web.File(data, '"one"')}) as server:
        server.troubles = [web.drop(len(data) // 2), None]
        ota_board.output(
            board, ota_board.try_update(server.url("/file"), ", max_failures=5, pause=0.01")
        )
        assert len(server.requests) == 2
        assert slot(board, len(NEW)) == NEW
    table = (Path(__file__).parents[2] / "docs/guides/memory.md").read_text()
    assert f" {kib} KiB |\n" in table


def test_files_and_data_come_compressed_too(board: Board) -> None:
    tree = releases.tree("2").compressed()
    assert [form.encoding for form in tree.encoded] == ["deflate"]
    give(board, content().compressed(), tree)
    assert run(board, INSTALL) == "INSTALLED\n"
    after = board.run()
    assert after.labels == ("ota_1",)
    assert "runs v1.27.0 2 " in after.output


def cut_frames(data: bytes) -> bytes:
    return data[: len(data) // 2]


def a_frame_less(data: bytes) -> bytes:
    frames = Frames.from_bytes(data)
    return dataclasses.replace(frames, frames=frames.frames[:-1]).to_bytes()


def swapped(data: bytes) -> bytes:
    frames = Frames.from_bytes(data)
    first, second, *rest = frames.frames
    return dataclasses.replace(frames, frames=(second, first, *rest)).to_bytes()


def another_size(data: bytes) -> bytes:
    frames = Frames.from_bytes(data)
    return dataclasses.replace(frames, size=frames.size + 16).to_bytes()


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (cut_frames, "truncated"),
        (a_frame_less, "truncated"),
        (another_size, "frame"),
        (swapped, "not-an-image"),
        (lambda data: data + b"\0", "frame"),
        (lambda data: data[:4] + b"\2" + data[5:], "frame"),
        (lambda data: data[:5] + b"\3" + data[6:], "frame"),
        (lambda data: data[:6] + b"\7" + data[7:], "frame"),
        (lambda data: data[:12] + b"\xff\xff" + data[14:], "frame"),
        (lambda data: data[:14] + b"\0\0" + data[16:], "frame"),
        (lambda data: data[:14] + b"\xff\0" + data[16:], "frame"),
        (lambda data: data[:16] + b"\7" * 64 + data[80:], "frame"),
    ],
    ids=(
        "half", "a-frame-less", "another-size", "swapped", "a-byte-more", "version", "kind",
        "window", "a-huge-frame", "no-sectors", "too-many-sectors", "no-deflate",
    ),
)  # fmt: skip
def test_damage_is_refused_and_the_old_app_stays(
    board: Board, damage: Callable[[bytes], bytes], code: str
) -> None:
    made = content().compressed()
    form = made.encoded[0]
    bad = dataclasses.replace(form, data=damage(form.data))
    release = dataclasses.replace(made, encoded=(bad,))
    given = releases.manifest(release).to_bytes()
    from mpota.formats.tar import Member, write_tar

    bundle = write_tar([Member("manifest.json", given), Member(bad.member, bad.data)])
    (Path(str(board.frozen)) / "release.bundle").write_bytes(bundle)
    assert run(board, INSTALL).startswith(f"REFUSED {code} ")
    assert is_old(board)


def test_content_that_grows_beyond_the_slot_is_refused_before_the_first_erase(
    board: Board,
) -> None:
    large = compress(NEW + bytes(encoded.SLOT_SIZE)).to_bytes()
    (Path(str(board.frozen)) / "file").write_bytes(large)
    board.flash.restart_count()
    assert run(board, FILE).startswith("REFUSED ")
    assert is_old(board)


FUZZ = """
import sys, random
class esp32:  # nothing of it is used
    NVS = Partition = None
sys.modules["esp32"] = esp32
sys.path.insert(0, sys.argv[1])
from ota.base import OTAError
from ota.frames import Frames

class Sink:
    def __init__(self):
        self.buf = memoryview(bytearray(4096))
    def buffer(self):
        return self.buf
    def take(self, count):
        if not 0 < count <= 4096:
            raise RuntimeError("takes %d" % count)

random.seed(int(sys.argv[4]))
seed = open(sys.argv[2], "rb").read()
refused = 0
for number in range(int(sys.argv[3])):
    data = bytearray(seed)
    for _ in range(random.randint(1, 3)):
        # In the header and that of the first frame more often than in what is packed.
        at = random.randint(0, min(20 if random.randint(0, 1) else len(data), len(data) - 1))
        kind = random.randint(0, 3)
        if kind == 0:
            data[at] ^= 1 << random.randint(0, 7)
        elif kind == 1:
            data[at] = random.randint(0, 255)
        elif kind == 2:
            data[at : at + random.randint(1, 9)] = b""
        else:
            data = data[:at]
        if not data:
            data = bytearray(b"x")
    try:
        frames = Frames(Sink())
        view = memoryview(data)
        at = 0
        while at < len(view):
            count = random.randint(1, 5000)
            frames.write(view[at : at + count])
            at += count
        frames.finish()
    except OTAError as error:
        str(error)
        refused += 1
    except BaseException as error:
        print("ROUND", number, bytes(data[:40]))
        raise
print(refused)
"""


def test_random_damage_is_a_frame_error_and_nothing_else(tmp_path: Path) -> None:
    rng = random.Random(5)
    text = bytes(rng.choices(b"abcdefgh", k=15000)) + noise(9000)
    (tmp_path / "seed").write_bytes(compress(text).to_bytes())
    (tmp_path / "fuzz.py").write_text(FUZZ)
    device = Path(__file__).parents[2] / "device"
    rounds = 1500
    done = subprocess.run(
        [*micropython.find().with_heap(1 << 20), str(tmp_path / "fuzz.py"), str(device),
         str(tmp_path / "seed"), str(rounds), "7"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) > rounds // 2


def cut_late(board: Board, mode: CutMode) -> bytes:
    """The flash after a power cut at nine tenths of the way."""
    recording = record_changes("late", board.flash, lambda: board.run(INSTALL))
    late = CutPoint(recording.name, len(recording.effects) * 9 // 10, mode)
    return recording.content(late)


@pytest.mark.parametrize("form", ["deflate", "plain", "delta"])
def test_after_a_power_cut_a_release_goes_on_where_it_was(board: Board, form: str) -> None:
    made = content()
    if form == "deflate":
        made = made.compressed()
    elif form == "delta":
        made = made.compressed().with_delta(encoded.OLD)
        assert made.encoded[0].encoding == "delta"
    give(board, made)
    board.flash.restore(cut_late(board, CutMode.TORN))
    read = releases.COUNTED + INSTALL + "print(seen)"
    said = run(board, read).split()
    assert said[0] == "INSTALLED"
    if form != "delta":  # the whole of which is a few KiB
        assert int(said[1]) < len(NEW) * 3 // 4
    assert slot(board, len(NEW)) == NEW
    assert board.run("").labels == ("ota_1",)


@pytest.mark.parametrize("form", ["deflate", "delta"])
def test_a_power_cut_at_any_operation_leaves_an_app_that_boots(
    board: Board, form: str, cuts: Cuts
) -> None:
    made = content().compressed()
    if form == "delta":
        made = made.with_delta(encoded.OLD)
    give(board, made)
    scenario = Scenario(f"encoded-{form}", encoded.base(), lambda board: board.run(INSTALL))

    def judge(board: Board) -> str:
        again = board.run(INSTALL)
        if again.labels == ("ota_0",):  # else the cut came behind the switch
            assert again.output == "INSTALLED\n", again.console
            again = board.run("")
        assert again.labels == ("ota_1",)
        assert slot(board, len(NEW)) == NEW
        return again.output

    cuts.try_all(scenario, board, judge, some(14, modes=ALL_MODES))


def test_a_slot_with_something_else_does_not_spoil_the_next_attempt(board: Board) -> None:
    """What was noted belongs to the bytes in the slot: another update there ends it."""
    give(board, content().compressed())
    board.flash.restore(cut_late(board, CutMode.BEFORE))
    (Path(str(board.frozen)) / "file").write_bytes(encoded.app("v1.28.0")[:-16])
    assert run(board, FILE).startswith("REFUSED truncated ")
    assert run(board, INSTALL) == "INSTALLED\n"
    assert slot(board, len(NEW)) == NEW
