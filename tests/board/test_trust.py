"""Keys, the counter, signed images, certificates and data partitions, on the virtual board."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import boards
import pytest
import releases
from mpota.formats.bundle import Member, write_tar
from mpota.formats.partition_table import Partition
from mpota.release import Content, sign_app
from mpota.signing import PrivateKey, public_to_pem
from mpota.virtual.board import Board, End, Run
from mpota.virtual.cuts import CutPoint, Scenario, all_points
from mpota.virtual.flash import CutMode
from releases import app, key, make, tree

INSTALL = "import ota; ota.release.install('/frozen/{}.bundle')"
KEYS = "import ota; print(' '.join(k[:8] for k in ota.keys.trusted()), ota.keys.counter())"
ADD = "import ota; ota.keys.add({!r})"
UPDATE = "import ota; ota.update.from_file('/frozen/app.bin', verbose=False, reboot=False)"
ROMFS = Partition("romfs", 1, 0x8F, 0xD0000, 0x10000)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return releases.board(tmp_path, table=(*boards.OTA_TABLE, ROMFS))


def put(board: Board, name: str, data: bytes) -> None:
    assert board.frozen is not None
    (board.frozen / name).write_bytes(data)


def install(board: Board, *contents: Content, keys: tuple[PrivateKey, ...] = (), **fields) -> Run:
    put(board, "x.bundle", make(*contents, keys=keys, **fields).to_bytes())
    return board.run(INSTALL.format("x"))


def trust(board: Board, *numbers: int) -> None:
    for number in numbers:
        put(board, "key.pem", public_to_pem(key(number).public))
        run = board.run("import ota; print(ota.keys.add(open('/frozen/key.pem').read()))")
        assert run.output.strip() == digest(number), run.console


def digest(number: int) -> str:
    return key(number).public.digest.hex()


def short(*numbers: int) -> str:
    return " ".join(digest(number)[:8] for number in numbers)


def fill(board: Board, kib: int) -> None:
    """Take so much of the board's file system of 256 KiB."""
    run = board.run(
        f"with open('/filler', 'wb') as f:\n    for _ in range({kib}): f.write(b'x' * 1024)"
    )
    assert not run.traceback


def test_up_to_three_keys_as_pem_der_or_digest(board: Board) -> None:
    trust(board, 0)
    put(board, "key.der", key(1).public.to_der())
    board.run("import ota; ota.keys.add(open('/frozen/key.der', 'rb').read())")
    board.run(f"import ota; ota.keys.add({digest(2)!r})")
    assert board.run(KEYS).output.strip() == f"{short(0, 1, 2)} 0"
    run = board.run(f"import ota; ota.keys.add({'a' * 64!r})")
    assert "4 keys would be trusted" in run.traceback
    board.run(f"import ota; ota.keys.retire({digest(1)!r})")
    assert board.run(KEYS).output.strip() == f"{short(0, 2)} 0"


@pytest.mark.parametrize(
    "text",
    ["", "hello", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "f" * 63],
)
def test_what_is_no_key_is_not_trusted(board: Board, text: str) -> None:
    run = board.run(f"import ota; ota.keys.add({text!r})")
    assert "Error" in run.traceback
    assert board.run(KEYS).output.strip() == "0"


def test_the_last_key_can_only_be_cleared(board: Board) -> None:
    trust(board, 0)
    run = board.run(f"import ota; ota.keys.retire({digest(0)!r})")
    assert "0 keys would be trusted" in run.traceback
    board.run("import ota; ota.keys.clear()")
    assert board.run(KEYS).output.strip() == "0"


NVS = "from esp32 import NVS; n = NVS('ota'); "
BLOBS = ("trust", "trust-copy")
DAMAGE, LOSS = "n.set_blob({!r}, b'\\x02'); ", "n.erase_key({!r}); "


