"""MicroPython's side of the virtual board: esp32, machine, esp, and the board's file system.

What is expected here is what ports/esp32 of MicroPython and ESP-IDF do; the functions are named.
"""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from mpota.formats.otadata import OtaRecord, OtaState, parse_otadata
from mpota.formats.partition_table import Partition
from mpota.virtual.board import Board, End, ResetCause
from mpota.virtual.call_faults import CallFault
from mpota.virtual.flash import FlashError, Operation, VirtualFlash
from mpota.virtual.request import Request

from tests.support import boards
from tests.support.boards import OTA_0, OTA_1, OTADATA, VFS


@pytest.fixture(scope="module")
def base():
    """The content of a flash with two apps and a file system."""
    apps = {OTA_0.offset: boards.app("v1.26.1"), OTA_1.offset: boards.app("v1.27.0")}
    board = boards.formatted(apps=apps)
    with board.flash:
        return board.flash.snapshot()


@pytest.fixture
def board(base):
    with VirtualFlash.create(len(base), {0: base}) as flash:
        yield Board(flash)


def output(board, script, **options):
    """What ``script`` prints; it must end well."""
    run = board.run(script, **options)
    assert (run.end, run.traceback) == (End.IDLE, ""), run.console
    return run.output


def records(board):
    return parse_otadata(board.flash.read(OTADATA.offset, OTADATA.size))


def set_records(board, *new):
    for number, (seq, state) in enumerate(new):
        offset = OTADATA.offset + number * 0x1000
        board.flash.erase(offset, 0x1000)
        if seq is not None:
            board.flash.write(offset, OtaRecord.selecting(seq, state).to_bytes())
    board.flash.restart_count()


# --- esp32.Partition: finding ------------------------------------------------------------------


def test_find_filters_by_type_subtype_and_label(board):
    assert output(
        board,
        """
from esp32 import Partition
def labels(*args, **kw): return [p.info()[4] for p in Partition.find(*args, **kw)]
print(labels())
print(labels(Partition.TYPE_DATA))
print(labels(type=Partition.TYPE_DATA, label="vfs"))
print(labels(Partition.TYPE_APP, 0x11), labels(0, 0x12), labels(label="vfs"))
print(labels(0xff), labels(0xff, 0x10), labels(0xff, label="otadata"))
""",
    ).splitlines() == [
        "['ota_0', 'ota_1']",
        "['nvs', 'otadata', 'vfs']",
        "['vfs']",
        "['ota_1'] [] []",
        "['nvs', 'otadata', 'ota_0', 'ota_1', 'vfs'] [] ['otadata']",
    ]


def test_info_and_repr_are_those_of_the_c_module(board):
    assert output(
        board,
        "from esp32 import Partition\np = Partition('ota_1')\nprint(p.info())\nprint(p)",
    ).splitlines() == [
        "(0, 17, 327680, 262144, 'ota_1', False)",
        "<Partition type=0, subtype=17, address=327680, size=262144, label=ota_1, encrypted=0>",
    ]


def test_a_partition_is_made_from_a_label_or_a_number(board):
    assert output(
        board,
        """
from esp32 import Partition
print(Partition("nvs").info()[4], Partition(Partition.BOOT).info()[4], Partition(1).info()[4])
for id in ("nothing", 2, None):
    try: Partition(id)
    except Exception as e: print(type(e).__name__)
""",
    ).splitlines() == ["nvs ota_0 ota_0", "OSError", "ValueError", "TypeError"]


def test_get_next_update_goes_round_the_slots(board):
    script = """
from esp32 import Partition
p = Partition(Partition.RUNNING)
print(p.info()[4], p.get_next_update().info()[4], p.get_next_update().get_next_update().info()[4])
print(Partition("nvs").get_next_update().info()[4])
"""
    assert output(board, script) == "ota_0 ota_1 ota_0\nota_0\n"


# --- esp32.Partition: blocks -------------------------------------------------------------------


