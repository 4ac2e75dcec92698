"""Apps that are refused, or broken off: what is left could not boot, and what could stays."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from mpota.formats.bundle import Bundle
from mpota.formats.frames import compress
from mpota.formats.otadata import OtaRecord, OtaState
from mpota.formats.tar import Member, write_tar
from mpota.release.build import Content, sign_app
from mpota.virtual.board import Board, End, Run
from mpota.virtual.call_faults import CallFault
from mpota.virtual.cuts import Scenario, power_cut
from mpota.virtual.flash import CutMode, Operation

from tests.support import boards, releases, web
from tests.support.boards import OTA_0, OTA_1, OTADATA
from tests.support.cuts import Cuts, some
from tests.support.hostile import (
    COUNTER,
    FALLBACK,
    FOREIGN,
    HEAD,
    INSTALL,
    NEW,
    OTHER,
    RETIRED,
    SECTOR,
    TRUSTED,
    TRY,
    UPDATE,
    after_damage,
    put,
    said,
    slot,
    touched,
)
from tests.support.images import with_digest
from tests.support.ota_board import merged_firmware
from tests.support.releases import key, make


@pytest.fixture
def board(tmp_path: Path, keyed: bytes) -> Board:
    """Trusts a key, has retired another, has had counter 9; an app that ran before is in ota_1."""
    made = releases.board(tmp_path)
    made.flash.restore(keyed)
    return made


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The flash of such a board."""
    directory = tmp_path_factory.mktemp("keyed")
    made = releases.board(directory)
    trusted, retired = (key(n).public.digest.hex() for n in (TRUSTED, RETIRED))
    certs = Content("certs", "ca.pem", b"-----BEGIN CERTIFICATE-----\n")
    (directory / "first.bundle").write_bytes(
        make(
            certs, keys=(key(RETIRED),), version="1.0", counter=COUNTER, add_keys=(trusted,),
            retire_keys=(retired,),
        ).to_bytes()
    )  # fmt: skip
    run = made.run(
        "with open('main.py', 'w') as f: f.write('import ota; ota.rollback.cancel()')\n"
        f"import ota; ota.keys.add({retired!r})\nota.release.install('/frozen/first.bundle')"
    )
    run = made.run("import os, ota; os.remove('main.py'); print(ota.keys.counter())")
    assert run.output == f"{COUNTER}\n", run.console
    made.flash.write(OTA_1.offset, FALLBACK)
    return made.flash.snapshot()


# --- what cannot succeed costs nothing ----------------------------------------------------------


def app(data: bytes = NEW) -> Content:
    return Content("app", "app.bin", data)


def bundle(*contents: Content, by: int | None = TRUSTED, **fields: object) -> bytes:
    given = {"counter": COUNTER, "version": "2.0"} | fields
    return make(*contents, keys=() if by is None else (key(by),), **given).to_bytes()


def signature_of_another_manifest() -> bytes:
    made = Bundle.from_bytes(bundle(app()))
    signature = Bundle.from_bytes(bundle(app(OTHER))).signature or b""
    return write_tar(
        [
            Member("manifest.json", made.manifest_bytes),
            Member("manifest.sig", signature),
            Member("app.bin", NEW),
        ]
    )


BEFORE: dict[str, Callable[[], tuple[bytes, str]]] = {
    "unsigned release": lambda: (bundle(app(), by=None), "unsigned"),
    "release by a foreign key": lambda: (bundle(app(), by=FOREIGN), "untrusted"),
    "release by a retired key": lambda: (bundle(app(), by=RETIRED), "retired-key"),
    "release with a lower counter": lambda: (bundle(app(), counter=COUNTER - 1), "counter"),
    "release without a counter": lambda: (bundle(app(), counter=0), "counter"),
    "release of a lower version": lambda: (bundle(app(), version="0.9"), "downgrade"),
    "release of another product": lambda: (bundle(app(), name="other"), "wrong-name"),
    "release for another chip": lambda: (bundle(app(), chip="esp32s3"), "wrong-chip"),
    "signature of another manifest": lambda: (signature_of_another_manifest(), "signature"),
    "release cut in the manifest": lambda: (bundle(app())[:700], "tar"),
    "release cut in the signature": lambda: (bundle(app())[:2048], "tar"),
    "image": lambda: (NEW, "unsigned"),
    "signed image": lambda: (sign_app(NEW, "x", (key(TRUSTED),)), "unsigned"),
    "image signed by a foreign key": lambda: (sign_app(NEW, "x", (key(FOREIGN),)), "unsigned"),
    "merged firmware": lambda: (merged_firmware(NEW), "unsigned"),
    "compressed image": lambda: (compress(NEW).to_bytes(), "unsigned"),
    "bootloader": lambda: (boards.BOOTLOADER.ljust(8192, b"\xff"), "unsigned"),
    "blank file": lambda: (b"\xff" * 20000, "unsigned"),
    "web page": lambda: (b"<html>Log in</html>".ljust(9000), "unsigned"),
    "zeros": lambda: (bytes(70000), "unsigned"),
}  # fmt: skip


