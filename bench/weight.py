"""What `ota` weighs on a board without PSRAM: storage, flash reads, heap, flash time.

    python -m bench weight

The package is installed in the file system, as .mpy, as boards have it; the app is the real one
(../shared/firmware, else one made as large). Reads are those that MicroPython makes, less those of
a board that only starts: each one stops both cores of a board. What ESP-IDF reads for itself (NVS,
otadata, the image that set_boot() verifies) is not counted. Heap is what is free when boot.py
starts, the least that is enough: all larger ones up to `_MARGIN` were tried as well, so that none
succeeds by chance of fragments. Interpreter time is CPU time with the package as built-in modules,
since the file system here is written in Python. Beside each figure stands that of version 0.1,
measured by this module.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from http.client import HTTPException
from pathlib import Path

from mpota.errors import MpotaError
from mpota.filesystem.block_device import MemoryDevice
from mpota.filesystem.littlefs import FileSystem
from mpota.formats.bundle import Bundle
from mpota.formats.channel import Channel
from mpota.formats.manifest import Manifest
from mpota.formats.tar import Member, write_tar
from mpota.mpy_cross import PORTABLE, compile_module
from mpota.publish.publishing import Keys, Wishes, carry_out, plan_releases
from mpota.publish.store import Directory
from mpota.push.install import COMPACT
from mpota.push.wire import Update
from mpota.release.build import Content, bundle
from mpota.release.local_ca import LocalCa
from mpota.release.ota_package import package
from mpota.release.signing import PrivateKey, sign_line
from mpota.units import KiB
from mpota.virtual.board import Board, End, Run
from mpota.virtual.flash import VirtualFlash

from bench import board as plain
from bench import web
from bench.pairs import ROOT, pairs
from tests.support import page_boards
from tests.support.network import free_port, push_tcp
from tests.support.protocol_client import READY, Plain
from tests.support.radio import SECRET

_LOW, _HIGH, _STEP = 24 * KiB, 192 * KiB, KiB
_MARGIN = 8 * KiB
_FREE_HEAP = 1024 * KiB  # where heap is not what is measured

_INSTALL = """
import os
for folder in ("/lib", "/lib/ota"):
    os.mkdir(folder)
for name in sorted(os.listdir("/frozen/package")):
    with open("/frozen/package/" + name, "rb") as source, open("/lib/ota/" + name, "wb") as target:
        target.write(source.read())
"""  # as mpota does: install.py
_CANCEL = "import ota.rollback\nota.rollback.cancel()\n"
_UPDATE = """
import ota.update
ota.update.from_file("{root}/{name}", verbose=False, reboot=False, pause=0.01{more})
print("done")
"""
_RELEASE = """
import ota
ota.release.install("{root}/{name}", reboot=False)
print("done")
"""
# An app of some size that updates itself, and the same that follows something, after some polls.
_APP = "import ota.update\nkept = bytearray(24 * 1024)\n"
FOLLOW_CHANNEL = """
import ota.channel
channel = ota.channel.Channel("{root}", name="demo")
for _ in range({polls}):
    channel.due = ota.channel.ticks_ms()
    channel.poll()
if channel.code == "current" and not channel.error:
    print("done")
"""
# A release by its manifest, and the same by a channel, in an app of some size.
_BY_HAND = """
import ota
ota.release.install("{root}/{manifest}", reboot=False{more})
print("done")
"""
_BY_CHANNEL = """
import ota.channel
channel = ota.channel.Channel("{root}", name="demo", restart=lambda: None{more})
if channel.update():
    print("done")
"""
# What is held while the payload comes, in bytes.
_HELD = """
import gc
gc.collect()
before = gc.mem_alloc()
found = []
def progress(done, total):
    gc.collect()
    found.append(gc.mem_alloc() - before)
"""
FOLLOW_SERVER = """
import ota.ddi, time
client = ota.ddi.Client("{root}", "DEFAULT", "demo", token="0123456789abcdef")
for _ in range({polls}):
    client.due = time.ticks_ms()
    client.poll()
