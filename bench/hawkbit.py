"""A thousand boards follow a stand-in for hawkBit: crowd.py simulates them, mpota.virtual it.

    python -m bench hawkbit

They poll every five minutes, a tenth more or less as the server says. After an hour a signed
release is ordered for all at once; on one in a hundred it is not confirmed. Told are requests and
the bytes of bodies, what the stand-in takes of this process, and whether each action ended as what
became of its board.
"""

from __future__ import annotations

import hashlib
import os
import re
import resource
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mpota.formats.manifest import Manifest
from mpota.release.build import Content, bundle
from mpota.release.signing import PrivateKey
from mpota.units import MiB
from mpota.virtual.hawkbit.faults import Exchange
from mpota.virtual.hawkbit.server import running
from mpota.virtual.hawkbit.state import Action, State

from bench.crowd import Boards, Client, Crowd, Event, crowd
from bench.pairs import pairs

BOARDS = 1000
NAME, OLD, NEW = "pump", "1.0", "2.0"
_POLL = "00:05:00~10%"
_HOUR = 3600
_FIRST_ID = 0x240AC4000000
_ONE_IN = 100  # boards, on which the release fails
_NUMBERS = re.compile(r"/\d+")


@dataclass
class Traffic:
    """What came in some time. ``asked``: method and kind of resource -> how often."""

    asked: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    received: int = 0
    sent: int = 0

    def take(self, exchange: Exchange) -> None:
        path = _NUMBERS.sub("", exchange.path.partition("?")[0])
        kind = "artifact" if path.startswith("/softwaremodules") else path.strip("/") or "poll"
        self.asked[f"{exchange.method} {kind}"] += 1
        self.statuses[exchange.status] += 1
        self.received += len(exchange.body)
        self.sent += exchange.size


@dataclass(frozen=True)
class Followed:
    """``idle``: an hour with nothing to do; ``update``: the one with the order. ``memory``: bytes
    that the stand-in takes of this process, without the artifact; ``cpu_s``: of it as well.
    """

    count: int
    idle: Traffic
    update: Traffic
    events: Sequence[Event]
    actions: Sequence[Action]
    failing: Sequence[int]
    codes: Counter[str]
    memory: int
    cpu_s: float


def follow(
    count: int, old: bytes, new: bytes, *, processes: int = 2, key: PrivateKey | None = None
) -> Followed:
    """Let ``count`` boards follow the stand-in, from ``old`` to ``new``."""
    key = key or PrivateKey.generate()
    unique_ids = [(_FIRST_ID + number).to_bytes(6, "big") for number in range(count)]
    failing = list(range(0, count, _ONE_IN))
    boards = Boards(
        unique_ids,
        {hashlib.sha256(app).hexdigest(): app for app in (old, new)},
        hashlib.sha256(old).hexdigest(),
        (NAME, OLD, 1),
        (key.public.digest.hex(),),
        failing={NEW: failing},
    )
    before = _memory()
    state = State(config={"pollingTime": _POLL})
    state.allow_target_tokens()
    for unique_id in unique_ids:
        state.add_target(unique_id.hex(), f"token of {unique_id.hex()}")
    traffic = [Traffic()]
    lock = threading.Lock()

    def take(exchange: Exchange) -> None:
        with lock:
            traffic[-1].take(exchange)

    with running(state, on_exchange=take) as server:
        client = Client("ota.ddi", "Client", (server.url, "DEFAULT", "{id}", "token of {id}"))
        with crowd(boards, client, int(time.time()), processes) as made:
            return _measure(made, state, traffic, lock, _release(new, key), failing, before)


def _measure(
    made: Crowd,
    state: State,
    traffic: list[Traffic],
    lock: threading.Lock,
    data: bytes,
    failing: Sequence[int],
    before: int,
) -> Followed:
    made.run(_HOUR)  # all have come, and told what they are
    with lock:
        traffic.append(Traffic())
    made.run(2 * _HOUR)
    release = state.publish(NAME, NEW, {f"{NAME}-{NEW}.bundle": data})
    actions = [state.assign(release, target) for target in state.targets.values()]
    with lock:
        traffic.append(Traffic())
    cpu = time.process_time()
    passed = made.run(3 * _HOUR)
    with lock:
        return Followed(
            len(state.targets), traffic[1], traffic[2], passed.events,
            [action for action in actions if action is not None], failing,
            Counter(passed.codes), _memory() - before - len(data), time.process_time() - cpu,
        )  # fmt: skip


def _release(new: bytes, key: PrivateKey) -> bytes:
    content = Content("app", "app.bin", new)
    manifest = Manifest(
        payloads=(content.payload(),), name=NAME, version=NEW, chip="esp32", counter=2
    )
    return bundle(manifest, (content,), (key,)).to_bytes()


def _memory() -> int:
    """What this process holds in memory, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def faults(followed: Followed) -> list[str]:
    """What is not as it has to be; nothing, if all is well."""
    found = [
        f"board {e.board}: {e.version}: {e.text}" for e in followed.events if e.what == "error"
    ]
    tried = Counter(event.board for event in followed.events if event.what in ("runs", "failed"))
    for number, action in enumerate(followed.actions):
        due = "error" if number in followed.failing else "finished"
        if action.status != due:
            found.append(f"board {number}: the action is {action.status}, not {due}")
        if tried[number] != 1:
            found.append(f"board {number} has tried it {tried[number]} times")
    return found


def main() -> None:
    pair = next(pair for pair in pairs() if pair.what.startswith("function"))
    report(follow(BOARDS, pair.old, pair.new, processes=os.cpu_count() or 1))


def report(followed: Followed) -> None:
    count = followed.count
    print(f"{count:,} boards, {_POLL} between polls; an hour each, bodies only")
    print(f"{'':10}{'requests':>10}{'a board':>10}{'received':>12}{'sent':>12}   statuses")
    for what, traffic in (("idle", followed.idle), ("update", followed.update)):
        total = traffic.asked.total()
        statuses = ", ".join(f"{status}: {n:,}" for status, n in sorted(traffic.statuses.items()))
        print(f"{what:10}{total:>10,}{total / count:>10.1f}{traffic.received / 1e6:>9.2f} MB"
              f"{traffic.sent / 1e6:>9.2f} MB   {statuses}")  # fmt: skip
    kinds = ", ".join(f"{kind} {n:,}" for kind, n in followed.update.asked.most_common())
    print(f"of the update: {kinds}")
    print(f"the stand-in: {followed.memory / MiB:.1f} MiB for it all, {followed.cpu_s:.1f} s of "
          "CPU in the update")  # fmt: skip
    problems = faults(followed)
    for problem in problems[:10]:
        print(f"WRONG: {problem}")
    if not problems:
        print(f"each board took it once; {len(followed.failing)} failed, and all was told truly")


if __name__ == "__main__":
    main()
