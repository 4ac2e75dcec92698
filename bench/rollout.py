"""A staged rollout as a fleet follows it: simulated boards (crowd.py), a static server (static.py).

    python -m bench rollout

Boards run a release and ask hourly. The next one is published for 1 % of them, then for 5, 25 and
100 %, six hours each. Told are polls and bytes by the server's own log, and who got what when by
the boards; that each board takes the release once, in its turn, and none is left out; whether
shares and turns are spread over the ids as chance would have it; and the bytes of the fleet. The
same with a tenth of the boards, without deltas.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from mpota.formats.channel import SHARES, ChannelEntry
from mpota.formats.manifest import Manifest
from mpota.publish.channels import EntryChange, changed, channel_path, get_channel, reissued
from mpota.publish.publishing import Keys, Publication, Wishes, carry_out, plan_releases, utc_now
from mpota.publish.store import Directory
from mpota.release.build import Content, bundle
from mpota.release.signing import PrivateKey

from bench import static
from bench.crowd import Boards, Client, Crowd, Event, Passed, crowd
from bench.pairs import pairs

BOARDS = 10_000
STAGES = (100, 500, 2500, SHARES)
NAME, CHANNEL = "pump", "stable"
OLD, NEW = "1.0", "2.0"
_HOUR = 3600
_SPREAD_S = 2 * _HOUR
_FIRST_ID = 0x240AC4000000
_CELLS = 50  # into which ids and times are put, to see whether chance has done so


@dataclass(frozen=True)
class Stage:
    """``ends``: when the next one begins, in seconds; ``took``: how many boards took the release.
    ``polls``: by the boards; ``answers``: of the server, by status; ``sent``: by it, ``received``.
    """

    share: int
    ends: int
    took: int
    polls: int
    answers: Counter[int]
    sent: int
    received: int


@dataclass(frozen=True)
class Rollout:
    """``events``: all that became of boards. ``unique_ids``: theirs, by number."""

    server: str
    unique_ids: Sequence[bytes]
    entry: ChannelEntry
    stages: Sequence[Stage]
    events: Sequence[Event]
    began: Sequence[int]  # when each stage began, in seconds
    codes: Counter[str]  # what boards say in the end

    def bucket(self, board: int) -> int:
        return self.entry.bucket(self.unique_ids[board])

    def stage_of(self, board: int) -> int:
        """The first stage whose share this board is in."""
        return next(n for n, share in enumerate(STAGES) if self.bucket(board) < share)

    def took(self) -> dict[int, list[Event]]:
        """All events of boards that took the release, or tried."""
        found: dict[int, list[Event]] = {}
        for event in self.events:
            if event.what in ("runs", "failed"):
                found.setdefault(event.board, []).append(event)
        return found


def unique_ids(count: int) -> list[bytes]:
    """As a maker has them: one behind the other."""
    return [(_FIRST_ID + number).to_bytes(6, "big") for number in range(count)]


def follow(
    count: int,
    old: bytes,
    new: bytes,
    *,
    deltas: int = 1,
    hours: int = 6,
    processes: int = 2,
    nginx: str | None = None,
    failing: Iterable[int] = (),
    key: PrivateKey | None = None,
    told: Callable[[str], None] = lambda text: None,
) -> Rollout:
    """Let ``count`` boards follow a rollout of ``new`` where ``old`` runs.

    ``hours``: of each stage, three at least. ``failing``: numbers of boards on which the trial
    fails.
    """
    key = key or PrivateKey.generate()
    began = utc_now()
    with static.public_directory() as directory:
        site = _Site(directory, key, began)
        site.publish(OLD, 1, old, SHARES, 0)
        boards = Boards(
            unique_ids(count),
            {hashlib.sha256(app).hexdigest(): app for app in (old, new)},
            hashlib.sha256(old).hexdigest(),
            (NAME, OLD, 1),
            (key.public.digest.hex(),),
            failing={NEW: list(failing)},
        )
        with static.serving(directory, nginx) as server:
            client = Client("ota.channel", "Channel", (server.root, NAME, CHANNEL))
            start = int(began.timestamp())
            with crowd(boards, client, start, processes) as made:
                return _roll_out(made, boards, site, server, new, deltas, hours, told)


def _roll_out(
    made: Crowd,
    boards: Boards,
    site: _Site,
    server: static.Static,
    new: bytes,
    deltas: int,
    hours: int,
    told: Callable[[str], None],
) -> Rollout:
    events: list[Event] = []
    stages: list[Stage] = []
    began: list[int] = []

    def run(share: int, seconds: int) -> Passed:
        before = stages[-1].ends if stages else 0
        passed = made.run(before + seconds)
        answers = server.answers()
        took = sum(event.what in ("runs", "failed") for event in passed.events)
        events.extend(passed.events)
        stages.append(
            Stage(
                share,
                before + seconds,
                took,
                passed.polls,
                Counter(answer.status for answer in answers),
                sum(answer.sent for answer in answers),
                sum(answer.received for answer in answers),
            )
        )
        told(f"{share / 100:g} %: {took} boards, {passed.polls} polls")
        return passed

    run(0, 2 * _HOUR)  # all have asked, and know that there is nothing
    for share in STAGES:
        began.append(stages[-1].ends)
        if len(began) == 1:
            site.publish(NEW, 2, new, share, deltas, began[-1])
        else:
            site.set_share(share, began[-1])
        passed = run(share, hours * _HOUR)
    entry = site.entry()
    return Rollout(
        server.name, boards.unique_ids, entry, stages, events, began, Counter(passed.codes)
    )


class _Site:
    """A directory in which releases are published, at simulated times."""

    def __init__(self, directory: Path, key: PrivateKey, began: datetime) -> None:
        self._directory = directory
        self._store = Directory(directory)
        self._key = key
        self._began = began

    def publish(
        self, version: str, counter: int, app: bytes, share: int, deltas: int, at_s: int = 0
    ) -> None:
        content = Content("app", "app.bin", app)
        manifest = Manifest(
            payloads=(content.payload(),), name=NAME, version=version, chip="esp32", counter=counter
        )
        made = bundle(manifest, (content,), (self._key,))
        spread = _SPREAD_S if at_s else 0
        wishes = Wishes(CHANNEL, share, spread, self._now(at_s) if at_s else None, deltas=deltas)
        plan = plan_releases(self._store, (made,), wishes, (self._key.public,))
        assert plan is not None
        self._carry_out(plan, at_s)

    def set_share(self, share: int, at_s: int) -> None:
        former = get_channel(self._store, CHANNEL, (self._key.public,))
        now = self._now(at_s)
        next_one = changed(former.channel, NEW, EntryChange(share=share), now)
        entries = next_one.releases
        self._carry_out(
            Publication((), reissued(next_one, NAME, CHANNEL, entries, now), former), at_s
        )

    def entry(self) -> ChannelEntry:
        releases = get_channel(self._store, CHANNEL, (self._key.public,)).channel.releases
        return next(entry for entry in releases if entry.version == NEW)

    def _now(self, at_s: int) -> datetime:
        return self._began + timedelta(seconds=at_s)

    def _carry_out(self, plan: Publication, at_s: int) -> None:
        carry_out(self._store, plan, Keys((self._key,)))
        # Servers make ETags of time and size: no two states are of one second.
        now = self._now(at_s).timestamp()
        os.utime(self._directory / channel_path(CHANNEL), (now, now))


# --- judged


def faults(rollout: Rollout) -> list[str]:
    """What is not as it has to be; nothing, if all is well."""
    found = [f"board {e.board}: {e.version}: {e.text}" for e in rollout.events if e.what == "error"]
    took = rollout.took()
    found += [
        f"board {board} took it {len(all_)} times" for board, all_ in took.items() if all_[1:]
    ]
    found += [
        f"board {board} was left out"
        for board in range(len(rollout.unique_ids))
        if board not in took
    ]
    for board, (event, *_) in took.items():
        stage = rollout.stage_of(board)
        earliest = rollout.began[stage] + rollout.entry.delay(rollout.unique_ids[board])
        # A poll that found it comes within 1.25 hours, and one more when its turn has come.
        latest = max(earliest, rollout.began[stage] + _HOUR * 5 // 4) + 60
        if not earliest <= event.at <= latest:
            found.append(f"board {board} took it at {event.at} s, not {earliest} to {latest}")
    return found


def chance(counts: Sequence[int]) -> float:
    """How likely counts as uneven as these are where all cells are alike: a chi-squared test.

    By Wilson and Hilferty's approximation of the distribution.
    """
    expected = sum(counts) / len(counts)
    squares = sum((count - expected) ** 2 for count in counts) / expected
    freedom = len(counts) - 1
    spread = 2 / (9 * freedom)
    z = ((squares / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return math.erfc(z / math.sqrt(2)) / 2


def chance_of_buckets(rollout: Rollout) -> float:
    width = SHARES // _CELLS
    cells = Counter(rollout.bucket(board) // width for board in range(len(rollout.unique_ids)))
    return chance([cells[cell] for cell in range(_CELLS)])


def chance_of_turns(rollout: Rollout) -> float:
    """That of the turns of all boards, within the time over which starts are spread."""
    delays = (rollout.entry.delay(unique_id) for unique_id in rollout.unique_ids)
    cells = Counter(delay * _CELLS // _SPREAD_S for delay in delays)
    return chance([cells[cell] for cell in range(_CELLS)])


def fetched(rollout: Rollout) -> dict[str, tuple[int, int]]:
    """Form -> boards that took it, and bytes of all of them."""
    found: dict[str, tuple[int, int]] = {}
    for events in rollout.took().values():
        for _, encoding, size in events[0].taken:
            boards, total = found.get(encoding or "plain", (0, 0))
            found[encoding or "plain"] = boards + 1, total + size
    return found


# --- told


def main() -> None:
    pair = next(pair for pair in pairs() if pair.what.startswith("function"))
    for count, deltas in ((BOARDS, 1), (BOARDS // 10, 0)):  # without, it is the same for each board
        rollout = follow(
            count,
            pair.old,
            pair.new,
            deltas=deltas,
            processes=os.cpu_count() or 1,
            nginx=static.find_nginx(),
            told=lambda text: print(text, file=sys.stderr, flush=True),
        )
        print("with deltas:" if deltas else "without:")
        report(rollout)


def report(rollout: Rollout) -> None:
    count = len(rollout.unique_ids)
    print(f"{count:,} boards, {rollout.server}; each asks hourly, the boards of a stage start "
          f"over {_SPREAD_S // _HOUR} h")  # fmt: skip
    print(f"{'share':>7}{'hours':>7}{'polls':>10}{'304':>10}{'200':>10}{'others':>8}"
          f"{'sent, MB':>10}{'received':>10}{'took it':>9}")  # fmt: skip
    before = 0
    for stage in rollout.stages:
        hours = (stage.ends - before) / _HOUR
        before = stage.ends
        others = stage.answers.total() - stage.answers[304] - stage.answers[200]
        print(f"{stage.share / 100:>5g} %{hours:>7g}{stage.polls:>10,}{stage.answers[304]:>10,}"
              f"{stage.answers[200]:>10,}{others:>8,}{stage.sent / 1e6:>10,.1f}"
              f"{stage.received / 1e6:>10,.1f}{stage.took:>9,}")  # fmt: skip
    for form, (boards, total) in fetched(rollout).items():
        sent = sum(stage.sent for stage in rollout.stages)
        print(
            f"{boards:,} boards took it {form}, {total / boards:,.0f} bytes each; in all the "
            f"server has sent {sent / count:,.0f} bytes a board"
        )
    problems = faults(rollout)
    for problem in problems[:10]:
        print(f"WRONG: {problem}")
    if not problems:
        print("each board took it once, in the stage and the turn that its id gives; none was left "
              "out")  # fmt: skip
    print(f"spread over ids, {_CELLS} parts: chance of a less even one: buckets "
          f"{chance_of_buckets(rollout):.0%}, turns {chance_of_turns(rollout):.0%}")  # fmt: skip
