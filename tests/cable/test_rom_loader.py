"""The serial loader of a virtual board, through the real esptool and byte by byte."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mpota.formats.chips import CHIPS
from mpota.units import SECTOR_SIZE, MiB
from mpota.virtual.cuts import power_cut
from mpota.virtual.flash import CutMode, PowerCut, VirtualFlash
from mpota.virtual.rom_loader import RomLoader

DATA = random.Random(5).randbytes(30_000) + bytes(40_000) + b"\xff" * 10_000 + b"\xc0\xdb" * 5_000


@pytest.mark.parametrize("chip", [chip.name for chip in CHIPS])
def test_esptool_detects_chip_mac_and_flash_size(plug_in, esptool, chip):
    cable = plug_in(chip=chip, size=8 * MiB)
    result = esptool(cable, "flash-id")
    cable.unplug()
    assert result.returncode == 0, result.stdout
    title = next(c.title for c in CHIPS if c.name == chip)
    assert f"Connected to {title} on" in result.stdout
    assert "24:0a:c4:00:01:02" in result.stdout
    assert "Stub flasher running" in result.stdout
    assert "Detected flash size: 8MB" in result.stdout
    assert cable.events == ["halt", "boot"]


@pytest.mark.parametrize("options", [[], ["--no-stub"]], ids=["stub", "rom"])
@pytest.mark.parametrize("chip", ["esp32", "esp32c3"])
def test_esptool_writes_verifies_reads_and_erases(plug_in, esptool, tmp_path, chip, options):
    cable = plug_in(chip=chip, size=2 * MiB)
    cable.flash.write(0x9000, b"\0" * 0x20000)
    (tmp_path / "data").write_bytes(DATA)
    for compression in ("--compress", "--no-compress"):
        result = esptool(cable, *options, "write-flash", compression, "0x12000", "data")
        assert "Hash of data verified" in result.stdout, result.stdout
    assert cable.flash.read(0x12000, len(DATA)) == DATA
    assert cable.flash.read(0x9000, 0x9000) == bytes(0x9000)
    assert esptool(cable, *options, "verify-flash", "0x12000", "data").returncode == 0
    assert esptool(cable, *options, "read-flash", "0x11ff0", "5000", "read").returncode == 0
    assert (tmp_path / "read").read_bytes() == cable.flash.read(0x11FF0, 5000)
    assert esptool(cable, *options, "erase-region", "0x13000", "0x2000").returncode == 0
    assert cable.flash.read(0x13000, 0x2000) == b"\xff" * 0x2000
    assert cable.flash.read(0x12000, 0x1000) == DATA[:0x1000]


def test_faster_serial_lines_and_every_way_to_reset(plug_in, esptool):
    cable = plug_in(chip="esp32c5")
    assert "48MHz" in esptool(cable, "-b", "921600", "chip-id").stdout
    for after in ("watchdog-reset", "no-reset", "no-reset-stub"):
        assert esptool(cable, "--after", after, "read-mac").returncode == 0
    assert esptool(cable, "--no-stub", "--after", "soft-reset", "read-mac").returncode == 0
    cable.unplug()
    assert cable.events == ["halt", "boot"] * 5


def test_a_power_cut_leaves_what_was_done_so_far_and_the_port_is_gone(plug_in, esptool):
    cable = plug_in()
    cable.flash.write(0xC000, bytes(0x8000))
    cable.flash.restart_count()
    with power_cut(cable.flash, 3, CutMode.TORN):
        result = esptool(cable, "erase-region", "0xC000", "0x8000")
    cable.unplug()
    assert result.returncode != 0
    assert isinstance(cable.port.failure, PowerCut)
    assert len(cable.flash.operations) == 4
    assert cable.flash.read(0xC000, 3 * SECTOR_SIZE) == b"\xff" * 3 * SECTOR_SIZE
    torn = cable.flash.read(0xC000 + 3 * SECTOR_SIZE, SECTOR_SIZE)
    assert 0 < torn.count(0) < SECTOR_SIZE
    assert cable.flash.read(0x10000, 0x4000) == bytes(0x4000)
    assert cable.events == ["halt"]


class Host:
    """Speaks to a loader without a port between them."""

    def __init__(self, chip: str = "esp32s3", size: int = 2 * MiB) -> None:
        self.flash = VirtualFlash.create(size)
        self.sent = bytearray()
        self.loader = RomLoader(self.flash, chip, self.sent.extend)
        self.command(0x08, b"\x07\x07\x12\x20" + b"\x55" * 32)

    def frame(self, frame: bytes) -> bytes:
        self.sent.clear()
        escaped = frame.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc")
        self.loader.receive(b"\xc0" + escaped + b"\xc0")
        return bytes(self.sent)

    def command(self, op: int, data: bytes, checksum: int = 0) -> bytes:
        return self.frame(struct.pack("<BBHI", 0, op, len(data), checksum) + data)

    def words(self, op: int, *words: int) -> bytes:
        return self.command(op, struct.pack(f"<{len(words)}I", *words))

    def block(self, op: int, payload: bytes, seq: int, checksum: int = 0xEF) -> bytes:
        return self.command(op, struct.pack("<4I", len(payload), seq, 0, 0) + payload, checksum)

    def start_stub(self) -> None:
        self.words(0x05, 4, 1, 4, 0x40380000)
        self.block(0x07, bytes(4), 0)
        assert b"\xc0OHAI\xc0" in self.words(0x06, 0, 0x40380000)


@pytest.fixture
def host():
    host = Host()
    yield host
    host.flash.close()


def status(response: bytes) -> bytes:
    """The error of a ROM's response that ends in four status bytes, without the reserved ones."""
    assert response[0] == response[-1] == 0xC0
    return response[-5:-3]


