"""Data payloads of genuine releases whose bytes are not those that were signed.

Whatever comes, each sector of the partition holds what was there before, what the release has for
it, or nothing; and until all of it is there, nothing could be mounted.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from littlefs import LittleFS, LittleFSError
from mpota.formats.chain import FRAME_SIZE, make_chain
from mpota.formats.frames import compress
from mpota.formats.manifest import Form, Manifest, Payload
from mpota.formats.partition_table import Partition
from mpota.formats.tar import Member, write_tar
from mpota.release.build import Content
from mpota.release.signing import sign
from mpota.virtual.board import Board, End
from mpota.virtual.cuts import ALL_MODES, CutPoint, Scenario, power_cut, record_changes
from mpota.virtual.flash import CutMode, Operation

from tests.support import amount, boards, releases, web
from tests.support.cuts import Cuts, some
from tests.support.data_payloads import (
    ASSETS,
    NEW,
    OLD,
    SECTOR,
    TABLE,
    bundle_of,
    data,
    image,
    parts,
)
from tests.support.releases import COUNTED, key

BLANK = b"\xff" * SECTOR


# --- what an attacker may do to a chain ---------------------------------------------------------


def flip(at: int) -> Callable[[bytes], bytes]:
    def change(chain: bytes) -> bytes:
        place = at % len(chain)
        return chain[:place] + bytes([chain[place] ^ 0x40]) + chain[place + 1 :]

    return change


def swap(first: int, second: int) -> Callable[[bytes], bytes]:
    def change(chain: bytes) -> bytes:
        frames = split(chain)
        frames[first], frames[second] = frames[second], frames[first]
        return b"".join(frames)

    return change


def split(chain: bytes) -> list[bytes]:
    return [chain[at : at + FRAME_SIZE] for at in range(0, len(chain), FRAME_SIZE)]


def relinked(start: int) -> Callable[[bytes], bytes]:
    """The attacker's pieces from a frame on, in a chain that fits itself."""

    def change(chain: bytes) -> bytes:
        frames = split(chain)
        stream = b"".join(frame[:SECTOR] for frame in frames[start:])
        evil, _ = make_chain(b"\xd2\xcd\x31" + stream[3:])
        return b"".join(frames[:start]) + evil

    return change


def of_another_release(chain: bytes) -> bytes:
    """Genuine bytes of the same signer, of the release before."""
    other = data(OLD).encoded[0].data
    return (other * 2)[: len(chain)]


def from_another_release(frame: int) -> Callable[[bytes], bytes]:
    def change(chain: bytes) -> bytes:
        at = frame * FRAME_SIZE
        return chain[:at] + of_another_release(chain)[at:]

    return change


