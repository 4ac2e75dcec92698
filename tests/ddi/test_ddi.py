"""Boards that follow hawkBit: what a server can want of them, and what they tell it."""

from __future__ import annotations

import json
import re

import pytest
from mpota.virtual.board import Board
from mpota.virtual.hawkbit.faults import Fault
from mpota.virtual.hawkbit.server import Server

from tests.support import boards, channels, hawkbit, ota_board, releases, web
from tests.support.channels import done
from tests.support.hawkbit import TURN, assign, follow, release, report, target, turn
from tests.support.releases import key

APP = boards.app("v1.27.0", 0x30000)
# The restart is left to the test.
STAYS = ", restart=lambda: print('restart')"


def says(board: Board, server: Server, **how: str) -> str:
    """What the client says of one poll that ends without a restart."""
    return done(board.run(follow(server, **how)))


def downloads(server: Server) -> list[str | None]:
    """The ranges of what has been fetched."""
    return [one.range for one in server.exchanges if one.path.startswith("/softwaremodules")]


# --- polling


def test_the_server_says_when_to_poll_and_an_idle_poll_is_one_request(
    board: Board, server: Server
) -> None:
    assert says(board, server) == "current - there is nothing to do"
    assert server.asked() == ["GET / 200", "PUT /configData 200"]
    server.state.config["pollingTime"] = "00:01:00~10%"
    polls = "client.due = ota.follow.ticks_ms()\nprint(pause, client.poll(), client.poll())\n"
    then = f"{TURN * 2}\n{polls}"
    *lines, last = says(board, server, then=then).splitlines()
    assert lines == ["current - there is nothing to do"] * 2
    pause, *polled = last.split()
    assert 54 <= int(pause) <= 66
    assert polled == ["True", "False"]
    assert server.asked() == ["GET / 200"] * 3


def test_attributes_tell_what_the_board_is_and_what_the_app_adds(
    board: Board, server: Server
) -> None:
    says(board, server, more=", attributes=lambda: {'place': 'cellar', 'long': 'x' * 500}")
    found = dict(target(server).attributes)
    assert found.pop("free_space").isdigit()
    assert found.pop("long") == "x" * 128
    assert found == {
        "release": "", "version": "", "micropython": "1.26.1", "chip": "esp32", "slot": "ota_0",
        "ota": found["ota"], "machine": "Virtual board with ESP32", "place": "cellar",
    }  # fmt: skip


RUN = """
import asyncio
async def main():
    task = asyncio.create_task(client.run())
    await asyncio.sleep_ms(120000)
client.due = ota.follow.ticks_ms()
asyncio.run(main())
"""


def test_run_is_one_task_that_installs_what_comes(board: Board, server: Server) -> None:
    action = assign(server)
    run = turn(board, server, then=RUN)
    assert len(run.boots) == 2
    assert says(board, server) == "current - there is nothing to do"
    assert action.status == "finished"


# --- what is installed, and what is said of it


def test_success_is_told_by_the_image_that_runs_once_it_is_confirmed(
    board: Board, server: Server
) -> None:
    tree = releases.tree("2.0", main=releases.MAIN)
    action = assign(server, {"pump.bundle": release("2.0", 2, releases.app(), tree)})
    run = turn(board, server)
    assert run.labels == ("ota_0", "ota_1")
    assert action.active
    assert action.messages[2:] == ["2.0: the download begins", "2.0 is installed: restarts now"]
    assert says(board, server) == "current - there is nothing to do"
    assert (action.status, target(server).update_status) == ("finished", "in_sync")
    assert action.messages[-1] == "2.0 runs and is confirmed"
    assert target(server).attributes["version"] == "2.0"
    assert report(board) == "confirmed 2.0 1"
    assert len([one for one in server.asked() if one.startswith("POST")]) == 3


def test_what_is_not_confirmed_is_not_told_yet(board: Board, server: Server) -> None:
    action = assign(server, {"pump.bundle": release("2.0", 2, releases.app())})
    assert says(board, server, more=STAYS).startswith("restart\nwaiting ")
    confirms = f"{TURN}print(pause)\nota.rollback.cancel()\n{TURN}"
    lines = says(board, server, then=confirms).splitlines()
    assert lines[0].startswith("waiting - 2.0 waits for the restart, or to be confirmed")
    assert lines[1] == "60"
    assert lines[2] == "current - there is nothing to do"
    assert action.status == "finished"


