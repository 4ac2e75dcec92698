"""What hawkBit does that a client has to live with, and what hostile servers and networks do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from mpota.virtual.board import Board, Run
from mpota.virtual.cuts import CutPoint, Scenario, power_cut
from mpota.virtual.hawkbit.device import MAX_ENTRIES
from mpota.virtual.hawkbit.faults import Fault
from mpota.virtual.hawkbit.server import Server
from mpota.virtual.hawkbit.state import Action

from tests.support import channels, hawkbit, releases, web
from tests.support.channels import done
from tests.support.cuts import Cuts, some
from tests.support.hawkbit import TURN, assign, follow, release, report, target, turn

FEEDBACK = "POST /deploymentBase/*/feedback"
ARTIFACT = "GET /softwaremodules/*"


def says(board: Board, server: Server, **how: str) -> str:
    return done(board.run(follow(server, **how)))


def finish(board: Board, server: Server, action: Action, tries: int = 4) -> None:
    """Go on until the server knows that it is finished."""
    for _ in range(tries):
        turn(board, server)
        if not action.active:
            break
    assert action.status == "finished", action.messages


def downloads(server: Server) -> list[str]:
    return [str(one.range) for one in server.exchanges if one.path.startswith("/softwaremodules")]


# --- hawkBit's own (DDI as it was observed)


def test_the_100th_answer_of_a_connection_is_never_met(board: Board, server: Server) -> None:
    """Each poll has a connection of its own."""
    assert says(board, server, then=TURN + "\nfor _ in range(101): client.update()\n")
    assert {one.status for one in server.exchanges} == {200}
    assert len(server.exchanges) == 103


@pytest.mark.parametrize("status", [404, 410])
def test_a_deployment_that_is_gone_when_it_is_read_is_none(
    board: Board, server: Server, status: int
) -> None:
    action = assign(server)
    server.faults.append(Fault("GET /deploymentBase/*", status=status))
    finish(board, server, action)
    assert report(board) == "confirmed 2.0 1"


@pytest.mark.parametrize("status", [404, 405, 410, 400])
def test_a_word_that_the_server_does_not_want_is_said_and_over(
    board: Board, server: Server, status: int
) -> None:
    assign(server)
    turn(board, server)
    server.faults.append(Fault(FEEDBACK, status=status))
    server.faults.append(Fault("GET /", body=b'{"config":{"polling":{"sleep":"00:05:00"}}}'))
    says(board, server, then=TURN * 2)
    assert [one.status for one in server.exchanges if one.method == "POST"][2] == status
    told = "import ota; print(ota.trial.load().told)"
    assert done(board.run(told)) == "1"


def test_an_action_that_is_force_quit_is_forgotten(board: Board, server: Server) -> None:
    action = assign(server)
    turn(board, server)
    server.state.cancel(action)
    server.state.cancel(action, force=True)
    assert says(board, server) == "current - there is nothing to do"
    assert [one.status for one in server.exchanges if one.method == "POST"][-1] == 410


def test_downloads_of_an_action_that_ended_are_refused_and_that_ends_nothing_else(
    board: Board, server: Server
) -> None:
    """404 with a chunked body."""
    action = assign(server)

    def end() -> None:
        server.state.cancel(action)
        server.state.cancel(action, force=True)

    server.faults.append(Fault(ARTIFACT, call=end))
    lines = says(board, server, then=TURN * 2).splitlines()
    assert lines[0].split()[1] == "http-status"
    assert lines[1] == "current - there is nothing to do"
    following = assign(server, {"pump.bundle": release("3.0", 3)}, "3.0")
    finish(board, server, following)


def test_an_artifact_that_changes_meanwhile_is_started_over(board: Board, server: Server) -> None:
    """If-Range has the ETag of another one then: the answer is 200, and the whole."""
    content = releases.app(size=0x30000)
    action = assign(server, {"pump.bundle": release("2.0", 2, content)})
    module = action.set.modules[0]

    def change() -> None:
        module.artifacts.clear()
        server.state.add_artifact(module, "pump.bundle", release("2.0", 3, content))

    server.faults.append(Fault(ARTIFACT, cut=0x20000))
    server.faults.append(Fault(ARTIFACT, call=change))
    finish(board, server, action)
    assert [one.status for one in server.exchanges if "artifacts" in one.path][:2] == [206, 200]
    assert done(board.run("import ota; print(ota.keys.load().counter)")) == "3"


def test_a_board_never_tells_a_time_that_the_server_would_believe(
    board: Board, server: Server
) -> None:
    first, second = assign(server), None
    finish(board, server, first)
    second = assign(server, {"pump.bundle": release("3.0", 3)}, "3.0")
    finish(board, server, second)
    assert target(server).installed is second.set
    assert target(server).update_status == "in_sync"
    assert not any(b"time" in one.body for one in server.exchanges)


def test_an_end_is_said_with_a_word_never_with_none(board: Board, server: Server) -> None:
    """`closed` with `none` would count as success."""
    assign(server, {"pump.bundle": release("2.0", 2, number=1)})
    says(board, server)
    bodies = [json.loads(one.body) for one in server.exchanges if one.method == "POST"]
    ends = [one["status"] for one in bodies if one["status"]["execution"] == "closed"]
    assert [one["result"]["finished"] for one in ends] == ["failure"]


def test_a_deployment_that_is_over_is_not_read_again(board: Board, server: Server) -> None:
    """It would not count as installed any more."""
    action = assign(server)
    finish(board, server, action)
    says(board, server, then=TURN * 3)
    assert (action.status, server.state.find_installed(target(server))) == ("finished", action)


def test_an_action_with_a_thousand_entries_is_still_done(board: Board, server: Server) -> None:
    action = assign(server)
    while len(action.entries) < MAX_ENTRIES:
        server.state.note(action, "running")
    finish(board, server, action)
    statuses = [one.status for one in server.exchanges if one.method == "POST"]
    assert statuses == [429, 429, 200]


# --- lost answers: nothing twice, nothing lost


LOST = {
    "poll": "GET /", "deployment": "GET /deploymentBase/*", "begins": FEEDBACK,
    "attributes": "PUT /configData",
}  # fmt: skip


@pytest.mark.parametrize("is_heard", [True, False], ids=["lost", "unheard"])
@pytest.mark.parametrize("what", LOST)
def test_an_answer_that_is_lost_before_the_restart_is_asked_for_again(
    board: Board, server: Server, what: str, is_heard: bool
) -> None:
    action = assign(server)
    server.faults.append(Fault(LOST[what], is_lost=is_heard, is_unheard=not is_heard))
    finish(board, server, action)
    assert not server.faults
    assert report(board) == "confirmed 2.0 1"
    assert len(downloads(server)) == 1


@pytest.mark.parametrize("is_heard", [True, False], ids=["lost", "unheard"])
def test_an_end_whose_answer_is_lost_is_said_until_it_is_heard(
    board: Board, server: Server, is_heard: bool
) -> None:
    action = assign(server)
    turn(board, server)
    server.faults.append(Fault(FEEDBACK, times=2, is_lost=is_heard, is_unheard=not is_heard))
    lines = says(board, server, then=TURN * 3).splitlines()
    assert [line.split()[1] for line in lines] == ["connection", "connection", "-"]
    assert action.types.count("finished") == 1
    assert action.status == "finished"
    assert report(board) == "confirmed 2.0 1"
    assert len(downloads(server)) == 1


def test_a_download_that_fails_ends_the_poll_whatever_came_before(
    board: Board, server: Server
) -> None:
    assign(server, {"pump.bundle": release("2.0", 2, number=1)})
    assert says(board, server).startswith("refused ")
    action = assign(server, {"pump.bundle": release("3.0", 3)}, "3.0")
    server.faults[:] = [Fault(ARTIFACT, times=5, is_unheard=True)]
    then = 'client.code = "refused"\n' + TURN + "print(pause)\n"
    server.exchanges.clear()
    first, pause = says(board, server, more=", max_failures=1", then=then).splitlines()
    assert first == "installing connection 3.0 is being installed"
    assert int(pause) >= 45
    assert len(downloads(server)) == 1
    server.faults.clear()
    finish(board, server, action)


def test_an_order_that_comes_before_the_restart_does_not_hide_the_end_of_the_former(
    board: Board, server: Server
) -> None:
    server.state.config["repository.actions.autoclose.enabled"] = True
    assign(server)
    second = []

    def order() -> None:
        second.append(assign(server, {"a.txt": b"x", "b.txt": b"x"}, "3.0"))

    server.faults += [Fault(FEEDBACK), Fault(FEEDBACK, call=order)]  # that it begins; is installed
    said = says(board, server, more=", restart=lambda: None", then=TURN * 2)
    assert [line.split()[0] for line in said.splitlines()] == ["waiting", "waiting"]
    board.run()
    assert says(board, server).startswith("refused - action 2: ")
    assert second[0].status == "error"
    ends = [one for one in server.exchanges if b'"closed"' in one.body]
    assert [(one.path, one.status) for one in ends] == [
        ("/deploymentBase/1/feedback", 410), ("/deploymentBase/2/feedback", 200)
    ]  # fmt: skip


# --- statuses


@pytest.mark.parametrize(
    ("fault", "code", "least", "most"),
    [
        (Fault("GET /", status=401), "token", 225, 300),
        (Fault("GET /", status=429, headers={"Retry-After": "700"}), "http-status", 700, 760),
        (Fault("GET /", status=503), "http-status", 45, 60),
        (Fault("GET /", status=404), "http-status", 45, 60),
        (Fault("GET /", is_unheard=True), "connection", 45, 60),
    ],
    ids=["401", "429", "503", "404", "no-answer"],
)
def test_a_server_that_refuses_is_left_alone_for_a_while(
    board: Board, server: Server, fault: Fault, code: str, least: int, most: int
) -> None:
    server.faults.append(fault)
    lines = says(board, server, then=TURN + "print(pause)\n" + TURN).splitlines()
    assert lines[0].split()[1] == code
    assert least - 1 <= int(lines[1]) <= most
    assert lines[2] == "current - there is nothing to do"


def test_a_wrong_token_is_said_to_be_one_of_three_things(board: Board, server: Server) -> None:
    said = says(board, server, token=", token='wrong'", then=f"{TURN}print(client.error)\n")
    assert said.splitlines()[0].split()[:2] == ["new", "token"]
    assert "answers 401: another token is due" in said


# --- servers that say anything


def poll(links: object = None, sleep: object = "00:05:00") -> bytes:
    return json.dumps({"config": {"polling": {"sleep": sleep}}, "_links": links}).encode()


def link(name: str, href: object) -> bytes:
    return poll({name: {"href": href}})


POLLS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "protocol"),
    "html": (b"<html>deploymentBase</html>", "protocol"),
    "a list": (b'["deploymentBase"]', "protocol"),
    "deep": (b'{"deploymentBase":' + b"[" * 900 + b"]" * 900 + b"}", "protocol"),
    "too long": (b'{"deploymentBase":"' + b"x" * 2048 + b'"}', "protocol"),
    "no number": (link("deploymentBase", "http://x/deploymentBase/x"), "protocol"),
    "a large number": (link("deploymentBase", "http://x/deploymentBase/9999999999"), "protocol"),
    "no text": (link("cancelAction", ["cancelAction"]), "protocol"),
    "another path": (link("confirmationBase", "http://x/else/1"), "protocol"),
    "no links": (poll([]), "-"),
    "no sleep": (b'{"config":7}', "-"),
    "odd sleep": (poll({}, "soon"), "-"),
    "no time": (poll({}, ":: deploymentBase"), "-"),
}


@pytest.mark.parametrize("what", POLLS)
def test_an_answer_to_a_poll_that_makes_no_sense_is_a_fault_and_no_more(
    board: Board, server: Server, what: str
) -> None:
    body, code = POLLS[what]
    server.faults.append(Fault("GET /", status=200, body=body))
    lines = says(board, server, then=f"{TURN}print(client.poll_s)\n{TURN}").splitlines()
    assert lines[0].split()[1] == code
    assert lines[1] == "300"
    assert lines[2] == "current - there is nothing to do"


def test_a_sleep_of_nothing_or_of_years_is_bounded(board: Board, server: Server) -> None:
    said = []
    for sleep in ("00:00:00", "999:59:59"):
        server.faults.append(Fault("GET /", status=200, body=poll({}, sleep)))
        said.append(says(board, server, then=TURN + "print(pause)\n").splitlines()[1])
    assert said == ["5", "86400"]


def deployment(**more: Any) -> bytes:
    artifact: dict[str, Any] = {
        "filename": "a.bundle", "size": 5, "hashes": {"sha256": "00" * 32},
        "_links": {"download": {"href": "http://localhost:1/a.bundle"}},
    }  # fmt: skip
    artifact |= {name: value for name, value in more.items() if name in artifact}
    chunks = more.get("chunks", [{"version": "2.0", "artifacts": [artifact]}])
    return json.dumps({"id": "1", "deployment": {"update": "forced", "chunks": chunks}}).encode()


DEPLOYMENTS: dict[str, tuple[bytes, str, bool]] = {
    "no JSON": (b"{", "protocol", False),
    "no deployment": (b'{"id":"1"}', "protocol", False),
    "no chunks": (deployment(chunks=7), "protocol", False),
    "too long": (deployment(filename="x" * 9000), "protocol", False),
    "no artifact": (deployment(chunks=[{"artifacts": [7]}, 7, {}]), "-", True),
    "no name": (deployment(filename=""), "-", True),
    "no size": (deployment(size="5"), "-", True),
    "a large size": (deployment(size=1 << 40), "-", True),
    "no link": (deployment(_links={}), "-", True),
    "no URL": (deployment(_links={"download": {"href": "file:///x"}}), "not-found", False),
}


@pytest.mark.parametrize("what", DEPLOYMENTS)
def test_a_deployment_that_makes_no_sense_is_refused_where_it_is_one_at_all(
    board: Board, server: Server, what: str
) -> None:
    body, code, is_refused = DEPLOYMENTS[what]
    action = assign(server)
    server.faults.append(Fault("GET /deploymentBase/*", status=200, body=body))
    assert says(board, server).split()[1] == code
    assert (action.status == "error") == is_refused
    if is_refused:
        assert action.code == 2
    else:
        finish(board, server, action)


def endless(handler: web.Handler) -> None:
    handler.answer("200 ", ["Transfer-Encoding: chunked"])
    for _ in range(1000):
        handler.wfile.write(b"1\r\nx\r\n" * 100)


def to_the_end(handler: web.Handler) -> None:
    handler.answer("200 ", [])
    handler.wfile.write(poll({}, "00:07:00"))
    raise web.Hangup


def cut(handler: web.Handler) -> None:
    handler.answer("200 ", ["Content-Length: 500"])
    handler.wfile.write(poll({}))
    raise web.Hangup


BODIES: dict[str, tuple[web.File | Callable[[web.Handler], None], str, int]] = {
    "in chunks": (web.File(poll({}, "00:07:00"), chunked=True), "-", 420),
    "to the end": (to_the_end, "-", 420),
    "endless": (endless, "protocol", 300),
    "cut": (cut, "connection", 300),
}


@pytest.mark.parametrize("what", BODIES)
def test_a_body_is_read_however_it_comes_up_to_a_limit(board: Board, what: str) -> None:
    answer, code, sleep = BODIES[what]
    with web.serving({"/DEFAULT/controller/v1/pump-7": answer}) as server:
        then = f"{TURN}print(client.poll_s)\n"
        script = hawkbit.FOLLOW.format(url=server.root, id="pump-7", token="", more="") + then
        said, found = done(board.run(script)).splitlines()
    assert (said.split()[1], int(found)) == (code, sleep)


def test_an_endless_cancel_ends_the_poll(board: Board, server: Server) -> None:
    body = link("cancelAction", "http://x/cancelAction/7")
    server.faults.append(Fault("GET /", times=1000, status=200, body=body))
    says(board, server)
    assert len(server.exchanges) <= 16


# --- power cuts


FAILS = "import machine\nmachine.reset()\n"
# What main.py of the release does, how many cuts are tried, and how the action has to end.
STORIES = {
    "ddi": (releases.MAIN, 12, ("finished", "2.0")),
    "ddi-fails": (FAILS, 6, ("error", "1.0")),
}


@pytest.mark.parametrize("name", STORIES)
def test_a_board_whose_power_fails_anywhere_comes_to_the_same_end_and_tells_it_once(
    name: str, cuts: Cuts
) -> None:
    """From the order to the word of what became of it: ``--cut ddi:17:torn`` tries one."""
    cuts.skip_unless_named(name)
    main, count, end = STORIES[name]
    with hawkbit.serving() as server, channels.board() as board:
        says(board, server)
        data = release("2.0", 2, releases.app(size=0x8000), releases.tree("2.0", main=main))
        made = server.state.publish("pump", "2.0", {"pump.bundle": data})

        def play(board: Board) -> Run:
            """A new action, up to the restart; then the first poll of what runs."""
            target(server).assigned = target(server).installed = None
            assert server.state.assign(made, target(server)) is not None
            board.run(follow(server))
            return board.run(follow(server))

        scenario = Scenario(name, board.flash.snapshot(), play)
        recording = scenario.record(board)
        for point in cuts.points(recording, some(count)):
            board.flash.restore(scenario.start)
            with power_cut(board.flash, point.op, point.mode):
                play(board)
            check_end(board, server, point, end)


def check_end(board: Board, server: Server, point: CutPoint, end: tuple[str, str]) -> None:
    """What an app would do by itself: start, confirm, poll. How the action ends, and what runs."""
    action = list(server.state.actions.values())[-1]
    for _ in range(5):
        board.run()
        board.run(follow(server))
        if not action.active:
            break
        assert not {"finished", "error"} & set(action.types), point
    runs = done(board.run("import ota; print(ota.keys.load().version)"))
    assert (action.status, runs) == end, (point, action.messages)
    assert action.types.count("finished") + action.types.count("error") == 1, point
    stage = {"finished": "confirmed", "error": "failed"}[end[0]]
    assert report(board) == f"{stage} 2.0 {action.id}", point
