"""`mpota fs` on files, and what the real MicroPython makes of the result."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import littlefs
import pytest
from mpota.errors import MpotaError
from mpota.filesystem.block_device import BlockDevice, MemoryDevice
from mpota.filesystem.littlefs import FileSystem, build, migrate
from mpota.firmware import sample
from mpota.firmware.firmware import Firmware
from mpota.firmware.layout import find_root
from mpota.formats.micropython import parse_release
from mpota.formats.partition_table import APP, DATA, Partition, PartitionTable
from mpota.units import KiB, MiB
from mpota.virtual import micropython

from tests.support import amount
from tests.support import littlefs_damage as damage
from tests.support.firmware_files import TABLE, assert_refused, run, small_app, small_firmware

VFS = TABLE["vfs"]
# Damaged file systems that are tried.
FORGERIES = int(os.environ.get("MPOTA_FORGERIES", "0")) or amount.some(400)

_DEVICE = """
import os, sys, vfs
class Device:
    def __init__(self, path):
        self.path = path
        self.data = bytearray(os.stat(path)[6])
        with open(path, "rb") as f:
            f.readinto(self.data)
    def readblocks(self, n, buf, off=0):
        start = n * 4096 + off
        buf[:] = memoryview(self.data)[start:start + len(buf)]
    def writeblocks(self, n, buf, off=0):
        start = n * 4096 + off
        self.data[start:start + len(buf)] = buf
    def ioctl(self, op, arg):
        if op == 4: return len(self.data) // 4096
        if op == 5: return 4096
        if op == 6: self.data[arg * 4096:arg * 4096 + 4096] = b"\\xff" * 4096
        return 0
    def save(self):
        with open(self.path, "wb") as f:
            f.write(self.data)
device = Device(sys.argv[1])
"""
_MOUNTED = """
try:
    fs = vfs.VfsLfs2(device)
except OSError as error:
    print("OSError", error.errno)
    sys.exit()
def tree(path):
    for name, kind, *_ in fs.ilistdir(path):
        if kind == 0x4000:
            yield path + name + "/", None
            yield from tree(path + name + "/")
        else:
            with fs.open(path + name, "rb") as f:
                yield path + name, f.read()
"""


@pytest.fixture
def on_micropython(tmp_path):
    """``on_micropython(image, script)``: what it prints, and the image afterwards.

    The script has ``fs``, the file system mounted by MicroPython's own littlefs, and ``tree``.
    """

    def on_micropython(image: bytes, script: str, mounted: bool = True) -> tuple[str, bytes]:
        path = tmp_path / "device.img"
        path.write_bytes(image)
        program = tmp_path / "program.py"
        program.write_text(_DEVICE + (_MOUNTED if mounted else "") + script + "\ndevice.save()\n")
        command = [*micropython.find().command, "-X", "heapsize=24m", program, path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout, path.read_bytes()

    return on_micropython


@pytest.fixture
def firmware(tmp_path):
    """``firmware(table=, vfs=)``: the path of a merged firmware, with a file system in it."""

    def firmware(table: PartitionTable = TABLE, vfs: bytes = b"", name="fw.bin") -> Path:
        data = small_firmware(table=table)
        if vfs:
            place = table["vfs"].offset - 0x1000
            data = data.ljust(place, b"\xff") + vfs
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return firmware


@pytest.fixture
def sources(tmp_path):
    """A directory with files around every limit of littlefs' storage."""
    directory = tmp_path / "src"
    (directory / "lib" / "app").mkdir(parents=True)
    choose = random.Random(7)
    for size in (0, 1, 128, 129, 512, 4096, 8185, 70_000):
        (directory / "lib" / f"{size}.bin").write_bytes(choose.randbytes(size))
    (directory / "main.py").write_text("print('hello')\n")
    (directory / "lib" / "app" / "grüße.txt").write_text("hi")
    os.utime(directory / "main.py", ns=(1_700_000_000_123_456_789,) * 2)
    return directory


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        f"/{path.relative_to(directory).as_posix()}": path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def files_in(image: bytes) -> dict[str, bytes]:
    file_system = FileSystem(MemoryDevice(len(image), image))
    assert file_system.check() == ()
    walk = file_system.volume.walk()
    return {path: file_system.read(path) for path, entry in walk if not entry.is_dir}


def vfs_of(path: Path) -> bytes:
    firmware = Firmware.open(path)
    return firmware.read(firmware.table["vfs"])


# --- MicroPython ---------------------------------------------------------------------------------


