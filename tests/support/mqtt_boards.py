"""Boards that run the code of docs/guides/mqtt.md with real clients and a real broker."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpota.virtual.board import Board, End, Run

from tests.support import channels, mqtt, mqtt_clients, ota_package, web
from tests.support.channels import Site
from tests.support.mqtt import BOARD, PASSWORD, Broker, Desk
from tests.support.real_files import ROOT

GUIDE = ROOT / "docs" / "guides" / "mqtt.md"
HEAP = 144 * 1024  # as the stock firmware has it, with Wi-Fi connected

STATUS, UPDATE, INSTALL = (f"mpota/{BOARD}/{name}" for name in ("status", "update", "install"))
CONFIG = f"homeassistant/device/{BOARD}/config"

# Before the guide's code: what it leaves to the reader; the first poll comes at once; and tests
# say on the command topic what the app does next.
_PRELUDE = """
import machine, ota, ota.follow
ota.follow.random = lambda count: 0
import ota.channel, ota.mqtt
BROKER, PORT, USER, PASSWORD = "localhost", {port}, {user!r}, {password!r}
SSID = WIFI_PASSWORD = "none"
class Stop(BaseException):
    pass
class Told(ota.mqtt.Updates):
    is_over = False
    def _is_due(self):
        if self.is_over:
            raise Stop  # not in a client's callback: it might swallow it
        return super()._is_due()
    def message(self, topic, msg, *more):
        if msg == b"test: stop":
            self.is_over = True
        if msg == b"test: confirm":
            ota.rollback.cancel()
        if msg == b"test: reset":
            machine.reset()
        if msg == b"test: look":
            self.channel.due = ota.channel.ticks_ms()
        if msg == b"test: ping":
            self.publish(self.topic + b"status", b"online", True, 0)
        super().message(topic, msg, *more)
ota.mqtt.Updates = Told
"""


def guide(client: str) -> str:
    """The code of the guide for a client."""
    found = re.search(rf"<!-- test: {re.escape(client)} -->\n```python\n(.*?)```", _guide(), re.S)
    assert found, client
    return found[1]


def _guide() -> str:
    return GUIDE.read_text(encoding="utf-8")


def program(client: str, broker: Broker, site: Site, options: str = "", before: str = "") -> str:
    """The guide's code for a client, with this broker and channel.

    ``options``: further ones of Updates; ``before``: code that comes first.
    """
    code = guide(client).replace("https://files.example.org/pump", site.url)
    code = code.replace(', name="Pump")', f', name="Pump"{options})')
    return before + _PRELUDE.format(port=broker.port, user=BOARD, password=PASSWORD) + code


class Running:
    """A board that runs ``script`` now, and as its main.py after each reset, in a thread."""

    def __init__(self, board: Board, script: str, desk: Desk) -> None:
        self._desk = desk
        self._board = board
        self._script = f"with open('main.py', 'w') as f: f.write({script!r})\n{script}"
        self._run: Run | None = None
        self._thread = threading.Thread(target=self._live)
        self._thread.start()

    def _live(self) -> None:
        self._run = self._board.run(self._script, timeout_s=3 * mqtt.WAIT_S)
        self._desk.give_up(self._run.console)

    def stop(self) -> Run:
        """All that it did, when the app was there to be told."""
        self._desk.publish(INSTALL, "test: stop")
        return self.end()

    def end(self) -> Run:
        self._thread.join()
        self._desk.give_up("")  # but the broker may have something to say yet
        assert self._run
        assert self._run.end is End.IDLE, self._run.console
        return self._run

    def __enter__(self) -> Running:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._thread.is_alive():
            self._desk.publish(INSTALL, "test: stop")
            self._thread.join()


@contextmanager
def board(directory: Path, client: str = "umqtt.simple") -> Iterator[Board]:
    """A board with `ota` and a client; it trusts a key and has confirmed release 1.0."""
    frozen = directory / "frozen"
    shutil.copytree(ota_package.compiled(), frozen)
    mqtt_clients.install(client, frozen)
    with channels.board(heap_size=HEAP) as made:
        made.frozen = frozen
        made.run(f"with open('/ca.der', 'wb') as f: f.write({web.root().der!r})")
        yield made


def states(desk: Desk) -> list[str]:
    """What Home Assistant shows, state by state: `mqtt.entity`."""
    return mqtt.entity(desk.messages, UPDATE)
