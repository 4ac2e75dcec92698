"""Deltas on the desk: they give the new file, whatever the two are, and stay small."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from mpota.commands.delta import command as delta_command
from mpota.errors import MpotaError
from mpota.firmware import sample
from mpota.formats.delta import MAX_UNPACKED, apply_delta, make_delta
from mpota.formats.delta_match import find_stretches
from mpota.formats.frames import MAX_PACKED_DELTA, Frames, compress, inflate
from mpota.units import SECTOR_SIZE

OLD = sample.build_app("esp32", version="v1.26.1", size=0x34000)
NEW = sample.build_app("esp32", version="v1.27.0", size=0x34000)
RNG = random.Random(1)
NOISE = RNG.randbytes(60_000)


def inserted(data: bytes, at: int, size: int) -> bytes:
    """Code that was moved by ``size`` bytes: addresses behind the place change with it."""
    moved = bytearray(data[:at] + RNG.randbytes(size) + data[at:])
    for place in range(at + size, len(moved) - 3, 24):
        word = int.from_bytes(moved[place : place + 4], "little")
        moved[place : place + 4] = (word + size & 0xFFFFFFFF).to_bytes(4, "little")
    return bytes(moved)


def table(distance: int) -> bytes:
    """Addresses of things of many sizes, all of them moved."""
    rng = random.Random(3)
    addresses = itertools.accumulate((4 * rng.randint(1, 60) for _ in range(8000)), initial=1 << 30)
    return b"".join((address + distance).to_bytes(4, "little") for address in addresses)


def records(seed: int) -> bytes:
    """All alike at their starts: many places to compare, none of which is right."""
    rng = random.Random(seed)
    return b"".join(b"ABCDEF" + rng.randbytes(10) for _ in range(3000))


delta_of = functools.cache(make_delta)  # of pairs that several tests take

PAIRS = {
    "same": (NOISE, NOISE),
    "a-byte": (NOISE, NOISE[:30_000] + b"!" + NOISE[30_001:]),
    "last-byte-of-a-sector": (NOISE, NOISE[:4095] + b"!" + NOISE[4096:]),
    "first-byte": (NOISE, b"!" + NOISE[1:]),
    "last-byte": (NOISE, NOISE[:-1] + b"!"),
    "inserted": (NOISE, inserted(NOISE, 20_000, 44)),
    "shorter": (NOISE, NOISE[:12_345]),
    "longer": (NOISE[:12_345], NOISE),
    "front-removed": (NOISE, NOISE[7_777:]),
    "halves-exchanged": (NOISE, NOISE[30_000:] + NOISE[:30_000]),
    "nothing-in-common": (NOISE, random.Random(2).randbytes(50_000)),
    "one-byte-files": (b"a", b"b"),
    "to-zeros": (NOISE, bytes(40_000)),
    "from-zeros": (bytes(40_000), NOISE),
    "zeros": (bytes(40_000), bytes(60_000)),
    "every-other-byte": (NOISE, bytes(byte ^ (at & 1) for at, byte in enumerate(NOISE))),
    "addresses": (table(0), table(0x1234)),
    "records": (records(1), records(2)),
    "apps": (OLD, NEW),
}


@pytest.mark.parametrize(("old", "new"), PAIRS.values(), ids=PAIRS)
def test_a_delta_gives_the_new_file(old: bytes, new: bytes) -> None:
    delta = delta_of(old, new)
    assert apply_delta(old, Frames.from_bytes(delta.to_bytes())) == new
    for frame in delta.frames:
        assert len(frame.packed) <= MAX_PACKED_DELTA


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_two_files_have_a_delta(data: st.DataObject) -> None:
    old = data.draw(st.binary(min_size=1, max_size=300)) * data.draw(st.integers(1, 60))
    pieces = [old, data.draw(st.binary(max_size=300)), NOISE[:5000]]
    new = b"".join(
        pieces[data.draw(st.integers(0, 2))][data.draw(st.integers(0, 4000)) :] for _ in range(4)
    )
    new = new or b"x"
    assert apply_delta(old, Frames.from_bytes(make_delta(old, new).to_bytes())) == new


def test_stretches_cover_the_new_file_once() -> None:
    for old, new in PAIRS.values():
        at = 0
        for stretch in find_stretches(old, new):
            assert stretch.start == at < stretch.end
            at = stretch.end
        assert at == len(new)


def test_a_frame_fits_into_what_a_board_has_for_it() -> None:
    for old, new in PAIRS.values():
        for frame in delta_of(old, new).frames:
            with pytest.raises(MpotaError):  # there are not as many
                inflate(frame, 12, MAX_UNPACKED + 1)


def test_a_small_change_makes_a_small_delta() -> None:
    for name, limit in (("a-byte", 200), ("same", 150), ("front-removed", 200)):
        assert len(delta_of(*PAIRS[name]).to_bytes()) < limit, name
    old, new = PAIRS["inserted"]
    # 1,666 addresses that moved by the same amount, and 44 new bytes
    assert len(delta_of(old, new).to_bytes()) < len(new) * 0.05
    assert len(delta_of(OLD, NEW).to_bytes()) < len(compress(NEW).to_bytes()) * 0.15


def test_addresses_that_all_moved_take_little() -> None:
    old, new = PAIRS["addresses"]
    assert len(delta_of(old, new).to_bytes()) < len(new) * 0.02


def test_nothing_in_common_costs_little_more_than_the_new_file() -> None:
    for name in ("nothing-in-common", "from-zeros", "records"):
        old, new = PAIRS[name]
        assert len(delta_of(old, new).to_bytes()) < len(new) * 1.01, name


def test_an_empty_file_has_no_delta() -> None:
    for old, new in ((b"", NEW), (OLD, b"")):
        with pytest.raises(MpotaError, match="file of 0 bytes"):
            make_delta(old, new)


def test_a_delta_is_the_same_whenever_it_is_made() -> None:
    script = (
        "import sys; from mpota.firmware import sample; from mpota.formats.delta import make_delta;"
        "versions = 'v1.26.1', 'v1.27.0';"
        "apps = [sample.build_app('esp32', version=v, size=0x34000) for v in versions];"
        "sys.stdout.buffer.write(make_delta(*apps).to_bytes())"
    )
    made = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert made == {delta_of(OLD, NEW).to_bytes()}


def test_the_wrong_base_is_named() -> None:
    delta = delta_of(OLD, NEW)
    with pytest.raises(MpotaError, match="starts from"):
        apply_delta(NEW, delta)
    with pytest.raises(MpotaError, match="no delta"):
        apply_delta(OLD, compress(NEW))


def test_random_damage_is_an_mpota_error_or_other_content() -> None:
    rng = random.Random(4)
    old, new = PAIRS["inserted"]
    delta = delta_of(old, new)
    refused = 0
    for _ in range(300):
        index = rng.randrange(len(delta.frames))
        frame = delta.frames[index]
        code = bytearray(inflate_all(frame.packed))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(min(len(code), 40) if rng.random() < 0.7 else len(code))
            code[at] = rng.randrange(256)
        bad = dataclasses.replace(frame, packed=deflated(bytes(code)))
        frames = (*delta.frames[:index], bad, *delta.frames[index + 1 :])
        try:
            apply_delta(old, dataclasses.replace(delta, frames=frames))
        except MpotaError:
            refused += 1
    assert refused > 100


def inflate_all(packed: bytes) -> bytes:
    import zlib

    return zlib.decompressobj(-12).decompress(packed)


def deflated(code: bytes) -> bytes:
    from mpota.formats.frames import deflate

    return deflate(code)


def run_delta(directory: Path, old: bytes, new: bytes, *args: str) -> tuple[int, str, Path]:
    (directory / "old.bin").write_bytes(old)
    (directory / "new.bin").write_bytes(new)
    target = directory / "patch"
    paths = [str(directory / "old.bin"), str(directory / "new.bin"), "-o", str(target)]
    done = CliRunner().invoke(delta_command, [*paths, *args])
    return done.exit_code, str(done.exception or done.output), target


def test_the_command_writes_a_delta_between_firmware_files(tmp_path: Path) -> None:
    firmware = sample.build_firmware("esp32", app=NEW)
    code, output, target = run_delta(tmp_path, OLD, firmware)
    assert code == 0, output
    assert output.startswith("delta: ")
    assert apply_delta(OLD, Frames.from_bytes(target.read_bytes())) == NEW


def test_the_command_refuses_another_chip_and_an_existing_file(tmp_path: Path) -> None:
    other = sample.build_app("esp32s3", size=0x34000)
    code, error, target = run_delta(tmp_path, other, NEW)
    assert code
    assert "old.bin is for esp32s3, new.bin for esp32" in error
    assert not target.exists()
    target.write_bytes(b"precious")
    code, _, _ = run_delta(tmp_path, OLD, NEW)
    assert code
    assert target.read_bytes() == b"precious"


def test_the_last_sector_may_be_odd() -> None:
    old = NOISE
    new = bytearray(NOISE[: 3 * SECTOR_SIZE + 5])
    new[-1] ^= 1
    new[-3] ^= 1
    new[SECTOR_SIZE - 1] ^= 0x80
    new[SECTOR_SIZE] ^= 0x80
    assert apply_delta(old, make_delta(old, bytes(new))) == bytes(new)
