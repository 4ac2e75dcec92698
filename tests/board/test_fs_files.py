"""Files that MicroPython wrote on a board, after mpota has changed the board's flash."""

from __future__ import annotations

from contextlib import suppress

import pytest
from mpota.cli import main
from mpota.formats.partition_table import Partition
from mpota.virtual.board import Board
from mpota.virtual.flash import VirtualFlash

from tests.support import boards

FACTORY = Partition("factory", 0, 0x00, 0x10000, 0x60000)
SINGLE = (
    Partition("nvs", 1, 2, 0x9000, 0x6000),
    Partition("phy_init", 1, 1, 0xF000, 0x1000),
    FACTORY,
)
VFS = Partition("vfs", 1, 0x81, 0x70000, 0x390000)
WRITE = """
import os
os.mkdir("/lib")
for n in (1, 100, 200, 5000, 25000, 26000):
    with open("/lib/%d.bin" % n, "wb") as f:
        f.write((b"%7d," % n * (n // 8 + 1))[:n])
print("done")
"""
READ = """
import os
for name, _, _, size in sorted(os.ilistdir("/lib")):
    n = int(name.split(".")[0])
    with open("/lib/" + name, "rb") as f:
        print(name, f.read() == (b"%7d," % n * (n // 8 + 1))[:n])
with open("/lib/more.bin", "wb") as f: f.write(bytes(9000))
print(os.statvfs("/")[2] * 4096)
"""
INTACT = [f"{n}.bin True" for n in (1, 100, 200, 25000, 26000, 5000)]


@pytest.fixture
def dump(tmp_path):
    """The dump of a single-app board on which MicroPython has written files."""
    flash = boards.flash({0x10000: boards.app()}, (*SINGLE, VFS), 4 << 20)
    board = Board(flash)
    assert "Performing initial setup" in board.run().output
    assert "done" in board.run(WRITE).output
    path = tmp_path / "dump.bin"
    path.write_bytes(flash.snapshot())
    flash.close()
    return path


@pytest.mark.parametrize(
    ("options", "size", "labels"),
    [
        (("--layout", "ota"), 0xF0000, ("ota_0",)),
        (("-f", "8M"), 0x790000, ("factory",)),
        (("--set", "factory=0x300000"), 0xF0000, ("factory",)),
    ],
    ids=["to ota", "grown", "moved and shrunk"],
)
def test_a_resized_dump_has_its_files_on_the_board(dump, tmp_path, options, size, labels):
    out = tmp_path / "out.bin"
    before = dump.read_bytes()
    with suppress(SystemExit):
        main(["resize", str(dump), *options, "--keep-files", "-o", str(out)])
    assert dump.read_bytes() == before
    data = out.read_bytes()
    flash = VirtualFlash.create(len(data), {0: data})
    run = Board(flash).run(READ)
    assert run.labels == labels
    *files, found = run.output.splitlines()
    assert files == INTACT, run.console
    assert abs(int(found) - size) <= 0x20000


def test_files_that_do_not_fit_are_counted_and_nothing_is_written(dump, tmp_path, capsys):
    out = tmp_path / "out.bin"
    edit = ["--set", "factory=0x3e0000", "--keep-files"]
    arguments = ["resize", str(dump), *edit, "-o", str(out)]
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 1
    error = capsys.readouterr().err
    assert "files cannot be kept" in error
    assert "--drop-files" in error
    assert not out.exists()


def test_files_that_mpota_puts_run_on_the_board(dump, tmp_path):
    (tmp_path / "main.py").write_text("import helper\nprint(helper.WORD)\n")
    (tmp_path / "helper.py").write_text("WORD = 'from mpota'\n")
    with suppress(SystemExit):
        main(["fs", "put", str(dump), *map(str, tmp_path.glob("*.py")), "/"])
    data = dump.read_bytes()
    run = Board(VirtualFlash.create(len(data), {0: data})).run()
    assert "from mpota" in run.output
