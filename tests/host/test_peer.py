"""What mp-image-tool-esp32 does to files, mpota does with the same bytes, where they are sound."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from mpota.firmware import sample
from mpota.firmware.firmware import Firmware
from mpota.formats.partition_table import APP, DATA, Partition, PartitionTable

from tests.support.firmware_files import assert_refused, run, small_app

pytestmark = pytest.mark.skipif(
    find_spec("mp_image_tool_esp32") is None, reason="mp-image-tool-esp32 is not installed"
)

TABLE = PartitionTable(
    (
        Partition("nvs", DATA, 2, 0x9000, 0x6000),
        Partition("phy_init", DATA, 1, 0xF000, 0x1000),
        Partition("factory", APP, 0, 0x10000, 0x1F0000),
        Partition("vfs", DATA, 0x81, 0x200000, 0x200000),
    )
)


def peer(directory: Path, *options: str) -> None:

    subprocess.run(
        [sys.executable, "-m", "mp_image_tool_esp32.main", "-q", "in.bin", *options],
        cwd=directory,
        check=True,
        capture_output=True,
        timeout=60,
    )


@pytest.fixture(name="work")
def _work(tmp_path: Path) -> Path:
    contents = {"nvs": b"settings" * 50}
    (tmp_path / "in.bin").write_bytes(
        sample.build_firmware("esp32", table=TABLE, app=small_app(), contents=contents)
    )
    return tmp_path


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("-f 8M --resize vfs=0", "-f 8M"),
        ("-f 16M", "-f 16M --set vfs=2M"),
        ("--resize vfs=1M", "--set vfs=1M"),
        ("--resize factory=2M", "--set factory=2M"),
        ("--delete phy_init", "--delete phy_init"),
        ("--delete phy_init --resize nvs=0", "--delete phy_init --set nvs=0"),
        ("--rename factory=app,vfs=ffat", "--rename factory=app --rename vfs=ffat"),
        ("--resize vfs=1M --add vfs2=fat:0x300000:1M", "--set vfs=1M --add vfs2=fat:1M"),
        ("--resize vfs=1M --add d=fat:0x300000:50B", "--set vfs=1M --add d=fat:50B@0x300000"),
        ("--app-size 0x180000", "--app-size 0x180000"),
        ("--table nvs=7B,factory=2M,vfs=1M,vfs2=fat:0", "--layout table.csv"),
    ],
)
def test_the_same_edits_give_the_same_table(theirs: str, ours: str, work: Path) -> None:
    csv = work / "table.csv"
    csv.write_text(
        "nvs,data,nvs,,28K\nfactory,app,factory,,2M\nvfs,data,fat,,1M\nvfs2,data,fat,,-4M\n"
    )
    before = (work / "in.bin").read_bytes()
    peer(work, "-o", "theirs.bin", *theirs.split())
    options = ours.replace("table.csv", str(csv)).split()
    done = run("resize", work / "in.bin", "-o", work / "ours.bin", *options)
    assert done.code == 0, done.err
    theirs_after, ours_after = (Firmware.open(work / f"{n}.bin") for n in ("theirs", "ours"))
    assert ours_after.table == theirs_after.table
    assert ours_after.bootloader == theirs_after.bootloader
    start = 0x8000 - 0x1000
    assert (work / "ours.bin").read_bytes()[:start] == (work / "theirs.bin").read_bytes()[:start]
    assert ours_after.app(ours_after.app_partition).to_bytes() == small_app()
    assert (work / "in.bin").read_bytes() == before


def test_parts_are_read_and_written_alike(work: Path) -> None:
    peer(work, "--read", "nvs=nvs.bin,factory=factory.bin", "--trim")
    peer(work, "-x", "-o", "app.bin")
    for name, theirs, options in (
        ("factory", "factory.bin", []),
        ("nvs", "nvs.bin", ["--trim"]),
        (None, "app.bin", []),
    ):
        out = work / "ours.bin"
        arguments = [work / "in.bin", *([name] if name else []), "-o", out, "--force"]
        assert run("extract", *arguments, *options).code == 0
        assert out.read_bytes() == (work / theirs).read_bytes()[: out.stat().st_size]
        assert not (work / theirs).read_bytes()[out.stat().st_size :].strip(b"\xff")
    new = small_app(version="v1.27.0")
    (work / "new.bin").write_bytes(new)
    peer(work, "-o", "theirs.bin", "--write", "factory=new.bin", "--erase", "nvs")
    done = run(
        *("write", work / "in.bin", f"factory={work / 'new.bin'}", "--erase", "nvs"),
        *("-o", work / "written.bin"),
    )
    assert done.code == 0, done.err
    theirs_after, ours_after = (Firmware.open(work / f"{n}.bin") for n in ("theirs", "written"))
    for label in ("nvs", "factory", "phy_init"):
        partition = ours_after.table[label]
        assert ours_after.content(partition) == theirs_after.content(partition)


def test_a_partition_larger_than_the_flash_breaks_their_file_and_is_refused_here(
    work: Path,
) -> None:
    before = (work / "in.bin").read_bytes()
    with pytest.raises(subprocess.CalledProcessError):
        peer(work, "-o", "theirs.bin", "--resize", "factory=5M")
    assert_refused(run("resize", work / "in.bin", "--set", "factory=5M", "-o", work / "o.bin"), 1)
    assert not (work / "o.bin").exists()
    assert (work / "in.bin").read_bytes() == before
