"""The channel file and its fresh file: written, read back, signed; what is refused, and how."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from mpota.errors import MpotaError
from mpota.formats.channel import (
    MAX_ENTRIES,
    Channel,
    ChannelEntry,
    Fresh,
    SignedLine,
    check_name,
    line_digest,
)
from mpota.formats.manifest import Manifest
from mpota.formats.signature import BLOCK_SIZE, parse_sector
from mpota.release.signing import PrivateKey, check_line, sign, sign_line

PAGE = Path(__file__).parents[2] / "docs" / "channel_file.md"
NOW = datetime(2026, 11, 27, 12, tzinfo=timezone.utc)
SHA256 = hashlib.sha256(b"pump 2.2.0").hexdigest()
ENTRY = ChannelEntry("2.2.0", 7, "pump-2.2.0-esp32.json", 912, SHA256, chip="esp32")
CHANNEL = Channel("pump", "stable", 12, NOW, NOW + timedelta(30), (ENTRY,))
FRESH = Fresh("pump", "stable", 12, "ab" * 32, NOW, NOW + timedelta(2))


@pytest.fixture(scope="module")
def keys() -> tuple[PrivateKey, ...]:
    return tuple(PrivateKey.generate() for _ in range(3))


def changed(line: bytes, entry: int | None = None, **fields: Any) -> bytes:
    """``line`` with other fields, in the channel or in one of its entries; None takes one away."""
    document = json.loads(line)
    target = document if entry is None else document["releases"][entry]
    target.update(fields)
    for key in [key for key, value in target.items() if value is None]:
        del target[key]
    return json.dumps(document).encode() + b"\n"


def test_every_field_comes_back_as_it_was_written() -> None:
    full = ChannelEntry(
        "2.2.0-rc1", 7, "https://elsewhere.example/a.json", 1, SHA256, "esp32s3", "Generic ESP32S3",
        "2.0", 0, "north", NOW + timedelta(1), 7200, "paused",
    )  # fmt: skip
    channel = Channel(
        "pump", "beta-2", 1, NOW, NOW + timedelta(1), (full, ENTRY), 60, "cd" * 32, {"x-note": [1]}
    )
    assert Channel.from_line(channel.to_line()) == channel
    assert channel.to_line().count(b"\n") == 1
    assert Fresh.from_line(FRESH.to_line()) == FRESH


def test_the_page_has_the_example_and_the_vectors_as_they_are() -> None:
    page = PAGE.read_text()
    (example,) = re.findall(r"```json\n(.*\n)```", page)
    channel = Channel.from_line(example.encode())
    assert channel.to_line() == example.encode()
    assert f"{len(example)} bytes" in page
    assert line_digest(example.encode()).hex() in page
    rows = re.findall(r"\| (\S+) \| `(\w{12})` \| `(\w+)\.\.\.` \| (\d+) \| (\d+) \|", page)
    assert len(rows) == 3
    for salt, unique_id, start, bucket, delay in rows:
        entry = ChannelEntry("1", 1, "a.json", 1, SHA256, spread=3600)
        if salt != "-":
            entry = ChannelEntry("1", 1, "a.json", 1, SHA256, spread=3600, salt=salt.strip("`"))
        raw = bytes.fromhex(unique_id)
        name = salt.strip("`") if salt != "-" else SHA256
        assert hashlib.sha256(name.encode() + b"\0" + raw).hexdigest().startswith(start)
        assert (entry.bucket(raw), entry.delay(raw)) == (int(bucket), int(delay))


def test_shares_take_their_part_of_consecutive_ids_and_all_of_them_at_the_end() -> None:
    ids = [(0x240AC4000000 + number).to_bytes(6, "big") for number in range(10_000)]
    buckets = [ENTRY.bucket(unique_id) for unique_id in ids]
    for share in (100, 500, 2500):
        count = sum(bucket < share for bucket in buckets)
        assert abs(count - share) < 4 * (share * (1 - share / 10_000)) ** 0.5
    assert max(buckets) < 10_000


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"type": "fresh"}, "has type 'fresh', it must be 'channel'"),
        ({"type": None}, "has no 'type'"),
        ({"format": 2}, "has format 2, this is mpota for format 1"),
        ({"name": "../pump"}, "name '../pump'"),
        ({"channel": "a b"}, "channel 'a b'"),
        ({"channel": "c" * 33}, "1 to 32 letters"),
        ({"serial": 0}, "serial '0', it must be 1 to 2147483647"),
        ({"serial": 1 << 31}, "serial '2147483648'"),
        ({"serial": True}, "serial 'True'"),
        ({"issued": "2026-11-27"}, "issued '2026-11-27'"),
        ({"issued": "2026-02-29T00:00:00Z"}, "issued '2026-02-29T00:00:00Z'"),
        ({"expires": None}, "has no 'expires'"),
        ({"expires": "2100-01-01T00:00:00Z"}, "from 2000 to 2099"),
        ({"expires": "2026-11-27T12:00:00Z"}, "expires on 2026-11-27T12:00:00Z, it was issued on"),
        ({"poll": 59}, "poll '59', it must be 60 to 86400"),
        ({"poll": 86401}, "poll '86401'"),
        ({"fresh_key": "ab"}, "fresh_key 'ab'"),
        ({"releases": None}, "has no 'releases'"),
        ({"releases": [1]}, "release 0 is not a JSON object"),
        ({"also": 1}, "unknown field 'also'"),
    ],
)
def test_a_field_that_is_wrong_is_named(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(MpotaError, match=re.escape(problem)):
        Channel.from_line(changed(CHANNEL.to_line(), **fields))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"version": "two"}, "release 0 has version 'two'"),
        ({"counter": 0}, "counter '0', it must be 1 to"),
        ({"chip": "esp8266"}, "for chip 'esp8266'"),
        ({"board": "\u00e4"}, "release 0 has board"),
        ({"manifest": "pump.bundle"}, "manifest 'pump.bundle'"),
        ({"manifest": "a b.json"}, "manifest 'a b.json'"),
        ({"manifest": "a" * 251 + ".json"}, "up to 255 characters"),
        ({"size": 8193}, "size '8193', it must be 1 to 8192"),
        ({"sha256": "AB" * 32}, "release 0 has sha256"),
        ({"from": "v1"}, "from 'v1'"),
        ({"share": 10001}, "share '10001', it must be 0 to 10000"),
        ({"share": -1}, "share '-1'"),
        ({"salt": ""}, "salt ''"),
        ({"begins": "soon"}, "begins 'soon'"),
        ({"spread": 2592001}, "spread '2592001'"),
        ({"state": "open"}, "state 'open', it must be 'paused' or 'withdrawn'"),
        ({"url": "x"}, "unknown field 'url'"),
    ],
)
def test_a_field_of_an_entry_that_is_wrong_is_named(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(MpotaError, match=re.escape(problem)):
        Channel.from_line(changed(CHANNEL.to_line(), 0, **fields))


def test_fields_that_start_with_x_are_passed_over() -> None:
    assert Channel.from_line(changed(CHANNEL.to_line(), 0, **{"x-note": {}})) == CHANNEL


def test_more_entries_than_a_board_reads_are_refused() -> None:
    entries = tuple(
        ChannelEntry("1", number, "a.json", 1, SHA256) for number in range(1, MAX_ENTRIES + 2)
    )
    with pytest.raises(MpotaError, match="has 17 releases, at most 16"):
        Channel("pump", "stable", 1, NOW, NOW + timedelta(1), entries).to_line()


def test_two_entries_of_one_counter_for_one_hardware_are_refused() -> None:
    other = ChannelEntry("2.2.1", 7, "b.json", 1, "cd" * 32, chip="esp32")
    with pytest.raises(MpotaError, match="two releases with counter 7"):
        Channel("pump", "stable", 1, NOW, NOW + timedelta(1), (ENTRY, other)).to_line()


def test_a_line_that_is_too_long_is_refused() -> None:
    long = {"x-note": "n" * 8192}
    with pytest.raises(MpotaError, match="at most 8,192"):
        Channel("pump", "stable", 1, NOW, NOW + timedelta(1), extra=long).to_line()
    with pytest.raises(MpotaError, match="at most 1,024"):
        Fresh.from_line(changed(FRESH.to_line(), **{"x-note": "n" * 1000}))


def test_a_fresh_file_does_not_pass_for_a_channel_file_nor_either_for_a_manifest() -> None:
    with pytest.raises(MpotaError, match="has type 'fresh'"):
        Channel.from_line(FRESH.to_line())
    with pytest.raises(MpotaError, match="has type 'channel'"):
        Fresh.from_line(CHANNEL.to_line())
    for line in (CHANNEL.to_line(), FRESH.to_line()):
        with pytest.raises(MpotaError):
            Manifest.from_bytes(line)


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "c" * 33])
def test_what_is_no_name_of_a_channel_is_refused(name: str) -> None:
    with pytest.raises(MpotaError, match="1 to 32 letters"):
        check_name(name)


def test_each_key_that_signed_is_found(keys: tuple[PrivateKey, ...]) -> None:
    line = CHANNEL.to_line()
    for count in (1, 2, 3):
        data = sign_line(line, keys[:count])
        assert len(data) == len(line) + count * BLOCK_SIZE
        for key in keys[:count]:
            assert check_line(data, [key.public], "channel file") == (line, key.public)


def test_signatures_that_were_made_elsewhere_are_put_to_the_line(
    keys: tuple[PrivateKey, ...],
) -> None:
    line = CHANNEL.to_line()
    signed = SignedLine(line, parse_sector(sign(line, keys[:1])))
    signed.check()
    assert check_line(signed.to_bytes(), [keys[0].public], "file")[0] == line
    with pytest.raises(MpotaError, match="belongs to other content"):
        SignedLine(FRESH.to_line(), signed.blocks).check()


def test_the_digest_is_the_same_whoever_signed(keys: tuple[PrivateKey, ...]) -> None:
    line = CHANNEL.to_line()
    files = [SignedLine.from_bytes(sign_line(line, (key,))) for key in keys]
    assert len({file.to_bytes() for file in files}) == 3
    assert {file.digest for file in files} == {line_digest(line)}
    assert files[0].blocks[0].content_digest == line_digest(line)


def test_what_is_signed_by_nobody_who_is_trusted_is_refused(keys: tuple[PrivateKey, ...]) -> None:
    data = sign_line(CHANNEL.to_line(), keys[:1])
    with pytest.raises(MpotaError, match="none of the keys given"):
        check_line(data, [keys[1].public], "channel file")
    other = changed(CHANNEL.to_line(), serial=13) + data[len(CHANNEL.to_line()) :]
    with pytest.raises(MpotaError, match="belongs to other content"):
        check_line(other, [keys[0].public], "channel file")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda data: b"", "does not start with a line of JSON"),
        (lambda data: b" " + data, "does not start with a line of JSON"),
        (lambda data: data.replace(b"\n", b" "), "line of JSON|line of"),
        (lambda data: data[:-1], "1,215 bytes behind its line"),
        (lambda data: data + b"\xff", "1,217 bytes behind its line"),
        (lambda data: data[:-BLOCK_SIZE], "0 bytes behind its line"),
        (lambda data: data + data[-BLOCK_SIZE:] * 3, "4,864 bytes behind its line"),
        (lambda data: b"{" + b" " * 8192 + data, "a line of"),
        (lambda data: data[:-BLOCK_SIZE] + b"\xff" * BLOCK_SIZE, "no magic byte"),
        (lambda data: data[:-30] + b"\0" + data[-29:], "CRC-32 does not fit"),
    ],
    ids=[
        "empty",
        "blank",
        "no-newline",
        "short",
        "long",
        "unsigned",
        "four",
        "line",
        "none",
        "bit",
    ],
)
def test_a_file_that_is_no_signed_line_is_refused(
    spoil: Any, problem: str, keys: tuple[PrivateKey, ...]
) -> None:
    data = sign_line(CHANNEL.to_line(), keys[:1])
    with pytest.raises(MpotaError, match=problem):
        SignedLine.from_bytes(spoil(data))