@pytest.mark.parametrize("harm", [DAMAGE, LOSS], ids=["damaged", "lost"])
@pytest.mark.parametrize("blob", BLOBS)
def test_damaged_keys_do_not_count_as_none(board: Board, blob: str, harm: str) -> None:
    trust(board, 0)
    board.run(
        NVS
        + "".join((harm if name == blob else DAMAGE).format(name) for name in BLOBS)
        + "n.commit()"
    )
    put(board, "app.bin", boards.app("v1.27.0"))
    put(board, "x.bundle", make(app(), keys=(key(),)).to_bytes())
    for attempt in (INSTALL.format("x"), UPDATE):
        run = board.run(attempt)
        assert "keys in NVS are damaged" in run.traceback, run.console
        assert run.labels == ("ota_0",)


@pytest.mark.parametrize("harm", [DAMAGE, LOSS], ids=["damaged", "lost"])
@pytest.mark.parametrize("blob", BLOBS)
def test_one_intact_copy_of_the_keys_counts_and_the_next_change_mends_the_other(
    board: Board, blob: str, harm: str
) -> None:
    trust(board, 0)
    assert board.run(NVS + harm.format(blob) + "n.commit()").traceback == ""
    put(board, "app.bin", boards.app("v1.27.0"))
    assert "not signed" in board.run(UPDATE).traceback
    assert board.run(KEYS).output.strip() == f"{short(0)} 0"
    trust(board, 1)
    other = BLOBS[blob == BLOBS[0]]
    board.run(NVS + LOSS.format(other) + "n.commit()")
    assert board.run(KEYS).output.strip() == f"{short(0, 1)} 0"


def test_where_nvs_has_no_room_there_are_no_keys_and_no_second_chances(tmp_path: Path) -> None:
    table = (boards.OTADATA, boards.OTA_0, boards.OTA_1, boards.VFS)
    flash = boards.flash(table=table)
    none, full = Board(flash), releases.board(tmp_path)
    none.run()
    none.frozen = full.frozen
    full.flash.erase(boards.NVS.offset, boards.NVS.size)
    fill = "for i in range(999): n.set_i32(str(i), i)"
    fill = f"from esp32 import NVS; n = NVS('app')\n{fill}\nn.commit()"
    assert "NOT_ENOUGH_SPACE" in full.run(fill).traceback
    put(full, "app.bin", boards.app("v1.27.0"))
    for board, name in ((none, "NOT_INITIALIZED"), (full, "NOT_ENOUGH_SPACE")):
        assert name in board.run(ADD.format("a" * 64)).traceback
        assert board.run(KEYS).output.strip() == "0"
        run = board.run(UPDATE + "\nimport machine; machine.reset()")
        assert run.labels == ("ota_0", "ota_1"), run.console
        # It was not confirmed, but could be forgiven if that could be noted.
        run = board.run(UPDATE)
        assert "has failed on this board before" in run.traceback, run.console


def test_a_manifest_changes_keys_when_it_is_confirmed(board: Board) -> None:
    trust(board, 0)
    silent = releases.MAIN.replace("ota.rollback.cancel()", "")
    run = install(
        board, app(), tree("2", silent), keys=(key(),), counter=4,
        add_keys=(digest(1),), retire_keys=(digest(0),),
    )  # fmt: skip
    assert "runs v1.27.0 2" in run.output, run.console
    # Not confirmed, rolled back: nothing of it came true.
    assert board.run(KEYS).output.strip() == f"{short(0)} 0"
    run = install(
        board, app("v1.28.0"), tree("3"), keys=(key(),), counter=4,
        add_keys=(digest(1),), retire_keys=(digest(0),),
    )  # fmt: skip
    assert "runs v1.28.0 3" in run.output, run.console
    assert board.run(KEYS).output.strip() == f"{short(1)} 4"
    run = install(board, app(), keys=(key(0),), counter=5)
    assert f"signed by key {digest(0)[:16]}, which was retired" in run.traceback
    assert "runs v1.27.0" in install(board, app(), keys=(key(1),), counter=5).output


def test_going_back_does_not_bring_back_a_retired_key(board: Board) -> None:
    trust(board, 0)
    install(board, app(), tree("2"), keys=(key(),), version="2.0", add_keys=(digest(1),))
    install(board, app("v1.28.0"), tree("3"), keys=(key(),), retire_keys=(digest(1),))
    assert board.run(KEYS).output.strip() == f"{short(0)} 0"
    run = board.run("import ota, machine; ota.rollback.force(); machine.reset()")
    assert "runs v1.27.0 2" in run.output, run.console  # it confirms itself, again
    assert board.run(KEYS).output.strip() == f"{short(0)} 0"


