"""A stand-in for hawkBit, and a board that follows it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mpota.virtual.board import Board
from mpota.virtual.hawkbit.server import Server

from tests.support import channels, hawkbit


@pytest.fixture
def server() -> Iterator[Server]:
    with hawkbit.serving() as made:
        yield made


@pytest.fixture
def board() -> Iterator[Board]:
    """It trusts a key, and runs release 1.0."""
    with channels.board() as made:
        yield made
