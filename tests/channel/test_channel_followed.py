"""Boards follow what `mpota publish` and `mpota channel` have put into a directory or a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest
from mpota.release.build import Content
from mpota.virtual.board import Board

from tests.support import boards, channels, releases
from tests.support.published import mpota

pytest.importorskip("aiohttp")


pytestmark = pytest.mark.usefixtures("keys_here")


HEAP = 160 * 1024


def bundle(version: str, counter: int, **fields: object) -> str:
    content = Content("app", "app.bin", boards.app(f"v{version}"))
    made = releases.make(
        content, releases.tree(version), keys=(releases.key(),), name="pump", version=version,
        counter=counter, **fields,
    )  # fmt: skip
    Path(f"{version}.bundle").write_bytes(made.to_bytes())
    return f"{version}.bundle"


def run(*arguments: object) -> None:
    done = mpota(*arguments, "--key", "key.pem")
    assert done, done.error


def ask(board: Board, url: str, do: str = channels.CHECK, more: str = "") -> str:
    script = channels.FOLLOW.format(url=url, more=more) + do.format(by_hand=False)
    return channels.done(board.run(script))


def test_a_board_follows_what_is_published_paused_resumed_and_withdrawn(
    place: tuple[str, str],
) -> None:
    target, url = place
    run("publish", bundle("2.0.0", 5), target)
    with channels.board(heap_size=HEAP) as board:
        assert ask(board, url).startswith("offer 2.0.0")
        run("channel", "set", target, "--pause")
        assert ask(board, url).startswith("offer None paused")
        run("channel", "set", target, "--resume")
        assert "runs v2.0.0 2.0.0" in ask(board, url, channels.UPDATE)
        run("publish", bundle("2.1.0", 6), target, "--share", 0)
        assert ask(board, url).startswith("offer None share")
        run("channel", "set", target, "--share", 100)
        assert ask(board, url).startswith("offer 2.1.0")
        run("channel", "set", target, "--withdraw")
        assert ask(board, url).startswith("offer None")
        run("publish", bundle("2.2.0", 7), target)
        assert "runs v2.2.0 2.2.0" in ask(board, url, channels.UPDATE)
        run("channel", "set", target, "--fresh-key", "other.pub.pem")
        run("publish", bundle("2.3.0", 8), target)
        assert ask(board, url).startswith("offer None")
        fresh = ("--key", "other.pem", "--trust", "key.pub.pem")
        assert mpota("channel", "refresh", target, *fresh)
        assert ask(board, url).startswith("offer 2.3.0")


def test_a_board_goes_by_stepping_stones(place: tuple[str, str]) -> None:
    target, url = place
    run("publish", bundle("2.0.0", 5), target)
    run("publish", bundle("3.0.0", 6), target, "--from-version", "2.0")
    with channels.board(heap_size=HEAP) as board:
        assert ask(board, url).startswith("offer 2.0.0")
        assert "runs v2.0.0 2.0.0" in ask(board, url, channels.UPDATE)
        assert "runs v3.0.0 3.0.0" in ask(board, url, channels.UPDATE)