def test_writeblocks_erases_and_with_an_offset_does_not(board):
    assert "ok" in output(
        board,
        """
from esp32 import Partition
p = Partition("ota_1")
p.writeblocks(1, b"\\x5a" * 4096)
p.ioctl(6, 1)
p.writeblocks(1, b"abc", 100)
buf = bytearray(8)
p.readblocks(1, buf, 98)
print(buf)
print("ok")
""",
    )
    at = OTA_1.offset + 0x1000
    assert board.flash.operations == [
        Operation("erase", at, 0x1000),
        Operation("write", at, 0x1000),
        Operation("erase", at, 0x1000),
        Operation("write", at + 100, 3),
    ]
    assert board.flash.read(at + 98, 8) == b"\xff\xffabc\xff\xff\xff"


def test_a_64_kib_buffer_on_a_64_kib_boundary_is_one_block_erase(board):
    output(board, "from esp32 import Partition\nPartition('ota_1').writeblocks(16, bytes(65536))")
    at = OTA_1.offset + 0x10000
    assert board.flash.operations == [
        Operation("erase", at, 0x10000),
        Operation("write", at, 0x10000),
    ]


def test_blocks_smaller_than_a_sector_leave_the_rest_of_it_alone(board):
    before = bytes(range(256)) * 32
    board.flash.erase(OTA_1.offset, 0x2000)
    board.flash.write(OTA_1.offset, before)
    script = """
from esp32 import Partition
p = Partition("ota_1", 512)
print(p.ioctl(4, 0), p.ioctl(5, 0), p.ioctl(6, 0))
p.writeblocks(3, b"\\x11" * 512)
p.writeblocks(7, b"\\x22" * 1024)
"""
    assert output(board, script) == "512 512 -22\n"
    wanted = before[:1536] + b"\x11" * 512 + before[2048:3584] + b"\x22" * 1024 + before[4608:]
    assert board.flash.read(OTA_1.offset, 0x2000) == wanted


def test_ioctl_tells_of_blocks_and_erases(board):
    script = """
from esp32 import Partition
p = Partition("ota_1")
print([p.ioctl(c, 0) for c in (1, 2, 3, 4, 5)], p.ioctl(99, 0))
"""
    assert output(board, script) == "[0, 0, 0, 64, 4096] None\n"


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("p.readblocks(63, bytearray(4097))", "-260, 'ESP_ERR_INVALID_SIZE'"),
        ("p.readblocks(65, bytearray(1))", "-258, 'ESP_ERR_INVALID_ARG'"),
        ("p.writeblocks(63, bytes(8192))", "-260, 'ESP_ERR_INVALID_SIZE'"),
        ("p.writeblocks(0, bytes(100))", "-260, 'ESP_ERR_INVALID_SIZE'"),
        ("p.writeblocks(64, bytes(1), 0)", "-260, 'ESP_ERR_INVALID_SIZE'"),
        ("p.ioctl(6, 65)", "-258, 'ESP_ERR_INVALID_ARG'"),
    ],
)
def test_errors_are_the_negative_esp_err_t_with_its_name(board, call, code):
    """esp_partition_read, esp_partition_write, esp_partition_erase_range; check_esp_err_."""
    run = board.run(f"from esp32 import Partition\np = Partition('ota_1')\n{call}")
    assert run.traceback.splitlines()[-1] == f"OSError: ({code})"
    assert board.flash.operations == []


def test_a_bit_set_without_an_erase_fails_the_run_and_says_where(board):
    script = """
from esp32 import Partition
Partition("ota_1").writeblocks(0, bytes(16), 0)
Partition("ota_1").writeblocks(0, b"\\1" * 16, 0)
"""
    board.flash.erase(OTA_1.offset, 0x1000)
    with pytest.raises(FlashError, match="write at 0x50000 would turn 0x00 into 0x01"):
        board.run(script)
    assert board.flash.read(OTA_1.offset, 16) == bytes(16)


@pytest.mark.parametrize("offset", [OTA_0.offset, 0x8000], ids=["running app", "partition table"])
def test_writing_to_what_runs_resets_the_board_and_changes_nothing(board, offset):
    """esp_partition_main_flash_region_safe, with SPI_FLASH_DANGEROUS_WRITE_ABORTS."""
    before = board.flash.snapshot()
    run = board.run(f"import esp\nesp.flash_erase({offset} // 4096)\nprint('still here')")
    assert [boot.cause for boot in run.boots] == [ResetCause.POWER_ON, ResetCause.HARD]
    assert "abort() was called" in run.output
    assert "still here" not in run.output
    assert board.flash.snapshot() == before


# --- esp32.Partition: a source at address 0 ----------------------------------------------------