def test_micropython_mounts_what_put_wrote_and_mpota_reads_what_it_writes(
    firmware, sources, on_micropython
):
    path = firmware()
    assert run("fs", "put", path, f"{sources}/", "/").code == 0
    script = """
print(sorted((p, len(d)) for p, d in tree("/") if d is not None) == eval(sys.argv[2]))
print(fs.stat("/main.py")[8] % 86400)
with fs.open("/lib/128.bin", "ab") as f: f.write(b"more")
with fs.open("/log.txt", "w") as f: f.write("by MicroPython")
fs.remove("/lib/129.bin"); fs.rename("/main.py", "/lib/main.py")
"""
    expected = files_of(sources)
    sizes = sorted((name, len(data)) for name, data in expected.items())
    output, image = on_micropython(vfs_of(path), script.replace("eval(sys.argv[2])", ascii(sizes)))
    assert output.splitlines() == ["True", str(1_700_000_000 % 86400)]
    expected["/lib/128.bin"] += b"more"
    expected["/log.txt"] = b"by MicroPython"
    expected["/lib/main.py"] = expected.pop("/main.py")
    del expected["/lib/129.bin"]
    assert files_in(image) == expected


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_a_built_image_mounts_and_keeps_its_disk_version(
    tmp_path, sources, on_micropython, version
):
    image = tmp_path / "vfs.img"
    options = ("-s", "512K", "--disk-version", version, "--exclude", "*.txt")
    assert run("fs", "build", sources, "-o", image, *options).code == 0
    output, _ = on_micropython(image.read_bytes(), "print(len(list(tree('/'))))")
    assert output == "11\n"  # 9 files, 2 directories
    again = tmp_path / "again.img"
    run("fs", "build", sources, "-o", again, *options)
    assert again.read_bytes() == image.read_bytes()
    assert run("fs", "put", image, sources / "main.py", "/again.py").code == 0
    assert f'"disk_version": "{version}"' in run("fs", "df", image, "--json").out