if client.code == "current" and not client.error:
    print("done")
"""
# At that server: nothing to do.
IDLE_ANSWER = b'{"config":{"polling":{"sleep":"00:05:00"}}}'
IDLE_PATH = "DEFAULT/controller/v1/demo"
# And the same that shows at a broker what the channel has.
FOLLOW_BROKER = """
import ota.channel, ota.mqtt
channel = ota.channel.Channel("{root}", name="demo")
updates = ota.mqtt.Updates(lambda *message: None, channel)
updates.connected(lambda *topic: None)
for _ in range({polls}):
    channel.due = ota.channel.ticks_ms()
    updates.poll()
if channel.code == "current" and not channel.error:
    print("done")
"""
# Two ways to be sent an update; the program ends when it has come, or when `_STOP` is offered.
_STOP = "stop"
_SERVES = """
import asyncio
def accept(size, chip, version):
    if version == {stop!r}:
        task.cancel()
        return False
async def main():
    global task
    {serves}
    task = asyncio.create_task(way.serve())
    while not (way.receiver.is_done or task.done()):
        await asyncio.sleep_ms(50)
    await asyncio.sleep_ms(500)
    if way.receiver.is_done:
        print("done")
asyncio.run(main())
"""
_WAYS = {
    "listener": "import ota.listen; way = ota.listen.Listener({options})",
    "page": "import ota.web; way = ota.web.Page({options})",
}
_TRUST = "import ota; ota.keys.add({digest!r})"
_FILES = 3  # of a release, beside main.py
# main.py of the release: it confirms, as each has to.
_MAIN = b"import ota.rollback\nota.rollback.cancel()\n"


# --- what is installed -------------------------------------------------------------------------


def compile_modules(sources: Iterable[Path]) -> dict[str, bytes]:
    """Modules (.py), compiled: name in the package -> .mpy."""
    return {
        f"{source.stem}.mpy": compile_module(source.read_bytes(), f"ota/{source.name}", PORTABLE)
        for source in sources
    }


@dataclass(frozen=True)
class Installed:
    """The flash of a board with modules in /lib/ota; ``used_size``: what they take, bytes."""

    content: bytes
    used_size: int


def install(files: Mapping[str, bytes], app: bytes) -> Installed:
    """A board that runs ``app`` and has ``files`` in /lib/ota, copied there one by one."""
    content = plain.make_flash(app)
    with tempfile.TemporaryDirectory() as directory, VirtualFlash.create(len(content)) as flash:
        folder = Path(directory) / "package"
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        flash.restore(content)
        board = Board(flash, heap_size=_FREE_HEAP, frozen=Path(directory))
        _run(board, _INSTALL + COMPACT)
        return Installed(flash.snapshot(), _used_size(flash.snapshot()) - _used_size(content))


def _used_size(content: bytes) -> int:
    """Bytes in blocks that the file system uses. (``os.statvfs`` counts directories twice.)"""
    vfs = next(p for p in plain.TABLE.partitions if p.label == "vfs")
    return FileSystem(MemoryDevice(vfs.size, content[vfs.offset : vfs.end])).usage().used_size


def _run(board: Board, script: str | None, timeout_s: float = 120) -> Run:
    run = board.run(script, timeout_s=timeout_s)
    if run.end is not End.IDLE or run.traceback:
        raise RuntimeError(run.console[-2000:])
    return run


@contextmanager
def board_with(content: bytes, heap_size: int = _FREE_HEAP) -> Iterator[Board]:
    """A board whose flash holds ``content``."""
    with VirtualFlash.create(len(content), {0: content}) as flash:
        yield Board(flash, heap_size=heap_size)


# --- reads -------------------------------------------------------------------------------------


def file_reads(content: bytes, script: str) -> int:
    """How often the file system reads the flash for ``script``, less what every boot reads."""
    with board_with(content) as board:
        idle = _run(board, "").file_reads
        board.flash.restore(content)
        return _run(board, script).file_reads - idle


def all_reads(content: bytes, script: str) -> int:
    """How often MicroPython reads the flash for ``script``, the slots included."""
    with board_with(content) as board:
        idle = _run(board, "").reads
        board.flash.restore(content)
        return _run(board, script).reads - idle


def cancel_reads(content: bytes) -> int:
    """What ``import ota.rollback; ota.rollback.cancel()`` reads at a boot with nothing to do."""
    with board_with(content) as board:
        _run(board, _CANCEL)  # a namespace in NVS may be made now
        settled = board.flash.snapshot()
    return file_reads(settled, _CANCEL)


def after_release(content: bytes, script: str, key: PrivateKey) -> bytes:
    """The flash of a board on which the release of ``script``, signed by ``key``, is confirmed."""
    with board_with(trusting(content, key)) as board:
        _run(board, script)
        _run(board, None)  # starts it: its main.py confirms
        return board.flash.snapshot()


def trusting(content: bytes, key: PrivateKey) -> bytes:
    """The flash of the board that trusts ``key`` from now on."""
    with board_with(content) as board:
        _run(board, _TRUST.format(digest=key.public.digest.hex()))
        return board.flash.snapshot()


# --- heap --------------------------------------------------------------------------------------


def least_heap(
    content: bytes, script: str, before: Callable[[], object] = lambda: None
) -> int | None:
    """The least heap (bytes) with which ``script`` prints "done", and so do all a little larger.

    ``before`` is called before each run. None: not even `_HIGH` is enough.
    """

    @functools.cache
    def is_enough(heap_size: int) -> bool:
        before()
        with board_with(content, heap_size) as board:
            run = board.run(script, timeout_s=60)
            return run.end is End.IDLE and run.output.endswith("done\n")

    low, high = _LOW, _HIGH
    if not is_enough(high):
        return None
    while True:
        while high - low > _STEP:
            middle = (low + high) // 2 // _STEP * _STEP
            low, high = (low, middle) if is_enough(middle) else (middle, high)
        found = high
        larger = range(found, min(found + _MARGIN, _HIGH), _STEP)
        worst = max((size for size in larger if not is_enough(size)), default=None)
        if worst is None:
            return found
        low, high = worst, min(worst + _MARGIN, _HIGH)
        while not is_enough(high):
            low, high = high, min(high + _MARGIN, _HIGH)


# --- a channel, a server -----------------------------------------------------------------------


def channel_file(key: PrivateKey) -> bytes:
    """A channel that has nothing for boards."""
    now = datetime.now(timezone.utc)
    line = Channel("demo", "stable", 1, now, now + timedelta(30)).to_line()
    return sign_line(line, (key,))


def is_of(name: str, part: str) -> bool:
    """Whether a file of the package is of that part, or shared by it with others."""
    return part in name.rpartition(".")[0].split("-")


def part_size(part: str, what: Subject, app: bytes) -> int:
    """What the part takes of the file system, beside all others; what those share counts too."""
    others = {name: data for name, data in what.everything.items() if not is_of(name, part)}
    return install(what.everything, app).used_size - install(others, app).used_size


def after_poll(content: bytes, root: str) -> bytes:
    """The flash of a board that knows the channel at ``root``, and has its ETag."""
    with board_with(content) as board:
        _run(board, FOLLOW_CHANNEL.format(root=root, polls=1))
        return board.flash.snapshot()


def idle_reads(content: bytes, root: str, follow: str) -> int:
    """Flash reads of two idle polls: those of three, less those of one and of all before it.

    ``follow``: `FOLLOW_CHANNEL`, `FOLLOW_SERVER` or `FOLLOW_BROKER`.
    """
    one, three = (all_reads(content, follow.format(root=root, polls=polls)) for polls in (1, 3))
    return three - one


def idle_heap(content: bytes, root: str, follow: str, beside: str = "print('done')") -> int | None:
    """Bytes that it takes to follow something up to an idle poll, beside `ota.update`, or that and
    what another script follows.
    """
    without, follows = (
        least_heap(content, _APP + script.format(root=root, polls=2)) for script in (beside, follow)
    )
    return None if without is None or follows is None else follows - without


def published(app: Content, key: PrivateKey) -> dict[str, bytes]:
    """The files of a channel with a release of ``app`` and some files."""
    with tempfile.TemporaryDirectory() as name:
        store = Directory(Path(name))
        plan = plan_releases(store, (_bundle(app, key),), Wishes(), (key.public,))
        assert plan is not None
        carry_out(store, plan, Keys((key,)))
        paths = [path for path in Path(name).rglob("*") if path.is_file()]
        return {str(path.relative_to(name)): path.read_bytes() for path in paths}


def _ways(server: web.Server, more: str = "") -> tuple[str, str]:
    """Scripts that install what is published: by hand, and by the channel."""
    manifest = next(name for name in server.files if name.endswith(".json"))
    by_hand, by_channel = (
        way.format(root=server.root, manifest=manifest, more=more)
        for way in (_BY_HAND, _BY_CHANNEL)
    )
    return by_hand, by_channel


def held_by_channel(content: bytes, server: web.Server) -> int:
    """Bytes that following a channel holds while its release comes, beside what that takes."""

    def held(script: str) -> int:
        with board_with(content) as board:
            # The least of several: what a collection takes for a pointer is kept as well.
            least = "print(min(found[len(found) // 2 :]))"
            return int(_run(board, _HELD + script + least).output.split()[-1])

    by_hand, by_channel = map(held, _ways(server, ", progress=progress"))
    return by_channel - by_hand


def install_heap(content: bytes, server: web.Server) -> int | None:
    """Bytes of heap that a channel's release takes beside the same one without the channel."""
    by_hand, by_channel = (least_heap(content, _APP + way) for way in _ways(server))
    return None if by_hand is None or by_channel is None else by_channel - by_hand


