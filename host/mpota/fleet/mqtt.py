"""Boards as they tell of themselves over MQTT: ``mqtt[s]://[USER@]HOST[:PORT][/BASE]``.

What `ota.mqtt` sends stands at the broker: discovery and states at rest are retained. All of it is
what a board, or whoever may write to its topics, says.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mpota.errors import UsageError
from mpota.fleet.row import BoardStage, Row
from mpota.storage.file import read_credentials

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

SCHEMES = ("mqtt", "mqtts")
USER, PASSWORD = "MPOTA_MQTT_USER", "MPOTA_MQTT_PASSWORD"
_FILE, _CA = "MPOTA_MQTT_FILE", "MPOTA_MQTT_CA"
_FORM = "mqtts://HOST/mpota"
_HINT = f"{USER} and {PASSWORD}, or {_FILE} with USER:PASSWORD in it"
_BASE = re.compile(r"[^+#\0/]{1,64}(/[^+#\0/]{1,64}){0,3}")
_HOST = re.compile(r"[A-Za-z0-9_.:-]+")
_PORTS = {"mqtt": 1883, "mqtts": 8883}
_BOARD = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_PAYLOAD = 4096
_MAX_BOARDS = 100_000
_ANSWER_S = 10.0  # for a broker to let us in, and after a connection was lost
_QUIET_S = 0.3  # after the last retained message, before the table is taken for whole
_MOST_S = 10.0  # for all retained messages to come
_RESTART = timedelta(minutes=2)  # a board that restarts may be away so long
# How a board's text of a release that failed begins: device/ota/mqtt_state.py.
_ENDED = re.compile(r"(?P<version>\S+) (failed|refused): (?P<why>.*)", re.S)
_WAITS = re.compile(r"\S+ waits(: .*)?|\S+: its turn comes later", re.S)
_RESTARTS = " waits for the restart"


@dataclass(frozen=True)
class Broker:
    """Where boards tell of themselves: topics are ``base``/ID/update and ``base``/ID/status."""

    host: str
    port: int
    is_tls: bool
    base: str = "mpota"
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: str | None = None  # a file of certificates

    @property
    def name(self) -> str:
        """What people call it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.is_tls else 'mqtt'}://{host}:{self.port}/{self.base}"


def parse_broker(target: str, environment: Mapping[str, str] = os.environ) -> Broker:
    """With the credentials of the environment, if there are any. Raises UsageError."""
    try:
        found = urlsplit(target)
        port = found.port
    except ValueError:
        raise UsageError(f"'{target}' is no URL", _FORM) from None
    if found.password is not None:
        raise UsageError("a password has no place in a URL: others can see it", _HINT)
    base = found.path.strip("/") or "mpota"
    host = found.hostname or ""
    is_url = found.scheme in SCHEMES and _HOST.fullmatch(host) and _BASE.fullmatch(base)
    if not is_url or found.query or found.fragment:
        raise UsageError(f"'{target}' is not {_FORM}", "the path is the base of the boards' topics")
    user, password = _credentials(found.username, environment)
    is_tls = found.scheme == "mqtts"
    ca = environment.get(_CA)
    return Broker(host, port or _PORTS[found.scheme], is_tls, base, user, password, ca)


def _credentials(user: str | None, environment: Mapping[str, str]) -> tuple[str | None, str | None]:
    password = environment.get(PASSWORD)
    user = user or environment.get(USER)
    if name := environment.get(_FILE):
        named, password = read_credentials(name)
        user = user or named
    if (user is None) != (password is None):
        raise UsageError("a user needs a password, and a password a user", _HINT)
    return user, password


@contextmanager
def open_broker(broker: Broker) -> Iterator[MqttSource]:
    """Connected until the block ends. Raises UsageError where the broker does not let us in."""
    source = MqttSource(broker)
    try:
        source.connect()
        yield source
    finally:
        source.close()