NULL_ERASE = """
import gc, uctypes
from esp32 import Partition
p = Partition("ota_1")
null = uctypes.bytearray_at(0, {size})
free = gc.mem_free()
try: p.writeblocks({block}, null)
except OSError as e: print(e, free - gc.mem_free() < 2048)
else: print("no error")
"""
BLOCK = OTA_1.offset + 0x10000


def null_erase(board, size=0x10000, block=16):
    return board.run(NULL_ERASE.format(size=size, block=block))


def noise(board):
    """Something else than blank in all of ota_1; what it is."""
    content = bytes(range(256)) * (OTA_1.size // 256)
    board.flash.erase(OTA_1.offset, OTA_1.size)
    board.flash.write(OTA_1.offset, content)
    board.flash.restart_count()
    return content


@pytest.mark.parametrize("size", [0x1000, 0x3000, 0x10000, 0x20000])
def test_a_source_at_address_0_erases_and_is_then_refused(board, size):
    """esp_partition_erase_range erases, esp_flash_write: ESP_ERR_INVALID_ARG."""
    before = noise(board)
    assert null_erase(board, size).output == "(-258, 'ESP_ERR_INVALID_ARG') True\n"
    step = min(size, 0x10000)
    steps = (
        [0x1000] * (size // 0x1000) if size < step or step < 0x10000 else [step] * (size // step)
    )
    assert [(op.kind, op.size) for op in board.flash.operations] == [("erase", s) for s in steps]
    after = before[:0x10000] + b"\xff" * size + before[0x10000 + size :]
    assert board.flash.read(OTA_1.offset, OTA_1.size) == after


def test_a_source_at_address_0_that_is_not_to_be_erased_for_changes_nothing(board):
    script = """
import esp, uctypes
from esp32 import Partition
null = uctypes.bytearray_at(0, 4096)
for write in (lambda: Partition("ota_1").writeblocks(0, null, 0),
              lambda: esp.flash_write(0x50000, null)):
    try: write()
    except OSError as e: print(e)
"""
    assert output(board, script) == "(-258, 'ESP_ERR_INVALID_ARG')\n[Errno 5] EIO\n"
    assert board.flash.operations == []


def test_whoever_reads_what_lies_at_address_0_dies(board):
    run = board.run("import uctypes\nprint(uctypes.bytearray_at(0, 65536)[:16])")
    assert run.end is End.DIED


@pytest.mark.parametrize(
    ("how", "says", "blank"),
    [
        ("crashes", None, 0x10000),
        ("written", "no error", 0),
        ("ignored", "(-258, 'ESP_ERR_INVALID_ARG') True", 0),
        ("partial", "(-258, 'ESP_ERR_INVALID_ARG') True", 0x1000),
        ("accepted", "no error", 0x10000),
    ],
)
def test_other_chips_may_take_a_source_at_address_0_otherwise(board, how, says, blank):
    before = noise(board)
    board.null_erase = how
    run = null_erase(board)
    if says is None:
        assert [boot.cause for boot in run.boots] == [ResetCause.POWER_ON, ResetCause.HARD]
        assert "Guru Meditation Error" in run.output
    else:
        assert run.output == f"{says}\n"
    found = board.flash.read(BLOCK, 0x10000)
    assert found[:blank] == b"\xff" * blank
    if how == "written":
        assert found == bytes(0x10000)
    else:
        assert found[blank:] == before[0x10000 + blank : 0x20000]


def test_a_source_at_address_0_resets_a_board_whose_partition_is_encrypted(base):
    table = tuple(replace(p, flags=1) if p is OTA_1 else p for p in boards.OTA_TABLE)
    apps = {OTA_0.offset: boards.app()}
    with boards.formatted(apps=apps, table=table).flash as flash:
        run = null_erase(Board(flash))
    assert [boot.cause for boot in run.boots] == [ResetCause.POWER_ON, ResetCause.HARD]


# --- reads that are counted, calls that fail ---------------------------------------------------


def test_reads_of_the_flash_are_counted_by_boot_and_cost_no_heap(board):
    idle = board.run("")
    assert idle.file_reads == idle.reads > 4  # the superblock, boot.py looked up and read
    script = """
import esp, gc
from esp32 import Partition
p = Partition("ota_1")
buf = bytearray(4096)
p.readblocks(0, buf)
free = gc.mem_free()
for n in range(50): p.readblocks(n, buf)
print(free - gc.mem_free() < 512)
esp.flash_read(0, buf)
"""
    run = board.run(script)
    assert run.output == "True\n"
    assert (run.file_reads, run.reads) == (idle.file_reads, idle.reads + 52)
    run = board.run(script + "import machine\nmachine.reset()")
    assert [boot.other_reads for boot in run.boots] == [52, 0]
    scripted, ordinary = (boot.file_reads for boot in run.boots)
    assert scripted == idle.file_reads < ordinary  # which looks for main.py as well


def test_the_file_system_is_mounted_as_the_esp32_port_does(board):
    """extmod/vfs_lfs.c: read and program 32 bytes, a cache of 128, blocks of 4 KiB."""
    output(board, "with open('f', 'wb') as f: f.write(bytes(4096))")
    idle, one = (board.run(script) for script in ("", "open('f', 'rb').read()"))
    assert 4096 // 128 <= one.file_reads - idle.file_reads <= 4096 // 128 + 40
    writes = [op for op in board.flash.operations if op.kind == "write"]
    assert {op.size % 32 for op in writes if VFS.offset <= op.offset} == {0}
    assert max(op.size for op in writes if VFS.offset <= op.offset) == 128


@pytest.mark.parametrize(
    ("fault", "call", "says"),
    [
        (CallFault("read", 0x6002, "ota_1"), "p.readblocks(0, buf)", "ESP_ERR_FLASH_OP_TIMEOUT"),
        (CallFault("erase", 0x6001), "p.ioctl(6, 0)", "ESP_ERR_FLASH_OP_FAIL"),
        (CallFault("write", 0x6001, "ota_1"), "p.writeblocks(0, buf)", "ESP_ERR_FLASH_OP_FAIL"),
        (CallFault("write", 0x6001), "esp.flash_write(0x50000, buf)", "EIO"),
        (CallFault("set_boot", 0x1503, "ota_1"), "p.set_boot()", "ESP_ERR_OTA_VALIDATE_FAILED"),
        (CallFault("mark_valid", -1), "p.mark_app_valid_cancel_rollback()", "ESP_FAIL"),
        (CallFault("nvs_open", 0x1105, "app"), "NVS('app')", "ESP_ERR_NVS_NOT_ENOUGH_SPACE"),
        (CallFault("nvs_set", 0x1105, "b"), "n.set_i32('b', 1)", "ESP_ERR_NVS_NOT_ENOUGH_SPACE"),
        (CallFault("nvs_get", 0x110B, "a"), "n.get_i32('a')", "ESP_ERR_NVS_INVALID_STATE"),
        (CallFault("nvs_erase", 0x110B, "a"), "n.erase_key('a')", "ESP_ERR_NVS_INVALID_STATE"),
        (CallFault("nvs_commit", 0x1105), "n.commit()", "ESP_ERR_NVS_NOT_ENOUGH_SPACE"),
    ],
    ids=lambda value: f"{value.call} {value.where or ''}" if isinstance(value, CallFault) else "",
)
def test_a_call_fault_is_the_error_of_that_call_as_often_as_it_says(board, fault, call, says):
    script = """
import esp
from esp32 import NVS, Partition
p = Partition("ota_1")
n = NVS("other")
n.set_i32("a", 1)
buf = bytearray(4096)
for _ in range(2):
    try: {call}
    except OSError as e: print(e)
    else: print("done")
"""
    fault.times = 1
    board.call_faults.append(fault)
    lines = output(board, script.format(call=call)).splitlines()
    assert says in lines[0]
    assert lines[1] == "done"


def test_a_call_fault_elsewhere_strikes_nothing(board):
    board.call_faults += [
        CallFault("read", -1, "nvs"),
        CallFault("erase", -1, "ota_0"),
        CallFault("nvs_set", -1, "b"),
    ]
    script = """
from esp32 import NVS, Partition
NVS("app").set_i32("a", 1)
Partition("ota_1").writeblocks(0, bytearray(4096))
print("done")
"""
    assert output(board, script) == "done\n"


def test_a_fault_of_a_call_that_there_is_not_is_noticed():
    with pytest.raises(ValueError, match="no call 'nvs-set'"):
        CallFault("nvs-set", 1)


def test_a_board_may_have_no_file_system_or_one_that_is_only_read(board):
    script = """
import vfs
from flashbdev import bdev
vfs.umount("/")
vfs.mount(bdev, "/", readonly=True)
try: open("new", "w")
except OSError as e: print(e.errno)
"""
    assert output(board, script) == "30\n"  # EROFS
    scratch = Partition("scratch", 1, 0x40, VFS.offset, boards.FLASH_SIZE - VFS.offset)
    with boards.flash(table=(boards.NVS, OTADATA, OTA_0, OTA_1, scratch)) as flash:
        script = "try: open('new', 'w')\nexcept OSError as e: print(e.errno)"
        assert output(Board(flash), script) == "19\n"  # ENODEV


# --- memory ------------------------------------------------------------------------------------


def test_what_micropython_takes_beyond_its_first_heap_is_missing_in_esp_idf_s(board):
    script = """
import esp32, gc
def free(): return esp32.idf_heap_info(esp32.HEAP_DATA)[0][1]
print(free())
small = bytearray(32768)
print(free())
large = bytearray(65536)
print(40000 < free() < 80000)
large = None
gc.collect()
print(free())
print(esp32.idf_heap_info(esp32.HEAP_DATA)[0][3] < 80000)
"""
    assert output(board, script).split() == ["110000", "110000", "True", "110000", "True"]


def test_a_board_with_psram_has_a_heap_of_mebibytes_in_it(board):
    board.heap_size = 4 << 20
    script = """
import esp32, gc
buf = bytearray(3 << 20)
print(3 << 20 < gc.mem_alloc(), gc.mem_free() < 1 << 20)
internal, psram = esp32.idf_heap_info(esp32.HEAP_DATA)
print(internal[1], psram[0] > 3 << 20, psram[1] < 1 << 20)
"""
    assert output(board, script) == "True True\n110000 True True\n"


# --- otadata -----------------------------------------------------------------------------------


def test_set_boot_writes_a_new_record_by_erasing_and_writing(board):
    set_records(board, (1, OtaState.VALID), (None, None))
    output(board, "from esp32 import Partition\nPartition('ota_1').set_boot()")
    at = OTADATA.offset + 0x1000
    assert board.flash.operations == [Operation("erase", at, 0x1000), Operation("write", at, 32)]
    assert board.flash.read(at, 36).hex() == (
        "02000000" + "ff" * 20 + "00000000" + "7437f655" + "ffffffff"  # seq, label, NEW, CRC
    )


def test_set_boot_takes_the_record_that_does_not_select(board):
    set_records(board, (3, OtaState.VALID), (2, OtaState.VALID))
    output(board, "from esp32 import Partition\nPartition('ota_1').set_boot()")
    assert [(r.ota_seq, r.ota_state) for r in records(board)] == [
        (3, OtaState.VALID),
        (4, OtaState.NEW),
    ]


def test_set_boot_of_the_selected_slot_makes_its_record_new(board):
    set_records(board, (3, OtaState.VALID), (2, OtaState.VALID))
    output(board, "from esp32 import Partition\nPartition('ota_0').set_boot()")
    assert records(board)[0].ota_state == OtaState.NEW
    assert records(board)[1].ota_seq == 2


def test_set_boot_refuses_an_image_that_does_not_verify(board):
    board.flash.erase(OTA_1.offset + 0x2000, 0x1000)
    board.flash.restart_count()
    run = board.run("from esp32 import Partition\nPartition('ota_1').set_boot()")
    assert run.traceback.splitlines()[-1] == "OSError: (-5379, 'ESP_ERR_OTA_VALIDATE_FAILED')"
    assert board.flash.operations == []


def test_set_boot_of_factory_erases_both_records():
    factory = Partition("factory", 0, 0, 0x10000, boards.SLOT_SIZE)
    table = (boards.NVS, OTADATA, factory, OTA_1, VFS)
    slot = Partition("ota_0", 0, 0x10, OTA_1.offset, OTA_1.size)
    table = tuple(slot if p is OTA_1 else p for p in table)
    apps = {factory.offset: boards.app(), slot.offset: boards.app("v1.27.0")}
    with boards.flash(apps, table) as flash:
        board = Board(flash)
        set_records(board, (1, OtaState.VALID), (None, None))
        run = board.run("from esp32 import Partition\nPartition('factory').set_boot()")
        assert run.labels == ("ota_0",)
        assert flash.read(OTADATA.offset, OTADATA.size) == b"\xff" * OTADATA.size
        assert board.run("").labels == ("factory",)


def test_confirming_rewrites_the_active_record_once(board):
    set_records(board, (1, OtaState.VALID), (2, OtaState.NEW))
    script = "from esp32 import Partition\nPartition.mark_app_valid_cancel_rollback()\n"
    run = board.run(script)
    assert run.labels == ("ota_1",)
    assert records(board)[1].ota_state == OtaState.VALID
    at = OTADATA.offset + 0x1000
    erase_and_write = [Operation("erase", at, 0x1000), Operation("write", at, 32)]
    assert list(run.operations) == erase_and_write * 2  # PENDING_VERIFY by the bootloader, VALID
    assert board.run(script).operations == ()


def test_confirming_without_a_record_fails(board):
    board.flash.erase(OTADATA.offset, 0x2000)
    script = """
import esp
esp.flash_erase(0xd); esp.flash_erase(0xe)
from esp32 import Partition
Partition.mark_app_valid_cancel_rollback()
"""
    run = board.run(script)
    assert "ESP_FAIL" in run.traceback


# --- esp32.NVS ---------------------------------------------------------------------------------


def test_nvs_keeps_what_was_committed(board):
    output(
        board,
        """
from esp32 import NVS
n = NVS("app")
n.set_i32("count", -7)
n.set_blob("name", b"\\0board\\0")
n.commit()
n.set_i32("count", 8)
print(n.get_i32("count"))
""",
    )
    script = """
from esp32 import NVS
n = NVS("app")
buf = bytearray(10)
print(n.get_i32("count"), n.get_blob("name", buf), buf)
n.erase_key("count")
n.commit()
"""
    assert output(board, script) == "-7 7 bytearray(b'\\x00board\\x00\\x00\\x00\\x00')\n"
    run = board.run("from esp32 import NVS\nNVS('app').get_i32('count')")
    assert run.traceback.splitlines()[-1] == "OSError: (-4354, 'ESP_ERR_NVS_NOT_FOUND')"


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("n.get_i32('nothing')", "ESP_ERR_NVS_NOT_FOUND"),
        ("n.get_i32('blob')", "ESP_ERR_NVS_NOT_FOUND"),
        ("n.erase_key('nothing')", "ESP_ERR_NVS_NOT_FOUND"),
        ("n.get_blob('blob', bytearray(2))", "ESP_ERR_NVS_INVALID_LENGTH"),
        ("n.set_i32('a-key-of-16-char', 1)", "ESP_ERR_NVS_KEY_TOO_LONG"),
        ("n.set_blob('big', bytes(12001)); n.commit()", "ESP_ERR_NVS_VALUE_TOO_LONG"),
        ("n.set_blob('big', bytes(12000)); n.commit()", "ESP_ERR_NVS_NOT_ENOUGH_SPACE"),
    ],
)
def test_nvs_fails_as_esp_idf_does(board, call, name):
    run = board.run(f"from esp32 import NVS\nn = NVS('app')\nn.set_blob('blob', b'abc')\n{call}")
    assert name in run.traceback