def test_grow_serves_micropython_also_where_the_superblock_has_copies(on_micropython):
    image = damage.worn()
    room = bytes(image).ljust(2 * len(image), b"\xff")
    assert on_micropython(room, "print('mounted')")[0] == "OSError 22\n"
    # What lfs_fs_grow alone does: the reason for our own step after it.
    buffer = bytearray(room)
    fs = littlefs.LittleFS(
        littlefs.UserContext(buffer=buffer), block_size=4096, block_count=0, mount=False
    )
    fs.mount()
    fs.fs_grow(len(room) // 4096)
    assert on_micropython(bytes(buffer), "print('mounted')")[0] == "OSError 22\n"
    half_grown = FileSystem(MemoryDevice(len(room), bytes(buffer)))
    assert "another size" in half_grown.check()[0]
    half_grown.grow()
    assert half_grown.check() == ()

    region = MemoryDevice(len(room), room)
    assert FileSystem(region).grow() == len(image)
    count = "print(len([d for p, d in tree('/') if d is not None]))"
    files = files_in(image)
    assert on_micropython(region.to_bytes(), count)[0] == f"{len(files)}\n"
    assert files_in(region.to_bytes()) == files


def test_migrate_to_less_keeps_files_and_times_or_says_what_they_take(on_micropython, sources):
    files = {path: data for path, data in files_of(sources).items() if len(data) < 5000}
    region = MemoryDevice(1 * MiB)
    with FileSystem.format(region).writing() as writer:
        writer.mkdir("/lib")
        writer.mkdir("/lib/app")
        for path, data in files.items():
            writer.write(path, data, {1: (1_700_000_000 * 10**9).to_bytes(8, "little")})
    small = migrate(region.to_bytes(), 64 * KiB)
    assert len(small) == 64 * KiB
    assert files_in(small) == files
    output, _ = on_micropython(small, "print(fs.stat('/main.py')[8] % 86400)")
    assert output == f"{1_700_000_000 % 86400}\n"
    with pytest.raises(MpotaError, match=r"8 files take [0-9,]+ bytes .* holds 16,384"):
        migrate(region.to_bytes(), 16 * KiB)


# --- commands ------------------------------------------------------------------------------------


def test_a_session_on_a_merged_firmware(firmware, sources, tmp_path):
    path = firmware()
    before = path.read_bytes()
    assert "blank" in run("fs", "df", path).out
    assert run("fs", "check", path).out == "vfs: blank\n"
    assert_refused(run("fs", "ls", path), 1)
    assert path.read_bytes() == before

    done = run("fs", "put", path, sources / "main.py")
    assert "was blank: made a littlefs of 3.75 MiB" in done.out
    assert path.read_bytes()[: len(before)] == before
    assert run("check", path).code == 0
    run("fs", "put", path, sources, "/")
    assert "/src/lib/app/grüße.txt" in str(files_in(vfs_of(path)))
    listing = json.loads(run("fs", "ls", path, "--json").out)
    assert [(e["path"], e["type"], e["size"]) for e in listing] == [
        ("/main.py", "file", 15),
        ("/src", "directory", 0),
    ]
    assert listing[0]["mtime_ns"] == 1_700_000_000_123_456_789
    assert "2023-11-14 22:13" in run("fs", "ls", path, "main.py").out
    assert "    `-- main.py  15" in run("fs", "tree", path).out

    run("fs", "mv", path, "/src/lib/*.bin", "/src/lib/app")
    assert len(run("fs", "ls", path, "/src/lib/app/*.bin").out.splitlines()) == 8
    run("fs", "mkdir", path, "-p", "/a/b/c")
    run("fs", "mv", path, "/main.py", "/a/b/boot.py")
    out = tmp_path / "out"
    run("fs", "get", path, "/src/lib", "/a", f"{out}/")
    got = files_of(out)
    assert got.pop("/a/b/boot.py") == b"print('hello')\n"
    assert sorted(got.values()) == sorted(
        data for name, data in files_of(sources).items() if name.startswith("/lib")
    )
    assert (out / "a/b/boot.py").stat().st_mtime_ns == 1_700_000_000_123_456_789
    assert_refused(run("fs", "get", path, "/a", f"{out}/"), 2)
    assert run("fs", "get", path, "/a", f"{out}/", "--force").code == 0

    assert_refused(run("fs", "rm", path, "/src"), 2)
    run("fs", "rm", path, "-r", "/src", "/a/*")
    assert files_in(vfs_of(path)) == {}
    assert json.loads(run("fs", "df", path, "--json").out)[0]["directories"] == 1


def test_put_leaves_alone_what_is_there_already(firmware, sources):
    path = firmware()
    run("fs", "put", path, f"{sources}/", "/")
    before, inode = path.read_bytes(), path.stat().st_ino
    assert "nothing to write" in run("fs", "put", path, f"{sources}/", "/").out
    assert path.stat().st_ino == inode
    (sources / "main.py").write_text("print('changed')\n")
    assert run("fs", "put", path, f"{sources}/", "/").out == "/main.py (17 bytes)\n"
    after = path.read_bytes()
    blocks = range(0, len(after), 4096)
    assert sum(before[n : n + 4096] != after[n : n + 4096] for n in blocks) <= 3


def test_cat_writes_bytes_as_they_are(firmware):
    path = firmware(vfs=build({"/a.bin": bytes(range(256)), "/b.bin": b"\r\n"}, VFS.size))
    command = [sys.executable, "-m", "mpota", "fs", "cat", path, "/*.bin"]
    assert subprocess.run(command, capture_output=True).stdout == bytes(range(256)) + b"\r\n"


def test_an_output_file_leaves_the_input_as_it_is(firmware, sources, tmp_path):
    path, output = firmware(), tmp_path / "new.bin"
    before = path.read_bytes()
    assert run("fs", "put", path, sources / "main.py", "/", "-o", output).code == 0
    assert path.read_bytes() == before
    assert files_in(vfs_of(output)) == {"/main.py": b"print('hello')\n"}
    assert_refused(run("fs", "put", path, sources / "main.py", "/", "-o", output), 2)
    assert_refused(run("fs", "put", path, sources / "main.py", "/", "-o", path), 2)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("put", "FW", "SRC/big.bin"), 1, "no room for 300,000 bytes"),
        (("put", "FW", "SRC/missing"), 2, "cannot read"),
        (("put", "FW", "SRC/main.py", "SRC/lib", "/none"), 2, "no directory"),
        (("put", "FW", "SRC/main.py", "/main.py/x"), 1, "is a file"),
        (("put", "FW", "SRC/main.py", "/" + "n" * 256), 1, "255 bytes are the limit"),
        (("put", "FW", "SRC/main.py", "/../x"), 2, "none that littlefs allows"),
        (("put", "FW", "SRC/main.py", "data:/x"), 1, "no file system partition 'data'"),
        (("rm", "FW", "/none*"), 1, "no '/none*'"),
        (("rm", "FW", "-r", "/"), 2, "root"),
        (("mv", "FW", "/lib", "/lib/x"), 2, "into itself"),
        (("mv", "FW", "/main.py", "/lib/none/x"), 1, "no such file"),
        (("mkdir", "FW", "/lib"), 1, "exists already"),
        (("mkfs", "FW"), 2, "not blank"),
        (("cat", "FW", "/lib"), 1, "is a directory"),
        (("get", "FW", "/none"), 1, "no '/none'"),
        (("build", "SRC", "-s", "64K", "-o", "OUT"), 1, "no room"),
        (("build", "SRC", "-s", "100", "-o", "OUT"), 2, "not a multiple"),
        (("build", "SRC", "-s", "4K", "-o", "OUT"), 1, "littlefs needs 16384"),
        (("build", "SRC", "-o", "OUT"), 2, "--size or --for"),
    ],
    ids=lambda value: "-".join(value[:1] + value[2:])[:40] if isinstance(value, tuple) else "",
)
def test_what_cannot_be_is_said_and_changes_nothing(tmp_path, sources, arguments, code, words):
    (sources / "big.bin").write_bytes(bytes(300_000))
    path = tmp_path / "vfs.img"
    path.write_bytes(build({"/main.py": b"", "/lib": None}, 256 * KiB))
    before = path.read_bytes()
    places = {"FW": path, "SRC": sources, "OUT": tmp_path / "out.img"}
    shown = [arguments[0], *arguments[1:]]
    for name, place in places.items():
        shown = [text.replace(name, str(place)) for text in shown]
    result = run("fs", *shown)
    assert_refused(result, code)
    assert words in result.err
    assert path.read_bytes() == before
    assert not (tmp_path / "out.img").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_read_only_file_is_not_replaced(firmware, sources):
    if os.geteuid() == 0:
        pytest.skip("root may write everything")
    path = firmware()
    path.chmod(0o444)
    assert_refused(run("fs", "put", path, sources / "main.py"), 2)


