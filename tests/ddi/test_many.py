"""`python -m bench hawkbit` with few boards, and that it would notice what is wrong."""

from __future__ import annotations

from dataclasses import replace

from bench import hawkbit
from tests.support import boards
from tests.support.releases import key


def test_boards_follow_the_stand_in_each_takes_it_once_and_all_is_told_truly() -> None:
    old, new = boards.app("v1.26.1"), boards.app("v1.27.0")
    followed = hawkbit.follow(8, old, new, key=key())
    assert hawkbit.faults(followed) == []
    assert followed.failing == [0]
    assert followed.codes == {"current": 7, "failed": 1}
    assert followed.update.asked["GET artifact"] == 8
    assert set(followed.idle.asked) == {"GET poll"}
    assert 8 * 10 <= followed.idle.asked.total() <= 8 * 14
    lied = replace(followed, failing=[1])
    assert [text.split(":")[0] for text in hawkbit.faults(lied)] == ["board 0", "board 1"]
