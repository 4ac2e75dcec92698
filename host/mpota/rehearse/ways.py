"""How an update comes to a rehearsed board: the ways that boards have, on loopback.

Each is the real thing at both ends: the board's own code, and `mpota serve`, `mpota push` or what
else sends updates from a desk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from mpota.errors import MpotaError, UsageError
from mpota.push.update import HealthCheck, Options, Package
from mpota.rehearse.offer import CHANNEL, RELEASE, Offer
from mpota.rehearse.relay import LOOPBACK, Relay
from mpota.release.local_ca import LocalCa
from mpota.release.serve import serving
from mpota.virtual.board import Board, Run
from mpota.virtual.hawkbit.server import running
from mpota.virtual.hawkbit.state import State

_SECRET = "a secret of this rehearsal alone"
_NAME = "rehearsed"  # over Bluetooth
_ATTEMPTS = 40
_SETTLE_S = 0.5
_LOOK_S = 0.1
_LAST_WORDS_S = 5.0  # for the sender to notice that the board is off
_TOLD = re.compile(r"\x1e(\w+) (\S+) ?(.*)")
_DONE = "\x1edone"

_OPTIONS = Options(secret=_SECRET.encode(), attempts=_ATTEMPTS, pause_s=0.05)

_UPDATE = """
import ota
try:
    {call}
except Exception as error:
    print("\\x1erefused", getattr(error, "code", None) or type(error).__name__, error)
else:
    print("\\x1edone -")
    import machine
    machine.reset()
"""
_CHANNEL = """import ota.channel
    channel = ota.channel.Channel({url!r}, name={name!r}, channel={channel!r},
                                  restart=lambda: None{more})
    if not channel.update(by_hand=True):
        raise OSError(channel.code + ": " + channel.reason)"""
_DDI = """import ota.ddi
    client = ota.ddi.Client({url!r}, "DEFAULT", {id!r}, token={token!r}, restart=lambda: None)
    if not client.update():
        raise OSError(client.code + ": " + client.reason)"""
_LISTEN = """
import asyncio, ota.listen
asyncio.run(ota.listen.Listener({secret!r}, host="127.0.0.1", port={port}).serve())
"""
_PERIPHERAL = """
import ota.ble, time
peripheral = ota.ble.Peripheral({name!r}, secret={secret!r})
peripheral.start()
while True:
    peripheral.poll()
    time.sleep_ms(1)
