"""A channel, a board that follows it, and where one is published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mpota.virtual.board import Board

from tests.support import channels, s3
from tests.support.channels import Site
from tests.support.desk_server import running
from tests.support.published import write_keys


@pytest.fixture
def site() -> Iterator[Site]:
    with channels.site() as made:
        yield made


@pytest.fixture
def board() -> Iterator[Board]:
    with channels.board() as made:
        yield made


@pytest.fixture(name="keys_here")
def _keys_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_keys(tmp_path)


@pytest.fixture(params=["directory", "s3"], name="place")
def _place(
    request: pytest.FixtureRequest,
    keys_here: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[str, str]]:
    """Where to publish, and the URL at which boards find it."""
    if request.param == "directory":
        (tmp_path / "public").mkdir()
        with running(tmp_path / "public") as (server, _):
            yield "public", server.url
        return
    for name in s3.FOREIGN:
        monkeypatch.delenv(name)
    with s3.running() as url:
        for name, value in s3.environment(url).items():
            monkeypatch.setenv(name, value)
        s3.make_bucket(url, "bucket")
        yield "s3://bucket/pump", f"{url}/bucket/pump/"