# name -> change; the size stays as the manifest has it.
CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "first byte": flip(0),
    "in the first piece": flip(77),
    "last byte of the first piece": flip(SECTOR - 1),
    "first link": flip(SECTOR),
    "end of the first link": flip(FRAME_SIZE - 1),
    "second piece": flip(FRAME_SIZE),
    "middle piece": flip(9 * FRAME_SIZE + 2000),
    "middle link": flip(9 * FRAME_SIZE + SECTOR + 9),
    "last piece but one": flip(-FRAME_SIZE - 100),
    "last link": flip(-SECTOR - 5),
    "last piece": flip(-2000),
    "last byte": flip(-1),
    "first two pieces swapped": swap(0, 1),
    "pieces swapped in the middle": swap(7, 11),
    "last two whole pieces swapped": swap(-3, -2),
    "first piece twice": lambda chain: chain[:FRAME_SIZE] + chain[:-FRAME_SIZE],
    "a piece left out, zeros behind": lambda chain: (
        chain[: 5 * FRAME_SIZE] + chain[6 * FRAME_SIZE :] + bytes(FRAME_SIZE)
    ),
    "the attacker's chain": relinked(0),
    "the attacker's chain from the second piece": relinked(1),
    "the attacker's chain from the tenth piece": relinked(10),
    "the former release": of_another_release,
    "the former release from the middle": from_another_release(8),
    "zeros": lambda chain: bytes(len(chain)),
    "erased": lambda chain: b"\xff" * len(chain),
    "the content without links": lambda chain: (NEW * 2)[: len(chain)],
    "zeros instead of the end": lambda chain: chain[:-5000] + bytes(5000),
}
# The size changes: refused as such, whatever came before.
SIZES: dict[str, Callable[[bytes], bytes]] = {
    "a byte less": lambda chain: chain[:-1],
    "a piece less": lambda chain: chain[:-FRAME_SIZE],
    "half": lambda chain: chain[: len(chain) // 2],
    "nothing": lambda chain: b"",
    "a byte more": lambda chain: chain + b"\0",
    "64 KiB more": lambda chain: chain + bytes(65536),
}

ROUTES = ("bundle", "from_file", "http bundle", "http manifest")

# Runs all cases of /frozen/cases, each from the same content and without notes; prints for each a
# line with its outcome and the start of the SHA-256 of each sector.
RUN = """
import ota
from esp32 import NVS, Partition
from hashlib import sha256
part = Partition.find(Partition.TYPE_DATA, label="assets")[0]
buf = bytearray(4096)
def restore():
    with open("/frozen/old.bin", "rb") as file:
        for block in range(part.info()[3] // 4096):
            file.readinto(buf)
            part.writeblocks(block, buf)
    try:
        NVS("ota").erase_key("resume-data")
    except OSError:
        pass
for line in open("/frozen/cases"):
    route, url = line.strip().split("\\t")
    restore()
    try:
        if route == "from_file":
            ota.update.from_file(url, verbose=False, reboot=False)
        else:
            more = {"max_failures": 1} if "http" in route else {}
            ota.release.install(url, reboot=False, **more)
        verdict = "INSTALLED"
    except ota.OTAError as error:
        verdict = error.code
        if verdict == "memory":
            print(error)
    found = []
    for block in range(part.info()[3] // 4096):
        part.readblocks(block, buf)
        found.append(sha256(buf).digest()[:6].hex())
    print(verdict, *found)
"""


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """A board that trusts a key; the former release's data is in its partition."""
    made = releases.board(
        tmp_path, table=TABLE, heap_size=160 * 1024
    )  # for many attempts in a boot
    run = made.run(f"import ota; ota.keys.add({key().public.digest.hex()!r})")
    assert (run.end, run.traceback) == (End.IDLE, ""), run.console
    made.flash.erase(ASSETS.offset, ASSETS.size)
    made.flash.write(ASSETS.offset, OLD)
    (tmp_path / "old.bin").write_bytes(OLD)
    made.flash.restart_count()
    return made


def frozen(board: Board) -> Path:
    assert board.frozen is not None
    return board.frozen


def partition(board: Board) -> bytes:
    return board.flash.read(ASSETS.offset, ASSETS.size)


def short_digest(sector: bytes) -> str:
    return hashlib.sha256(sector).digest()[:6].hex()


def digests(content: bytes) -> list[str]:
    padded = content + b"\xff" * (ASSETS.size - len(content))
    return [short_digest(padded[at : at + SECTOR]) for at in range(0, ASSETS.size, SECTOR)]


def place(server: web.WebServer, directory: Path, route: str, number: int, made: Content,
          body: bytes) -> str:  # fmt: skip
    """Put a release where ``route`` finds it; the name to give to the board."""
    if "manifest" in route:
        text, signature = parts(made, as_url=True)
        server.files[f"/{number}/manifest.json"] = web.File(text)
        server.files[f"/{number}/manifest.sig"] = web.File(signature)
        server.files[f"/{number}/assets.chained"] = web.File(body)
        return server.url(f"/{number}/manifest.json")
    if "http" in route:
        server.files[f"/{number}.bundle"] = web.File(bundle_of(made, body))
        return server.url(f"/{number}.bundle")
    (directory / f"{number}.bundle").write_bytes(bundle_of(made, body))
    return f"/frozen/{number}.bundle"


@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("route", ROUTES)
def test_nothing_of_an_attackers_bytes_gets_into_a_data_partition(
    board: Board,
    server: web.WebServer,
    route: str,
    is_packed: bool,
    hostile: Callable[..., None],
) -> None:
    made = data(NEW, is_packed=is_packed)
    chain = made.encoded[0].data
    changes = list((CHANGES | SIZES).items())
    if route != "bundle":
        changes = list(amount.some_of(changes, 2))
    bodies = {name: change(chain) for name, change in changes}
    lines = [
        f"{route}\t{place(server, frozen(board), route, number, made, body)}"
        for number, body in enumerate(bodies.values())
    ]
    good = place(server, frozen(board), route, 999, made, chain)
    (frozen(board) / "cases").write_text("\n".join([*lines, f"{route}\t{good}"]))
    run = board.run(RUN, timeout_s=300)
    assert (run.end, run.traceback) == (End.IDLE, ""), run.console
    *refused, installed = [line.split() for line in run.output.splitlines()]
    assert installed == ["INSTALLED", *digests(NEW)]
    assert len(refused) == len(bodies)
    problems = []
    before, after, blank = digests(OLD), digests(NEW), short_digest(BLANK)
    for name, (code, *found) in zip(bodies, refused, strict=True):
        if name in CHANGES and code != "digest":
            problems.append(f"{name}: {code}")
        if name in SIZES and code not in ("digest", "member", "tar", "short", "too-long"):
            problems.append(f"{name}: {code}")
        strange = [
            number
            for number, digest in enumerate(found)
            if digest not in (before[number], after[number], blank)
        ]
        if strange:
            problems.append(f"{name}: sectors {strange} hold something else")
        if found != before and found[:2] != [blank, blank]:
            problems.append(f"{name}: could be mounted half-way")
    assert not problems, "\n".join(problems)
    assert partition(board) == NEW
    hostile(len(bodies))


def test_a_payload_of_which_no_piece_is_genuine_leaves_what_was_there(
    board: Board, server: web.WebServer
) -> None:
    for number, name in enumerate(("first byte", "first link", "zeros", "nothing")):
        made = data(NEW)
        body = (CHANGES | SIZES)[name](made.encoded[0].data)
        for route in ROUTES:
            url = place(server, frozen(board), route, number, made, body)
            run = board.run(install(url))
            assert "REFUSED" in run.output, run.console
            assert partition(board) == OLD, (name, route)


# --- power cuts, and going on -------------------------------------------------------------------


def install(url: str, more: str = "") -> str:
    return f"""
import ota
try:
    ota.release.install({url!r}, reboot=False{more})
    print("INSTALLED")
except ota.OTAError as error:
    print("REFUSED", error.code, error)
"""


def check_half(found: bytes) -> None:
    """What a power cut may leave: nothing that a file system could be mounted from."""
    for at in range(0, len(found), SECTOR):
        sector, old, new = (c[at : at + SECTOR] for c in (found, OLD, NEW))
        if sector in (old, new, BLANK):
            continue
        # Torn: some bits of what is erased, or programmed.
        bits = [int.from_bytes(s, "little") for s in (sector, old, new)]
        assert bits[0] | bits[1] == bits[0] or bits[0] | bits[2] == bits[0], hex(at)
    # Each of the first two sectors has a superblock, and they change one after the other: while
    # all else is still old, or all else is new already, and verified.
    if found[2 * SECTOR :] not in (OLD[2 * SECTOR :], NEW[2 * SECTOR :]):
        with pytest.raises(LittleFSError):
            mount(found)


def mount(content: bytes) -> LittleFS:
    fs = LittleFS(block_size=SECTOR, block_count=len(content) // SECTOR, mount=False)
    fs.context.buffer = bytearray(content)
    fs.mount()
    return fs


def is_superblock(operation: Operation) -> bool:
    return ASSETS.offset <= operation.offset < ASSETS.offset + 2 * SECTOR


@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "compressed"])
def test_at_every_cut_the_partition_is_whole_or_cannot_be_mounted(
    board: Board, is_packed: bool, cuts: Cuts
) -> None:
    made = data(NEW, is_packed=is_packed)
    (frozen(board) / "new.bundle").write_bytes(bundle_of(made))
    script = install("/frozen/new.bundle")
    name = f"data-{'packed' if is_packed else 'plain'}"
    scenario = Scenario(name, board.flash.snapshot(), lambda board: board.run(script))

    def judge(board: Board) -> str:
        check_half(partition(board))
        run = board.run(script)
        assert run.output == "INSTALLED\n", run.console
        assert partition(board) == NEW
        return run.output

    cuts.try_all(scenario, board, judge, some(24, is_superblock, ALL_MODES))


