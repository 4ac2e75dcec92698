"""Keys, the counter, signed images, certificates and data partitions, on the virtual board."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mpota.formats.manifest import Manifest
from mpota.formats.partition_table import Partition
from mpota.formats.tar import Member, write_tar
from mpota.release.build import Content, Contents, data_content, publish, sign_app
from mpota.release.signing import PrivateKey, public_to_pem
from mpota.virtual.board import Board, End, Run
from mpota.virtual.cuts import ALL_MODES, CutPoint, Recording, Scenario
from mpota.virtual.flash import CutMode

from tests.support import boards, ota_board, releases
from tests.support.cuts import Cuts
from tests.support.releases import app, key, make, tree

INSTALL = "import ota; ota.release.install('/frozen/{}.bundle')"
KEYS = "import ota; print(' '.join(k[:8] for k in ota.keys.trusted()), ota.keys.counter())"
ADD = "import ota; ota.keys.add({!r})"
FORCE = "import ota, machine; ota.rollback.force(); machine.reset()"
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
    assert "no signed release" in board.run(UPDATE).traceback
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
    first = {"keys": (key(),), "version": "2.0", "counter": 1, "add_keys": (digest(1),)}
    install(board, app(), tree("2"), **first)
    assert board.run(KEYS).output.strip() == f"{short(0, 1)} 1"
    install(board, app("v1.28.0"), tree("3"), keys=(key(),), counter=2, retire_keys=(digest(1),))
    assert board.run(KEYS).output.strip() == f"{short(0)} 2"
    run = board.run(FORCE)
    assert "runs v1.27.0 2" in run.output, run.console  # it confirms itself, again
    assert board.run(KEYS).output.strip() == f"{short(0)} 2"
    # Nor does a replay, or another release that adds it, whoever signed that.
    assert "counter 1, this board has had 2" in install(board, app(), tree("2"), **first).traceback
    for counter, words in ((2, "a higher one is due"), (3, "a key would come back")):
        run = install(board, keys=(key(),), counter=counter, chip=None, add_keys=(digest(1),))
        assert words in run.traceback, run.console
        assert run.operations == ()
    assert board.run(KEYS).output.strip() == f"{short(0)} 2"
    trust(board, 1)  # by hand it may
    assert board.run(KEYS).output.strip() == f"{short(0, 1)} 2"


ON_REQUEST = """
import os, sys, ota, code
print("runs", sys.version.split()[2], code.VERSION, code.__file__)
if "go" in os.listdir("/"):
    ota.rollback.cancel()
