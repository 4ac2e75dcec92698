"""An update on the virtual board: what is written, what boots, what is said, and rollback."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from mpota.virtual.board import Board

from tests.support import boards, ota_board, ota_package, releases
from tests.support.boards import OTA_0, OTA_1
from tests.support.ota_board import (
    NEW,
    OLD,
    answer,
    merged_firmware,
    output,
    records,
    serving,
    slot_content,
    states,
    try_update,
)

SHA = hashlib.sha256(NEW).hexdigest()


@pytest.fixture(scope="module")
def server():
    merged = merged_firmware(NEW)
    files = {
        "/app.bin": NEW,
        "/merged.bin": merged,
        "/dump.bin": b"\xff" * 0x1000 + merged,
        "/other.bin": boards.app("v1.28.0", 0x21000),
    }
    simple = {"firmware": "app.bin", "sha": SHA, "length": len(NEW)}
    files["/fw/simple.json"] = json.dumps(simple).encode()
    files["/fw/app.bin"] = NEW
    with serving({path: answer(body) for path, body in files.items()}) as server:
        yield server


# --- what is printed ---------------------------------------------------------------------------


def test_the_line_that_counts_blocks_ends_before_other_text(board, server):
    url = server.url("/app.bin")
    script = f"import ota\nota.update.from_file({url!r}, {'0' * 64!r}, reboot=False)"
    output = board.run(script).output
    assert "\rBLOCK 16\rBLOCK 32\nTraceback" in output


def test_a_release_tells_as_much_where_that_is_wanted(board):
    made = releases.make(releases.Content("app", "app.bin", NEW), name="pump", version="2.0")
    with serving({"/pump.bundle": answer(made.to_bytes())}) as server:
        url = server.url("/pump.bundle")
        script = f"import ota\nota.release.install({url!r}, reboot=False, verbose=True)"
        lines = output(board, script).splitlines()
        failed = board.run(script.replace("pump.bundle", "no.bundle")).output
    assert lines[0] == f"Opening release {url}..."
    assert lines[1].startswith("Writing ")
    assert "BLOCK 32" in lines[-3]
    assert lines[-2] == "Release installed: it comes into force with the restart."
    assert failed.splitlines()[1].startswith("Traceback")


def test_a_url_may_have_blanks_and_umlauts(board):
    with serving({"/an%20app%20f%C3%BCr%20uns.bin": answer(NEW)}) as server:
        printed = output(board, try_update(server.url("/an app für uns.bin")))
    assert printed == f"wrote {len(NEW)}\n"


@pytest.mark.parametrize("url", ["http://bücher/app.bin", "http://h ost/x", "http://host/a\rb"])
def test_what_no_host_is_called_is_no_url(board, url):
    assert output(board, try_update(url)).startswith("address: not an http:// or https:// URL: ")


# --- the drop-in API ---------------------------------------------------------------------------


def test_from_file_updates_the_next_slot_and_says_what_it_does(board, server):
    url = server.url("/app.bin")
    script = f"import ota.update\nprint(ota.update.from_file({url!r}, reboot=False))"
    printed = [line for line in re.split("[\r\n]+", output(board, script)) if line]
    assert printed[:5] == [
        "Writing new micropython image to OTA partition 'ota_1'...",
        "Device capacity: 64 x 4096 byte blocks.",
        f"Opening firmware file {url}...",
        f"Writing {len(NEW) // 4096} blocks + {len(NEW) % 4096} bytes.",
        "BLOCK 16",
    ]
    assert printed[-4:] == [
        "OTA Partition 'ota_1' updated successfully.",
        "Micropython will boot from 'ota_1' partition on next boot.",
        "Remember to call ota.rollback.cancel() after successful reboot.",
        str(len(NEW)),
    ]
    assert slot_content(board, len(NEW)) == NEW
    assert states(board) == ["VALID", "NEW"]
    assert board.run().labels == ("ota_1",)


def test_quiet_means_that_nothing_is_printed(board, server):
    script = (
        f"import ota\nota.update.from_file({server.url('/app.bin')!r}, '', 0, True, False, False)"
    )
    assert output(board, script) == ""
    assert states(board) == ["VALID", "NEW"]


def test_reboot_counts_down_and_resets_into_the_new_app(board, server):
    run = board.run(
        f"""
