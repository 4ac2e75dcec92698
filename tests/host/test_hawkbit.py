"""The stand-in for hawkBit does what was seen on a real one, its faults included."""

from __future__ import annotations

import http.client
import json
import queue
from collections.abc import Iterator
from typing import Any

import pytest
from mpota.virtual.hawkbit.device import MAX_ENTRIES
from mpota.virtual.hawkbit.faults import Exchange, Fault
from mpota.virtual.hawkbit.server import Server, running
from mpota.virtual.hawkbit.state import Action, State, Target

DATA = bytes(range(256)) * 40
CLOSED = {"status": {"execution": "closed", "result": {"finished": "success"}}}
FAILED = {"status": {"execution": "closed", "result": {"finished": "failure"}}}


def said(execution: str, finished: str = "none", **more: Any) -> dict[str, Any]:
    return {"status": {"execution": execution, "result": {"finished": finished}, **more}}


class Device:
    """A client of the stand-in, over one connection while that is kept."""

    def __init__(self, server: Server, target: Target) -> None:
        self.target = target
        self._place = server.url.removeprefix("http://")
        self._connection = http.client.HTTPConnection(self._place, timeout=30)

    def ask(
        self, method: str, path: str = "", body: object = None, **headers: str
    ) -> http.client.HTTPResponse:
        given = {"Authorization": f"TargetToken {self.target.token}"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            given.setdefault("Content-Type", "application/json")
        if path.startswith("http"):
            path = path.partition(self._place)[2]
        else:
            path = f"/DEFAULT/controller/v1/{self.target.id}{path}"
        try:
            self._connection.request(method, path, data, given)
            response = self._connection.getresponse()
            self.body = response.read()
        except (http.client.HTTPException, OSError):
            self._connection.close()  # the next request has another one
            raise
        return response

    def status(self, method: str, path: str = "", body: object = None, **headers: str) -> int:
        return self.ask(method, path, body, **headers).status

    def links(self) -> dict[str, str]:
        assert self.status("GET") == 200
        found = json.loads(self.body).get("_links", {})
        return {name: link["href"] for name, link in found.items()}

    def feedback(self, action: Action, body: dict[str, Any]) -> int:
        return self.status("POST", f"/deploymentBase/{action.id}/feedback", body)


@pytest.fixture(name="server")
def _server() -> Iterator[Server]:
    state = State()
    state.allow_target_tokens()
    with running(state) as server:
        yield server


@pytest.fixture(name="device")
def _device(server: Server) -> Device:
    return Device(server, server.state.add_target("pump-1", "secret"))


def assign(server: Server, device: Device, version: str = "1.0", **how: Any) -> Action:
    made = server.state.publish("pump", version, {"pump.bundle": DATA})
    action = server.state.assign(made, device.target, **how)
    assert action is not None
    return action


def file(action: Action) -> str:
    return f"/softwaremodules/{action.set.modules[0].id}/artifacts/pump.bundle"


def test_an_answer_has_an_empty_reason_and_the_100th_ends_the_connection(
    server: Server, device: Device
) -> None:
    endings = []
    for _ in range(101):
        response = device.ask("GET")
        assert (response.status, response.reason) == (200, "")
        endings.append(response.getheader("Connection"))
    assert [at for at, word in enumerate(endings, 1) if word == "close"] == [100]


def test_who_is_not_known_is_not_told_why(server: Server, device: Device) -> None:
    stranger = Device(server, Target("nobody", "secret"))
    for client, headers in (
        (device, {"Authorization": "TargetToken wrong"}),
        (device, {"Authorization": "targettoken secret"}),
        (device, {"Authorization": "GatewayToken key"}),
        (stranger, {}),
    ):
        response = client.ask("GET", **headers)
        assert (response.status, client.body) == (401, b"")
        assert response.getheader("WWW-Authenticate") is None
    server.state.allow_gateway("key")
    assert stranger.status("GET", Authorization="GatewayToken key") == 200
    assert server.state.targets["nobody"].created_by == "CONTROLLER_PLUG_AND_PLAY"


def test_links_follow_the_state_and_a_cancel_hides_what_is_newer(
    server: Server, device: Device
) -> None:
    assert list(device.links()) == ["configData"]
    assert device.status("PUT", "/configData", {"data": {"chip": "esp32"}}) == 200
    assert (device.links(), device.target.attributes) == ({}, {"chip": "esp32"})
    first = assign(server, device)
    (link,) = device.links().values()
    assert f"/deploymentBase/{first.id}?c=" in link
    second = assign(server, device, "2.0")
    (link,) = device.links().values()
    assert link.endswith(f"/cancelAction/{first.id}")
    assert device.status("GET", link) == 200
    assert json.loads(device.body)["cancelAction"] == {"stopId": str(first.id)}
    assert device.status("GET", f"/deploymentBase/{first.id}") == 404
    assert device.status("POST", f"/cancelAction/{first.id}/feedback", said("canceled")) == 200
    assert first.is_cancelling
    assert device.status("POST", f"/cancelAction/{first.id}/feedback", CLOSED) == 200
    assert device.status("POST", f"/cancelAction/{second.id}/feedback", CLOSED) == 405
    assert device.feedback(first, CLOSED) == 410
    (link,) = device.links().values()
    assert f"/deploymentBase/{second.id}?c=" in link
    assert device.feedback(second, CLOSED) == 200
    assert sorted(device.links()) == ["configData", "installedBase"]
    assert device.target.update_status == "in_sync"


def test_a_refused_cancel_gives_the_deployment_back(server: Server, device: Device) -> None:
    action = assign(server, device)
    server.state.cancel(action)
    assert device.status("POST", f"/cancelAction/{action.id}/feedback", said("rejected")) == 200
    assert "deploymentBase" in device.links()
    assert device.feedback(action, said("closed", "none")) == 200
    assert action.status == "finished"  # none counts as success


@pytest.mark.parametrize(
    ("how", "download", "update"),
    [
        ({}, "forced", "forced"),
        ({"type": "soft"}, "attempt", "attempt"),
        ({"type": "timeforced", "force_time": 1 << 50}, "attempt", "attempt"),
        ({"type": "timeforced", "force_time": 1}, "forced", "forced"),
        ({"type": "downloadonly"}, "forced", "skip"),
        ({"window": False}, "forced", "skip"),
        ({"window": True, "type": "soft"}, "attempt", "attempt"),
    ],
)
def test_a_deployment_says_how_it_is_meant(
    server: Server, device: Device, how: dict[str, Any], download: str, update: str
) -> None:
    action = assign(server, device, **how)
    assert device.status("GET", device.links()["deploymentBase"]) == 200
    told = json.loads(device.body)
    deployment = told["deployment"]
    assert told["id"] == str(action.id)
    assert (deployment["download"], deployment["update"]) == (download, update)
    words = {None: None, True: "available", False: "unavailable"}
    assert deployment.get("maintenanceWindow") == words[action.window]
    ((artifact,),) = (chunk["artifacts"] for chunk in deployment["chunks"])
    assert (artifact["filename"], artifact["size"]) == ("pump.bundle", len(DATA))
    assert device.status("GET", artifact["_links"]["download-http"]["href"]) == 200
    assert device.body == DATA
    assert action.types == ["running", "retrieved", "download"]


def test_downloads_come_in_parts_while_the_action_is_open(server: Server, device: Device) -> None:
    action = assign(server, device)
    response = device.ask("GET", file(action), Range="bytes=100-199")
    assert (response.status, device.body) == (206, DATA[100:200])
    assert response.getheader("Content-Range") == f"bytes 100-199/{len(DATA)}"
    etag = response.getheader("ETag") or ""
    for headers, status, body in (
        ({"Range": "bytes=-10"}, 206, DATA[-10:]),
        ({"Range": "bytes=10000-99999"}, 206, DATA[10000:]),
        ({"Range": "bytes=50-", "If-Range": etag}, 206, DATA[50:]),
        ({"Range": "bytes=50-", "If-Range": '"other"'}, 200, DATA),
        ({"Range": f"bytes={len(DATA)}-"}, 416, b""),
        ({"If-Match": etag}, 412, b""),
    ):
        assert device.status("GET", file(action), **headers) == status
        assert device.body == body
    assert "download" not in action.types
    assert device.status("GET", file(action)) == 200
    assert action.types.count("download") == 1
    server.state.cancel(action)
    response = device.ask("GET", file(action), Range="bytes=0-")
    assert (response.status, response.getheader("Transfer-Encoding")) == (404, "chunked")
    assert json.loads(device.body)["errorCode"]


def test_a_deployment_that_is_over_and_read_again_is_spoiled(
    server: Server, device: Device
) -> None:
    """As hawkBit does: a client that remembers links breaks what it has done."""
    action = assign(server, device)
    link = device.links()["deploymentBase"]
    assert device.feedback(action, CLOSED) == 200
    assert "installedBase" in device.links()
    assert device.status("GET", link) == 200
    assert (action.status, action.active) == ("retrieved", False)
    assert "installedBase" not in device.links()


def test_a_timestamp_of_the_past_keeps_the_target_pending(server: Server, device: Device) -> None:
    assert device.feedback(assign(server, device), CLOSED) == 200
    second = assign(server, device, "2.0")
    assert device.feedback(second, CLOSED | {"timestamp": 946684800000}) == 200
    assert (second.status, device.target.update_status) == ("finished", "pending")
    assert device.target.installed is not second.set


def test_what_is_over_takes_no_word_and_what_makes_no_sense_is_refused(
    server: Server, device: Device
) -> None:
    action = assign(server, device)
    place = f"/deploymentBase/{action.id}/feedback"
    for body in (b"{", {}, said("sleeping"), said("closed", "maybe"), said("closed", "SUCCESS")):
        assert device.status("POST", place, body) == 400
    assert device.status("POST", place, CLOSED, Content_Type="text/plain") == 415
    assert device.status("POST", "/deploymentBase/999/feedback", CLOSED) == 404
    assert device.status("POST", "/deploymentBase/x/feedback", CLOSED) == 400
    assert device.feedback(action, said("proceeding", details=["x"] * 51)) == 429
    assert action.types == ["running"]
    assert device.feedback(action, FAILED) == 200
    assert (action.status, device.target.update_status) == ("error", "error")
    assert device.feedback(action, CLOSED) == 410
    assert server.state.assign(action.set, device.target) is not None


def test_after_1000_entries_only_the_end_is_taken(server: Server, device: Device) -> None:
    action = assign(server, device)
    while len(action.entries) < MAX_ENTRIES:
        server.state.note(action, "running")
    assert device.feedback(action, said("proceeding")) == 429
    assert device.status("GET", file(action)) == 429
    assert device.status("GET", file(action), Range="bytes=0-") == 206
    assert device.feedback(action, CLOSED) == 200


def test_a_download_alone_ends_with_the_download(server: Server, device: Device) -> None:
    action = assign(server, device, type="downloadonly")
    assert device.feedback(action, said("downloaded")) == 200
    assert (action.status, device.target.update_status) == ("downloaded", "in_sync")
    assert device.target.installed is None


def test_consent_is_asked_for_where_the_tenant_wants_it(server: Server, device: Device) -> None:
    server.state.config["user.confirmation.flow.enabled"] = True
    action = assign(server, device)
    link = device.links()["confirmationBase"]
    assert device.status("GET", link) == 200
    assert "chunks" in json.loads(device.body)["confirmation"]
    assert device.status("GET", f"/deploymentBase/{action.id}") == 404
    assert device.feedback(action, CLOSED) == 404
    place = f"/confirmationBase/{action.id}/feedback"
    assert device.status("POST", place, {"confirmation": "denied"}) == 200
    assert "confirmationBase" in device.links()
    assert device.status("POST", place, {"confirmation": "confirmed"}) == 200
    assert "deploymentBase" in device.links()
    assert device.status("POST", place, {"confirmation": "confirmed"}) == 404


def test_a_newer_action_ends_the_older_one_at_once_where_the_tenant_wants_it(
    server: Server, device: Device
) -> None:
    server.state.config["repository.actions.autoclose.enabled"] = True
    first = assign(server, device)
    second = assign(server, device, "2.0")
    assert f"/deploymentBase/{second.id}?" in device.links()["deploymentBase"]
    assert device.feedback(first, CLOSED) == 410


def test_an_idle_poll_is_answered_with_not_modified(server: Server, device: Device) -> None:
    response = device.ask("GET")
    etag = response.getheader("ETag") or ""
    assert device.status("GET", If_None_Match=etag) == 304
    server.state.config["pollingTime"] = "00:01:00~10%"
    device.ask("GET", If_None_Match=etag)
    hours, minutes, seconds = json.loads(device.body)["config"]["polling"]["sleep"].split(":")
    assert 54 <= int(minutes) * 60 + int(seconds) <= 66
    assert hours == "00"


def test_what_is_asked_counts_also_if_the_device_hangs_up_amid_the_answer() -> None:
    whole = bytes(16 << 20)  # more than fits into the sockets
    state = State()
    state.allow_target_tokens()
    target = state.add_target("pump-1", "secret")
    action = state.assign(state.publish("pump", "1.0", {"pump.bundle": whole}), target)
    assert action is not None
    told: queue.Queue[Exchange] = queue.Queue()
    with running(state, on_exchange=told.put) as server:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
        path = f"/DEFAULT/controller/v1/pump-1{file(action)}"
        connection.request("GET", path, headers={"Authorization": "TargetToken secret"})
        connection.getresponse().close()
        connection.close()
        exchange = told.get(timeout=30)
    assert (exchange.status, exchange.path) == (200, file(action))
    assert exchange.size < len(whole)


def test_answers_are_lost_refused_and_cut_as_it_is_told(server: Server, device: Device) -> None:
    action = assign(server, device)
    gone = "POST /deploymentBase/*/feedback"
    server.faults.append(Fault(gone, is_unheard=True))
    with pytest.raises((http.client.HTTPException, OSError)):
        device.feedback(action, CLOSED)
    assert action.active
    server.faults.append(Fault("GET /", status=503, headers={"Retry-After": "7"}))
    assert device.ask("GET").getheader("Retry-After") == "7"
    server.faults.append(Fault("GET /softwaremodules/*", cut=1000))
    with pytest.raises(http.client.IncompleteRead) as caught:
        device.ask("GET", file(action), Range="bytes=0-")
    assert caught.value.partial == DATA[:1000]
    server.faults.append(Fault(gone, is_lost=True))
    with pytest.raises((http.client.HTTPException, OSError)):
        device.feedback(action, CLOSED)
    assert action.status == "finished"
    assert not server.faults
    assert server.asked()[-1] == f"POST /deploymentBase/{action.id}/feedback 0"
