"""The server of the update page (ota.web): beside a listener, in an app's server, in its heap."""

from __future__ import annotations

import asyncio
import gzip

import pytest
from mpota.push.update import RefusedError
from mpota.push.wire import Update
from mpota.units import KiB

from tests.support import encoded, ota_board, page_boards
from tests.support.network import free_port, push_tcp
from tests.support.page_boards import (
    PageLink,
    by,
    free_heap,
    request,
    serving_page,
    state,
    talk,
    update,
    wait_for_heap,
)
from tests.support.protocol_client import DONE, READY, Plain, code, text
from tests.support.radio import SECRET

NEW = encoded.NEW
BOTH = ("ota_0", "ota_1")
# 6 KiB more than a listener needs for the same: "plain" in test_push_memory.py.
ENOUGH = 78 * KiB
TOO_LITTLE = 60 * KiB


def test_in_6_kib_more_than_a_listener_takes_an_update_goes_through() -> None:
    content = encoded.base()
    with serving_page(content=content, heap_size=ENOUGH) as (powered, board, port):
        state(port)
        assert talk(port, lambda client: update(client, NEW))[0] == DONE
        page_boards.wait_for_restart(port)
        assert ota_board.slot_content(board, len(NEW)) == NEW
    assert powered.wait().labels == BOTH


def test_where_memory_is_short_the_client_is_told_and_the_page_stays() -> None:
    content = encoded.base()
    with serving_page(content=content, heap_size=TOO_LITTLE) as (powered, _, port):
        said = talk(port, lambda client: update(client, NEW))
        assert code(said) == "memory"
        assert "the board has not enough memory" in text(said)
        assert state(port)["state"] == "confirmed"
    assert powered.wait().labels == ("ota_0",)


def test_of_page_and_listener_one_updates_the_board() -> None:
    listens = free_port()
    more = (
        f"asyncio.create_task(ota.listen.Listener({SECRET!r}, host='127.0.0.1', "
        f"port={listens}).serve())"
    )

    async def both(client: Plain) -> None:
        await client.greet()
        assert (await client.begin(NEW))[0] == READY
        with pytest.raises(RefusedError) as refused:
            await asyncio.to_thread(push_tcp, listens, Update("x", NEW), attempts=1)
        assert refused.value.code == "busy"
        assert (await client.send(NEW, follow=True))[0] != 0x85
        assert (await client.end(1))[0] == DONE

    with serving_page(more=more, content=encoded.base()) as (powered, _, port):
        talk(port, both)
        page_boards.wait_for_restart(port)
    assert powered.wait().labels == BOTH


def test_an_app_with_a_web_server_has_the_page_where_it_wants_it() -> None:
    """Its streams have ``read`` alone, as Microdot's may."""
    own = free_port()
    more = f"""
    class Stream:
        def __init__(self, stream): self.read = stream.read
    other = ota.web.Page({SECRET!r}, reboot=False)
    asyncio.create_task(other.attend())
    async def handle(r, w):
        method, path, _ = (await r.readline()).decode().split()
        heads = {{}}
        while (line := (await r.readline()).decode().strip()):
            name, _, value = line.partition(": ")
            heads[name.lower()] = value
        size = int(heads.get("content-length", 0))
        status, found, body = await other.answer(method, path[3:], Stream(r), size,
            heads["host"], heads.get("origin", ""), "me")
        body = body if isinstance(body, bytes) else body.read()
        found["Content-Length"], found["Connection"] = len(body), "close"
        lines = ["HTTP/1.1 %d -" % status] + ["%s: %s" % item for item in found.items()]
        w.write("\\r\\n".join(lines + ["", ""]).encode() + body)
        await w.drain()
        w.close()
        await w.wait_closed()
    await asyncio.start_server(handle, "127.0.0.1", {own})"""

    class Mounted(PageLink):
        prefix = "/up"

    with serving_page(more=more, content=encoded.base(), heap_size=200 * KiB) as (_, board, _port):
        status, page = request(own, "GET", "/up/")
        assert (status, b"<!doctype html>" in gzip.decompress(page)) == (200, True)
        said = by(Mounted(own), lambda client: update(client, NEW))
        assert said[0] == DONE, said
        assert ota_board.slot_content(board, len(NEW)) == NEW
        status, body = request(own, "GET", "/up/state")
        assert (status, b'"waiting"' in body) == (200, True)


def test_a_page_that_is_asked_for_again_and_again_takes_no_memory() -> None:
    with serving_page(first=page_boards.TELLS_HEAP) as (_, _board, port):
        before = free_heap(port)
        for _ in range(10):
            status, page = request(port, "GET", "/")
            assert (status, gzip.decompress(page)[:15]) == (200, b"<!doctype html>")
        wait_for_heap(port, before - 2048)
