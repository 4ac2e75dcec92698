"""A fleet follows a staged rollout: `python -m bench rollout` with fewer boards, and what that
measures by.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from mpota.firmware.sample import build_app

from bench import rollout
from bench.rollout import NEW, STAGES, Rollout
from tests.support.releases import key
from tests.support.services import need

BOARDS = 160
FAILING = (7, 70)


def followed(count: int, nginx: str | None) -> Rollout:
    old, new = (build_app("esp32", version=version, size=0x18000) for version in ("v1.0", "v2.0"))
    return rollout.follow(count, old, new, hours=3, nginx=nginx, failing=FAILING, key=key())


@pytest.fixture(scope="module")
def fleet() -> Rollout:
    return followed(BOARDS, str(need("nginx")))


def test_each_board_takes_a_release_once_in_its_stage_and_turn_and_none_is_left_out(
    fleet: Rollout,
) -> None:
    assert rollout.faults(fleet) == []
    stages = [fleet.stage_of(board) for board in range(BOARDS)]
    assert [stage.took for stage in fleet.stages] == [
        0, *(stages.count(number) for number in range(len(STAGES)))
    ]  # fmt: skip
    assert len(set(stages)) > 2
    took = fleet.took()
    for board in range(BOARDS):
        ((what, version),) = [(event.what, event.version) for event in took[board]]
        assert (what, version) == ("failed" if board in FAILING else "runs", NEW)
    assert fleet.codes == {"current": BOARDS - len(FAILING), "failed": len(FAILING)}


def test_a_fleet_costs_a_request_a_poll_and_a_difference_a_board(fleet: Rollout) -> None:
    assert set(rollout.fetched(fleet)) == {"delta"}
    for stage, former in zip(fleet.stages[1:], fleet.stages, strict=False):
        assert set(stage.answers) == {200, 304}
        hours = (stage.ends - former.ends) / 3600
        assert BOARDS * hours * 0.8 <= stage.polls <= BOARDS * hours * 1.5
        assert stage.answers[304] < stage.polls
    # The channel file at the start, after the restart, and at each stage, where the poll that finds
    # it is answered by it as well; manifest, signature and payload of the release.
    news = sum(stage.answers[200] for stage in fleet.stages)
    assert BOARDS * (2 + len(STAGES) + 3) <= news <= BOARDS * (2 + 2 * len(STAGES) + 3)


def test_shares_and_turns_are_spread_over_ids_as_by_chance(fleet: Rollout) -> None:
    many = replace(fleet, unique_ids=rollout.unique_ids(10_000))
    assert 0.001 < rollout.chance_of_buckets(many) < 0.999
    assert 0.001 < rollout.chance_of_turns(many) < 0.999
    assert rollout.chance([100] * 50) > 0.999  # too even to be chance
    assert rollout.chance([100] * 49 + [200]) < 1e-3
    assert rollout.chance([90, 110] * 25) == pytest.approx(0.4337, abs=1e-3)


def test_what_goes_wrong_in_a_fleet_is_seen(fleet: Rollout) -> None:
    events = list(fleet.events)
    taken = next(event for event in events if event.board == 1)
    late = replace(taken, at=taken.at + 100_000)
    error = replace(taken, what="error", version="pin", text="no")
    others = [event for event in events if event is not taken]
    for wrong, said in (
        ([*events, taken], "board 1 took it 2 times"),
        (others, "board 1 was left out"),
        ([*others, late], f"board 1 took it at {late.at} s, not"),
        ([*events, error], "board 1: pin: no"),
    ):
        (found,) = rollout.faults(replace(fleet, events=wrong))
        assert found.startswith(said)


def test_a_fleet_follows_on_python_s_own_server_as_well() -> None:
    fleet = followed(8, None)
    assert rollout.faults(fleet) == []
    assert sum(stage.took for stage in fleet.stages) == 8
    assert fleet.server != "nginx"
