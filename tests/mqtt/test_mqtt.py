"""Updates over MQTT, by the code of docs/guides/mqtt.md, with a real broker and real clients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from mpota.fleet.mqtt import open_broker, parse_broker
from mpota.fleet.row import BoardStage, Row
from mpota.virtual.board import Board

from tests.support import mqtt, mqtt_boards, releases
from tests.support.channels import Site, report
from tests.support.mqtt import BOARD, DESK, PASSWORD, Broker, Desk
from tests.support.mqtt_boards import CONFIG, INSTALL, STATUS, UPDATE, Running, program, states

IDLE = {"in_progress": False, "update_percentage": None}
TRIAL = {"in_progress": True, "update_percentage": None}
# Which code of the guide a client takes, if it is not that of its name.
CODE = {"umqtt.simple, newer": "umqtt.simple"}
APP_SIZE = 0x18000


def publish(site: Site, version: str = "2.0", counter: int = 2) -> None:
    entry = site.release(version, counter, releases.app(f"v{version}.0", size=APP_SIZE))
    site.publish(entry, poll=3600)


def rows(broker: Broker) -> Sequence[Row]:
    """What `mpota fleet status` has in its table."""
    found = parse_broker(
        f"mqtt://{DESK}@localhost:{broker.port}", {"MPOTA_MQTT_PASSWORD": PASSWORD}
    )
    with open_broker(found) as source:
        return source.read()


def hear(desk: Desk) -> None:
    """The app has had all messages until now, and has done what comes of them."""
    before = len(desk.messages)
    desk.publish(INSTALL, "test: ping")
    desk.wait_for(STATUS, before)


def offered(desk: Desk, version: str, installed: str = "1.0", after: int = 0) -> None:
    fields = {"latest_version": version, "installed_version": installed, **IDLE}
    desk.wait_for(UPDATE, after, **fields)


@contextmanager
def offering(
    tmp_path: Path, site: Site, broker: Broker, desk: Desk
) -> Iterator[tuple[Board, Running]]:
    """A board whose program, with umqtt.simple, runs 1.0 and has offered 2.0."""
    publish(site)
    with (
        mqtt_boards.board(tmp_path) as board,
        Running(board, program("umqtt.simple", broker, site), desk) as app,
    ):
        offered(desk, "2.0")
        yield board, app


@pytest.mark.parametrize("client", ["umqtt.simple", "umqtt.simple, newer", "mqtt_as", "aiomqttc"])
def test_the_lines_of_the_guide_lead_from_an_offer_to_a_confirmed_boot(
    tmp_path: Path, site: Site, client: str
) -> None:
    """Each state of Home Assistant's table, and what of it lasts at the broker."""
    publish(site)
    with (
        mqtt_boards.board(tmp_path, client) as board,
        mqtt.running(tmp_path, is_tls=client == "aiomqttc") as broker,
        mqtt.desk(broker) as desk,
        Running(board, program(CODE.get(client, client), broker, site), desk) as app,
    ):
        component = mqtt.check_discovery(desk.wait_for(CONFIG))
        assert (component["cmd_t"], component["stat_t"]) == (INSTALL, UPDATE)
        assert component["avty_t"] == STATUS
        offered(desk, "2.0")
        desk.publish(INSTALL, "install")
        desk.wait_for(UPDATE, installed_version="2.0", **TRIAL)
        with mqtt.desk(broker) as late:  # who comes now sees no installation without an end
            assert late.wait_for(UPDATE).json["installed_version"] == "1.0"
            assert states(late) == ["1.0 2.0"]
        desk.publish(INSTALL, "test: confirm")
        offered(desk, "2.0", "2.0")
        seen = len(desk.messages)
        run = app.stop()
        desk.wait(lambda message: message == mqtt.Message(STATUS, b"offline", False), seen)
        with mqtt.desk(broker) as late:
            offered(late, "2.0", "2.0")
            assert late.wait_for(STATUS).payload == b"offline"
            assert all(message.is_retained for message in late.messages)
            mqtt.check_discovery(late.wait_for(CONFIG))
        assert run.labels == ("ota_0", "ota_1")
        assert report(board) == "confirmed 2.0"
    shown = [state for state in states(desk) if not state.endswith("%")]
    shown = [state for at, state in enumerate(shown) if shown[at - 1 : at] != [state]]
    assert shown[-4:] == ["1.0 2.0", "1.0 2.0 ...", "2.0 2.0 ...", "2.0 2.0"]
    status = [message.payload for message in desk.messages if message.topic == STATUS]
    assert status[:1] + status[-2:] == [b"online", b"online", b"offline"]
    assert b"offline" in status[1:-2]