def test_nvs_without_a_partition_that_holds_it_fails():
    with boards.flash(table=(OTADATA, OTA_0, OTA_1, VFS)) as flash:
        run = Board(flash).run("from esp32 import NVS\nNVS('app')")
    assert "ESP_ERR_NVS_NOT_INITIALIZED" in run.traceback


# --- machine -----------------------------------------------------------------------------------


def test_reset_boots_again_and_tells_why(board):
    script = """
with open("main.py", "w") as f: f.write("import machine\\nprint('cause', machine.reset_cause())")
import machine
print("cause", machine.reset_cause())
machine.reset()
print("never")
"""
    run = board.run(script)
    assert run.output == "cause 1\ncause 2\n"
    assert run.labels == ("ota_0", "ota_0")


def test_a_soft_reset_does_not_pass_the_bootloader(board):
    set_records(board, (1, OtaState.VALID), (2, OtaState.NEW))
    run = board.run("import machine\nmachine.soft_reset()")
    assert [boot.cause for boot in run.boots] == [ResetCause.POWER_ON, ResetCause.SOFT]
    assert run.labels == ("ota_1", "ota_1")
    assert run.boots[1].bootloader_lines == ()
    assert records(board)[1].ota_state == OtaState.PENDING_VERIFY
    assert board.run("").labels == ("ota_0",)