import sys, time
class Hurried:
    sleep = lambda seconds: None
    sleep_ms, ticks_ms, ticks_diff = time.sleep_ms, time.ticks_ms, time.ticks_diff
sys.modules["time"] = Hurried
import ota.update
ota.update.from_file({server.url("/app.bin")!r})
print("never reached")
"""
    )
    assert "Rebooting in 10 seconds (ctrl-C to cancel)" in run.output
    assert "Rebooting in  1 seconds" in run.output
    assert "never reached" not in run.output
    assert run.labels == ("ota_0", "ota_1")


def test_sha_and_length_of_the_file_are_compared(board, server):
    more = f", sha={SHA!r}, length={len(NEW)}"
    assert output(board, try_update(server.url("/app.bin"), more)) == f"wrote {len(NEW)}\n"


def test_from_json_reads_a_firmware_beside_it(board, server):
    script = f"import ota\nota.update.from_json({server.url('/fw/simple.json')!r}, reboot=False)"
    output(board, script)
    assert slot_content(board, len(NEW)) == NEW


def test_from_json_says_what_is_missing(board, server):
    server.answers["/bad.json"] = answer(b'{"firmware": "x"}')
    printed = output(
        board,
        f"""
import ota.update
for url in ("x.bin", {server.url("/bad.json")!r}):
    try:
        ota.update.from_json(url, verbose=False)
    except ValueError as error:
        print(getattr(error, "code", "ValueError"), error)
""",
    )
    first, second = printed.splitlines()
    assert first == "ValueError Url does not end with '.json'"
    assert second.startswith("json ")
    assert 'must include "firmware", "sha" and "length" keys, it has no "sha"' in second


def test_the_class_takes_a_stream_a_file_and_pieces(board):
    small = boards.app("v1.27.0", 0x2000)
    printed = output(
        board,
        f"""
import io
from ota.update import OTA
data = {small!r}
with OTA(verbose=False) as update:
    print(update.from_stream(io.BytesIO(data)))
with open("app.bin", "wb") as f:
    f.write(data)
with OTA(True, False, False, sha={hashlib.sha256(small).hexdigest()!r}, length={len(small)}) as u:
    print(u.from_firmware_file("app.bin"))
update = OTA(verify=False, verbose=False)
print(sum([update.write(data[at : at + 1000]) for at in range(0, len(data), 1000)]))
update.close()
update.close()
""",
    )
    assert printed.split() == [str(len(small))] * 3
    assert slot_content(board, len(small)) == small


def test_a_uart_that_pauses_is_waited_for(board):
    small = boards.app("v1.27.0", 0x2000)
    script = f"""
from ota.update import OTA
class Uart:
    def __init__(self, data):
        self.data, self.at = data, 0
    def readinto(self, buf):
        self.at += 1
        if self.at % 3 == 0:
            return None
        n = min(777, len(buf), len(self.data))
        buf[:n] = self.data[:n]
        self.data = self.data[n:]
        return n
with OTA(verbose=False) as update:
    print(update.from_stream(Uart({small!r})))
"""
    assert output(board, script) == f"{len(small)}\n"
    assert slot_content(board, len(small)) == small


def test_leaving_the_context_by_an_exception_switches_nothing(board):
    script = f"""
from ota.update import OTA
try:
    with OTA(verbose=False) as update:
        update.write({OLD[:0x3000]!r})
        raise RuntimeError("mine")
except RuntimeError as error:
    print(error)
"""
    assert output(board, script) == "mine\n"
    assert states(board) == ["VALID", "-"]


def test_abort_and_progress(board, server):
    printed = output(
        board,
        f"""
import ota
from ota.update import OTA
def progress(done, total):
    print(done, total)
    if done >= 3 * 4096:
        update.abort()
update = OTA(verbose=False, block_size=4096, progress=progress)
try:
    update.from_firmware_file({server.url("/app.bin")!r})
except ota.OTAError as error:
    print(error.code)
""",
    )
    assert printed.splitlines() == [
        *(f"{n * 4096} {len(NEW)}" for n in (1, 2, 3)),
        "aborted",
    ]
    assert states(board) == ["VALID", "-"]


def test_import_ota_loads_lazily(board):
    printed = output(
        board,
        """
