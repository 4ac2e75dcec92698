"""A mosquitto on loopback, and who listens to it as Home Assistant does."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from tests.support import services, web

HOST = web.HOST
WAIT_S = 60.0  # for what must come; reached only by a failure
_TRIES = 20
# mosquitto says if one is taken. None that the system gives to others while a broker restarts.
_PORTS = range(20000, 32768)
BOARD, PASSWORD = "pump-1", "s3cret"
DESK = "desk"  # who reads and writes all

# As the guide has it: a board may speak for itself, and read its own commands.
ACL = f"""\
user {DESK}
topic readwrite #
topic readwrite $SYS/#
user stranger
topic write mpota/+/install
pattern write mpota/%u/status
pattern write mpota/%u/update
pattern read mpota/%u/install
pattern write homeassistant/device/%u/config
"""


@dataclass
class Broker:
    """A running mosquitto with users `BOARD`, `DESK` and `stranger`, and `ACL`."""

    directory: Path
    is_tls: bool = False
    port: int = 0
    process: subprocess.Popen[str] | None = None
    lines: list[str] = field(default_factory=list)  # its log

    def start(self) -> None:
        """On a free port at first, later on the same. Returns when it takes connections."""
        for _ in range(_TRIES):
            port = self.port or random.choice(_PORTS)
            if self._try_start(port):
                self.port = port
                return
        raise AssertionError(f"mosquitto does not start: {self.lines}")

    def _try_start(self, port: int) -> bool:
        conf = self.directory / "mosquitto.conf"
        conf.write_text(self._config(port))
        self.process = subprocess.Popen(
            [services.need("mosquitto"), "-c", conf],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stderr
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            if line.rstrip().endswith(" running"):
                threading.Thread(target=self._read, args=(self.process,), daemon=True).start()
                return True
        self.process.wait()
        self.process.stderr.close()
        return False

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr
        with process.stderr:
            self.lines.extend(line.rstrip() for line in process.stderr)

    def _config(self, port: int) -> str:
        lines = [
            f"listener {port} 127.0.0.1",
            "allow_anonymous false",
            f"password_file {self.directory / 'passwords'}",
            f"acl_file {self.directory / 'acl'}",
            "persistence false",
            "log_dest stderr",
            "set_tcp_nodelay true",
        ]
        if os.geteuid() == 0:  # else it becomes a user who may not read these files
            lines.append("user root")
        if self.is_tls:
            lines += [
                f"cafile {self.directory / 'ca.pem'}",
                f"certfile {self.directory / 'server.pem'}",
                f"keyfile {self.directory / 'server.key'}",
            ]
        return "\n".join(lines) + "\n"

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.process = None


@contextmanager
def running(directory: Path, is_tls: bool = False) -> Iterator[Broker]:
    services.need("mosquitto")
    maker = services.need("mosquitto_passwd")
    passwords = directory / "passwords"
    passwords.touch(0o600)
    for user in (BOARD, DESK, "stranger"):
        subprocess.run([maker, "-b", passwords, user, PASSWORD], check=True, capture_output=True)
    (directory / "acl").write_text(ACL)
    (directory / "acl").chmod(0o600)
    if is_tls:
        identity = web.server_identity()
        (directory / "ca.pem").write_bytes(web.root().pem)
        (directory / "server.pem").write_bytes(identity.pem)
        (directory / "server.key").write_bytes(identity.key_pem)
    broker = Broker(directory, is_tls)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


# --- who listens -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Message:
    topic: str
    payload: bytes
    is_retained: bool  # as it came: it was there before the listener

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.payload)
        return found


class Desk:
    """Listens to all topics, with what came in `messages`, and publishes."""

    def __init__(self, broker: Broker, user: str = DESK, topic: str = "#") -> None:
        self.messages: list[Message] = []
        self._over = ""
        self._came = threading.Condition()
        self._is_subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        self._client.username_pw_set(user, PASSWORD)
        if broker.is_tls:
            self._client.tls_set(str(broker.directory / "ca.pem"))
        self._client.on_connect = lambda client, *_: client.subscribe(topic, 1)
        self._client.on_subscribe = lambda *_: self._is_subscribed.set()
        self._client.on_message = self._take
        self._client.reconnect_delay_set(1, 1)
        self._client.connect(HOST, broker.port)
        self._client.loop_start()
        assert self._is_subscribed.wait(WAIT_S)

    def _take(self, client: object, data: object, message: paho.MQTTMessage) -> None:
        with self._came:
            self.messages.append(
                Message(message.topic, bytes(message.payload), bool(message.retain))
            )
            self._came.notify_all()

    def publish(self, topic: str, payload: str | bytes, retain: bool = False) -> None:
        """It is with the broker when this returns."""
        self._client.publish(topic, payload, 1, retain).wait_for_publish(WAIT_S)

    def wait(self, wanted: Callable[[Message], bool], after: int = 0) -> Message:
        """The first message that is ``wanted``, of those from number ``after`` on."""
        deadline = time.monotonic() + WAIT_S
        with self._came:
            while True:
                for message in self.messages[after:]:
                    if wanted(message):
                        return message
                left = deadline - time.monotonic()
                assert not self._over, self._over
                assert left > 0, self.messages[after:]
                self._came.wait(left)

    def wait_for(self, topic: str, after: int = 0, **fields: Any) -> Message:
        """One of a topic whose JSON has these ``fields``."""

        def is_wanted(message: Message) -> bool:
            if message.topic != topic or not message.payload:
                return False
            return not fields or fields.items() <= message.json.items()

        return self.wait(is_wanted, after)

    def give_up(self, why: str) -> None:
        """Nothing more will come, whoever waits is told why."""
        with self._came:
            self._over = why
            self._came.notify_all()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextmanager
def desk(broker: Broker, user: str = DESK, topic: str = "#") -> Iterator[Desk]:
    made = Desk(broker, user, topic)
    try:
        yield made
    finally:
        made.close()


# --- what Home Assistant takes -----------------------------------------------------------------

_ID = re.compile(r"[a-zA-Z0-9_-]+")
_DEVICE_KEYS = {"ids", "cns", "name", "mf", "mdl", "mdl_id", "sw", "hw", "sn", "cu"}
_ORIGIN_KEYS = {"name", "sw", "url"}
_COMPONENT_KEYS = {
    "p", "uniq_id", "name", "cmd_t", "pl_inst", "stat_t", "value_template", "l_ver_t", "avty_t",
    "pl_avail", "pl_not_avail", "retain", "qos", "title", "release_summary", "release_url",
    "entity_picture", "dev_cla", "def_ent_id",
}  # fmt: skip
_STATE_KEYS = {
    "installed_version": str,
    "latest_version": str,
    "title": str,
    "release_summary": str,
    "release_url": str,
    "entity_picture": str,
    "in_progress": bool,
    "update_percentage": (int, float, type(None)),
}


def check_discovery(message: Message, prefix: str = "homeassistant") -> dict[str, Any]:
    """The update component of a device's discovery, by the rules of Home Assistant 2026.11.

    Its sources: mqtt/schemas.py (dev and o refuse unknown keys), mqtt/update.py.
    """
    found = re.fullmatch(rf"{prefix}/device/([^/]+)/config", message.topic)
    assert found, message.topic
    assert _ID.fullmatch(found[1]), message.topic
    payload = message.json
    assert set(payload) <= {"dev", "o", "cmps", "avty_t", "cmd_t", "stat_t", "qos"}
    device, origin = payload["dev"], payload["o"]
    assert set(device) <= _DEVICE_KEYS
    assert device.get("ids") or device.get("cns")
    assert set(origin) <= _ORIGIN_KEYS
    assert origin["name"]
    (component,) = payload["cmps"].values()
    assert set(component) <= _COMPONENT_KEYS
    assert component["p"] == "update"
    assert component["uniq_id"]
    assert ("cmd_t" in component) == ("pl_inst" in component)
    assert not component.get("retain")
    for key in ("cmd_t", "stat_t", "avty_t"):
        assert not set(component.get(key, "")) & set("+#\0"), component
    return dict(component)


def check_state(message: Message) -> dict[str, Any]:
    """A state as Home Assistant takes it: one unknown key, or null where there may be none, and
    it drops the message.
    """
    payload = message.json
    for key, value in payload.items():
        assert key in _STATE_KEYS, key
        assert isinstance(value, _STATE_KEYS[key]), (key, value)  # type: ignore[arg-type]
    percent = payload.get("update_percentage")
    assert percent is None or 0 <= percent <= 100
    assert len(payload.get("release_summary", "")) <= 255
    return payload


def entity(messages: list[Message], topic: str) -> list[str]:
    """What the entity shows, message by message: installed, latest, and how far it is.

    As Home Assistant does it: what a message does not have is as it was.
    """
    shown: list[str] = []
    known: dict[str, Any] = {}
    for message in messages:
        if message.topic != topic:
            continue
        known |= check_state(message)
        installed, latest = known.get("installed_version"), known.get("latest_version")
        percent = known.get("update_percentage")
        progress = "..." if known.get("in_progress") and percent is None else ""
        if percent is not None:
            progress = "%"
        text = f"{installed} {latest} {progress}".rstrip()
        if not shown or shown[-1] != text:
            shown.append(text)
    return shown