def test_other_partitions_have_names_and_a_table_without_vfs_has_one_behind_it(
    firmware, sources, tmp_path
):
    data = Partition("storage", DATA, 0x83, 0x40000, 0x80000)
    stock = PartitionTable((*TABLE.partitions[:3], data))
    path = firmware(stock)
    run("fs", "put", path, sources / "main.py", "storage:/x.py")
    run("fs", "put", path, sources / "main.py", "/y.py")
    firmware_ = Firmware.open(path)
    assert files_in(firmware_.read(data)) == {"/x.py": b"print('hello')\n"}
    vfs = firmware_.flash.read(0xC0000, 4 * MiB - 0xC0000)
    assert files_in(vfs) == {"/y.py": b"print('hello')\n"}
    names = [row["name"] for row in json.loads(run("fs", "df", path, "--json").out)]
    assert names == ["storage", "vfs"]
    assert "cannot move between" in run("fs", "mv", path, "/y.py", "storage:/z.py").err
    image = tmp_path / "vfs.img"
    assert run("fs", "build", sources, "-o", image, "--for", f"{path}:storage").code == 0
    assert image.stat().st_size == 0x80000


def versioned(tmp_path: Path, version: str, table: PartitionTable = TABLE) -> Path:
    """A firmware with MicroPython of this version."""
    path = tmp_path / f"{version}.bin"
    path.write_bytes(
        sample.build_firmware("esp32", table=table, app=small_app("esp32", version=version))
    )
    return path


def disk_version_of(path: Path) -> str:
    return json.loads(run("fs", "df", path, "--json").out)[0]["disk_version"]


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("v1.18", "2.0"),
        ("v1.21.0", "2.0"),
        ("v1.22.0", "2.1"),
        ("v1.28.0", "2.1"),
        ("v2.0.0-preview.1", "2.1"),
    ],
)
def test_a_new_littlefs_has_the_disk_version_that_the_firmware_mounts(
    tmp_path, sources, version, expected
):
    """lib/littlefs/lfs2.h: what v1.21 has does not mount 2.1."""
    path, image = versioned(tmp_path, version), tmp_path / "vfs.img"
    assert run("fs", "put", path, sources / "main.py").code == 0
    assert disk_version_of(path) == expected
    assert run("fs", "mkfs", path, "--force").code == 0
    assert disk_version_of(path) == expected
    assert run("fs", "build", sources, "--for", path, "-o", image).code == 0
    assert disk_version_of(image) == expected
    other = {"2.0": "2.1", "2.1": "2.0"}[expected]
    assert run("fs", "mkfs", path, "--force", "--disk-version", other).code == 0
    assert disk_version_of(path) == other


def test_where_nothing_tells_the_firmware_the_disk_version_is_the_one_that_all_mount(
    tmp_path, sources
):
    image = tmp_path / "vfs.img"
    assert run("fs", "build", sources, "-s", "512K", "-o", image).code == 0
    assert disk_version_of(image) == "2.0"


