"""gooseBit on loopback: another server that speaks DDI. From the package index, Python 3.11."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_MAIN = Path(__file__).with_name("goosebit_main.py")
_START_S = 120.0  # within which it answers, on a busy machine


@dataclass(frozen=True)
class GooseBit:
    url: str
    database: Path

    def device(self, id: str) -> dict[str, Any]:
        """What it knows of a device."""
        with closing(sqlite3.connect(self.database, timeout=30)) as connection:
            connection.row_factory = sqlite3.Row
            row = connection.execute("SELECT * FROM device WHERE id = ?", (id,)).fetchone()
        return dict(row)


def need() -> None:
    """Skip the test where gooseBit is not installed: it needs Python 3.11."""
    if importlib.util.find_spec("goosebit") is None:
        pytest.skip("needs goosebit, for Python 3.11 and later: pip install goosebit")


@contextmanager
def running(directory: Path, artifact: Path, version: str) -> Iterator[GooseBit]:
    """``artifact``: what a rollout gives to each device that registers."""
    database = directory / "goosebit.sqlite3"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.set_inheritable(True)
        fd = listener.fileno()
        options = {"fd": fd, "path": str(artifact), "version": version}
        environment = {
            **os.environ,
            "GOOSEBIT_DB_URI": f"sqlite://{database}",
            "GOOSEBIT_ARTIFACTS_DIR": str(directory),
            "OTEL_SDK_DISABLED": "true",
        }
        with (directory / "goosebit.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(_MAIN), json.dumps(options)],
                cwd=directory, env=environment, pass_fds=(fd,), stdout=log, stderr=log,
            )  # fmt: skip
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        _wait(url, process, directory / "goosebit.log")
        yield GooseBit(url, database)
    finally:
        process.kill()
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it answers anything."""
    end = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(url + "/", timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)  # nothing tells when it listens
    raise AssertionError(f"gooseBit does not answer: {log.read_text()[-2000:]}")
