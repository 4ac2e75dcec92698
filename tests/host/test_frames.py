"""Encoded payloads on the desk: frames of deflate, their limits, and releases that carry them."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import zlib
from pathlib import Path

import pytest
from click.testing import CliRunner
from mpota.commands.bundle import command as bundle_command
from mpota.errors import MpotaError
from mpota.firmware import sample
from mpota.formats.bundle import Bundle
from mpota.formats.frames import (
    MAX_PACKED,
    WINDOW_BITS,
    Frame,
    Frames,
    compress,
    decompress,
)
from mpota.release.build import Content
from mpota.units import SECTOR_SIZE

OLD = sample.build_app("esp32", version="v1.26.1", size=0x34000)
NEW = sample.build_app("esp32", version="v1.27.0", size=0x34000)
NOISE = random.Random(1).randbytes(50_001)


@pytest.mark.parametrize(
    "content",
    [b"x", b"x" * SECTOR_SIZE, b"x" * (SECTOR_SIZE + 1), bytes(3 << 20), NOISE, NEW],
    ids=["byte", "sector", "sector-and-byte", "zeros", "noise", "app"],
)
def test_what_is_compressed_comes_back(content: bytes) -> None:
    frames = compress(content)
    assert decompress(Frames.from_bytes(frames.to_bytes())) == content
    assert all(0 < len(frame.packed) <= MAX_PACKED for frame in frames.frames)


def test_zeros_take_next_to_nothing_and_noise_next_to_nothing_more() -> None:
    assert len(compress(bytes(3 << 20)).to_bytes()) < 4096
    assert len(compress(NOISE).to_bytes()) < len(NOISE) * 1.004


def test_a_frame_needs_no_other() -> None:
    """Any frame can be where a board goes on, with a decoder that has seen nothing before."""
    frames = compress(NEW)
    assert len(frames.frames) > 10
    at = 0
    for frame in frames.frames:
        piece = NEW[at : at + frame.sectors * SECTOR_SIZE]
        assert zlib.decompressobj(-WINDOW_BITS).decompress(frame.packed) == piece
        at += len(piece)


def test_frames_are_one_stream_for_a_decoder_that_takes_them_so() -> None:
    decoder = zlib.decompressobj(-WINDOW_BITS)
    assert b"".join(decoder.decompress(f.packed) for f in compress(NEW).frames) == NEW


@pytest.mark.parametrize("at", [0, 4, 5, 6, 11, 12, 14])
def test_a_damaged_header_is_named(at: int) -> None:
    data = bytearray(compress(NOISE).to_bytes())
    data[at] ^= 0xFF
    with pytest.raises(MpotaError):
        decompress(Frames.from_bytes(bytes(data)))


def test_random_damage_is_an_mpota_error_or_other_content() -> None:
    rng = random.Random(2)
    data = compress(NOISE[:9000] + bytes(9000)).to_bytes()
    refused = 0
    for _ in range(1000):
        bad = bytearray(data)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        try:
            decompress(Frames.from_bytes(bytes(bad[: rng.randrange(len(bad))])))
        except MpotaError:
            refused += 1
    assert refused > 900


def test_a_frame_that_gives_too_much_or_too_little_is_refused() -> None:
    good = compress(bytes(SECTOR_SIZE)).frames[0]
    for size in (SECTOR_SIZE - 1, SECTOR_SIZE * 2):
        bad = Frames(size, (Frame(good.packed, -(-size // SECTOR_SIZE)),))
        with pytest.raises(MpotaError, match="does not give"):
            decompress(bad)


def run_bundle(directory: Path, *args: str) -> Bundle:
    (directory / "old.bin").write_bytes(OLD)
    (directory / "new.bin").write_bytes(NEW)
    target = directory / "made.bundle"
    base = [str(directory / "new.bin"), "--name", "demo", "--version", "2.0", "-o", str(target)]
    done = CliRunner().invoke(bundle_command, [*base, *args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return Bundle.from_bytes(target.read_bytes())


def test_a_compressed_bundle_holds_the_app_once(tmp_path: Path) -> None:
    made = run_bundle(tmp_path, "--compress")
    (payload,) = made.manifest.payloads
    (form,) = payload.forms
    assert (form.encoding, form.member) == ("deflate", "app.bin.deflate")
    assert decompress(Frames.from_bytes(made.members["app.bin.deflate"])) == NEW


def test_a_bundle_with_deltas_has_the_smallest_first_and_the_whole_last(tmp_path: Path) -> None:
    other = sample.build_app("esp32", version="v1.20.0", size=0x34000)
    (tmp_path / "other.bin").write_bytes(other)
    deltas = [f"--delta-from={tmp_path / name}" for name in ("old.bin", "other.bin")]
    made = run_bundle(tmp_path, "--compress", *deltas)
    forms = made.manifest.payloads[0].forms
    assert [form.encoding for form in forms] == ["delta", "delta", "deflate"]
    assert [form.size for form in forms] == sorted(form.size for form in forms)
    assert len({form.base for form in forms[:2]}) == 2


def test_a_delta_that_gains_nothing_is_left_out() -> None:
    content = Content("app", "app.bin", NOISE)
    assert content.with_delta(random.Random(3).randbytes(60_000)).encoded == ()
    assert [form.encoding for form in content.with_delta(NOISE[5:]).encoded] == ["delta"]


def test_a_compressed_member_that_gives_something_else_is_found(tmp_path: Path) -> None:
    made = run_bundle(tmp_path, "--compress")
    data = compress(OLD).to_bytes()
    payload = made.manifest.payloads[0]
    form = dataclasses.replace(
        payload.forms[0], size=len(data), sha256=hashlib.sha256(data).hexdigest()
    )
    manifest = dataclasses.replace(
        made.manifest, payloads=(dataclasses.replace(payload, forms=(form,)),)
    )
    bad = dataclasses.replace(
        made, manifest=manifest, manifest_bytes=manifest.to_bytes(),
        members={"app.bin.deflate": data},
    )  # fmt: skip
    with pytest.raises(MpotaError, match=r"decompressed, has SHA-256"):
        Bundle.from_bytes(bad.to_bytes())