import sys
import ota
print([m for m in sorted(sys.modules) if m.startswith("ota")])
ota.rollback.cancel()
print([m for m in sorted(sys.modules) if m.startswith("ota")])
print(ota.status.ready(), ota.OTAError.__name__, issubclass(ota.OTAError, ValueError))
try:
    ota.nonsense
except AttributeError:
    print("no such thing")
""",
    )
    assert printed.splitlines() == [
        "['ota']",
        "['ota', 'ota.rollback']",
        "True OTAError True",
        "no such thing",
    ]


# --- what is accepted --------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/merged.bin", "/dump.bin"])
def test_of_a_merged_firmware_the_app_alone_is_written(board, server, path):
    assert output(board, try_update(server.url(path))).startswith("wrote ")
    assert slot_content(board, len(NEW)) == NEW
    assert board.run().labels == ("ota_1",)


def test_sha_and_length_of_a_merged_firmware_are_those_of_the_file(board, server):
    more = f", sha={SHA!r}"  # of the app
    assert output(board, try_update(server.url("/merged.bin"), more)).startswith("sha: SHA mism")
    merged = merged_firmware(NEW)
    more = f", sha={hashlib.sha256(merged).hexdigest()!r}, length={len(merged)}"
    assert output(board, try_update(server.url("/merged.bin"), more)) == f"wrote {len(merged)}\n"


PADDED = NEW + b"\xff" * (-len(NEW) % 4096)
SIGNED = PADDED + b"\xe7\x02\0\0" + bytes(1212) + b"\xff" * (4096 - 1216)


@pytest.mark.parametrize("image", [PADDED, SIGNED], ids=["padded", "signed"])
def test_padding_and_a_signature_sector_belong_to_an_app(board, server, image):
    server.answers["/image.bin"] = answer(image)
    more = f", sha={hashlib.sha256(image).hexdigest()!r}"
    assert output(board, try_update(server.url("/image.bin"), more)) == f"wrote {len(image)}\n"
    assert slot_content(board, len(image)) == image
    assert states(board) == ["VALID", "NEW"]


def test_an_image_that_fills_the_slot_to_the_last_byte_fits(board, server):
    largest = boards.app("v1.27.0", boards.SLOT_SIZE - 0x200)
    rest = boards.SLOT_SIZE - len(largest)
    largest = boards.app("v1.27.0", boards.SLOT_SIZE - 0x200 + rest // 16 * 16)
    assert len(largest) == boards.SLOT_SIZE
    server.answers["/largest.bin"] = answer(largest)
    assert output(board, try_update(server.url("/largest.bin"))) == f"wrote {len(largest)}\n"
    assert board.run().labels == ("ota_1",)


# --- how it is written -------------------------------------------------------------------------


@pytest.mark.parametrize("kib", [80, 120, 4096])
def test_64_kib_are_erased_at_once_whatever_the_heap_is(server, kib):
    with ota_board.updating_board(heap_size=kib * 1024) as board:
        run = board.run(try_update(server.url("/app.bin"), then=SELECT_OTA_0))
        erases = [op for op in run.operations if op.kind == "erase" and op.offset >= OTA_1.offset]
        # Blank blocks are not erased; the first one always is.
        assert [(op.offset, op.size) for op in erases] == [(OTA_1.offset, 0x10000)], run.console
        assert slot_content(board, len(NEW)) == NEW
        board.flash.erase(OTA_1.offset, OTA_1.size)
        board.flash.write(OTA_1.offset, bytes(OTA_1.size))
        run = board.run(try_update(server.url("/other.bin")))
        erases = [op for op in run.operations if op.kind == "erase" and op.offset >= OTA_1.offset]
        assert [(op.offset - OTA_1.offset, op.size) for op in erases] == [
            (at, 0x10000) for at in range(0, OTA_1.size, 0x10000)
        ]


def test_an_update_takes_nothing_that_the_network_needs(board, server):
    """MicroPython's heap grows out of ESP-IDF's, and gc.mem_free() counts both."""
    script = "import esp32\nprint('least', min(r[3] for r in esp32.idf_heap_info(4)))"
    printed = output(board, try_update(server.url("/app.bin"), then=script))
    assert int(printed.split("least")[1]) >= 40 * 1024


def test_a_heap_of_60_kib_is_enough_for_a_merged_firmware_too(server):
    with ota_board.updating_board(heap_size=60 * 1024) as board:
        assert output(board, try_update(server.url("/merged.bin"))).startswith("wrote ")
        assert board.run().labels == ("ota_1",)


SELECT_OTA_0 = """
from esp32 import Partition
Partition.find(Partition.TYPE_DATA, 0)[0].ioctl(6, 1)  # the record of ota_1
"""


def in_slot(run):
    return [(op.kind, op.offset - OTA_1.offset) for op in run.operations if op.offset in range(
        OTA_1.offset, OTA_1.end)]  # fmt: skip


@pytest.mark.parametrize("block_size", [4096, 65536])  # which has no meaning any more
def test_blocks_that_are_right_already_are_not_rewritten(board, server, block_size):
    more = f", block_size={block_size}"
    again = try_update(server.url("/app.bin"), more, then=SELECT_OTA_0)
    output(board, again)
    # But the first one, of which the head is blank until all has been judged.
    first = [("erase", 0), ("write", 32)]
    if block_size > 4096:
        first += [("write", at) for at in range(0x1000, 0x10000, 0x1000)]
    run = board.run(again)
    assert run.output == f"wrote {len(NEW)}\n"
    assert in_slot(run) == [*first, ("write", 0)]
    # One sector differs: it alone is written, and its block erased only if it is the first in it.
    board.flash.erase(OTA_1.offset + 0x13000, 0x1000)
    board.flash.write(OTA_1.offset + 0x13000, b"\0")
    run = board.run(again)
    assert in_slot(run) == [*first, ("erase", 0x13000), ("write", 0x13000), ("write", 0)]
    assert slot_content(board, len(NEW)) == NEW


def test_the_record_of_a_slot_ends_with_its_content(two_apps, server):
    # Else a complete image that was refused at the end could be rolled back to.
    board = two_apps
    wrong = f", sha={'0' * 64!r}"
    assert "SHA mismatch" in output(board, try_update(server.url("/other.bin"), wrong))
    assert states(board) == ["-", "VALID"]
    assert output(board, "import ota; print(ota.rollback.is_possible())") == "False\n"


# --- rollback ----------------------------------------------------------------------------------


@pytest.fixture
def updated(board, server):
    """A board in the first boot of NEW in ota_1, which is over."""
    run = board.run(try_update(server.url("/app.bin"), then="import machine; machine.reset()"))
    assert run.labels == ("ota_0", "ota_1")
    return board


def confirmed(board):
    output(board, "import ota.rollback; ota.rollback.cancel()")
    return board


@pytest.fixture
def two_apps(board, server):
    """OLD in ota_0 and NEW in ota_1, both confirmed, NEW runs."""
    board.run(
        'with open("main.py", "w") as f: f.write("import ota; ota.rollback.cancel()")\n'
        + try_update(server.url("/app.bin"), then="import machine; machine.reset()")
    )
    assert states(board) == ["VALID", "VALID"]
    board.flash.restart_count()
    return board


def test_an_app_that_is_not_confirmed_is_rolled_back(updated):
    run = updated.run()
    assert run.labels == ("ota_0",)
    assert states(updated) == ["VALID", "ABORTED"]


def test_an_app_that_is_confirmed_stays(two_apps):
    assert two_apps.run().labels == ("ota_1",)


def test_cancel_does_nothing_where_there_is_nothing_to_confirm(two_apps):
    run = two_apps.run("import ota\nota.rollback.cancel()\nota.rollback.cancel()")
    assert (run.output, run.operations) == ("", ())


def test_cancel_does_not_confirm_an_app_that_has_not_run(board, server):
    script = try_update(server.url("/app.bin"), then="ota.rollback.cancel()")
    output(board, script)
    assert states(board) == ["VALID", "NEW"]


def test_cancel_speaks_up_where_the_table_has_no_otadata():
    table = tuple(p for p in boards.OTA_TABLE if p is not boards.OTADATA)
    with boards.flash({OTA_0.offset: OLD}, table) as flash:
        board = ota_board.Board(flash, frozen=ota_package.compiled())
        printed = output(
            board,
            """