def test_a_manifest_of_keys_alone_is_in_force_at_once(board: Board) -> None:
    trust(board, 0)
    run = install(board, keys=(key(),), chip=None, add_keys=(digest(1),), counter=9)
    assert run.labels == ("ota_0",), run.console  # no reset
    assert board.run(KEYS).output.strip() == f"{short(0, 1)} 9"


def test_keys_change_by_a_trusted_manifest_only(board: Board) -> None:
    run = install(board, keys=(key(),), chip=None, add_keys=(digest(1),))
    assert "this board has none that could allow it" in run.traceback
    assert board.run(KEYS).output.strip() == "0"


def test_the_counter_stays_when_going_back(board: Board) -> None:
    assert "runs" in install(board, app(), tree("2"), counter=3).output
    board.run("import ota, machine; ota.rollback.force(); machine.reset()")
    run = install(board, app("v1.28.0"), counter=2)
    assert "counter 2, this board has had 3" in run.traceback


def test_a_signed_image_is_taken_where_keys_are(board: Board) -> None:
    trust(board, 0)
    image = boards.app("v1.27.0")
    signed = sign_app(image, "app", (key(0),))
    cases = {
        "plain": (image, "not signed"),
        "other": (sign_app(image, "app", (key(1),)), "does not trust"),
        "forged": (signed[:-4096] + sign_app(boards.app("v1.28.0"), "app", (key(0),))[-4096:],
                   "belongs to other content"),
        "padded": (image.ljust(0x5000, b"\xff"), "not signed"),
    }  # fmt: skip
    for name, (data, words) in cases.items():
        put(board, "app.bin", data)
        run = board.run(UPDATE)
        assert words in run.traceback, f"{name}: {run.console}"
        assert board.run().labels == ("ota_0",), name
    put(board, "app.bin", signed)
    run = board.run(UPDATE + "\nimport machine; machine.reset()")
    assert run.labels == ("ota_0", "ota_1"), run.console


def test_a_signed_image_in_a_bundle_must_be_whole(board: Board) -> None:
    """Whose key it is, is the manifest's business: Secure Boot may use others than updates do."""
    trust(board, 0)
    signed = sign_app(boards.app("v1.27.0"), "app", (key(1),))
    broken = signed[:-3000] + bytes([signed[-3000] ^ 1]) + signed[-2999:]
    run = install(board, Content("app", "app.bin", broken), keys=(key(0),))
    assert "its CRC-32 does not fit" in run.traceback, run.console
    assert board.run().labels == ("ota_0",)
    run = install(board, Content("app", "app.bin", signed), keys=(key(0),))
    assert run.labels == ("ota_0", "ota_1"), run.console


def test_certificates_come_and_go_with_the_release(board: Board) -> None:
    pem = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    main = """
import ota
ota.rollback.cancel()
path = ota.files.certs()
print("certs", open(path, "rb").read() if path else None)
"""
    board.run(f"with open('/main.py', 'w') as f: f.write({main!r})")
    assert board.run().output == "certs None\n"
    run = install(board, app(), tree("2", main), Content("certs", "ca.pem", pem))
    assert run.output == f"certs {pem!r}\n", run.console
    back = board.run("import ota, machine; ota.rollback.force(); machine.reset()")
    assert (back.labels, back.output) == (("ota_1", "ota_0"), "certs None\n")


def test_a_data_partition_is_written(board: Board) -> None:
    data = bytes(range(256)) * 40
    run = install(board, tree("2"), Content("data", "romfs.bin", data, "romfs"))
    assert "runs v1.26.1 2" in run.output, run.console
    assert board.flash.snapshot()[ROMFS.offset : ROMFS.offset + len(data)] == data
    run = install(board, Content("data", "romfs.bin", b"x" * 0x10001, "romfs"))
    assert "the data is 65537 bytes, romfs holds 65536" in run.traceback