def test_a_release_that_fails_its_trial_is_told_and_a_press_does_not_bring_it_again(
    tmp_path: Path, site: Site, broker: Broker, desk: Desk
) -> None:
    with offering(tmp_path, site, broker, desk) as (board, app):
        desk.publish(INSTALL, "install")
        desk.wait_for(UPDATE, installed_version="2.0", **TRIAL)
        desk.publish(INSTALL, "test: reset")
        offered(desk, "1.0", after=len(desk.messages))
        failed = desk.wait(
            lambda message: message.topic == UPDATE and b" failed: " in message.payload
        ).json
        assert failed["release_summary"].startswith("2.0 failed: not confirmed in its first boot")
        assert (failed["installed_version"], failed["latest_version"]) == ("1.0", "1.0")
        (row,) = rows(broker)
        assert (row.board, row.stage, row.runs) == (BOARD, BoardStage.FAILED, "1.0")
        assert (row.wanted, row.error) == ("2.0", failed["release_summary"].partition(": ")[2])
        hear(desk)
        for payload in ("install", "2.0", "install"):
            desk.publish(INSTALL, payload)
            hear(desk)
        publish(site, "3.0", 3)
        seen = len(desk.messages)
        desk.publish(INSTALL, "test: look")
        offered(desk, "3.0", after=seen)
        desk.publish(INSTALL, "2.0")
        desk.publish(INSTALL, "3.0")
        desk.wait_for(UPDATE, installed_version="3.0", **TRIAL)
        desk.publish(INSTALL, "test: confirm")
        offered(desk, "3.0", "3.0")
        run = app.stop()
        assert run.labels == ("ota_0", "ota_1", "ota_0", "ota_1")
        assert report(board) == "confirmed 3.0"


HOSTILE = (
    b"",
    b"Install",
    b"install ",
    b"INSTALL\0",
    b"install\n",
    b"1.9",
    b"9.9",
    b'{"url": "http://example.org/evil.bin"}',
    b"http://example.org/evil.bin",
    b"\xff\xfe\0\x01",
    b"\xc3\xa4" * 36,
    b"install" * 2000,
    bytes(range(256)) * 16,
)


def test_what_strangers_send_does_nothing_and_the_broker_may_restart(
    tmp_path: Path, site: Site, broker: Broker, desk: Desk
) -> None:
    with offering(tmp_path, site, broker, desk) as (board, app):
        site.asked()
        with mqtt.desk(broker, "stranger") as stranger:
            for payload in HOSTILE:
                stranger.publish(INSTALL, payload)
            for topic in (UPDATE, STATUS, CONFIG):
                stranger.publish(topic, "{}", retain=True)  # which the ACL forbids
        desk.publish("mpota/other/install", "install")
        hear(desk)
        assert site.asked() == []
        assert states(desk)[-1] == "1.0 2.0"
        assert not [m for m in desk.messages if m.payload == b"{}"]

        broker.stop()
        seen = len(desk.messages)
        broker.start()  # it has forgotten everything
        mqtt.check_discovery(desk.wait_for(CONFIG, seen))
        offered(desk, "2.0", after=seen)
        desk.wait(lambda message: (message.topic, message.payload) == (STATUS, b"online"), seen)
        desk.publish(INSTALL, "2.0")
        desk.wait_for(UPDATE, seen, installed_version="2.0", **TRIAL)
        desk.publish(INSTALL, "test: confirm")
        offered(desk, "2.0", "2.0")
        app.stop()
        assert report(board) == "confirmed 2.0"