# --- a page ------------------------------------------------------------------------------------


def served_heap(content: bytes, app: bytes, way: str) -> int | None:
    """The least heap (bytes) with which a board takes ``app`` by one of `_WAYS`."""
    port = free_port()
    client = _push if way == "listener" else _post
    options = f"{SECRET!r}, host='127.0.0.1', port={port}, reboot=False, accept=accept"
    serves = _WAYS[way].format(options=options)
    threads: list[threading.Thread] = []

    def send() -> None:
        for version in ("2", _STOP):
            with suppress(MpotaError, OSError, HTTPException, AssertionError):
                client(port, app, version)

    def start() -> None:
        for thread in threads:
            thread.join()
        threads[:] = [threading.Thread(target=send)]
        threads[0].start()

    found = least_heap(content, _SERVES.format(serves=serves, stop=_STOP), start)
    threads[0].join()
    return found


def _push(port: int, app: bytes, version: str) -> None:
    push_tcp(port, Update("app", app, version=version), attempts=40)


def _post(port: int, app: bytes, version: str) -> None:
    async def send(client: Plain) -> None:
        await client.greet()
        if (await client.begin(app, version=version.encode()))[0] == READY:
            await client.send(app, follow=True)
            await client.end()

    page_boards.wait_for(port, 10)
    page_boards.talk(port, send)