@pytest.mark.parametrize("how", ["file", "http", "asyncio", "write"])
def test_what_cannot_succeed_costs_neither_the_fallback_nor_otadata(
    board: Board,
    server: web.WebServer,
    how: str,
    hostile: Callable[..., None],
) -> None:
    problems = []
    for name, build in BEFORE.items():
        data, expected = build()
        path = put(board, data)
        server.files["/file"] = web.File(data)
        url = server.url("/file")
        call = {
            "file": UPDATE.format(path, ""),
            "http": UPDATE.format(url, ", max_failures=1"),
            "asyncio": "base\n    import asyncio\n"
            f"    asyncio.run(ota.update.fetch({url!r}, max_failures=1))",
            "write": f"base; u = ota.update.OTA(verbose=False)\n    f = open({path!r}, 'rb')\n"
            "    while True:\n        data = f.read(1000)\n        if not data: break\n"
            "        u.write(data)\n    u.close()",
        }[how]
        run = board.run(TRY.format(call=call))
        assert (run.end, run.traceback) == (End.IDLE, ""), run.console
        if not run.output.startswith(f"REFUSED {expected} "):
            problems.append(f"{name}: {run.output}")
        if touched(run.operations):
            problems.append(f"{name}: {touched(run.operations)}")
    assert not problems, "\n".join(problems)
    assert after_damage(board) == ("ota_1",)
    hostile(len(BEFORE))


# --- what is refused late leaves nothing that boots ---------------------------------------------


def patched(image: bytes, at: int, data: bytes) -> bytes:
    return image[:at] + data + image[at + len(data) :]


