"""MQTT clients for boards, as the Python package index has them: data for tests, no part of mpota.

    python -m tests.support.mqtt_clients

fetches them into the user's cache, as `.ci/firmware` does with a firmware. Newer ones, which the
index does not have, are files that environment variables name.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mpota.errors import MpotaError
from mpota.mpy_cross import PORTABLE, compile_module
from mpota.virtual.micropython import cache_dir

NEEDS_CLIENT = "needs an MQTT client for boards"
_TIMEOUT_S = 120
_MAX_SIZE = 128 << 10


@dataclass(frozen=True)
class Client:
    """A module in a package of the index; ``member``: its place there, and on a board."""

    requirement: str
    member: str
    sha256: str

    @property
    def path(self) -> Path:
        return cache_dir() / "mqtt" / self.sha256[:16] / self.member

    def is_here(self) -> bool:
        try:
            return self.is_genuine(self.path.read_bytes())
        except OSError:
            return False

    def is_genuine(self, data: bytes) -> bool:
        return hashlib.sha256(data).hexdigest() == self.sha256


CLIENTS = {
    "umqtt.simple": Client(
        "micropython-umqtt.simple==1.3.4",
        "umqtt/simple.py",
        "8555d2f654deb8eb0d724f79b0811a78cc94029d070f3d96bbd74288653d63a5",
    ),
    "aiomqttc": Client(
        "aiomqttc==1.0.7",
        "aiomqttc.py",
        "4d1d8c29a676f39b2725dfc5a44e848b69a35516871731b9624bf0747c8e71cc",
    ),
}
# Name of a client -> the variable that names its file, and where that goes on a board.
NAMED = {
    "umqtt.simple, newer": ("MPOTA_UMQTT", "umqtt/simple.py"),
    "mqtt_as": ("MPOTA_MQTT_AS", "mqtt_as.py"),
}


def need(name: str) -> tuple[str, Path]:
    """(Where it goes on a board, the file) of a client. Skips the test where it is not at hand."""
    if name in NAMED:
        variable, member = NAMED[name]
        found = os.environ.get(variable)
        if not found:
            pytest.skip(f"{NEEDS_CLIENT} that {variable} names: {name}")
        return member, Path(found)
    client = CLIENTS[name]
    if not client.is_here():
        pytest.skip(f"{NEEDS_CLIENT} that `make test` fetches: {client.requirement}")
    return client.member, client.path


def install(name: str, target: Path) -> None:
    """Compile a client into a directory for `Board.frozen`. Skips the test: see `need`."""
    member, path = need(name)
    place = (target / member).with_suffix(".mpy")
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(compile_module(path.read_bytes(), member, PORTABLE))


def fetch(client: Client) -> bytes:
    """The module. Raises MpotaError if it is not to be had, or is another one."""
    with tempfile.TemporaryDirectory(prefix="mpota-") as scratch:
        # The packages are from before pip wanted a setup.py: it unpacks them, says so and ends.
        download = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-clean"]
        quiet = ["--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "10"]
        try:
            done = subprocess.run(
                [*download, *quiet, "--dest", scratch, client.requirement],
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                env=os.environ | {"TMPDIR": scratch},
            )
        except subprocess.TimeoutExpired:
            raise MpotaError(f"pip download {client.requirement} took {_TIMEOUT_S} s") from None
        for data in _found(Path(scratch), client.member):
            if client.is_genuine(data):
                return data
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MpotaError(f"pip download {client.requirement}: {last}")


def _found(directory: Path, member: str) -> Iterator[bytes]:
    for path in directory.rglob(member):
        with path.open("rb") as file:
            yield file.read(_MAX_SIZE)
    for path in directory.glob("*.whl"):
        with zipfile.ZipFile(path) as archive, archive.open(member) as packed:
            yield packed.read(_MAX_SIZE)


def main() -> None:
    for client in CLIENTS.values():
        if client.is_here():
            continue
        try:
            data = fetch(client)
            client.path.parent.mkdir(parents=True, exist_ok=True)
            scratch = client.path.with_suffix(".new")
            scratch.write_bytes(data)
            scratch.replace(client.path)
        except (MpotaError, OSError, KeyError, zipfile.BadZipFile) as error:
            print(f"an MQTT client is missing, its tests are skipped ({error})", file=sys.stderr)


if __name__ == "__main__":
    main()