def test_sys_exit_in_main_is_a_soft_reset(board):
    with_main(board, "import sys\nprint('once more')\nsys.exit()")
    run = board.run(max_boots=3)
    assert run.end is End.TOO_MANY_BOOTS
    assert run.output == "once more\nMPY: soft reboot\n" * 3


def with_main(board, text):
    output(board, f"with open('main.py', 'w') as f: f.write({text!r})")


@pytest.mark.parametrize("body", ["while True: pass", "import time\nwhile True: time.sleep(1)"])
def test_the_watchdog_bites_whatever_the_code_does(board, body):
    run = board.run(f"import machine\nmachine.WDT(timeout=100)\n{body}")
    assert [boot.cause for boot in run.boots] == [ResetCause.POWER_ON, ResetCause.WATCHDOG]
    assert "Task watchdog got triggered" in run.output
    assert run.end is End.IDLE


def test_a_watchdog_that_is_fed_does_not_bite(board):
    script = """
import machine, time
wdt = machine.WDT(timeout=1000)
for _ in range(12):
    wdt.feed()
    time.sleep_ms(100)
print("alive")
"""
    run = board.run(script)
    assert (run.output, len(run.boots)) == ("alive\n", 1)


def test_nothing_stops_the_watchdog_at_the_prompt_nor_by_a_soft_reset(board):
    script = "import machine\nmachine.WDT(timeout=100)\n"
    run = board.run(script, wait_at_idle=True)
    assert [boot.cause for boot in run.boots] == [ResetCause.POWER_ON, ResetCause.WATCHDOG]
    run = board.run(script + "machine.soft_reset()", wait_at_idle=True)
    causes = [boot.cause for boot in run.boots]
    assert causes == [ResetCause.POWER_ON, ResetCause.SOFT, ResetCause.WATCHDOG]


