"""Channels on loopback, with releases for the boards in boards.py, and boards that follow them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from functools import cache
from ssl import SSLContext
from typing import Any

from mpota.formats.channel import Channel, ChannelEntry, Fresh, line_digest
from mpota.formats.manifest import Manifest
from mpota.release.build import Content
from mpota.release.signing import PrivateKey, sign, sign_line
from mpota.virtual.board import Board, End, Run

from tests.support import boards, ota_board, releases, web
from tests.support.releases import key

NAME = "pump"
NOW = datetime.now(timezone.utc).replace(microsecond=0)
DAY = timedelta(days=1)
# The clock of a board that was never set, five seconds after power-on.
UNSET = "import ota.channel_more as m; m.gmtime = lambda: (2000, 1, 1, 0, 0, 5, 5, 1)\n"
FOLLOW = """
import ota.channel, ota
channel = ota.channel.Channel({url!r}, name="pump"{more})
"""
CHECK = """
try:
    offer = channel.check({by_hand})
    print("offer", offer.version if offer else None, channel.code or "-", channel.reason)
except ota.OTAError as error:
    print("error", error.code, error)
"""
UPDATE = """
try:
    print("update", channel.update({by_hand}), channel.code or "-", channel.reason)
except ota.OTAError as error:
    print("error", error.code, error)
"""


@dataclass
class Site:
    """A published directory: what is in it, and the channel ``stable`` as it was published last."""

    server: web.WebServer
    serial: int = 0
    published: list[Channel] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.server.url("/pump")

    def put(self, name: str, data: bytes) -> None:
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        self.server.files[f"/pump/{name}"] = web.File(data, etag=etag)

    def release(
        self,
        version: str,
        counter: int,
        *contents: Content,
        keys: tuple[PrivateKey, ...] | None = None,
        entry: dict[str, Any] | None = None,
        **fields: Any,
    ) -> ChannelEntry:
        """Payloads, manifest and signature; the entry for them. Without contents: files."""
        contents = contents or (releases.tree(version),)
        members: dict[str, bytes] = {}
        payloads = []
        for content in contents:
            named = _named(content)
            payloads.append(named.payload(as_url=True))
            members |= named.members
        given = {"name": NAME, "chip": "esp32"} | fields
        manifest = Manifest(
            version=version, counter=counter, payloads=tuple(payloads), **given
        ).to_bytes()
        for name, data in members.items():
            self.put(name, data)
        digest = hashlib.sha256(manifest).hexdigest()
        name = f"{NAME}-{version}-{digest[:8]}"
        self.put(f"{name}.json", manifest)
        self.put(f"{name}.sig", sign(manifest, keys or (key(),)))
        return ChannelEntry(
            version, counter, f"{name}.json", len(manifest), digest, chip=given["chip"],
            board=fields.get("board"), from_version=fields.get("from_version"), **(entry or {}),
        )  # fmt: skip

    def channel(self, *entries: ChannelEntry, **fields: Any) -> Channel:
        """The next channel file as a value."""
        self.serial += 1
        given: dict[str, Any] = {
            "name": NAME, "channel": "stable", "serial": self.serial, "issued": NOW - DAY,
            "expires": NOW + 30 * DAY, "releases": entries, "poll": 60,
        }  # fmt: skip
        return Channel(**(given | fields))

    def publish(
        self, *entries: ChannelEntry, keys: tuple[PrivateKey, ...] | None = None, **fields: Any
    ) -> Channel:
        channel = self.channel(*entries, **fields)
        self.put("stable.channel", sign_line(channel.to_line(), keys or (key(),)))
        self.published.append(channel)
        return channel

    def refresh(self, signer: PrivateKey, channel: Channel | None = None, **fields: Any) -> Fresh:
        """The fresh file for the channel file that was published last."""
        channel = channel or self.published[-1]
        digest = line_digest(channel.to_line()).hex()
        fresh = Fresh(NAME, "stable", channel.serial, digest, NOW - DAY, NOW + DAY)
        fresh = replace(fresh, **fields)
        self.put("stable.fresh", sign_line(fresh.to_line(), (signer,)))
        return fresh

    def asked(self) -> list[str]:
        """Paths below the directory and the statuses of all requests since the last call."""
        found = [
            f"{request.path.removeprefix('/pump/')} {request.status}"
            for request in self.server.requests
        ]
        self.server.requests.clear()
        return found


def _named(content: Content) -> Content:
    """The content under a name that never has another one."""
    digest = hashlib.sha256(content.data).hexdigest()[:8]
    encoded = tuple(replace(form, member=f"{digest}-{form.member}") for form in content.encoded)
    return replace(content, member=f"{digest}-{content.member}", encoded=encoded)


@contextmanager
def site(context: SSLContext | None = None) -> Iterator[Site]:
    with web.serving(context=context) as server:
        yield Site(server)


# What ran before comes back by a reset, and takes note of it in that boot.
MAIN = "import ota.rollback; ota.rollback.cancel(); import ota.trial; ota.trial.load()"
CONFIRM = f"with open('main.py', 'w') as f: f.write({MAIN!r})\n"


@cache
def _trusting(counter: int, version: str, numbers: tuple[int, ...], start: bytes | None) -> bytes:
    with ota_board.updating_board(start) as board:
        script = CONFIRM + "import ota\n"
        script += "".join(f"ota.keys.add({key(n).public.digest.hex()!r})\n" for n in numbers)
        if version:
            script += (
                f"trust = ota.keys.load(); trust.name, trust.version, trust.counter = "
                f"{NAME!r}, {version!r}, {counter}; trust.save()\n"
            )
        ota_board.output(board, script)
        return board.flash.snapshot()


@contextmanager
def board(
    version: str = "1.0",
    counter: int = 1,
    keys: tuple[int, ...] = (0,),
    start: bytes | None = None,
    **options: Any,
) -> Iterator[Board]:
    """A board that trusts keys and has confirmed a release; whatever boots confirms itself.

    ``start``: its flash before that.
    """
    content = _trusting(counter, version, keys, start)
    with ota_board.updating_board(content, **options) as made:
        yield made


def follow(site: Site, then: str, more: str = "", by_hand: bool = False, before: str = "") -> str:
    """A script that follows the channel of ``site``, and does ``then`` with it."""
    then = then.replace("{by_hand}", str(by_hand))
    return before + FOLLOW.format(url=site.url, more=more) + then


def look(board: Board, site: Site, then: str = CHECK, **how: Any) -> str:
    """What a board says when it checks."""
    return done(board.run(follow(site, then, **how)))


def update(board: Board, site: Site, **how: Any) -> str:
    """What a board says when it updates, and when it has started again."""
    return done(board.run(follow(site, UPDATE, **how)))


def done(run: Run) -> str:
    assert (run.end, run.traceback) == (End.IDLE, ""), run.console
    return run.output.strip()


def nvs_writes(run: Run) -> int:
    """How often something was written to NVS."""
    area = range(boards.NVS.offset, boards.NVS.offset + boards.NVS.size)
    return sum(operation.offset in area for operation in run.operations)


def report(board: Board) -> str:
    """Stage and version of the trial that the board knows of."""
    return done(board.run("import ota; t = ota.trial.report(); print(t['stage'], t['version'])"))