"""


@dataclass(frozen=True)
class Played:
    """An update that was tried. ``error``: why it was not taken, empty if it was."""

    error: str
    console: str
    run: Run | None = None


# Powers the board on, with a script in place of its main.py or without, until it is at rest.
RunBoard = Callable[..., Run]
Send = Callable[[Package], Coroutine[Any, Any, object]]


class Line(Protocol):
    """What an update comes over: it counts, and breaks where it is told to."""

    to_board: int  # bytes that have gone there since `restart`

    @property
    def taken(self) -> int:
        """Bytes that have arrived there."""

    def restart(self, break_at: int | None = None) -> None:
        """Count from 0; break once, after ``break_at`` bytes."""


class Way:
    """One way; a context manager while it is open. ``line`` counts, None: nothing is counted."""

    line: Line | None = None
    can_force = True  # the board can be told to take a release that has failed on it

    def play(self, offer: Offer, *, is_forced: bool = False) -> Played:
        """Power the board on, have it take ``offer``, restart, and come to rest."""
        raise NotImplementedError


@dataclass
class Site:
    """A directory on a server on loopback, and the line to it."""

    directory: Path
    relay: Relay
    scheme: str
    ca: LocalCa | None

    def url(self, path: str) -> str:
        return f"{self.scheme}://{LOOPBACK}:{self.relay.port}/{path}"

    @property
    def arguments(self) -> str:
        """What boards are given to trust its certificate."""
        return f", cadata={self.ca.der!r}" if self.ca else ""


class ByServer(Way):
    """The board fetches: http, https, a channel."""

    def __init__(self, site: Site, run: RunBoard) -> None:
        self._site = site
        self._run = run
        self.line = site.relay

    def play(self, offer: Offer, *, is_forced: bool = False) -> Played:
        put(self._site.directory, offer)
        run = self._run(_UPDATE.format(call=self._call(offer, is_forced)))
        return _told(run)

    def _call(self, offer: Offer, is_forced: bool) -> str:
        site = self._site
        more = site.arguments + (", force=True" if is_forced else "")
        if offer.kind == CHANNEL:
            assert offer.channel is not None
            folder = site.url(folder_of(offer))
            name, channel = offer.channel.name, offer.channel.channel
            return _CHANNEL.format(url=folder, name=name, channel=channel, more=site.arguments)
        url = site.url(f"{folder_of(offer)}/{offer.path}")
        if offer.kind == RELEASE:
            return f"ota.release.install({url!r}, reboot=False{more})"
        return f"ota.update.from_file({url!r}, verbose=False, reboot=False{more})"


class ByDdi(Way):
    """The board follows a stand-in for hawkBit, where the release is assigned to it."""

    can_force = False

    def __init__(self, state: State, relay: Relay, run: RunBoard) -> None:
        self._state = state
        self._run = run
        self._port = relay.port
        self.line = relay

    def play(self, offer: Offer, *, is_forced: bool = False) -> Played:
        state = self._state
        for known in (state.targets, state.modules, state.sets, state.actions):
            known.clear()
        state.allow_target_tokens()
        if offer.is_following:  # boards know actions by their numbers: the first one is over
            state.assign(state.publish("former", "1", {"1": b"1"}), state.add_target("another"))
        target = state.add_target(_NAME, _SECRET)
        state.assign(state.publish(offer.path, offer.version, {offer.path: offer.data}), target)
        url = f"http://{LOOPBACK}:{self._port}"
        call = _DDI.format(url=url, id=_NAME, token=_SECRET)
        return _told(self._run(_UPDATE.format(call=call)))


def folder_of(offer: Offer) -> str:
    """A folder of its own on the server, so that nothing that follows stands in its place."""
    return "then" if offer.is_following else "release"


def put(directory: Path, offer: Offer) -> None:
    """Its files onto the server, with one time for all: boards remember the tags made of it."""
    folder = directory / folder_of(offer)
    if folder.exists():
        return
    for name, data in offer.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (1_700_000_000, 1_700_000_000))


def _told(run: Run) -> Played:
    """The error that a script ended with, "" if it ended well."""
    if _DONE in run.output:
        return Played("", run.console, run)
    found = _TOLD.search(run.output)
    if found is not None:
        return Played(f"{found[2]}: {found[3].strip()}", run.console, run)
    lines = run.traceback.strip().splitlines()
    return Played(lines[-1] if lines else f"it ended without a word ({run.end.value})", run.console)


class BySending(Way):
    """The desk sends to a board that listens: over TCP, or over Bluetooth."""

    def __init__(self, run: RunBoard, script: str, send: Send, line: Line) -> None:
        self._run = run
        self._script = script
        self._send = send
        self.line = line

    def play(self, offer: Offer, *, is_forced: bool = False) -> Played:
        runs: list[Run] = []
        failures: list[BaseException] = []
        off, switch = os.pipe()

        def power_on() -> None:
            try:
                runs.append(self._run(self._script, power_fd=off))
            except BaseException as error:
                failures.append(error)

        board = threading.Thread(target=power_on, daemon=True)
        board.start()
        error = ""
        try:
            package = Package.of_data(offer.name, offer.data)
            asyncio.run(self._sending(package, board, lambda: any(r.traceback for r in runs)))
        except MpotaError as failed:
            error = str(failed)
            os.write(switch, b"0")  # a board that listens does so for ever
        finally:
            board.join()
            os.close(off)
            os.close(switch)
        if failures:
            raise failures[0]
        if error and runs[0].traceback:  # it had ended before it was reached
            error = runs[0].traceback.strip().splitlines()[-1]
        return Played(error, runs[0].console, runs[0])

    async def _sending(
        self, package: Package, board: threading.Thread, has_failed: Callable[[], bool]
    ) -> None:
        """Send, as long as the board is on."""
        sending = asyncio.create_task(self._send(package))
        while board.is_alive() and not sending.done():
            await asyncio.wait([sending], timeout=_LOOK_S)
        if not has_failed():
            await asyncio.wait([sending], timeout=_LAST_WORDS_S)
        if not sending.done():
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending
            raise MpotaError("the board does not listen any more")
        await sending


class ByCable(Way):
    """`mpota push` at the board's REPL, which sees the board through its restart, and confirms."""

    def __init__(self, board: Board, check: HealthCheck) -> None:
        self._board = board
        self._check = check

    def play(self, offer: Offer, *, is_forced: bool = False) -> Played:
        from mpota.push import serial
        from mpota.push.repl import Session
        from mpota.virtual.repl import ConsolePort
        from mpota.virtual.serial_port import SerialPort

        options = Options(check=self._check, settle_s=_SETTLE_S, force=is_forced)
        package = Package.of_data(offer.name, offer.data)
        console = ConsolePort(self._board)
        error = ""
        with SerialPort(console) as port, console:
            try:
                with Session(port.path) as session:
                    serial.push(session, package, options)
            except MpotaError as failed:
                error = str(failed)
        if console.failure is not None and not error:
            error = str(console.failure)
        return Played(error, "")