class MqttSource:
    """See `mpota.fleet.row.BoardSource`. It listens all the time: `read` tells what has come."""

    every_s = 1.0

    def __init__(self, broker: Broker) -> None:
        self.name = broker.name
        self._broker = broker
        self._boards: dict[str, _Board] = {}
        self._changed = threading.Condition()
        self._is_subscribed = False
        self._came = 0.0  # time.monotonic() of the last message
        self._problem = ""  # why there is no connection
        self._is_refused = False  # the broker does not let us in: waiting is of no use
        self._client = _make_client(broker)
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._disconnected
        self._client.on_subscribe = self._subscribed
        self._client.on_message = self._take

    def connect(self) -> None:
        try:
            self._client.connect(self._broker.host, self._broker.port, keepalive=30)
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.name}: {error}") from None
        self._client.loop_start()
        self._wait_until_subscribed()
        deadline = time.monotonic() + _MOST_S
        with self._changed:  # no message says that it is the last retained one: wait for silence
            while (left := self._came + _QUIET_S - time.monotonic()) > 0:
                if time.monotonic() > deadline:
                    break
                self._changed.wait(left)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def read(self) -> Sequence[Row]:
        self._wait_until_subscribed()
        with self._changed:
            return [replace(board.row(), source=self.name) for board in self._boards.values()]

    def _wait_until_subscribed(self) -> None:
        deadline = time.monotonic() + _ANSWER_S
        with self._changed:
            while not self._is_subscribed:
                left = deadline - time.monotonic()
                if left <= 0 or self._is_refused:
                    raise UsageError(f"{self.name}: {self._problem or 'no answer'}", _HINT)
                self._changed.wait(left)

    # --- called by the client, in its thread

    def _connected(self, client: Client, data: Any, flags: Any, reason: Any, more: Any) -> None:
        if reason.is_failure:
            self._refuse(f"the broker refuses: {reason}")
            return
        # QoS 0: what is retained comes at once, in order, before a broker's answer to what follows.
        client.subscribe([(f"{self._broker.base}/+/{kind}", 0) for kind in _KINDS])

    def _disconnected(self, client: Client, data: Any, flags: Any, reason: Any, more: Any) -> None:
        with self._changed:
            self._is_subscribed = False
            self._problem = self._problem or f"the connection is lost: {reason}"

    def _subscribed(self, client: Client, data: Any, mid: int, reasons: Any, more: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            self._refuse(f"the broker lets us read nothing of {self._broker.base}/")
            return
        with self._changed:
            self._is_subscribed, self._problem = True, ""
            self._came = time.monotonic()
            self._changed.notify_all()

    def _refuse(self, problem: str) -> None:
        with self._changed:
            self._problem, self._is_refused = problem, True
            self._changed.notify_all()

    def _take(self, client: Client, data: Any, message: MQTTMessage) -> None:
        try:
            board, _, kind = message.topic.removeprefix(f"{self._broker.base}/").rpartition("/")
        except UnicodeDecodeError:
            return
        take = _KINDS.get(kind)
        if not take or not _BOARD.fullmatch(board) or len(message.payload) > _MAX_PAYLOAD:
            return
        with self._changed:
            self._came = time.monotonic()
            if board not in self._boards and len(self._boards) >= _MAX_BOARDS:
                return
            known = self._boards.setdefault(board, _Board(board))
            take(known, bytes(message.payload), None if message.retain else _now())
            self._changed.notify_all()


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _make_client(broker: Broker) -> Client:
    try:
        from paho.mqtt.client import Client, MQTTv5
        from paho.mqtt.enums import CallbackAPIVersion
    except ImportError:
        raise UsageError("mqtt:// needs paho-mqtt", "pip install 'mpota[mqtt]'") from None
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
    if broker.user is not None:
        client.username_pw_set(broker.user, broker.password)
    if broker.is_tls:
        try:
            client.tls_set(broker.ca)
        except (OSError, ValueError) as error:
            raise UsageError(f"{_CA}={broker.ca}: {error}") from None
    return client


# --- what a board says


class _Board:
    """What is known of one board; a key that a message lacks keeps its value."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._state: dict[str, Any] = {}
        self._is_online: bool | None = None
        self._stage = BoardStage.NEW
        self._since: datetime | None = None
        self._heard: datetime | None = None
        self._gone: datetime | None = None  # since when it is away

    def take_status(self, payload: bytes, at: datetime | None) -> None:
        """``at``: when it came, None for what stood at the broker."""
        self._is_online = {b"online": True, b"offline": False}.get(payload)
        self._gone = None if self._is_online is not False else at or _now()
        self._note(at if self._is_online else None, at)

    def take_update(self, payload: bytes, at: datetime | None) -> None:
        try:
            found = json.loads(payload)
        except (ValueError, RecursionError):
            return
        if not isinstance(found, dict):
            return
        for key, kind in _FIELDS.items():
            if key in found and isinstance(found[key], kind):
                self._state[key] = found[key]
        self._note(at, at)

    def _note(self, heard: datetime | None, at: datetime | None) -> None:
        self._heard = heard or self._heard
        stage = self._find_stage()
        if stage is not self._stage:
            self._stage, self._since = stage, at

    def _find_stage(self) -> BoardStage:
        state, summary = self._state, self._text("release_summary") or ""
        installed, latest = self._text("installed_version"), self._text("latest_version")
        if not state:
            return BoardStage.NEW
        if state.get("in_progress"):
            if self._percent() is None and installed == latest:
                return BoardStage.TRIAL
            is_away = summary.endswith(_RESTARTS) or self._is_online is False
            return BoardStage.RESTARTS if is_away else BoardStage.LOADING
        if _ENDED.fullmatch(summary):
            return BoardStage.FAILED
        if latest and latest != installed:
            return BoardStage.WAITS if _WAITS.fullmatch(summary) else BoardStage.OFFERED
        return BoardStage.CURRENT

    def _text(self, key: str) -> str | None:
        found = self._state.get(key)
        return found if isinstance(found, str) else None

    def _percent(self) -> int | None:
        found = self._state.get("update_percentage")
        return int(found) if isinstance(found, (int, float)) and 0 <= found <= 100 else None

    def row(self) -> Row:
        summary = self._text("release_summary") or ""
        runs, wanted = self._text("installed_version"), self._text("latest_version")
        ended = _ENDED.fullmatch(summary) if self._stage is BoardStage.FAILED else None
        if ended:
            wanted = ended["version"]
        return Row(
            board=self._name,
            stage=self._stage,
            runs=runs,
            wanted=wanted if wanted != runs else None,
            since=self._since,
            heard=self._heard,
            due=self._due(),
            percent=self._percent() if self._stage is BoardStage.LOADING else None,
            word=summary,
            error=ended["why"] if ended else "",
        )

    def _due(self) -> datetime | None:
        if self._gone is None or self._stage not in (BoardStage.RESTARTS, BoardStage.TRIAL):
            return self._gone
        return self._gone + _RESTART


_KINDS = {"update": _Board.take_update, "status": _Board.take_status}
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "installed_version": str,
    "latest_version": str,
    "release_summary": str,
    "in_progress": bool,
    "update_percentage": (int, float, type(None)),
}