# --- the table ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """``value`` is of the package measured, ``former`` of version 0.1; both in ``unit``."""

    name: str
    unit: str
    value: float | None
    goal: float
    former: float | None


# The goal of each figure, and what version 0.1 had, measured by this module.
_FIGURES: dict[str, tuple[str, float, float | None]] = {
    "core in the file system": ("KiB", 64, 248),
    "all parts in the file system": ("KiB", 128, 248),
    "flash reads, imports of an update over HTTP": ("", 2000, 10554),
    "flash reads, cancel() at boot": ("", 300, 1598),
    "flash reads, cancel() at boot, releases in use": ("", 300, 4639),
    "flash reads, signed release whose app is there": ("", 4000, 37600),
    "heap, update over HTTP that breaks twice": ("KiB", 44, 56),
    "heap, update over TLS": ("KiB", 56, 74),
    "heap, signed bundle with files": ("KiB", 64, 82),
    "heap, the same compressed": ("KiB", 64, 89),
    "heap, the same as a delta": ("KiB", 72, 95),
    "channel in the file system, beside all other parts": ("KiB", 40, None),
    "flash reads, idle poll of a channel": ("", 0, None),
    "heap, idle poll of a channel, beside ota.update": ("KiB", 8, None),
    "ddi in the file system, beside all other parts": ("KiB", 40, None),
    "flash reads, idle poll of a server": ("", 0, None),
    "heap, idle poll of a server, beside ota.update": ("KiB", 8, None),
    "heap, a delta by a channel, beside the same without": ("KiB", 8, None),
    "mqtt in the file system, beside all other parts": ("KiB", 16, None),
    "flash reads, idle poll of a channel, with mqtt": ("", 0, None),
    "heap, the same, beside a channel without mqtt": ("KiB", 8, None),
    "page (ota.web) in the file system, beside all other parts": ("KiB", 20, None),
    "heap, image by the page, beside that by ota.listen": ("KiB", 6, None),
    "flash time at the least heap": ("s", 6.8, 21.2),
    "interpreter time, plain loop with SHA-256 is 1": ("", 1.2, 1.3),
}