import ota
ota.rollback.cancel()
print(ota.status.ready())
try:
    ota.rollback.force()
except OSError as error:
    print(error.args[0])
try:
    ota.update.OTA()
except ota.OTAError as error:
    print(error.code)
""",
        )
    assert printed.splitlines()[-4:] == [
        "ota.rollback.cancel(): The bootloader does not support OTA rollback.",
        "False",
        "-261",
        "no-slot",
    ]


def test_force_goes_back_to_the_app_before_and_cancel_force_undoes_it(two_apps):
    output(two_apps, "import ota\nota.rollback.force()\nota.rollback.cancel_force()")
    assert two_apps.run().labels == ("ota_1",)
    output(two_apps, "import ota\nota.rollback.cancel_force()\nota.rollback.force()")
    run = two_apps.run()
    assert run.labels == ("ota_0",)  # whose main.py confirms it
    assert two_apps.run().labels == ("ota_0",)


def test_force_refuses_an_app_that_is_not_intact(two_apps):
    two_apps.flash.erase(OTA_0.offset + 0x4000, 0x1000)
    two_apps.flash.restart_count()
    run = two_apps.run(
        """
import ota
for f in (ota.rollback.force, ota.rollback.mark_invalid):
    try:
        f()
    except ota.OTAError as error:
        print(error.code, error)