@pytest.mark.parametrize("version", ["v1.21.0", "v1.26.1"])
@pytest.mark.parametrize("own", [0x20000, 0x20001])
def test_an_existing_file_system_keeps_its_disk_version(tmp_path, sources, version, own):
    path, larger = versioned(tmp_path, version), tmp_path / "larger.bin"
    path.write_bytes(
        path.read_bytes().ljust(VFS.offset - 0x1000, b"\xff") + build({"/a": b"1"}, VFS.size, own)
    )
    text = {0x20000: "2.0", 0x20001: "2.1"}[own]
    assert run("fs", "put", path, f"{sources}/", "/").code == 0
    assert disk_version_of(path) == text
    for size in ("8M", "2M"):
        result = run("resize", path, "-f", size, "--keep-files", "-o", larger, "--force")
        assert result.code == 0, result.err
        assert disk_version_of(larger) == text
    checked = run("fs", "check", path)
    is_mounted = (version, own) != ("v1.21.0", 0x20001)
    assert checked.code == (0 if is_mounted else 1)
    assert ("MicroPython 1.21 mounts 2.0 at most" in checked.out) != is_mounted


STORAGE = Partition("storage", DATA, 0x81, 0x40000, 0x80000)


@pytest.mark.parametrize(
    ("version", "labels"),
    [
        ("v1.18", ["storage"]),
        ("v1.25.0", ["storage"]),
        ("v1.26.0", ["storage", "vfs"]),
        ("v1.28.0", ["storage", "vfs"]),
    ],
)
def test_a_table_without_vfs_has_one_behind_it_where_micropython_makes_it(
    tmp_path, sources, version, labels
):
    """main.c: boardctrl_startup, since v1.26; ``storage`` is never mounted at boot."""
    path = versioned(tmp_path, version, PartitionTable((*TABLE.partitions[:3], STORAGE)))
    rows = json.loads(run("fs", "df", path, "--json").out)
    assert [row["name"] for row in rows] == labels
    larger = tmp_path / "larger.bin"
    result = run("resize", path, "-f", "8M", "-o", larger)
    assert result.code == 0, result.err
    storage = Firmware.open(larger).table["storage"]
    # What MicroPython takes, another file system does not grow into.
    assert storage.end == (0xC0000 if "vfs" in labels else 8 * MiB)
    arranged = tmp_path / "arranged.bin"
    assert run("resize", path, "--layout", "ota", "-o", arranged).code == 0
    table = Firmware.open(arranged).table
    assert (table["storage"].size, table["vfs"].end) == (STORAGE.size, 4 * MiB)


def test_without_any_file_system_what_the_firmware_mounts_is_said(tmp_path, sources):
    path = versioned(tmp_path, "v1.25.0", PartitionTable(TABLE.partitions[:3]))
    for arguments in (("ls", path), ("df", path), ("put", path, sources / "main.py")):
        result = run("fs", *arguments)
        assert_refused(result, 1)
        assert "MicroPython 1.25 mounts a partition 'vfs'" in result.err
    added = tmp_path / "added.bin"
    assert run("resize", path, "--add", "vfs=fat:0", "-o", added).code == 0
    assert run("fs", "put", added, sources / "main.py").code == 0


@pytest.mark.parametrize(
    ("version", "root"), [("v1.18", None), ("v1.19", "ffat"), ("v1.28.0", "ffat")]
)
def test_the_root_is_vfs_before_ffat_and_no_other(version, root):
    ffat = Partition("ffat", DATA, 0x81, 0xC0000, 0x80000)
    release = parse_release(version)
    found = find_root((STORAGE, ffat), release)
    assert (found.label if found else None) == root
    assert find_root((STORAGE, ffat, VFS), release) == VFS
    app = Partition("vfs", APP, 0x10, 0x10000, 0x10000)
    assert find_root((app, STORAGE), release) is None


def test_a_flash_that_leaves_no_room_for_files_is_said_with_what_makes_room(tmp_path):
    table = PartitionTable((*TABLE.partitions[:2], replace(TABLE["factory"], size=0x1F0000)))
    path, small = versioned(tmp_path, "v1.26.1", table), tmp_path / "small.bin"
    told = run("resize", path, "-f", "2M", "-o", small)
    assert told.code == 0, told.err
    assert "no room for files: 0 bytes are left; --app-size 0x1b0000 makes room" in told.out
    mended = run("resize", path, "-f", "2M", "--app-size", "0x1b0000", "-o", small, "--force")
    assert "no room" not in mended.out
    assert json.loads(run("fs", "df", small, "--json").out)[0]["partition_size"] == 256 * KiB
    # One whose app needs all of it has no size to be told.
    full = sample.build_app("esp32", size=0x1F0000)
    path.write_bytes(sample.build_firmware("esp32", table=table, app=full))
    told = run("resize", path, "-f", "2M", "-o", small, "--force")
    assert "no room for files" in told.out
    assert "makes room" not in told.out