FAILS = "import machine\nprint('fails')\nmachine.reset()\n"
FAILING = {
    "app": (releases.app(), releases.tree("2.0", main=FAILS)),
    "files": (releases.tree("2.0", main=FAILS),),
}


@pytest.mark.parametrize("what", FAILING)
def test_failure_is_told_by_the_image_that_came_back_and_it_is_not_tried_again(
    board: Board, server: Server, what: str
) -> None:
    action = assign(server, {"pump.bundle": release("2.0", 2, *FAILING[what])})
    run = turn(board, server)  # up to the boot in which what ran before came back
    assert "fails" in run.output
    assert action.active
    says(board, server)
    assert (action.status, action.code) == ("error", 1)
    assert "2.0: not confirmed in its first boot: what ran before came back" in action.messages
    server.asked()
    again = server.state.assign(action.set, target(server))
    assert again is not None
    said = says(board, server, then=TURN * 2).splitlines()
    assert (again.status, again.code) == ("error", 1)
    assert "2.0: it has failed on this board before" in again.messages
    assert downloads(server) == []
    assert said == ["failed - 2.0: it has failed on this board before"] * 2
    mended = assign(server, {"pump.bundle": release("2.1", 3)}, version="2.1")
    turn(board, server)
    says(board, server)
    assert mended.status == "finished"


def test_a_release_that_nobody_trusted_has_signed_is_refused_and_that_is_told(
    board: Board, server: Server
) -> None:
    action = assign(server, {"pump.bundle": release("2.0", 2, number=1)})
    assert says(board, server).startswith("refused - 2.0: untrusted: ")
    assert (action.status, action.code) == ("error", 2)
    assert "untrusted" in action.messages[-2]
    assert report(board) == "refused 2.0 1"


def test_a_manifest_is_an_artifact_with_its_signature_and_payloads_beside_it(
    board: Board, server: Server
) -> None:
    from mpota.formats.manifest import Manifest
    from mpota.release.signing import sign

    content = releases.tree("2.0", main=releases.MAIN)
    manifest = Manifest(
        name="pump", version="2.0", chip="esp32", counter=2,
        payloads=(content.payload(as_url=True),),
    ).to_bytes()  # fmt: skip
    files = {"pump-2.0.json": manifest, "pump-2.0.sig": sign(manifest, (key(),))}
    action = assign(server, files | {content.member: content.data})
    turn(board, server)
    says(board, server)
    assert action.status == "finished"


def test_an_app_image_alone_is_an_artifact_for_a_board_without_keys(server: Server) -> None:
    action = assign(server, {"firmware.bin": APP})
    with ota_board.updating_board() as board:
        done(board.run(channels.CONFIRM))
        run = turn(board, server)
        assert run.labels == ("ota_0", "ota_1")
        says(board, server)
        assert action.status == "finished"
        assert ota_board.slot_content(board, len(APP)) == APP


def test_what_does_not_have_the_servers_hash_is_refused_in_the_end(server: Server) -> None:
    action = assign(server, {"firmware.bin": APP})
    artifact = action.set.modules[0].artifacts["firmware.bin"]
    artifact.hashes["sha256"] = "ab" * 32
    with ota_board.updating_board() as board:
        lines = says(board, server, then=TURN * 3).splitlines()
        assert [line.split()[1] for line in lines] == ["sha", "sha", "-"], lines
        assert lines[2].startswith("refused - 2.0: sha: ")
        assert (action.status, action.code) == ("error", 2)


@pytest.mark.parametrize("names", [("a.txt", "b.txt"), ("a.bundle", "b.bundle")])
def test_artifacts_of_which_none_is_the_one_are_refused_and_that_is_told(
    board: Board, server: Server, names: tuple[str, str]
) -> None:
    action = assign(server, dict.fromkeys(names, b"x"))
    assert says(board, server).startswith("refused - action 1: 2 artifacts: ")
    assert action.status == "error"
    assert (
        "one bundle, one manifest with its payloads, or one app image is due"
        in (action.messages[-2])
    )


# --- forced, soft, timed, download only; windows; consent


ASKED = """
answers = {answers}
def may(offer):
    print("asked", offer.version, offer.action, offer.is_forced, offer.needs_consent)
    return answers.pop(0)
client.may_install = may
"""


