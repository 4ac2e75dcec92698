"""``mpota serve``: ranges and TLS as clients and boards see them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import ssl
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mpota.errors import UsageError
from mpota.release.build import Content
from mpota.release.local_ca import LocalCa
from mpota.release.serve import FileServer, serving
from mpota.virtual.board import Board
from mpota.virtual.cuts import power_cut
from mpota.virtual.flash import CutMode, VirtualFlash

from tests.support import boards, encoded, ota_package, releases
from tests.support.desk_server import DATA, LOOPBACK, connect, get, running

pytest.importorskip("aiohttp")


def test_files_come_whole_and_in_ranges_on_one_connection(tmp_path: Path) -> None:
    (tmp_path / "app.bin").write_bytes(DATA)
    with running(tmp_path) as (server, _):
        connection = connect(server)
        status, body, response = get(connection, "/app.bin")
        assert (status, body, response.getheader("Content-Length")) == (200, DATA, str(len(DATA)))
        tag = response.getheader("ETag") or ""
        socket = connection.sock
        status, body, response = get(connection, "/app.bin", Range="bytes=1000-", If_Range=tag)
        assert (status, body) == (206, DATA[1000:])
        assert response.getheader("Content-Range") == f"bytes 1000-{len(DATA) - 1}/{len(DATA)}"
        assert get(connection, "/app.bin", Range="bytes=0-9")[:2] == (206, DATA[:10])
        assert get(connection, "/app.bin", Range=f"bytes={len(DATA)}-")[0] == 416
        assert connection.sock is socket  # kept alive


def test_a_file_that_changed_is_not_mixed_with_its_former_self(tmp_path: Path) -> None:
    (tmp_path / "app.bin").write_bytes(DATA)
    with running(tmp_path) as (server, _):
        connection = connect(server)
        tag = get(connection, "/app.bin")[2].getheader("ETag") or ""
        (tmp_path / "app.bin").write_bytes(DATA[::-1])
        os.utime(tmp_path / "app.bin", (1, 1))
        status, body, _ = get(connection, "/app.bin", Range="bytes=1000-", If_Range=tag)
        assert (status, body) == (200, DATA[::-1])
        assert get(connection, "/app.bin", Range="bytes=0-9")[:2] == (206, DATA[::-1][:10])


@pytest.mark.parametrize("path", ["/none", "/", "/..%2fsecret", "/%2e%2e/secret", "/link", "/dir"])
def test_nothing_but_files_of_the_directory_is_served(tmp_path: Path, path: str) -> None:
    public = tmp_path / "public"
    (public / "dir").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (public / "link").symlink_to(tmp_path / "secret")
    with running(public) as (server, served):
        status, body, _ = get(connect(server), path)
        assert (status, b"secret" in body) == (404, False)
        assert [one.status for one in served] == [404]


def test_tls_is_by_the_authority_that_the_board_is_given(tmp_path: Path) -> None:
    (tmp_path / "app.bin").write_bytes(DATA)
    ca = LocalCa.open(tmp_path / "kept")
    assert LocalCa.open(tmp_path / "kept").der == ca.der
    assert (tmp_path / "kept" / "ca.pem").stat().st_mode & 0o077 == 0
    with running(tmp_path, ca) as (server, _):
        assert server.url.startswith("https://127.0.0.1:")
        status, body, _ = get(connect(server, ca), "/app.bin", Range="bytes=5-6")
        assert (status, body) == (206, DATA[5:7])
        with pytest.raises(ssl.SSLCertVerificationError):
            get(connect(server, LocalCa.make()), "/app.bin")


def test_many_boards_at_once(tmp_path: Path) -> None:
    (tmp_path / "app.bin").write_bytes(DATA)
    count = 200

    async def fetch(server: FileServer) -> str:
        parts = urlsplit(server.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(b"GET /app.bin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await reader.read(-1)
        writer.close()
        return hashlib.sha256(answer.partition(b"\r\n\r\n")[2]).hexdigest()

    async def fetch_all(server: FileServer) -> list[str]:
        return await asyncio.gather(*(fetch(server) for _ in range(count)))

    with running(tmp_path) as (server, served):
        digests = asyncio.run(fetch_all(server))
    assert digests == [hashlib.sha256(DATA).hexdigest()] * count
    assert [one.status for one in served] == [200] * count


def test_a_board_installs_by_the_line_that_is_printed(tmp_path: Path) -> None:
    public = tmp_path / "public"
    public.mkdir()
    bundle = releases.make(releases.app(), releases.tree("2")).to_bytes()
    (public / "demo 2.bundle").write_bytes(bundle)
    (public / "app.bin").write_bytes(boards.app("v1.28.0"))
    (public / "notes.txt").write_text("no update")
    frozen = tmp_path / "frozen"
    frozen.mkdir()
    board = releases.board(frozen)
    with running(public) as (server, _):
        assert server.board_line("notes.txt", b"no update") is None
        line = server.board_line("demo 2.bundle", bundle[:16])
        assert line == f"import ota; ota.release.install('{server.url}demo%202.bundle')"
        run = board.run(line)
        assert "runs v1.27.0 2" in run.output, run.console
        line = server.board_line("app.bin", boards.app()[:16])
        assert line == f"import ota; ota.update.from_file('{server.url}app.bin')"


@pytest.mark.parametrize(
    "content",
    [encoded.content(), encoded.content().compressed(), encoded.content().with_delta(encoded.OLD)],
    ids=["plain", "compressed", "delta"],
)
def test_a_heap_of_104_kib_is_enough_for_a_signed_bundle_over_http(
    tmp_path: Path, content: Content
) -> None:
    public = tmp_path / "public"
    public.mkdir()
    bundle = releases.make(content, releases.tree("2"), keys=(releases.key(),))
    (public / "x.bundle").write_bytes(bundle.to_bytes())
    flash = VirtualFlash.create(boards.FLASH_SIZE, {0: encoded.base()})
    board = Board(flash, heap_size=104 * 1024, frozen=ota_package.compiled())
    board.run(f"import ota; ota.keys.add({releases.key().public.digest.hex()!r})")
    with flash, running(public) as (server, _):
        run = board.run(f"import ota; ota.release.install('{server.url}x.bundle')")
        assert run.labels == ("ota_0", "ota_1"), run.console
        assert encoded.slot(board, len(encoded.NEW)) == encoded.NEW


def test_a_board_installs_over_tls_by_the_line_that_is_printed(tmp_path: Path) -> None:
    public = tmp_path / "public"
    public.mkdir()
    bundle = releases.make(releases.app(), releases.tree("2")).to_bytes()
    (public / "x.bundle").write_bytes(bundle)
    frozen = tmp_path / "frozen"
    frozen.mkdir()
    board = releases.board(frozen)
    with running(public, LocalCa.make()) as (server, _):
        run = board.run("import ota; ota.release.install('" + server.url + "x.bundle')")
        assert run.labels == ("ota_0",)
        assert "certificate" in run.traceback, run.console
        run = board.run(server.board_line("x.bundle", bundle[:16]))
        assert "runs v1.27.0 2" in run.output, run.console


def test_micropython_esp32_otas_json_is_a_release_too(tmp_path: Path) -> None:
    image = boards.app("v1.27.0")
    sha = hashlib.sha256(image).hexdigest()
    (tmp_path / "app.bin").write_bytes(image)
    (tmp_path / "firmware.json").write_text(
        json.dumps({"firmware": "app.bin", "sha": sha, "length": len(image)})
    )
    frozen = tmp_path / "frozen"
    frozen.mkdir()
    board = releases.board(frozen)
    with running(tmp_path) as (server, _):
        run = board.run(f"import ota; ota.release.install('{server.url}firmware.json')")
        assert run.labels == ("ota_0", "ota_1"), run.console
        board.run(f"import ota; ota.keys.add({'a' * 64!r})")
        run = board.run(f"import ota; ota.release.install('{server.url}firmware.json')")
        assert "the manifest is not signed" in run.traceback, run.console


def test_a_board_installs_what_was_published_as_files(tmp_path: Path) -> None:
    from mpota.release.build import Contents, publish

    public = tmp_path / "public"
    contents = Contents((releases.app(), releases.tree("2")), "esp32")
    manifest = releases.Manifest(
        "demo", "2.0", contents.payloads(as_url=True), chip="esp32", counter=3
    )
    publish(public, manifest, contents, (releases.key(),))
    frozen = tmp_path / "frozen"
    frozen.mkdir()
    board = releases.board(frozen)
    board.run(f"import ota; ota.keys.add({releases.key().public.digest.hex()!r})")
    with running(public) as (server, served):
        run = board.run(f"import ota; ota.release.install('{server.url}manifest.json')")
        assert "runs v1.27.0 2" in run.output, run.console
        assert [one.path for one in served] == [
            "/manifest.json", "/manifest.sig", "/app.bin", "/files.tar"
        ]  # fmt: skip
        (public / "files.tar").write_bytes(releases.tree("2").data[:-512])
        run = board.run(f"import ota; ota.release.install('{server.url}manifest.json')")
        assert "files.tar is shorter than the" in run.traceback, run.console
        (public / "manifest.sig").unlink()
        run = board.run(f"import ota; ota.release.install('{server.url}manifest.json')")
        assert "the manifest is not signed" in run.traceback, run.console
        assert run.operations == ()


def test_a_published_app_goes_on_where_a_power_cut_broke_it_off(tmp_path: Path) -> None:
    from mpota.release.build import Contents, publish

    public = tmp_path / "public"
    contents = Contents((releases.app(size=0x30000), releases.tree("2")), "esp32")
    manifest = releases.Manifest("demo", "2.0", contents.payloads(as_url=True), chip="esp32")
    publish(public, manifest, contents, ())
    frozen = tmp_path / "frozen"
    frozen.mkdir()
    board = releases.board(frozen)
    with running(public) as (server, served):
        line = f"import ota; ota.release.install('{server.url}manifest.json', block_size=4096)"
        with power_cut(board.flash, 100, CutMode.TORN):  # some 40 of its 48 sectors are there
            board.run(line)
        served.clear()
        run = board.run(line)
        assert "runs v1.27.0 2" in run.output, run.console
        asked = [one.range for one in served if one.path == "/app.bin"]
        first = int((asked[0] or "").removeprefix("bytes=").partition("-")[0])
        assert first >= 0x18000, asked


def test_an_address_in_use_is_an_error_not_a_traceback(tmp_path: Path) -> None:
    async def twice() -> None:
        async with serving(tmp_path, LOOPBACK, 0) as server:
            port = urlsplit(server.url).port
            assert port is not None
            with pytest.raises(UsageError, match=f"cannot serve at {LOOPBACK} port {port}"):
                async with serving(tmp_path, LOOPBACK, port):
                    pass

    asyncio.run(twice())


def test_the_command_prints_url_and_line(tmp_path: Path) -> None:
    (tmp_path / "x.bundle").write_bytes(releases.make(releases.tree("1")).to_bytes())
    process = subprocess.Popen(
        [sys.executable, "-m", "mpota", "serve", tmp_path, "--host", LOOPBACK, "--port", "0"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        first, what, second = (process.stdout.readline() for _ in range(3))
    finally:
        process.terminate()
        process.communicate()
    assert first.startswith(f"serving {tmp_path} at http://127.0.0.1:")
    assert what.startswith("x.bundle: ")
    assert second.startswith("on the board: import ota; ota.release.install('http://127.0.0.1:")