@pytest.mark.parametrize("length", [244, 245, 250, 255])
def test_names_as_long_as_names_can_be_are_copied(tmp_path, length):
    name = "n" * (length - 3) + ".py"
    source, image, out = tmp_path / "src", tmp_path / "vfs.img", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    (source / name).write_bytes(b"1")
    image.write_bytes(build({}, 64 * KiB))
    assert run("fs", "put", image, source / name).code == 0
    result = run("fs", "get", image, "/*", f"{out}/")
    assert result.code == 0, result.err
    assert (out / name).read_bytes() == b"1"
    result = run("extract", versioned(tmp_path, "v1.26.1"), "-o", out / f"{'m' * length}")
    assert result.code == 0, result.err
    assert sorted(path.name for path in out.iterdir()) == ["m" * length, name]


@pytest.mark.parametrize(
    ("options", "offset", "flash_size"),
    [
        (("-f", "8M"), 0x40000, 8 * MiB),
        (("--add", "romfs=0x8f:0x20000"), 0x60000, 4 * MiB),
        (("--layout", "ota"), None, 4 * MiB),
    ],
    ids=["more flash", "moved", "listed"],
)
def test_resize_keeps_files_behind_a_table_without_vfs(
    tmp_path, on_micropython, options, offset, flash_size
):
    stock = PartitionTable(TABLE.partitions[:3])
    files = {"/main.py": b"print(1)\n", "/big.bin": bytes(range(256)) * 100}
    front = (b"\xff" * 0x1000 + small_firmware(table=stock)).ljust(stock.end, b"\xff")
    dump, out = tmp_path / "dump.bin", tmp_path / "out.bin"
    dump.write_bytes(front + build(files, 4 * MiB - stock.end))
    result = run("resize", dump, *options, "--keep-files", "-o", out)
    assert result.code == 0, result.err
    data = out.read_bytes()
    assert len(data) == flash_size
    place = Firmware.open(out).table["vfs"].offset if offset is None else offset
    assert files_in(data[place:]) == files
    assert on_micropython(data[place:], "print(len(list(tree('/'))))")[0] == "2\n"
    dropped = tmp_path / "dropped.bin"
    assert run("resize", dump, *options, "-o", dropped).code == 0
    blank = dropped.read_bytes()[place:]
    assert blank.count(0xFF) == len(blank), "a rest of it would stop MicroPython from making one"


# --- what is no intact littlefs ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "words", "is_offered"),
    [
        ("vfs.VfsFat.mkfs(device)", "holds a FAT", False),
        ("vfs.VfsLfs1.mkfs(device)", "holds a littlefs 1", False),
        ("device.data[:4] = b'junk'", "something else (it starts with 6a 75 6e 6b", True),
    ],
    ids=["fat", "littlefs1", "junk"],
)
def test_other_contents_are_named_and_only_overwritten_by_force(
    firmware, sources, on_micropython, script, words, is_offered
):
    guarded = f"try:\n    {script}\nexcept AttributeError:\n    print('missing')"
    output, image = on_micropython(b"\xff" * 512 * KiB, guarded, mounted=False)
    if "missing" in output:
        pytest.skip("this MicroPython was built without that file system")
    path = firmware(vfs=image.ljust(VFS.size, b"\xff"))
    before = path.read_bytes()
    for arguments in (("ls",), ("put", sources / "main.py"), ("grow",), ("get", "/x")):
        result = run("fs", arguments[0], path, *arguments[1:])
        assert_refused(result, 1)
        assert words in result.err
        assert ("--force" in result.err) == is_offered
    refused = run("fs", "mkfs", path)
    assert_refused(refused, 2)
    assert ("--force" in refused.err) == is_offered
    assert path.read_bytes() == before
    assert run("fs", "mkfs", path, "--force").code == 0
    assert files_in(vfs_of(path)) == {}


def fat(size: int, label: bytes = b"FAT16   ", offset: int = 54) -> bytes:
    """As much of a FAT as tells what it is."""
    sector = bytearray(512)
    sector[offset : offset + 8] = label
    sector[510:] = b"\x55\xaa"
    return bytes(sector).ljust(size, b"\0")