def with_payload(made: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A signed bundle with other bytes where its app was."""
    found = Bundle.from_bytes(made)
    head = [
        Member("manifest.json", found.manifest_bytes),
        Member("manifest.sig", found.signature or b""),
    ]
    return write_tar([*head, *(Member(n, change(d)) for n, d in found.members.items())])


def own_signature_broken() -> bytes:
    image = bytearray(sign_app(NEW, "x", (key(TRUSTED),)))
    image[-SECTOR + 900] ^= 1
    return bytes(image)


def forged(image: bytes) -> bytes:
    """Bootable, with a digest of its own: only the signature says that it is not genuine."""
    return with_digest(patched(image, 0x5000, b"evil"))


BAD_CHECKSUM = with_digest(patched(NEW, len(NEW) - 33, bytes([NEW[-33] ^ 0x55])))

# name -> (file, code); on a board with keys.
LATE: dict[str, Callable[[], tuple[bytes, str]]] = {
    "other app": lambda: (with_payload(bundle(app()), forged), "sha"),
    "damaged app": lambda: (with_payload(bundle(app()), lambda d: patched(d, 0x9000, b"x")), "sha"),
    "damaged first sector": lambda: (
        with_payload(bundle(app()), lambda d: patched(d, 0x500, b"x")), "sha"),
    "damaged last byte": lambda: (
        with_payload(bundle(app()), lambda d: patched(d, len(d) - 1, b"\0")), "sha"),
    "cut": lambda: (bundle(app())[:-40000], "tar"),
    "cut in the last sector": lambda: (bundle(app())[:-2048], "tar"),
    "digest": lambda: (bundle(app(patched(NEW, 0x9000, b"x"))), "digest"),
    "own signature": lambda: (bundle(app(own_signature_broken())), "signature"),
    "own signature of other content": lambda: (
        bundle(app(sign_app(OTHER, "x", (key(TRUSTED),))[:-SECTOR]
            + sign_app(NEW, "x", (key(TRUSTED),))[-SECTOR:])), "signature"),
    "checksum": lambda: (bundle(app(BAD_CHECKSUM)), "not-bootable"),
    "trailing": lambda: (bundle(app(NEW + b"evil" * 3000)), "trailing"),
    "header of another chip": lambda: (
        bundle(app(with_digest(patched(NEW, 12, b"\x09")))), "wrong-chip"),
    "no image": lambda: (bundle(app(b"\x7fELF" * 9000)), "not-an-image"),
    "compressed, other app": lambda: (
        with_payload(bundle(app().compressed()), lambda d: d[:50000] + bytes(len(d) - 50000)),
        "frame"),
    "payload missing": lambda: (
        write_tar([m for m in read_members(bundle(app(), releases.tree("2")))
            if m.name != "files.tar"]), "member"),
}  # fmt: skip


def read_members(made: bytes) -> list[Member]:
    found = Bundle.from_bytes(made)
    head = [
        Member("manifest.json", found.manifest_bytes),
        Member("manifest.sig", found.signature or b""),
    ]
    return head + [Member(name, data) for name, data in found.members.items()]


NEVER_WRITTEN = ("header of another chip", "no image")


@pytest.mark.parametrize("name", LATE)
def test_an_app_of_a_release_that_is_refused_is_no_image(board: Board, name: str) -> None:
    data, expected = LATE[name]()
    path = put(board, data)
    for call in (INSTALL.format(path), UPDATE.format(path, "")):
        assert said(board, call) == expected
        if name in NEVER_WRITTEN:
            assert slot(board).startswith(FALLBACK)
            assert after_damage(board) == ("ota_1",)
        else:
            assert slot(board)[:HEAD] == b"\xff" * HEAD
            assert after_damage(board) == (None,)
        assert board.run("").labels == ("ota_0",)


UNKEYED: dict[str, tuple[bytes, str]] = {
    "digest": (patched(NEW, 0x9000, b"x"), "digest"),
    "first sector": (patched(NEW, 0x800, b"x"), "digest"),
    "checksum": (BAD_CHECKSUM, "not-bootable"),
    "truncated": (NEW[:-1], "truncated"),
    "half": (NEW[: len(NEW) // 2], "truncated"),
    "first sector alone": (NEW[:SECTOR], "truncated"),
    "trailing": (NEW.ljust(0x1A000, b"\xff") + b"x" * 5000, "trailing"),
    "merged, digest": (merged_firmware(patched(NEW, 0x9000, b"x")), "digest"),
    "merged, truncated": (merged_firmware(NEW)[:-5000], "truncated"),
    "compressed, digest": (compress(patched(NEW, 0x9000, b"x")).to_bytes(), "digest"),
    "compressed, truncated": (compress(NEW).to_bytes()[:-9000], "truncated"),
}


@pytest.mark.parametrize("name", UNKEYED)
@pytest.mark.parametrize("how", ["file", "http"])
def test_without_keys_too_a_refused_app_is_no_image(
    tmp_path: Path, server: web.WebServer, name: str, how: str
) -> None:
    board = releases.board(tmp_path)
    board.flash.write(OTA_1.offset, FALLBACK)
    data, expected = UNKEYED[name]
    server.files["/file"] = web.File(data)
    url = put(board, data) if how == "file" else server.url("/file")
    assert said(board, UPDATE.format(url, "" if how == "file" else ", max_failures=1")) == expected
    assert slot(board)[:HEAD] == b"\xff" * HEAD
    assert after_damage(board) == (None,)
    assert said(board, UPDATE.format(url, f", sha={'0' * 64!r}")) != "INSTALLED"
    assert after_damage(board) == (None,)


def is_in_head(operation: Operation) -> bool:
    return OTA_1.offset <= operation.offset < OTA_1.offset + SECTOR


@pytest.mark.parametrize("is_good", [True, False], ids=["good", "hostile"])
def test_at_every_cut_the_slot_is_blank_at_its_head_or_whole(
    board: Board, is_good: bool, cuts: Cuts
) -> None:
    data = bundle(app()) if is_good else bundle(app(patched(NEW, 0x17000, b"x")))
    script = TRY.format(call=INSTALL.format(put(board, data)))
    name = f"slot-{'good' if is_good else 'hostile'}"
    scenario = Scenario(name, board.flash.snapshot(), lambda board: board.run(script))

    def judge(board: Board) -> str:
        found = slot(board)
        is_whole = found.startswith(FALLBACK) or (is_good and found.startswith(NEW))
        labels = after_damage(board)
        assert labels == ("ota_1" if is_whole else None,), found[:HEAD].hex()
        assert is_whole or _is_no_head(found, is_good), found[:HEAD].hex()
        return str(labels)

    cuts.try_all(scenario, board, judge, some(24, is_in_head))


def _is_no_head(found: bytes, is_good: bool) -> bool:
    """Blank, or torn while it was erased, or written at the very end."""
    head = int.from_bytes(found[:HEAD], "big")
    whole = [FALLBACK, NEW] if is_good else [FALLBACK]
    return any(head | int.from_bytes(image[:HEAD], "big") == head for image in whole)


# --- what has failed is remembered --------------------------------------------------------------

CRASH = """
import esp32, machine, ota
if esp32.Partition(esp32.Partition.RUNNING).info()[4] == "ota_1":
    machine.reset()  # crashes before it confirms
ota.rollback.cancel()
"""
STATUS = "import ota; print(ota.status.info()['failed'])"


def fail(board: Board, data: bytes) -> None:
    """Let the app in a release have its chance, and fail."""
    script = f"with open('main.py', 'w') as f: f.write({CRASH!r})\nimport ota, machine\n"
    path = put(board, data, "failing")
    run = board.run(script + f"ota.{INSTALL.format(path)}\nmachine.reset()")
    assert run.labels == ("ota_0", "ota_1", "ota_0"), run.console


def test_a_failed_version_is_remembered_whatever_comes_after(board: Board) -> None:
    fail(board, bundle(app()))
    failing = INSTALL.format("/frozen/failing")
    remembered = f"{[NEW[-32:].hex()]}\n"
    assert board.run(STATUS).output == remembered
    assert said(board, failing) == "failed-version"
    for name in ("damaged app", "cut", "checksum", "digest"):  # each of these erases the slot
        data, expected = LATE[name]()
        if name != "damaged app":
            data = data.replace(b'"2.0"', b'"2.0"')
        assert said(board, INSTALL.format(put(board, data))) in (expected, "failed-version")
        assert board.run(STATUS).output == remembered, name
        assert said(board, failing) == "failed-version", name
    # Another one, and a power cut in it.
    path = put(board, bundle(app(OTHER)), "other")
    with power_cut(board.flash, 30, CutMode.TORN):
        board.run(TRY.format(call=INSTALL.format(path)))
    assert said(board, failing) == "failed-version"
    confirm = "with open('main.py', 'w') as f: f.write('import ota; ota.rollback.cancel()')\n"
    run = board.run(confirm + f"import ota, machine\nota.{INSTALL.format(path)}\nmachine.reset()")
    assert run.labels == ("ota_0", "ota_1"), run.console
    assert said(board, failing) == "failed-version"
    assert board.run(STATUS).output == remembered
    printed = board.run("import ota.status\nota.status.status()").output
    assert f"Failed version: SHA-256 {NEW[-32:].hex()[:16]}..." in printed
    force = failing.replace("reboot=False", "reboot=False, force=True")
    assert said(board, force) == "INSTALLED"
    assert board.flash.read(OTA_0.offset, len(NEW)) == NEW


def test_a_version_that_was_forced_and_is_confirmed_has_not_failed(board: Board) -> None:
    fail(board, bundle(app()))
    confirm = "with open('main.py', 'w') as f: f.write('import ota; ota.rollback.cancel()')\n"
    force = INSTALL.format("/frozen/failing").replace("reboot=False", "reboot=False, force=True")
    run = board.run(confirm + f"import ota, machine\nota.{force}\nmachine.reset()")
    assert run.labels == ("ota_0", "ota_1")
    assert board.run(STATUS).output == "[]\n"


def test_what_ota_0_1_remembered_is_understood(board: Board) -> None:
    """It had the failed image in the slot, and in NVS the digest that had its second chance."""
    board.flash.erase(OTA_1.offset, OTA_1.size)
    board.flash.write(OTA_1.offset, NEW)
    board.flash.erase(OTADATA.offset, OTADATA.size)
    board.flash.write(OTADATA.offset, OtaRecord.selecting(1, OtaState.VALID).to_bytes())
    record = OtaRecord.selecting(2, OtaState.ABORTED).to_bytes()
    board.flash.write(OTADATA.offset + SECTOR, record)
    digest = NEW[-32:].hex()
    retried = f"NVS('ota').set_blob('retried', bytes.fromhex({digest!r}))\n"
    retried = "from esp32 import NVS\n" + retried
    board.run(retried + "NVS('ota').commit()")
    call = INSTALL.format(put(board, bundle(app())))
    assert said(board, call) == "failed-version"
    assert slot(board).startswith(NEW)
    assert said(board, INSTALL.format(put(board, LATE["damaged app"]()[0]))) != "INSTALLED"
    assert said(board, INSTALL.format(put(board, bundle(app(OTHER)), "other"))) == "INSTALLED"
    assert said(board, call.replace("file", "file")) != "INSTALLED"
    assert board.run(STATUS).output == f"{[NEW[-32:].hex()]}\n"


# --- what lies behind the image -----------------------------------------------------------------


def left_over(kind: str) -> bytes:
    rng = random.Random(kind)
    if kind == "garbage":
        return rng.randbytes(0x8000)
    if kind == "0xE7":
        return (b"\xe7" + rng.randbytes(SECTOR - 1)) * 4
    signature = sign_app(OTHER, "x", (key(TRUSTED),))[-SECTOR:]
    if kind == "signature":
        return signature * 4
    return bytes(0x8000)


@pytest.mark.parametrize("kind", ["garbage", "0xE7", "signature", "zeros"])
@pytest.mark.parametrize("is_signed", [False, True], ids=["app", "signed app"])
def test_what_stood_behind_the_image_does_not_matter_and_goes(
    board: Board, kind: str, is_signed: bool
) -> None:
    image = sign_app(NEW, "x", (key(TRUSTED),)) if is_signed else NEW
    end = -(-len(image) // SECTOR) * SECTOR
    board.flash.erase(OTA_1.offset, OTA_1.size)
    board.flash.write(OTA_1.offset + end, left_over(kind))
    board.flash.write(OTA_1.end - 100, b"\xe7" * 100)
    assert said(board, INSTALL.format(put(board, bundle(app(image))))) == "INSTALLED"
    assert slot(board) == image + b"\xff" * (OTA_1.size - len(image))
    assert board.run("").labels == ("ota_1",)


# --- two updates at once ------------------------------------------------------------------------

FREE = """
class Me: pass
from ota import base
base.acquire_slot(Me); base.release_slot(Me)
print("free")
"""


def test_a_second_update_is_refused_whoever_starts_it(board: Board) -> None:
    good, other = put(board, bundle(app())), put(board, bundle(app(OTHER)), "other")
    run = board.run(
        f"""
import asyncio, ota
from ota.update import OTA
def attempt(call, *args, **more):
    try:
        call(*args, **more)
        print("INSTALLED")
    except ota.OTAError as error:
        print(error.code)
seen = []
def progress(done, total):
    if not seen:
        seen.append(1)
        attempt(ota.release.install, {other!r}, reboot=False)
        attempt(ota.update.from_file, {other!r}, verbose=False, reboot=False)
        attempt(asyncio.run, ota.update.fetch({other!r}))
        second = OTA(verbose=False)
        attempt(second.write, open({other!r}, "rb").read(5000))
attempt(ota.release.install, {good!r}, reboot=False, progress=progress)
"""
        + FREE
    )
    assert run.output.split() == ["busy"] * 4 + ["INSTALLED", "free"], run.console
    assert slot(board).startswith(NEW)
    assert board.run("").labels == ("ota_1",)


def test_of_two_tasks_one_is_refused_and_the_other_installs(board: Board) -> None:
    good, other = put(board, bundle(app())), put(board, bundle(app(OTHER)), "other")
    run = board.run(
        f"""
import asyncio, ota
async def one(path):
    try:
        await ota.update.fetch(path)
        print("INSTALLED", path)
    except ota.OTAError as error:
        print(error.code, path)
async def main():
    await asyncio.gather(one({good!r}), one({other!r}))
asyncio.run(main())
"""
        + FREE
    )
    assert run.output.splitlines() == ["busy " + other, "INSTALLED " + good, "free"], run.console
    assert slot(board).startswith(NEW)


@pytest.mark.parametrize(
    "end",
    [
        "ZeroDivisionError",
        "KeyboardInterrupt",
        "OSError",
        "MemoryError",
        "SystemExit",
        "IndexError",
    ],
)
@pytest.mark.parametrize("call", ["install", "from_file", "fetch", "OTA"])
def test_the_apps_own_exceptions_pass_and_the_slot_is_free(
    board: Board, end: str, call: str
) -> None:
    path = put(board, bundle(app()))
    run = board.run(
        f"""
import asyncio, ota
def progress(done, total):
    if done > 30000:
        raise {end}("mine")
try:
    if {call!r} == "install":
        ota.release.install({path!r}, reboot=False, progress=progress)
    elif {call!r} == "from_file":
        ota.update.from_file({path!r}, verbose=False, reboot=False, progress=progress)
    elif {call!r} == "fetch":
        asyncio.run(ota.update.fetch({path!r}, progress=progress))
    else:
        ota.update.OTA(verbose=False, progress=progress).from_firmware_file({path!r})
except {end} as error:
    print(error.args)
"""
        + FREE
    )
    assert run.output == "('mine',)\nfree\n", run.console
    assert slot(board)[:HEAD] == b"\xff" * HEAD
    assert said(board, INSTALL.format(path)) == "INSTALLED"


def test_a_cancelled_task_an_interrupted_wait_and_abort_free_the_slot(
    board: Board, server: web.WebServer
) -> None:
    data = bundle(app())
    server.files["/file"] = web.File(data)
    server.troubles = [web.stall(50000), web.stall(50000), web.stall(50000)]
    url = server.url("/file")
    run = board.run(
        f"""
import asyncio, ota, os
async def main():
    task = asyncio.create_task(ota.update.fetch({url!r}))
    await asyncio.sleep_ms(700)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        print("cancelled")
asyncio.run(main())
{FREE}
import _thread, time
calls = 100
import ota.pump
def sleep_ms(ms):
    global calls
    calls -= 1
    if not calls:
        raise KeyboardInterrupt
    time.sleep_ms(ms)
ota.pump.sleep_ms = sleep_ms
try:
    ota.update.from_file({url!r}, verbose=False, reboot=False)
except KeyboardInterrupt:
    print("interrupted")
ota.pump.sleep_ms = time.sleep_ms
{FREE}
update = ota.update.OTA(verbose=False)
with open("/frozen/file", "rb") as file:
    for _ in range(20):
        update.write(file.read(1000))
update.abort()
{FREE}
"""
        if put(board, data)
        else ""
    )
    server.troubles = []
    assert run.output.split() == ["cancelled", "free", "interrupted", "free", "free"], run.console
    assert said(board, UPDATE.format(url, "")) == "INSTALLED"


def test_an_ota_that_is_dropped_holds_the_slot_until_its_owner_is_aborted(board: Board) -> None:
    """MicroPython tells no object of a class that it goes."""
    path = put(board, bundle(app()))
    run = board.run(
        f"""
import gc, ota
update = ota.update.OTA(verbose=False)
with open({path!r}, "rb") as file:
    update.write(file.read(5000))
del update
gc.collect()
try:
    ota.{INSTALL.format(path)}
except ota.OTAError as error:
    print(error.code)
ota.base.owner.abort()
ota.{INSTALL.format(path)}
print("INSTALLED")
"""
        + FREE
    )
    assert run.output.split() == ["busy", "INSTALLED", "free"], run.console
    assert slot(board).startswith(NEW)


# --- flash, NVS and file system fail ------------------------------------------------------------

FAILS = 0x6001  # ESP_ERR_FLASH_OP_FAIL
FAULTS = [
    ("read", "ota_0"), ("read", "ota_1"), ("erase", "ota_1"), ("write", "ota_1"),
    ("set_boot", "ota_1"), ("read", "otadata"), ("erase", "otadata"), ("write", "vfs"),
    ("erase", "vfs"), ("nvs_open", None), ("nvs_set", None), ("nvs_get", None),
    ("nvs_erase", None), ("nvs_commit", None),
]  # fmt: skip


@pytest.mark.parametrize(("call", "where"), FAULTS)
@pytest.mark.parametrize("way", [INSTALL, UPDATE.replace("{}", "")])
def test_what_fails_in_an_update_is_an_ota_error_with_a_code(
    board: Board, call: str, where: str | None, way: str
) -> None:
    tree = releases.tree("2.0")
    path = put(board, bundle(app(), tree))
    board.run("import ota; ota.rollback.cancel()")
    board.call_faults = [CallFault(call, FAILS, where)]
    run = board.run(TRY.format(call=way.format(path)))
    assert (run.end, run.traceback) == (End.IDLE, ""), run.console
    # The last line: what the collector closes meets the fault as well.
    found = run.output.splitlines()[-1].split()[:2][-1]
    assert found in ("flash", "io", "disk", "otadata", "key-store", "not-bootable", "INSTALLED")
    board.call_faults = []
    assert board.run("").labels == (("ota_1",) if found == "INSTALLED" else ("ota_0",))
    if found != "INSTALLED":
        assert said(board, way.format(path)) == "INSTALLED"


# --- 64 KiB at once -----------------------------------------------------------------------------

BLOCKS = "import ota; print(ota.status.info(False)['block_erase'])"


def in_slot(run: Run) -> set[int]:
    return {
        op.size
        for op in run.operations
        if op.kind == "erase" and OTA_1.offset <= op.offset < OTA_1.end
    }


def test_blocks_are_erased_at_once_and_status_says_so(board: Board) -> None:
    assert board.run(BLOCKS).output == "None\n"
    run = board.run(TRY.format(call=INSTALL.format(put(board, bundle(app())))))
    assert run.output == "INSTALLED\n"
    assert in_slot(run) == {0x10000}
    board.flash.erase(OTADATA.offset, OTADATA.size)  # the former app boots again
    assert board.run(BLOCKS).output == "True\n"
    assert "Flash is erased by 64 KiB." in board.run("import ota; ota.status.status()").output


def test_an_erase_that_crashes_is_given_up_after_two_resets(board: Board) -> None:
    board.null_erase = "crashes"
    call = TRY.format(call=INSTALL.format(put(board, bundle(app()))))
    for _ in range(2):
        run = board.run(call)
        assert "LoadProhibited" in run.output
        assert run.labels == ("ota_0", "ota_0"), run.console
    run = board.run(call)
    assert run.output == "INSTALLED\n", run.console
    assert in_slot(run) == {SECTOR}
    assert slot(board).startswith(NEW)
    assert board.run(BLOCKS.replace("print", "ota.rollback.cancel(); print")).labels == ("ota_1",)
    assert board.run(BLOCKS).output == "None\n"  # another app, another driver
    put(board, bundle(app(OTHER)))
    assert "LoadProhibited" in board.run(call).output


@pytest.mark.parametrize("how", ["written", "ignored", "partial", "accepted"])
def test_an_erase_that_does_something_else_is_given_up_at_once(board: Board, how: str) -> None:
    board.null_erase = how  # type: ignore[assignment]
    run = board.run(TRY.format(call=INSTALL.format(put(board, bundle(app())))))
    assert run.output == "INSTALLED\n", run.console
    assert slot(board) == NEW + b"\xff" * (OTA_1.size - len(NEW))
    board.flash.erase(OTADATA.offset, OTADATA.size)
    assert board.run(BLOCKS).output == "False\n"
    put(board, bundle(app(OTHER)))
    run = board.run(TRY.format(call=INSTALL.format("/frozen/file")))
    assert (run.output, in_slot(run)) == ("INSTALLED\n", {SECTOR}), run.console
    assert slot(board) == OTHER + b"\xff" * (OTA_1.size - len(OTHER))


def test_encrypted_slots_are_erased_by_sectors(tmp_path: Path) -> None:
    table = tuple(
        boards.Partition(p.label, p.type, p.subtype, p.offset, p.size, 1) if p.type == 0 else p
        for p in boards.OTA_TABLE
    )
    board = releases.board(tmp_path, table=table)
    board.flash.write(OTA_1.offset, FALLBACK)
    run = board.run(TRY.format(call=UPDATE.format(put(board, NEW), "")))
    assert (run.output, in_slot(run)) == ("INSTALLED\n", {SECTOR}), run.console
    assert board.run(BLOCKS).output == "None\n"


def test_without_room_for_its_note_no_block_is_asked_for(board: Board) -> None:
    board.call_faults = [CallFault("nvs_set", 0x1105, "erase")]
    board.null_erase = "crashes"
    run = board.run(TRY.format(call=INSTALL.format(put(board, bundle(app())))))
    assert (run.output, in_slot(run)) == ("INSTALLED\n", {SECTOR}), run.console