"""


@pytest.mark.parametrize("later", [9, 10, 11])
def test_a_release_that_is_confirmed_late_brings_no_keys_back(board: Board, later: int) -> None:
    """It was rolled back; then its key was retired, and then it is started by hand after all."""
    trust(board, 0)
    rolled_back = {"keys": (key(),), "counter": 10, "add_keys": (digest(1),)}
    assert "runs v1.27.0 2" in install(board, app(), tree("2", ON_REQUEST), **rolled_back).output
    assert "runs" not in board.run().output  # not confirmed: the former app
    install(
        board, tree("3"), keys=(key(),), counter=later, chip=None, version="2.1",
        retire_keys=(digest(1),),
    )  # fmt: skip
    assert board.run(KEYS).output.strip() == f"{short(0)} {later}"
    run = board.run(
        "open('/go', 'w').close()\n"
        "import machine\nfrom esp32 import Partition\n"
        "Partition.find(Partition.TYPE_APP, label='ota_1')[0].set_boot(); machine.reset()"
    )
    assert "runs v1.27.0 2" in run.output, run.console
    assert board.run(KEYS).output.strip() == f"{short(0)} {max(later, 10)}"
    assert board.run().labels == ("ota_1",)


def test_thirty_two_retired_keys_are_remembered_and_no_more(board: Board) -> None:
    trust(board, 0)
    run = board.run("import ota\nfor i in range(32): ota.keys.retire('%064x' % i)")
    assert not run.traceback, run.console
    run = board.run(f"import ota; ota.keys.retire({'e' * 64!r})")
    assert "33 keys would be retired, 0 to 32 can be" in run.traceback
    before = board.flash.snapshot()
    fields = {"keys": (key(),), "chip": None, "counter": 5}
    run = install(board, retire_keys=("e" * 64,), add_keys=(digest(1),), **fields)
    assert "33 keys would be retired" in run.traceback, run.console
    assert (run.operations, board.flash.snapshot()) == ((), before)
    for number in (0, 31):
        run = install(board, add_keys=(f"{number:064x}",), **fields)
        assert "a key would come back" in run.traceback, run.console
    board.run("import ota; ota.keys.clear()")
    trust(board, 0)
    run = install(board, add_keys=(f"{31:064x}",), **fields)
    assert "a key would come back" in run.traceback, run.console  # clear() does not forget
    board.run(ADD.format(f"{7:064x}"))
    install(board, retire_keys=("e" * 64,), **fields)
    assert board.run(KEYS).output.strip() == f"{short(0)} {'0' * 8} 5"
    run = install(board, retire_keys=("d" * 64,), keys=(key(),), chip=None, counter=6)
    assert "33 keys would be retired" in run.traceback, run.console


def format_1(trusted: tuple[int, ...], retired: tuple[int, ...], counter: int) -> bytes:
    """What version 0.1 of the package has in NVS."""
    head = struct.pack("<BIBB", 1, counter, len(trusted), len(retired))
    return head + b"".join(bytes.fromhex(digest(number)) for number in trusted + retired)


def test_what_the_first_version_stored_is_read_and_converted(board: Board) -> None:
    blob = format_1((0,), (1,), 7)
    board.run(NVS + "".join(f"n.set_blob({name!r}, {blob!r}); " for name in BLOBS) + "n.commit()")
    assert board.run(KEYS).output.strip() == f"{short(0)} 7"
    run = install(board, app(), keys=(key(1),), counter=8)
    assert f"signed by key {digest(1)[:16]}, which was retired" in run.traceback
    run = install(board, app(), keys=(key(0),), counter=8, add_keys=(digest(1),))
    assert "a key would come back" in run.traceback, run.console
    read = (
        NVS + "b = bytearray(2000)\nfor t in ('trust', 'trust-copy'): n.get_blob(t, b); print(b[0])"
    )
    assert board.run(read).output == "1\n1\n"  # reading changes nothing
    trust(board, 2)
    assert board.run(read).output == "2\n2\n"
    assert board.run(KEYS).output.strip() == f"{short(0, 2)} 7"
    run = install(board, app(), keys=(key(0),), counter=8, add_keys=(digest(1),))
    assert "a key would come back" in run.traceback, run.console


def test_images_without_a_release_are_allowed_on_the_board_alone(board: Board) -> None:
    ask = "import ota; print(ota.keys.load().takes_images)"
    trust(board, 0)
    assert board.run(ask).output == "False\n"
    board.run("import ota; ota.keys.allow_images(True)")
    assert board.run(ask).output == "True\n"
    trust(board, 1)
    install(board, keys=(key(),), chip=None, counter=3, retire_keys=(digest(1),))
    assert board.run(ask).output == "True\n"
    board.run("import ota; ota.keys.allow_images(False)")
    assert board.run(ask).output == "False\n"
    board.run("import ota; ota.keys.allow_images(True); ota.keys.clear()")
    assert board.run(ask).output == "False\n"
    assert board.run(KEYS).output.strip() == "3"


# --- ways in

# Each tries to bring "x.bundle" in: from a file, by URL, as bytes.
WAYS = {
    "install a file": "ota.release.install('/frozen/x.bundle', reboot=False)",
    "install a URL": "ota.release.install(ROOT + '/x.bundle', reboot=False)",
    "install a manifest": "ota.release.install('/frozen/public/manifest.json', reboot=False)",
    "install a published manifest": "ota.release.install(ROOT + '/manifest.json', reboot=False)",
    "update from a file": "ota.update.from_file('/frozen/x.bundle', verbose=False, reboot=False)",
    "update from a URL": "ota.update.from_file(ROOT + '/x.bundle', verbose=False, reboot=False)",
    "update from a stream": """
with ota.update.OTA(verbose=False) as o:
    o.from_stream(open('/frozen/x.bundle', 'rb'))""",
    "write pieces": """
with ota.update.OTA(verbose=False) as o, open('/frozen/x.bundle', 'rb') as f:
    while True:
        data = f.read(1000)
        if not data:
            break
        o.write(data)""",
    "in an asyncio program": """