def test_a_timer_calls_back_between_bytecodes_and_at_the_prompt(board):
    script = """
import machine
ticks = []
t = machine.Timer(0)
def tick(timer):
    ticks.append(timer is t)
    if len(ticks) == 3:
        print(ticks)
        machine.reset()
t.init(period=5, mode=machine.Timer.PERIODIC, callback=tick)
"""
    run = board.run(script, wait_at_idle=True)
    assert run.output == "[True, True, True]\n"
    assert run.boots[1].cause is ResetCause.HARD


def test_a_timer_does_not_disturb_flash_operations(board):
    script = """
import machine
from esp32 import Partition
wdt = machine.WDT(timeout=5000)
t = machine.Timer(0)
t.init(period=1, callback=lambda t: wdt.feed())
p = Partition("ota_1")
buf = bytearray(4096)
for n in range(64):
    buf[:] = bytes([n]) * 4096
    p.writeblocks(n, buf)
    p.readblocks(n, buf)
    if buf != bytes([n]) * 4096:
        print("wrong", n)
t.deinit()
print("done")
"""
    assert output(board, script) == "done\n"


# --- what the app says of itself ---------------------------------------------------------------


def test_the_app_that_runs_tells_its_version(board):
    script = """
import sys, os
print(sys.implementation.version, sys.implementation._machine, sys.platform)
print(sys.version)
print(os.uname().release, os.uname().machine)
"""
    lines = output(board, script).splitlines()
    assert lines == [
        "(1, 26, 1, '') Virtual board with ESP32 esp32",
        "3.4.0; MicroPython v1.26.1 on 2025-09-11",
        "1.26.1 Virtual board with ESP32",
    ]
    set_records(board, (2, OtaState.VALID))
    assert "1.27.0" in output(board, script)