# --- opening them ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What a way is opened with: ``run`` powers ``board`` on; ``directory`` is for a server."""

    board: Board
    run: RunBoard
    directory: Path
    check: HealthCheck


@contextmanager
def _by_server(setting: Setting, is_secure: bool) -> Iterator[Way]:
    ca = _authority(setting.directory.parent) if is_secure else None
    with (
        _served(setting.directory, ca) as port,
        Relay((LOOPBACK, port)) as relay,
    ):
        scheme = "https" if is_secure else "http"
        yield ByServer(Site(setting.directory, relay, scheme, ca), setting.run)


def _authority(directory: Path) -> LocalCa:
    """One certificate authority for all processes; boards are given its certificate."""
    return LocalCa.open(directory)


@contextmanager
def _served(directory: Path, ca: LocalCa | None) -> Iterator[int]:
    """`mpota serve` in a thread; its port."""
    loop = asyncio.new_event_loop()
    ports: list[int] = []
    failures: list[BaseException] = []
    is_up = threading.Event()
    stop = asyncio.Event()

    async def main() -> None:
        async with serving(directory, LOOPBACK, 0, ca) as server:
            ports.append(int(server.url.rstrip("/").rpartition(":")[2]))
            is_up.set()
            await stop.wait()

    def serve() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(main())
        except BaseException as error:
            failures.append(error)
            is_up.set()
        finally:
            loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    is_up.wait()
    if failures:
        raise failures[0]
    try:
        yield ports[0]
    finally:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(stop.set)
        thread.join()


@contextmanager
def _by_tcp(setting: Setting) -> Iterator[Way]:
    from mpota.push import tcp
    from mpota.push.wire import Update, send_update

    port = _free_port()
    with Relay((LOOPBACK, port), is_board_behind=True) as relay:
        connect = partial(tcp.connect, LOOPBACK, relay.port)

        async def send(package: Package) -> object:
            return await send_update(connect, Update.of(package), _OPTIONS)

        yield BySending(setting.run, _LISTEN.format(secret=_SECRET, port=port), send, relay)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((LOOPBACK, 0))
        return int(found.getsockname()[1])


@contextmanager
def _by_ble(setting: Setting) -> Iterator[Way]:
    try:
        from mpota.virtual.radio import Radio
    except ImportError:
        raise UsageError(
            "--by ble needs a radio that is modelled", "pip install 'mpota[radio]'"
        ) from None
    from mpota.push import ble
    from mpota.push.wire import Update

    with Radio() as radio:
        setting.board.radio_port = radio.port
        backend = ble.Backend(radio.client, radio.scanner)

        async def send(package: Package) -> object:
            update = Update.of(package)
            return await ble.push(_NAME, update, _OPTIONS, timeout_s=2, backend=backend)

        yield BySending(setting.run, _PERIPHERAL.format(name=_NAME, secret=_SECRET), send, radio)


@contextmanager
def _by_ddi(setting: Setting) -> Iterator[Way]:
    state = State()
    with running(state) as server:
        host, _, port = server.url.rpartition("/")[2].partition(":")
        with Relay((host, int(port))) as relay:
            yield ByDdi(state, relay, setting.run)


@contextmanager
def _by_cable(setting: Setting) -> Iterator[Way]:
    yield ByCable(setting.board, setting.check)


WAYS: dict[str, Callable[[Setting], contextlib.AbstractContextManager[Way]]] = {
    "http": lambda setting: _by_server(setting, False),
    "https": lambda setting: _by_server(setting, True),
    "push": _by_cable,
    "tcp": _by_tcp,
    "ble": _by_ble,
    "channel": lambda setting: _by_server(setting, False),
    "ddi": _by_ddi,
}
