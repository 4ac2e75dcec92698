"""`ota.mqtt` on a board without a broker: what it says, by whatever publishes for it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace

import pytest
from mpota.formats.channel import ChannelEntry
from mpota.virtual.board import Board

from tests.support import channels, mqtt, releases, web
from tests.support.channels import Site, done, report
from tests.support.mqtt import Message

# Every message is printed as what `publish` was called with. The first poll comes at once.
SAYS = """
import ota, ota.follow
ota.follow.random = lambda count: 0
import ota.channel, ota.mqtt
def publish(topic, msg, retain, qos):
    print("said", (topic, msg, retain, qos))
def subscribe(topic, qos):
    print("listens", topic, qos)
channel = ota.channel.Channel({url!r}, name="pump", max_failures=1)
updates = ota.mqtt.Updates({publish}, channel, **{options!r})
def press(word="install"):
    updates.message(updates.topic + b"install", word)
def now():
    channel.due = ota.channel.ticks_ms()
"""
CONNECTED = "updates.connected(subscribe)\nupdates.poll()\nupdates.poll()\n"


@pytest.fixture
def board() -> Iterator[Board]:
    with channels.board() as made:
        yield made


def script(site: Site, then: str, publish: str = "publish", **options: object) -> str:
    return SAYS.format(url=site.url, publish=publish, options=options) + then


def said(output: str) -> list[Message]:
    calls = [ast.literal_eval(line[5:]) for line in output.splitlines() if line[:5] == "said "]
    return [Message(topic.decode(), msg, retain) for topic, msg, retain, _ in calls]


def last(output: str) -> dict[str, object]:
    """The last state that was told."""
    return mqtt.check_state([one for one in said(output) if one.topic.endswith("/update")][-1])


def confirmed(board: Board) -> str:
    """What has become of the release, once it has had its first boot."""
    done(board.run())
    return report(board)


def small(site: Site, version: str = "2.0", counter: int = 2, **more: object) -> None:
    """Publish a release of an app, whose installation needs a restart."""
    entry = site.release(version, counter, releases.app(size=0x8000), **more)
    site.publish(entry, poll=3600)


NAME = 'Pumpe "Süd" \\ \x00\x1f\x7f\n\t'


def test_odd_ids_and_names_make_topics_and_json_that_home_assistant_takes(
    board: Board, site: Site
) -> None:
    options = {"id": "Küche/1 +#", "name": NAME, "discovery": "ha/x", "base": "home/mpota",
               "device": {"cns": [["mac", "24:0a:c4:00:00:01"]], "hw": 'v"2'},
               "release_url": "https://example.org/?a=\"&b=ü"}  # fmt: skip
    output = done(board.run(script(site, CONNECTED, **options)))
    safe = "K_c3_bcche_2f1_20_2b_23"
    assert f"listens b'home/mpota/{safe}/install' 1" in output
    config, status, *_ = said(output)
    component = mqtt.check_discovery(config, "ha/x")
    assert config.topic == f"ha/x/device/{safe}/config"
    assert config.json["dev"]["name"] == NAME
    assert config.json["dev"]["cns"] == [["mac", "24:0a:c4:00:00:01"]]
    assert config.json["dev"]["hw"] == 'v"2'
    assert component["release_url"] == options["release_url"]
    assert component["cmd_t"] == f"home/mpota/{safe}/install"
    assert (status.topic, status.payload) == (component["avty_t"], b"online")
    long = {"id": "ü" * 500, "name": "ü" * 500, "release_url": "ü" * 900}
    longest, *_ = said(done(board.run(script(site, CONNECTED, **long))))
    mqtt.check_discovery(longest)
    assert len(longest.payload) < 2048


def test_without_options_the_board_is_known_by_its_unique_id_and_with_sleep_has_no_status(
    board: Board, site: Site
) -> None:
    output = done(board.run(script(site, CONNECTED, is_available=False)))
    topics = [message.topic for message in said(output)]
    unique = board.unique_id.hex()
    assert topics[:2] == [f"homeassistant/device/{unique}/config", f"mpota/{unique}/update"]
    assert "avty_t" not in mqtt.check_discovery(said(output)[0])
    output = done(board.run(script(site, CONNECTED, discovery=None)))
    assert [message.topic for message in said(output)][:1] == [f"mpota/{unique}/status"]


@pytest.mark.parametrize(
    "options",
    [{"base": ""}, {"base": "a/+"}, {"base": "a#"}, {"discovery": "x" * 65}, {"base": "a\0"},
     {"device": {"model": "x"}}],
)  # fmt: skip
def test_topics_and_keys_that_cannot_be_are_refused(
    board: Board, site: Site, options: dict[str, object]
) -> None:
    assert "ValueError: " in board.run(script(site, "", **options)).traceback


def test_the_app_is_asked_whoever_presses_and_a_press_waits_for_it(
    board: Board, site: Site
) -> None:
    small(site)
    then = f"""
