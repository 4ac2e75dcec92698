"""Names of ports, and how boards behind them are reached."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import serial
from mpota.errors import MpotaError, UsageError
from mpota.storage import board
from mpota.storage.board import open_board
from mpota.storage.ports import find_port, is_port
from mpota.units import MiB
from mpota.virtual.flash import VirtualFlash

from tests.support.cable_boards import CHIP, OLD_APP, SINGLE, firmware


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("/dev/ttyUSB0", "/dev/ttyUSB0"),
        ("u0", "/dev/ttyUSB0"),
        ("u12", "/dev/ttyUSB12"),
        ("a1", "/dev/ttyACM1"),
        ("c3", "COM3"),
        ("COM3", "COM3"),
        ("com12", "com12"),
        ("rfc2217://host:2217", "rfc2217://host:2217"),
        ("rfc2217:/host:2217", "rfc2217://host:2217"),
    ],
)
def test_short_names_are_mpremotes(text, port):
    assert is_port(text)
    assert find_port(text) == port


@pytest.mark.parametrize("text", ["firmware.bin", "u", "u1234", "b0", "auto.bin", "COMX", ""])
def test_other_names_are_files(text):
    assert not is_port(text)
    with pytest.raises(UsageError, match="is not a serial port"):
        find_port(text)


def usb(device, vid):
    return SimpleNamespace(device=device, vid=vid, description="USB serial")


@pytest.mark.parametrize(
    ("ports", "found"),
    [
        ([("/dev/ttyS0", None), ("/dev/ttyUSB0", 0x10C4)], "/dev/ttyUSB0"),
        ([("/dev/ttyUSB0", 0x0403), ("/dev/ttyACM0", 0x303A)], "/dev/ttyACM0"),
    ],
)
def test_auto_is_the_only_board(monkeypatch, ports, found):
    listed = [usb(*port) for port in ports]
    monkeypatch.setattr("serial.tools.list_ports.comports", lambda: listed)
    assert find_port("auto") == found


def test_auto_does_not_guess(monkeypatch):
    monkeypatch.setattr("serial.tools.list_ports.comports", lambda: [usb("/dev/ttyS0", None)])
    with pytest.raises(MpotaError, match="no board found"):
        find_port("auto")
    two = [usb("/dev/ttyUSB0", 0x1A86), usb("/dev/ttyUSB1", 0x1A86)]
    monkeypatch.setattr("serial.tools.list_ports.comports", lambda: two)
    with pytest.raises(UsageError, match=r"auto finds 2 ports: /dev/ttyUSB0 .*, /dev/ttyUSB1"):
        find_port("auto")


def test_a_file_with_the_name_of_a_port_is_a_file(mpota, tmp_path):
    (tmp_path / "u0").write_bytes(firmware())
    assert "ESP32-C3" in mpota("show", "u0")


def test_a_port_that_is_in_use_is_said(plug_in, mpota):
    cable = plug_in(chip=CHIP)
    with open_board(cable.path):
        output = mpota("show", cable.path, exit_code=1)
    assert "another program has the port open" in output


def test_a_port_that_is_closed_soon_is_waited_for(plug_in, mpota, monkeypatch):
    with VirtualFlash.create(2 * MiB, {0: firmware(SINGLE, OLD_APP, is_dump=True)}) as flash:
        cable = plug_in(flash, CHIP)
        other = serial.Serial(cable.path, exclusive=True)
        clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: other.close())
        monkeypatch.setattr(board, "time", clock)
        assert "v1.25.0" in mpota("show", cable.path)
        assert not other.is_open


def test_a_symbolic_link_to_a_port_is_a_port(plug_in, mpota, tmp_path):
    with VirtualFlash.create(2 * MiB, {0: firmware(SINGLE, OLD_APP, is_dump=True)}) as flash:
        cable = plug_in(flash, CHIP)
        (tmp_path / "board").symlink_to(cable.path)
        assert "v1.25.0" in mpota("show", "board")


def test_esptools_ways_to_reset_can_be_chosen(plug_in, mpota, monkeypatch):
    cable = plug_in(chip=CHIP)
    monkeypatch.setenv("MPOTA_BEFORE", "default-reset")
    monkeypatch.setenv("MPOTA_AFTER", "watchdog-reset")
    mpota("show", cable.path, exit_code=1)
    monkeypatch.setenv("MPOTA_AFTER", "nonsense")
    mpota("show", cable.path, exit_code=1)
    cable.unplug()
    assert cable.events == ["halt", "boot"] * 2


def test_nobody_answers_on_a_port_without_a_board(mpota, silent_port):
    output = mpota("show", silent_port, exit_code=1)
    assert "no board answers" in output
    assert "hold BOOT while you press RESET" in output


@pytest.mark.parametrize("words", [("ble", "scan"), ("push", "ble://lamp", "app.bin")])
def test_a_computer_without_bluetooth_is_said(mpota, tmp_path, monkeypatch, words):
    bleak = pytest.importorskip("bleak")

    async def fail(*args, **options):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(bleak.BleakScanner, "discover", fail)
    monkeypatch.setattr(bleak.BleakScanner, "find_device_by_filter", fail)
    (tmp_path / "app.bin").write_bytes(OLD_APP)
    assert "this computer has no Bluetooth that is on" in mpota(*words, exit_code=1)
