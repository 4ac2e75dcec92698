"""Firmware to run the desk commands on, and a way to run them."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache

import pytest
from mpota.cli import main
from mpota.firmware import sample
from mpota.formats.partition_table import APP, DATA, FACTORY, OTA_0, Partition, PartitionTable

SMALL_APP = 100_000 // 16 * 16
NVS = Partition("nvs", DATA, 0x02, 0x9000, 0x6000)
PHY = Partition("phy_init", DATA, 0x01, 0xF000, 0x1000)
FACTORY_APP = Partition("factory", APP, FACTORY, 0x10000, 0x30000)
TABLE = PartitionTable((NVS, PHY, FACTORY_APP, Partition("vfs", DATA, 0x81, 0x40000, 0x3C0000)))
OTA_TABLE = PartitionTable(
    (
        Partition("nvs", DATA, 0x02, 0x9000, 0x4000),
        Partition("otadata", DATA, 0x00, 0xD000, 0x2000),
        PHY,
        Partition("ota_0", APP, OTA_0, 0x10000, 0x30000),
        Partition("ota_1", APP, OTA_0 + 1, 0x40000, 0x30000),
        Partition("vfs", DATA, 0x81, 0x70000, 0x390000),
    )
)


@cache
def small_app(chip: str = "esp32", version: str = "v1.26.1") -> bytes:
    return sample.build_app(chip, size=SMALL_APP, version=version)


@cache
def small_firmware(
    chip: str = "esp32", table: PartitionTable = TABLE, table_offset: int = 0x8000
) -> bytes:
    """A merged firmware of some 160 KB, for a 4 MB flash."""
    return sample.build_firmware(chip, table=table, app=small_app(chip), table_offset=table_offset)


@dataclass(frozen=True)
class Run:
    code: int
    out: str
    err: str


def run(*args: object) -> Run:
    """``mpota ARGS`` in this process: exit code and output. A traceback fails the test."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as exit_:
        main([str(arg) for arg in args])
    code = exit_.value.code
    return Run(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())


def assert_refused(result: Run, code: int | None = None) -> None:
    """One line on standard error that names the trouble, a hint line at most, and no more."""
    assert result.code == code if code is not None else result.code in (1, 2)
    lines = result.err.splitlines()
    assert lines, "nothing on standard error"
    assert lines[0].startswith("mpota: ")
    assert len(lines[0]) > len("mpota: ") + 10
    assert all(line.startswith("  hint: ") for line in lines[1:])
    assert len(lines) <= 2
    assert "Traceback" not in result.err + result.out