def cut_late(board: Board, script: str, sectors: int) -> None:
    """Cut the power when so many sectors of the partition have been written."""
    recording = record_changes("late", board.flash, lambda: board.run(script))
    writes = [
        number
        for number, op in enumerate(recording.operations)
        if op.kind == "write" and op.offset >= ASSETS.offset
    ]
    late = CutPoint(recording.name, writes[sectors], CutMode.AFTER)
    board.flash.restore(recording.content(late))


@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("route", ["bundle", "http bundle", "http manifest"])
def test_after_a_reset_data_goes_on_at_the_last_good_piece(
    board: Board, server: web.WebServer, route: str, is_packed: bool
) -> None:
    made = data(NEW, is_packed=is_packed)
    chain = made.encoded[0].data
    url = place(server, frozen(board), route, 1, made, chain)
    script = COUNTED + install(url) + "print(seen)\n"
    cut_late(board, script, 36)  # 32 of them were noted
    server.requests.clear()
    run = board.run(script)
    said, seen = run.output.split()
    assert said == "INSTALLED", run.console
    assert partition(board) == NEW
    total = len(chain) if "manifest" in route else len(bundle_of(made))
    if "http" in route:  # what is sent ahead into the board's buffers does not count
        seen = str(total - server.requests[-1].start + SECTOR)
    if not ("http" in route and is_packed):  # there as little is left out as no request is worth
        assert int(seen) < total * 2 // 3, (seen, total)
    written = [op for op in run.operations if op.offset >= ASSETS.offset + 2 * SECTOR]
    assert min(op.offset for op in written) >= ASSETS.offset + (2 + 28) * SECTOR