channel.restart = updates.restart = lambda: print("restarts")
says = [None, True]
def may_install(offer):
    print("asked", offer.version)
    return says.pop(0)
channel.may_install = may_install
{CONNECTED}
press()
updates.poll()
now()
updates.poll()
"""
    output = done(board.run(script(site, then.replace("channel.restart = ", ""))))
    states = [line.split(maxsplit=1)[0] for line in output.splitlines()]
    assert states.count("asked") == 2
    assert states[-1] == "restarts"
    summaries = [m.json.get("release_summary") for m in said(output) if m.topic.endswith("update")]
    assert "2.0 waits: the app says later" in summaries
    assert said(output)[-1].payload == b"offline"
    assert confirmed(board) == "confirmed 2.0"


def test_what_the_app_does_not_want_is_told_and_a_press_changes_nothing(
    board: Board, site: Site
) -> None:
    small(site)
    then = f"channel.may_install = lambda offer: False\n{CONNECTED}press()\nupdates.poll()\n"
    output = done(board.run(script(site, then + "press()\nnow()\nupdates.poll()\n")))
    assert last(output)["latest_version"] == "1.0"
    assert last(output)["release_summary"] == "2.0: the app says no"
    assert report(board) == "none"


def test_a_press_outlives_a_network_that_fails_in_the_middle(board: Board, site: Site) -> None:
    site.publish(site.release("2.0", 2, releases.app(size=0x30000)), poll=3600)
    payload = next(name for name in site.server.files if name.endswith("app.bin"))
    whole = site.server.files[payload]
    assert isinstance(whole, web.File)

    def cut(handler: web.Handler) -> None:
        site.server.files[payload] = whole
        handler.answer("200 OK", [f"Content-Length: {len(whole.body)}", f"ETag: {whole.etag}"])
        handler.wfile.write(whole.body[:0x28000])
        raise web.Hangup

    site.server.files[payload] = cut
    then = f"updates.restart = lambda: print('restarts')\n{CONNECTED}press('2.0')\n"
    output = done(board.run(script(site, then + "updates.poll()\nnow()\nupdates.poll()\n")))
    found = [mqtt.check_state(m) for m in said(output) if m.topic.endswith("update")]
    failed = next(one for one in found if str(one.get("release_summary")).startswith("2.0 waits: "))
    assert "short: " in failed["release_summary"]
    assert (failed["latest_version"], failed["in_progress"]) == ("2.0", False)
    percents = [one["update_percentage"] for one in found if one.get("update_percentage")]
    assert max(percents) >= 75  # a download that goes on does not know of how many bytes
    assert len(percents) <= 20
    assert output.splitlines()[-1] == "restarts"
    assert confirmed(board) == "confirmed 2.0"


def test_a_press_without_an_offer_has_the_channel_asked_at_most_once_a_minute(
    board: Board, site: Site
) -> None:
    site.publish(site.release("1.0", 1), poll=3600)
    then = CONNECTED + "press()\nupdates.poll()\n" * 20
    done(board.run(script(site, then)))
    assert site.asked() == ["stable.channel 200"]
    then = CONNECTED + "press()\nupdates.poll()\nchannel.read_at -= 61000\n" * 2
    done(board.run(script(site, then)))
    assert site.asked() == ["stable.channel 304", "stable.channel 200", "stable.channel 200"]


BREAKS = """
count = 0
def broken(*message):
    global count
    count += 1
    if count > {good}:
        raise {error}
    publish(*message)
"""


@pytest.mark.parametrize("error", ["OSError(104)", "IndexError()", "AssertionError()"])
def test_a_client_that_fails_does_not_end_an_installation_and_is_told_all_when_it_is_back(
    board: Board, site: Site, error: str
) -> None:
    small(site)
    then = BREAKS.format(good=4, error=error)
    then += f"updates.publish = broken\nupdates.restart = lambda: print('restarts')\n{CONNECTED}"
    then += "press()\nupdates.poll()\nupdates.publish = publish\n"
    then += "print('back')\nupdates.connected(subscribe)\nupdates.poll()\n"
    output = done(board.run(script(site, then)))
    before, after = output.split("back\n")
    assert "restarts" in before
    topics = [message.topic.rpartition("/")[2] for message in said(after)]
    assert topics == ["config", "status", "update"]
    assert last(after)["release_summary"] == "2.0 waits for the restart"
    assert confirmed(board) == "confirmed 2.0"


ASYNC = """
import asyncio
async def publish_later(*message):
    await asyncio.sleep_ms(1)
    publish(*message)