def test_a_full_disk_is_found_before_anything_is_switched(board: Board) -> None:
    big = write_tar([Member("main.py", b"#" * 100000)])
    fill(board, 140)
    run = install(board, app(), Content("files", "files.tar", big))
    assert "the file system has" in run.traceback, run.console
    slot = slice(boards.OTA_1.offset, boards.OTA_1.offset + boards.SLOT_SIZE)
    assert set(board.flash.snapshot()[slot]) == {0xFF}  # nor was the app written
    assert board.run().labels == ("ota_0",)


def test_without_room_for_a_record_nothing_starts(board: Board) -> None:
    fill(board, 225)
    for contents in ((app(),), (app(), tree("1")), (Content("certs", "ca.pem", b"-----"),)):
        run = install(board, *contents)
        assert "the file system has 0 left" in run.traceback, run.console
        assert run.operations == ()


def test_a_new_tree_needs_no_room_for_that_of_the_slot_it_replaces(board: Board) -> None:
    """Release after release goes in where three trees would not fit."""

    def release(number: int) -> Content:
        pad = f"# {number}\n".encode() * 8000  # some 44 KiB of 240
        return Content("files", "files.tar", write_tar([
            Member("code.py", f"VERSION = {number}\n".encode()), Member("pad.py", pad),
            Member("main.py", releases.MAIN.encode()),
        ]))  # fmt: skip

    fill(board, 60)
    for number in range(1, 6):
        run = install(board, app(f"v1.{30 + number}.0"), release(number))
        assert f"runs v1.{30 + number}.0 {number}" in run.output, run.console
    assert board.run("import os; print(len(os.listdir('/.ota/trees')))").output == "2\n"


def test_a_board_without_boot_line_gets_it_once(board: Board) -> None:
    board.run("with open('/boot.py', 'w') as f: f.write('print(\"mine\")\\n')")
    run = install(board, tree("1"))
    assert "mine\nruns v1.26.1 1" in run.output, run.console
    install(board, tree("2"), version="3.0")
    text = board.run("print(open('/boot.py').read())").output
    assert text.count("ota.boot.activate()") == 1


def test_a_trees_own_boot_py_runs(board: Board) -> None:
    first = tree("1", **{"boot.py": "import ota.boot; ota.boot.activate()\nprint('tree boot')\n"})
    run = install(board, first)
    assert run.output.count("tree boot") == 1, run.console
    assert "runs v1.26.1 1" in run.output


def test_a_tree_without_main_leaves_the_boards_own(board: Board) -> None:
    board.run("with open('/main.py', 'w') as f: f.write('import code; print(code.VERSION)\\n')")
    files = write_tar([Member("code.py", b"VERSION = 'from the tree'\n")])
    run = install(board, Content("files", "files.tar", files))
    assert run.output.splitlines()[-1] == "from the tree", run.console


def test_files_alone_need_no_second_slot(tmp_path: Path) -> None:
    factory = Partition("factory", 0, 0, 0x10000, boards.SLOT_SIZE)
    board = releases.board(tmp_path, table=(boards.NVS, factory, boards.VFS))
    run = install(board, tree("1"), counter=2)
    assert "runs v1.26.1 1" in run.output, run.console
    run = board.run()
    assert (run.labels, "runs v1.26.1 1" in run.output) == (("factory",), True), run.console
    assert board.run(KEYS).output.strip() == "2"
    run = install(board, app(), counter=3)
    assert "no OTA slot besides factory" in run.traceback
    assert run.operations == ()


# --- power cuts --------------------------------------------------------------------------------

# What the board trusts, then what it makes of each image.
JUDGE = """
import ota
print(*[k[:8] for k in ota.keys.trusted()], ota.keys.counter())
for name in ('plain', '0', '1', 'stranger'):
    try:
        ota.update.from_file('/frozen/%s.bin' % name, verbose=False, reboot=False)
        print(name, 'taken')
    except ota.errors.ReleaseError:
        print(name, 'refused')
"""
RETIRE = "import ota; ota.keys.retire({!r})"
CLEAR = "import ota; ota.keys.clear()"


class Story(NamedTuple):
    """``play``: the script to cut, None: the boot in which a release is confirmed."""

    prepare: Callable[[Board], object]
    play: str | None
    old: str  # what `JUDGE` prints before it
    new: str


def forget_all(board: Board) -> None:
    board.flash.erase(boards.NVS.offset, boards.NVS.size)