@dataclass(frozen=True)
class Subject:
    """What is measured: the core, and the whole package. File in the package -> its content."""

    core: Mapping[str, bytes]
    everything: Mapping[str, bytes]


def subject() -> Subject:
    """The package as `mpota install` brings it."""
    return Subject(package(PORTABLE, True, ()), package(PORTABLE, True))


def measure(
    what: Subject, told: Callable[[str, float | None], None] = lambda name, value: None
) -> dict[str, float | None]:
    """All figures by their names, each told as soon as it is known."""
    found: dict[str, float | None] = {}
    pair = next(pair for pair in pairs() if pair.what.startswith("function"))
    key = PrivateKey.generate()
    core, everything = (install(files, pair.old) for files in (what.core, what.everything))
    names = iter(_FIGURES)

    def tell(value: float | None) -> None:
        name = next(names)
        found[name] = value
        told(name, value)

    tell(core.used_size / KiB)
    tell(everything.used_size / KiB)
    with web.serving(_served(pair.old, pair.new, key)) as server:
        update = _UPDATE.format(root=server.root, name="app.bin", more="")
        release = _RELEASE.format(root=server.root, name="app.bundle")
        tell(file_reads(core.content, update))
        tell(cancel_reads(core.content))
        used = after_release(everything.content, release, key)
        tell(cancel_reads(used))
        trusted = trusting(everything.content, key)
        tell(all_reads(_with_app(trusted, pair.new), release))

        def broken() -> None:
            server.breaks[:] = [1 / 3, 2 / 3]

        least = least_heap(core.content, update, broken)
        tell(_kib(least))
        tell(_kib(_least_heap_tls(core.content, pair.new)))
        for name in ("app.bundle", "compressed.bundle", "delta.bundle"):
            script = _RELEASE.format(root=server.root, name=name)
            tell(_kib(least_heap(trusted, script)))
        following = after_poll(trusted, server.root)
        for part, follow in (("channel", FOLLOW_CHANNEL), ("ddi", FOLLOW_SERVER)):
            tell(part_size(part, what, pair.old) / KiB)
            tell(idle_reads(following, server.root, follow))
            tell(_kib(idle_heap(following, server.root, follow)))
        delta = Content("app", "app.bin", pair.new).compressed().with_delta(pair.old)
        with web.serving(published(delta, key)) as channel:
            tell(_kib(install_heap(trusted, channel)))
        tell(part_size("mqtt", what, pair.old) / KiB)
        tell(idle_reads(following, server.root, FOLLOW_BROKER))
        tell(_kib(idle_heap(following, server.root, FOLLOW_BROKER, beside=FOLLOW_CHANNEL)))
        tell(part_size("web", what, pair.old) / KiB)
        listener, page = (served_heap(everything.content, pair.new, way) for way in _WAYS)
        tell(None if listener is None or page is None else (page - listener) / KiB)
        with board_with(core.content, least or _HIGH) as board:
            tell(_run(board, update).duration_ms / 1000)
    tell(_interpreter_time(pair.old, pair.new))
    return found