def test_a_piece_that_is_damaged_on_the_way_does_not_cost_what_was_good(
    board: Board, server: web.WebServer
) -> None:
    made = data(NEW)
    chain = made.encoded[0].data
    url = place(server, frozen(board), "http bundle", 1, made, flip(40 * FRAME_SIZE)(chain))
    assert "REFUSED digest" in board.run(install(url)).output
    url = place(server, frozen(board), "http bundle", 1, made, chain)
    server.requests.clear()
    assert board.run(install(url)).output == "INSTALLED\n"
    assert server.requests[-1].start > 32 * FRAME_SIZE
    assert partition(board) == NEW


def test_a_note_of_one_release_does_not_survive_another(board: Board) -> None:
    """What a smaller release has begun to write is not taken for the larger one's."""
    large, small = data(NEW), data(image("third")[: 14 * SECTOR])
    (frozen(board) / "large.bundle").write_bytes(bundle_of(large))
    (frozen(board) / "small.bundle").write_bytes(bundle_of(small))
    cut_late(board, install("/frozen/large.bundle"), 36)
    with power_cut(board.flash, 8, CutMode.AFTER):
        board.run(install("/frozen/small.bundle"))
    assert board.run(install("/frozen/large.bundle")).output == "INSTALLED\n"
    assert partition(board) == NEW


def test_a_link_in_the_note_is_not_trusted_for_ever(board: Board) -> None:
    (frozen(board) / "new.bundle").write_bytes(bundle_of(data(NEW)))
    script = install("/frozen/new.bundle")
    cut_late(board, script, 36)
    spoil = """
from esp32 import NVS
note = bytearray(81)
NVS("ota").get_blob("resume-data", note)
note[-1] ^= 1
NVS("ota").set_blob("resume-data", note)
NVS("ota").commit()
"""
    board.run(spoil)
    assert "REFUSED digest" in board.run(script).output
    check_half(partition(board))
    assert board.run(script).output == "INSTALLED\n"
    assert partition(board) == NEW


# --- releases of ota 0.1 ------------------------------------------------------------------------


def old_style(encoding: str | None) -> tuple[bytes, bytes]:
    """(manifest of format 1, body): data as a member, plain or as frames of deflate."""
    sha256 = hashlib.sha256(NEW).hexdigest()
    if encoding is None:
        form, body = Form(len(NEW), sha256, "assets.bin"), NEW
    else:
        body = compress(NEW).to_bytes()
        digest = hashlib.sha256(body).hexdigest()
        form = Form(len(body), digest, "assets.bin", encoding=encoding)
    payload = Payload("data", len(NEW), sha256, (form,), "assets")
    return Manifest("demo", "1.0", (payload,)).to_bytes(), body


