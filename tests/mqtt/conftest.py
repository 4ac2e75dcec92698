"""A broker, who listens to it, a channel, and boards that follow it with the guide's code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import channels, mqtt
from tests.support.channels import Site
from tests.support.mqtt import Broker, Desk


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    (tmp_path / "broker").mkdir()
    with mqtt.running(tmp_path / "broker") as made:
        yield made


@pytest.fixture
def desk(broker: Broker) -> Iterator[Desk]:
    with mqtt.desk(broker) as made:
        yield made


@pytest.fixture
def site() -> Iterator[Site]:
    with channels.site() as made:
        yield made