def test_esp_reads_all_of_the_flash(board):
    script = """
import esp
buf = bytearray(4)
esp.flash_read(0x1000, buf)
print(esp.flash_size(), buf[0])
try: esp.flash_read(esp.flash_size() - 2, buf)
except OSError as e: print(e.errno)
"""
    assert output(board, script) == f"{boards.FLASH_SIZE} {0xE9}\n5\n"


# --- files -------------------------------------------------------------------------------------


def test_files_outlive_the_power(board):
    output(
        board, "import os\nos.mkdir('lib')\nwith open('/lib/mine.py', 'w') as f: f.write('x=42')"
    )
    assert output(board, "import mine\nprint(mine.x, mine.__file__)") == "42 /lib/mine.py\n"


def test_the_machines_own_files_are_out_of_sight(board):
    here = Path(__file__)
    script = f"""
import os, sys
print(os.listdir('/'), os.getcwd(), sys.path)
for path in ({str(here)!r}, '/etc/passwd', '/bin'):
    try: os.stat(path); print("seen", path)
    except OSError: pass
"""
    assert output(board, script) == "['boot.py'] / ['', '.frozen', '/lib']\n"


def test_a_directory_can_be_built_into_the_firmware(board, tmp_path):
    (tmp_path / "frozen_thing.py").write_text("def f(): return __file__\n")
    board.frozen = tmp_path
    assert (
        output(board, "import frozen_thing\nprint(frozen_thing.f())") == "/frozen/frozen_thing.py\n"
    )