def lose(board: Board, blob: str) -> None:
    """Without the copy: as the first versions of this package stored the keys."""
    trust(board, 0)
    board.run(NVS + LOSS.format(blob) + "n.commit()")


def take_release(board: Board, **fields) -> None:
    """Until it is about to boot for the first time."""
    trust(board, 0)
    put(board, "x.bundle", make(app(), tree("2"), keys=(key(),), counter=4, **fields).to_bytes())
    run = board.run(INSTALL.format("x"), max_boots=1)
    assert run.end is End.TOO_MANY_BOOTS, run.console


def take_keys(board: Board) -> None:
    take_release(board, add_keys=(digest(1),), retire_keys=(digest(0),))


def verdict(*numbers: int, counter: int = 0) -> str:
    """What `JUDGE` is to print where these keys are trusted."""
    lines = [f"{short(*numbers)} {counter}".strip()]
    for name in ("plain", "0", "1", "stranger"):
        is_taken = not numbers or name in [str(number) for number in numbers]
        lines.append(f"{name} {'taken' if is_taken else 'refused'}")
    return "\n".join(lines) + "\n"


def story(name: str) -> Story:
    add, retire = ADD.format(digest(1)), RETIRE.format(digest(0))
    none, first, second, both = verdict(), verdict(0), verdict(1), verdict(0, 1)
    return {
        "keys-first": Story(forget_all, ADD.format(digest(0)), none, first),
        "keys-second": Story(lambda board: trust(board, 0), add, first, both),
        "keys-migrate": Story(lambda board: lose(board, "trust-copy"), add, first, both),
        "keys-mend": Story(lambda board: lose(board, "trust"), add, first, both),
        "keys-retire": Story(lambda board: trust(board, 0, 1), retire, both, second),
        "keys-clear": Story(lambda board: trust(board, 0), CLEAR, first, none),
        "confirm-counter": Story(take_release, None, first, verdict(0, counter=4)),
        "confirm-keys": Story(take_keys, None, first, verdict(1, counter=4)),
    }[name]


STORIES = [
    *("keys-first", "keys-second", "keys-migrate", "keys-mend", "keys-retire", "keys-clear"),
    *("confirm-counter", "confirm-keys"),
]


def points_of(config: pytest.Config, made: Scenario, board: Board) -> list[CutPoint]:
    one = config.getoption("--cut")
    if one:
        return [point for point in [CutPoint.parse(one)] if point.scenario == made.name]
    # What AFTER leaves is what BEFORE leaves at the next operation.
    modes = tuple(CutMode) if config.getoption("--all-cuts") else (CutMode.TORN, CutMode.AFTER)
    points = all_points(made.name, made.record(board), modes)
    operations = board.flash.operations
    nvs = range(boards.NVS.offset, boards.NVS.end)  # test_bundles.py has the others
    return [point for point in points if operations[point.op].offset in nvs]


@pytest.mark.parametrize("name", STORIES)
def test_no_power_cut_disarms_the_board(
    board: Board,
    name: str,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    """Each operation on NVS; ``--all-cuts`` in each way, ``--cut keys-second:5:after`` one."""
    told = story(name)
    image = boards.app("v1.29.0")
    put(board, "plain.bin", image)
    for number, signed in enumerate(("0.bin", "1.bin", "stranger.bin")):
        put(board, signed, sign_app(image, "app", (key(number),)))
    told.prepare(board)
    made = Scenario(name, board.flash.snapshot(), lambda board: board.run(told.play))
    points = points_of(request.config, made, board)
    if not points:
        pytest.skip(f"--cut names another scenario than {name}")
    seen = dict.fromkeys((told.old, told.new), 0)
    for point in points:
        made.cut(board, point)
        left = board.flash.snapshot()
        run = board.run(JUDGE)
        assert run.output in seen, f"--cut {point}\n{run.console}{run.traceback}"
        seen[run.output] += 1
        board.flash.restore(left)
        board.run(told.play)
        run = board.run(KEYS)
        assert run.output.strip() in told.new.splitlines(), (
            f"--cut {point}\n{run.console}{run.traceback}"
        )
    record_property("power cuts", len(points))
    assert len(points) == 1 or all(seen.values()), seen
