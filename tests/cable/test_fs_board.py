"""`mpota fs` on a board, through the real esptool."""

from __future__ import annotations

import pytest
from mpota.filesystem.block_device import MemoryDevice
from mpota.filesystem.littlefs import FileSystem, build
from mpota.firmware import sample
from mpota.formats.partition_table import PartitionTable
from mpota.units import MiB
from mpota.virtual.cuts import power_cut
from mpota.virtual.flash import CutMode, VirtualFlash

from tests.support.cable_boards import APP_SIZE, CHIP, NEW_APP, OLD_APP, SINGLE, firmware

VFS = SINGLE["vfs"]
FILES = {"/lib": None, "/lib/a.py": b"a" * 9000, "/main.py": b"print(1)\n"}


@pytest.fixture
def board(plug_in):
    """``board(contents)``: a flash with a firmware, and a way to plug its board in."""

    def board(
        vfs: bytes = b"", table: PartitionTable = SINGLE, app: bytes = OLD_APP
    ) -> VirtualFlash:
        contents = {"vfs": vfs} if vfs else {}
        data = firmware(table, app, is_dump=True, contents=contents)
        return VirtualFlash.create(2 * MiB, {0: data})

    return board


@pytest.fixture
def on_board(plug_in, mpota):
    """``on_board(flash, *args)``: `mpota fs` with the board's port; PORT stands for it."""

    def on_board(flash: VirtualFlash, *args: object, exit_code: int = 0) -> str:
        cable = plug_in(flash, CHIP)
        flash.restart_count()
        texts = [cable.path if arg == "PORT" else arg for arg in args]
        output = mpota("fs", *texts, exit_code=exit_code)
        cable.unplug()
        return output

    return on_board


def files_on(flash: VirtualFlash, offset: int = VFS.offset) -> dict[str, bytes]:
    image = flash.snapshot()[offset:]
    file_system = FileSystem(MemoryDevice(len(image), image))
    assert file_system.check() == ()
    walk = file_system.volume.walk()
    return {path: file_system.read(path) for path, entry in walk if not entry.is_dir}


def test_files_go_to_a_board_and_come_back(board, on_board, tmp_path):
    source = tmp_path / "src"
    (source / "lib").mkdir(parents=True)
    (source / "main.py").write_bytes(FILES["/main.py"])
    (source / "lib" / "a.py").write_bytes(FILES["/lib/a.py"])
    flash = board()
    before = flash.snapshot()[: VFS.offset]
    assert "was blank" in on_board(flash, "put", "PORT", f"{source}/", "/")
    expected = {path: data for path, data in FILES.items() if data is not None}
    assert files_on(flash) == expected
    assert "/main.py" in on_board(flash, "ls", "PORT")
    assert flash.operations == []
    on_board(flash, "get", "PORT", "/lib", "/main.py", f"{tmp_path}/out/")
    assert (tmp_path / "out/lib/a.py").read_bytes() == FILES["/lib/a.py"]
    assert "nothing to write" in on_board(flash, "put", "PORT", f"{source}/", "/")
    assert flash.operations == []

    (source / "main.py").write_bytes(b"print(2)\n")
    on_board(flash, "put", "PORT", source / "main.py")
    written = {o.offset // 4096 for o in flash.operations}
    assert 1 <= len(written) <= 2, "an inline file is in its directory's two blocks"
    on_board(flash, "rm", "PORT", "-r", "/lib")
    assert files_on(flash) == {"/main.py": b"print(2)\n"}
    assert flash.snapshot()[: VFS.offset] == before
    assert "is for files" in on_board(flash, "put", "PORT", source, "-o", "x", exit_code=2)


def test_a_table_without_vfs_has_it_behind_the_last_entry(board, on_board, tmp_path):
    stock = PartitionTable(SINGLE.partitions[:3])
    flash = board(table=stock, app=NEW_APP)
    (tmp_path / "boot.py").write_text("# boot\n")
    on_board(flash, "put", "PORT", tmp_path / "boot.py")
    assert files_on(flash, stock.end) == {"/boot.py": b"# boot\n"}
    older = board(table=stock)
    refused = on_board(older, "put", "PORT", tmp_path / "boot.py", exit_code=1)
    assert "MicroPython 1.25 mounts a partition 'vfs'" in refused
    assert older.operations == []


@pytest.mark.parametrize(("version", "expected"), [("v1.20.0", "2.0"), ("v1.25.0", "2.1")])
def test_a_blank_partition_of_a_board_gets_the_littlefs_that_its_micropython_mounts(
    board, on_board, tmp_path, version, expected
):
    app = sample.build_app(CHIP, version=version, size=APP_SIZE, flash_size=2 * MiB)
    flash = board(app=app)
    (tmp_path / "main.py").write_bytes(b"print(1)\n")
    on_board(flash, "put", "PORT", tmp_path / "main.py")
    image = flash.snapshot()[VFS.offset :]
    assert FileSystem(MemoryDevice(len(image), image)).superblock.version_text == expected


def test_grow_on_a_board_writes_one_block(board, on_board):
    flash = board(build(FILES, 512 * 1024))
    assert "512 KiB -> 1.56 MiB" in on_board(flash, "grow", "PORT")
    assert len({o.offset // 4096 for o in flash.operations}) == 1
    assert files_on(flash)["/lib/a.py"] == FILES["/lib/a.py"]


@pytest.mark.parametrize("mode", [CutMode.BEFORE, CutMode.TORN])
def test_a_cable_pulled_during_put_costs_nothing_and_put_again_ends_it(
    board, on_board, tmp_path, mode
):
    flash = board(build(FILES, VFS.size))
    start = flash.snapshot()
    (tmp_path / "new.py").write_bytes(b"n" * 6000)
    (tmp_path / "main.py").write_bytes(b"print(2)\n")
    command = ("put", "PORT", tmp_path / "new.py", tmp_path / "main.py", "/")
    on_board(flash, *command)
    operations, end = len(flash.operations), files_on(flash)
    assert operations > 4
    for op in sorted({0, 1, operations // 2, operations - 1}):
        flash.restore(start)
        with power_cut(flash, op, mode):
            assert "again" in on_board(flash, *command, exit_code=1)
        found = files_on(flash)
        assert found["/lib/a.py"] == FILES["/lib/a.py"]
        assert found["/main.py"] in (FILES["/main.py"], b"print(2)\n")
        assert found.get("/new.py", b"") in (b"", b"n" * 6000)
        on_board(flash, *command)
        assert files_on(flash) == end