def test_boot_and_main_share_their_names(board):
    script = """
with open("boot.py", "w") as f: f.write("greeting = 'from boot'")
with open("main.py", "w") as f: f.write("print(greeting, __name__)")
"""
    output(board, script)
    assert board.run().output == "from boot __main__\n"


def test_an_exception_in_boot_keeps_main_from_running(board):
    """main.c: mp_task."""
    script = """
with open("boot.py", "w") as f: f.write("1/0")
with open("main.py", "w") as f: f.write("print('main')")
"""
    output(board, script)
    run = board.run()
    assert run.end is End.IDLE
    assert run.output.splitlines()[-1].startswith("ZeroDivisionError")
    assert run.traceback == run.output


def test_a_firmware_without_a_vfs_entry_makes_one_in_the_rest_of_the_flash():
    """main.c: boardctrl_startup."""
    with boards.flash(table=boards.OTA_TABLE[:-1]) as flash:
        script = "import flashbdev\nprint(flashbdev.bdev.info())"
        run = Board(flash).run(script)
        info = (1, 0x81, OTA_1.end, flash.size - OTA_1.end, "vfs", False)
        assert run.output == f"Performing initial setup\n{info}\n"


def test_before_v1_26_a_firmware_without_a_vfs_entry_has_no_files():
    """_boot.py: nothing is mounted where flashbdev.py finds nothing."""
    apps = {OTA_0.offset: boards.app("v1.25.0")}
    with boards.flash(apps, table=boards.OTA_TABLE[:-1]) as flash:
        script = "import flashbdev, os\nprint(flashbdev.bdev, os.listdir('/'))"
        assert Board(flash).run(script).output == "None []\n"


def test_the_heap_has_the_size_that_was_asked_for(board):
    board.heap_size = 56 * 1024
    free = int(output(board, "import gc\ngc.collect()\nprint(gc.mem_free())"))
    size = 56 * 1024 * board.interpreter.word_size // 4
    table_of_names = 4480  # is in it: what a board takes for those of the package
    assert free == pytest.approx(size - table_of_names, rel=0.03)
    run = board.run(f"b = bytearray({size})")
    assert "MemoryError" in run.traceback


def test_memory_of_the_rtc_keeps_what_is_in_it_as_long_as_there_is_power(board):
    main = (
        "import machine\nmemory = machine.RTC().memory()\nprint(memory)\n"
        "machine.RTC().memory(memory + b'x')\n"
        "if len(memory) < 2: (machine.deepsleep, machine.reset)[len(memory)]()\n"
        "try: machine.RTC().memory(bytes(2049))\nexcept ValueError as error: print(error)\n"
    )
    output(board, f"with open('main.py', 'w') as file: file.write({main!r})")
    for _ in range(2):
        assert board.run().output == "b''\nb'x'\nb'xx'\nbuffer too long\n"


def test_both_ends_of_the_line_know_the_same_requests():
    standin = files("mpota.virtual").joinpath("standin")
    source = "".join(standin.joinpath(name).read_text() for name in ("link.py", "clock.py"))
    asked = re.findall(r'^_?([A-Z_]+) = ord\("(.)"\)', source, re.MULTILINE)
    assert {name: ord(kind) for name, kind in asked} == {r.name: r.value for r in Request}