print(ota.rollback.is_possible())
"""
    )
    assert run.output.splitlines() == [
        "not-bootable the image in ota_0 is not intact: still booting ota_1",
        "not-bootable ota_0: its SHA-256 does not match",
        "False",
    ]
    assert run.operations == ()
    assert two_apps.run().labels == ("ota_1",)


def test_force_goes_by_otadata_not_by_slot_number(server):
    # Three slots; ota_2 runs, and ota_0 ran before it.
    slot = 0x30000
    ota = [boards.Partition(f"ota_{n}", 0, 0x10 + n, 0x10000 + n * slot, slot) for n in range(3)]
    table = (boards.NVS, boards.OTADATA, *ota, boards.Partition("vfs", 1, 0x81, 0xA0000, 0x40000))
    from mpota.formats.otadata import OtaRecord, OtaState

    sector = b"\xff" * (0x1000 - 32)
    otadata = (
        OtaRecord.selecting(4, OtaState.VALID).to_bytes()
        + sector
        + OtaRecord.selecting(6, OtaState.VALID).to_bytes()
        + sector
    )
    apps = {p.offset: OLD for p in ota} | {boards.OTADATA.offset: otadata}
    with boards.flash(apps, table) as flash:
        board = ota_board.Board(flash, frozen=ota_package.compiled())
        run = board.run("import ota\nota.rollback.force()\nimport machine\nmachine.reset()")
        assert run.labels == ("ota_2", "ota_0")


def test_mark_invalid_gives_up_the_app_for_good(two_apps):
    run = two_apps.run("import ota\nota.rollback.mark_invalid()")
    assert run.labels == ("ota_1", "ota_0")
    assert states(two_apps) == ["VALID", "INVALID"]
    assert output(two_apps, "import ota\nprint(ota.rollback.is_possible())") == "False\n"


def test_without_another_app_there_is_nothing_to_go_back_to(board):
    run = board.run(
        """
import ota
for f in (ota.rollback.force, ota.rollback.mark_invalid):
    try:
        f()
    except ota.OTAError as error:
        print(error.code)
"""
    )
    assert run.output.split() == ["no-previous", "no-previous"]
    assert run.operations == ()


def test_an_update_is_refused_while_the_running_app_is_not_confirmed(updated, server):
    server_url = server.url("/other.bin")
    main = f"with open('main.py', 'w') as f: f.write({try_update(server_url)!r})\n"
    script = (
        main
        + try_update(server.url("/app.bin"), ", force=True")
        + "import machine\nmachine.reset()"
    )
    run = updated.run(script)
    assert run.labels == ("ota_0", "ota_1")
    assert run.boots[1].output.startswith("unconfirmed: the running app (ota_1) is not confirmed")
    assert states(updated) == ["VALID", "PENDING_VERIFY"]


def test_a_board_with_the_core_alone_says_so_as_well(board, server):
    """What judges the files of a release is not installed there, and not needed."""
    core = Board(board.flash, frozen=ota_package.core())
    script = (
        "with open('main.py', 'w') as f:\n"
        f"    f.write({try_update(server.url('/other.bin'))!r})\n"
        + try_update(server.url("/app.bin"))
        + "import machine\nmachine.reset()"
    )
    run = core.run(script)
    assert run.labels == ("ota_0", "ota_1"), run.console
    assert run.boots[1].output.startswith("unconfirmed: the running app (ota_1) is not confirmed")
    assert states(core) == ["VALID", "PENDING_VERIFY"]


def test_a_failed_version_is_not_installed_again_by_itself(board, server):
    url = server.url("/app.bin")
    main = f"""