@pytest.mark.parametrize(
    "image",
    [
        fat(VFS.size),
        fat(VFS.size, b"FAT32   ", 82),
        fat(VFS.size, b"EXFAT   ", 3),
        (b"\0" * 4096 + fat(VFS.size))[: VFS.size],
    ],
    ids=["fat16", "fat32", "exfat", "levelled"],
)
def test_fat_is_called_fat_and_nobody_is_told_to_overwrite_it(firmware, sources, image, tmp_path):
    path = firmware(vfs=image)
    before = path.read_bytes()
    for arguments, code in (
        (("ls", path), 1),
        (("get", path, "/main.py"), 1),
        (("put", path, sources / "main.py"), 1),
        (("grow", path), 1),
        (("mkfs", path), 2),
    ):
        result = run("fs", *arguments)
        assert_refused(result, code)
        assert "partition 'vfs' holds a FAT" in result.err
        assert "force" not in result.err
        assert "damaged" not in result.err
    larger = tmp_path / "larger.bin"
    kept = run("resize", path, "-f", "8M", "--keep-files", "-o", larger)
    assert_refused(kept, 1)
    assert "holds a FAT" in kept.err
    assert "drop" not in kept.err
    assert not larger.exists()
    assert run("fs", "check", path).out.splitlines()[0] == "vfs: FAT"
    assert run("fs", "check", path).code == 0  # MicroPython mounts it
    row = json.loads(run("fs", "df", path, "--json").out)[0]
    assert row["state"] == "FAT"
    assert path.read_bytes() == before


def test_a_partition_that_micropython_mounts_as_fat_gets_no_littlefs(firmware, sources, tmp_path):
    """flashbdev.py: ``ffat`` has blocks of 512 bytes."""
    table = PartitionTable((*TABLE.partitions[:3], Partition("ffat", DATA, 0x81, 0x40000, 0x80000)))
    path = firmware(table)
    before = path.read_bytes()
    for arguments in (
        ("put", path, sources / "main.py"),
        ("mkfs", path),
        ("mkfs", path, "--force"),
        ("build", sources, "--for", path, "-o", tmp_path / "ffat.img"),
    ):
        result = run("fs", *arguments)
        assert_refused(result, 1)
        assert "partition 'ffat' is for FAT" in result.err
    assert path.read_bytes() == before
    assert not (tmp_path / "ffat.img").exists()


@pytest.mark.parametrize("block_size", [128, 512, 1024, 8192, 65536])
def test_other_block_sizes_are_not_micropythons_and_not_damaged(firmware, block_size):
    made = littlefs.LittleFS(
        block_size=block_size,
        block_count=1 * MiB // block_size,
        read_size=32,
        prog_size=32,
        cache_size=128,
    )
    with made.open("a.txt", "w") as file:
        file.write("a")
    storage = Partition("storage", DATA, 0x83, 0x40000, 0x100000)
    table = PartitionTable((*TABLE.partitions[:3], storage))
    path = firmware(table)
    data = path.read_bytes().ljust(storage.offset - 0x1000, b"\xff")
    path.write_bytes(data + bytes(made.context.buffer))
    words = f"blocks of {block_size:,} bytes, which is not MicroPython's"
    for arguments in (("ls", path, "storage:/"), ("mkfs", path, "storage")):
        result = run("fs", *arguments)
        assert_refused(result)
        assert words in result.err
        assert "damaged" not in result.err
    checked = run("fs", "check", path, "storage")
    assert (checked.code, words in checked.out, "damaged" in checked.out) == (0, True, False)
    # Where MicroPython mounts a file system, it does not mount this one.
    path = firmware(vfs=bytes(made.context.buffer), name="vfs.bin")
    checked = run("fs", "check", path)
    assert (checked.code, words in checked.out, "damaged" in checked.out) == (1, True, False)


def test_a_file_system_of_another_size_than_its_partition_is_said_and_grown(firmware, sources):
    path = firmware(vfs=build({"/a": b"1"}, 1 * MiB))
    assert (
        "1,048,576 bytes (1 MiB), partition 'vfs' 3,932,160 (3.75 MiB)" in run("fs", "ls", path).err
    )
    result = run("fs", "put", path, sources / "main.py")
    assert_refused(result, 1)
    assert "mpota fs grow" in result.err
    assert run("fs", "check", path).code == 1
    assert run("fs", "grow", path).out == "partition 'vfs': 1 MiB -> 3.75 MiB\n"
    assert "fits already" in run("fs", "grow", path).out
    assert run("fs", "put", path, sources / "main.py").code == 0
    assert run("fs", "check", path).out == "vfs: intact\n"


def test_from_a_damaged_file_system_the_rest_can_be_saved(firmware, sources, tmp_path):
    files = {"/lib": None, "/lib/good.py": b"good", "/big": bytes(9000), "/ok": b"k" * 5000}
    image = bytearray(build(files, 256 * KiB))
    entry = FileSystem(MemoryDevice(len(image), bytes(image))).entry("/big")
    image[entry.head * 4096 : entry.head * 4096 + 4] = b"\xf0\xff\xff\x7f"
    path = tmp_path / "vfs.img"
    path.write_bytes(image)
    report = json.loads(run("fs", "check", path, "--json").out)
    assert "/big: block 0x7ffffff0 is beyond the end" in report["partitions"][0]["problems"][0]
    assert_refused(run("fs", "put", path, sources / "main.py"), 1)
    out = tmp_path / "out"
    result = run("fs", "get", path, "/", f"{out}/files")
    assert result.code == 1
    assert "lost: /big: block 0x7ffffff0" in result.err
    assert files_of(out) == {"/files/lib/good.py": b"good", "/files/ok": b"k" * 5000}
    assert path.read_bytes() == bytes(image)