OK = b"\0\0"


def test_nothing_but_sync_is_answered_before_the_first_sync():
    with VirtualFlash.create(MiB) as flash:
        sent: list[bytes] = []
        loader = RomLoader(flash, "esp32", sent.append)
        loader.receive(b"\xc0\0\x0a\x04\0\0\0\0\0\0\x10\0\x40\xc0" * 2)
        assert sent == []


def test_noise_between_frames_and_broken_escapes_are_ignored(host):
    request = struct.pack("<BBHII", 0, 0x0A, 4, 0, 0x60000078)
    host.sent.clear()
    host.loader.receive(b"noise\xc0" + request[:7] + b"\xdb\0" + request[7:] + b"\xc0 more noise")
    assert host.sent == b""
    for byte in b"\xc0\xc0" + request + b"\xc0":
        host.loader.receive(bytes([byte]))
    assert status(bytes(host.sent)) == OK


def test_a_wrong_checksum_or_length_is_refused_and_writes_nothing(host):
    host.command(0x0D, bytes(8))
    assert status(host.words(0x02, 0x400, 1, 0x400, 0x1000, 0)) == OK
    assert status(host.block(0x03, bytes(0x400), 0, 0xEE)) == b"\x01\x07"
    assert status(host.block(0x03, bytes(0x3FC), 0)) == b"\x01\x05"
    assert status(host.block(0x03, bytes(0x400), 1)) == b"\x01\x06"
    assert status(host.frame(b"\0\x03\x10\0" + bytes(12))) == b"\x01\x05"
    assert host.flash.read(0x1000, 0x400) == b"\xff" * 0x400
    assert status(host.words(0x04, 0)) == b"\x01\x05", "the end comes before the data"
    assert status(host.block(0x03, bytes(0x400), 0)) == OK
    assert host.flash.read(0x1000, 0x400) == bytes(0x400)


def test_the_rom_needs_attached_flash_and_its_size(host):
    assert status(host.words(0x13, 0, 16, 0, 0)) == b"\x01\x08"
    host.command(0x0D, bytes(8))
    assert status(host.words(0x13, 0, 16, 0, 0)) == OK
    assert status(host.words(0x13, 2 * MiB - 8, 16, 0, 0)) == b"\x01\x08"
    host.words(0x0B, 0, MiB, 0x10000, 0x1000, 256, 0xFFFF)
    assert status(host.words(0x13, MiB - 8, 16, 0, 0)) == b"\x01\x08"


def test_code_that_was_not_uploaded_is_not_started(host):
    host.words(0x05, 4, 1, 4, 0x40380000)
    host.block(0x07, bytes(4), 0)
    assert b"OHAI" not in host.words(0x06, 0, 0x40380004)
    assert not host.loader.is_stub


def test_stub_commands_are_unknown_to_the_rom(host):
    assert status(host.words(0xD0)) == b"\x01\x05"
    host.start_stub()
    assert host.words(0xD0)[-3:-1] == OK
    assert host.words(0x0E, 0, 4)[-3:-1] == b"\xc3\0"


def test_the_stub_reports_a_failed_write_at_the_next_command(host):
    host.start_stub()
    host.words(0x10, 0x1000, 1, 0x400, 0x3000, 0)
    assert host.block(0x11, b"no zlib stream here!", 0, 0xEF ^ 0x21 ^ 0x6E)[-3:-1] != OK
    payload = bytes(20)
    assert host.block(0x11, payload, 0)[-3:-1] == OK
    assert host.words(0x13, 0, 16, 0, 0)[-3:-1] == b"\xc7\0"
    assert host.words(0x13, 0, 16, 0, 0)[-3:-1] == OK


def test_a_host_that_acknowledges_the_wrong_number_of_bytes_gets_no_digest(host):
    host.start_stub()
    host.words(0xD2, 0, 8192, 4096, 64)
    assert host.frame(struct.pack("<I", 4095)) == b""
    host.words(0xD2, 0, 4096, 4096, 64)
    assert len(host.frame(struct.pack("<I", 4096)).replace(b"\xdb", b"")) >= 18


def test_flash_behind_16_mib_needs_a_chip_with_32_bit_addresses():
    for chip, expected in (("esp32", b"\xc4\0"), ("esp32s3", OK)):
        host = Host(chip, 32 * MiB)
        host.start_stub()
        assert host.words(0x13, 16 * MiB, 16, 0, 0)[-3:-1] == expected
        host.flash.close()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.booleans(),
    st.lists(
        st.tuples(
            st.sampled_from([*range(0x02, 0x15), *range(0xD0, 0xD5)]),
            st.lists(st.sampled_from([0, 1, 4, 16, 0x400, 0x1000, 0x4000, 2**32 - 1]), max_size=6),
            st.binary(max_size=40),
        ),
        max_size=12,
    ),
)
def test_no_command_of_a_host_makes_the_loader_fail(is_stub, commands):
    host = Host(size=256 * 1024)
    try:
        if is_stub:
            host.start_stub()
        for op, words, tail in commands:
            data = struct.pack(f"<{len(words)}I", *words) + tail
            checksum = 0xEF
            for byte in data[16:]:
                checksum ^= byte
            host.command(op, data, checksum)
        host.loader.receive(b"\xc0\xdb\xc0\xc0\x00")
    finally:
        host.flash.close()
