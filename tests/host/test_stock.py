"""The stock firmware that `make test` and `make demo` fetch: what is not genuine is not taken."""

from __future__ import annotations

import runpy
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from mpota.commands import _demo as demo
from mpota.errors import MpotaError
from mpota.firmware import sample
from mpota.firmware.firmware import Firmware
from mpota.virtual import stock

from tests.support.real_files import ROOT, real_firmware

FETCHER = runpy.run_path(str(ROOT / ".ci" / "firmware"))


def wheel(path: Path, member: str, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, data)
    return path


def test_the_firmware_in_a_genuine_wheel_is_taken(tmp_path: Path) -> None:
    data = real_firmware("esp32 v1.25.0").read_bytes()
    assert FETCHER["read_member"](wheel(tmp_path / "x.whl", FETCHER["MEMBER"], data)) == data


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: wheel(path, "other", b""), "There is no item named"),
        (lambda path: wheel(path, FETCHER["MEMBER"], b"x"), "has not the SHA-256 1eb1a88473e3"),
        (lambda path: wheel(path, FETCHER["MEMBER"], bytes(9 << 20)), "has not the SHA-256"),
        (lambda path: path.write_bytes(b"no zip file") and path, "not a zip file"),
    ],
    ids=["another wheel", "another firmware", "a large one", "no wheel"],
)
def test_anything_else_is_refused(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    with pytest.raises(MpotaError, match=words):
        FETCHER["read_member"](make(tmp_path / "x.whl"))


def test_a_damaged_copy_in_the_cache_counts_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert stock.find() is None
    stock.path().parent.mkdir(parents=True)
    stock.path().write_bytes(b"half of it")
    assert stock.find() is None


def test_without_it_the_demo_makes_a_sample_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[bytes] = []

    class Told(Exception):
        pass

    def stop(firmware: Firmware, telling: object) -> None:
        told.append(firmware.flash.read(firmware.flash.base, firmware.flash.end))
        raise Told

    monkeypatch.setattr(stock, "find", lambda: None)
    monkeypatch.setattr(demo, "_prepare", stop)
    with pytest.raises(Told):
        demo.run(None, "firmware.bin", 0x8000)
    (data,) = told
    assert data.rstrip(b"\xff") == sample.build_firmware("esp32").rstrip(b"\xff")
    assert "firmware.bin, made by esptool, since no stock one is at hand" in capsys.readouterr().out