async def subscribe_later(topic, qos):
    subscribe(topic, qos)
"""


def test_an_update_without_a_press_comes_where_the_app_says_so_by_a_coroutine_as_well(
    board: Board, site: Site
) -> None:
    small(site)
    then = ASYNC + "updates.connected(subscribe_later)\nasyncio.run(updates.run())\n"
    run = board.run(script(site, then, "lambda *m: publish_later(*m)", auto=True))
    assert run.labels == ("ota_0", "ota_1"), run.console
    messages = said(run.boots[0].output)
    assert messages[-1].payload == b"offline"
    assert [message.topic.rpartition("/")[2] for message in messages][:2] == ["config", "status"]
    assert report(board) == "confirmed 2.0"


def test_poll_says_that_it_cannot_wait_for_a_coroutine(board: Board, site: Site) -> None:
    then = ASYNC + "updates.connected(subscribe)\nupdates.poll()\n"
    run = board.run(script(site, then, "lambda *m: publish_later(*m)"))
    assert "TypeError: publish is a coroutine function: `run` takes it" in run.traceback


def test_an_offer_that_was_known_before_a_restart_is_not_taken_back_by_it(
    board: Board, site: Site
) -> None:
    """Home Assistant keeps what a message does not have."""
    small(site)
    assert last(done(board.run(script(site, CONNECTED))))["latest_version"] == "2.0"
    first = "updates.channel.due += 60000\nupdates.connected(subscribe)\nupdates.poll()\n"
    state = last(done(board.run(script(site, first))))
    assert state["installed_version"] == "1.0"
    assert "latest_version" not in state


def test_what_cannot_be_installed_is_told_with_its_code(board: Board, site: Site) -> None:
    small(site, name="fan")
    then = CONNECTED + "press()\nupdates.poll()\nupdates.poll()\n"
    output = done(board.run(script(site, then)))
    assert str(last(output)["release_summary"]).startswith("2.0 refused: wrong-name: ")
    assert last(output)["latest_version"] == "1.0"


# --- without a channel


SINGLE = """
import ota.mqtt_manifest
channel = ota.mqtt_manifest.Manifest({url!r}, name="pump")
updates = ota.mqtt.Updates(publish, channel, id="single")
"""


def single(site: Site, entry: ChannelEntry, then: str) -> str:
    return script(site, SINGLE.format(url=f"{site.url}/{entry.manifest}") + then)


def test_the_release_of_one_manifest_is_offered_and_comes_by_a_press(
    board: Board, site: Site
) -> None:
    entry = site.release("2.0", 2, releases.app(size=0x8000))
    press = CONNECTED + "press()\nupdates.poll()\n"
    run = board.run(single(site, entry, press))
    assert run.labels == ("ota_0", "ota_1"), run.console
    assert last(run.boots[0].output)["latest_version"] == "2.0"
    assert confirmed(board) == "confirmed 2.0"
    for others in (entry, site.release("1.5", 1)):
        output = done(board.run(single(site, others, press)))
        assert last(output) == {
            "installed_version": "2.0", "latest_version": "2.0", "release_summary": "",
            "in_progress": False, "update_percentage": None,
        }  # fmt: skip


def test_a_manifest_of_others_or_that_has_failed_is_not_offered(board: Board, site: Site) -> None:
    press = CONNECTED + "press()\nupdates.poll()\n"
    for wrong, code in (
        (site.release("2.0", 2, keys=(releases.key(1),)), "untrusted"),
        (site.release("2.1", 2, name="fan"), "wrong-name"),
    ):
        state = last(done(board.run(single(site, wrong, press))))
        assert state["latest_version"] == "1.0"
        assert str(state["release_summary"]).startswith(code + ": ")
    entry = site.release("2.2", 2)
    del site.server.files[f"/pump/{entry.manifest[:-5]}.sig"]
    state = last(done(board.run(single(site, entry, press))))
    assert str(state["release_summary"]).startswith("unsigned: ")
    bad = site.release("2.3", 2, releases.tree("2.3", main="import machine; machine.reset()"))
    run = board.run(single(site, bad, press))
    assert len(run.boots) == 3, run.console
    output = done(board.run(single(site, bad, press)))
    assert str(last(output)["release_summary"]).startswith("2.3 failed: not confirmed")
    assert last(output)["latest_version"] == "1.0"
    assert "NAME.json" in board.run(single(site, replace(bad, manifest="x.txt"), "")).traceback