@pytest.mark.parametrize("how", ["forced", "soft", "timeforced"])
def test_the_app_is_asked_and_told_how_it_is_meant(board: Board, server: Server, how: str) -> None:
    action = assign(server, type=how, force_time=1 << 50)
    then = ASKED.format(answers=[None, False]) + TURN * 2
    lines = says(board, server, then=then).splitlines()
    asked = f"asked 2.0 1 {how == 'forced'} False"
    assert lines[:2] == [asked, "later - 2.0 waits: the app says later"]
    assert lines[2] == asked
    assert lines[3] == "refused - 2.0: the app says no"
    assert (action.status, action.code) == ("error", 2)
    assert action.messages[-2] == "2.0: the app says no"
    assert downloads(server) == []


def test_nothing_begins_while_the_app_is_busy_and_it_is_looked_at_soon(
    board: Board, server: Server
) -> None:
    action = assign(server)
    then = f"client.busy = True\n{TURN}print(pause)\n"
    said = says(board, server, then=then)
    assert said == "busy - 2.0 waits: the app is busy\n60"
    assert action.types == ["running", "retrieved"]


def test_download_only_leaves_what_runs_and_a_later_order_goes_on_from_there(
    board: Board, server: Server
) -> None:
    content = releases.app(size=0x30000)
    action = assign(server, {"pump.bundle": release("2.0", 2, content)}, type="downloadonly")
    assert says(board, server).startswith("current ")
    assert (action.status, action.types[-1]) == ("downloaded", "downloaded")
    assert len(downloads(server)) == 1
    server.asked()
    target(server).assigned = None
    again = server.state.assign(action.set, target(server))
    run = turn(board, server)
    assert run.labels == ("ota_0", "ota_1")
    head, rest = downloads(server)
    assert head == "bytes=0-"
    assert int(rest.partition("=")[2].rstrip("-")) > 0x20000  # what the slot lacks
    says(board, server)
    assert again is not None
    assert again.status == "finished"


def test_outside_its_window_it_is_downloaded_once_and_installed_when_that_opens(
    board: Board, server: Server
) -> None:
    content = releases.app(size=0x30000)
    action = assign(server, {"pump.bundle": release("2.0", 2, content)}, window=False)
    waits = "window - 2.0: downloaded, waits until it may be installed"
    assert says(board, server, then=TURN * 2).splitlines() == [waits] * 2
    assert says(board, server) == waits
    assert action.types.count("downloaded") == 1
    assert len(downloads(server)) == 1
    action.window = True
    turn(board, server)
    says(board, server)
    assert action.status == "finished"


def test_a_window_that_closes_before_the_switch_is_kept(board: Board, server: Server) -> None:
    action = assign(server, window=True)

    def close() -> None:
        action.window = False

    server.faults.append(Fault("GET /softwaremodules/*", call=close))
    said = says(board, server)
    assert said == "window - 2.0: downloaded, waits until it may be installed"
    assert action.types[-1] == "downloaded"


def test_consent_is_the_apps_to_give_and_without_it_nothing_comes(board: Board) -> None:
    with hawkbit.serving() as server:
        server.state.config["user.confirmation.flow.enabled"] = True
        action = assign(server)
        assert says(board, server) == "consent - 2.0 waits for consent"
        then = ASKED.format(answers=[None, False]) + TURN * 3
        lines = says(board, server, then=then).splitlines()
        asked = "asked 2.0 1 True True"
        assert lines == [
            asked, "later - 2.0 waits for consent",
            asked, "consent - 2.0: consent is denied", "consent - 2.0 waits for consent",
        ]  # fmt: skip
        assert action.types[-1] == "wait_for_confirmation"
        run = turn(board, server, then=ASKED.format(answers=[True]) + TURN)
        assert run.boots[0].output == f"{asked}\n"
        says(board, server)
        assert action.status == "finished"


# --- cancelled, at every stage


def test_a_cancel_before_anything_began_is_agreed_to(board: Board, server: Server) -> None:
    action = assign(server)
    server.state.cancel(action)
    assert says(board, server) == "current - there is nothing to do"
    assert action.status == "canceled"
    assert downloads(server) == []


def test_a_cancel_while_it_comes_is_agreed_to_and_what_came_is_dropped(
    board: Board, server: Server
) -> None:
    content = releases.app(size=0x30000)
    action = assign(server, {"pump.bundle": release("2.0", 2, content)})
    call = Fault("GET /softwaremodules/*", call=lambda: server.state.cancel(action), cut=0x20000)
    server.faults.append(call)
    then = TURN * 2  # the rest is refused then, with 404
    lines = says(board, server, then=then).splitlines()
    assert lines[-1] == "current - there is nothing to do"
    assert action.status == "canceled"
    note = "import ota.base; print(len(ota.base.recall('resume', 200)))"
    assert done(board.run(note)) == "0"