def test_names_from_a_hostile_image_stay_inside_the_destination(tmp_path):
    image = bytearray(build({"/ab": b"evil", "/ok": b""}, 64 * KiB))
    for start in (0, 4096):
        block = bytes(image[start : start + 4096])
        tags = [
            (kind, number, size, b".." if content == b"ab" else content)
            for kind, number, size, content in damage.log_of(block)
        ]
        revision = int.from_bytes(block[:4], "little")
        image[start : start + 4096] = damage.block_of(revision, tags)
    path = tmp_path / "vfs.img"
    path.write_bytes(image)
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    result = run("fs", "get", path, "/", f"{out}/files")
    assert result.code == 1
    assert "/..: the name" in result.err
    assert files_of(tmp_path / "deep") == {"/out/files/ok": b""}


def test_no_damage_crashes_or_hangs_the_c_library():
    command = [sys.executable, damage.__file__, "0", str(FORGERIES)]
    done = subprocess.run(command, capture_output=True, text=True)
    last = done.stdout.splitlines()[-2:]
    assert done.returncode == 0, f"{last}\n{done.stderr}"
    outcomes = eval(done.stdout.splitlines()[-1])
    assert set(outcomes) >= {"refused", "damaged", "written"}


# --- cuts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_what_a_power_cut_on_a_board_left_is_no_damage(seed):
    for state in damage.cut_states(seed):
        device = littlefs.UserContext(buffer=bytearray(state))
        fs = damage.mounted(device)
        fs.fs_mkconsistent()  # before it, the C library lists too little where a rename was cut
        expected = {}
        for root, _, names in fs.walk("/"):
            for name in names:
                path = f"{root.rstrip('/')}/{name}"
                with fs.open(path, "rb") as file:
                    expected[path] = file.read()
        assert files_in(state) == expected
        region = MemoryDevice(len(state), state)
        with FileSystem(region).writing() as writer:
            writer.write("/after", b"the cut")
        assert files_in(region.to_bytes()) == {**expected, "/after": b"the cut"}


class PulledError(MpotaError):
    pass


class CutFlash:
    """Flash that loses power in its operation number ``cut``, half-way through."""

    chip_revision = None
    block_revision = None

    def __init__(self, data: bytes, cut: int) -> None:
        self.data = bytearray(data)
        self.size = len(data)
        self.left = cut

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.data[offset : offset + size])

    def erase(self, offset: int, size: int) -> None:
        self._set(offset, b"\xff" * size)

    def write(self, offset: int, data: bytes) -> None:
        self._set(offset, data)

    def _set(self, offset: int, data: bytes) -> None:
        self.left -= 1
        if self.left < 0:
            data = data[: len(data) // 2]
        self.data[offset : offset + len(data)] = data
        if self.left < 0:
            raise PulledError("the cable was pulled")


def test_a_cut_in_any_write_leaves_every_file_as_it_was_or_as_it_will_be():
    files = {"/lib": None, "/lib/old.py": b"old" * 3000, "/gone.py": b"gone", "/moved": b"m" * 9000}
    image = build(files, 256 * KiB)
    old = {path: data for path, data in files.items() if data is not None}
    new = {"/lib/old.py": b"new" * 2000, "/lib/new.py": b"x" * 10_000, "/lib/moved": old["/moved"]}
    cut = 0
    while True:
        flash = CutFlash(image, cut)
        try:
            with FileSystem(BlockDevice(flash, 0, flash.size)).writing() as writer:
                writer.write("/lib/old.py", new["/lib/old.py"])
                writer.write("/lib/new.py", new["/lib/new.py"])
                writer.rename("/moved", "/lib/moved")
                writer.remove("/gone.py")
        except PulledError:
            pass
        else:
            break
        found = files_in(bytes(flash.data))
        assert ("/moved" in found) + ("/lib/moved" in found) == 1
        assert "/lib/old.py" in found
        for path, data in found.items():
            # littlefs makes a new file first, empty, and then its content.
            assert data in (old.get(path), new.get(path), *([b""] if path not in old else [])), path
        cut += 1
    assert cut > 12
    assert files_in(bytes(flash.data)) == new