import esp32, machine
if esp32.Partition(esp32.Partition.RUNNING).info()[4] == "ota_1":
    machine.reset()  # crashes before it confirms
{try_update(url)}
"""
    run = board.run(
        f"with open('main.py', 'w') as f: f.write({main!r})\n" + main + "machine.reset()"
    )
    assert run.labels == ("ota_0", "ota_1", "ota_0")
    assert run.boots[2].output.startswith("failed-version: this image has failed on this board")
    assert states(board) == ["VALID", "ABORTED"]
    # At a power-on it has one more chance: the power may have gone in its first boot.
    run = board.run("machine = __import__('machine')\n" + main + "machine.reset()")
    assert run.labels == ("ota_0", "ota_1", "ota_0")
    assert run.boots[2].output.startswith("failed-version:")
    run = board.run(main)
    assert run.output.startswith("failed-version:")
    assert not ota_board.slot_writes(run)
    # Another version is welcome, and so is this one on demand.
    assert output(board, try_update(url, ", force=True")).startswith("wrote")


CRASH_IN_OTA_1 = """
import esp32, machine, ota
if esp32.Partition(esp32.Partition.RUNNING).info()[4] == "ota_1":
    machine.reset()  # crashes before it confirms
ota.rollback.cancel()
"""


def test_a_crash_that_the_former_app_has_seen_is_not_forgiven_at_a_power_on(board, server):
    update = try_update(server.url("/app.bin"))
    script = f"with open('main.py', 'w') as f: f.write({CRASH_IN_OTA_1!r})\n"
    run = board.run(script + update + "import machine\nmachine.reset()")
    assert run.labels == ("ota_0", "ota_1", "ota_0")
    run = board.run(update)
    assert run.output.startswith("failed-version:")
    assert not ota_board.slot_writes(run)


def test_a_power_cut_in_the_first_boot_is_no_failure(board, server):
    update = try_update(server.url("/app.bin"))
    confirm = "import ota\nota.rollback.cancel()\n"
    board.run(f"with open('main.py', 'w') as f: f.write({confirm!r})\n" + confirm)
    output(board, update)
    run = board.run("")  # the first boot of the new app, in which the power goes
    assert run.labels == ("ota_1",)
    run = board.run()
    assert run.labels == ("ota_0",)
    assert states(board) == ["VALID", "ABORTED"]
    assert output(board, update).startswith("wrote")


def test_another_version_is_installed_after_a_failed_one(updated, server):
    assert output(updated, try_update(server.url("/other.bin"))).startswith("wrote")
    assert states(updated) == ["VALID", "NEW"]


# --- guard -------------------------------------------------------------------------------------

UPDATE_THEN_RESET = "import machine\nmachine.reset()"


def first_boot(board, server, main):
    """Let ``main`` be the main.py in the first boot of NEW, and say what happened from there."""
    script = f"with open('main.py', 'w') as f: f.write({main!r})\n"
    script += try_update(server.url("/app.bin"), then=UPDATE_THEN_RESET)
    return board.run(script, wait_at_idle=True, timeout_s=5, max_boots=3)


def test_guard_resets_an_app_that_hangs_and_the_bootloader_rolls_back(board, server):
    main = "import ota\nprint('guarded', ota.rollback.guard(0.3))\nwhile ota.status.info: pass"
    run = first_boot(
        board, server, main.replace("while", "if ota.status.info()['running'] == 'ota_1':\n  while")
    )
    assert run.labels == ("ota_0", "ota_1", "ota_0")
    assert run.boots[1].output.endswith("guarded False\n") or "guarded False" in run.boots[1].output
    assert states(board) == ["VALID", "ABORTED"]


def test_guard_confirms_when_the_check_succeeds(board, server):
    main = """