def old_bundle(encoding: str | None, change: Callable[[bytes], bytes] = bytes) -> bytes:
    text, body = old_style(encoding)
    head = [Member("manifest.json", text), Member("manifest.sig", sign(text, (key(),)))]
    return write_tar([*head, Member("assets.bin", change(body))])


@pytest.mark.parametrize("encoding", [None, "deflate"])
def test_data_that_cannot_be_verified_piece_by_piece_is_refused_where_there_are_keys(
    board: Board, encoding: str | None
) -> None:
    (frozen(board) / "old.bundle").write_bytes(old_bundle(encoding))
    run = board.run(install("/frozen/old.bundle"))
    assert run.output.startswith("REFUSED no-chain "), run.console
    assert "make the release anew, with mpota 0.2" in run.output
    assert run.operations == ()
    assert partition(board) == OLD


@pytest.mark.parametrize("encoding", [None, "deflate"])
def test_without_keys_it_is_taken_and_what_would_be_mounted_comes_last(
    tmp_path: Path, encoding: str | None
) -> None:
    board = releases.board(tmp_path, table=TABLE)
    board.flash.write(ASSETS.offset, OLD)
    (tmp_path / "good.bundle").write_bytes(old_bundle(encoding))
    (tmp_path / "bad.bundle").write_bytes(old_bundle(encoding, flip(-100)))
    run = board.run(install("/frozen/bad.bundle"))
    assert run.output.split()[:2] in (["REFUSED", "digest"], ["REFUSED", "frame"]), run.console
    assert partition(board)[: 2 * SECTOR] == 2 * BLANK
    assert board.run(install("/frozen/good.bundle")).output == "INSTALLED\n"
    assert partition(board) == NEW


@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "compressed"])
def test_boards_without_keys_take_chains_too(tmp_path: Path, is_packed: bool) -> None:
    board = releases.board(tmp_path, table=TABLE)
    made = data(NEW, is_packed=is_packed)
    (tmp_path / "good.bundle").write_bytes(bundle_of(made))
    bad = flip(20 * FRAME_SIZE)(made.encoded[0].data)
    (tmp_path / "bad.bundle").write_bytes(bundle_of(made, bad))
    assert "REFUSED digest" in board.run(install("/frozen/bad.bundle")).output
    check_half(partition(board))
    assert board.run(install("/frozen/good.bundle")).output == "INSTALLED\n"
    assert partition(board) == NEW


@pytest.mark.parametrize("size", [1, 31, 32, 33, 4095, 4096, 4097, 8191, 8192, 8193, 12288, 65537])
@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "compressed"])
def test_content_of_any_size_is_written_as_it_is(board: Board, size: int, is_packed: bool) -> None:
    content = random.Random(size).choices(b"\0\1\2\xff", k=size)
    made = data(bytes(content), is_packed=is_packed)
    (frozen(board) / "new.bundle").write_bytes(bundle_of(made))
    assert board.run(install("/frozen/new.bundle")).output == "INSTALLED\n"
    assert partition(board)[:size] == bytes(content)
    end = -(-size // SECTOR) * SECTOR
    assert partition(board)[size:end] == b"\xff" * (end - size)


@pytest.mark.parametrize("size", [0x10000, 0x800000])
def test_memory_does_not_grow_with_the_partition(tmp_path: Path, size: int) -> None:
    large = Partition("assets", 1, 0x83, 0x100000, size)
    bootloader = bytes([*boards.BOOTLOADER[:3], 0x40, *boards.BOOTLOADER[4:]])  # 16 MiB of flash
    bootloader = bootloader[:-32] + hashlib.sha256(bootloader[:-32]).digest()
    board = releases.board(
        tmp_path,
        table=(*boards.OTA_TABLE, large),
        size=0x1000000,
        apps={boards.OTA_0.offset: boards.app(), boards.BOOTLOADER_OFFSET: bootloader},
        heap_size=HEAP_FOR_DATA,
    )
    board.run(f"import ota; ota.keys.add({key().public.digest.hex()!r})")
    content = random.Random(1).randbytes(size)
    (tmp_path / "new.bundle").write_bytes(bundle_of(data(content)))
    run = board.run(install("/frozen/new.bundle"), timeout_s=300)
    assert run.output == "INSTALLED\n", run.console
    assert board.flash.read(large.offset, size) == content


HEAP_FOR_DATA = 120 * 1024
