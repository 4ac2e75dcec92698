"""Boards in a table by what stands at an MQTT broker, and by what comes live."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from mpota.errors import MpotaError, UsageError
from mpota.fleet.mqtt import MqttSource, open_broker, parse_broker
from mpota.fleet.row import BoardStage, Row

from tests.support import mqtt
from tests.support.mqtt import DESK, PASSWORD, Broker, Desk

pytest.importorskip("paho.mqtt", reason="needs paho-mqtt")


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    monkeypatch.setenv("MPOTA_MQTT_USER", DESK)
    monkeypatch.setenv("MPOTA_MQTT_PASSWORD", PASSWORD)
    with mqtt.running(tmp_path) as made:
        yield made


def url(broker: Broker) -> str:
    return f"mqtt://localhost:{broker.port}"


REST = {"installed_version": "1.0", "latest_version": "1.0", "in_progress": False,
        "update_percentage": None, "release_summary": ""}  # fmt: skip
WHY = "not confirmed in its first boot: what ran before came back"
# What a board says -> its row: stage, what is wanted, percent, error.
SAID = {
    "current": ({}, BoardStage.CURRENT, None, None, ""),
    "offered": ({"latest_version": "2.0"}, BoardStage.OFFERED, "2.0", None, ""),
    "waiting": (
        {"latest_version": "2.0", "release_summary": "2.0 waits: the app says later"},
        BoardStage.WAITS, "2.0", None, "",
    ),
    "loading": (
        {"latest_version": "2.0", "in_progress": True, "update_percentage": 45},
        BoardStage.LOADING, "2.0", 45, "",
    ),
    "restarting": (
        {"latest_version": "2.0", "in_progress": True,
         "release_summary": "2.0 waits for the restart"},
        BoardStage.RESTARTS, "2.0", None, "",
    ),
    "trying": (
        {"installed_version": "2.0", "latest_version": "2.0", "in_progress": True},
        BoardStage.TRIAL, None, None, "",
    ),
    "failed": (
        {"release_summary": f"2.0 failed: {WHY}"}, BoardStage.FAILED, "2.0", None, WHY
    ),
    "refused": (
        {"release_summary": "2.0 refused: counter: 3 is due"},
        BoardStage.FAILED, "2.0", None, "counter: 3 is due",
    ),
}  # fmt: skip
HOSTILE = (
    b"", b"null", b"[1]", b"{", b"\xff\xfe", b"[" * 4000, b"9" * 4096, b"{}" + b" " * 5000,
    b'{"installed_version": 1, "latest_version": null, "in_progress": "yes"}',
    b'{"update_percentage": 1e999, "release_summary": ["x"]}',
)  # fmt: skip


def read(source: MqttSource) -> dict[str, Row]:
    return {row.board: row for row in source.read()}


def test_what_stands_at_the_broker_is_the_table_and_what_comes_changes_it(broker: Broker) -> None:
    with mqtt.desk(broker) as desk:
        for board, (state, *_) in SAID.items():
            desk.publish(f"mpota/{board}/update", json.dumps(REST | state), retain=True)
            desk.publish(f"mpota/{board}/status", "online", retain=True)
        for number, payload in enumerate(HOSTILE):
            desk.publish(f"mpota/hostile-{number}/update", payload, retain=True)
        desk.publish("mpota/K\xfcche/update", json.dumps(REST), retain=True)
        desk.publish("mpota/current/status", "offline", retain=True)
        with open_broker(parse_broker(url(broker))) as source:
            rows = read(source)
            for board, (_, stage, wanted, percent, error) in SAID.items():
                row = rows[board]
                assert (row.stage, row.wanted, row.percent, row.error) == (
                    stage, wanted, percent, error
                ), board  # fmt: skip
                assert row.heard is None  # it stood there: since when, nobody knows
                assert (row.due is None) == (board != "current")
            others = set(rows) - set(SAID)
            assert all(board.startswith("hostile-") for board in others)
            assert {rows[board].stage for board in others} <= {BoardStage.NEW, BoardStage.CURRENT}

            desk.publish("mpota/offered/update", '{"in_progress": true, "update_percentage": 5}')
            row = wait(source, desk, "offered", BoardStage.LOADING)
            assert (row.percent, row.wanted, row.heard) == (5, "2.0", row.since)
            desk.publish("mpota/offered/status", "offline", retain=True)
            row = wait(source, desk, "offered", BoardStage.RESTARTS)
            assert row.due is not None
            assert row.since is not None
            assert row.due > row.since  # it may be away for a moment


def wait(source: MqttSource, desk: Desk, board: str, stage: BoardStage) -> Row:
    """The row of a board when it is at this stage."""
    with source._changed:
        assert source._changed.wait_for(
            lambda: source._boards[board].row().stage is stage, mqtt.WAIT_S
        )
    return read(source)[board]


def test_a_broker_that_does_not_let_us_in_is_named_with_its_reason(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(target: str) -> str:
        with pytest.raises(UsageError) as caught, open_broker(parse_broker(target)):
            pass
        return str(caught.value)

    monkeypatch.setenv("MPOTA_MQTT_PASSWORD", "wrong")
    assert "the broker refuses: " in refused(url(broker))
    assert "mqtts://localhost" in refused(url(broker).replace("mqtt", "mqtts"))
    broker.stop()
    assert "refused" in refused(url(broker))


@pytest.mark.parametrize(
    "target",
    [
        "mqtt://", "http://host", "mqtt://host/a/+/b", "mqtt://host/a#b", "mqtt://host:99999",
        "mqtt://user:secret@host", "mqtt://user@host",
    ],
)  # fmt: skip
def test_what_is_no_broker_or_has_a_password_in_it_is_refused(target: str) -> None:
    with pytest.raises(UsageError):
        parse_broker(target, {})


def test_credentials_come_from_a_file_or_the_environment_and_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("anna:pass:word\n")
    found = parse_broker("mqtts://host", {"MPOTA_MQTT_FILE": str(tmp_path / "secret")})
    assert (found.user, found.password, found.port, found.base) == (
        "anna", "pass:word", 8883, "mpota"
    )  # fmt: skip
    assert "pass" not in repr(found)
    with pytest.raises(MpotaError):
        parse_broker("mqtts://host", {"MPOTA_MQTT_FILE": str(tmp_path / "nothing")})