import ota
tries = []
def check():
    tries.append(0)
    if len(tries) == 1:
        raise OSError("no network yet")
    return len(tries) > 2
print(ota.rollback.guard(30, check), len(tries))
print(ota.rollback.guard(30), "again")
import machine
machine.reset()
"""
    script = f"with open('main.py', 'w') as f: f.write({main!r})\n"
    script += try_update(server.url("/app.bin"), then=UPDATE_THEN_RESET)
    run = board.run(script, max_boots=3)
    assert run.labels == ("ota_0", "ota_1", "ota_1")
    assert run.boots[1].output == "True 3\nTrue again\n"
    assert states(board) == ["VALID", "VALID"]


def test_guard_resets_when_the_check_never_succeeds(board, server):
    main = "import ota\nprint(ota.rollback.guard(0.3, lambda: False))"
    run = first_boot(board, server, main)
    assert run.labels == ("ota_0", "ota_1", "ota_0")
    assert "True" not in run.boots[1].output
    assert run.boots[2].output == "True\n"


def test_after_cancel_the_watchdog_of_guard_does_not_bite(board, server):
    main = """
import ota, time
ota.rollback.guard(0.2)
ota.rollback.cancel()
time.sleep(0.5)
print("alive")
"""
    script = f"with open('main.py', 'w') as f: f.write({main!r})\n"
    script += try_update(server.url("/app.bin"), then=UPDATE_THEN_RESET)
    run = board.run(script)
    assert run.labels == ("ota_0", "ota_1")
    assert run.boots[1].output == "alive\n"


# --- status ------------------------------------------------------------------------------------


def test_info_tells_of_slots_table_and_otadata(updated):
    printed = output(updated, "import json, ota\nprint(json.dumps(ota.status.info()))")
    info = json.loads(printed)
    assert (info["running"], info["boot"], info["next"]) == ("ota_0", "ota_0", "ota_1")
    assert [slot["state"] for slot in info["slots"]] == ["VALID", "ABORTED"]
    assert [slot["micropython"] for slot in info["slots"]] == [
        "v1.26.1 on 2025-09-11",
        "v1.27.0 on 2025-09-11",
    ]
    assert [slot["digest"] for slot in info["slots"]] == [OLD[-32:].hex(), NEW[-32:].hex()]
    assert [slot["image_size"] for slot in info["slots"]] == [len(OLD), len(NEW)]
    assert all(slot["valid"] and slot["idf"] == "v5.4.2" for slot in info["slots"])
    assert [entry["label"] for entry in info["table"]] == [p.label for p in boards.OTA_TABLE]
    assert [(r["seq"], r["state"], r["slot"]) for r in info["otadata"]] == [
        (1, "VALID", "ota_0"),
        (2, "ABORTED", "ota_1"),
    ]
    assert [r.state_name for r in records(updated)] == ["VALID", "ABORTED"]


def test_status_prints_it(two_apps):
    two_apps.flash.erase(OTA_0.offset + 0x4000, 0x1000)
    printed = output(
        two_apps,
        "import ota.status\nota.status.status()\nprint(ota.status.info()['slots'][0]['problem'])",
    )
    lines = printed.splitlines()
    assert lines[0] == "Micropython v1.27.0 has booted from partition 'ota_1'."
    assert lines[1] == "Will boot from partition 'ota_1' on next reboot."
    assert lines[2] == "The next OTA partition for update is 'ota_0'."
    assert lines[3] == "The / filesystem is mounted from partition 'vfs'."
    assert "  ota_1      app      ota_1       0x50000    0x40000     262144" in lines
    assert any(line.startswith("Release -, ota 0.") for line in lines)
    assert lines[-1] == "its SHA-256 does not match"


def test_importing_rollback_costs_little(board):
    # The interpreter's table of names doubles now and then; that is not what is measured.
    script = """
import gc
class Names: pass
for i in range(400):
    setattr(Names, "n%d" % i, None)
del Names
gc.collect()
before = gc.mem_free()
import ota.rollback
gc.collect()
print(before - gc.mem_free())
"""
    assert int(output(board, script)) < 1536 * board.interpreter.word_size // 4