def _kib(size: int | None) -> float | None:
    return None if size is None else size / KiB


def _served(old: bytes, new: bytes, key: PrivateKey) -> dict[str, bytes]:
    app = Content("app", "app.bin", new)
    forms = {
        "app.bundle": app,
        "compressed.bundle": app.compressed(),
        "delta.bundle": app.compressed().with_delta(old),
    }
    files = {name: _bundle(form, key).to_bytes() for name, form in forms.items()}
    served = {"stable.channel": channel_file(key), IDLE_PATH: IDLE_ANSWER}
    return {"app.bin": new} | served | files


def _bundle(app: Content, key: PrivateKey) -> Bundle:
    """A release of an app and some files, signed."""
    members = [
        Member("lib", b"", is_directory=True),
        *(
            Member(f"lib/part{n}.py", f"N = {n}\n".encode() + b"# code\n" * 500)
            for n in range(_FILES)
        ),
        Member("main.py", _MAIN),
    ]
    files = Content("files", "files.tar", write_tar(members))
    payloads = (app.payload(), files.payload())
    manifest = Manifest(payloads=payloads, name="demo", version="2.0", chip="esp32", counter=1)
    return bundle(manifest, (app, files), (key,))


def _with_app(content: bytes, app: bytes) -> bytes:
    """The flash with ``app`` in the slot that does not run."""
    slot = next(p for p in plain.TABLE.partitions if p.label == "ota_1")
    return content[: slot.offset] + app + content[slot.offset + len(app) :]


def _least_heap_tls(content: bytes, app: bytes) -> int | None:
    ca = LocalCa.make()
    with board_with(content) as board:
        _run(board, f"with open('/ca.der', 'wb') as file: file.write({ca.der!r})")
        trusting_ca = board.flash.snapshot()
    with web.serving({"app.bin": app}, ca.server_context([web.HOST])) as server:
        more = ", cafile='/ca.der'"
        script = _UPDATE.format(root=server.root, name="app.bin", more=more)
        return least_heap(trusting_ca, script)


def _interpreter_time(old: bytes, new: bytes) -> float:
    """CPU time of an update, of the plain loop with SHA-256 if that is 1: by turns, in one run."""
    content = plain.make_flash(old)
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "app.bin").write_bytes(new)
        modules = Path(directory) / "ota"
        modules.mkdir()
        for name, data in compile_modules((ROOT / "device" / "ota").glob("*.py")).items():
            (modules / name).write_bytes(data)
        with plain.serving(Path(directory)) as where, VirtualFlash.create(len(content)) as flash:
            board = Board(flash, heap_size=plain.HEAP_SIZE, frozen=Path(directory))
            root = "http://{host}:{port}".format(**where)
            bodies = {
                "plain": plain.HASHED.format(**where),
                "ota": _UPDATE.format(root=root, name="app.bin", more=""),
            }
            hashed, ota = plain.measure(board, content, bodies)
    return ota.cpu_ms / hashed.cpu_ms


def report(found: Mapping[str, float | None]) -> None:
    print(f"{'':50}{'0.1':>10}{'now':>10}{'goal':>10}")
    for figure in figures(found):
        print(
            f"{figure.name:50}{_text(figure.former):>10}{_text(figure.value):>10}"
            f"{_text(figure.goal):>10} {figure.unit}"
        )


def figures(found: Mapping[str, float | None]) -> list[Figure]:
    return [
        Figure(name, unit, found.get(name), goal, former)
        for name, (unit, goal, former) in _FIGURES.items()
    ]


def _text(number: float | None) -> str:
    if number is None:
        return "-"
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:.1f}"


def main() -> None:
    def told(name: str, value: float | None) -> None:
        print(f"  {name}: {_text(value)}", file=sys.stderr, flush=True)

    report(measure(subject(), told))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