def test_a_cancel_before_the_switch_is_seen_and_agreed_to(board: Board, server: Server) -> None:
    action = assign(server)
    server.faults.append(Fault("GET /softwaremodules/*", call=lambda: server.state.cancel(action)))
    assert says(board, server, then=TURN * 2).splitlines()[-1].startswith("current ")
    assert action.status == "canceled"
    assert report(board) == "refused 2.0 1"
    assert done(board.run("import ota; print(ota.keys.load().version)")) == "1.0"


def test_a_cancel_after_the_switch_is_rejected_and_the_end_is_told(
    board: Board, server: Server
) -> None:
    action = assign(server)
    said = "POST /deploymentBase/1/feedback"
    server.faults.append(Fault(said))  # that it begins
    server.faults.append(Fault(said, call=lambda: server.state.cancel(action)))
    lines = says(board, server, then=TURN * 2, more=STAYS).splitlines()
    waits = "waiting - 2.0 waits for the restart, or to be confirmed"
    assert lines == ["restart", waits, waits]
    assert action.types[-1] == "warning"
    assert "2.0 is installed, and to be started or confirmed" in action.messages
    board.run()
    says(board, server)
    assert action.status == "finished"


def test_a_cancel_hides_a_newer_action_that_is_done_in_the_same_poll(
    board: Board, server: Server
) -> None:
    first = assign(server)
    second = assign(server, {"pump.bundle": release("3.0", 3)}, version="3.0")
    run = turn(board, server)
    assert len(run.boots) == 2
    says(board, server)
    assert (first.status, second.status) == ("canceled", "finished")
    assert report(board) == "confirmed 3.0 2"


# --- who is told what


def test_a_link_to_another_server_is_followed_without_the_token_and_the_log_says_so(
    board: Board, server: Server
) -> None:
    data = release()
    action = assign(server, {"pump-2.0.bundle": data})
    with web.serving({"/files/pump-2.0.bundle": web.File(data)}) as other:
        server.state.mirror = other.url("/files")
        run = turn(board, server, more=", log=print")
        assert {r.headers.get("authorization") for r in other.requests} == {None}
        assert f"{other.url('/files')}/pump-2.0.bundle is at another server" in run.output
    says(board, server)
    assert action.status == "finished"
    assert {one.authorization for one in server.exchanges} == {f"TargetToken {hawkbit.TOKEN}"}


def test_links_are_followed_at_the_server_that_is_known_whatever_it_calls_itself(
    board: Board, server: Server
) -> None:
    """As behind a proxy that the server was not told of."""
    action = assign(server)
    inside = "http://hawkbit.internal:8080/DEFAULT/controller/v1/pump-7/softwaremodules/1/artifacts"
    server.state.mirror = inside
    turn(board, server)
    says(board, server)
    assert action.status == "finished"


def test_a_gateway_token_makes_the_target(board: Board, server: Server) -> None:
    server.state.allow_gateway("key of all")
    server.state.remove_target(hawkbit.ID)
    says(board, server, token=", gateway_token='key of all'")
    assert target(server).created_by == "CONTROLLER_PLUG_AND_PLAY"
    assert target(server).attributes["chip"] == "esp32"


def test_over_tls_all_of_it_goes_and_another_certificate_is_refused(board: Board) -> None:
    done(board.run(f"with open('ca.der', 'wb') as f: f.write({web.root().der!r})"))
    other = web.issue("Other", is_ca=True).der
    done(board.run(f"with open('other.der', 'wb') as f: f.write({other!r})"))
    with hawkbit.serving(web.server_identity().context()) as server:
        action = assign(server)
        said = says(board, server, more=", cafile='/other.der', log=print")
        assert "certificate: the certificate of localhost is refused" in said
        assert server.asked() == []
        turn(board, server, more=", cafile='/ca.der'")
        says(board, server, more=", cafile='/ca.der'")
        assert action.status == "finished"


def test_what_is_said_never_has_a_time_and_closes_with_a_word(board: Board, server: Server) -> None:
    assign(server)
    turn(board, server)
    says(board, server)
    said = [json.loads(one.body) for one in server.exchanges if one.method == "POST"]
    assert [one["status"]["execution"] for one in said] == ["proceeding", "scheduled", "closed"]
    assert said[-1]["status"]["result"] == {"finished": "success"}
    assert not any(re.search("time", json.dumps(one)) for one in said)