import asyncio
asyncio.run(ota.update.fetch(ROOT + '/x.bundle', verbose=False, reboot=False))""",
    "named by a JSON file": "ota.update.from_json(ROOT + '/x.json', verbose=False, reboot=False)",
    "forced": "ota.release.install('/frozen/x.bundle', reboot=False, force=True)",
}
STRANGERS = {
    "unsigned": ((), "unsigned"),
    "foreign": ((2,), "untrusted"),
    "retired": ((1,), "retired-key"),
}


@pytest.mark.parametrize("signer", STRANGERS)
@pytest.mark.parametrize("way", WAYS)
def test_no_way_in_costs_a_keyed_board_anything(
    board: Board, tmp_path: Path, way: str, signer: str, hostile: Callable[..., None]
) -> None:
    """Nothing is erased or written before a trusted key was found: the fallback stays whole."""
    numbers, code = STRANGERS[signer]
    keys = tuple(key(number) for number in numbers)
    trust(board, 0, 1)
    board.run(f"import ota; ota.keys.retire({digest(1)!r})")
    (tmp_path / "romfs.img").write_bytes(b"evil" * 5000)
    contents = Contents((app(), tree("2"), data_content("romfs", tmp_path / "romfs.img")), "esp32")
    fields: dict[str, Any] = {"counter": 9, "version": "3.0"}
    bundle = make(*contents.contents, keys=keys, **fields).to_bytes()
    put(board, "x.bundle", bundle)
    payloads = contents.payloads(as_url=True)
    publish(
        tmp_path / "public", Manifest("demo", payloads=payloads, chip="esp32", **fields), contents,
        keys,
    )  # fmt: skip
    pointer = {"firmware": "x.bundle", "sha": hashlib.sha256(bundle).hexdigest(),
               "length": len(bundle)}  # fmt: skip
    answers = {
        f"/{path.name}": ota_board.answer(path.read_bytes())
        for path in (tmp_path / "public").iterdir()
    } | {
        "/x.bundle": ota_board.answer(bundle),
        "/x.json": ota_board.answer(json.dumps(pointer).encode()),
    }
    with ota_board.serving(answers) as server:
        before = board.flash.snapshot()
        script = WAYS[way].strip().replace("ROOT", repr(server.root)).replace("\n", "\n    ")
        run = board.run(
            f"import ota\ntry:\n    {script}\n    print('TAKEN')\n"
            "except ota.OTAError as error:\n    print(error.code)"
        )
        assert (run.output.split()[-1:], run.traceback) == ([code], ""), run.console
        assert run.operations == ()
        assert board.flash.snapshot() == before
    hostile()


# --- name, version and counter


def test_a_lower_version_needs_a_manifest_that_allows_it(board: Board) -> None:
    trust(board, 0)
    fields = {"keys": (key(),), "counter": 3}
    assert "runs" in install(board, app(), tree("2"), version="2.0", **fields).output
    older = app("v1.28.0")
    run = install(board, older, version="2.0-rc1", **fields)
    assert "the release is 2.0-rc1, this board has confirmed 2.0" in run.traceback, run.console
    assert "--allow-downgrade" in run.traceback
    assert run.operations == ()
    forced = board.run(INSTALL.format("x").replace(")", ", force=True)"))
    assert "this board has confirmed 2.0" in forced.traceback, forced.console
    assert install(board, app(), version="2.0", **fields).traceback == ""  # the same is not lower
    run = install(board, app(), tree("2"), version="1.9", allow_downgrade=True, **fields)
    assert "runs v1.27.0 2" in run.output, run.console
    run = install(board, older, version="1.8", **fields)
    assert "this board has confirmed 1.9" in run.traceback, run.console


def wipe_files(board: Board) -> None:
    board.flash.erase(boards.VFS.offset, boards.VFS.size)
    board.run()


def flash_by_cable(board: Board) -> None:
    image = boards.app("v1.31.0")
    for part in (boards.OTA_0, boards.OTA_1):
        board.flash.erase(part.offset, part.size)
        board.flash.write(part.offset, image)
    board.run("import ota; ota.confirm.sweep()")  # what belonged to the apps that were there


def update_image(board: Board) -> None:
    put(board, "app.bin", boards.app("v1.30.0"))
    run = board.run(UPDATE + "\nimport machine; machine.reset()")
    assert len(run.labels) == 2, run.console
    board.run("import ota; ota.rollback.cancel()")


def install_simple(board: Board) -> None:
    """The JSON of micropython-esp32-ota, as a release: no name, no counter."""
    image = boards.app("v1.30.0")
    put(board, "app.bin", image)
    sha = hashlib.sha256(image).hexdigest()
    simple = {"firmware": "app.bin", "sha": sha, "length": len(image)}
    put(board, "simple.json", json.dumps(simple).encode())
    run = board.run("import ota; ota.release.install('/frozen/simple.json')")
    assert "counter 0, this board has had 5" in run.traceback, run.console


def take(*contents: Content, **fields: Any) -> Callable[[Board], object]:
    def play(board: Board) -> None:
        given = {"keys": (key(),), "counter": 5, "version": "2.0"} | fields
        assert not install(board, *contents, **given).traceback

    return play


def not_confirmed(board: Board) -> None:
    take(app("v1.29.0"), tree("4", "print('silent')"), version="2.5", counter=8)(board)
    board.run()  # back


LATER = {
    "nothing": lambda board: None,
    "an app": take(app("v1.28.0")),
    "files": take(tree("3"), chip=None),
    "data": take(Content("data", "romfs.bin", b"x" * 9000, "romfs"), chip=None),
    "certs": take(Content("certs", "ca.pem", b"-----"), chip=None),
    "an image": update_image,
    "the other form of manifest": install_simple,
    "what is not confirmed": not_confirmed,
    "a way back": lambda board: board.run(FORCE),
    "an app by cable": flash_by_cable,
    "no files any more": wipe_files,
}


@pytest.mark.parametrize("what", LATER)
def test_name_version_and_counter_outlive_what_is_installed(board: Board, what: str) -> None:
    """Without keys, where a board takes all of it."""
    main = "import sys, ota; print('runs', sys.version.split()[2], 0); ota.rollback.cancel()"
    board.run(f"with open('/main.py', 'w') as f: f.write({main!r})")
    for version in ("2.0", "2.0"):
        assert "runs" in install(board, app(), tree("2"), version=version, counter=5).output
    LATER[what](board)
    cases = {
        "this board has 'demo'": {"name": "other", "counter": 9},
        "this board has confirmed 2.0": {"version": "1.9", "counter": 9},
        "this board has had 5": {"version": "2.0", "counter": 4},
    }
    for words, fields in cases.items():
        run = install(board, app("v1.30.0"), **fields)
        assert words in run.traceback, run.console
        assert run.operations == ()
    run = install(board, app("v1.32.0"), tree("5"), version="2.1", counter=9)
    assert "runs v1.32.0 5" in run.output, run.console


def test_keys_alone_are_no_version_of_the_product(board: Board) -> None:
    trust(board, 0)
    assert "runs" in install(board, app(), tree("2"), keys=(key(),), counter=1).output
    install(board, keys=(key(),), chip=None, version="9.0", counter=2, add_keys=(digest(1),))
    assert board.run(KEYS).output.strip() == f"{short(0, 1)} 2"
    run = install(board, app("v1.28.0"), tree("3"), keys=(key(),), version="2.1", counter=3)
    assert "runs v1.28.0 3" in run.output, run.console


def test_what_the_first_version_knew_of_a_release_counts(board: Board) -> None:
    """Its name and version stood in the file system alone."""
    assert "runs" in install(board, app(), tree("2"), counter=5).output
    board.run(NVS + "".join(LOSS.format(name) for name in BLOBS) + "n.commit()")
    assert "this board has 'demo'" in install(board, app(), name="other").traceback
    assert "this board has confirmed 2.0" in install(board, app(), version="1").traceback


def test_without_nvs_a_release_is_confirmed_all_the_same(tmp_path: Path) -> None:
    """There are no keys then, and nothing that a counter could hold off."""
    table = (boards.OTADATA, boards.OTA_0, boards.OTA_1, boards.VFS)
    board = Board(boards.flash(table=table))
    board.run()
    board.frozen = releases.board(tmp_path).frozen
    run = install(board, app(), tree("2"), counter=5)
    assert ("runs v1.27.0 2" in run.output, run.traceback) == (True, ""), run.console
    assert board.run().labels == ("ota_1",)
    update_image(board)  # nor does an image without a name take it away
    assert "this board has confirmed 2.0" in install(board, app(), version="1").traceback


def test_the_first_version_takes_a_release_that_uses_nothing_new(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    archive = subprocess.run(
        ["git", "archive", "f14c7d7", "device/ota"], cwd=root, capture_output=True, check=False
    )
    if archive.returncode:
        pytest.skip("the history of the repository is not there")
    board = boards.formatted()
    board.frozen = tmp_path
    subprocess.run(
        ["tar", "-x", "-C", tmp_path, "--strip-components=1"], input=archive.stdout, check=True
    )
    trust(board, 0)
    run = install(
        board, app().compressed(), tree("2"), keys=(key(),), counter=233366400,
        add_keys=(digest(1),),
    )  # fmt: skip
    assert "runs v1.27.0 2" in run.output, run.console
    assert board.run(KEYS).output.strip() == f"{short(0, 1)} 233366400"
    run = install(board, app("v1.28.0"), keys=(key(),), counter=233366401, allow_downgrade=True)
    assert "manifest has format 2, known is 1" in run.traceback


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


def test_a_signed_image_is_taken_where_keys_are_and_images_allowed(board: Board) -> None:
    trust(board, 0)
    board.run("import ota; ota.keys.allow_images(True)")
    image = boards.app("v1.27.0")
    signed = sign_app(image, "app", (key(0),))
    cases = {
        "plain": (image, "not signed"),
        "other": (sign_app(image, "app", (key(1),)), "does not trust"),
        "forged": (signed[:-4096] + sign_app(boards.app("v1.28.0"), "app", (key(0),))[-4096:],
                   "not the one that its signature is for"),
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
if ota.keys.trusted():
    ota.keys.allow_images(True)
for name in ('plain', '0', '1', 'stranger'):
    try:
        ota.release.install('/frozen/%s.bundle' % name, reboot=False)
        print(name, 'taken')
    except ota.base.ReleaseError:
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


def store_format_1(board: Board) -> None:
    """Both copies as version 0.1 of the package stored them."""
    blob = format_1((0,), (), 0)
    board.run(NVS + "".join(f"n.set_blob({name!r}, {blob!r}); " for name in BLOBS) + "n.commit()")


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
        "keys-convert": Story(store_format_1, add, first, both),
        "keys-mend": Story(lambda board: lose(board, "trust"), add, first, both),
        "keys-retire": Story(lambda board: trust(board, 0, 1), retire, both, second),
        "keys-clear": Story(lambda board: trust(board, 0), CLEAR, first, none),
        "confirm-counter": Story(take_release, None, first, verdict(0, counter=4)),
        "confirm-keys": Story(take_keys, None, first, verdict(1, counter=4)),
    }[name]


STORIES = [
    *("keys-first", "keys-second", "keys-migrate", "keys-convert", "keys-mend", "keys-retire"),
    "keys-clear",
    *("confirm-counter", "confirm-keys"),
]


def points_in_nvs(recording: Recording, is_all: bool) -> list[CutPoint]:
    """Every second operation on NVS and the last, torn and whole in turn; with ``is_all`` each, in
    each way.
    """
    nvs = range(boards.NVS.offset, boards.NVS.end)  # test_bundles.py has the others
    operations = recording.operations
    points = [p for p in recording.all_points(ALL_MODES) if operations[p.op].offset in nvs]
    in_turn = (CutMode.AFTER, CutMode.TORN)  # AFTER leaves what BEFORE leaves at the next one
    chosen = range(points[-1].op, -1, -2)
    wanted = {op: in_turn[number % 2] for number, op in enumerate(chosen)}
    return points if is_all else [p for p in points if p.mode is wanted.get(p.op)]


@pytest.mark.parametrize("name", STORIES)
def test_no_power_cut_disarms_the_board(board: Board, name: str, cuts: Cuts) -> None:
    """``--cut keys-second:5:after`` tries one."""
    cuts.skip_unless_named(name)
    told = story(name)
    image = app("v1.29.0")
    put(board, "plain.bundle", make(image, counter=9, version="3").to_bytes())
    for number, signer in enumerate(("0", "1", "stranger")):
        made = make(image, keys=(key(number),), counter=9, version="3")
        put(board, f"{signer}.bundle", made.to_bytes())
    told.prepare(board)
    scenario = Scenario(name, board.flash.snapshot(), lambda board: board.run(told.play))

    def judge(board: Board) -> str:
        left = board.flash.snapshot()
        run = board.run(JUDGE)
        assert run.output in (told.old, told.new), f"{run.console}{run.traceback}"
        board.flash.restore(left)
        board.run(told.play)
        again = board.run(KEYS)
        known = told.new.splitlines()
        assert again.output.strip() in known, f"{again.console}{again.traceback}"
        return run.output

    seen = cuts.try_all(scenario, board, judge, points_in_nvs)
    assert cuts.is_one or set(seen) == {told.old, told.new}, seen
