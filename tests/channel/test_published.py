"""What is published in a directory or a bucket, as servers send it and boards take it."""

from __future__ import annotations

from pathlib import Path

import pytest
from mpota.formats.signature import PublicKey
from mpota.publish.channels import get_channel
from mpota.publish.store import open_store
from mpota.release.build import Content
from mpota.virtual.board import Board
from mpota.virtual.flash import VirtualFlash

from tests.support import boards, encoded, ota_package, releases
from tests.support.desk_server import connect, get, running
from tests.support.published import mpota, write_bundle

pytest.importorskip("aiohttp")


pytestmark = pytest.mark.usefixtures("keys_here")


def trusted() -> tuple[PublicKey, ...]:
    return (releases.key().public,)


def test_a_keyed_board_takes_the_difference_that_is_published(
    place: tuple[str, str], tmp_path: Path
) -> None:
    target, url = place
    for version, counter, app in (("1", 1, encoded.OLD), ("2", 2, encoded.NEW)):
        made = releases.make(
            Content("app", "app.bin", app), releases.tree(version), keys=(releases.key(),),
            name="pump", version=version, counter=counter,
        )  # fmt: skip
        (tmp_path / "bundle").write_bytes(made.to_bytes())
        done = mpota("publish", "bundle", target, "--key", "key.pem")
        assert done, done.error
    store = open_store(target)
    (entry,) = get_channel(store, "stable", trusted()).channel.releases
    for listed in store.list("releases"):
        if listed.path.endswith(("app.bin", "app.bin.deflate")):
            store.delete(listed.path)  # there is no other way than the difference
    flash = VirtualFlash.create(boards.FLASH_SIZE, {0: encoded.base()})
    board = Board(flash, heap_size=160 * 1024, frozen=ota_package.compiled())
    board.run(f"import ota; ota.keys.add({releases.key().public.digest.hex()!r})")
    with flash:
        run = board.run(f"import ota; ota.release.install('{url}{entry.manifest}')")
        assert run.labels == ("ota_0", "ota_1"), run.console
        assert encoded.slot(board, len(encoded.NEW)) == encoded.NEW


def test_mpota_serve_sends_a_channel_and_says_how_boards_follow_it(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "a", "2.0.0", 5)
    assert mpota("publish", bundle, "public", "--key", "key.pem")
    file = tmp_path / "public" / "stable.channel"
    payload = next((tmp_path / "public" / "releases").glob("*app.bin"))
    with running(tmp_path / "public") as (server, _):
        line = server.board_line(file.name, file.read_bytes())
        assert line == (
            f"import ota.channel; ota.channel.Channel('{server.url}', name='pump', "
            "channel='stable').update(by_hand=True)"
        )
        assert server.board_line(file.name, b'{"type":"channel"}\n') is None
        assert server.board_line("stable.fresh", b'{"format":1') is None
        connection = connect(server)
        status, body, response = get(connection, "/stable.channel")
        assert (status, body) == (200, file.read_bytes())
        tag = response.getheader("ETag") or ""
        assert get(connection, "/stable.channel", If_None_Match=tag)[0] == 304
        assert mpota("channel", "set", "public", "--share", 5, "--key", "key.pem")
        status, body, response = get(connection, "/stable.channel", If_None_Match=tag)
        assert (status, body) == (200, file.read_bytes())
        assert response.getheader("ETag") != tag
        path = f"/releases/{payload.name}"
        status, body, _ = get(connection, path, Range="bytes=100-")
        assert (status, body) == (206, payload.read_bytes()[100:])


def test_what_is_written_meanwhile_is_not_served(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "a", "2.0.0", 5)
    assert mpota("publish", bundle, "public", "--key", "key.pem")
    (tmp_path / "public" / ".stable.channel.0123abcd.tmp").write_bytes(b"half")
    with running(tmp_path / "public") as (server, _):
        assert get(connect(server), "/.stable.channel.0123abcd.tmp")[0] == 404
