"""A stand-in for hawkBit on loopback, and a board that follows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ssl import SSLContext
from typing import Any

from mpota.formats.manifest import Manifest
from mpota.release.build import Content, bundle
from mpota.virtual.board import Board, Run
from mpota.virtual.hawkbit.server import Server, running
from mpota.virtual.hawkbit.state import Action, State, Target

from tests.support import channels, ota_board, releases, web
from tests.support.channels import done
from tests.support.releases import key

ID = "pump-7"
TOKEN = "0123456789abcdef"
FOLLOW = """
import ota, ota.ddi
client = ota.ddi.Client({url!r}, "DEFAULT", {id!r}{token}{more})
"""
# One poll, with what comes of it; what is said then of what the client does.
TURN = """
pause = ota.follow.driven(client._turning())
print(client.code or "-", client.error.code if client.error else "-", client.reason)
"""


@contextmanager
def serving(context: SSLContext | None = None, **config: str | bool) -> Iterator[Server]:
    """A server that knows the device `ID` and takes device tokens."""
    state = State(config={name.replace("_", "."): value for name, value in config.items()})
    state.allow_target_tokens()
    state.add_target(ID, TOKEN)
    # By the name that certificates have.
    with running(state, web.HOST, context=context) as server:
        yield server


def target(server: Server) -> Target:
    return server.state.targets[ID]


def release(
    version: str = "2.0", counter: int = 2, *contents: Content, number: int = 0, **fields: Any
) -> bytes:
    """A bundle for boards that trust `key`; without contents: files that confirm themselves."""
    contents = contents or (releases.tree(version, main=releases.MAIN),)
    given: dict[str, Any] = {"name": channels.NAME, "chip": "esp32"}
    payloads = tuple(content.payload() for content in contents)
    manifest = Manifest(version=version, counter=counter, payloads=payloads, **(given | fields))
    return bundle(manifest, contents, (key(number),)).to_bytes()


def assign(
    server: Server, files: dict[str, bytes] | None = None, version: str = "2.0", **how: Any
) -> Action:
    """The set is new; without files, it has a bundle."""
    files = {f"pump-{version}.bundle": release(version)} if files is None else files
    made = server.state.publish(channels.NAME, version, files)
    action = server.state.assign(made, target(server), **how)
    assert action is not None
    return action


def follow(
    server: Server, then: str = TURN, more: str = "", token: str = f", token={TOKEN!r}"
) -> str:
    """A script that follows ``server``, and does ``then`` with the client."""
    more += ", pause=0.05"
    return FOLLOW.format(url=server.url, id=ID, token=token, more=more) + then


def turn(board: Board, server: Server, **how: Any) -> Run:
    """One poll, and what comes of it, up to the board's next rest."""
    run = board.run(follow(server, **how))
    assert run.traceback == "", run.console
    return run


def report(board: Board) -> str:
    """Stage, version and action of the trial that the board knows of."""
    script = "import ota; t = ota.trial.report(); print(t['stage'], t['version'], t['tag'])"
    return done(board.run(script))


__all__ = ["ID", "TOKEN", "TURN", "assign", "follow", "ota_board", "release", "report", "serving"]
